package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestNodeDown: a node that others hear nothing of keeps its routes, because
// nobody else could serve its prefix; its names and backends are not used
// until it is back. Until that is decided another node checks them in its stead.
func TestNodeDown(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	client := s.Workload(1, "client", "")
	health := map[int]*scenario.Process{}
	web := map[int]*scenario.Workload{}
	for i := 2; i <= 3; i++ {
		web[i] = s.Workload(i, fmt.Sprintf("web%d", i), "--label app=web --port http=80")
		web[i].Serve(80)
		health[i] = web[i].Serve(81)
	}
	for name, port := range map[string]int{"well": 80, "ill": 81} {
		s.Run("node1", fmt.Sprintf("nodectl service add %s --port 80 --select app=web --check http --check-port %d --check-interval 200ms --check-timeout 200ms", name, port))
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
	// says waits until nodes 1 and 3 see web2 of each service as told.
	says := func(what string, want map[string]func(*api.ServiceBackend) bool) {
		t.Helper()
		s.Eventually("nodes 1 and 3 see web2 "+what, soon, func() error {
			for service, ok := range want {
				by := ""
				for _, i := range []int{1, 3} {
					b, err := backend(t, s, i, service, "web2")
					if err != nil {
						return err
					}
					if !ok(b) || i == 3 && b.By != by {
						return fmt.Errorf("node%d: %s: %+v, checked by %q, node1 says by %q", i, service, *b, b.By, by)
					}
					by = b.By
				}
			}
			return nil
		})
	}
	other := func(b *api.ServiceBackend) bool { return b.By == "node1" || b.By == "node3" }
	checkedAtHome := func(b *api.ServiceBackend) bool { return b.Ready && b.By == "" }
	ready(2)
	bothWell := map[string]func(*api.ServiceBackend) bool{"well": checkedAtHome, "ill": checkedAtHome}
	says("ready", bothWell)
	served("web2", "web3")

	{
		t.Log("kill -9")
		// New connections all the while, and none may fail: the dead daemon's
		// kernel serves until the others have stopped using it.
		busy := s.Background(scenario.Machine, "ip netns exec client nodectl lab get -n 1000000 http://10.96.1.1/")
		begin := time.Now()
		kill(t, s, "node2", unix.SIGKILL)
		// Nobody knows yet whether node2 is dead. One node asks its backends, and
		// the others go by what it says: one stays, one goes, and its flows stay.
		health[2].Stop()
		says("as another node says", map[string]func(*api.ServiceBackend) bool{
			"well": func(b *api.ServiceBackend) bool { return other(b) && b.Ready && b.Health == "ok" },
			"ill": func(b *api.ServiceBackend) bool {
				return other(b) && !b.Ready && !b.Failed && b.Health == "failing" && strings.Contains(b.Why, "connection refused")
			},
		})
		t.Logf("checked by another node after %s", time.Since(begin).Round(100*time.Millisecond))
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
		// It speaks for its own again.
		says("as its own node says", map[string]func(*api.ServiceBackend) bool{
			"well": checkedAtHome,
			"ill":  func(b *api.ServiceBackend) bool { return b.By == "" && b.Health == "failing" && b.Failed },
		})
		web[2].Serve(81)
		says("ready again", bothWell)
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
