package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
)

// Limits of forwarding.
const (
	forwardTimeout     = 5 * time.Second // of a query, all attempts; glibc gives up then
	probeTimeout       = 2 * time.Second
	refreshEvery       = 5 * time.Second
	loopRetest         = 30 * time.Second
	defaultConcurrent  = 4096 // queries in flight of one directive
	defaultMaxFails    = 2
	defaultExpire      = 10 * time.Second
	defaultHealthCheck = 500 * time.Millisecond
)

// policy says in which order upstreams are tried.
type policy uint8

const (
	policyRandom policy = iota
	policyRoundRobin
	policySequential
)

// forward sends queries to other servers.
type forward struct {
	from       string
	to         []target
	except     zones
	forceTCP   bool
	preferUDP  bool
	expire     time.Duration
	maxFails   uint32
	policy     policy
	every      time.Duration // health probes of an upstream that is down
	concurrent int64

	srv       *Server
	block     *block
	loop      *loop // nil: `loop` is not given
	upstreams atomic.Pointer[[]*upstream]
	inflight  atomic.Int64
	turn      atomic.Uint32
	wake      chan struct{} // capacity 1: an upstream went down
	probes    sync.WaitGroup
}

// target is one TO: an address, or a file like resolv.conf.
type target struct {
	addr netip.AddrPort
	file string
}

func parseForward(p *parser, d config.Directive) plugin {
	f := &forward{
		expire: defaultExpire, maxFails: defaultMaxFails, every: defaultHealthCheck,
		concurrent: defaultConcurrent, wake: make(chan struct{}, 1),
	}
	if !p.args(d, 2, -1, d.Name+" FROM TO...") {
		return nil
	}
	from, err := parseZone(d.Args[0])
	if err != nil || len(from) != 1 {
		p.errorf(d.Pos, "%s: FROM %q is not one zone", d.Name, d.Args[0])
		return nil
	}
	f.from = from[0]
	for _, s := range d.Args[1:] {
		t, err := parseTarget(s)
		if err != nil {
			p.errorf(d.Pos, "%s: %v", d.Name, err)
			continue
		}
		f.to = append(f.to, t)
	}
	for _, o := range d.Block {
		f.option(p, d, o)
	}
	p.block.recurse = true
	return f
}

// option reads one line of the nested block.
func (f *forward) option(p *parser, d, o config.Directive) {
	arg := ""
	if len(o.Args) > 0 {
		arg = o.Args[0]
	}
	switch o.Name {
	case "except":
		if p.args(o, 1, -1, "except ZONE...") {
			f.except = append(f.except, p.zoneArgs(o, o.Args)...)
		}
	case "force_tcp":
		f.forceTCP = true
	case "prefer_udp":
		f.preferUDP = true
	case "expire":
		if p.args(o, 1, 1, "expire DURATION") {
			f.expire, _ = p.duration(o, "time", arg, time.Second)
		}
	case "max_fails":
		if p.args(o, 1, 1, "max_fails NUMBER") {
			n, _ := p.number(o, "number", arg, 0, 1000)
			f.maxFails = uint32(n)
		}
	case "policy":
		policies := map[string]policy{"random": policyRandom, "round_robin": policyRoundRobin, "sequential": policySequential}
		pol, ok := policies[arg]
		if !ok || len(o.Args) != 1 {
			p.errorf(o.Pos, "%s: policy %q is not known, write random, round_robin or sequential", d.Name, strings.Join(o.Args, " "))
		}
		f.policy = pol
	case "health_check":
		if p.args(o, 1, -1, "health_check DURATION") {
			f.every, _ = p.duration(o, "interval", arg, 10*time.Millisecond)
			if len(o.Args) > 1 {
				p.errorf(o.Pos, "%s: health_check %s is not supported, remove it", d.Name, strings.Join(o.Args[1:], " "))
			}
		}
	case "max_concurrent":
		if p.args(o, 1, 1, "max_concurrent NUMBER") {
			n, _ := p.number(o, "number", arg, 1, 1<<20)
			f.concurrent = int64(n)
		}
	case "tls", "tls_servername":
		p.errorf(o.Pos, "%s: %s is not supported, upstreams are asked over plain DNS: remove it", d.Name, o.Name)
	default:
		p.unknown(d, o, "except", "force_tcp", "prefer_udp", "expire", "max_fails", "policy", "health_check", "max_concurrent")
	}
}

