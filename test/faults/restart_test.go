package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestRestartLosesNothing: a daemon that dies, comes back, and is restarted
// in order, under a TCP stream and a ping flood between workloads on two
// nodes. The data path is the kernel's, and a new daemon finds it as it wants.
func TestRestartLosesNothing(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	a, b := s.Workload(1, "a", ""), s.Workload(2, "b", "--label app=b --port http=80")
	b.Serve(80)
	s.Run("node1", "nodectl service add b --port 80 --select app=b --node-port 30080")
	s.Run("node1", "nodectl publish add 8080 "+a.Addr+":80")
	for i := 1; i <= 2; i++ {
		s.Eventually("the service is there", soon, func() error { return backends(t, s, i, "b", 1) })
	}
	settled(s, "node1")
	settled(s, "node2")
	s.Run("node1", "nodectl service add stream --vip 10.96.1.2 --port 7001 --select app=b")
	s.Eventually("the stream's service is there", soon, func() error { return backends(t, s, 1, "stream", 1) })
	streams := map[string]*stream{
		"by address": startStream(t, "/run/netns/a", "/run/netns/b", b.Addr, 7000),
		"by service": startStream(t, "/run/netns/a", "/run/netns/b", "10.96.1.2", 7001),
	}

	// flood counts what comes back of 150 packets while fn runs.
	flood := func(what string, fn func()) {
		t.Helper()
		ping := s.Background(scenario.Machine, "ip netns exec a ping -i 0.01 -c 150 -W 2 "+b.Addr)
		s.Eventually("the flood runs", soon, func() error {
			if strings.Count(ping.Output(), "bytes from") < 20 {
				return fmt.Errorf("%s", ping.Output())
			}
			return nil
		})
		fn()
		<-ping.Done()
		if out := ping.Output(); !strings.Contains(out, "150 packets transmitted, 150 received, 0% packet loss") {
			t.Errorf("%s: %s", what, out[max(0, len(out)-300):])
		}
	}
	for i, node := range []string{"node1", "node2"} {
		for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
			before := kernel(t, s, node)
			rules := s.Background(node, "nft monitor")
			// Not links: the kernel reports each timer of a bridge's port that runs out.
			links := s.Background(node, "ip monitor address route rule")
			flood(fmt.Sprintf("%s: %s", node, unix.SignalName(sig)), func() { kill(t, s, node, sig) })
			if d := cmp.Diff(before, kernel(t, s, node)); d != "" {
				t.Errorf("%s changed the kernel of %s (-before +after):\n%s", unix.SignalName(sig), node, d)
			}
			flood(fmt.Sprintf("%s: start after %s", node, unix.SignalName(sig)), func() {
				start(t, s, node)
				s.Eventually("the backend is in use", soon, func() error { return backends(t, s, i+1, "b", 1) })
			})
			if d := cmp.Diff(before, kernel(t, s, node)); d != "" {
				t.Errorf("the start after %s changed the kernel of %s (-before +after):\n%s", unix.SignalName(sig), node, d)
			}
			if out := withoutHold(rules.Interrupt()); strings.Contains(out, "add") || strings.Contains(out, "delete") {
				t.Errorf("%s: nft monitor saw during %s and start:\n%s", node, unix.SignalName(sig), out)
			}
			if out := strings.TrimSpace(links.Interrupt()); out != "" {
				t.Errorf("%s: ip monitor saw during %s and start:\n%s", node, unix.SignalName(sig), out)
			}
		}
	}
	for how, stream := range streams {
		r := stream.finish(t)
		t.Logf("%s: %d numbers to and fro, longest pause %s, %d segments sent again", how, r.numbers, r.longest, r.retransmits)
		if r.retransmits != 0 {
			t.Errorf("%s: %d segments were sent again", how, r.retransmits)
		}
		// How long the stream stood still is shown, not judged: without a
		// segment sent again it is the machine's other work.
	}
}

// withoutHold leaves out of what `nft monitor` says the tables that live and
// die with the daemon.
func withoutHold(said string) string {
	var b strings.Builder
	for l := range strings.Lines(said) {
		if !strings.Contains(l, " nodenet-hold") {
			b.WriteString(l)
		}
	}
	return b.String()
}

