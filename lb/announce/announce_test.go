package announce

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"nodenet/state"
)

// Three nodes on the LAN. In the order for 192.0.2.200 they are node2, node3,
// node1, see TestOwners.
var (
	clientMAC   = MAC{2, 0, 0, 0, 9, 9}
	strangerMAC = MAC{2, 0, 0, 0, 7, 7}
)

func dead(list []state.NodeView, which ...int) []state.NodeView {
	return with(list, state.Dead, which...)
}

func with(list []state.NodeView, s state.Liveness, which ...int) []state.NodeView {
	list = slices.Clone(list)
	for _, i := range which {
		list[i-1].State = s
	}
	return list
}

// cluster runs nodes 1 to n, all well and of one mind, for a minute.
func cluster(l *lan, n int, s *state.ServiceView) []*lanHost {
	var out []*lanHost
	for i := 1; i <= n; i++ {
		h := l.host(i)
		h.run(viewOf(i, nodes(n), s))
		out = append(out, h)
	}
	time.Sleep(time.Minute)
	return out
}

func stop(hosts []*lanHost) {
	for _, h := range hosts {
		h.stop()
	}
}

func wantWho(t *testing.T, l *lan, a netip.Addr, want ...int) {
	t.Helper()
	var macs []MAC
	for _, i := range want {
		macs = append(macs, macN(i))
	}
	got := l.who(a, clientMAC)
	slices.SortFunc(got, func(a, b MAC) int { return int(a[5]) - int(b[5]) })
	if diff := cmp.Diff(macs, got); diff != "" {
		t.Errorf("who answers for %s (-want +got):\n%s", a, diff)
	}
}

func TestOneAnswers(t *testing.T) {
	for _, a := range []netip.Addr{addrN(200), netip.MustParseAddr("2001:db8::200")} {
		t.Run(a.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t)
				hosts := cluster(l, 3, svc("web", a))
				defer stop(hosts)
				p := Elect(viewOf(1, nodes(3), svc("web", a)))
				own := slices.IndexFunc(nodes(3), func(n state.NodeView) bool { return n.ID == p.Addrs[0].Owner }) + 1
				wantWho(t, l, a, own)
				for i, h := range hosts {
					st := h.state(a)
					if st.Mine != (i+1 == own) || st.Name != nodeN(own).Name || st.Trouble() != "" {
						t.Errorf("node%d says %+v", i+1, st)
					}
				}
			})
		})
	}
}

// TestSchedule is everything that is said on the LAN about an address: three
// probes, then announcements that get rarer.
func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		h := l.host(1)
		h.run(viewOf(1, nodes(1), svc("web", addrN(200))))
		defer func() { h.stop() }()
		time.Sleep(2 * time.Minute)
		want := []string{
			"+0.0s 02:00:00:00:00:01 probes 192.0.2.200",
			"+0.1s 02:00:00:00:00:01 probes 192.0.2.200",
			"+0.2s 02:00:00:00:00:01 probes 192.0.2.200",
			"+0.3s 02:00:00:00:00:01 announces 192.0.2.200",
			"+0.4s 02:00:00:00:00:01 announces 192.0.2.200",
			"+0.8s 02:00:00:00:00:01 announces 192.0.2.200",
			"+1.3s 02:00:00:00:00:01 announces 192.0.2.200",
			"+2.3s 02:00:00:00:00:01 announces 192.0.2.200",
			"+5.3s 02:00:00:00:00:01 announces 192.0.2.200",
			"+65.3s 02:00:00:00:00:01 announces 192.0.2.200",
		}
		if diff := cmp.Diff(want, l.said()); diff != "" {
			t.Errorf("said on the LAN (-want +got):\n%s", diff)
		}
		// The carrier is lost and comes back: it is announced again.
		h.set(func() { h.up = false })
		time.Sleep(time.Second)
		if st := h.state(addrN(200)); st.Trouble() != "eth0 is down or has no carrier" {
			t.Errorf("without carrier: %q", st.Trouble())
		}
		if got := l.said(); len(got) > 0 {
			t.Errorf("said without carrier: %q", got)
		}
		h.set(func() { h.up = true })
		time.Sleep(4 * time.Second)
		if got := l.said(); len(got) < 6 || !strings.Contains(got[3], "announces") {
			t.Errorf("said after the carrier came back: %q", got)
		}
	})
}

