package gossip

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"nodenet/state"
)

// extentEvery is how often an exchange with one peer carries what is known of
// how far all others are held, equal tables or not.
const extentEvery = 10 * time.Minute

// extents says how far this replica is known to hold what each node held: up
// to a reading of that node's clock. It grows by complete exchanges only: with
// the node itself, or with one that says the same of it (package state's
// horizon rests on that). It begins empty with each run. The zero value is
// ready, and safe for concurrent use.
type extents struct {
	mu   sync.Mutex
	held map[state.NodeID]state.HLC
	told time.Time // when a whole exchange was last begun
}

// stamp is how far one node is held.
type stamp struct {
	Node state.NodeID `cbor:"1,keyasint"`
	HLC  state.HLC    `cbor:"2,keyasint"`
}

func (e *extents) note(peer state.NodeID, asOf state.HLC, others []stamp) {
	if peer == "" || asOf == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held == nil {
		e.held = map[state.NodeID]state.HLC{}
	}
	e.held[peer] = max(e.held[peer], asOf)
	for _, s := range others {
		if s.Node.Valid() {
			e.held[s.Node] = max(e.held[s.Node], s.HLC)
		}
	}
}

func (e *extents) stamps() []stamp {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]stamp, 0, len(e.held))
	for id, h := range e.held {
		out = append(out, stamp{id, h})
	}
	return out
}

// whole reports, once in a while, that the next exchange is to tell extents.
func (e *extents) whole(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.told) < extentEvery {
		return false
	}
	e.told = now
	return true
}

// through returns the reading up to which this replica holds what every node
// of the cluster wrote; 0: not known.
func (e *extents) through(sn *state.Snapshot) state.HLC {
	e.mu.Lock()
	held := maps.Clone(e.held)
	e.mu.Unlock()
	members, absent := sn.Members()
	t := sn.AsOf()
	for _, id := range members {
		if id != sn.Self() {
			t = min(t, held[id])
		}
	}
	low := t
	for id, until := range absent {
		if t < until {
			low = min(low, held[id])
		}
	}
	return low
}

// Extent returns the clock reading up to which this node holds everything
// that any node of the cluster wrote; 0 until it is known.
func (g *Gossip) Extent() state.HLC { return g.rep.extents.through(g.store.Snapshot()) }

// bucket carries all that the sender holds of a bucket, to a peer that is
// behind its horizon. Partial: to be continued by the next frame.
type bucket struct {
	Index   int            `cbor:"1,keyasint"`
	Horizon state.HLC      `cbor:"2,keyasint"`
	Records []state.Record `cbor:"3,keyasint,omitempty"`
	Partial bool           `cbor:"4,keyasint,omitempty"`
}

func (*bucket) kind() kind { return kindBucket }

// behind reports that a peer has collected tombstones which this replica may
// lack, or has forgotten this node, and we have not caught up since: then we
// send none of our shared records before. Where each of two is behind the
// other, only one is: the one with the lower horizon.
func (r *replica) behind(sn *state.Snapshot, peer state.NodeID, d *digest) bool {
	h := sn.Horizon()
	if !(d.Horizon > h.Before && d.Horizon > h.Extent) && d.Forgotten <= h.Forgotten {
		return false
	}
	mutual := d.Behind || forgotten(sn, peer) > 0
	return !mutual || d.Horizon > h.Before || d.Horizon == h.Before && peer > sn.Self()
}

// forgotten is the epoch up to which a peer counts as forgotten; 0: it does not.
func forgotten(sn *state.Snapshot, peer state.NodeID) uint64 {
	f, ok := state.Lookup[state.Forgotten](sn, state.ID{Class: state.Cluster, Kind: state.KindForgotten, Key: string(peer)})
	if !ok {
		return 0
	}
	return f.Epoch
}

// follow raises the horizon to a peer's, where that is safe.
func (r *replica) follow(d *digest, o *outcome) {
	if h := r.tables.Snapshot().Horizon(); d.Horizon <= h.Before || d.Horizon > h.Extent {
		return
	}
	if _, err := r.tables.RaiseHorizon(d.Horizon); err != nil {
		o.errs = append(o.errs, err)
	}
}

// catchUp begins to catch up with the sender of d.
func (r *replica) catchUp(s *session, d *digest, o *outcome) {
	if err := r.tables.CatchUp(d.Horizon); err != nil {
		o.errs = append(o.errs, err)
		return
	}
	s.behind = &catching{horizon: d.Horizon, forgotten: d.Forgotten}
}

// catching is what a session catches up with.
type catching struct {
	horizon   state.HLC
	forgotten uint64 // the epoch up to which the peer had forgotten us; see state.Horizon
}

// caught ends it: the peer has sent every bucket in which we differed.
func (r *replica) caught(s *session, f *done, o *outcome) {
	if f.Horizon > s.behind.horizon || f.More || s.bad > 0 {
		return
	}
	_, err := r.tables.RaiseHorizon(f.Horizon)
	if err == nil {
		err = r.tables.Returned(s.behind.forgotten)
	}
	if err != nil {
		o.errs = append(o.errs, err)
		return
	}
	s.behind = nil
}

// bucket takes a peer's whole bucket.
func (r *replica) bucket(s *session, f *bucket, o *outcome) {
	if p := s.bucket; p != nil && p.Index == f.Index && p.Horizon == f.Horizon {
		f.Records = append(p.Records, f.Records...)
	} else if p != nil {
		s.bad = badExchanges // its end did not come
	}
	s.bucket = nil
	switch {
	case s.behind == nil || f.Horizon < s.behind.horizon:
		return // not asked for, or no longer
	case f.Index < 0 || f.Index >= state.NumBuckets || sizeOf(f.Records) > maxPendingSet:
		o.errs = append(o.errs, fmt.Errorf("merge bucket %d: impossible", f.Index))
	case f.Partial:
		s.bucket = f
	default:
		for i := range f.Records {
			if id := f.Records[i].ID; id.Class == state.Owner || state.BucketOf(id) != f.Index {
				o.errs = append(o.errs, fmt.Errorf("merge bucket %d: record %s is not of it", f.Index, id))
				return
			}
		}
		anew := s.behind.forgotten > r.tables.Snapshot().Horizon().Forgotten
		n, err := r.tables.ReplaceBucket(f.Index, s.behind.horizon, f.Records, anew)
		o.applied += n
		if err != nil {
			o.errs = append(o.errs, err)
		}
	}
}

// badExchanges is how many exchanges on a connection prove nothing after a
// record of one was refused: several may run at the same time.
const badExchanges = 4

// proven notes that we hold all that a peer held, unless something was refused.
func (r *replica) proven(s *session, asOf state.HLC, others []stamp) {
	if s.bad > 0 {
		s.bad--
		return
	}
	r.extents.note(s.peer, asOf, others)
}

// whole adds a bucket for a peer that is behind.
func (p *packer) whole(i int, horizon state.HLC, recs []state.Record) {
	p.flushRecords()
	for {
		n, size := 0, 0
		for n < len(recs) && (n == 0 || size < chunkBytes) {
			size += sizeOf(recs[n : n+1])
			n++
		}
		p.total += size + 64
		f := &bucket{Index: i, Horizon: horizon, Records: recs[:n], Partial: n < len(recs)}
		recs = recs[n:]
		p.out = append(p.out, f)
		if !f.Partial {
			return
		}
	}
}
