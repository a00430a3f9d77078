package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/state"
)

// askTimeout bounds how long one silent peer holds up a Grow.
const askTimeout = 5 * time.Second

// Asker carries an Ask to another node and returns what its ServeAsk gave.
// Implementations must be safe for concurrent use.
type Asker interface {
	Ask(ctx context.Context, to state.NodeID, a Ask) ([]state.Record, error)
}

// ServeAsk is the donor's end: it donates in one durable transaction and
// returns every range of the ring, so that the other side's view is never
// older than ours.
// Having nothing to give is no error: the records say who owns what.
func ServeAsk(ctx context.Context, store *state.Store, self state.NodeID, ringID string, a Ask) ([]state.Record, error) {
	if a.RingID != ringID {
		return nil, fmt.Errorf("donate %s: asked for ring %s, ours is %s: the clusters were founded apart", title(a.Ring), a.RingID, ringID)
	}
	_, err := store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		return Donate(sn, self, ringID, a)
	})
	if err != nil && !errors.Is(err, ErrExhausted) && !errors.Is(err, ErrInUse) && !errors.Is(err, ErrNotOurs) {
		return nil, err
	}
	return RingRecords(store.Snapshot(), a.Ring, ringID), nil
}

// RingRecords returns the records of a ring, as a donor sends them.
func RingRecords(sn *state.Snapshot, ring, ringID string) []state.Record {
	var out []state.Record
	for rec, r := range state.All[state.Range](sn) {
		if r.Ring == ring && r.RingID == ringID {
			out = append(out, rec)
		}
	}
	return out
}

// Grow gets space for self: want where it is valid, or else anything. It asks
// the owner with the most to spare, those alive first, then the next, and
// returns when the records of a donation are durable here. When space is there
// already, or the ring is ours to make, it asks nobody.
//
// Errors: ErrExhausted with who holds what, ErrNoRing, or the context's.
func Grow(ctx context.Context, store *state.Store, self state.NodeID, ringID string, spec Spec, want netip.Prefix, asker Asker) error {
	if want.IsValid() {
		want = want.Masked()
	}
	if err := makeRing(ctx, store, self, ringID, spec); err != nil {
		return err
	}
	asked := map[state.NodeID]error{}
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("grow %s: %w", title(spec.Ring), err)
		}
		sn := store.Snapshot()
		ring := Resolve(sn, spec.Ring, ringID)
		if ring != nil && satisfied(sn, ring, self, spec, want) {
			return nil
		}
		to, err := nextDonor(sn, ring, self, ringID, spec, want, asked)
		if err != nil {
			return err
		}
		a := Ask{
			Ring: spec.Ring, RingID: ringID, To: self, Prefix: spec.Prefix.Masked(), Block: spec.Block,
			Want: want, First: spec.First, Last: spec.Last,
		}
		if ring != nil {
			a.Owned = count(ring.owned(self))
		}
		err = ask(ctx, store, asker, to, a)
		if sn := store.Snapshot(); err == nil && !want.IsValid() {
			if r := Resolve(sn, spec.Ring, ringID); r == nil || !satisfied(sn, r, self, spec, want) {
				// The donor may believe that we own what we have passed on.
				a.Owned = math.MaxUint64
				err = ask(ctx, store, asker, to, a)
			}
		}
		asked[to] = err
	}
}

// makeRing founds a ring that is missing when that falls to self.
func makeRing(ctx context.Context, store *state.Store, self state.NodeID, ringID string, spec Spec) error {
	if sn := store.Snapshot(); Resolve(sn, spec.Ring, ringID) != nil || founder(sn, ringID) != self {
		return nil
	}
	_, err := store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if founder(sn, ringID) != self {
			return nil, nil
		}
		return Bootstrap(sn, self, ringID, []Spec{spec}), nil
	})
	if err != nil {
		return fmt.Errorf("make the ring of %s: %w", title(spec.Ring), err)
	}
	return nil
}

