// Package limit bounds how fast one client may ask.
//
// A client is an IPv4 address or an IPv6 /64. Each has a bucket of tokens that
// fills at a steady rate; a question takes one. All buckets lie in one table
// of fixed size: a client's bucket takes the place of one that is full again,
// and when there is none it shares one. No lock is taken and nothing is
// allocated, so that a receive loop can ask for every packet.
package limit

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Defaults: what no single well-behaved client needs.
const (
	DefaultRate  = 20000 // questions a second
	DefaultBurst = 40000
)

// slots of the table; a bucket is eight bytes.
const (
	slots = 1 << 16
	ways  = 4 // places that a client's bucket may have
)

// Limiter holds the buckets. Safe for concurrent use. A nil Limiter lets
// everybody pass.
type Limiter struct {
	rate, burst float64
	except      []netip.Prefix
	seed        maphash.Seed
	begin       time.Time
	now         func() time.Time
	slots       [slots]atomic.Uint64
	refused     atomic.Uint64
}

// New returns a Limiter of rate questions a second and bursts of up to burst.
// Clients in except, and this host's own loopback addresses, are not limited.
func New(rate, burst int, except []netip.Prefix) *Limiter {
	l := &Limiter{
		rate: float64(rate), burst: float64(min(max(burst, 1), maxTokens)), except: slices.Clone(except),
		seed: maphash.MakeSeed(), begin: time.Now(), now: time.Now,
	}
	return l
}

// A bucket is packed: 20 bits that tell clients apart, 24 bits of tokens that
// are missing, and 20 bits of time in units of tick. Zero is a full bucket of
// nobody.
const (
	tick      = 16 * time.Millisecond // 20 bits are four and a half hours
	timeBits  = 20
	tokenBits = 24
	tokenUnit = 1.0 / 8 // of a token
	maxTokens = (1<<tokenBits - 1) / 8
)

// Refused is how many questions were over the limit since New.
func (l *Limiter) Refused() uint64 {
	if l == nil {
		return 0
	}
	return l.refused.Load()
}

// Allow takes a token of a client and reports whether there was one.
func (l *Limiter) Allow(client netip.Addr) bool { return l == nil || l.AllowAt(client, l.now()) }

// AllowAt is Allow for callers that know the time.
func (l *Limiter) AllowAt(client netip.Addr, now time.Time) bool {
	if l == nil || client.IsLoopback() {
		return true
	}
	client = client.Unmap()
	for _, p := range l.except {
		if p.Contains(client) {
			return true
		}
	}
	h := l.hash(client)
	tag, ticks := h>>44, uint64(now.Sub(l.begin)/tick)&(1<<timeBits-1)
	for {
		i, old := l.find(h, tag, ticks)
		missing := l.missing(old, ticks)
		if missing+1 > l.burst {
			l.refused.Add(1)
			return false
		}
		units := uint64(math.Ceil((missing + 1) / tokenUnit))
		if l.slots[i].CompareAndSwap(old, tag<<44|min(units, 1<<tokenBits-1)<<timeBits|ticks) {
			return true
		}
	}
}

// hash spreads clients; whoever does not know the seed cannot choose
// addresses that share a bucket.
func (l *Limiter) hash(a netip.Addr) uint64 {
	if a.Is4() {
		b := a.As4()
		return maphash.Comparable(l.seed, binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return maphash.Comparable(l.seed, binary.BigEndian.Uint64(b[:8]))
}

// find returns the client's place: its bucket, or one that is full again, or
// else the one that is nearest to it.
func (l *Limiter) find(h, tag, ticks uint64) (at int, bucket uint64) {
	at, least := -1, math.Inf(1)
	for w := range ways {
		i := int((h + uint64(w)) % slots)
		b := l.slots[i].Load()
		if b != 0 && b>>44 == tag {
			return i, b
		}
		if m := l.missing(b, ticks); m < least {
			at, bucket, least = i, b, m
		}
	}
	return at, bucket
}

// missing is how many tokens a bucket lacks now.
func (l *Limiter) missing(bucket, ticks uint64) float64 {
	if bucket == 0 {
		return 0
	}
	since := (ticks - bucket) & (1<<timeBits - 1)
	units := bucket >> timeBits & (1<<tokenBits - 1)
	return max(0, float64(units)*tokenUnit-float64(since)*tick.Seconds()*l.rate)
}
