package names

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

const serverBlock = `
.:53 {
    cluster cluster.local in-addr.arpa {
        pods insecure
    }
    cache
    reload 2s
    # %s
}
`

// TestHandover: dnsperf asks from a workload all the while, a connection by a
// port published on loopback is busy, and the daemon is restarted, gets another
// configuration, and is killed. Who answers are the very same sockets.
func TestHandover(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 1, Nodefile: pinned + fmt.Sprintf(serverBlock, "first")})
	w := s.Workload(1, "w", "")
	s.Run("node1", "nodectl service add web --vip 10.96.1.1 --port 80")
	m := manage(t, s, 1)
	m.waitReady()
	answers := func() error {
		out, err := w.Exec("dig +short +tries=1 +time=1 @10.96.0.10 web.default.svc.cluster.local")
		if err == nil && strings.TrimSpace(out) != "10.96.1.1" {
			err = fmt.Errorf("%s", out)
		}
		return err
	}
	s.Eventually("the name is answered", soon, answers)
	echoes(t, "/run/netns/w", ":7000")
	s.Run("node1", "nodectl publish add 8700 "+w.Addr+":7000")
	node1, err := s.Lab.View("node1")
	must(t, err)
	busy := newTalk(t, s, node1.Netns, "127.0.0.1:8700")
	sockets := m.sockets()
	for _, name := range []string{"dns-udp-10.96.0.10-53-0", "dns-tcp-10.96.0.10-53-0", "dns-udp-10.244.1.1-53-0", "lb-tcp-127.0.0.1-8700"} {
		if sockets[name] == 0 {
			t.Errorf("%s is not stored: %v", name, sockets)
		}
	}

	// One known name, one that there is not, one address.
	load := newPerf(t, s, "ip netns exec w", "10.96.0.10",
		"web.default.svc.cluster.local A", "none.default.svc.cluster.local A", "1.1.96.10.in-addr.arpa PTR")
	under := func(what string, fn func()) (lost int) {
		t.Helper()
		lost = load.under(what, fn)
		if d := cmp.Diff(sockets, m.sockets()); d != "" {
			t.Errorf("%s: stored sockets (-before +after):\n%s", what, d)
		}
		return lost
	}
	if lost := under("no restart", func() {}); lost != 0 {
		t.Fatalf("%d queries were lost without a restart: the machine is too busy to tell", lost)
	}
	if lost := under("restart", func() {
		m.end(unix.SIGTERM)
		m.start()
		m.waitReady()
	}); lost != 0 {
		t.Errorf("restart: %d queries were lost", lost)
	}
	busy.goesOn("restart")
	if lost := under("new configuration", func() {
		file := filepath.Join(s.Lab.Node(1).Dir, "Nodefile")
		before, err := os.ReadFile(file)
		must(t, err)
		after := strings.Replace(string(before), "pods insecure", "pods verified", 1)
		must(t, os.WriteFile(file, []byte(after), 0o644))
		// An address that nobody has is answered before and not after.
		s.Eventually("the new configuration", soon, func() error {
			out, err := w.Exec("dig +tries=1 +time=1 @10.96.0.10 10-244-1-99.default.pod.cluster.local")
			if err == nil && !strings.Contains(out, "NXDOMAIN") {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}); lost != 0 {
		t.Errorf("new configuration: %d queries were lost", lost)
	}
	busy.finish("restart and new configuration")
	// A process that is killed takes along what it had read and not answered:
	// one batch of each socket at most.
	// Its connections end; who connects while there is none waits for the next.
	const inHand = 64
	torn := newTalk(t, s, node1.Netns, "127.0.0.1:8700")
	torn.goesOn("before kill -9")
	var early *talk
	if lost := under("kill -9", func() {
		m.end(unix.SIGKILL)
		early = newTalk(t, s, node1.Netns, "127.0.0.1:8700")
		m.start()
		m.waitReady()
	}); lost > inHand {
		t.Errorf("kill -9: %d queries were lost, want no more than were being answered", lost)
	}
	torn.ends("kill -9")
	early.finish("begun between kill -9 and start")
	s.Eventually("the name is answered", soon, answers)
}