// TestFailover: a dead node's address is answered for, and its clients are
// told, a third of a second after the others know.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		s := svc("web", addrN(200))
		hosts := cluster(l, 3, s)
		defer stop(hosts)
		wantWho(t, l, addrN(200), 2)
		hosts[1].stop()
		l.said()
		for _, i := range []int{1, 3} {
			hosts[i-1].sees(viewOf(i, dead(nodes(3), 2), s))
		}
		died := time.Now()
		for len(l.who(addrN(200), clientMAC)) == 0 {
			if time.Since(died) > 2*time.Second {
				t.Fatal("nobody answers two seconds after the death")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(died); d > 400*time.Millisecond {
			t.Errorf("fail-over took %s", d)
		}
		wantWho(t, l, addrN(200), 3)
		if !slices.ContainsFunc(l.said(), func(line string) bool { return strings.Contains(line, "00:03 announces") }) {
			t.Error("node3 has not announced")
		}
		// It comes back, and gets its address back: node3 falls silent at once.
		hosts[1].run(viewOf(2, nodes(3), s))
		for _, i := range []int{1, 3} {
			hosts[i-1].sees(viewOf(i, nodes(3), s))
		}
		time.Sleep(time.Second)
		wantWho(t, l, addrN(200), 2)
	})
}

// TestRestart: while the owner's daemon is away its kernel answers; nothing
// moves, and nothing is probed afterwards.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		s := svc("web", addrN(200))
		hosts := cluster(l, 3, s)
		defer stop(hosts)
		hosts[1].stop()
		stopKernel := hosts[1].kept.alone()
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			wantWho(t, l, addrN(200), 2)
		}
		// It is back, has heard nobody yet, and is not ready at once.
		l.said()
		hosts[1].ready = false
		hosts[1].run(viewOf(2, with(nodes(3), state.Unknown, 1, 3), s))
		time.Sleep(time.Second)
		wantWho(t, l, addrN(200), 2)
		stopKernel()
		hosts[1].set(func() { hosts[1].ready = true })
		time.Sleep(100 * time.Millisecond)
		wantWho(t, l, addrN(200), 2)
		for _, line := range l.said() {
			if strings.Contains(line, "probes") || strings.Contains(line, "00:01") || strings.Contains(line, "00:03") {
				t.Errorf("a restart is no reason for: %s", line)
			}
		}
	})
}

// TestDaemonGone: the daemon does not come back. Others take over only once
// the kernel has stopped answering, so that at no time two do.
func TestDaemonGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		s := svc("web", addrN(200))
		hosts := cluster(l, 3, s)
		defer stop(hosts)
		hosts[1].stop()
		defer hosts[1].kept.alone()()
		gone := time.Now()
		time.Sleep(3 * time.Second)
		for _, i := range []int{1, 3} {
			hosts[i-1].sees(viewOf(i, dead(nodes(3), 2), s))
		}
		silent := time.Duration(0)
		for time.Since(gone) < 20*time.Second {
			time.Sleep(90 * time.Millisecond)
			switch got := l.who(addrN(200), clientMAC); len(got) {
			case 0:
				silent += 100 * time.Millisecond
			case 1:
			default:
				t.Fatalf("%s after the daemon died, %v answer", time.Since(gone), got)
			}
		}
		wantWho(t, l, addrN(200), 3)
		if silent > watchTime {
			t.Errorf("nobody answered for %s", silent)
		}
	})
}

// TestPartition: each side has its own, and the better one keeps the address.
func TestPartition(t *testing.T) {
	for _, tt := range []struct {
		name string
		lan  bool // heals before gossip does
	}{{"gossip heals first", false}, {"the LAN heals first", true}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLAN(t)
				s := svc("web", addrN(200))
				hosts := cluster(l, 3, s)
				defer stop(hosts)
				l.cut(macN(1), macN(3)) // the client is with node2
				hosts[0].sees(viewOf(1, dead(nodes(3), 2), s))
				hosts[2].sees(viewOf(3, dead(nodes(3), 2), s))
				hosts[1].sees(viewOf(2, dead(nodes(3), 1, 3), s))
				time.Sleep(time.Minute)
				wantWho(t, l, addrN(200), 2)
				l.cut(macN(2))
				wantWho(t, l, addrN(200), 3)
				l.said()
				heal := func() {
					for i, h := range hosts {
						h.sees(viewOf(i+1, nodes(3), s))
					}
				}
				if tt.lan {
					l.cut()
					time.Sleep(checkEvery + time.Second)
					if st := hosts[2].state(addrN(200)); st.State != "yielded" || st.To != idN(2) {
						t.Errorf("node3 hears node2 and says %+v", st)
					}
					wantWho(t, l, addrN(200), 2)
					heal()
				} else {
					heal()
					l.cut()
				}
				time.Sleep(time.Second)
				wantWho(t, l, addrN(200), 2)
				if said := l.said(); !slices.ContainsFunc(said, func(line string) bool { return strings.Contains(line, "00:02 announces") }) {
					t.Errorf("node2 has not announced again: %q", said)
				}
			})
		})
	}
}

