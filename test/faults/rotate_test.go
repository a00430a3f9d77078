package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

// secretOf reads the secret file of a node.
func secretOf(t *testing.T, s *scenario.Scenario, i int) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Lab.Node(i).Dir, "state", "cluster.secret"))
	must(t, err)
	return string(b)
}

// says waits for something in what a command has written.
func says(s *scenario.Scenario, p *scenario.Process, text string) {
	s.T().Helper()
	s.Eventually("it says: "+text, soon, func() error { return contains(p.Output(), text) })
}

// finished waits for the end of a rotation and fails the test unless all nodes
// have one new secret.
func finished(t *testing.T, s *scenario.Scenario, p *scenario.Process, old string) {
	t.Helper()
	s.Eventually("the rotation ends", soon, func() error {
		select {
		case <-p.Done():
			return nil
		default:
			return fmt.Errorf("it says:\n%s", p.Output())
		}
	})
	s.Want(p.Output(), `rotated: all nodes that answered hold secret`)
	for i := 1; i <= 3; i++ {
		if got := secretOf(t, s, i); got == old || got != secretOf(t, s, 1) {
			t.Errorf("node%d has the old secret, or another than node1", i)
		}
		if st, err := os.Stat(filepath.Join(s.Lab.Node(i).Dir, "state", "cluster.secret")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("node%d: mode of the secret: %v %v", i, st.Mode(), err)
		}
	}
	var r api.Rotation
	must(t, json.Unmarshal([]byte(s.Run("node2", "nodectl secret status -o json")), &r))
	if r.Step != "none" || len(r.Nodes) != 3 {
		t.Errorf("status afterwards: %+v", r)
	}
	for _, n := range r.Nodes {
		if n.Primary == "" || n.Primary != r.Nodes[0].Primary || n.Next != "" || n.Previous != "" || n.Note != "" {
			t.Errorf("status of %s afterwards: %+v", n.Name, n)
		}
	}
}

// TestSecretRotate: the secret changes while a stream runs and one node is
// down at first; no packet is lost, no node is suspected.
func TestSecretRotate(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	a, b := s.Workload(1, "a", ""), s.Workload(2, "b", "--label app=b --port http=80")
	b.Serve(80)
	s.Run("node1", "nodectl service add b --vip 10.96.1.1 --port 80 --select app=b")
	s.Eventually("the service is there", soon, func() error { return backends(t, s, 1, "b", 1) })
	settled(s, "node1")
	settled(s, "node2")
	old := secretOf(t, s, 1)
	before := [2]string{kernel(t, s, "node1"), kernel(t, s, "node2")}
	kill(t, s, "node3", unix.SIGKILL)
	s.Eventually("node3 is seen to be dead", soon, func() error {
		out, err := s.Exec("node1", "nodectl peers")
		if err == nil && !strings.Contains(out, "dead") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	for i := range 2 { // later than it is seen to be dead
		s.Eventually("node3 is withdrawn", soon, func() error { return contains(daemonLog(s.Lab.Node(i+1), 0), "node withdrawn") })
	}
	said := [2]int{logSize(s.Lab.Node(1)), logSize(s.Lab.Node(2))}
	stream := startStream(t, "/run/netns/a", "/run/netns/b", b.Addr, 7000)

	p := s.Background("node1", "nodectl secret rotate")
	says(s, p, "waiting: node3 does not answer")
	says(s, p, "node2 holds ")
	if secretOf(t, s, 1) != old || secretOf(t, s, 2) != old {
		t.Error("a node uses the new secret though node3 lacks it")
	}
	s.Want(s.Run("node2", "nodectl secret status"), `a rotation to [0-9a-f]{8} is under way, step add`)
	must(t, s.Lab.Start(t.Context(), "node3"))
	finished(t, s, p, old)
	t.Logf("nodectl secret rotate:\n%s", p.Output())
	s.Want(p.Output(), `(?s)step 1 of 3.*step 2 of 3.*step 3 of 3.*done`)
	converged(t, s)

	r := stream.finish(t)
	if r.retransmits != 0 {
		t.Errorf("%d segments were sent again", r.retransmits)
	}
	for i, from := range said {
		log := daemonLog(s.Lab.Node(i+1), from)
		for _, bad := range []string{"node suspect", "node dead", "peer disconnected", "withdrawn"} {
			if strings.Contains(log, bad) {
				t.Errorf("node%d has logged %q:\n%s", i+1, bad, log)
			}
		}
		if got := kernel(t, s, nodeName(i+1)); got != before[i] {
			t.Errorf("the kernel of node%d has changed:\n%s\nwas:\n%s", i+1, got, before[i])
		}
	}
	s.Want(a.Run("nodectl lab get -n 5 http://10.96.1.1/"), `5 b`)

	// The same again where nothing is down, and a token of before.
	token := s.Run("node2", "nodectl token")
	old = secretOf(t, s, 1)
	p = s.Background("node2", "nodectl secret rotate")
	finished(t, s, p, old)
	s.File("Nodefile.new", "node {\n    name newcomer\n    advertise 192.168.1.13\n}\n")
	words := strings.Fields(token)
	s.Want(s.Fail("node3", "nodectl join "+words[len(words)-1]+" --config Nodefile.new --state "+filepath.Join(s.Dir(), "new")), `rotated away`)
}

// TestSecretRotateKilled: daemons are killed while the secret changes. The
// rotation goes on from any node.
func TestSecretRotateKilled(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3})
	old := secretOf(t, s, 1)
	kill(t, s, "node3", unix.SIGKILL)
	p := s.Background("node1", "nodectl secret rotate")
	says(s, p, "waiting: node3 does not answer")
	says(s, p, "node2 holds ")
	// All that have heard of it die, the one that drives it too.
	kill(t, s, "node1", unix.SIGKILL)
	kill(t, s, "node2", unix.SIGKILL)
	<-p.Done()
	s.Want(p.Output(), `run it again|goes on`)
	start(t, s, "node1", "node2", "node3")
	s.Want(s.Run("node3", "nodectl secret status"), `a rotation to [0-9a-f]{8} is under way, step add`)
	// It goes on from the node that knows nothing, and another dies in the
	// middle of the switch.
	p = s.Background("node3", "nodectl secret rotate")
	says(s, p, "step 2 of 3")
	kill(t, s, "node2", unix.SIGKILL)
	must(t, s.Lab.Start(t.Context(), "node2"))
	finished(t, s, p, old)
	converged(t, s)

	// Begun and taken back.
	old = secretOf(t, s, 1)
	kill(t, s, "node3", unix.SIGTERM)
	s.Want(s.Fail("node1", "nodectl secret rotate --timeout 4s"), `node3 does not answer.*goes on`)
	s.Want(s.Fail("node2", "nodectl secret rotate --abort"), `node3.*--force`)
	start(t, s, "node3")
	s.Want(s.Run("node2", "nodectl secret rotate --abort"), `no node holds a new secret`)
	for i := 1; i <= 3; i++ {
		if secretOf(t, s, i) != old {
			t.Errorf("node%d has another secret after the abort", i)
		}
	}
	converged(t, s)
}

