package gossip

import (
	"sync"

	"nodenet/state"
)

// exchanges counts the exchanges that this side opened on a link, to tell when
// a peer holds what we held at some moment. Tables that never stand still are
// never seen equal; but whoever ends an exchange without holding anything back
// has been sent, in order, all that it lacked when the exchange was opened.
// The zero value is ready; it is safe for concurrent use.
type exchanges struct {
	mu     sync.Mutex
	opened uint64
	ended  uint64
	whole  uint64     // of ended: the last one in which we held nothing back
	head   state.Mark // of ours, as the peer last told
	equal  bool       // the last one that ended found both sides equal
}

// asked counts a root that is on its way.
func (e *exchanges) asked() {
	e.mu.Lock()
	e.opened++
	e.mu.Unlock()
}

// last returns the number of the exchange opened last.
func (e *exchanges) last() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.opened
}

// note looks at a frame of the peer before it is handled. more says that our
// side of the exchange under way held something back.
func (e *exchanges) note(f frame, more bool, self state.NodeID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch f := f.(type) {
	case *digest:
		for _, h := range f.Heads {
			if h.Owner == self {
				e.head = h.Mark
			}
		}
	case *same:
		e.ended++
		e.whole, e.equal = e.ended, true
	case *done:
		e.ended++
		if e.equal = false; !more {
			e.whole = e.ended
		}
	}
}

// has reports whether the peer holds what we held when exchange n was opened,
// our own records up to mark among it. Our head is taken from its own mouth:
// it may have refused what it was sent.
func (e *exchanges) has(n uint64, mark state.Mark) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended >= n && e.whole == e.ended && (e.equal || e.head.Compare(mark) >= 0)
}
