package dns

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// TestServeStale: after its end an answer is used while the upstream is away,
// and no longer than told.
func TestServeStale(t *testing.T) {
	for _, mode := range []string{"immediate", "verify", "verify 50ms"} {
		t.Run(mode, func(t *testing.T) {
			var away atomic.Bool
			n := new(atomic.Int64)
			u := newUpstream(t, func(r *wire.Msg, tcp bool) bool {
				if r.Question[0].Name == "." {
					return true
				}
				if away.Load() {
					r.Rcode = wire.RcodeServerFailure
					return true
				}
				return says(fmt.Sprintf("A 192.0.2.%d", n.Add(1)))(r, tcp)
			})
			s, c := caching(t, "cache 60 {\n serve_stale 1h "+mode+"\n }", u)
			step := func(want string, ttl uint32) {
				t.Helper()
				r := ask(t, s, "example.org", "A")
				if got := answers(r); got != want || len(r.Answer) > 0 && r.Answer[0].Header().Ttl != ttl {
					t.Errorf("answer %s, want %s with TTL %d", r, want, ttl)
				}
			}
			step("192.0.2.1", 60)
			away.Store(true)
			c.add(2 * time.Minute)
			step("192.0.2.1", staleTTL)
			waitFor(t, "the failed refresh", func() bool { return u.udp.Load() == 2 })
			step("192.0.2.1", staleTTL) // within the pause after a failure
			if got := u.udp.Load(); got != 2 {
				t.Errorf("the upstream got %d queries", got)
			}
			away.Store(false)
			c.add(time.Minute)
			if mode == "immediate" {
				step("192.0.2.1", staleTTL)
			}
			waitFor(t, "the new answer", func() bool { return answers(ask(t, s, "example.org", "A")) == "192.0.2.2" })
			away.Store(true)
			c.add(2 * time.Hour)
			step("SERVFAIL", 0)
		})
	}
}

// TestPrefetch: a popular answer is asked for again before its end, another
// one is not.
func TestPrefetch(t *testing.T) {
	u := newUpstream(t, says("A 192.0.2.7"))
	s, c := caching(t, "cache 100 {\n prefetch 3 1m 20%\n }", u)
	for _, name := range []string{"rare.example", "popular.example", "popular.example", "popular.example"} {
		ask(t, s, name, "A")
	}
	c.add(50 * time.Second)
	ask(t, s, "popular.example", "A")
	if got := u.udp.Load(); got != 2 {
		t.Errorf("%d queries before the end is near", got)
	}
	c.add(35 * time.Second)
	for _, name := range []string{"popular.example", "rare.example"} {
		if ttl := ask(t, s, name, "A").Answer[0].Header().Ttl; ttl != 15 {
			t.Errorf("%s: TTL %d", name, ttl)
		}
	}
	waitFor(t, "the prefetched answer", func() bool { return ask(t, s, "popular.example", "A").Answer[0].Header().Ttl == 100 })
	if got := u.udp.Load(); got != 3 {
		t.Errorf("%d queries, want 3", got)
	}
}

func TestCacheKeepTTL(t *testing.T) {
	s, c := caching(t, "cache 60 {\n keepttl\n }", newUpstream(t, says("A 192.0.2.7")))
	ask(t, s, "example.org", "A")
	c.add(30 * time.Second)
	if ttl := ask(t, s, "example.org", "A").Answer[0].Header().Ttl; ttl != 300 {
		t.Errorf("TTL %d, want the upstream's 300", ttl)
	}
}

// TestCacheKeys: what may change an answer keeps answers apart, the rest does
// not.
func TestCacheKeys(t *testing.T) {
	u := newUpstream(t, says("A 192.0.2.7"))
	s, _ := caching(t, "cache", u)
	queries := []struct {
		name   string
		change func(*wire.Msg)
		asked  int64 // upstream, in sum
	}{
		{"first", func(*wire.Msg) {}, 1},
		{"again", func(*wire.Msg) {}, 1},
		{"another case", func(m *wire.Msg) { m.Question[0].Name = "EXAMPLE.org." }, 1},
		{"EDNS", func(m *wire.Msg) { m.SetEdns0(4096, false) }, 1},
		{"AD", func(m *wire.Msg) { m.AuthenticatedData = true }, 1},
		{"DO", func(m *wire.Msg) { m.SetEdns0(1232, true) }, 2},
		{"CD", func(m *wire.Msg) { m.CheckingDisabled = true }, 3},
		{"type", func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeMX }, 4},
		{"no recursion is never kept", func(m *wire.Msg) { m.RecursionDesired = false }, 5},
		{"no recursion again", func(m *wire.Msg) { m.RecursionDesired = false }, 6},
		{"the first is still there", func(*wire.Msg) {}, 6},
	}
	for _, q := range queries {
		m := new(wire.Msg)
		m.SetQuestion("example.org.", wire.TypeA)
		q.change(m)
		if r := send(t, s, m); r.Question[0].Name != m.Question[0].Name || r.Rcode != wire.RcodeSuccess {
			t.Errorf("%s: reply %v", q.name, r)
		}
		if got := u.udp.Load(); got != q.asked {
			t.Errorf("%s: %d queries so far, want %d", q.name, got, q.asked)
		}
	}
}
