package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sync/errgroup"

	"nodenet/state"
)

// Tables is what replication needs of a state.Store.
type Tables interface {
	Snapshot() *state.Snapshot
	MergeDelta(state.Delta) (int, error)
	Merge([]state.Record, bool) (int, error)
	Reissue(state.Mark) (int, error)
}

const (
	roundBudget   = 1 << 20   // bytes that one side sends in one exchange
	chunkBytes    = 256 << 10 // wanted size of a frame with records
	chunkRecords  = 512
	forwardLimit  = 64 // records: more than that is left to anti-entropy
	maxPendingSet = 64 << 20
)

// replica is the replication protocol without sockets: frames in, frames
// out. Its only state is in the Tables and, per connection, in a session.
//
//	A ── root ───────────────► B     equal: ◄─ same ─
//	A ◄─ digest ──────────────  B
//	A ── deltas, records ────► B     what B lacks
//	A ── digest (answer) ────► B     now B holds all that A had
//	A ◄─ deltas, records ─────  B     what A lacks
//	A ◄─ done ────────────────  B     now A holds all that B had
//
// A side that exceeds its budget says More, and A begins again.
type replica struct {
	tables Tables
	budget int         // bytes; 0: roundBudget
	fresh  func() bool // we have never held all of the tables; nil: we have
}

// session is what one connection remembers between frames.
type session struct {
	more    bool         // our last digest held something back
	pending *state.Delta // a replacement that is still arriving
	size    int          // of pending, bytes
}

// outcome is what a frame led to.
type outcome struct {
	reply   []frame
	applied int     // records that were new
	equal   bool    // both sides hold the same
	synced  bool    // we hold all that the peer had
	proven  bool    // and the peer is not fresh itself
	fresh   *push   // what to forward to others
	errs    []error // refused records; the rest was applied
}

// start returns the frame that opens an exchange.
func (r *replica) start() frame { return &root{Sum: rootOf(r.tables.Snapshot()), Fresh: r.isFresh()} }

func (r *replica) isFresh() bool { return r.fresh != nil && r.fresh() }

