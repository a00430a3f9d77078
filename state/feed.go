package state

import "sync"

// feedLimit bounds what a slow reader can make us keep.
const feedLimit = 8192

// Feed tells one reader what changed. Changes pile up, coalesced into one
// signal, until Take. A reader that is too far behind is told to look at
// everything. Safe for concurrent use.
type Feed struct {
	store *Store
	c     chan struct{}

	mu      sync.Mutex
	changed []Record
	all     bool
}

// Subscribe returns a feed that begins with the next change.
func (s *Store) Subscribe() *Feed {
	f := &Feed{store: s, c: make(chan struct{}, 1)}
	s.feedsMu.Lock()
	s.feeds[f] = struct{}{}
	s.feedsMu.Unlock()
	return f
}

// C is signalled when there is something to Take.
func (f *Feed) C() <-chan struct{} { return f.c }

// Take returns the records written since the last Take, oldest first, with
// the newest snapshot. When all is true the list is incomplete: compare
// everything. A change of liveness signals with an empty list.
func (f *Feed) Take() (changed []Record, all bool, sn *Snapshot) {
	f.mu.Lock()
	changed, all = f.changed, f.all
	f.changed, f.all = nil, false
	f.mu.Unlock()
	// Taken after the list: the snapshot holds at least what the list says.
	return changed, all, f.store.Snapshot()
}

// Close ends the feed.
func (f *Feed) Close() {
	f.store.feedsMu.Lock()
	delete(f.store.feeds, f)
	f.store.feedsMu.Unlock()
}

func (f *Feed) add(recs []Record) {
	f.mu.Lock()
	if len(f.changed)+len(recs) > feedLimit {
		f.changed, f.all = nil, true
	} else if !f.all {
		f.changed = append(f.changed, recs...)
	}
	f.mu.Unlock()
	select {
	case f.c <- struct{}{}:
	default:
	}
}
