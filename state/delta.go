package state

import (
	"errors"
	"fmt"
	"slices"

	"nodenet/state/lthash"
)

// Delta is a contiguous part of one owner's history: what changed after From
// up to and including To. Replace means that Records is the owner's whole set
// at To and From does not count; with a signature, a zero From means the same.
//
// A signed delta ends at a head that its owner signed; Hash, Key and Sig are
// that head's. Parts that end before it carry none: see gossip, which puts
// them together before it merges them.
type Delta struct {
	Owner   NodeID   `cbor:"1,keyasint"`
	From    Mark     `cbor:"2,keyasint,omitempty"`
	To      Mark     `cbor:"3,keyasint"`
	Replace bool     `cbor:"4,keyasint,omitempty"`
	Records []Record `cbor:"5,keyasint,omitempty"`
	Floor   Mark     `cbor:"7,keyasint,omitempty"` // with Replace: the sender's floor
	Sig     []byte   `cbor:"6,keyasint,omitempty"`
	Hash    []byte   `cbor:"8,keyasint,omitempty"`
	Key     []byte   `cbor:"9,keyasint,omitempty"`
	More    bool     `cbor:"10,keyasint,omitempty"` // the signed end comes in a later part
}

// errMoved: the tables changed while a delta was being checked.
var errMoved = errors.New("tables changed meanwhile")

// checked is a delta of which everything was verified that takes long.
type checked struct {
	*Delta
	signed bool
	whole  bool
	base   *entry      // what a signed delta that is not whole was checked against
	sum    *lthash.Sum // of the set afterwards
	Merged             // what became of it
}

// MergeDelta is MergeFrom for a delta of which nobody knows who sent it.
func (s *Store) MergeDelta(d Delta) (int, error) { return s.MergeFrom("", d) }

// MergeFrom applies a part of an owner's history that a peer sent, whose
// identity was verified; an empty peer stands for any. It returns how many
// records were new. It may normalise d.Records in place.
//
// ErrGap means that something between our head and d.From is missing,
// ErrDiffers that the result would not be what the owner signed, ErrForged
// that it was not signed by its owner, ErrUnsigned that it was not signed and
// the peer is not the owner. Nothing is applied then. A Store without a key of
// its own takes unsigned deltas from anybody.
func (s *Store) MergeFrom(peer NodeID, d Delta) (int, error) {
	m := s.MergeAll(peer, []Delta{d})[0]
	return m.Applied, m.Err
}

// inspect checks a delta's shape. What a signature cannot vouch for is made
// harmless: a tombstone's time must not keep it from being collected, and a
// whole set has none.
func (s *Store) inspect(c *checked) error {
	d := c.Delta
	now := s.clock.wall().Time().Unix()
	from := d.From
	if d.Replace || c.whole {
		from = Mark{}
	}
	ids, marks := make(map[ID]struct{}, len(d.Records)), make(map[Mark]struct{}, len(d.Records))
	for i := range d.Records {
		r := d.Records[i]
		m := r.Version.mark()
		if r.ID.Class != Owner || r.ID.Owner != d.Owner {
			return fmt.Errorf("record %s does not belong: %w", r.ID, ErrForged)
		}
		if err := r.ID.Validate(); err != nil {
			return fmt.Errorf("%w: %w", err, ErrForged)
		}
		if m.Compare(from) <= 0 || m.Compare(d.To) > 0 {
			return fmt.Errorf("record %s of %d.%d is not of the time from %d.%d to %d.%d: %w",
				r.ID, m.Epoch, m.Seq, from.Epoch, from.Seq, d.To.Epoch, d.To.Seq, ErrForged)
		}
		ids[r.ID], marks[m] = struct{}{}, struct{}{}
		if len(ids) != i+1 || len(marks) != i+1 {
			return fmt.Errorf("record %s or its version is there twice: %w", r.ID, ErrForged)
		}
		if r.Deleted {
			r.Time, r.Value = min(r.Time, now), nil
		}
		r.Version = Version{Epoch: m.Epoch, Seq: m.Seq} // the rest is not signed and means nothing
		d.Records[i] = r
	}
	if c.whole {
		// A copy: the caller may pass its own on.
		d.Records = slices.DeleteFunc(slices.Clone(d.Records), func(r Record) bool { return r.Deleted })
	}
	for i := range d.Records {
		s.understand(&d.Records[i])
	}
	return nil
}

