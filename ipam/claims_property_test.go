package ipam

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nodenet/state"
)

// TestClaims is TestCluster with much spreading of records in part, by nodes
// that have space of their own from the start.
func TestClaims(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t, rapid.IntRange(3, 4).Draw(t, "nodes"))
		defer c.close()
		found(t, c.nodes[0], simSpecs...)
		m := &sim{cluster: c, acked: map[state.ID]netip.Addr{}, vips: map[string]state.VIP{}}
		c.sync(t)
		half := func(t *rapid.T) {
			mask := rapid.Uint64().Draw(t, "mask")
			from, to := m.node(t), m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "to")]
			if from == to || to.down {
				t.Skip("the same, or dead")
			}
			merge(t, from, to, func(i int) bool { return mask>>(i%64)&1 == 1 }, rapid.IntRange(0, 3).Draw(t, "limit"))
			m.reopen(t)
		}
		take := func(t *rapid.T) { m.try(t, m.node(t), m.request(t), true); m.reopen(t) }
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				all, done := m.union(t)
				defer done()
				m.checkClaims(t, all)
			},
			"allocate 1": take, "allocate 2": take, "allocate 3": take,
			"merge": m.merge, "half 1": half, "half 2": half, "half 3": half, "half 4": half,
			"leave": m.leave, "die": m.die, "forget": m.forget, "return": m.comeBack, "give way": m.giveWay,
		})
	})
}

// checkClaims looks at the cluster with the eyes of each node, whatever part
// of the records has reached it: of what a node has opened or given out by the
// rules nothing is refused, unless a block that was there before, and whose
// end has not been heard of, is in the way. With all records nothing at all is.
func (m *sim) checkClaims(t *rapid.T, all *state.Snapshot) {
	gone := all.Gone()
	for _, n := range m.nodes {
		if n.down {
			continue
		}
		sn := n.store.Snapshot()
		inTheWay := func(r state.Refusal, p Part) bool {
			for rec, b := range state.All[state.Block](sn) {
				s := spanOf(b.Prefix)
				if rec.ID.Owner != r.Owner && s.from.Compare(p.To) <= 0 && s.to.Compare(p.From) >= 0 {
					return true
				}
			}
			return false
		}
		for _, r := range sn.View().Refusals {
			rec, ok := all.Get(r.Record)
			mine, same := sn.Get(r.Record)
			if r.Waiting || !ok || rec.Deleted || !same || mine.Version != rec.Version || gone.Record(&rec) || m.lags(all, r.Owner) {
				continue
			}
			switch v := rec.Val().(type) {
			case *state.Block:
				ring := Resolve(all, v.Network, ringID)
				s := spanOf(v.Prefix)
				if ring.Owns(r.Owner, v.Prefix) && !inTheWay(r, Part{From: s.from, To: s.to}) {
					t.Fatalf("%s refuses %s of its owner %s: %s", n.id.Short(), r.What, r.Owner.Short(), r.Why)
				}
			case *state.Endpoint:
				ring := Resolve(all, v.Network, ringID)
				a := v.Addrs[0]
				if v.Ready && ring.Owner(a) == r.Owner && !inTheWay(r, Part{From: a, To: a}) {
					t.Fatalf("%s refuses %s of %s: %s", n.id.Short(), r.What, r.Owner.Short(), r.Why)
				}
			default:
				t.Fatalf("%s refuses %s: %s", n.id.Short(), r.What, r.Why)
			}
		}
	}
	// With all that is durable anywhere, only what is being given up is refused.
	bad := slices.IndexFunc(all.View().Refusals, func(r state.Refusal) bool {
		rec, _ := all.Get(r.Record)
		if gone.Record(&rec) || m.lags(all, r.Owner) {
			return false
		}
		b, ok := rec.Val().(*state.Block)
		if !ok {
			return rec.ID.Kind != state.KindEndpoint || rec.Val().(*state.Endpoint).Ready
		}
		_, rests := Resolve(all, b.Network, ringID).resting(spanOf(b.Prefix), time.Now())
		return !rests
	})
	if bad >= 0 {
		t.Fatalf("with all records: refused %+v", all.View().Refusals[bad])
	}
}
