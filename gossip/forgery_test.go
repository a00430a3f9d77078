package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"nodenet/state"
)

// tampering lets a party change the deltas that it passes on.
func tampering(fn func(d *state.Delta)) func(frame) {
	return func(f frame) {
		if f, ok := f.(*deltas); ok {
			for i := range f.Deltas {
				// The slices are its store's own.
				f.Deltas[i].Records = slices.Clone(f.Deltas[i].Records)
				fn(&f.Deltas[i])
			}
		}
	}
}

// TestRelayThatLies: what a relay changes is refused, it is asked once for the
// whole set, and what it changes then is counted as a forgery. Somebody else
// has the truth, at once.
func TestRelayThatLies(t *testing.T) {
	owner, liar, honest, victim := newParty(t, state.Options{}), newParty(t, state.Options{}), newParty(t, state.Options{}), newParty(t, state.Options{})
	owner.fill(t, 3)
	clean(t, talk(t, victim, owner))
	owner.fill(t, 20)
	for _, p := range []*party{liar, honest} {
		clean(t, talk(t, p, owner))
	}
	before := victim.holds(owner.id)
	for name, lie := range map[string]func(d *state.Delta){
		"value":  func(d *state.Delta) { d.Records[len(d.Records)-1].Value = oldValue },
		"record": func(d *state.Delta) { d.Records = d.Records[1:] },
		"mark":   func(d *state.Delta) { d.To.Seq++ },
		"key":    func(d *state.Delta) { d.Key = make([]byte, 32) },
		"none":   func(d *state.Delta) { d.Hash, d.Key, d.Sig = nil, nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			victim.sess = map[state.NodeID]*session{}
			victim.forged = 0
			liar.tamper = tampering(func(d *state.Delta) {
				if d.Owner == owner.id && len(d.Records) > 0 {
					lie(d)
				}
			})
			var errs []error
			for range 3 {
				errs = append(errs, talk(t, victim, liar)...)
			}
			if len(errs) == 0 {
				t.Error("nothing was refused")
			}
			if name != "none" && victim.forged == 0 {
				t.Errorf("no forgery was counted: %v", errs)
			}
			if got := victim.holds(owner.id); !slices.Equal(got, before) {
				t.Errorf("held %d records, want %d as before", len(got), len(before))
			}
		})
	}
	clean(t, talk(t, victim, honest))
	agree(t, victim, owner, owner)
}

// TestDamagedReplicaIsMended: a mismatch may be our own fault. Then the whole
// set, which the same peer is asked for at once, mends it.
func TestDamagedReplicaIsMended(t *testing.T) {
	owner, relay := newParty(t, state.Options{}), newParty(t, state.Options{})
	owner.fill(t, 10)
	clean(t, talk(t, relay, owner))
	var recs []state.Record
	for _, r := range relay.store.Snapshot().Part(owner.id, state.Mark{}, 0, false).Records {
		recs = append(recs, simWire(r))
	}
	recs[len(recs)-1].Value = oldValue
	// Its disk has no heads, so that nothing tells but the next delta.
	damaged := newParty(t, state.Options{Records: recs})
	owner.fill(t, 1)
	clean(t, talk(t, relay, owner))
	errs := talk(t, damaged, relay)
	if len(errs) != 1 || !errors.Is(errs[0], state.ErrDiffers) || damaged.forged != 0 {
		t.Errorf("refused %v, forged %d; want one ErrDiffers and no forgery", errs, damaged.forged)
	}
	agree(t, damaged, owner, owner)
}

// TestLiarThatAlwaysHasMore: an exchange with a peer whose records are all
// refused ends, however much more it says to have.
func TestLiarThatAlwaysHasMore(t *testing.T) {
	liar, victim := newParty(t, state.Options{}), newParty(t, state.Options{})
	for range 3 {
		owner := newParty(t, state.Options{})
		owner.fill(t, 5)
		clean(t, talk(t, liar, owner))
	}
	liar.rep.budget, liar.rep.chunk = 1, 1
	liar.tamper = tampering(func(d *state.Delta) {
		if len(d.Records) > 0 {
			d.Records[0].Value = oldValue
		}
	})
	for _, first := range []*party{victim, liar} {
		other := map[*party]*party{victim: liar, liar: victim}[first]
		if errs := talk(t, first, other); len(errs) == 0 {
			t.Error("nothing was refused")
		}
	}
	// It is still heard, at the pace of regular exchanges, should it reform.
	liar.tamper = nil
	for n := 0; !bytes.Equal(rootOf(victim.store.Snapshot()), rootOf(liar.store.Snapshot())); n++ {
		if n == 20 {
			t.Fatalf("not equal after %d honest exchanges", n)
		}
		talk(t, victim, liar)
	}
}

// TestConvergenceDespiteLies: whatever a liar among the relays does, honest
// replicas that meet hold what the owners wrote.
func TestConvergenceDespiteLies(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var ps []*party
		for range 4 {
			p := newParty(t, state.Options{})
			p.rep.budget = rapid.SampledFrom([]int{0, 1, 700}).Draw(rt, "budget")
			p.rep.chunk = rapid.SampledFrom([]int{0, 1, 3}).Draw(rt, "chunk")
			ps = append(ps, p)
		}
		liar := ps[3]
		liar.tamper = tampering(func(d *state.Delta) {
			if d.Owner == liar.id || len(d.Records) == 0 {
				return
			}
			i := rapid.IntRange(0, len(d.Records)-1).Draw(rt, "record")
			switch rapid.IntRange(0, 7).Draw(rt, "lie") {
			case 0:
				d.Records[i].Value = oldValue
			case 1:
				d.Records = slices.Delete(d.Records, i, i+1)
			case 2:
				d.Records[i].Deleted = !d.Records[i].Deleted
			case 3:
				d.To.Seq += 5
			case 4:
				d.More = !d.More
			case 5:
				d.Replace = !d.Replace
			case 6:
				d.Hash, d.Key, d.Sig = nil, nil, nil
			}
		})
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			i := rapid.IntRange(0, 3).Draw(rt, "node")
			key := fmt.Sprint(rapid.IntRange(0, 7).Draw(rt, "key"))
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0, 1:
				write(rt, ps[i].store, state.Put(state.Owner, state.KindBlock, key, state.Block{Network: fmt.Sprint(rapid.IntRange(0, 99).Draw(rt, "v"))}))
			case 2:
				write(rt, ps[i].store, state.Del(state.Owner, state.KindBlock, key))
			default:
				talk(t, ps[i], ps[(i+rapid.IntRange(1, 3).Draw(rt, "peer"))%4])
			}
		}
		for range 2 {
			talk(t, ps[0], ps[1])
			talk(t, ps[1], ps[2])
			talk(t, ps[2], ps[0])
		}
		for _, p := range ps[:3] {
			for _, o := range ps[:3] {
				if !slices.Equal(p.holds(o.id), o.holds(o.id)) {
					rt.Fatalf("%s holds %v of %s, which wrote %v", p.id.Short(), p.holds(o.id), o.id.Short(), o.holds(o.id))
				}
			}
		}
		for _, p := range ps {
			p.store.Close()
		}
	})
}
