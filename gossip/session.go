package gossip

import (
	"errors"
	"fmt"

	"nodenet/state"
)

// pending is a history that arrives in parts. Nothing of it is applied before
// its end, which alone is signed.
type pending struct {
	state.Delta
	legacy bool // a whole set in Partial frames, of a version that does not sign
	size   int  // bytes
}

// continues reports whether d is a further part of p. Any other delta must not
// be taken for its end: the records in between would be deleted.
func (p *pending) continues(d *state.Delta) bool {
	if p.legacy {
		return d.Replace && d.Owner == p.Owner && d.To == p.To && d.Floor == p.Floor
	}
	// Two exchanges may run at the same time: what one brought already comes again.
	return d.Owner == p.Owner && d.Replace == p.Replace && p.From.Compare(d.From) <= 0 && d.From.Compare(p.To) <= 0
}

// add takes a further part along.
func (p *pending) add(d *state.Delta) {
	if !p.legacy && d.To.Compare(p.To) <= 0 {
		return // nothing that we lack, and older than what we have
	}
	p.Records = append(p.Records, d.Records...)
	p.size += sizeOf(d.Records)
	p.To, p.Floor, p.More = d.To, d.Floor, d.More
	p.Hash, p.Key, p.Sig = d.Hash, d.Key, d.Sig
}

// whole returns the parts as one delta. What changed while they came is in
// them twice: the later one counts.
func (p *pending) whole() state.Delta {
	last := make(map[state.ID]int, len(p.Records))
	for i := range p.Records {
		last[p.Records[i].ID] = i
	}
	d := p.Delta
	if len(last) < len(p.Records) {
		d.Records = make([]state.Record, 0, len(last))
		for i := range p.Records {
			if last[p.Records[i].ID] == i {
				d.Records = append(d.Records, p.Records[i])
			}
		}
	}
	return d
}

// doubt is what became of an owner's records that did not add up.
type doubt uint8

const (
	doubtAsk   doubt = iota + 1 // the next digest asks for the whole set
	doubtAsked                  // it did
)

// digest says what is held, as far as this peer is to know.
func (s *session) digest(sn *state.Snapshot) *digest {
	heads, buckets := sn.Heads(), sn.Buckets()
	for i := range heads {
		heads[i] = heads[i].Bare()
		if owner := heads[i].Owner; s.differs[owner] == doubtAsk {
			heads[i].Mark = state.Mark{}
			s.differs[owner] = doubtAsked
		}
	}
	d := &digest{Heads: heads, Buckets: buckets[:], Signed: true, Horizon: sn.Horizon().Before, AsOf: sn.AsOf(), Forgotten: forgotten(sn, s.peer)}
	if p := s.pending; p != nil && !p.legacy {
		d.Parts = []part{{Owner: p.Owner, To: p.To, Replace: p.Replace}}
	}
	return d
}

// mistrust notes that what this peer sent of an owner did not add up, and
// reports whether to ask it for the whole set: once. What is no accident then
// is a forgery, and others will have the truth.
func (s *session) mistrust(owner state.NodeID) (ask bool) {
	if s.differs == nil {
		s.differs = map[state.NodeID]doubt{}
	}
	if s.pending != nil && s.pending.Owner == owner {
		s.pending = nil
	}
	if s.differs[owner] == doubtAsked {
		return false
	}
	s.differs[owner] = doubtAsk
	return true
}

// begin starts to put a history together.
func (s *session) begin(d state.Delta, legacy bool, o *outcome) {
	s.drop(o)
	s.pending = &pending{Delta: d, legacy: legacy, size: sizeOf(d.Records)}
}

// drop gives up a history of which the rest was lost in a full queue: what came
// of it is nothing that its owner signed.
func (s *session) drop(o *outcome) {
	if p := s.pending; p != nil {
		o.errs = append(o.errs, fmt.Errorf("merge parts of the history of %s: the end did not come", p.Owner.Short()))
		s.pending = nil
	}
}

// bounded gives up a history that is larger than what is worth keeping.
func (s *session) bounded(o *outcome) bool {
	p := s.pending
	if p.size <= maxPendingSet {
		return true
	}
	o.errs = append(o.errs, fmt.Errorf("merge parts of the history of %s: more than %d bytes", p.Owner.Short(), maxPendingSet))
	s.pending = nil
	return false
}

// deltas applies a deltas frame, putting histories in parts together first.
func (r *replica) deltas(s *session, f *deltas, o *outcome) {
	if f.Partial || s.pending != nil && s.pending.legacy {
		r.partial(s, f, o)
		return
	}
	var list []state.Delta
	for i := range f.Deltas {
		d := &f.Deltas[i]
		switch {
		case s.pending != nil && s.pending.continues(d):
			s.pending.add(d)
		case d.Replace && d.From != state.Mark{}:
			continue // a whole set of which we gave up the beginning
		case d.More:
			s.begin(*d, false, o)
		default:
			list = append(list, *d)
			continue
		}
		if s.bounded(o) && !s.pending.More {
			list = append(list, s.pending.whole())
			s.pending = nil
		}
	}
	r.apply(s, &push{Deltas: list}, o)
}

// partial applies a frame of a version that does not sign, which sends a large
// whole set as frames with one delta each.
func (r *replica) partial(s *session, f *deltas, o *outcome) {
	if s.pending != nil && (!s.pending.legacy || len(f.Deltas) != 1 || !s.pending.continues(&f.Deltas[0])) {
		s.drop(o)
	}
	switch {
	case s.pending == nil && !f.Partial:
		r.deltas(s, f, o)
		return
	case len(f.Deltas) != 1 || !f.Deltas[0].Replace:
		o.errs = append(o.errs, errors.New("merge replacement: not a part of one"))
		return
	case s.pending == nil:
		s.begin(f.Deltas[0], true, o)
	default:
		s.pending.add(&f.Deltas[0])
	}
	if s.bounded(o) && !f.Partial {
		d := s.pending.Delta
		s.pending = nil
		r.apply(s, &push{Deltas: []state.Delta{d}}, o)
	}
}
