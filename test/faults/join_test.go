package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestToken: a node comes into the cluster with a token, and the token is
// good for one.
func TestToken(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Join: lab.JoinToken})
	for i := 1; i <= 3; i++ {
		st, err := client(t, s, i).Status(t.Context())
		must(t, err)
		if len(st.Peers) != 2 || !st.Synced {
			t.Errorf("node%d: %d peers, synced %t", i, len(st.Peers), st.Synced)
		}
	}
	// On standard output alone: the rest is for people.
	tok, err := s.Lab.Exec(t.Context(), "node1", "nodectl", "token")
	must(t, err)
	token := strings.TrimSpace(tok)
	dirs := []string{filepath.Join(s.Dir(), "first"), filepath.Join(s.Dir(), "second")}
	s.File("Nodefile.new", "node {\n    name newcomer\n    advertise 192.168.1.13\n}\n")
	s.Run("node3", "nodectl join "+token+" --config Nodefile.new --state "+dirs[0])
	secret, err := os.ReadFile(filepath.Join(dirs[0], "cluster.secret"))
	must(t, err)
	want, err := os.ReadFile(filepath.Join(s.Lab.Node(1).Dir, "state", "cluster.secret"))
	must(t, err)
	if string(secret) != string(want) {
		t.Error("the token brought another secret than the cluster's")
	}
	if st, err := os.Stat(filepath.Join(dirs[0], "cluster.secret")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the secret: %v %v", st.Mode(), err)
	}
	out := s.Fail("node3", "nodectl join "+token+" --config Nodefile.new --state "+dirs[1])
	s.Want(out, `(?i)used|once|redeemed|unknown`)
	t.Logf("second use: %s", strings.TrimSpace(out))
	if _, err := os.Stat(filepath.Join(dirs[1], "cluster.secret")); err == nil {
		t.Error("a refused join has left a secret")
	}
	s.Want(s.Fail("node3", "nodectl join nonsense --config Nodefile.new --state "+dirs[1]), `(?i)token`)
	tok, err = s.Lab.Exec(t.Context(), "node2", "nodectl", "token", "--ttl", "1s")
	must(t, err)
	short := strings.TrimSpace(tok)
	<-time.After(1100 * time.Millisecond) // its life, which nothing but the clock ends
	s.Want(s.Fail("node3", "nodectl join "+short+" --config Nodefile.new --state "+dirs[1]), `expired`)
}

// TestWrongSecret: a node with another secret stays out, and both sides say why.
func TestWrongSecret(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2})
	n1, n2 := s.Lab.Node(1), s.Lab.Node(2)
	kill(t, s, "node2", unix.SIGTERM)
	path := filepath.Join(n2.Dir, "state", "cluster.secret")
	right, err := os.ReadFile(path)
	must(t, err)
	// Another cluster's secret: what `nodectl init` makes.
	other := filepath.Join(s.Dir(), "other")
	s.Run("node2", "nodectl init --config "+n2.Dir+"/Nodefile --state "+other)
	wrong, err := os.ReadFile(filepath.Join(other, "cluster.secret"))
	must(t, err)
	must(t, os.WriteFile(path, wrong, 0o600))
	// What the node remembers: with it, another file is a secret to rotate to.
	ring := filepath.Join(n2.Dir, "state", "keyring.json")
	must(t, os.Remove(ring))
	said1, said2 := logSize(n1), logSize(n2)
	must(t, s.Lab.Start(t.Context(), "node2"))
	const message = "do not hold the same cluster secret"
	s.Eventually("both logs say so", soon, func() error {
		if err := contains(daemonLog(n1, said1), message); err != nil {
			return err
		}
		return contains(daemonLog(n2, said2), message)
	})
	for _, node := range []string{"node1", "node2"} {
		s.Eventually("the status says so", soon, func() error {
			out, err := s.Exec(node, "nodectl status")
			if err != nil {
				return err
			}
			return contains(out, "secret")
		})
	}
	apart(t, s, "node2")

	kill(t, s, "node2", unix.SIGTERM)
	must(t, os.WriteFile(path, right, 0o600))
	must(t, os.Remove(ring))
	start(t, s, "node2")
}

// apart waits until node1 does not count the other node among the living.
func apart(t *testing.T, s *scenario.Scenario, node string) {
	t.Helper()
	s.Eventually("node1 does not see it", soon, func() error {
		st, err := client(t, s, 1).Status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range st.Peers {
			if p.Name == node && p.State == "alive" {
				return fmt.Errorf("node1 sees %s as alive", node)
			}
		}
		return nil
	})
}