// ask asks one node and stores what it answered.
func ask(ctx context.Context, store *state.Store, asker Asker, to state.NodeID, a Ask) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	recs, err := asker.Ask(ctx, to, a)
	if err != nil {
		return err
	}
	for i := range recs {
		if recs[i].ID.Class != state.Ring || recs[i].ID.Kind != state.KindRing {
			return fmt.Errorf("answer holds a record %s, which is no range", recs[i].ID)
		}
	}
	if _, err := store.Merge(recs, true); err != nil {
		return fmt.Errorf("store the answer: %w", err)
	}
	return nil
}

// satisfied reports whether self has what Grow is to get.
func satisfied(sn *state.Snapshot, ring *Ring, self state.NodeID, spec Spec, want netip.Prefix) bool {
	if want.IsValid() {
		return ring.Owns(self, want)
	}
	return len(Spare(sn, ring, self, spec)) > 0
}

// Spare returns what node owns of a ring and could still open (of the rings
// of single addresses: give out). It gives away only what holds no address in
// use besides.
func Spare(sn *state.Snapshot, ring *Ring, node state.NodeID, spec Spec) []netip.Prefix {
	taken := normal(append(closed(sn, ring, node), spec.reserved()...))
	return ring.spare(node, unit(spec.Ring, spec.Block, spec.Prefix), taken, spec.First, spec.Last)
}

func (s Spec) reserved() (out []span) {
	for _, a := range s.Reserved {
		out = append(out, span{a, a})
	}
	return out
}

// holding is what one node has of a ring, in units.
type holding struct {
	node         state.NodeID
	owned, spare uint64
}

// holdings returns what each owner has between spec.First and spec.Last.
func holdings(sn *state.Snapshot, ring *Ring, self state.NodeID, spec Spec) []holding {
	bits := unit(spec.Ring, spec.Block, spec.Prefix)
	taken := normal(append(busy(sn, ring, self), spec.reserved()...))
	var out []holding
	for _, id := range ring.Owners() {
		h := holding{node: id}
		for _, p := range ring.spare(id, bits, nil, spec.First, spec.Last) {
			h.owned = satAdd(h.owned, units(p, bits))
		}
		for _, p := range ring.spare(id, bits, taken, spec.First, spec.Last) {
			h.spare = satAdd(h.spare, units(p, bits))
		}
		out = append(out, h)
	}
	return out
}

// rank orders nodes by how likely they are to answer.
func rank(l state.Live) int {
	switch l.State {
	case state.Alive:
		return 0
	case state.Suspect:
		return 1
	case state.Unknown:
		return 2
	}
	return 3
}

// nextDonor returns whom to ask next, or why there is nobody.
func nextDonor(sn *state.Snapshot, ring *Ring, self state.NodeID, ringID string, spec Spec, want netip.Prefix, asked map[state.NodeID]error) (state.NodeID, error) {
	if ring == nil {
		f := founder(sn, ringID)
		err, done := asked[f]
		switch {
		case f == "" || f == self:
			return "", fmt.Errorf("grow %s: %w", title(spec.Ring), ErrNoRing)
		case done:
			return "", fmt.Errorf("grow %s: %w: %s, who may make it, did not: %v", title(spec.Ring), ErrNoRing, nodeName(sn, f), err)
		}
		return f, nil
	}
	if want.IsValid() {
		return wantDonor(sn, ring, self, spec, want, asked)
	}
	hs := slices.DeleteFunc(holdings(sn, ring, self, spec), func(h holding) bool { return h.node == self })
	live := sn.Live()
	slices.SortFunc(hs, func(a, b holding) int {
		return cmp.Or(
			cmp.Compare(rank(live[a.node]), rank(live[b.node])),
			cmp.Compare(b.spare, a.spare),
			cmp.Compare(a.node, b.node))
	})
	for _, h := range hs {
		if _, done := asked[h.node]; !done && h.spare > 0 {
			return h.node, nil
		}
	}
	return "", exhausted(sn, ring, self, spec, asked)
}

