package node

import (
	"sync"
	"time"
)

// maxSkew is from where on a difference to the peers' clocks is no longer put
// down to measurement and ordinary drift.
const maxSkew = time.Minute

// skewEvery is how long one look at the peers' clocks is good for.
const skewEvery = time.Second

// clusterClock says what time it is for what all nodes must judge alike: the
// ends of leases. A node whose clock was set a day ahead would otherwise take
// everybody's leases for ended, and give their addresses out again. The zero
// value is the local clock; it is safe for concurrent use once in use.
type clusterClock struct {
	// skews returns the median of how far the peers' clocks are ahead of ours,
	// and how many peers that is of; nil: there are none.
	skews func() (median time.Duration, peers int)
	local func() time.Time // nil: time.Now

	mu    sync.Mutex
	at    time.Time
	ahead time.Duration
}

// now returns the local time, corrected where it is far from the peers'.
func (c *clusterClock) now() time.Time {
	now := time.Now()
	if c.local != nil {
		now = c.local()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if since := now.Sub(c.at); c.at.IsZero() || since < 0 || since >= skewEvery {
		c.at = now
		if c.skews != nil {
			c.ahead = correction(c.skews())
		}
	}
	return now.Add(c.ahead)
}

// correction is what to add to our clock. Most of several peers are right
// where we differ. With a single peer nobody knows which of the two clocks is
// wrong: then the one that is behind counts, because a lease that is kept too long
// harms nobody.
func correction(median time.Duration, peers int) time.Duration {
	if median.Abs() < maxSkew || peers == 1 && median > 0 {
		return 0
	}
	return median
}
