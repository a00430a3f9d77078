package gossip

import (
	"strings"
	"testing"
	"time"

	"nodenet/state"
)

func TestPeerClock(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var c peerClock
	if _, ok := c.ahead(); ok {
		t.Error("an estimate out of nothing")
	}
	c.sample(time.Millisecond, 0, now) // a peer of an older version
	if _, ok := c.ahead(); ok {
		t.Error("an estimate from no reading")
	}
	at := func(trip, ahead time.Duration) { c.sample(trip, now.Add(-trip/2+ahead).UnixMicro(), now) }
	at(200*time.Millisecond, 40*time.Millisecond) // a bad path: wrong by less than half of it
	at(2*time.Millisecond, 3*time.Millisecond)
	at(100*time.Millisecond, -30*time.Millisecond)
	if d, ok := c.ahead(); !ok || d != 3*time.Millisecond {
		t.Errorf("%s, %v: want that of the shortest trip, 3ms", d, ok)
	}
	at(5*time.Millisecond, 24*time.Hour) // the clock was set
	if d, _ := c.ahead(); d != 24*time.Hour {
		t.Errorf("%s after a jump, want 24h", d)
	}
	for range 20 {
		at(time.Millisecond, -24*time.Hour)
	}
	if d, _ := c.ahead(); d != -24*time.Hour {
		t.Errorf("%s after a jump back, want -24h", d)
	}
}

func TestSkewOf(t *testing.T) {
	h := time.Hour
	for _, tt := range []struct {
		in   []time.Duration
		want time.Duration
	}{
		{nil, 0},
		{[]time.Duration{h}, h},
		{[]time.Duration{0, 24 * h}, 0},
		{[]time.Duration{-24 * h, 1, 2}, 1},
		{[]time.Duration{-24 * h, -24 * h, 2}, -24 * h},
		{[]time.Duration{-h, -2 * h, -3 * h, -4 * h}, -2 * h},
	} {
		if got := skewOf(tt.in); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.in, got, tt.want)
		}
	}
}

// A clock that is a day off, and one that jumps by a day while the cluster
// runs: nobody is lost, tables stay equal, and both sides show the difference. The
// node's own store believes no reading more than MaxSkew ahead.
func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			simulate(t, 50, 4, func(s *sim) {
				off := s.nodes[2]
				epoch := off.store.Epoch()
				off.skew.Store(int64(jump))
				lost := false
				for range 100 {
					time.Sleep(100 * time.Millisecond)
					for _, n := range s.nodes {
						for _, p := range s.nodes {
							l := n.sees(p)
							lost = lost || l.State != state.Alive && l.State != state.Suspect || !l.Serving || l.Flapping
						}
					}
				}
				if lost {
					s.violated("a jump of %s cost a node its liveness", jump)
				}
				s.work(8 * time.Second)
				s.settle()
				if off.store.Epoch() != epoch {
					s.violated("the jump changed the epoch")
				}
				near := func(d, want time.Duration) bool { return (d - want).Abs() < time.Second }
				for _, n := range s.nodes {
					st := n.g.Status()
					if bad := n == off; bad == st.OK || bad && !strings.Contains(st.Error, "clock") {
						s.violated("%s: OK %v, %q", n.name, st.OK, st.Error)
					}
					for _, p := range n.g.Peers() {
						want := time.Duration(0)
						switch {
						case p.ID == off.id.ID:
							want = jump
						case n == off:
							want = -jump
						}
						if p.Connected && (!p.SkewKnown || !near(p.Skew, want)) {
							s.violated("%s sees %s ahead by %s (known: %v), want %s", n.name, p.Name, p.Skew, p.SkewKnown, want)
						}
					}
				}
				// A restart in the wrong clock, then the clock is put right.
				off.kill(true)
				off.start()
				s.settle()
				off.skew.Store(0)
				s.work(8 * time.Second)
				s.settle()
				s.eventually(30*time.Second, "nobody shows a difference any more", func() bool {
					for _, n := range s.nodes {
						if st := n.g.Status(); !st.OK {
							return false
						}
					}
					return true
				})
			})
		})
	}
}
