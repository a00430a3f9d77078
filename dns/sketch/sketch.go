// Package sketch finds what is seen most often in a stream, in a fixed amount
// of memory: the space-saving algorithm (Metwally, Agrawal, El Abbadi:
// Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005).
//
// A sketch of k counters holds everything that makes up more than 1/k of the
// stream. A count is too high by at most Error, and never too low.
package sketch

import (
	"cmp"
	"slices"
	"strings"
)

// Sketch counts strings. It belongs to one goroutine. The zero value holds
// nothing: use New.
type Sketch struct {
	items []Item
	index map[string]int
	total uint64
}

// Item is one string with its count.
type Item struct {
	What  string
	Count uint64
	Error uint64 // by how much Count may be too high
}

// New returns a sketch of k counters.
func New(k int) *Sketch {
	return &Sketch{items: make([]Item, 0, k), index: make(map[string]int, k)}
}

// Add counts what n times. It is copied when it is kept.
func (s *Sketch) Add(what string, n uint64) { s.add(what, n, 0) }

func (s *Sketch) add(what string, n, err uint64) {
	if cap(s.items) == 0 {
		return
	}
	s.total += n
	if i, ok := s.index[what]; ok {
		s.items[i].Count += n
		s.items[i].Error += err
		return
	}
	if len(s.items) < cap(s.items) {
		what = strings.Clone(what)
		s.index[what] = len(s.items)
		s.items = append(s.items, Item{what, n, err})
		return
	}
	// The least frequent one makes room, and leaves its count: whatever is new
	// may have been seen and forgotten as often.
	least := 0
	for i := range s.items {
		if s.items[i].Count < s.items[least].Count {
			least = i
		}
	}
	it := &s.items[least]
	delete(s.index, it.What)
	what = strings.Clone(what)
	*it = Item{what, it.Count + n, it.Count + err}
	s.index[what] = least
}

// Merge adds what another sketch counted.
func (s *Sketch) Merge(o *Sketch) {
	for _, it := range o.Top(len(o.items)) {
		s.add(it.What, it.Count, it.Error)
	}
}

// Total is how often Add has counted.
func (s *Sketch) Total() uint64 { return s.total }

// Top returns the n most frequent items, the most frequent first.
func (s *Sketch) Top(n int) []Item {
	out := slices.Clone(s.items)
	slices.SortFunc(out, func(a, b Item) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Error, b.Error), strings.Compare(a.What, b.What))
	})
	return out[:min(n, len(out))]
}
