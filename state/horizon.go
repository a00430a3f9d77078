package state

import (
	"context"
	"time"
)

// The tombstones of Cluster and Lease records are collected behind a horizon:
// a clock reading up to which every node that counts is known to hold all that
// was ever written. The proof has three parts.
//
//   - A node's extent (Synced) is a reading up to which it holds what every
//     other node wrote. Package gossip keeps it, from complete exchanges only.
//   - The horizon is not above any node's extent (NextHorizon). So what is older
//     and deleted is deleted on all of them, and nobody can bring it back.
//   - A replica that is not counted among them (it was forgotten, its disk is
//     that of an earlier day, it is new) does not follow the horizon before a
//     peer has told it all that is older. What it holds and that peer does not,
//     was deleted while it was away: it goes. What a forgotten node wrote after
//     that and nobody knows, it writes anew: an old version of it would come to
//     nodes that say already that they hold all that is so old.
//
// The horizon is kept as a record of this replica's own: it does not travel
// with the others, and no bucket counts it. Ring records have no tombstones.

// KindHorizon is the kind of the record that holds a replica's horizon. It
// exists once, under the key "local", and is never sent.
const KindHorizon Kind = "horizon"

// KindSynced: Owner; "self"; Synced.
const KindSynced Kind = "synced"

// Horizon is what one replica knows of how far tombstones are collected. The
// zero value collects nothing.
type Horizon struct {
	// Before is the horizon: no tombstone up to it is kept or taken.
	Before HLC `cbor:"1,keyasint,omitempty"`
	// Extent is how far the records on this disk are known to be complete. It
	// is never taken from a peer: a restored disk has that of its day.
	Extent HLC `cbor:"2,keyasint,omitempty"`
	// Forgotten is the epoch up to which this node was forgotten when it last
	// caught up with those who did; see Forgotten.
	Forgotten uint64 `cbor:"3,keyasint,omitempty"`
}

// Synced says that its owner holds everything that any node of the cluster
// wrote up to Through.
type Synced struct {
	Through HLC `cbor:"1,keyasint"`
}

var horizonID = ID{Class: Cluster, Kind: KindHorizon, Key: "local"}

// counted reports that a record is compared between replicas.
func (id ID) counted() bool { return id.Class != Owner && id.Kind != KindHorizon }

// Horizon returns this replica's horizon.
func (sn *Snapshot) Horizon() Horizon {
	if h, ok := Lookup[Horizon](sn, horizonID); ok {
		return *h
	}
	return Horizon{}
}

// AsOf returns a clock reading with the property that everything that this
// node wrote up to it is in the snapshot.
func (sn *Snapshot) AsOf() HLC { return sn.asOf }

// HLCAt returns the first reading at a time.
func HLCAt(t time.Time) HLC { return HLC(uint64(max(t.UnixMilli(), 0)) << 16) }

// absence is how long after a node left or was forgotten its last words may
// still be on their way to the first of the others.
const absence = 10 * time.Minute

// Members returns the nodes whose extent counts: those that have neither left
// nor been forgotten. The others count up to the returned reading: an extent
// below it must reach to what they wrote as well.
func (sn *Snapshot) Members() (members []NodeID, absent map[NodeID]HLC) {
	absent = map[NodeID]HLC{}
	gone := sn.Gone()
	for r, n := range allOf[Node](sn) {
		switch id := r.ID.Owner; {
		case id == sn.self:
			members = append(members, id)
		case gone.Node(id):
		case n.Left:
			absent[id] = HLCAt(time.Unix(r.Time, 0).Add(absence))
		default:
			members = append(members, id)
		}
	}
	for r, f := range allOf[Forgotten](sn) {
		if id := NodeID(r.ID.Key); gone.Node(id) {
			absent[id] = HLCAt(time.Unix(f.At, 0).Add(absence))
		}
	}
	return members, absent
}

// NextHorizon returns how far the horizon may be raised: what is younger than
// age stays, and so does what some node is not known to hold.
func (sn *Snapshot) NextHorizon(now time.Time, age time.Duration) HLC {
	h := HLCAt(now.Add(-age))
	members, _ := sn.Members()
	for _, id := range members {
		s, ok := Lookup[Synced](sn, ID{Class: Owner, Kind: KindSynced, Owner: id, Key: "self"})
		if !ok {
			return 0
		}
		h = min(h, s.Through)
	}
	return h
}

// Tick makes the newest snapshot's AsOf current.
func (s *Store) Tick() error {
	return s.do(context.Background(), &request{step: func(b *batch) error { b.touched = true; return nil }})
}

