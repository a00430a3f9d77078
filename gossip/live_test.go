package gossip

import (
	"testing"
	"time"

	"nodenet/state"
)

func testTimings() timings {
	return timings{probe: 500 * time.Millisecond, life: 3 * time.Second, hold: 3 * time.Second, grace: 30 * time.Second,
		window: 15 * time.Second, thaw: 10 * time.Minute}
}

func ids(t *testing.T, n int) []state.NodeID {
	t.Helper()
	var out []state.NodeID
	for range n {
		id, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, id.ID)
	}
	return out
}

type want struct {
	state   state.Liveness
	serving bool
}

func TestUnknownNodeServesUntilOthersWereHeard(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	n := ids(t, 3)
	k := newTracker(n[0], testTimings(), start)
	for _, s := range []struct {
		at    time.Duration
		heard bool // of n[2]
		want  bool // n[1] serves
	}{
		{0, false, true},
		{time.Hour, false, true},
		{time.Hour + time.Second, true, true},
		{time.Hour + 29*time.Second, false, true},
		{time.Hour + 32*time.Second, false, false},
	} {
		now := start.Add(s.at)
		heard := map[state.NodeID]time.Time{}
		if s.heard {
			heard[n[2]] = now
		}
		live, _ := k.compute(now, n, nil, heard)
		if l := live[n[1]]; l.State != state.Unknown || l.Serving != s.want {
			t.Errorf("after %s: %+v, want serving %v", s.at, l, s.want)
		}
	}
}

func TestLiveness(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	n := ids(t, 2)
	self, peer := n[0], n[1]
	var k *tracker
	var heard time.Time
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	up := func(epoch uint64, s float64) func() {
		return func() { k.join(peer, member{epoch: epoch, acked: at(s)}) }
	}
	down := func(epoch uint64) func() { return func() { k.leave(peer, epoch) } }
	type step struct {
		at   float64 // seconds since start
		do   func()
		left bool
		want want
	}
	tests := map[string][]step{
		"known from records only": {
			{at: 0, want: want{state.Unknown, true}},
			{at: 31, want: want{state.Unknown, true}}, // nobody else was heard: we may be the ones cut off
			{at: 1e6, want: want{state.Unknown, true}},
			{at: 1e6 + 1, do: up(1, 1e6+1), want: want{state.Alive, true}},
		},
		"dies and returns": {
			{at: 1, do: up(1, 1), want: want{state.Alive, true}},
			{at: 2, do: down(1), want: want{state.Dead, true}},
			{at: 4, want: want{state.Dead, true}},
			{at: 5.1, want: want{state.Dead, false}},
			{at: 6, do: up(1, 6), want: want{state.Alive, true}},
		},
		"join of the new life before leave of the old": {
			{at: 1, do: up(7, 1), want: want{state.Alive, true}},
			{at: 2, do: up(8, 2), want: want{state.Alive, true}},
			{at: 3, do: down(7), want: want{state.Alive, true}},
			{at: 3.5, do: up(7, 3.5), want: want{state.Alive, true}},
			{at: 4, do: down(8), want: want{state.Dead, true}},
			{at: 5, do: up(7, 5), want: want{state.Dead, true}},
		},
		"a stream is a sign of life": {
			{at: 1, do: up(1, 1), want: want{state.Alive, true}},
			{at: 2, do: func() { heard = at(2); k.leave(peer, 1) }, want: want{state.Alive, true}},
			{at: 4.9, want: want{state.Alive, true}},
			{at: 5.1, want: want{state.Dead, true}},
			{at: 9, want: want{state.Dead, false}},
			{at: 10, do: func() { heard = at(10) }, want: want{state.Alive, true}},
		},
		"silent member is suspect": {
			{at: 1, do: up(1, 1), want: want{state.Alive, true}},
			{at: 5, want: want{state.Suspect, true}},
			{at: 6, do: func() { k.ack(peer, 1, at(6)) }, want: want{state.Alive, true}},
		},
		"leaves by its own record": {
			{at: 1, do: up(1, 1), want: want{state.Alive, true}},
			{at: 2, left: true, want: want{state.Left, false}},
			{at: 3, want: want{state.Alive, true}},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			k, heard = newTracker(self, testTimings(), start), time.Time{}
			for _, s := range steps {
				if s.do != nil {
					s.do()
				}
				hs := map[state.NodeID]time.Time{}
				if !heard.IsZero() {
					hs[peer] = heard
				}
				live, next := k.compute(at(s.at), []state.NodeID{self, peer}, map[state.NodeID]bool{peer: s.left}, hs)
				if got := (want{live[peer].State, live[peer].Serving}); got != s.want {
					t.Errorf("at %.1f s: %v, want %v", s.at, got, s.want)
				}
				if l := live[self]; l.State != state.Alive || !l.Serving {
					t.Errorf("at %.1f s: this node itself is %+v", s.at, l)
				}
				if next <= 0 {
					t.Errorf("at %.1f s: look again in %s", s.at, next)
				}
			}
		})
	}
}

func TestMassDeathFreezesWithdrawals(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	tests := map[string]struct {
		nodes, lost int
		freeze      bool
	}{
		"three of five": {5, 3, true},
		"two of five":   {5, 2, false},
		"three of four": {4, 3, false},
		"half of ten":   {10, 5, false},
		"six of ten":    {10, 6, true},
		"all others":    {5, 4, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := ids(t, tt.nodes)
			k := newTracker(n[0], testTimings(), start)
			for _, id := range n[1:] {
				k.join(id, member{epoch: 1, acked: start.Add(time.Hour)})
			}
			compute := func(s int) map[state.NodeID]state.Live {
				live, _ := k.compute(start.Add(time.Duration(s)*time.Second), n, nil, nil)
				return live
			}
			compute(1)
			for i := range tt.lost {
				k.leave(n[1+i], 1)
				compute(10 + i) // one after another, as detection goes
			}
			live := compute(30)
			if got := live[n[1]].Serving; got != tt.freeze {
				t.Fatalf("serving %v long after the hold, want %v", got, tt.freeze)
			}
			if live[n[1]].State != state.Dead {
				t.Errorf("state %s, want dead: a freeze hides nothing", live[n[1]].State)
			}
			if !tt.freeze {
				return
			}
			// Most come back: whoever does not is withdrawn after all.
			for i := 1; i < tt.lost; i++ {
				k.join(n[1+i], member{epoch: 1, acked: start.Add(time.Hour)})
			}
			if live := compute(60); live[n[1]].Serving || !live[n[2]].Serving {
				t.Errorf("after the return: %+v %+v", live[n[1]], live[n[2]])
			}
		})
	}
	t.Run("ends by itself", func(t *testing.T) {
		n := ids(t, 5)
		k := newTracker(n[0], testTimings(), start)
		for _, id := range n[1:] {
			k.join(id, member{epoch: 1})
		}
		k.compute(start, n, nil, nil)
		for _, id := range n[1:] {
			k.leave(id, 1)
		}
		k.compute(start.Add(time.Second), n, nil, nil)
		k.compute(start.Add(20*time.Minute), n, nil, nil)
		live, _ := k.compute(start.Add(20*time.Minute+time.Second), n, nil, nil)
		if live[n[1]].Serving {
			t.Error("a real outage is served for ever")
		}
	})
}