// TestInsists: node3 sees node2 flap, which node2 cannot know. After three
// announcements against each other, node2 leaves the address to node3, and
// takes it back when node3 lets go.
func TestInsists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		s := svc("web", addrN(200))
		hosts := cluster(l, 3, s)
		defer stop(hosts)
		flaps := nodes(3)
		flaps[1].Flapping = true
		hosts[0].sees(viewOf(1, flaps, s))
		hosts[2].sees(viewOf(3, flaps, s))
		time.Sleep(10 * time.Second)
		wantWho(t, l, addrN(200), 3)
		l.said()
		time.Sleep(time.Minute)
		for _, line := range l.said() {
			if strings.Contains(line, "00:02 announces") {
				t.Errorf("node2 has given in, and yet: %s", line)
			}
		}
		hosts[0].sees(viewOf(1, nodes(3), s))
		hosts[2].sees(viewOf(3, nodes(3), s))
		time.Sleep(watchTime + time.Second)
		wantWho(t, l, addrN(200), 2)
	})
}

// TestStranger: a host that is no node has the address before us, or takes it
// later.
func TestStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		w := l.plug(strangerMAC)
		var there atomic.Bool
		there.Store(true)
		go func() {
			for {
				f, err := w.Receive()
				if err != nil {
					return
				}
				if m, err := parse(&f); err == nil && !m.tell && m.addr == addrN(200) && m.from != m.addr && there.Load() {
					_ = w.Send(answer(&m, strangerMAC, own6))
				}
			}
		}()
		defer w.Close()
		hosts := cluster(l, 3, svc("web", addrN(200)))
		defer stop(hosts)
		if diff := cmp.Diff([]MAC{strangerMAC}, l.who(addrN(200), clientMAC)); diff != "" {
			t.Errorf("who answers (-want +got):\n%s", diff)
		}
		st := hosts[1].speaker.Status()
		if st.OK || !strings.Contains(st.Error, "192.0.2.200: in use by 02:00:00:00:07:07, which is no node") {
			t.Errorf("status %+v", st)
		}
		// It goes away: the address is free.
		there.Store(false)
		time.Sleep(strangeTime + strangeEvery)
		wantWho(t, l, addrN(200), 2)
		if st := hosts[1].speaker.Status(); !st.OK {
			t.Errorf("status %+v", st)
		}
		// It comes back and claims it: we defend what we have, not too often.
		time.Sleep(time.Minute)
		l.said()
		for range 600 {
			for _, f := range announcement(addrN(200), strangerMAC, own6) {
				_ = w.Send(f)
			}
			time.Sleep(100 * time.Millisecond)
		}
		wantWho(t, l, addrN(200), 2)
		defended := 0
		for _, line := range l.said() {
			if strings.Contains(line, "00:02 announces") {
				defended++
			}
		}
		if defended < 5 || defended > 12 {
			t.Errorf("defended %d times within a minute", defended)
		}
		if st := hosts[1].speaker.Status(); st.OK || !strings.Contains(st.Error, "also claimed by 02:00:00:00:07:07") {
			t.Errorf("status %+v", st)
		}
		time.Sleep(conflictShow + time.Minute)
		if st := hosts[1].speaker.Status(); !st.OK {
			t.Errorf("long after, status %+v", st)
		}
	})
}

// TestReady: a node that does not serve yet claims nothing.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		h := l.host(1)
		h.ready = false
		h.run(viewOf(1, nodes(1), svc("web", addrN(200))))
		defer func() { h.stop() }()
		time.Sleep(10 * time.Second)
		wantWho(t, l, addrN(200))
		if st := h.state(addrN(200)); st.Trouble() != "this node does not serve yet" {
			t.Errorf("status %+v", st)
		}
		h.set(func() { h.ready = true })
		time.Sleep(time.Second)
		wantWho(t, l, addrN(200), 1)
	})
}

// TestIdleCostsNothing: the same plan again makes no frame, and the kernel is
// told what it has to be told and no more.
func TestIdleCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLAN(t)
		s := svc("web", addrN(200))
		hosts := cluster(l, 3, s)
		defer stop(hosts)
		time.Sleep(10 * time.Second)
		l.said()
		calls := hosts[1].kept.calls()
		for i, h := range hosts {
			h.sees(viewOf(i+1, nodes(3), s))
		}
		time.Sleep(time.Second)
		if got := l.said(); len(got) > 0 {
			t.Errorf("said without a reason: %q", got)
		}
		if n := hosts[1].kept.calls() - calls; n > 1 {
			t.Errorf("the kernel was told %d times within a second", n)
		}
		if n := hosts[0].kept.calls(); n != 0 {
			t.Errorf("the kernel of a node without addresses was told %d times", n)
		}
	})
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := New(Options{Registry: reg}); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	want := []string{
		"nodenet_announce_addresses", "nodenet_announce_announcements_total", "nodenet_announce_conflicts_total",
		"nodenet_announce_replies_total", "nodenet_announce_takeovers_total",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