// Extend says that this replica holds everything up to a reading. It is kept
// on disk beside the records that it speaks of.
func (s *Store) Extend(through HLC) error {
	return s.step(func(b *batch) error {
		h := b.horizon()
		if through > h.Extent {
			h.Extent = through
			b.setHorizon(h)
		}
		return nil
	})
}

// RaiseHorizon collects the tombstones up to a reading and refuses them from
// now on. Who calls it knows that this replica holds all that is older. It
// returns how many were collected. A lower horizon than the present one
// collects what is left behind that.
func (s *Store) RaiseHorizon(to HLC) (int, error) {
	n := 0
	err := s.step(func(b *batch) error {
		h := b.horizon()
		if to > h.Before {
			h.Before, h.Extent = to, max(h.Extent, to)
			b.setHorizon(h)
			s.clock.Observe(to)
		}
		n = b.sweep(h.Before)
		return nil
	})
	return n, err
}

// CatchUp makes the store refuse records that are older than a peer's horizon
// and not held: they may be what was deleted while this replica was away. What
// does count comes by ReplaceBucket.
func (s *Store) CatchUp(to HLC) error {
	return s.step(func(*batch) error { s.catching = max(s.catching, to); return nil })
}

// ReplaceBucket takes over a peer's whole bucket, while catching up with its
// horizon: the records are merged, and what is held here, is not newer than
// the horizon and was not among them, is dropped for good. With
// anew, what is newer here than what the peer holds is written anew. It returns
// how many records were new or dropped.
func (s *Store) ReplaceBucket(bucket int, horizon HLC, recs []Record, anew bool) (int, error) {
	theirs := make(map[ID]Version, len(recs))
	for i := range recs {
		r := &recs[i]
		if err := r.ID.Validate(); err != nil {
			return 0, err
		}
		s.understand(r)
		theirs[r.ID] = r.Version
	}
	n := 0
	err := s.step(func(b *batch) error {
		n = b.merge(recs, 0)
		var gone, newer []*Record
		for r := range b.next.tables.inBucket(bucket) {
			v, held := theirs[r.ID]
			switch {
			case r.ID.Class == Ring || !r.ID.counted():
			case !held && r.Version.HLC <= horizon:
				gone = append(gone, r)
			case anew && (!held || Compare(r.ID.Class, v, r.Version) < 0):
				newer = append(newer, r)
			}
		}
		for _, r := range newer {
			x := *r
			x.Version.HLC, x.Version.Node, x.Time = max(s.clock.Next(), r.Version.HLC+1), s.self, s.clock.wall().Time().Unix()
			b.put(&x)
		}
		for _, r := range gone {
			// As a tombstone first: the feeds and the views hear of it.
			t := &Record{ID: r.ID, Version: r.Version, Time: r.Time, Deleted: true}
			t.Version.Node = ""
			b.put(t)
			b.forget(t)
		}
		n += len(gone)
		return nil
	})
	return n, err
}

// Returned says that this node caught up after it was forgotten.
func (s *Store) Returned(epoch uint64) error {
	return s.step(func(b *batch) error {
		if h := b.horizon(); epoch > h.Forgotten {
			h.Forgotten = epoch
			b.setHorizon(h)
		}
		return nil
	})
}

// step runs fn as a part of a commit.
func (s *Store) step(fn func(*batch) error) error {
	r := &request{step: fn, durable: true}
	if err := s.do(context.Background(), r); err != nil {
		return err
	}
	return r.err
}

func (b *batch) horizon() Horizon {
	if r := b.get(horizonID); r != nil {
		if h, ok := r.val.(*Horizon); ok {
			return *h
		}
	}
	return Horizon{}
}

func (b *batch) setHorizon(h Horizon) {
	v, err := Encode(h)
	if err != nil {
		return // two numbers are always encodable
	}
	b.put(&Record{ID: horizonID, Version: Version{HLC: max(h.Before, h.Extent)}, Value: v, val: &h})
}

// stale is the reading up to which records that are not held must not come
// back: this replica holds all that is so old and not deleted, or, while it
// catches up, a single peer says what is. What was asked for comes all the same.
func (b *batch) stale(asked bool) HLC {
	if asked {
		return b.horizon().Before
	}
	return max(b.horizon().Before, b.s.catching)
}

// sweep removes the tombstones up to the horizon.
func (b *batch) sweep(h HLC) int {
	if h == 0 {
		return 0
	}
	var gone []*Record
	for r := range b.next.tables.shared.all() {
		if r.Deleted && r.ID.Class != Ring && r.Version.HLC <= h {
			gone = append(gone, r)
		}
	}
	for _, r := range gone {
		b.forget(r)
	}
	return len(gone)
}

// forget removes a record from memory and, after the commit, from the Log.
func (b *batch) forget(r *Record) {
	b.remove(r)
	b.drops = append(b.drops, r.ID)
}
