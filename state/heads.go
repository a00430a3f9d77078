package state

import (
	"strings"
	"sync/atomic"

	"nodenet/state/lthash"
)

// entry is what the tables say of one owner's set as a whole. Once it is in a
// snapshot it does not change, except that its sum may become known: an entry
// belongs to one set of live records, so that two snapshots with the same entry
// hold the same set.
type entry struct {
	head Head
	sum  atomic.Pointer[lthash.Sum] // of the live records; nil: not computed yet
}

func compareEntries(a, b *entry) int {
	return strings.Compare(string(a.head.Owner), string(b.head.Owner))
}

// entry is the owner's entry as the batch has left it, nil when there is none.
// It must not be changed; see edit.
func (b *batch) entry(owner NodeID) *entry { return b.next.entry(owner) }

func (b *batch) head(owner NodeID) Head { return b.next.Head(owner) }

// edit returns the owner's entry to be changed. Its sum is kept: who changes
// live records must see to it.
func (b *batch) edit(owner NodeID) *entry {
	if e := b.heads[owner]; e != nil {
		return e
	}
	e := &entry{head: Head{Owner: owner}}
	if old := b.entry(owner); old != nil {
		e.head = old.head
		e.sum.Store(old.sum.Load())
	}
	if b.heads == nil {
		b.heads = map[NodeID]*entry{}
	}
	b.heads[owner] = e
	b.next.heads.put(e)
	return e
}

// liveOf returns the records of an owner that are not deleted.
func (t tables) liveOf(owner NodeID) (out []*Record) {
	for r := range t.history(owner, Mark{}) {
		if !r.Deleted {
			out = append(out, r)
		}
	}
	return out
}

// sumOf returns the sum of an entry of a snapshot, computing it at the first
// need. The result must not be changed.
func sumOf(sn *Snapshot, e *entry) *lthash.Sum {
	if e == nil {
		return new(lthash.Sum)
	}
	if s := e.sum.Load(); s != nil {
		return s
	}
	s := sumRecords(lthash.Sum{}, sn.tables.liveOf(e.head.Owner), nil)
	e.sum.Store(s)
	return s
}

// tally keeps the sum of our own set true to an own record that is about to
// be stored.
func (b *batch) tally(r *Record) {
	if b.s.key == nil {
		return
	}
	if b.own == nil {
		sum := *sumOf(b.next, b.entry(b.s.self))
		b.own = &sum
	}
	if old := b.get(r.ID); old != nil {
		b.s.summer.sub(b.own, old)
	}
	b.s.summer.add(b.own, r)
}

// sign signs our head when the batch changed our set: once, however many
// writes there were.
func (b *batch) sign() {
	if b.own == nil {
		return
	}
	e := b.edit(b.s.self)
	e.sum.Store(b.own)
	e.head.sign(b.s.key, b.own)
	b.saves = append(b.saves, e.head)
	b.touched = true
}
