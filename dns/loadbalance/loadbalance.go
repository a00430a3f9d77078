// Package loadbalance orders the addresses of an answer: clients take the
// first.
package loadbalance

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

type loadbalance struct {
	prefer []netip.Prefix
	file   string        // weights; empty: every address alike
	every  time.Duration // the file is read again; 0: never

	log     *slog.Logger
	weights atomic.Pointer[weights]
	text    string                // read last
	random  func(n uint64) uint64 // below n
}

// Parse reads `loadbalance [round_robin|weighted FILE] { reload DURATION;
// prefer PREFIX... }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	const syntax = "loadbalance [round_robin | weighted FILE]"
	l := &loadbalance{every: 30 * time.Second, random: rand.Uint64N}
	if len(d.Args) > 0 {
		switch d.Args[0] {
		case "round_robin":
			s.Args(d, 1, 1, syntax)
		case "weighted":
			if s.Args(d, 2, 2, syntax) {
				l.file = s.Path(d.Args[1])
			}
		default:
			s.Errorf(d.Pos, "loadbalance: policy %q is not known, write round_robin or weighted FILE", d.Args[0])
		}
	}
	for _, o := range d.Block {
		switch {
		case o.Name == "prefer":
			s.Args(o, 1, -1, "prefer PREFIX...")
			for _, a := range o.Args {
				if p, ok := s.Prefix(o, a); ok {
					l.prefer = append(l.prefer, p)
				}
			}
		case o.Name == "reload" && l.file != "":
			if s.Args(o, 1, 1, "reload DURATION") {
				l.every, _ = s.Duration(o, "interval", o.Args[0], 0)
			}
		case o.Name == "reload":
			s.Errorf(o.Pos, "loadbalance: reload is for weighted only, remove it")
		default:
			s.Unknown(d, o, "prefer", "reload")
		}
	}
	return l
}

// Attach implements plugin.Attacher.
func (l *loadbalance) Attach(e plugin.Env) {
	l.log = e.Logger
	if l.file != "" {
		l.refresh()
	}
}

// Run implements plugin.Runner.
func (l *loadbalance) Run(ctx context.Context) {
	if l.file == "" || l.every <= 0 {
		return
	}
	t := time.NewTicker(l.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			l.refresh()
		}
	}
}

func (l *loadbalance) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	m, err := next(ctx, q)
	if m != nil && len(m.Answer) > 1 {
		m.Answer = l.order(m.Answer)
	}
	return m, err
}

// order moves aliases before everything else, for resolvers that read from
// the top, and then each run of records of one kind around.
func (l *loadbalance) order(rrs []wire.RR) []wire.RR {
	var out, addrs, mx, rest []wire.RR
	for _, rr := range rrs {
		switch rr.Header().Rrtype {
		case wire.TypeCNAME, wire.TypeDNAME:
			out = append(out, rr)
		case wire.TypeA, wire.TypeAAAA:
			addrs = append(addrs, rr)
		case wire.TypeMX:
			mx = append(mx, rr)
		default:
			rest = append(rest, rr)
		}
	}
	if w := l.weights.Load(); w != nil && len(addrs) > 1 {
		first := w.pick(addrs, l.random)
		addrs[0], addrs[first] = addrs[first], addrs[0]
	} else {
		addrs = l.rotate(addrs)
	}
	if len(l.prefer) > 0 {
		slices.SortStableFunc(addrs, func(a, b wire.RR) int { return l.rank(a) - l.rank(b) })
	}
	return append(append(append(out, addrs...), l.rotate(mx)...), rest...)
}

func (l *loadbalance) rotate(rrs []wire.RR) []wire.RR {
	if len(rrs) < 2 {
		return rrs
	}
	n := l.random(uint64(len(rrs)))
	return append(slices.Clone(rrs[n:]), rrs[:n]...)
}

// rank is the place of the first preferred prefix that an address is in.
func (l *loadbalance) rank(rr wire.RR) int {
	a := addrOf(rr)
	if i := slices.IndexFunc(l.prefer, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		return i
	}
	return len(l.prefer)
}

func addrOf(rr wire.RR) (a netip.Addr) {
	switch rr := rr.(type) {
	case *wire.A:
		a, _ = netip.AddrFromSlice(rr.A)
	case *wire.AAAA:
		a, _ = netip.AddrFromSlice(rr.AAAA)
	}
	return a.Unmap()
}

// Rotates reports whether addresses are rotated at random and nothing else is
// done, which the receive loop can do by itself.
func (l *loadbalance) Rotates() bool { return l.file == "" && len(l.prefer) == 0 }
