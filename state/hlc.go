package state

import (
	"fmt"
	"sync"
	"time"
)

// HLC is a hybrid logical clock reading (Kulkarni et al., 2014): Unix
// milliseconds in the upper 48 bits, a counter in the lower 16.
type HLC uint64

// Time returns the physical part.
func (h HLC) Time() time.Time { return time.UnixMilli(int64(h >> 16)) }

func (h HLC) String() string { return fmt.Sprintf("%d.%d", uint64(h)>>16, uint16(h)) }

// MaxSkew bounds how far a reading from a peer may be ahead of our clock and
// still move it. A record beyond that is stored but does not drag our clock along.
const MaxSkew = 10 * time.Minute

// Clock makes readings that never go back and are later than any reading
// observed within MaxSkew. The zero Clock reads time.Now. It is safe for
// concurrent use.
type Clock struct {
	Now func() time.Time

	mu   sync.Mutex
	last HLC
}

func (c *Clock) wall() HLC {
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	return HLC(uint64(now().UnixMilli()) << 16)
}

// Next returns a reading later than all before it.
func (c *Clock) Next() HLC {
	w := c.wall()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last+1, w)
	return c.last
}

// Observe moves the clock past a reading seen elsewhere, unless that reading
// is too far ahead to be believed; it then reports false.
func (c *Clock) Observe(h HLC) bool {
	w := c.wall()
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.Time().Sub(w.Time()) > MaxSkew {
		return false
	}
	c.last = max(c.last, h)
	return true
}
