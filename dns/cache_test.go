package dns

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"pgregory.net/rapid"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// caching starts a server with a cache in front of one upstream.
func caching(t testing.TB, line string, u *fakeUpstream) (*Server, *clock) {
	t.Helper()
	c := &clock{now: time.Unix(1e9, 0)}
	text := fmt.Sprintf(". {\n %s\n cluster\n forward . %s\n}\n", line, u.addr)
	s := running(t, Options{Servers: servers(t, text)}, testView())
	for _, p := range s.live.Load().blocks[0].plugins {
		if p, ok := p.Plugin.(*cache); ok {
			p.now = c.Now
		}
	}
	return s, c
}

func TestCacheTTL(t *testing.T) {
	u := newUpstream(t, func(r *wire.Msg, _ bool) bool {
		r.Answer = []wire.RR{rr("example.org. 300 IN CNAME a.example."), rr("a.example. 20 IN A 192.0.2.7")}
		return true
	})
	s, c := caching(t, "cache", u)
	ttls := func() string {
		var out []string
		for _, a := range ask(t, s, "Example.ORG", "A").Answer {
			out = append(out, fmt.Sprintf("%s %d", a.Header().Name, a.Header().Ttl))
		}
		return strings.Join(out, ", ")
	}
	steps := []struct {
		wait time.Duration
		want string
		sent int64
	}{
		{0, "Example.ORG. 20, a.example. 20", 1}, // as long as the whole answer lives
		{0, "Example.ORG. 20, a.example. 20", 1},
		{12 * time.Second, "Example.ORG. 8, a.example. 8", 1},
		{7 * time.Second, "Example.ORG. 1, a.example. 1", 1},
		{time.Second, "Example.ORG. 20, a.example. 20", 2},
	}
	for i, st := range steps {
		c.add(st.wait)
		got := ttls()
		// The case of the upstream's own records stays as it was sent.
		if !strings.EqualFold(got, st.want) || u.udp.Load() != st.sent {
			t.Errorf("step %d: %s after %d queries, want %s after %d", i, got, u.udp.Load(), st.want, st.sent)
		}
	}
	if st := s.Status(); st.CacheHit != 60 || !strings.Contains(st.Detail, "cache 60 %") {
		t.Errorf("hit rate %v, %q", st.CacheHit, st.Detail)
	}
}

// TestCacheNegative: RFC 2308 — the SOA decides, without one nothing is kept.
func TestCacheNegative(t *testing.T) {
	soa := "example. 600 IN SOA ns.example. mbox.example. 1 2 3 4 60"
	tests := []struct {
		name, line string
		rcode      int
		soa        string
		keeps      time.Duration
	}{
		{"NXDOMAIN", "cache", wire.RcodeNameError, soa, 60 * time.Second},
		{"NODATA", "cache", wire.RcodeSuccess, soa, 60 * time.Second},
		{"the SOA's own TTL is less", "cache", wire.RcodeNameError, strings.Replace(soa, "600", "10", 1), 10 * time.Second},
		{"limit of the directive", "cache 30", wire.RcodeNameError, soa, 30 * time.Second},
		{"limit of denial", "cache 3600 {\n denial 100 5\n }", wire.RcodeNameError, soa, 5 * time.Second},
		{"no SOA", "cache", wire.RcodeNameError, "", 0},
		{"disabled", "cache {\n disable denial\n }", wire.RcodeNameError, soa, 0},
		{"SERVFAIL", "cache", wire.RcodeServerFailure, "", time.Second},
		{"SERVFAIL, longer", "cache {\n servfail 10s\n }", wire.RcodeServerFailure, "", 10 * time.Second},
		{"SERVFAIL, not", "cache {\n servfail 0\n }", wire.RcodeServerFailure, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := newUpstream(t, func(r *wire.Msg, _ bool) bool {
				r.Rcode = tt.rcode
				if tt.soa != "" {
					r.Ns = []wire.RR{rr(tt.soa)}
				}
				return true
			})
			s, c := caching(t, tt.line, u)
			ask(t, s, "no.example", "A")
			if tt.keeps > 0 {
				c.add(tt.keeps - time.Millisecond)
				if r := ask(t, s, "no.example", "A"); r.Rcode != tt.rcode || u.udp.Load() != 1 {
					t.Errorf("%s after %d queries, want one from the cache", wire.RcodeToString[r.Rcode], u.udp.Load())
				}
				c.add(time.Millisecond)
			}
			if ask(t, s, "no.example", "A"); u.udp.Load() != 2 {
				t.Errorf("%d queries, want 2: kept for longer than %s", u.udp.Load(), tt.keeps)
			}
		})
	}
}

// TestCacheKey: what changes the answer is part of the key.
func TestCacheKey(t *testing.T) {
	u := newUpstream(t, says("A 192.0.2.7"))
	s, _ := caching(t, "cache", u)
	want := int64(0)
	for _, do := range []bool{false, true} {
		for _, cd := range []bool{false, true} {
			for _, qtype := range []uint16{wire.TypeA, wire.TypeTXT} {
				m := new(wire.Msg)
				m.SetQuestion("example.org.", qtype)
				m.CheckingDisabled = cd
				if do {
					m.SetEdns0(1232, true)
				}
				want++
				send(t, s, m.Copy())
				send(t, s, m)
				if u.udp.Load() != want {
					t.Errorf("do %v cd %v type %d: %d queries, want %d", do, cd, qtype, u.udp.Load(), want)
				}
			}
		}
	}
}

// TestCacheLeavesClusterAlone: a change of the cluster is seen at once.
func TestCacheLeavesClusterAlone(t *testing.T) {
	u := newUpstream(t, fails(wire.RcodeNameError))
	s, _ := caching(t, "cache", u)
	const name = "web-service.apps.svc.cluster.local"
	if got := answers(ask(t, s, name, "A")); got != "10.107.37.188" {
		t.Fatal(got)
	}
	v := testView()
	v.Rev++
	v.Service("apps/web-service").VIP = addr("10.107.37.189")
	s.Set(v)
	waitFor(t, "the new revision", func() bool { return s.Status().Applied == v.Rev })
	if got := answers(ask(t, s, name, "A")); got != "10.107.37.189" {
		t.Errorf("answer %s", got)
	}
}

// TestStoreIsBounded: neither entries nor bytes exceed their bounds, and the
// books are right.
func TestStoreIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newStore(storeOptions{entries: 64, max: time.Hour})
		now := time.Unix(1e9, 0)
		for range rapid.IntRange(1, 300).Draw(t, "puts") {
			m := &wire.Msg{Answer: []wire.RR{rr("a. 300 IN A 192.0.2.1")}}
			k := cacheKey{name: fmt.Sprint(rapid.IntRange(0, 200).Draw(t, "name"))}
			s.put(k, m, time.Minute, now)
			now = now.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "seconds")) * time.Second)
			if s.get(k, now.Add(-time.Hour)) == nil {
				t.Fatal("what was just stored is gone")
			}
		}
		for i := range s.shards {
			sh, size := &s.shards[i], 0
			for _, el := range sh.entries {
				size += el.Value.(*entry).size
			}
			if len(sh.entries) > 64/cacheShards || len(sh.entries) != sh.recent.Len() || size != sh.bytes {
				t.Fatalf("shard of %d entries, list %d, %d bytes counted as %d", len(sh.entries), sh.recent.Len(), size, sh.bytes)
			}
		}
	})
}
