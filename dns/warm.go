package dns

import (
	"hash/maphash"
	"unsafe"
)

// foresight is what is known of a batch of questions before the first of them
// is answered.
//
// Finding a name is six dependent loads that miss the processor's caches, one
// after the other. Done for the whole batch step by step, those of different
// names overlap. What is found is kept, so that a question is read and its name
// looked up once.
type foresight struct {
	names *nameTable // that the nodes are of; nil: nothing is known
	seen  [batchSize]foreseen
	text  [batchSize * 256]byte // of the names, one after the other
	sum   uint32
}

// foreseen is what is known of one question.
type foreseen struct {
	name string // lower-case
	end  int    // of the name in the question; 0: it is not plain
	hash uint64
	in   bucket
	node *node // may have another name; nil: there is none
}

// warmFrom is the size of a batch from which on looking ahead pays.
const warmFrom = 4

// warm looks ahead at n questions. It changes nothing but the time that
// answering takes.
func (r *responder) warm(t *table, n int, query func(i int) []byte) {
	f := &r.ahead
	f.names, r.known = nil, nil
	if n < warmFrom || n > len(f.seen) || t == nil || t.only == nil || t.only.plan == nil {
		return
	}
	for _, s := range t.only.plan.steps {
		if s.cluster != nil {
			if z := s.cluster.zone.Load(); z != nil {
				f.names = z.names
			}
			break
		}
	}
	if f.names == nil {
		return
	}
	seen := f.seen[:n]
	at := 0
	for i := range seen {
		s := &seen[i]
		k, end := plainName(query(i), f.text[at:at+256])
		if s.end = end; end == 0 {
			continue
		}
		s.name = unsafe.String(&f.text[at], k)
		at += k
		s.hash = maphash.String(f.names.seed, s.name)
	}
	for i := range seen {
		s := &seen[i]
		p, slot := f.names.split(s.hash)
		s.in = f.names.pages[p][slot]
	}
	for i := range seen {
		s := &seen[i]
		s.node = s.in.tagged(s.hash)
	}
	// What comes now is only touched.
	sum := uint32(0)
	for i := range seen {
		if n := seen[i].node; n != nil {
			sum += uint32(len(n.name)) + uint32(n.shown)
		}
	}
	for i := range seen {
		if n := seen[i].node; n != nil && n.shown > 0 {
			sum += uint32(n.name[0]) + uint32(n.sets[0].qtype)
		}
	}
	for i := range seen {
		if n := seen[i].node; n != nil && n.shown > 0 && len(n.sets[0].data) > 0 {
			sum += uint32(n.sets[0].data[0])
		}
	}
	f.sum += sum // so that the loads are not left out
}

// recall makes what is known of the i-th question of the batch that of the
// question in hand.
func (r *responder) recall(i int) {
	if r.known = nil; r.ahead.names != nil {
		r.known = &r.ahead.seen[i]
	}
}

// find is t.get for the name of the question in hand.
func (r *responder) find(t *nameTable, name string) *node {
	if k := r.known; k != nil && t == r.ahead.names && (k.node == nil || k.node.name == name) {
		return k.node
	}
	return t.get(name)
}
