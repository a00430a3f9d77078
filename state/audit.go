package state

import "context"

// audit compares what was loaded with what its owners signed. It runs beside
// everything else, once: later changes are checked when they come.
func (s *Store) audit() {
	sn := s.Snapshot()
	var signed []*entry
	for e := range sn.heads.all() {
		if e.head.Signed() {
			signed = append(signed, e)
		}
	}
	for _, e := range signed {
		select {
		case <-s.closed:
			return
		default:
		}
		if e.head.verify() == nil && string(sumOf(sn, e).Digest()) == string(e.head.Hash) {
			continue
		}
		if s.do(context.Background(), &request{doubt: e}) != nil {
			return // closed
		}
	}
}

// doubt treats an owner's set as not held: it is neither told to others nor
// compared with theirs, and the next one who has it replaces ours. Until then
// it is better than nothing for our own views.
func (b *batch) doubt(e *entry) {
	if b.entry(e.head.Owner) != e {
		return // changed meanwhile, and checked then
	}
	d := b.edit(e.head.Owner)
	d.head.Mark, d.head.Hash, d.head.Sig = Mark{}, nil, nil
	b.touched = true
	b.s.logger.Error("saved records of a node are not what it signed: asking the peers for all of them", "node", string(e.head.Owner))
}

// restate signs our own set anew at a later mark when the disk lost or changed
// some of it: what is signed once for a mark is never signed differently.
func (b *batch) restate(e *entry) {
	cur := b.entry(b.s.self)
	if b.s.key == nil || cur != e {
		return
	}
	sum := *sumOf(b.next, cur)
	b.own = &sum
	d := b.edit(b.s.self)
	d.head.Mark.Seq++
	if b.s.loaded.Compare(d.head.Mark) < 0 {
		b.s.loaded = d.head.Mark
	}
	b.s.logger.Error("saved records of this node are not what it signed: its disk lost or changed some; signed anew as they are")
}
