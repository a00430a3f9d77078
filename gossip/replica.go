package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync/atomic"

	"nodenet/state"
)

// Tables is what replication needs of a state.Store.
type Tables interface {
	Snapshot() *state.Snapshot
	MergeAll(peer state.NodeID, ds []state.Delta) []state.Merged
	Merge([]state.Record, bool) (int, error)
	Reissue(state.Mark) (int, error)
	RaiseHorizon(state.HLC) (int, error)
	CatchUp(state.HLC) error
	ReplaceBucket(int, state.HLC, []state.Record, bool) (int, error)
	Returned(uint64) error
}

const (
	roundBudget   = 1 << 20   // bytes that one side sends in one exchange
	chunkBytes    = 256 << 10 // wanted size of a frame with records
	chunkRecords  = 512
	forwardLimit  = 256 // records: more than that is left to anti-entropy
	maxPendingSet = 64 << 20
	// maxIdle is how many exchanges of a connection follow one another at once
	// although neither side gets anything new of the other: more than enough
	// for a history in parts, of which nothing is applied before its end.
	maxIdle = 2 * maxPendingSet / roundBudget
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
// A side that exceeds its budget says More, and A begins again: at once, but
// only maxIdle times when that leads nowhere. What a peer sends may be refused
// again and again, or refused by it. From then on there is one exchange a
// SyncInterval, until one of them leads somewhere.
type replica struct {
	tables Tables
	budget int         // bytes; 0: roundBudget
	chunk  int         // records of a part; 0: chunkRecords
	fresh  func() bool // we have never held all of the tables; nil: we have

	sum atomic.Pointer[rootSum] // of the last snapshot asked for

	extents extents
}

// rootSum is a root with the revision that it belongs to: at rest peers ask
// for the same one all the time.
type rootSum struct {
	rev uint64
	sum []byte
}

func (r *replica) root(sn *state.Snapshot) []byte {
	if s := r.sum.Load(); s != nil && s.rev == sn.Rev() {
		return s.sum
	}
	s := &rootSum{sn.Rev(), rootOf(sn)}
	r.sum.Store(s)
	return s.sum
}

// session is what one connection remembers between frames.
type session struct {
	peer    state.NodeID // whose identity the connection proves; empty: nobody's
	more    bool         // our last digest held something back
	pending *pending
	differs map[state.NodeID]doubt
	behind  *catching         // nil: we are not
	bucket  *bucket           // still arriving
	bad     int               // exchanges that prove nothing any more
	theirs  [sha256.Size]byte // tables of the peer, as its last digest told
	idle    int               // exchanges begun since either side got anything new
}

// progress looks whether the peer has got anything new since its last digest.
func (s *session) progress(d *digest) {
	if sum := sumOf(d.Heads, d.Buckets, d.Horizon); sum != s.theirs {
		s.theirs, s.idle = sum, 0
	}
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
	forged  int     // how many of them are not what their owner signed, and no accident
}

// start returns the frame that opens an exchange.
func (r *replica) start() frame {
	sn := r.tables.Snapshot()
	return &root{Sum: r.root(sn), Fresh: r.isFresh(), AsOf: sn.AsOf()}
}

func (r *replica) isFresh() bool { return r.fresh != nil && r.fresh() }

// rootOf is the hash of everything that two equal replicas agree on. Floors
// are not part of it: each replica collects tombstones in its own time.
func rootOf(sn *state.Snapshot) []byte {
	buckets := sn.Buckets()
	sum := sumOf(sn.Heads(), buckets[:], sn.Horizon().Before)
	return sum[:]
}

func sumOf(heads []state.Head, buckets []uint64, horizon state.HLC) (sum [sha256.Size]byte) {
	h := sha256.New()
	var b []byte
	for _, hd := range heads {
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
	if horizon != 0 { // peers of older versions have none
		b = binary.BigEndian.AppendUint64(b, uint64(horizon))
	}
	for _, v := range buckets {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// handle takes one frame of the replication part of the protocol.
func (r *replica) handle(s *session, f frame) outcome {
	var o outcome
	switch f := f.(type) {
	case *root:
		sn := r.tables.Snapshot()
		equal := string(r.root(sn)) == string(f.Sum)
		if equal {
			o.equal, o.synced, o.proven = true, true, !f.Fresh
			r.proven(s, f.AsOf, nil)
		}
		if equal && !f.Whole {
			o.reply = []frame{&same{Fresh: r.isFresh(), AsOf: sn.AsOf()}}
		} else {
			d := s.digest(sn)
			d.Whole = f.Whole
			o.reply = []frame{d}
		}
	case *same:
		o.equal, o.synced, o.proven = true, true, !f.Fresh
		r.proven(s, f.AsOf, nil)
	case *digest:
		r.remember(f)
		r.follow(f, &o)
		behind := r.behind(r.tables.Snapshot(), s.peer, f)
		if behind {
			r.catchUp(s, f, &o)
		} else {
			s.behind = nil // caught up through another peer, perhaps
		}
		s.progress(f)
		sn := r.tables.Snapshot()
		reply, more := r.missing(sn, f, behind)
		if f.Answer {
			full := !f.More && !f.Behind && !behind
			o.synced, o.proven = full, full && !f.Fresh
			if full {
				r.proven(s, f.AsOf, f.Extents)
			}
			end := &done{More: more, Fresh: r.isFresh(), AsOf: sn.AsOf(), Caught: !behind && r.tells(sn, f), Horizon: sn.Horizon().Before}
			if f.Whole {
				end.Extents = r.extents.stamps()
			}
			o.reply = append(reply, end)
			if behind {
				o.reply = append(o.reply, r.start()) // now we know what to ask for
			}
		} else {
			d := s.digest(sn)
			d.Answer, d.More, d.Fresh, d.Behind = true, more, r.isFresh(), behind
			if d.Whole = f.Whole; d.Whole {
				d.Extents = r.extents.stamps()
			}
			s.more = more
			o.reply = append(reply, d)
		}
	case *done:
		again := f.More || s.more
		if f.Caught && s.behind != nil {
			r.caught(s, f, &o)
			again = true // for what we held back
		}
		full := !f.More && s.behind == nil
		o.synced, o.proven = full, full && !f.Fresh
		if full {
			r.proven(s, f.AsOf, f.Extents)
		}
		if again {
			if s.idle++; s.idle <= maxIdle {
				o.reply = []frame{r.start()}
			}
		}
		s.more = false
	case *bucket:
		r.bucket(s, f, &o)
	case *deltas:
		r.deltas(s, f, &o)
	case *records:
		r.apply(s, &push{Records: f.Records}, &o)
	case *push:
		if r.apply(s, f, &o) {
			o.reply = append(o.reply, r.start())
		}
	}
	if o.applied > 0 {
		s.idle = 0
	}
	if len(o.errs) > 0 {
		s.bad = badExchanges
	}
	return o
}

// tells reports that the sender of d is sent whole buckets.
func (r *replica) tells(sn *state.Snapshot, d *digest) bool {
	return d.Behind && sn.Horizon().Before >= d.Horizon
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
func (r *replica) missing(sn *state.Snapshot, d *digest, behind bool) (out []frame, more bool) {
	budget := r.budget
	if budget == 0 {
		budget = roundBudget
	}
	p := packer{chunk: or(r.chunk, chunkRecords)}
	if d.Signed {
		more = p.signed(sn, d, budget)
	} else {
		more = p.unsigned(sn, d, budget)
	}
	ours := sn.Buckets()
	horizon, tells := sn.Horizon().Before, r.tells(sn, d)
	if behind {
		return p.finish(), more
	}
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
			if tells {
				p.whole(i, horizon, sn.Bucket(i))
				continue
			}
			p.records(sn.Bucket(i))
		}
	}
	return p.finish(), more
}

// apply merges what a frame carries and reports whether a gap showed that
// something older is missing.
func (r *replica) apply(s *session, f *push, o *outcome) (gap bool) {
	fresh := &push{Sent: f.Sent}
	n := 0
	for i, m := range r.tables.MergeAll(s.peer, f.Deltas) {
		d := f.Deltas[i]
		switch {
		case errors.Is(m.Err, state.ErrGap):
			gap = true
		case errors.Is(m.Err, state.ErrDiffers):
			if s.mistrust(d.Owner) {
				o.reply = append(o.reply, r.start()) // for the whole set
			} else {
				o.forged++
			}
			o.errs = append(o.errs, m.Err)
		case m.Err != nil:
			if errors.Is(m.Err, state.ErrForged) {
				o.forged++
			}
			o.errs = append(o.errs, m.Err)
		default:
			delete(s.differs, d.Owner)
		}
		if m.Applied > 0 {
			o.applied += m.Applied
			n += len(d.Records)
			if len(d.Sig) > 0 { // others would refuse it from us
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