// rootOf is the hash of everything that two equal replicas agree on. Floors
// are not part of it: each replica collects tombstones in its own time.
func rootOf(sn *state.Snapshot) []byte {
	h := sha256.New()
	var b []byte
	for _, hd := range sn.Heads() {
		if hd.Mark == (state.Mark{}) {
			continue
		}
		b = append(b[:0], hd.Owner...)
		b = append(b, 0)
		b = binary.BigEndian.AppendUint64(b, hd.Mark.Epoch)
		b = binary.BigEndian.AppendUint64(b, hd.Mark.Seq)
		h.Write(b)
	}
	b = b[:0]
	for _, v := range sn.Buckets() {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	h.Write(b)
	return h.Sum(nil)
}

func digestOf(sn *state.Snapshot) *digest {
	buckets := sn.Buckets()
	return &digest{Heads: sn.Heads(), Buckets: buckets[:]}
}

// handle takes one frame of the replication part of the protocol.
func (r *replica) handle(s *session, f frame) outcome {
	var o outcome
	switch f := f.(type) {
	case *root:
		sn := r.tables.Snapshot()
		if string(rootOf(sn)) == string(f.Sum) {
			o.equal, o.synced, o.proven = true, true, !f.Fresh
			o.reply = []frame{&same{Fresh: r.isFresh()}}
		} else {
			o.reply = []frame{digestOf(sn)}
		}
	case *same:
		o.equal, o.synced, o.proven = true, true, !f.Fresh
	case *digest:
		r.remember(f)
		sn := r.tables.Snapshot()
		reply, more := r.missing(sn, f)
		if f.Answer {
			o.synced, o.proven = !f.More, !f.More && !f.Fresh
			o.reply = append(reply, &done{More: more, Fresh: r.isFresh()})
		} else {
			d := digestOf(sn)
			d.Answer, d.More, d.Fresh = true, more, r.isFresh()
			s.more = more
			o.reply = append(reply, d)
		}
	case *done:
		o.synced, o.proven = !f.More, !f.More && !f.Fresh
		if f.More || s.more {
			o.reply = []frame{r.start()}
		}
		s.more = false
	case *deltas:
		r.deltas(s, f, &o)
	case *records:
		r.apply(&push{Records: f.Records}, &o)
	case *push:
		if r.apply(f, &o) {
			o.reply = []frame{r.start()}
		}
	}
	return o
}

// remember looks at what a peer holds of this node's own history: it may be
// more than our disk does.
func (r *replica) remember(d *digest) {
	self := r.tables.Snapshot().Self()
	for _, h := range d.Heads {
		if h.Owner != self {
			continue
		}
		_, _ = r.tables.Reissue(h.Mark) // the store tells of it, and the next digest tries again
	}
}

// missing returns frames with what the sender of d lacks, within the budget.
func (r *replica) missing(sn *state.Snapshot, d *digest) (out []frame, more bool) {
	budget := r.budget
	if budget == 0 {
		budget = roundBudget
	}
	p := packer{}
	theirs := make(map[state.NodeID]state.Mark, len(d.Heads))
	for _, h := range d.Heads {
		theirs[h.Owner] = h.Mark
	}
owners:
	for _, h := range sn.Heads() {
		for from := theirs[h.Owner]; from.Compare(h.Mark) < 0; {
			if p.total >= budget {
				more = true
				break owners
			}
			next := p.delta(sn, h.Owner, from)
			if next.Compare(from) <= 0 {
				break // cannot happen with a sound store: never loop on it
			}
			from = next
		}
	}
	ours := sn.Buckets()
	if len(d.Buckets) == len(ours) {
		// Not always from the first: a bucket that cannot converge must not
		// eat the whole budget each time.
		off := rand.IntN(len(ours))
		for k := range ours {
			i := (off + k) % len(ours)
			if d.Buckets[i] == ours[i] {
				continue
			}
			if p.total >= budget {
				more = true
				break
			}
			p.records(sn.Bucket(i))
		}
	}
	return p.finish(), more
}

// deltas applies a deltas frame, putting the parts of a large replacement
// together first.
func (r *replica) deltas(s *session, f *deltas, o *outcome) {
	list := f.Deltas
	if p := s.pending; p != nil && (len(list) != 1 || !continues(p, &list[0])) {
		// The rest was lost in a full queue: what came of it is no whole set.
		s.pending, s.size = nil, 0
		o.errs = append(o.errs, fmt.Errorf("merge replacement of %s: its end did not come", p.Owner.Short()))
	}
	if s.pending != nil || f.Partial {
		if len(list) != 1 || !list[0].Replace {
			o.errs = append(o.errs, errors.New("merge replacement: not a part of one"))
			return
		}
		if s.pending == nil {
			s.pending = &list[0]
		} else {
			s.pending.Records = append(s.pending.Records, list[0].Records...)
		}
		s.size += sizeOf(list[0].Records)
		if s.size > maxPendingSet {
			s.pending, s.size = nil, 0
			o.errs = append(o.errs, fmt.Errorf("merge replacement of %s: more than %d bytes", list[0].Owner.Short(), maxPendingSet))
			return
		}
		if f.Partial {
			return
		}
		list = []state.Delta{*s.pending}
		s.pending, s.size = nil, 0
	}
	r.apply(&push{Deltas: list}, o)
}

// continues reports whether d is a further part of the replacement p. Any other
// delta must not be taken for its end: the records in between would be deleted.
func continues(p, d *state.Delta) bool {
	return d.Replace && d.Owner == p.Owner && d.To == p.To && d.Floor == p.Floor
}

// apply merges what a frame carries and reports whether a gap showed that
// something older is missing.
func (r *replica) apply(f *push, o *outcome) (gap bool) {
	fresh := &push{Sent: f.Sent}
	n := 0
	for i, m := range r.mergeDeltas(f.Deltas) {
		d := f.Deltas[i]
		switch {
		case errors.Is(m.err, state.ErrGap):
			gap = true
		case m.err != nil:
			o.errs = append(o.errs, m.err)
		}
		if m.applied > 0 {
			o.applied += m.applied
			n += len(d.Records)
			if !d.Replace {
				fresh.Deltas = append(fresh.Deltas, d)
			}
		}
	}
	if len(f.Records) > 0 {
		applied, err := r.tables.Merge(f.Records, false)
		good := f.Records
		if err != nil {
			// One bad record refuses the batch: take them one by one.
			applied, good = 0, nil
			for i := range f.Records {
				k, err := r.tables.Merge(f.Records[i:i+1], false)
				if err != nil {
					o.errs = append(o.errs, err)
					continue
				}
				if k > 0 {
					good = append(good, f.Records[i])
				}
				applied += k
			}
		}
		if applied > 0 {
			o.applied += applied
			n += len(good)
			fresh.Records = good
		}
	}
	if n > 0 && n <= forwardLimit && len(fresh.Deltas)+len(fresh.Records) > 0 {
		o.fresh = fresh
	}
	return gap
}

type merged struct {
	applied int
	err     error
}

// mergeDeltas merges the deltas of different owners at the same time, so that
// the store can make them durable together; those of one owner in order.
func (r *replica) mergeDeltas(ds []state.Delta) []merged {
	out := make([]merged, len(ds))
	owners := map[state.NodeID][]int{}
	for i := range ds {
		owners[ds[i].Owner] = append(owners[ds[i].Owner], i)
	}
	var eg errgroup.Group
	eg.SetLimit(64)
	for _, list := range owners {
		eg.Go(func() error {
			for _, i := range list {
				out[i].applied, out[i].err = r.tables.MergeDelta(ds[i])
			}
			return nil
		})
	}
	eg.Wait()
	return out
}

// packer puts deltas and records into frames of a reasonable size.
type packer struct {
	out   []frame
	ds    []state.Delta
	rs    []state.Record
	dsize int
	rsize int
	total int
}

func sizeOf(recs []state.Record) int {
	n := 0
	for i := range recs {
		n += len(recs[i].Value) + len(recs[i].ID.Key) + 128
	}
	return n
}

// delta adds the next part of an owner's history and returns how far it goes.
func (p *packer) delta(sn *state.Snapshot, owner state.NodeID, from state.Mark) state.Mark {
	d := sn.Delta(owner, from, chunkRecords)
	size := sizeOf(d.Records)
	for limit := chunkRecords; size > chunkBytes && limit > 1 && !d.Replace; {
		limit = max(1, min(limit/2, len(d.Records)/2))
		d = sn.Delta(owner, from, limit)
		size = sizeOf(d.Records)
	}
	p.total += size + 64
	if d.Replace && size > chunkBytes {
		p.flushDeltas()
		p.replacement(d)
		return d.To
	}
	if p.dsize+size > chunkBytes {
		p.flushDeltas()
	}
	p.ds, p.dsize = append(p.ds, d), p.dsize+size+64
	return d.To
}

// replacement sends one large delta in parts.
func (p *packer) replacement(d state.Delta) {
	rest := d.Records
	for {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size < chunkBytes) {
			size += sizeOf(rest[n : n+1])
			n++
		}
		part := d
		part.Records, rest = rest[:n], rest[n:]
		p.out = append(p.out, &deltas{Deltas: []state.Delta{part}, Partial: len(rest) > 0})
		if len(rest) == 0 {
			return
		}
	}
}

func (p *packer) records(recs []state.Record) {
	for i := range recs {
		size := sizeOf(recs[i : i+1])
		if p.rsize+size > chunkBytes {
			p.flushRecords()
		}
		p.rs, p.rsize = append(p.rs, recs[i]), p.rsize+size
		p.total += size
	}
}

func (p *packer) flushDeltas() {
	if len(p.ds) > 0 {
		p.out = append(p.out, &deltas{Deltas: p.ds})
		p.ds, p.dsize = nil, 0
	}
}

func (p *packer) flushRecords() {
	if len(p.rs) > 0 {
		p.out = append(p.out, &records{Records: p.rs})
		p.rs, p.rsize = nil, 0
	}
}

func (p *packer) finish() []frame {
	p.flushDeltas()
	p.flushRecords()
	return p.out
}
