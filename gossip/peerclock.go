package gossip

import (
	"sync"
	"time"
)

// peerClock estimates how far a peer's wall clock is ahead of ours, as NTP does
// (RFC 5905 section 8): the peer's reading is taken to be from the middle of
// the round trip. The error is at most half of that; of the last few samples
// the one with the shortest trip counts. The zero value has no estimate. It is
// safe for concurrent use.
type peerClock struct {
	mu   sync.Mutex
	last [8]clockSample
	n    int // samples so far
}

type clockSample struct {
	trip, ahead time.Duration
}

// sample takes in an answer that came now after a trip, with the peer's
// reading in Unix microseconds; 0 is none.
func (c *peerClock) sample(trip time.Duration, micro int64, now time.Time) {
	if micro == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := clockSample{trip, time.UnixMicro(micro).Sub(now.Add(-trip / 2))}
	if best, ok := c.best(); ok && (s.ahead-best.ahead).Abs() > s.trip+best.trip {
		c.n = 0 // more than errors explain: one of the clocks was set
	}
	c.last[c.n%len(c.last)] = s
	c.n++
}

func (c *peerClock) best() (clockSample, bool) {
	if c.n == 0 {
		return clockSample{}, false
	}
	b := c.last[0]
	for _, s := range c.last[1:min(c.n, len(c.last))] {
		if s.trip < b.trip {
			b = s
		}
	}
	return b, true
}

// ahead returns how far the peer's clock is ahead of ours, behind if negative;
// false: not known.
func (c *peerClock) ahead() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.best()
	return s.ahead, ok
}
