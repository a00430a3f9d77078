package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is what the server does now.
type Status struct {
	Desired, Applied uint64 // revisions of the data that was set and of the zones
	OK               bool
	Detail           string // one line for people
	Error, Fix       string // the lasting problems and what to do; empty: none
	Listening        []netip.AddrPort
	Queries          uint64  // since New
	QPS              float64 // over the last seconds
	CacheHit         float64 // percent of the queries that were not answered from own data; -1: none yet
	Upstreams        []Upstream
	// Saved says that answers about the cluster are from saved state: others
	// are known, and none was heard since start.
	Saved bool
}

// Upstream is a server that queries are forwarded to.
type Upstream struct {
	Addr    netip.AddrPort
	Healthy bool
	Looping bool          // it sends queries back to this node and is not used
	RTT     time.Duration // smoothed; 0: not measured
}

// Status reports what the server does. It is cheap and safe to call at any
// time.
func (s *Server) Status() Status {
	st := Status{Queries: s.metrics.queries.Load(), CacheHit: -1}
	if v := s.pending.Load(); v != nil {
		st.Desired = v.Rev
	}
	if v := s.applied.Load(); v != nil {
		st.Applied = v.Rev
	}
	hits, misses := s.metrics.hits.Load(), s.metrics.misses.Load()
	if hits+misses > 0 {
		st.CacheHit = 100 * float64(hits) / float64(hits+misses)
	}
	st.Upstreams = s.upstreams()
	st.Saved = s.saved.Load()
	s.mu.Lock()
	st.Listening, st.QPS = s.listening, s.rate
	var errs, fixes []string
	for _, p := range s.problems {
		errs = append(errs, p.err)
		if !slices.Contains(fixes, p.fix) {
			fixes = append(fixes, p.fix)
		}
	}
	s.mu.Unlock()
	slices.Sort(errs)
	slices.Sort(fixes)
	st.Error, st.Fix = strings.Join(errs, "; "), strings.Join(fixes, "; ")
	st.OK = s.running.Load() && len(errs) == 0
	st.Detail = st.line()
	return st
}

// upstreams lists those of all blocks, each address once.
func (s *Server) upstreams() (out []Upstream) {
	for _, b := range s.live.Load().blocks {
		for _, p := range b.plugins {
			f, ok := p.Plugin.(*forward)
			if !ok {
				continue
			}
			for _, u := range *f.upstreams.Load() {
				if slices.ContainsFunc(out, func(o Upstream) bool { return o.Addr == u.addr }) {
					continue
				}
				loops := u.looping.Load()
				out = append(out, Upstream{Addr: u.addr, Healthy: !u.down.Load() && !loops, Looping: loops, RTT: time.Duration(u.rtt.Load())})
			}
		}
	}
	return out
}

// line writes "10.96.0.10:53, 1.2k q/s, cache 83 %, forward 192.168.1.1 ok 3 ms".
func (st *Status) line() string {
	var parts []string
	switch n := len(st.Listening); n {
	case 0:
		parts = append(parts, "no address")
	case 1:
		parts = append(parts, st.Listening[0].String())
	default:
		parts = append(parts, fmt.Sprintf("%s and %d more", st.Listening[0], n-1))
	}
	if st.Saved {
		parts = append(parts, "saved state")
	}
	parts = append(parts, perSecond(st.QPS)+" q/s")
	if st.CacheHit >= 0 {
		parts = append(parts, fmt.Sprintf("cache %.0f %%", st.CacheHit))
	}
	for _, u := range st.Upstreams {
		addr := u.Addr.Addr().String()
		if u.Addr.Port() != defaultPort {
			addr = u.Addr.String()
		}
		switch {
		case u.Looping:
			addr += " loops"
		case !u.Healthy:
			addr += " down"
		case u.RTT > 0:
			addr += " ok " + short(u.RTT)
		default:
			addr += " not asked yet"
		}
		parts = append(parts, "forward "+addr)
	}
	return strings.Join(parts, ", ")
}

// perSecond writes a rate with at most three digits: 0, 12, 1.2k.
func perSecond(r float64) string {
	switch {
	case r >= 1e6:
		return strconv.FormatFloat(r/1e6, 'f', 1, 64) + "M"
	case r >= 1e3:
		return strconv.FormatFloat(r/1e3, 'f', 1, 64) + "k"
	}
	return strconv.FormatFloat(r, 'f', 0, 64)
}

// short writes a round trip time: 0.21 ms, 3 ms.
func short(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 1 {
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

func portString(ap netip.AddrPort) string { return strconv.Itoa(int(ap.Port())) }
