package gossip

import (
	"testing"
	"time"

	"nodenet/state"
)

// Penalties as in RFC 2439 section 4.8: cut-off, decay, reuse, ceiling.
func TestFlapPenalty(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	f := &flap{}
	for i, want := range []bool{false, false, true} {
		f.add(flapDeath, at)
		if got := f.hold(at) > 0; got != want {
			t.Errorf("after death %d: held %v, want %v", i+1, got, want)
		}
	}
	// 3000 decays to 750 in exactly two half-lives.
	if d := f.hold(at) - 2*flapHalfLife; d < 0 || d > 10*time.Millisecond {
		t.Errorf("held for %s, want %s", f.hold(at), 2*flapHalfLife)
	}
	if f.hold(at.Add(2*flapHalfLife-time.Second)) == 0 {
		t.Error("used again too early")
	}
	if f.hold(at.Add(2*flapHalfLife+time.Second)) != 0 {
		t.Error("held beyond its time")
	}
	// Two deaths far apart are no flapping.
	f = &flap{}
	for range 20 {
		f.add(flapDeath, at)
		if at = at.Add(3 * time.Minute); f.hold(at) != 0 {
			t.Fatal("a death each three minutes holds a node")
		}
	}
	// However often it dies, it is back within four half-lives.
	for range 1000 {
		f.add(flapDeath, at)
	}
	if d := f.hold(at); d < 4*flapHalfLife-time.Second || d > 4*flapHalfLife+time.Second {
		t.Errorf("held for %s at most, want %s", d, 4*flapHalfLife)
	}
}

// The table of what each event does to a node's state and use. Routes are not
// in it: they follow from records alone, and stay in all rows but the last.
func TestLivenessTable(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	const day = 24 * 60 * 60
	type row struct {
		at       float64 // seconds since start
		what     string
		do       func(k *tracker, peer state.NodeID, now time.Time)
		left     bool
		gone     bool // its record is gone too: forgotten
		state    state.Liveness
		serving  bool
		flapping bool
	}
	up := func(k *tracker, peer state.NodeID, now time.Time) { k.join(peer, member{epoch: 1, acked: now}) }
	down := func(k *tracker, peer state.NodeID, now time.Time) { k.leave(peer, 1) }
	ack := func(k *tracker, peer state.NodeID, now time.Time) { k.ack(peer, 1, now) }
	tests := map[string][]row{
		"suspect: kept": {
			{at: 0, what: "joins", do: up, state: state.Alive, serving: true},
			{at: 20, what: "silent", state: state.Suspect, serving: true},
			{at: 21, what: "answers", do: ack, state: state.Alive, serving: true},
		},
		"dead: out after the hold, back at once": {
			{at: 0, what: "joins", do: up, state: state.Alive, serving: true},
			{at: 10, what: "dies", do: down, state: state.Dead, serving: true},
			{at: 12.9, what: "within the hold", state: state.Dead, serving: true},
			{at: 13.1, what: "after the hold", state: state.Dead},
			{at: 20, what: "returns", do: up, state: state.Alive, serving: true},
		},
		"dead for longer than a day: still there": {
			{at: 0, what: "joins", do: up, state: state.Alive, serving: true},
			{at: 10, what: "dies", do: down, state: state.Dead, serving: true},
			{at: 2 * day, what: "two days later", state: state.Dead},
			{at: 2*day + 1, what: "returns", do: up, state: state.Alive, serving: true},
		},
		"leave: removed at once": {
			{at: 0, what: "joins", do: up, state: state.Alive, serving: true},
			{at: 10, what: "leaves", left: true, state: state.Left},
			{at: 10.1, what: "and is seen to go", do: down, left: true, state: state.Left},
		},
		"forgotten while dead: nothing is used": {
			{at: 0, what: "joins", do: up, state: state.Alive, serving: true},
			{at: 10, what: "dies", do: down, state: state.Dead, serving: true},
			{at: 14, what: "is forgotten", gone: true, state: state.Dead},
		},
		"flapping: held after the third death, longer after the fourth": {
			{at: 0, what: "joins", do: up, state: state.Alive, serving: true},
			{at: 10, what: "dies", do: down, state: state.Dead, serving: true},
			{at: 14, what: "returns", do: up, state: state.Alive, serving: true},
			{at: 20, what: "dies again", do: down, state: state.Dead, serving: true},
			{at: 24, what: "returns", do: up, state: state.Alive, serving: true},
			{at: 26, what: "dies a third time", do: down, state: state.Dead, serving: true},
			{at: 29, what: "returns", do: up, state: state.Alive, serving: true, flapping: true},
			{at: 40, what: "is held", do: ack, state: state.Alive, serving: true, flapping: true},
			{at: 60, what: "dies a fourth time", do: down, state: state.Dead, serving: true},
			{at: 64, what: "returns", do: up, state: state.Alive, serving: true, flapping: true},
			{at: 100, what: "is held for longer", do: ack, state: state.Alive, serving: true, flapping: true},
			{at: 110, what: "has calmed down", do: ack, state: state.Alive, serving: true},
		},
	}
	for name, rows := range tests {
		t.Run(name, func(t *testing.T) {
			n := ids(t, 3)
			peer := n[1]
			k := newTracker(n[0], testTimings(), start)
			for _, r := range rows {
				now := start.Add(time.Duration(r.at * float64(time.Second)))
				if r.do != nil {
					r.do(k, peer, now)
				}
				known := n
				if r.gone {
					known = []state.NodeID{n[0], n[2]}
				}
				// A third node is there all the time: the network is not ours to doubt.
				live, next := k.compute(now, known, map[state.NodeID]bool{peer: r.left}, map[state.NodeID]time.Time{n[2]: now})
				if l := live[peer]; l.State != r.state || l.Serving != r.serving || l.Flapping != r.flapping {
					t.Errorf("%.1f s, %s: %s, serving %v, flapping %v; want %s, %v, %v", r.at, r.what, l.State, l.Serving, l.Flapping, r.state, r.serving, r.flapping)
				}
				if next <= 0 || next > testTimings().life {
					t.Errorf("%.1f s, %s: looks again after %s", r.at, r.what, next)
				}
			}
		})
	}
}

// What may be the fault of this node's own network counts against nobody.
func TestOwnOutageIsNoFlapping(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for _, size := range []int{2, 3, 5, 9} {
		n := ids(t, size)
		k := newTracker(n[0], testTimings(), start)
		now := start
		for range 6 {
			for _, id := range n[1:] {
				k.join(id, member{epoch: 1, acked: now})
			}
			k.compute(now, n, nil, nil)
			now = now.Add(20 * time.Second)
			// One after another, as detection goes, all within the window.
			for _, id := range n[1:] {
				k.leave(id, 1)
				now = now.Add(10 * time.Millisecond)
				k.compute(now, n, nil, nil)
			}
			now = now.Add(20 * time.Second)
			k.compute(now, n, nil, nil)
		}
		for _, id := range n[1:] {
			k.join(id, member{epoch: 1, acked: now})
		}
		live, _ := k.compute(now, n, nil, nil)
		held := 0
		for _, id := range n[1:] {
			if live[id].Flapping {
				held++
			}
		}
		if held > 0 {
			t.Errorf("%d nodes: %d of the others are held after this one was cut off", size, held)
		}
	}
}