// TestOtherCluster: a node of another cluster stays out even with the same
// secret, and both sides say why.
func TestOtherCluster(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2})
	n1, n2 := s.Lab.Node(1), s.Lab.Node(2)
	kill(t, s, "node2", unix.SIGTERM)
	state := filepath.Join(n2.Dir, "state")
	secret, err := os.ReadFile(filepath.Join(state, "cluster.secret"))
	must(t, err)
	must(t, os.RemoveAll(state))
	must(t, os.MkdirAll(state, 0o700))
	must(t, os.WriteFile(filepath.Join(state, "cluster.secret"), secret, 0o600))
	s.Run("node2", "nodectl init --cluster other --config "+n2.Dir+"/Nodefile --state "+state)
	said1, said2 := logSize(n1), logSize(n2)
	must(t, s.Lab.Start(t.Context(), "node2"))
	for _, side := range []struct {
		n    *lab.Node
		from int
	}{{n1, said1}, {n2, said2}} {
		s.Eventually(side.n.Name+" names both clusters", soon, func() error {
			log := daemonLog(side.n, side.from)
			for l := range strings.Lines(log) {
				if strings.Contains(l, "refused") && strings.Contains(l, "other") && strings.Contains(l, s.Lab.Name()) {
					t.Logf("%s: %s", side.n.Name, strings.TrimSpace(l))
					return nil
				}
			}
			return fmt.Errorf("no such line in:\n%s", log)
		})
		s.Eventually(side.n.Name+"'s status says so", soon, func() error {
			out, err := s.Exec(side.n.Name, "nodectl status")
			if err != nil {
				return err
			}
			return contains(out, "cluster")
		})
	}
	apart(t, s, "node2")
	st, err := client(t, s, 2).Status(t.Context())
	must(t, err)
	if st.Cluster != "other" || len(st.Peers) != 0 {
		t.Errorf("node2: cluster %s, peers %+v", st.Cluster, st.Peers)
	}
}

// TestLeave: a node that leaves hands its space over, and is forgotten.
func TestLeave(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3})
	// Each has opened a block.
	for i := 1; i <= 3; i++ {
		s.Workload(i, fmt.Sprintf("w%d", i), "--label app=w --port http=80")
	}
	s.Run("node1", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w")
	s.Eventually("the service is there", soon, func() error { return backends(t, s, 1, "w", 3) })
	owned := func(nodes ...int) (sum uint64) {
		for _, i := range nodes {
			st, err := client(t, s, i).Status(t.Context())
			must(t, err)
			sum += st.Networks[0].Owned
		}
		return sum
	}
	total := owned(1, 2, 3)
	if owned(3) == 0 {
		t.Fatal("node3 owns nothing, so it has nothing to hand over")
	}
	s.Fail("node3", "nodectl leave") // not without --yes
	s.Want(s.Fail("node3", "nodectl leave --yes"), `w3`)
	s.Run("node3", "nodectl detach w3")
	s.Run("node3", "nodectl leave --yes")
	s.Eventually("node3 is forgotten", soon, func() error {
		for i := 1; i <= 2; i++ {
			st, err := client(t, s, i).Status(t.Context())
			if err != nil {
				return err
			}
			if len(st.Peers) != 1 {
				return fmt.Errorf("node%d has %d peers", i, len(st.Peers))
			}
		}
		if got := owned(1, 2); got != total {
			return fmt.Errorf("nodes 1 and 2 own %d of %d", got, total)
		}
		out, err := s.Exec("node1", "ip route")
		if err == nil && strings.Contains(out, "192.168.1.13") {
			err = fmt.Errorf("node1 still has a route to node3:\n%s", out)
		}
		return err
	})
	if got := lookup(s, "node1", "node3.node.cluster.local"); got != "" {
		t.Errorf("node3's name is still answered: %s", got)
	}
	s.Eventually("the daemon has ended", soon, func() error {
		if s.Lab.Node(3).Proc.Alive() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	// The space is used: an address of node3's old block can be had elsewhere
	// once the block is opened; here it is enough that the cluster goes on.
	more := s.Workload(2, "more", "")
	s.Want(more.Run("ping -q -c 1 -W 2 192.168.1.11"), "1 received")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	states, err := s.Lab.States(ctx)
	must(t, err)
	for _, st := range states[:2] {
		if st.Err != nil {
			t.Error(st.Err)
		}
	}
}
