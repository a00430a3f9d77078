package ipam

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"nodenet/state"
)

// Heir takes records over from a node that leaves: when Take returns without
// an error, node to holds them durably (state.Store.Merge with durable).
type Heir interface {
	Take(ctx context.Context, to state.NodeID, recs []state.Record) error
}

// handOverTries bounds how often HandOver starts again because something was
// allocated meanwhile.
const handOverTries = 16

// HandOver gives everything that self owns to another node, in an order in
// which the heir never owns what it does not understand: it learns what is in
// use, then gets the ranges (Leave), and when it holds all of them, the right to
// make rings. After an error, or a crash, it can be called again. The node's endpoints must be gone
// before and it must stop allocating; what is allocated meanwhile is noticed.
func HandOver(ctx context.Context, store *state.Store, self state.NodeID, ringID string, to state.NodeID, heir Heir) error {
	if !to.Valid() || to == self {
		return fmt.Errorf("hand over: %q is not another node", to)
	}
	name := nodeName(store.Snapshot(), to)
	err := tellAndWrite(ctx, store, to, heir, inUse, func(sn *state.Snapshot) ([]state.Op, error) {
		for rec, ep := range state.All[state.Endpoint](sn) {
			if rec.ID.Owner == self && Resolve(sn, ep.Network, ringID) != nil {
				return nil, fmt.Errorf("endpoint %s is still attached, detach it first: %w", who(ep), ErrInUse)
			}
		}
		return Leave(sn, self, ringID, to), nil
	})
	if err != nil {
		return fmt.Errorf("hand over to %s: %w", name, err)
	}
	ranges := func(sn *state.Snapshot) (out []state.Record) {
		for rec, r := range state.All[state.Range](sn) {
			if r.RingID == ringID {
				out = append(out, rec)
			}
		}
		return out
	}
	err = tellAndWrite(ctx, store, to, heir, ranges, func(sn *state.Snapshot) ([]state.Op, error) {
		return leaveSeat(sn, self, ringID, to), nil
	})
	if err == nil {
		err = heir.Take(ctx, to, ranges(store.Snapshot()))
	}
	if err != nil {
		return fmt.Errorf("hand over to %s: the ranges are given, but not all known there yet: %w", name, err)
	}
	return nil
}

// tellAndWrite makes the heir hold what know returns, and then writes, in a
// transaction that finds nothing which the heir was not told.
func tellAndWrite(ctx context.Context, store *state.Store, to state.NodeID, heir Heir,
	know func(*state.Snapshot) []state.Record, fn func(*state.Snapshot) ([]state.Op, error)) error {
	for range handOverTries {
		recs := know(store.Snapshot())
		if err := heir.Take(ctx, to, recs); err != nil {
			return err
		}
		told := make(map[state.ID]state.Version, len(recs))
		for i := range recs {
			told[recs[i].ID] = recs[i].Version
		}
		stale := false
		_, err := store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
			for _, r := range know(sn) {
				if told[r.ID] != r.Version {
					stale = true
					return nil, nil
				}
			}
			return fn(sn)
		})
		if err != nil || !stale {
			return err
		}
	}
	return fmt.Errorf("addresses are still being allocated, stop that first: %w", ErrInUse)
}

// inUse returns the records that any node may write and that say which
// addresses of a ring are in use.
func inUse(sn *state.Snapshot) []state.Record {
	var out []state.Record
	for rec := range state.All[state.VIP](sn) {
		out = append(out, rec)
	}
	for rec := range state.All[state.LeaseValue](sn) {
		out = append(out, rec)
	}
	for rec := range state.All[state.Service](sn) {
		if rec.ID.Class == state.Cluster {
			out = append(out, rec)
		}
	}
	return out
}

// Leave returns the ops by which a node that leaves for good hands its
// ranges, used or not, to another one and closes its blocks. It keeps the
// right to make rings, if it has that. Unlike a donation this gives
// away addresses in use (VIPs, leases), of which the heir must know before it
// owns them: use HandOver, which sees to the order.
func Leave(sn *state.Snapshot, self state.NodeID, ringID string, to state.NodeID) []state.Op {
	if !to.Valid() || to == self {
		return nil
	}
	names := map[string]bool{}
	for _, r := range state.All[state.Range](sn) {
		if r.RingID == ringID && r.Ring != ringSeat {
			names[r.Ring] = true
		}
	}
	var ops []state.Op
	for name := range names {
		ring := Resolve(sn, name, ringID)
		for _, p := range ring.Owned(self) {
			r := state.Range{Ring: name, RingID: ringID, Prefix: p, Owner: to, Donor: self}
			if until, ok := ring.resting(spanOf(p), time.Now()); ok {
				r.Until = until.Unix()
			}
			ops = append(ops, rangeOp(r, ring.gen(p)+1))
		}
	}
	for rec, b := range state.All[state.Block](sn) {
		if rec.ID.Owner == self && names[b.Network] {
			ops = append(ops, state.Del(state.Owner, state.KindBlock, rec.ID.Key))
		}
	}
	slices.SortFunc(ops, func(a, b state.Op) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	return ops
}

// leaveSeat returns the op that hands over the right to make rings, if self
// has it.
func leaveSeat(sn *state.Snapshot, self state.NodeID, ringID string, to state.NodeID) []state.Op {
	if founder(sn, ringID) != self {
		return nil
	}
	gen := Resolve(sn, ringSeat, ringID).gen(seatPrefix)
	r := state.Range{Ring: ringSeat, RingID: ringID, Prefix: seatPrefix, Owner: to, Donor: self}
	return []state.Op{rangeOp(r, gen+1)}
}
