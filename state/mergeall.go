package state

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Merged is what became of one delta: how many records were new, or why
// nothing of it was applied.
type Merged struct {
	Applied int
	Err     error
}

// MergeAll is MergeFrom for many deltas. Those of different owners are checked
// on all processors and committed together, in memory and on disk; those of
// one owner one after another, in their order.
func (s *Store) MergeAll(peer NodeID, ds []Delta) []Merged {
	out := make([]Merged, len(ds))
	// The first of each owner; mostly there is no other.
	first := make(map[NodeID]bool, len(ds))
	var now, later []int
	for i := range ds {
		if first[ds[i].Owner] {
			later = append(later, i)
			continue
		}
		first[ds[i].Owner] = true
		now = append(now, i)
	}
	for len(now) > 0 {
		s.mergeEach(peer, ds, now, out)
		clear(first)
		now, later = later, nil
		now = slices.DeleteFunc(now, func(i int) bool {
			if first[ds[i].Owner] {
				later = append(later, i)
				return true
			}
			first[ds[i].Owner] = true
			return false
		})
	}
	return out
}

// mergeEach merges deltas of different owners, those at the indices of list.
func (s *Store) mergeEach(peer NodeID, ds []Delta, list []int, out []Merged) {
	ready := make([]*checked, len(list))
	sn := s.Snapshot()
	each(len(list), func(k int) {
		d := ds[list[k]] // a copy: what the caller has stays as it is
		if ready[k], out[list[k]].Err = s.check(peer, &d, sn); ready[k] != nil {
			out[list[k]].Err = ready[k].tallied(sn)
		}
	})
	for {
		var cs []*checked
		for k, i := range list {
			if ready[k] != nil && out[i].Err == nil {
				cs = append(cs, ready[k])
			}
		}
		if len(cs) == 0 {
			return
		}
		if err := s.do(context.Background(), &request{deltas: cs}); err != nil {
			for k, i := range list {
				if ready[k] != nil && out[i].Err == nil {
					out[i].Err = err
				}
			}
			return
		}
		// Where somebody else brought the same owner's history further
		// meanwhile it goes once more. Histories only ever grow, so that this ends.
		sn = s.Snapshot()
		for k, i := range list {
			c := ready[k]
			if c == nil || out[i].Err != nil {
				continue
			}
			if errors.Is(c.Err, errMoved) {
				out[i].Err = c.tallied(sn)
				continue
			}
			out[i], ready[k] = c.Merged, nil
		}
	}
}

// check verifies all of a delta that needs no more than its own content. It
// returns nil without an error for what is known already.
func (s *Store) check(peer NodeID, d *Delta, sn *Snapshot) (*checked, error) {
	if !d.Owner.Valid() {
		return nil, fmt.Errorf("merge delta: owner %q is not a node ID", d.Owner)
	}
	if d.More {
		return nil, fmt.Errorf("merge delta of %s: a part without its end: %w", d.Owner.Short(), ErrForged)
	}
	c := &checked{Delta: d, signed: len(d.Sig) > 0}
	c.whole = c.signed && d.whole()
	mark := sn.Head(d.Owner).Mark
	switch {
	case d.To.Compare(mark) <= 0:
		return nil, nil // old news, whoever says so
	case !d.Replace && d.From.Compare(mark) > 0:
		return nil, ErrGap
	}
	if c.signed {
		h := d.head()
		if err := h.verify(); err != nil {
			return nil, fmt.Errorf("merge: %w", err)
		}
	} else if s.key != nil && peer != d.Owner {
		return nil, fmt.Errorf("merge delta of %s: %w", d.Owner.Short(), ErrUnsigned)
	}
	if err := s.inspect(c); err != nil {
		return nil, fmt.Errorf("merge delta of %s: %w", d.Owner.Short(), err)
	}
	return c, nil
}

// tallied computes what set a delta leads to from a snapshot, where it is signed.
func (c *checked) tallied(sn *Snapshot) error {
	if !c.signed {
		return nil
	}
	if err := c.tally(sn); err != nil {
		return fmt.Errorf("merge delta of %s up to epoch %d: %w", c.Owner.Short(), c.To.Epoch, err)
	}
	return nil
}

// each calls fn for 0 … n-1, on all processors when there is more than one to do.
func each(n int, fn func(int)) {
	workers := min(n, runtime.GOMAXPROCS(0))
	if workers <= 1 {
		for i := range n {
			fn(i)
		}
		return
	}
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			fn(i)
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
