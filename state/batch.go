package state

import (
	"fmt"
	"maps"
	"time"

	"nodenet/state/lthash"
)

// batch is a transaction being built: the next snapshot, which nobody else
// sees before it is published.
type batch struct {
	s         *Store
	cur       *Snapshot // what it builds on; nil: nothing yet
	next      *Snapshot
	edits     []edit            // as out, with what was there before
	out       []Record          // applied, in order
	heads     map[NodeID]*entry // of next, that no snapshot shares yet
	saves     []Head            // for the Log to keep
	drops     []ID              // collected tombstones, for the Log to forget
	own       *lthash.Sum       // of our own set, when it changed and is to be signed
	begun     bool              // our history was begun anew
	contested bool              // next.conflicts is our own copy
	touched   bool              // something changed that is no record
}

func (s *Store) begin(cur *Snapshot) *batch {
	return &batch{s: s, cur: cur, next: cur.successor()}
}

// publish makes the batch the current snapshot and tells the feeds.
func (s *Store) publish(b *batch) {
	if len(b.out) == 0 && !b.touched && s.cur.Load() != nil {
		return
	}
	b.next.rev++
	s.deriver.note(b.next.rev, b.edits)
	b.next.asOf = s.clock.Next()
	s.cur.Store(b.next)
	s.feedsMu.Lock()
	for f := range s.feeds {
		f.add(b.out)
	}
	s.feedsMu.Unlock()
}

// snapshot is the state with what the batch did so far.
func (b *batch) snapshot() *Snapshot {
	b.heads = nil // shared from now on
	sn := b.next.successor()
	sn.base, sn.pending = b.cur, b.edits[:len(b.edits):len(b.edits)]
	return sn
}

func (b *batch) get(id ID) *Record {
	return b.next.tables.get(id)
}

// put stores a record unconditionally and keeps marks and buckets true. The
// owner's sum is no longer known, and its signature, if the mark was raised,
// no longer that of its head.
func (b *batch) put(r *Record) {
	if r.ID.Class == Owner {
		e := b.edit(r.ID.Owner)
		e.sum.Store(nil)
		if m := r.Version.mark(); e.head.Mark.Compare(m) < 0 {
			e.head.Mark, e.head.Hash, e.head.Sig = m, nil, nil
		}
	}
	old := b.next.tables.put(r)
	if r.ID.counted() {
		if old != nil {
			b.next.buckets[r.bucket] ^= recordHash(old)
		}
		b.next.buckets[r.bucket] ^= recordHash(r)
	}
	b.edits = append(b.edits, edit{old, r})
	b.out = append(b.out, *r)
}

func (b *batch) remove(r *Record) {
	b.next.tables.remove(r)
	if r.ID.counted() {
		b.next.buckets[r.bucket] ^= recordHash(r)
	}
	b.touched = true
}

// write runs one Write's function and applies its ops, or none of them.
func (b *batch) write(r *request) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	ops, err := r.write(b.snapshot())
	if err != nil {
		return err
	}
	now := b.s.clock.wall().Time().Unix()
	recs := make([]*Record, 0, len(ops))
	for _, op := range ops {
		rec, err := b.record(op, now)
		if err != nil {
			return err
		}
		if rec != nil {
			recs = append(recs, rec)
		}
	}
	// Versions are given only now that nothing can fail.
	for _, rec := range recs {
		if rec.ID.Class == Owner {
			if !b.s.wrote.Swap(true) {
				b.s.began = max(b.s.epoch.Load(), b.head(b.s.self).Mark.Epoch)
			}
			m := b.head(b.s.self).Mark
			if e := b.s.epoch.Load(); e > m.Epoch {
				m = Mark{Epoch: e}
			}
			rec.Version = Version{Epoch: m.Epoch, Seq: m.Seq + 1}
			b.tally(rec)
		} else {
			rec.Version.HLC, rec.Version.Node = b.s.clock.Next(), b.s.self
			old := b.get(rec.ID)
			if old != nil && rec.Version.HLC <= old.Version.HLC {
				// Whoever wrote that has a clock beyond MaxSkew, which ours
				// does not follow. What our caller is told is done must win
				// on every node all the same.
				rec.Version.HLC = old.Version.HLC + 1
			}
			if rec.ID.Class == Cluster {
				rec.Base = baseOf(old)
				b.settled(rec)
			}
			if rec.ID.Class != Cluster && rec.Version.Gen == 0 {
				rec.Version.Gen = 1
				if old != nil {
					rec.Version.Gen = old.Version.Gen + 1
				}
			}
		}
		b.put(rec)
	}
	return nil
}

