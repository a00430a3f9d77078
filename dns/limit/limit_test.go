package limit

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Clients: 198.51.100.0/24, 10.0.0.0/8 and 2001:db8::/32.
func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestAllow(t *testing.T) {
	l := New(100, 50, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	now := time.Now()
	take := func(client string, n int) (allowed int) {
		for range n {
			if l.AllowAt(addr(client), now) {
				allowed++
			}
		}
		return allowed
	}
	steps := []struct {
		name, client string
		wait         time.Duration
		ask, want    int
	}{
		{"a burst", "198.51.100.1", 0, 60, 50},
		{"another client", "198.51.100.2", 0, 60, 50},
		{"no token yet", "198.51.100.1", 0, 5, 0},
		{"a tenth of a second", "198.51.100.1", 160 * time.Millisecond, 60, 16},
		{"full again", "198.51.100.1", time.Second, 60, 50},
		{"v4 in v6 is the same client", "::ffff:198.51.100.1", 0, 5, 0},
		{"excepted", "10.1.2.3", 0, 500, 500},
		{"loopback", "127.0.0.9", 0, 500, 500},
		{"IPv6", "2001:db8::1", 0, 60, 50},
		{"the same /64", "2001:db8::2", 0, 5, 0},
		{"another /64", "2001:db8:0:1::2", 0, 5, 5},
		{"days later", "198.51.100.1", 50 * time.Hour, 60, 50},
	}
	for _, s := range steps {
		now = now.Add(s.wait)
		if got := take(s.client, s.ask); got != s.want {
			t.Errorf("%s: %d of %d, want %d", s.name, got, s.ask, s.want)
		}
	}
	if got := l.Refused(); got != 10+10+5+44+10+5+10+5+10 {
		t.Errorf("Refused %d", got)
	}
	var none *Limiter
	if !none.Allow(addr("198.51.100.1")) || none.Refused() != 0 {
		t.Error("a nil Limiter limits")
	}
}

// TestConcurrent: however many ask at once, a client gets its burst.
func TestConcurrent(t *testing.T) {
	l := New(1, 1000, nil)
	now := time.Now()
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if l.AllowAt(addr("198.51.100.1"), now) {
					allowed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if allowed.Load() != 1000 {
		t.Errorf("%d allowed, want 1000", allowed.Load())
	}
}

// TestFlood: clients without number, none of which asks too much, do not
// keep out one another for long.
func TestFlood(t *testing.T) {
	l := New(1000, 1000, nil)
	now := time.Now()
	refused := 0
	for i := range 1 << 20 {
		a := netip.AddrFrom4([4]byte{byte(100 + i>>24), byte(i >> 16), byte(i >> 8), byte(i)})
		if !l.AllowAt(a, now) {
			refused++
		}
	}
	if refused > 0 {
		t.Errorf("%d of %d clients refused", refused, 1<<20)
	}
}

func BenchmarkAllow(b *testing.B) {
	l := New(DefaultRate, DefaultBurst, nil)
	now := time.Now()
	a := addr("198.51.100.1")
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		l.AllowAt(a, now)
	}
}
