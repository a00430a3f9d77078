package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestNodeDown: a node that others hear nothing of keeps its routes, because
// nobody else could serve its prefix; its names and backends are not used
// until it is back.
func TestNodeDown(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	client := s.Workload(1, "client", "")
	for i := 2; i <= 3; i++ {
		w := s.Workload(i, fmt.Sprintf("web%d", i), "--label app=web --port http=80")
		w.Serve(80)
	}
	s.Run("node1", "nodectl service add web --vip 10.96.1.1 --port 80 --select app=web")
	s.Run("node1", "nodectl service add webs --vip none --port 80 --select app=web")
	ready := func(n int) {
		t.Helper()
		s.Eventually(fmt.Sprintf("nodes 1 and 3 use %d backends", n), 45*time.Second, func() error {
			for _, i := range []int{1, 3} {
				if err := backends(t, s, i, "web", n); err != nil {
					return err
				}
				got := lookup(s, nodeName(i), "webs.default.svc.cluster.local")
				if len(strings.Fields(got)) != n {
					return fmt.Errorf("node%d answers %q for webs", i, got)
				}
				got = lookup(s, nodeName(i), "web2.default.pod.cluster.local")
				if (got != "") != (n == 2) {
					return fmt.Errorf("node%d answers %q for web2, want it only when node2 is in use", i, got)
				}
			}
			return nil
		})
	}
	routes := func() {
		t.Helper()
		for _, node := range []string{"node1", "node3"} {
			s.Want(s.Run(node, "ip route show 10.244.2.0/24"), `^10\.244\.2\.0/24 via 192\.168\.1\.12 dev nv-pods`)
		}
	}
	served := func(want ...string) {
		t.Helper()
		out := client.Run("nodectl lab get -n 40 http://10.96.1.1/")
		for _, name := range []string{"web2", "web3"} {
			if found := strings.Contains(out, name); found != strings.Contains(strings.Join(want, " "), name) {
				t.Errorf("served by:\n%swant %v", out, want)
			}
		}
	}
	ready(2)
	served("web2", "web3")

	{
		t.Log("kill -9")
		// New connections all the while, and none may fail: the dead daemon's
		// kernel serves until the others have stopped using it.
		busy := s.Background(scenario.Machine, "ip netns exec client nodectl lab get -n 1000000 http://10.96.1.1/")
		begin := time.Now()
		kill(t, s, "node2", unix.SIGKILL)
		s.Want(client.Run(curl+"http://10.244.2.2/"), "^web2 saw")
		ready(1)
		t.Logf("out of use after %s", time.Since(begin).Round(100*time.Millisecond))
		served("web3")
		routes()
		s.Want(client.Run(curl+"http://10.244.2.2/"), "^web2 saw") // its kernel goes on
		s.Want(s.Run("node3", "nodectl status"), `^node2\s+dead\s`)
		begin = time.Now()
		start(t, s, "node2")
		ready(2)
		t.Logf("back in use after %s", time.Since(begin).Round(100*time.Millisecond))
		served("web2", "web3")
		agree(t, s, 3, soon)
		select {
		case <-busy.Done():
			t.Errorf("a connection to the service failed: %s", busy.Output())
		default:
			busy.Stop()
		}
	}
	{
		t.Log("cable out")
		begin := time.Now()
		must(t, s.Lab.Cut("node2", "", false))
		ready(1)
		t.Logf("out of use after %s", time.Since(begin).Round(100*time.Millisecond))
		served("web3")
		routes()
		// The node itself serves what it can reach.
		if got := lookup(s, "node2", "web2.default.pod.cluster.local"); got != "10.244.2.2" {
			t.Errorf("node2 answers %q for its own web2", got)
		}
		s.Want(s.Run("node2", curl+"http://10.96.1.1/"), "^web2 saw")
		begin = time.Now()
		must(t, s.Lab.Heal("node2", ""))
		converged(t, s)
		ready(2)
		t.Logf("back in use after %s", time.Since(begin).Round(100*time.Millisecond))
		served("web2", "web3")
		s.Want(client.Run(curl+"http://10.244.2.2/"), "^web2 saw")
		agree(t, s, 3, soon)
	}
}
