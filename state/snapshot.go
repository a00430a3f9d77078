package state

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"time"
)

// Mark is a place in an owner's history. The zero Mark is before everything.
type Mark struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	Seq   uint64 `cbor:"2,keyasint,omitempty"`
}

// Compare is negative when m is before o.
func (m Mark) Compare(o Mark) int {
	return Compare(Owner, Version{Epoch: m.Epoch, Seq: m.Seq}, Version{Epoch: o.Epoch, Seq: o.Seq})
}

func (v Version) mark() Mark { return Mark{v.Epoch, v.Seq} }

// Head says how much of an owner's history a replica holds.
type Head struct {
	Owner NodeID `cbor:"1,keyasint"`
	Mark  Mark   `cbor:"2,keyasint"`
	// Floor is the newest tombstone that was collected: who holds less than
	// that cannot be brought up to date by a delta, only by replacement.
	Floor Mark `cbor:"3,keyasint,omitempty"`
	// Hash and Sig have their place for heads signed by their owner.
	Hash []byte `cbor:"4,keyasint,omitempty"`
	Sig  []byte `cbor:"5,keyasint,omitempty"`
}

// Delta is a contiguous part of one owner's history: what changed after From
// up to and including To. Replace means that Records is the owner's whole set
// at To and From does not count.
type Delta struct {
	Owner   NodeID   `cbor:"1,keyasint"`
	From    Mark     `cbor:"2,keyasint,omitempty"`
	To      Mark     `cbor:"3,keyasint"`
	Replace bool     `cbor:"4,keyasint,omitempty"`
	Records []Record `cbor:"5,keyasint,omitempty"`
	Floor   Mark     `cbor:"7,keyasint,omitempty"` // with Replace: the sender's floor, from now on the receiver's too
	Sig     []byte   `cbor:"6,keyasint,omitempty"` // reserved for signed heads
}

// Live is what membership says about one node.
type Live struct {
	State   Liveness
	Since   time.Time
	Serving bool
}

// Snapshot is the tables at one revision. It is immutable and safe for
// concurrent use. Records that it returns must not be changed.
type Snapshot struct {
	rev       uint64
	self      NodeID
	tables    tables
	heads     tree[*Head]
	buckets   [NumBuckets]uint64
	live      map[NodeID]Live
	liveRev   uint64 // the revision at which live was last replaced
	conflicts map[ID]Conflict

	deriver *deriver
	// Of a snapshot inside a Write: what was published before it, and what
	// was changed since.
	base    *Snapshot
	pending []edit

	viewOnce sync.Once
	view     *View
}

// successor returns the beginning of the next snapshot, equal to this one.
func (sn *Snapshot) successor() *Snapshot {
	return &Snapshot{
		rev: sn.rev, self: sn.self, live: sn.live, liveRev: sn.liveRev, buckets: sn.buckets, conflicts: sn.conflicts,
		tables: sn.tables.clone(), heads: sn.heads.clone(), deriver: sn.deriver,
	}
}

// Rev returns the revision, local to this node and growing with each change.
func (sn *Snapshot) Rev() uint64 { return sn.rev }

// Self returns the node whose tables these are.
func (sn *Snapshot) Self() NodeID { return sn.self }

// Live returns the liveness table. The caller must not change it.
func (sn *Snapshot) Live() map[NodeID]Live { return sn.live }

// Heads returns the head of each owner, sorted by owner.
func (sn *Snapshot) Heads() []Head {
	out := make([]Head, 0, sn.heads.len())
	for h := range sn.heads.all() {
		out = append(out, *h)
	}
	return out
}

// Head returns the head of one owner; its zero value holds nothing.
func (sn *Snapshot) Head(owner NodeID) Head {
	if h, ok := sn.heads.get(&Head{Owner: owner}); ok {
		return *h
	}
	return Head{}
}

// Delta returns what owner changed after from: at most limit records (0: no
// limit), oldest first. To says how far it goes. When from is below the
// owner's floor, the whole set is returned as a replacement, whatever the limit.
func (sn *Snapshot) Delta(owner NodeID, from Mark, limit int) Delta {
	head := sn.Head(owner)
	d := Delta{Owner: owner, From: from, To: head.Mark}
	if from.Compare(head.Floor) < 0 {
		d.Replace, d.From, d.Floor, limit = true, Mark{}, head.Floor, 0
		from = Mark{}
	}
	for r := range sn.tables.history(owner, Mark{from.Epoch, from.Seq + 1}) {
		if d.Replace && r.Deleted && r.Version.mark().Compare(head.Floor) <= 0 {
			continue // a replacement implies it; see batch.delta for its odd version
		}
		if limit > 0 && len(d.Records) == limit {
			d.To = d.Records[limit-1].Version.mark()
			break
		}
		d.Records = append(d.Records, *r)
	}
	return d
}

// Buckets returns the hash of each bucket of the non-owner classes. Two
// replicas hold the same records there when their buckets are equal.
func (sn *Snapshot) Buckets() [NumBuckets]uint64 { return sn.buckets }

// Bucket returns the records of one bucket, tombstones included.
func (sn *Snapshot) Bucket(i int) []Record {
	var out []Record
	for r := range sn.tables.inBucket(i) {
		out = append(out, *r)
	}
	return out
}

// Get returns a record, which may be a tombstone.
func (sn *Snapshot) Get(id ID) (Record, bool) {
	r := sn.tables.get(id)
	if r == nil {
		return Record{}, false
	}
	return *r, true
}

// Conflicts returns what was found contested when records were merged.
func (sn *Snapshot) Conflicts() []Conflict {
	out := slices.Collect(maps.Values(sn.conflicts))
	slices.SortFunc(out, func(a, b Conflict) int { return compareStrings(a.What, b.What) })
	return out
}

// View returns what the records mean. It is computed at the first call, from
// the last view that was and what changed since; see deriver.
func (sn *Snapshot) View() *View {
	sn.viewOnce.Do(func() { sn.view = sn.deriver.view(sn) })
	return sn.view
}

// All returns the records of T's kind that are not deleted, of every owner,
// sorted by class, owner and key.
func All[T any](sn *Snapshot) iter.Seq2[Record, *T] {
	return func(yield func(Record, *T) bool) {
		for r := range sn.tables.kind(kindOf(*new(T))) {
			if v, ok := r.val.(*T); ok && !r.Deleted && !yield(*r, v) {
				return
			}
		}
	}
}

// Tombstones returns the deleted records of a kind.
func Tombstones(sn *Snapshot, k Kind) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for r := range sn.tables.kind(k) {
			if r.Deleted && !yield(*r) {
				return
			}
		}
	}
}

// Lookup returns the value of a record that is there and not deleted.
func Lookup[T any](sn *Snapshot, id ID) (*T, bool) {
	r := sn.tables.get(id)
	if r == nil || r.Deleted {
		return nil, false
	}
	v, ok := r.val.(*T)
	return v, ok
}
