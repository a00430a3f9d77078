package state

import (
	"slices"
	"time"
)

// How many overwritten values are remembered, and for how long.
const (
	maxLosses = 64
	lossAge   = 24 * time.Hour
)

// Loss is a value of a Cluster record that lost against another, whose writer
// had not seen it: somebody's change is gone without anybody having decided so.
// It is forgotten with the next write that saw the winner.
type Loss struct {
	ID            ID
	Winner, Loser Record
	At            time.Time // when it was noticed here
}

// Losses returns the values that were overwritten unseen, oldest first. Each
// replica knows of those that it saw itself.
func (sn *Snapshot) Losses(now time.Time) []Loss {
	i := slices.IndexFunc(sn.losses, func(l Loss) bool { return now.Sub(l.At) < lossAge })
	if i < 0 {
		return nil
	}
	return sn.losses[i:]
}

// noBase is the Base of a record whose writer knew of no version before.
const noBase HLC = 1

// baseOf is the Base of a version that replaces old.
func baseOf(old *Record) HLC {
	if old == nil {
		return noBase
	}
	return old.Version.HLC
}

// compete notes what became of two versions of one record, in any order.
func (b *batch) compete(a, z *Record) {
	if a.ID.Class != Cluster || a.Version == z.Version {
		return
	}
	win, lose := a, z
	if Compare(Cluster, a.Version, z.Version) < 0 {
		win, lose = z, a
	}
	b.settled(win)
	// A base of 0 is that of a version which does not say.
	if win.Base == 0 || win.Base >= lose.Version.HLC || lose.Deleted == win.Deleted && string(lose.Value) == string(win.Value) {
		return
	}
	for _, l := range b.next.losses {
		if l.ID == lose.ID && l.Loser.Version == lose.Version {
			return
		}
	}
	list := append(slices.Clone(b.next.losses), Loss{ID: win.ID, Winner: *win, Loser: *lose, At: b.s.clock.wall().Time()})
	b.next.losses = list[max(0, len(list)-maxLosses):]
	b.touched = true
}

// settled forgets what lost against versions that the writer of r had seen.
func (b *batch) settled(r *Record) {
	over := func(l Loss) bool { return l.ID == r.ID && r.Base >= l.Winner.Version.HLC }
	if r.Base > noBase && slices.ContainsFunc(b.next.losses, over) {
		b.next.losses = slices.DeleteFunc(slices.Clone(b.next.losses), over)
		b.touched = true
	}
}
