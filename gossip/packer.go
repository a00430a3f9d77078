package gossip

import "nodenet/state"

// packer puts deltas and records into frames of a reasonable size.
type packer struct {
	chunk int // records of a part
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

// signed adds what a peer that verifies signatures lacks, until the budget is
// used up; it then reports that there is more. Any part of a history may be
// the last one of an exchange: the peer says how far it came.
func (p *packer) signed(sn *state.Snapshot, d *digest, budget int) (more bool) {
	theirs := make(map[state.NodeID]state.Mark, len(d.Heads))
	for _, h := range d.Heads {
		theirs[h.Owner] = h.Mark
	}
	// What has begun comes first, so that the peer has to keep one at a time.
	for _, pt := range d.Parts {
		h := sn.Head(pt.Owner)
		if !h.Signed() || pt.To.Compare(h.Mark) >= 0 || !pt.Replace && pt.To.Compare(h.Floor) < 0 {
			continue
		}
		if p.history(sn, h, pt.To, pt.Replace, budget) {
			return true
		}
		theirs[pt.Owner] = h.Mark
	}
	for _, h := range sn.Heads() {
		from := theirs[h.Owner]
		if from.Compare(h.Mark) >= 0 || !h.Signed() && h.Owner != sn.Self() {
			continue
		}
		whole := from == state.Mark{} || from.Compare(h.Floor) < 0
		if whole {
			from = state.Mark{}
		}
		if p.total >= budget || p.history(sn, h, from, whole, budget) {
			return true
		}
	}
	return false
}

// history adds parts up to the head, and reports whether the budget ended before.
func (p *packer) history(sn *state.Snapshot, h state.Head, from state.Mark, whole bool, budget int) (cut bool) {
	for first := true; ; first = false {
		if !first && p.total >= budget {
			return true
		}
		d := p.fit(func(limit int) state.Delta { return sn.Part(h.Owner, from, limit, whole) })
		p.add(d)
		if !d.More || d.To.Compare(from) <= 0 {
			return false
		}
		from = d.To
	}
}

// unsigned adds what a peer lacks whose version does not sign. It applies each
// delta as it comes, and wants a whole set at once.
func (p *packer) unsigned(sn *state.Snapshot, d *digest, budget int) (more bool) {
	theirs := make(map[state.NodeID]state.Mark, len(d.Heads))
	for _, h := range d.Heads {
		theirs[h.Owner] = h.Mark
	}
	for _, h := range sn.Heads() {
		for from := theirs[h.Owner]; from.Compare(h.Mark) < 0; {
			if p.total >= budget {
				return true
			}
			next := p.delta(sn, h.Owner, from)
			if next.Compare(from) <= 0 {
				break // cannot happen with a sound store: never loop on it
			}
			from = next
		}
	}
	return false
}

// fit takes the largest part that is not much larger than a frame should be.
func (p *packer) fit(take func(limit int) state.Delta) state.Delta {
	limit := p.chunk
	d := take(limit)
	for sizeOf(d.Records) > chunkBytes && limit > 1 {
		limit = max(1, min(limit/2, len(d.Records)/2))
		d = take(limit)
	}
	return d
}

// add puts one delta into a frame.
func (p *packer) add(d state.Delta) {
	size := sizeOf(d.Records) + 64 + len(d.Key) + len(d.Hash) + len(d.Sig)
	if p.dsize+size > chunkBytes {
		p.flushDeltas()
	}
	p.ds, p.dsize, p.total = append(p.ds, d), p.dsize+size, p.total+size
}

// delta adds the next part of an owner's history and returns how far it goes.
func (p *packer) delta(sn *state.Snapshot, owner state.NodeID, from state.Mark) state.Mark {
	d := sn.Delta(owner, from, p.chunk)
	if !d.Replace {
		d = p.fit(func(limit int) state.Delta { return sn.Delta(owner, from, limit) })
	} else if size := sizeOf(d.Records); size > chunkBytes {
		p.total += size + 64
		p.flushDeltas()
		p.replacement(d)
		return d.To
	}
	p.add(d)
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
