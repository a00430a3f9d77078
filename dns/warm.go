package dns

import "hash/maphash"

// warmFrom is the size of a batch from which on warming pays.
const warmFrom = 4

// warm touches what the answers to a batch will need. Finding a name is four
// dependent loads that miss the processor's caches, one after the other; done
// for the whole batch step by step, those of different names overlap. It
// changes nothing but the time that answering takes.
func (r *responder) warm(t *table, n int, query func(i int) []byte) {
	if n < warmFrom || n > len(r.hashes) || t == nil || t.only == nil || t.only.plan == nil {
		return
	}
	var names *nameTable
	for _, s := range t.only.plan.steps {
		if s.cluster != nil {
			if z := s.cluster.zone.Load(); z != nil {
				names = z.names
			}
			break
		}
	}
	if names == nil {
		return
	}
	k := 0
	for i := range n {
		if name, off := r.parseName(query(i)); off > 0 {
			r.hashes[k] = maphash.String(names.seed, name)
			k++
		}
	}
	sum := uint32(0)
	for i, h := range r.hashes[:k] {
		r.buckets[i] = names.pages[h/pageSize&uint64(len(names.pages)-1)][h%pageSize]
	}
	for i, h := range r.hashes[:k] {
		r.nodes[i] = nil
		for _, e := range r.buckets[i] {
			if e.tag == uint32(h>>32) {
				r.nodes[i] = e.n
				break
			}
		}
	}
	for i, n := range r.nodes[:k] {
		if r.names[i] = ""; n != nil {
			r.names[i] = n.name
		}
	}
	for _, name := range r.names[:k] {
		if len(name) > 0 {
			sum += uint32(name[0])
		}
	}
	r.warmed += sum // so that the loads are not left out
	clear(r.buckets[:k])
	clear(r.nodes[:k])
	clear(r.names[:k])
}
