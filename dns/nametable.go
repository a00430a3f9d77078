package dns

import (
	"hash/maphash"
	"iter"
	"slices"

	wire "github.com/miekg/dns"
)

// node is one name with its records. It is immutable but for its memos.
type node struct {
	name  string
	sets  []rrset // those to be seen first, see order
	kids  uint32  // names directly below
	pins  uint32  // reasons to exist without data
	shown uint8
	memos memos
	one   [1]rrset // of sets, when there is just one: most names have
}

// rrset holds the records of one type from one layer.
type rrset struct {
	qtype uint16
	layer layer
	dup   bool   // several sources say the same: equal items follow one another
	data  string // items in canonical order, see rdata.go
}

// layer ranks the sources of a name's records: of one type, the lowest layer
// is seen.
type layer uint8

const (
	layerDerived  layer = iota
	layerEndpoint       // PTR of an endpoint: a service's name for it is the better answer
	layerStatic         // declared names
)

// set returns the records of one type, or nil.
func (n *node) set(qtype uint16) *rrset {
	for i := range n.sets[:n.shown] {
		if n.sets[i].qtype == qtype {
			return &n.sets[i]
		}
	}
	return nil
}

// hasAddress reports whether a name has addresses of either family.
func (n *node) hasAddress() bool { return n.set(wire.TypeA) != nil || n.set(wire.TypeAAAA) != nil }

func (n *node) exists() bool { return len(n.sets) > 0 || n.kids > 0 || n.pins > 0 }

// visible reports whether a set is seen. A CNAME stands alone (RFC 1034
// section 3.6.2): a derived one hides everything else, a static one is hidden
// by anything else.
func visible(sets []rrset, i int) bool {
	s := &sets[i]
	for j := range sets {
		o := &sets[j]
		switch {
		case j == i:
		case o.qtype == s.qtype && o.layer < s.layer:
			return false
		case o.qtype == wire.TypeCNAME && s.qtype != wire.TypeCNAME && o.layer == layerDerived:
			return false
		case s.qtype == wire.TypeCNAME && o.qtype != wire.TypeCNAME && s.layer != layerDerived:
			return false
		}
	}
	return true
}

const (
	// bucketSize is how many names share a bucket on average, at most.
	bucketSize = 4
	// pageSize is how many buckets share a page.
	pageSize = 64
)

// nameTable is a persistent hash table of nodes: a changed copy shares every
// page that did not change. What a change copies beside its pages, of 1.5 KiB
// each, is the list of pages: 3 bytes for 100 names.
type nameTable struct {
	seed  maphash.Seed
	pages []*page // a power of two
	n     int
}

type page [pageSize]bucket

// bucket lists nodes with a part of their hashes, so that a search touches
// the node that it finds and hardly another.
type bucket []entryOf

type entryOf struct {
	tag uint32
	n   *node
}

func newNameTable() *nameTable {
	return &nameTable{seed: maphash.MakeSeed(), pages: []*page{new(page)}}
}

// place returns the page and the bucket of a name, and its tag.
func (t *nameTable) place(name string) (page, slot uint64, tag uint32) {
	h := maphash.String(t.seed, name)
	page, slot = t.split(h)
	return page, slot, tagOf(h)
}

// split returns the page and the bucket of a hash.
func (t *nameTable) split(h uint64) (page, slot uint64) {
	return h / pageSize & uint64(len(t.pages)-1), h % pageSize
}

func tagOf(h uint64) uint32 { return uint32(h >> 32) }

// tagged returns the first node with the tag of a hash, or nil.
func (b bucket) tagged(h uint64) *node {
	for i := range b {
		if b[i].tag == tagOf(h) {
			return b[i].n
		}
	}
	return nil
}

// get returns the node of a name, or nil.
func (t *nameTable) get(name string) *node {
	p, slot, tag := t.place(name)
	for _, e := range t.pages[p][slot] {
		if e.tag == tag && e.n.name == name {
			return e.n
		}
	}
	return nil
}

// all yields every node, in no order.
func (t *nameTable) all() iter.Seq[*node] {
	return func(yield func(*node) bool) {
		for _, p := range t.pages {
			for _, b := range p {
				for _, e := range b {
					if !yield(e.n) {
						return
					}
				}
			}
		}
	}
}

// with returns a copy with the given nodes in place of those of their names.
// A nil node removes its name.
func (t *nameTable) with(changes map[string]*node) *nameTable {
	size := len(t.pages)
	for most := t.n + len(changes); size*pageSize*bucketSize < most; {
		size *= 2
	}
	out := &nameTable{seed: t.seed, pages: make([]*page, size), n: t.n}
	owned := make(map[uint64]bool)
	if size == len(t.pages) {
		copy(out.pages, t.pages)
	} else {
		out.n = 0
		for i := range out.pages {
			out.pages[i] = new(page)
			owned[uint64(i)] = true
		}
		for n := range t.all() {
			out.put(n.name, n, owned)
		}
	}
	for name, n := range changes {
		out.put(name, n, owned)
	}
	return out
}

// put sets one name of a table that nobody else sees yet; owned are the pages
// that are its alone. Buckets are copied whenever they change.
func (t *nameTable) put(name string, n *node, owned map[uint64]bool) {
	p, slot, tag := t.place(name)
	if !owned[p] {
		c := *t.pages[p]
		t.pages[p], owned[p] = &c, true
	}
	b := t.pages[p][slot]
	i := slices.IndexFunc(b, func(e entryOf) bool { return e.tag == tag && e.n.name == name })
	switch {
	case i >= 0 && n != nil:
		b = slices.Clone(b)
		b[i].n = n
	case i >= 0:
		b = slices.Delete(slices.Clone(b), i, i+1)
		t.n--
	case n != nil:
		b = append(b[:len(b):len(b)], entryOf{tag, n})
		t.n++
	}
	t.pages[p][slot] = b
}
