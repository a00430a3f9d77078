package state

import (
	"context"
	"fmt"

	"nodenet/state/lthash"
)

// maxReissues bounds how often one run begins anew. More than that means that
// another machine answers to our name, which no new epoch can mend.
const maxReissues = 8

// Reissue is told what a peer holds of our own history. When that is more
// than we know of and we have written since, our disk went back in time (a
// backup was restored) and our first writes came before anybody could tell:
// the peer's later records of ours would stay with it for ever, since our
// marks hide the difference. We then write all our live records again in an
// epoch above everything, and raise our floor to its start, so that every
// replica replaces its whole set. It returns how many records were written.
//
// Before the first own write there is nothing to do: the peer's records are
// merged as anybody's. The error is ErrForeignWriter when beginning anew does
// not help.
func (s *Store) Reissue(held Mark) (int, error) {
	if !s.wrote.Load() {
		return 0, nil
	}
	r := &request{held: &held}
	if err := s.do(context.Background(), r); err != nil {
		return 0, err
	}
	return r.applied, r.err
}

func (b *batch) reissue(held Mark) (int, error) {
	s := b.s
	head := b.head(s.self)
	if held.Compare(head.Floor) <= 0 || held.Compare(s.loaded) <= 0 {
		return 0, nil // it is behind, and will be replaced or brought up to date
	}
	if held.Compare(head.Mark) <= 0 && held.Epoch >= s.began {
		return 0, nil // written by this run
	}
	if s.reissues >= maxReissues {
		if s.reissues == maxReissues {
			s.reissues++
			s.logger.Error("records of this node keep coming that it never wrote: does another machine run on a copy of its disk?", "epoch", held.Epoch)
		}
		return 0, fmt.Errorf("a peer holds our records up to epoch %d: %w", held.Epoch, ErrForeignWriter)
	}
	s.reissues++
	var live, gone []*Record
	for r := range b.next.tables.history(s.self, Mark{}) {
		if r.Deleted {
			gone = append(gone, r)
		} else {
			live = append(live, r)
		}
	}
	mark := Mark{Epoch: max(s.epoch.Load(), held.Epoch, head.Mark.Epoch) + 1}
	s.RaiseEpoch(mark.Epoch)
	floor := mark
	for i, r := range live {
		mark.Seq++
		c := *r
		c.Version = Version{Epoch: mark.Epoch, Seq: mark.Seq}
		b.put(&c)
		live[i] = &c
	}
	if s.key != nil {
		b.own = sumRecords(lthash.Sum{}, live, nil)
	}
	// A replacement implies the deletions.
	for _, r := range gone {
		b.remove(r)
		b.drops = append(b.drops, r.ID)
	}
	e := b.edit(s.self)
	e.head.Floor = floor
	if e.head.Mark.Compare(mark) < 0 {
		e.head.Mark = mark
	}
	b.saves, b.begun = append(b.saves, e.head), true
	b.touched = true
	s.logger.Warn("a peer holds more of this node's past than its disk: a backup was restored; all own records were written anew",
		"held", held.Epoch, "epoch", mark.Epoch, "records", len(live))
	return len(live), nil
}