// settled waits until no address of a node is tentative any more: the kernel
// reports the end of that by itself.
func settled(s *scenario.Scenario, node string) {
	s.T().Helper()
	s.Eventually("addresses are settled", soon, func() error {
		out, err := s.Exec(node, "ip -o address show tentative")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}

// TestAllKilled: every daemon dies at once, as in a power cut, and all come
// back to the same state and the same addresses.
func TestAllKilled(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	var first *scenario.Workload
	for i := 1; i <= 3; i++ {
		w := s.Workload(i, fmt.Sprintf("w%d", i), "--label app=w --port http=80")
		w.Serve(80)
		if first == nil {
			first = w
		}
	}
	s.Run("node2", "nodectl service add w --port 80 --select app=w --node-port auto")
	s.Run("node3", "nodectl publish add 8080 10.244.3.2:80")
	for i := 1; i <= 3; i++ {
		s.Eventually("the service is there", soon, func() error { return backends(t, s, i, "w", 3) })
	}
	before := agree(t, s, 3, soon)
	var tables [3]string
	for i := range tables {
		settled(s, nodeName(i+1))
		tables[i] = kernel(t, s, nodeName(i+1))
	}
	for i := 1; i <= 3; i++ {
		kill(t, s, nodeName(i), unix.SIGKILL)
	}
	s.Want(first.Run("nodectl lab get -n 30 http://10.244.2.2/"), `30 w2`)
	start(t, s, "node1", "node2", "node3")
	for i := 1; i <= 3; i++ {
		s.Eventually("the service is there", soon, func() error { return backends(t, s, i, "w", 3) })
	}
	if d := cmp.Diff(before, agree(t, s, 3, soon)); d != "" {
		t.Errorf("state (-before +after):\n%s", d)
	}
	for i := range tables {
		if d := cmp.Diff(tables[i], kernel(t, s, nodeName(i+1))); d != "" {
			t.Errorf("kernel of node%d (-before +after):\n%s", i+1, d)
		}
	}
	s.Want(s.Run("node3", "nodectl publish ls"), `8080.*10\.244\.3\.2:80`)
	more := s.Workload(1, "more", "")
	noDuplicates(t, s, 2)
	s.Want(more.Run("ping -q -c 1 -W 2 10.244.3.2"), "1 received")
}

// TestRepair: somebody flushes the firewall and deletes the tunnel.
func TestRepair(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	a, b := s.Workload(1, "a", ""), s.Workload(2, "b", "--label app=b --port http=80")
	b.Serve(80)
	s.Run("node1", "nodectl service add b --vip 10.96.1.1 --port 80 --select app=b --node-port 30080")
	s.Eventually("the service is there", soon, func() error { return backends(t, s, 1, "b", 1) })
	works := func() error {
		for _, url := range []string{"http://" + b.Addr + "/", "http://10.96.1.1/"} {
			if out, err := a.Exec("curl -sS -m 1 " + url); err != nil {
				return fmt.Errorf("%s: %w: %s", url, err, out)
			}
		}
		if out, err := s.Exec("outside", "curl -sS -m 1 http://192.168.1.11:30080/"); err != nil {
			return fmt.Errorf("node port: %w: %s", err, out)
		}
		return nil
	}
	s.Eventually("all works", soon, works)
	whole := tables(t, s, "node1")
	for _, damage := range []string{
		"nft flush ruleset",
		"nft delete table inet nodenet",
		"ip link del nv-pods",
		"ip link set nv-pods down",
		"ip route del 10.244.2.0/24",
		"ip address del 10.96.0.10/32 dev lo",
		"ip neigh flush dev nv-pods nud permanent",
		"bridge fdb flush dev nv-pods",
	} {
		t.Run(damage, func(t *testing.T) {
			if out, err := s.Exec("node1", damage); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			begin := time.Now()
			deadline := begin.Add(10 * time.Second)
			for {
				err := works()
				if err == nil && lookup(s, "node1", "b.default.svc.cluster.local") != "10.96.1.1" {
					err = fmt.Errorf("the resolver does not answer")
				}
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("not repaired within 10 s: %v", err)
				}
			}
			t.Logf("works again after %s", time.Since(begin).Round(time.Millisecond))
		})
	}
	converged(t, s)
	s.Eventually("tables and routes are what they were", soon, func() error {
		now := tables(t, s, "node1")
		if d := cmp.Diff(whole, now); d != "" {
			return fmt.Errorf("(-before +after):\n%s", d)
		}
		return nil
	})
}

// tables are a node's rules and routes, without what numbers them.
func tables(t *testing.T, s *scenario.Scenario, node string) string {
	t.Helper()
	var parts []string
	for _, table := range []string{"inet nodenet", "bridge nodenet"} {
		out, err := s.Exec(node, "nft -s list table "+table)
		must(t, err)
		// Chains and maps stand in the order in which they were made.
		parts = append(parts, strings.Split(strings.TrimSuffix(out, "}\n"), "\n\n")...)
	}
	for i, p := range parts {
		_, p, _ = strings.Cut("\n"+p, "\n\t")
		parts[i] = strings.TrimSpace(p) + "\n"
	}
	for _, cmdline := range []string{"ip route show table all proto 78", "bridge fdb show dev nv-pods"} {
		out, err := s.Exec(node, cmdline)
		must(t, err)
		parts = append(parts, slices.Collect(strings.Lines(out))...)
	}
	slices.Sort(parts)
	return strings.Join(parts, "")
}