// tally computes the sum of the set that d leads to and compares it with the
// signed hash.
func (c *checked) tally(sn *Snapshot) error {
	var add, sub []*Record
	var base lthash.Sum
	if c.base = sn.entry(c.Owner); !c.whole {
		base = *sumOf(sn, c.base)
	}
	var mark Mark
	if c.base != nil {
		mark = c.base.head.Mark
	}
	for i := range c.Records {
		r := &c.Records[i]
		if !c.whole {
			if r.Version.mark().Compare(mark) <= 0 {
				if o := sn.tables.at(c.Owner, r.Version.mark()); o != nil && o.ID != r.ID {
					return fmt.Errorf("version of %s is that of another record here: %w", r.ID, ErrDiffers)
				}
			}
			if old := sn.tables.get(r.ID); old != nil {
				if Compare(Owner, old.Version, r.Version) >= 0 {
					continue
				}
				sub = append(sub, old)
			}
		}
		add = append(add, r)
	}
	c.sum = sumRecords(base, add, sub)
	if string(c.sum.Digest()) != string(c.Hash) {
		return ErrDiffers
	}
	return nil
}

// delta applies a part of one owner's history.
func (b *batch) delta(c *checked) (int, error) {
	d := c.Delta
	mark := b.head(d.Owner).Mark
	if d.Owner == b.s.self && b.s.wrote.Load() && d.To.Compare(mark) > 0 {
		return 0, fmt.Errorf("merge own records up to epoch %d: %w", d.To.Epoch, ErrForeignWriter)
	}
	if d.To.Compare(mark) <= 0 {
		return 0, nil // old news by now
	}
	if !d.Replace && d.From.Compare(mark) > 0 {
		return 0, ErrGap
	}
	var n int
	switch {
	case c.whole:
		n = b.replace(d)
	case c.signed && b.entry(d.Owner) != c.base:
		return 0, errMoved
	default:
		if n = b.union(d); d.Replace {
			n += b.retire(d)
		}
	}
	e := b.edit(d.Owner)
	e.sum.Store(c.sum) // nil where it is not known
	e.head.Mark, e.head.Hash, e.head.Key, e.head.Sig = d.To, d.Hash, d.Key, d.Sig
	switch {
	case c.whole:
		// A whole set says nothing of deletions: from now on we lack those below it.
		e.head.Floor = d.To
	case d.Replace && e.head.Floor.Compare(d.Floor) < 0:
		e.head.Floor = d.Floor // we lack what the sender lacks
	}
	if c.signed || d.Replace {
		b.saves = append(b.saves, e.head)
	}
	b.touched = true
	if d.Owner == b.s.self && b.s.loaded.Compare(d.To) < 0 {
		b.s.loaded = d.To // a peer gave us our past back
	}
	return n, nil
}

// union stores what is newer than what is held.
func (b *batch) union(d *Delta) (n int) {
	for i := range d.Records {
		r := d.Records[i]
		if old := b.get(r.ID); old != nil && Compare(Owner, old.Version, r.Version) >= 0 {
			continue
		}
		b.put(&r)
		n++
	}
	return n
}

// retire deletes what an unsigned replacement does not name.
func (b *batch) retire(d *Delta) (n int) {
	keep := make(map[ID]bool, len(d.Records))
	for i := range d.Records {
		keep[d.Records[i].ID] = true
	}
	for _, r := range slices.Collect(b.next.tables.history(d.Owner, Mark{})) {
		if !keep[r.ID] && r.Version.mark().Compare(d.To) <= 0 {
			b.put(gone(r))
			n++
		}
	}
	return n
}

// replace makes an owner's live records exactly those of d.
func (b *batch) replace(d *Delta) (n int) {
	want, marks := make(map[ID]*Record, len(d.Records)), make(map[Mark]bool, len(d.Records))
	for i := range d.Records {
		r := d.Records[i]
		want[r.ID], marks[r.Version.mark()] = &r, true
	}
	held := slices.Collect(b.next.tables.history(d.Owner, Mark{}))
	var left []*Record
	for _, r := range held {
		w := want[r.ID]
		switch {
		case w != nil && same(r, w):
			delete(want, r.ID)
		case w != nil:
		case marks[r.Version.mark()]:
			// Where our tables were damaged, two records may have come to
			// share a version, which nobody would take from us. The disk, the
			// feeds and the views hear of it all the same.
			b.remove(r)
			t := gone(r)
			b.out, b.edits = append(b.out, *t), append(b.edits, edit{r, t})
			b.drops = append(b.drops, r.ID)
			n++
		case !r.Deleted:
			left = append(left, r)
		}
	}
	for _, r := range left {
		b.put(gone(r))
	}
	for i := range d.Records {
		if r := want[d.Records[i].ID]; r != nil {
			b.put(r)
			n++
		}
	}
	return n + len(left)
}

// gone is the tombstone of a record that a replacement does not name: with the
// old version, so that the disk and the feeds hear of it, and nobody else.
func gone(r *Record) *Record {
	return &Record{ID: r.ID, Version: r.Version, Time: r.Time, Deleted: true}
}

func same(a, b *Record) bool {
	return a.Version == b.Version && a.Deleted == b.Deleted && a.Time == b.Time && string(a.Value) == string(b.Value)
}