// TestSecretRetired: a node that was away while the secret was rotated stays
// out, is told why, keeps its data path, and comes back with a token.
func TestSecretRetired(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	c := s.Workload(3, "c", "")
	d := s.Workload(3, "d", "")
	n3 := s.Lab.Node(3)
	kill(t, s, "node3", unix.SIGTERM)
	old := secretOf(t, s, 3)
	out := s.Run("node1", "nodectl secret rotate --force")
	s.Want(out, `node3 was not reached`)
	if secretOf(t, s, 3) != old {
		t.Fatal("node3's secret changed while it was down")
	}
	table := kernel(t, s, "node3")
	said := logSize(n3)
	must(t, s.Lab.Start(t.Context(), "node3"))
	s.Eventually("node3's log says why", soon, func() error {
		return contains(daemonLog(n3, said), "was retired while it was away")
	})
	s.Eventually("its status says so", soon, func() error {
		out, err := s.Exec("node3", "nodectl status")
		if out == "" && err != nil {
			return err
		}
		return contains(out, "nodectl join TOKEN")
	})
	s.Eventually("node1 or node2 says so", soon, func() error {
		for _, node := range []string{"node1", "node2"} {
			if out, _ := s.Exec(node, "nodectl status"); strings.Contains(out, "retired") {
				return nil
			}
		}
		return fmt.Errorf("neither does")
	})
	apart(t, s, "node3")
	if got := kernel(t, s, "node3"); got != table {
		t.Errorf("node3's kernel has changed:\n%s\nwas:\n%s", got, table)
	}
	s.Want(c.Run("ping -q -c 1 -W 2 "+d.Addr), "1 received")

	words := strings.Fields(s.Run("node1", "nodectl token"))
	kill(t, s, "node3", unix.SIGTERM)
	s.Run("node3", "nodectl join "+words[len(words)-1]+" --config "+n3.Dir+"/Nodefile --state "+n3.Dir+"/state")
	start(t, s, "node3")
	if secretOf(t, s, 3) != secretOf(t, s, 1) {
		t.Error("node3 has another secret")
	}
	more := s.Workload(1, "more", "")
	s.Want(more.Run("ping -q -c 1 -W 2 "+c.Addr), "1 received")
}
