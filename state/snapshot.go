package state

import (
	"iter"
	"maps"
	"net/netip"
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
	// Hash stands for the owner's live records at Mark (see lthash), Sig is
	// the owner's signature of ID, Mark and Hash, Key its public key, of which
	// the ID is the hash. All are empty where the owner's version does not sign.
	Hash []byte `cbor:"4,keyasint,omitempty"`
	Sig  []byte `cbor:"5,keyasint,omitempty"`
	Key  []byte `cbor:"6,keyasint,omitempty"`
}

// Live is what membership says about one node.
type Live struct {
	State   Liveness
	Since   time.Time
	Serving bool
	// Flapping: it died and came back again and again. It serves, but
	// services prefer backends elsewhere while there are any.
	Flapping bool
	// Addr is where an authenticated stream of it comes from; invalid: there is none.
	Addr netip.Addr
}

// Snapshot is the tables at one revision. It is immutable and safe for
// concurrent use. Records that it returns must not be changed.
type Snapshot struct {
	rev       uint64
	asOf      HLC // see AsOf
	self      NodeID
	tables    tables
	heads     tree[*entry]
	buckets   [NumBuckets]uint64
	live      map[NodeID]Live
	liveRev   uint64 // the revision at which live was last replaced
	conflicts map[ID]Conflict
	losses    []Loss

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
		rev: sn.rev, asOf: sn.asOf, self: sn.self, live: sn.live, liveRev: sn.liveRev, buckets: sn.buckets, conflicts: sn.conflicts, losses: sn.losses,
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
	for e := range sn.heads.all() {
		out = append(out, e.head)
	}
	return out
}

// Head returns the head of one owner; its zero value holds nothing.
func (sn *Snapshot) Head(owner NodeID) Head {
	if e := sn.entry(owner); e != nil {
		return e.head
	}
	return Head{}
}

// entry returns the entry of one owner, or nil.
func (sn *Snapshot) entry(owner NodeID) *entry {
	e, _ := sn.heads.get(&entry{head: Head{Owner: owner}})
	return e
}

// Delta returns what owner changed after from: at most limit records (0: no
// limit), oldest first. To says how far it goes. When from is below the
// owner's floor, the whole set is returned as a replacement, whatever the limit.
// Only a delta that goes up to the head carries the owner's signature.
func (sn *Snapshot) Delta(owner NodeID, from Mark, limit int) Delta {
	head := sn.Head(owner)
	d := Delta{Owner: owner, From: from, To: head.Mark, Hash: head.Hash, Key: head.Key, Sig: head.Sig}
	if from.Compare(head.Floor) < 0 {
		d.Replace, d.From, d.Floor, limit = true, Mark{}, head.Floor, 0
		from = Mark{}
	}
	sn.walk(&d, from, limit, func(r *Record) bool {
		// A replacement implies it; see gone for its odd version.
		return !d.Replace || !r.Deleted || r.Version.mark().Compare(head.Floor) > 0
	})
	return d
}

// Part returns at most limit records of owner that were written after from, as
// a part of its history, or with whole as a part of its whole set. Before the
// last part, More says that the signed end is still to come. Parts of a whole
// set hold tombstones too: who gets them over some time must hear what was
// deleted meanwhile.
func (sn *Snapshot) Part(owner NodeID, from Mark, limit int, whole bool) Delta {
	head := sn.Head(owner)
	d := Delta{Owner: owner, From: from, To: head.Mark, Replace: whole, Hash: head.Hash, Key: head.Key, Sig: head.Sig}
	if whole {
		d.Floor = head.Mark
	}
	sn.walk(&d, from, limit, func(*Record) bool { return true })
	d.More = d.To != head.Mark
	return d
}

// walk adds the records that were written after from to a delta, and cuts it
// off where there are more than limit.
func (sn *Snapshot) walk(d *Delta, from Mark, limit int, want func(*Record) bool) {
	for r := range sn.tables.history(d.Owner, Mark{from.Epoch, from.Seq + 1}) {
		if !want(r) {
			continue
		}
		if limit > 0 && len(d.Records) == limit {
			d.To = d.Records[limit-1].Version.mark()
			d.Hash, d.Key, d.Sig = nil, nil, nil
			break
		}
		d.Records = append(d.Records, *r)
	}
}

// Buckets returns the hash of each bucket of the non-owner classes. Two
// replicas hold the same records there when their buckets are equal.
func (sn *Snapshot) Buckets() [NumBuckets]uint64 { return sn.buckets }

// Bucket returns the records of one bucket, tombstones included.
func (sn *Snapshot) Bucket(i int) []Record {
	var out []Record
	for r := range sn.tables.inBucket(i) {
		if r.ID.counted() {
			out = append(out, *r)
		}
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

// allOf is All without copies of the records.
func allOf[T any](sn *Snapshot) iter.Seq2[*Record, *T] {
	return func(yield func(*Record, *T) bool) {
		for r := range sn.tables.kind(kindOf(*new(T))) {
			if v, ok := valueOf[T](r); ok && !yield(r, v) {
				return
			}
		}
	}
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