func (b *batch) record(op Op, now int64) (*Record, error) {
	rec := &Record{ID: ID{Class: op.Class, Kind: op.Kind, Key: op.Key}, Time: now, Deleted: op.Delete}
	if op.Class == Owner {
		rec.ID.Owner = b.s.self
	}
	if err := rec.ID.Validate(); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	old := b.get(rec.ID)
	if op.Delete {
		if old == nil || old.Deleted {
			return nil, nil
		}
		rec.Version.Gen = op.Gen
		return rec, nil
	}
	if k := kindOf(op.Value); k != op.Kind {
		return nil, fmt.Errorf("write %s: value is of kind %q", rec.ID, k)
	}
	v, err := Encode(op.Value)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", rec.ID, err)
	}
	rec.Value, rec.Version.Gen = v, op.Gen
	if err := rec.decode(); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	b.s.interner.record(rec)
	if old != nil && !old.Deleted && op.Gen == 0 && string(old.Value) == string(v) {
		return nil, nil // nothing new to say
	}
	return rec, nil
}

// merge applies records of the other classes by their order. What is not held
// and not newer than limit is left out; see stale.
func (b *batch) merge(recs []Record, limit HLC) int {
	n := 0
	for i := range recs {
		r := recs[i]
		if !r.ID.counted() {
			continue
		}
		if !b.s.clock.Observe(r.Version.HLC) {
			b.s.logger.Warn("record from the future: its writer's clock is wrong",
				"record", r.ID.String(), "node", string(r.Version.Node), "time", r.Version.HLC.Time())
		}
		old := b.get(r.ID)
		if old != nil {
			b.contest(old, &r)
			b.compete(old, &r)
			if Compare(r.ID.Class, old.Version, r.Version) >= 0 {
				continue
			}
		} else if r.ID.Class != Ring && r.Version.HLC <= limit {
			continue
		}
		b.put(&r)
		n++
	}
	return n
}

// contest notes two versions of one ring record that name different owners in
// one generation. The keys of ipam's ranges hold their owner, so that there two
// claims are two records, which ipam finds; this catches a writer that does not
// keep to that.
// By the rules of the ring that takes a node that acted without owning.
func (b *batch) contest(old, r *Record) {
	if r.ID.Class != Ring || old.Version.Gen != r.Version.Gen || old.Version == r.Version {
		return
	}
	a, ok1 := old.val.(*Range)
	z, ok2 := r.val.(*Range)
	if !ok1 || !ok2 || a.Owner == z.Owner && a.RingID == z.RingID {
		return
	}
	win, lose := a, z
	if Compare(Ring, old.Version, r.Version) < 0 {
		win, lose = z, a
	}
	if !b.contested {
		b.next.conflicts, b.contested = maps.Clone(b.next.conflicts), true
	}
	b.next.conflicts[r.ID] = Conflict{
		What:   fmt.Sprintf("range %s", r.ID.Key),
		Winner: string(win.Owner), Loser: string(lose.Owner),
		Detail: fmt.Sprintf("generation %d was written twice (rings %s and %s)", r.Version.Gen, win.RingID, lose.RingID),
	}
	b.touched = true
}

// collect drops owner-scoped tombstones from before t. The Log forgets them
// once it holds all that the heads speak of; see Store.drop.
func (b *batch) collect(t time.Time) (int, error) {
	var gone []*Record
	for r := range b.next.tables.owned.all() {
		if r.Deleted && r.Time < t.Unix() {
			gone = append(gone, r)
		}
	}
	if len(gone) == 0 {
		return 0, nil
	}
	for _, r := range gone {
		if e := b.edit(r.ID.Owner); e.head.Floor.Compare(r.Version.mark()) < 0 {
			e.head.Floor = r.Version.mark()
		}
		b.remove(r)
		b.drops = append(b.drops, r.ID)
	}
	return len(gone), nil
}