func parseTarget(s string) (target, error) {
	if filepath.IsAbs(s) {
		return target{file: filepath.Clean(s)}, nil
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		if scheme != "dns" {
			return target{}, fmt.Errorf("%s: upstreams over %s are not supported, write a plain address", s, scheme)
		}
		s = rest
	}
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return target{addr: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return target{addr: netip.AddrPortFrom(a.Unmap(), defaultPort)}, nil
	}
	return target{}, fmt.Errorf("%q is not an address, an address with a port or an absolute path of a resolv.conf", s)
}

func (f *forward) attach(s *Server, b *block) {
	f.srv, f.block = s, b
	for _, p := range b.plugins {
		if l, ok := p.(*loop); ok {
			f.loop = l
		}
	}
	f.refresh()
}

// order returns the upstreams in the order to try, usable ones first. Those
// that are down come last: when all are, one of them may be back.
func (f *forward) order() []*upstream {
	all := *f.upstreams.Load()
	n := len(all)
	if n == 0 {
		return nil
	}
	first := 0
	switch f.policy {
	case policyRandom:
		first = rand.IntN(n)
	case policyRoundRobin:
		first = int(f.turn.Add(1) % uint32(n))
	}
	var up, down []*upstream
	for i := range n {
		u := all[(first+i)%n]
		switch {
		case u.looping.Load() || f.isOwn(u.addr):
		case u.down.Load():
			down = append(down, u)
		default:
			up = append(up, u)
		}
	}
	return append(up, down...)
}

func (f *forward) serve(ctx context.Context, q *query, next handler) (*wire.Msg, error) {
	if !inZone(f.from, q.name) || f.except.match(q.name) != "" {
		return next(ctx, q)
	}
	q.source = "forward"
	if f.inflight.Add(1) > f.concurrent {
		f.inflight.Add(-1)
		f.srv.metrics.shed.Inc()
		q.explain(wire.ExtendedErrorCodeOther, "too many queries in flight")
		return refusal(wire.RcodeRefused), nil
	}
	defer f.inflight.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()

	list := f.order()
	if len(list) == 0 {
		q.explain(wire.ExtendedErrorCodeNoReachableAuthority, "no upstream: "+f.written()+" names no server outside of this node")
		return refusal(wire.RcodeServerFailure), nil
	}
	tcp := f.forceTCP || q.tcp && !f.preferUDP
	var (
		bad  *wire.Msg // the first answer that is none
		last error
	)
	for i, u := range list {
		r, err := f.try(ctx, u, q, tcp, i < len(list)-1)
		if err != nil {
			last = err
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if r.Rcode != wire.RcodeServerFailure && r.Rcode != wire.RcodeRefused {
			return cleaned(r), nil
		}
		if bad == nil {
			bad = cleaned(r)
		}
	}
	if bad != nil {
		return bad, nil
	}
	q.explain(wire.ExtendedErrorCodeNoReachableAuthority, last.Error())
	return nil, last
}

// try asks one upstream; with impatience when there is another one.
func (f *forward) try(ctx context.Context, u *upstream, q *query, tcp, more bool) (*wire.Msg, error) {
	attempt := ctx
	if more {
		var cancel context.CancelFunc
		attempt, cancel = context.WithTimeout(ctx, u.patience())
		defer cancel()
	}
	r, err := u.exchange(attempt, upstreamQuery(q), tcp)
	f.judge(attempt, u, err)
	f.srv.metrics.forwarded(u.addr, r, err)
	return r, err
}

// upstreamQuery is the client's question with an ID and EDNS of our own:
// options belong to one hop (RFC 6891 section 6.1.1).
func upstreamQuery(q *query) *wire.Msg {
	m := &wire.Msg{Question: slices.Clone(q.msg.Question)}
	m.Id = wire.Id()
	m.RecursionDesired = true
	m.CheckingDisabled = q.msg.CheckingDisabled
	m.AuthenticatedData = q.msg.AuthenticatedData
	m.SetEdns0(defaultBufsize, q.do)
	return m
}

// cleaned strips what belongs to the hop to the upstream.
func cleaned(r *wire.Msg) *wire.Msg {
	m := &wire.Msg{Answer: r.Answer, Ns: r.Ns}
	m.Rcode = r.Rcode
	m.AuthenticatedData = r.AuthenticatedData
	for _, rr := range r.Extra {
		if t := rr.Header().Rrtype; t != wire.TypeOPT && t != wire.TypeTSIG {
			m.Extra = append(m.Extra, rr)
		}
	}
	return m
}