// wantDonor returns the owner of a wanted range. A range of several owners
// can be had from nobody: it would take all their consent at once.
func wantDonor(sn *state.Snapshot, ring *Ring, self state.NodeID, spec Spec, want netip.Prefix, asked map[state.NodeID]error) (state.NodeID, error) {
	var owners []state.NodeID
	for _, p := range ring.Parts {
		if p.From.Compare(lastAddr(want)) <= 0 && p.To.Compare(want.Addr()) >= 0 {
			owners = append(owners, p.Owner)
		}
	}
	slices.Sort(owners)
	owners = slices.Compact(owners)
	fail := func(why string, err error) error {
		return fmt.Errorf("grow %s by %s: %s: %w", title(spec.Ring), want, why, err)
	}
	switch len(owners) {
	case 0:
		return "", fail("outside of the range", ErrExhausted)
	case 1:
	default:
		names := make([]string, len(owners))
		for i, o := range owners {
			names[i] = nodeName(sn, o)
		}
		return "", fail("split between "+strings.Join(names, ", "), ErrExhausted)
	}
	o := owners[0]
	if o == self { // owned, but not all of it lies in the ring
		return "", fail("reaches out of the range", ErrExhausted)
	}
	err, done := asked[o]
	switch {
	case !done:
		return o, nil
	case err != nil:
		return "", fail(fmt.Sprintf("it is with %s (%s), who did not answer: %v", nodeName(sn, o), sn.Live()[o].State, err), ErrExhausted)
	}
	return "", fail(fmt.Sprintf("%s uses it or has opened or pinned it: choose another one, or free it there", nodeName(sn, o)), ErrExhausted)
}

// maxHolders bounds how many nodes an error lists one by one.
const maxHolders = 12

// exhausted says who holds what, in the words of status, and what frees space.
func exhausted(sn *state.Snapshot, ring *Ring, self state.NodeID, spec Spec, asked map[state.NodeID]error) error {
	noun := "blocks"
	switch spec.Ring {
	case state.RingServices:
		noun = "addresses"
	case state.RingNodePorts:
		noun = "ports"
	}
	bits := unit(spec.Ring, spec.Block, spec.Prefix)
	live, gone := sn.Live(), sn.Gone()
	hs := holdings(sn, ring, self, spec)
	slices.SortFunc(hs, func(a, b holding) int {
		return cmp.Or(cmp.Compare(b.owned, a.owned), strings.Compare(nodeName(sn, a.node), nodeName(sn, b.node)))
	})
	var parts, dead []string
	for i, h := range hs {
		name := nodeName(sn, h.node)
		st := live[h.node].State
		if h.node != self && st == state.Dead && h.spare > 0 && !gone.Node(h.node) {
			dead = append(dead, name)
		}
		if i >= maxHolders {
			continue
		}
		s := fmt.Sprintf("%s %d of %d %s", name, h.owned-h.spare, h.owned, noun)
		if n := ring.restingUnits(h.node, bits); n > 0 {
			s += fmt.Sprintf(", %d of them rest after a takeover", n)
		}
		if err := asked[h.node]; err != nil {
			s += fmt.Sprintf(" (%s: %v)", st, err)
		}
		parts = append(parts, s)
	}
	slices.Sort(parts)
	if more := len(hs) - maxHolders; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more nodes", more))
	}
	text := strings.Join(parts, ", ")
	slices.Sort(dead)
	for _, d := range dead[:min(len(dead), 3)] {
		text += fmt.Sprintf("; if %s is gone for good, `nodectl node forget %s` takes its part over", d, d)
	}
	return fmt.Errorf("%s: %w: %s", title(spec.Ring), ErrExhausted, text)
}
