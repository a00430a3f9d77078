package state

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-memdb"
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
	txn       *memdb.Txn
	heads     map[NodeID]Head
	buckets   [NumBuckets]uint64
	live      map[NodeID]Live
	conflicts map[ID]Conflict

	viewOnce sync.Once
	view     *View
}

// Rev returns the revision, local to this node and growing with each change.
func (sn *Snapshot) Rev() uint64 { return sn.rev }

// Self returns the node whose tables these are.
func (sn *Snapshot) Self() NodeID { return sn.self }

// Live returns the liveness table. The caller must not change it.
func (sn *Snapshot) Live() map[NodeID]Live { return sn.live }

// Heads returns the head of each owner, sorted by owner.
func (sn *Snapshot) Heads() []Head {
	out := make([]Head, 0, len(sn.heads))
	for _, id := range slices.Sorted(maps.Keys(sn.heads)) {
		out = append(out, sn.heads[id])
	}
	return out
}

// Head returns the head of one owner; its zero value holds nothing.
func (sn *Snapshot) Head(owner NodeID) Head { return sn.heads[owner] }

// Delta returns what owner changed after from: at most limit records (0: no
// limit), oldest first. To says how far it goes. When from is below the
// owner's floor, the whole set is returned as a replacement, whatever the limit.
func (sn *Snapshot) Delta(owner NodeID, from Mark, limit int) Delta {
	head := sn.heads[owner]
	d := Delta{Owner: owner, From: from, To: head.Mark}
	if from.Compare(head.Floor) < 0 {
		d.Replace, d.From, d.Floor, limit = true, Mark{}, head.Floor, 0
		from = Mark{}
	}
	it, err := sn.txn.LowerBound(table, indexSync, ownerKey(owner, Mark{from.Epoch, from.Seq + 1}))
	if err != nil {
		return d
	}
	for o := it.Next(); o != nil; o = it.Next() {
		r := o.(*Record)
		if r.ID.Class != Owner || r.ID.Owner != owner {
			break
		}
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
	it, err := sn.txn.Get(table, indexSync+"_prefix", bucketPrefix(i))
	if err != nil {
		return nil
	}
	for o := it.Next(); o != nil; o = it.Next() {
		out = append(out, *o.(*Record))
	}
	return out
}

// Get returns a record, which may be a tombstone.
func (sn *Snapshot) Get(id ID) (Record, bool) {
	o, err := sn.txn.First(table, indexID, id.Bytes())
	if err != nil || o == nil {
		return Record{}, false
	}
	return *o.(*Record), true
}

// Conflicts returns what was found contested when records were merged.
func (sn *Snapshot) Conflicts() []Conflict {
	out := slices.Collect(maps.Values(sn.conflicts))
	slices.SortFunc(out, func(a, b Conflict) int { return compareStrings(a.What, b.What) })
	return out
}

// View returns what the records mean. It is computed at the first call.
func (sn *Snapshot) View() *View {
	sn.viewOnce.Do(func() { sn.view = derive(sn) })
	return sn.view
}

func (sn *Snapshot) scan(k Kind) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		it, err := sn.txn.Get(table, indexID+"_prefix", kindPrefix(k))
		if err != nil {
			return
		}
		for o := it.Next(); o != nil; o = it.Next() {
			if !yield(o.(*Record)) {
				return
			}
		}
	}
}

// All returns the records of T's kind that are not deleted, of every owner,
// sorted by class, owner and key.
func All[T any](sn *Snapshot) iter.Seq2[Record, *T] {
	return func(yield func(Record, *T) bool) {
		for r := range sn.scan(kindOf(*new(T))) {
			if v, ok := r.val.(*T); ok && !r.Deleted && !yield(*r, v) {
				return
			}
		}
	}
}

// Tombstones returns the deleted records of a kind.
func Tombstones(sn *Snapshot, k Kind) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for r := range sn.scan(k) {
			if r.Deleted && !yield(*r) {
				return
			}
		}
	}
}

// Lookup returns the value of a record that is there and not deleted.
func Lookup[T any](sn *Snapshot, id ID) (*T, bool) {
	r, ok := sn.Get(id)
	if !ok || r.Deleted {
		return nil, false
	}
	v, ok := r.val.(*T)
	return v, ok
}
