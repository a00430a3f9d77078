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
	"nodenet/dns/plugin"
)

// Limits of forwarding.
const (
	forwardTimeout     = 5 * time.Second // of a query, all attempts; glibc gives up then
	probeTimeout       = 2 * time.Second
	maxTargets         = 15
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
	except     plugin.Zones
	forceTCP   bool
	preferUDP  bool
	expire     time.Duration
	maxFails   uint32
	policy     policy
	every      time.Duration // health probes of an upstream that is down
	concurrent int64
	failover   []int // codes after which the next upstream is asked
	next       []int // codes after which the next directive is asked
	nextNodata bool  // also after an answer without data
	failfast   bool  // fail at once when all upstreams are down
	attempts   int   // upstreams that one query may ask; 0: all
	dial       dialOptions
	probeName  string // of health probes
	probeNoRec bool   // they do not ask for recursion

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
	addr   netip.AddrPort
	file   string
	secure bool   // DNS over TLS
	name   string // of the server's certificate; empty: tls_servername, or the address
}

func parseForward(p *parser, d config.Directive) plugin.Plugin {
	f := &forward{
		expire: defaultExpire, maxFails: defaultMaxFails, every: defaultHealthCheck,
		concurrent: defaultConcurrent, wake: make(chan struct{}, 1), probeName: ".",
		failover: []int{wire.RcodeServerFailure, wire.RcodeRefused},
		dial:     dialOptions{idle: maxIdle},
	}
	if !p.Args(d, 2, -1, d.Name+" FROM TO...") {
		return nil
	}
	from, err := plugin.ParseZone(d.Args[0])
	if err != nil || len(from) != 1 {
		p.Errorf(d.Pos, "%s: FROM %q is not one zone", d.Name, d.Args[0])
		return nil
	}
	f.from = from[0]
	for _, s := range d.Args[1:] {
		t, err := parseTarget(s)
		if err != nil {
			p.Errorf(d.Pos, "%s: %v", d.Name, err)
			continue
		}
		f.to = append(f.to, t)
	}
	for _, o := range d.Block {
		f.option(p, d, o)
	}
	if len(f.to) > maxTargets {
		p.Errorf(d.Pos, "%s: more than %d upstreams", d.Name, maxTargets)
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
		if p.Args(o, 1, -1, "except ZONE...") {
			f.except = append(f.except, p.ZoneArgs(o, o.Args)...)
		}
	case "force_tcp":
		f.forceTCP = p.Args(o, 0, 0, "force_tcp")
	case "prefer_udp":
		f.preferUDP = p.Args(o, 0, 0, "prefer_udp")
	case "expire":
		if p.Args(o, 1, 1, "expire DURATION") {
			f.expire, _ = p.Duration(o, "time", arg, time.Second)
		}
	case "max_fails":
		if p.Args(o, 1, 1, "max_fails NUMBER") {
			n, _ := p.Number(o, "number", arg, 0, 1000)
			f.maxFails = uint32(n)
		}
	case "max_connect_attempts":
		if p.Args(o, 1, 1, "max_connect_attempts NUMBER") {
			f.attempts, _ = p.Number(o, "number", arg, 0, 1000)
		}
	case "max_idle_conns":
		if p.Args(o, 1, 1, "max_idle_conns NUMBER") {
			n, _ := p.Number(o, "number", arg, 0, 1<<16)
			if f.dial.idle = n; n == 0 {
				f.dial.idle = maxIdle
			}
		}
	case "read_timeout":
		if p.Args(o, 1, 1, "read_timeout DURATION") {
			f.dial.patience, _ = p.Duration(o, "time", arg, 10*time.Millisecond)
		}
	case "source_address":
		if p.Args(o, 1, 1, "source_address ADDRESS") {
			a, err := netip.ParseAddr(arg)
			if err != nil {
				p.Errorf(o.Pos, "%s: source_address %q is not an address", d.Name, arg)
			}
			f.dial.source = a.Unmap()
		}
	case "policy":
		policies := map[string]policy{"random": policyRandom, "round_robin": policyRoundRobin, "sequential": policySequential}
		pol, ok := policies[arg]
		if !ok || len(o.Args) != 1 {
			p.Errorf(o.Pos, "%s: policy %q is not known, write random, round_robin or sequential", d.Name, strings.Join(o.Args, " "))
		}
		f.policy = pol
	case "health_check":
		f.healthCheck(p, d, o)
	case "max_concurrent":
		if p.Args(o, 1, 1, "max_concurrent NUMBER") {
			n, _ := p.Number(o, "number", arg, 1, 1<<20)
			f.concurrent = int64(n)
		}
	case "failover":
		f.failover = append(f.failover, f.codes(p, d, o)...)
	case "next":
		f.next = append(f.next, f.codes(p, d, o)...)
	case "next_on_nodata":
		f.nextNodata = p.Args(o, 0, 0, "next_on_nodata")
	case "failfast_all_unhealthy_upstreams":
		f.failfast = p.Args(o, 0, 0, o.Name)
	case "tls":
		if p.Args(o, 0, 3, "tls [CERT KEY] [CA]") {
			f.dial.certificates(p.Setup, o.Args)
		}
	case "tls_servername":
		if p.Args(o, 1, 1, "tls_servername NAME") {
			f.dial.name = strings.TrimSuffix(arg, ".")
		}
	case "doh_method":
		p.Errorf(o.Pos, "%s: doh_method: upstreams are asked over UDP, TCP or TLS, remove it", d.Name)
	case "resolver":
		p.Errorf(o.Pos, "%s: resolver is for upstreams with a name, write their addresses", d.Name)
	default:
		p.Unknown(d, o, "except", "force_tcp", "prefer_udp", "expire", "max_fails", "max_connect_attempts", "max_idle_conns", "read_timeout",
			"source_address", "policy", "health_check", "max_concurrent", "failover", "next", "next_on_nodata",
			"failfast_all_unhealthy_upstreams", "tls", "tls_servername")
	}
}

// healthCheck reads `health_check DURATION [no_rec] [domain NAME]`.
func (f *forward) healthCheck(p *parser, d, o config.Directive) {
	if !p.Args(o, 1, -1, "health_check DURATION [no_rec] [domain NAME]") {
		return
	}
	f.every, _ = p.Duration(o, "interval", o.Args[0], 10*time.Millisecond)
	for args := o.Args[1:]; len(args) > 0; args = args[1:] {
		switch {
		case args[0] == "no_rec":
			f.probeNoRec = true
		case args[0] == "domain" && len(args) > 1:
			f.probeName = wire.CanonicalName(args[1])
			if _, ok := wire.IsDomainName(f.probeName); !ok {
				p.Errorf(o.Pos, "%s: health_check: %q is not a name", d.Name, args[1])
			}
			args = args[1:]
		default:
			p.Errorf(o.Pos, "%s: health_check: %q is not known, write no_rec or domain NAME", d.Name, args[0])
		}
	}
}

// codes reads rcodes other than NOERROR.
func (f *forward) codes(p *parser, d, o config.Directive) (out []int) {
	p.Args(o, 1, -1, o.Name+" RCODE...")
	for _, a := range o.Args {
		code, ok := wire.StringToRcode[strings.ToUpper(a)]
		if !ok || code == wire.RcodeSuccess {
			p.Errorf(o.Pos, "%s: %s: %q is not the code of a failure, write it like NXDOMAIN", d.Name, o.Name, a)
			continue
		}
		out = append(out, code)
	}
	return out
}

func parseTarget(s string) (target, error) {
	if filepath.IsAbs(s) {
		return target{file: filepath.Clean(s)}, nil
	}
	t, port := target{}, uint16(defaultPort)
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		switch scheme {
		case "dns":
		case "tls":
			t.secure, port = true, defaultTLSPort
			// tls://9.9.9.9%dns.quad9.net:853
			if addr, name, named := strings.Cut(rest, "%"); named {
				if host, n, ok := strings.Cut(name, ":"); ok {
					name, addr = host, strings.Trim(addr, "[]")
					if strings.Contains(addr, ":") {
						addr = "[" + addr + "]"
					}
					addr += ":" + n
				}
				t.name, rest = strings.TrimSuffix(name, "."), addr
			}
		default:
			return target{}, fmt.Errorf("%s: upstreams over %s are not supported, write an address or tls://ADDRESS", s, scheme)
		}
		s = rest
	}
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		t.addr = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		return t, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		t.addr = netip.AddrPortFrom(a.Unmap(), port)
		return t, nil
	}
	return target{}, fmt.Errorf("%q is not an address, an address with a port or an absolute path of a resolv.conf", s)
}

func (f *forward) attach(s *Server, b *block) {
	f.srv, f.block = s, b
	for _, p := range b.plugins {
		if l, ok := p.Plugin.(*loop); ok {
			f.loop = l
		}
	}
	f.dial.load(s.note, f.problemKey())
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
	if f.failfast && len(up) == 0 {
		return nil
	}
	return append(up, down...)
}

func (f *forward) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if !plugin.InZone(f.from, q.Name) || f.except.Match(q.Name) != "" {
		return next(ctx, q)
	}
	q.Source = "forward"
	if f.inflight.Add(1) > f.concurrent {
		f.inflight.Add(-1)
		f.srv.metrics.shed.Inc()
		q.Explain(wire.ExtendedErrorCodeOther, "too many queries in flight")
		return plugin.Refusal(wire.RcodeRefused), nil
	}
	defer f.inflight.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()

	t, _ := ctx.Value(triedKey{}).(*tried)
	if t != nil && (t.by != f || t.key.name != q.Name || t.key.qtype != q.Type || t.used.Swap(true)) {
		t = nil
	}
	list := f.order()
	if t != nil { // it is where the receive loop began
		list = slices.Insert(slices.DeleteFunc(list, func(u *upstream) bool { return u == t.up }), 0, t.up)
	}
	if len(list) == 0 {
		q.Explain(wire.ExtendedErrorCodeNoReachableAuthority, "no upstream: "+f.written()+" names no server outside of this node")
		return plugin.Refusal(wire.RcodeServerFailure), nil
	}
	tcp := f.forceTCP || q.TCP && !f.preferUDP
	var (
		bad  *wire.Msg // the first answer that is none
		last error
	)
	for i, u := range list {
		if f.attempts > 0 && i == f.attempts {
			break
		}
		var (
			r   *wire.Msg
			err error
		)
		if i == 0 && t != nil && !t.tcp {
			r, err = t.msg, t.err
		} else {
			r, err = f.try(ctx, u, q, tcp || i == 0 && t != nil, i < len(list)-1)
		}
		if err != nil {
			last = err
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if slices.Contains(f.failover, r.Rcode) {
			if bad == nil {
				bad = cleaned(r)
			}
			continue
		}
		if slices.Contains(f.next, r.Rcode) || f.nextNodata && r.Rcode == wire.RcodeSuccess && len(r.Answer) == 0 {
			if m, err := next(ctx, q); m != nil || err != nil {
				return m, err
			}
		}
		return cleaned(r), nil
	}
	if bad != nil {
		return bad, nil
	}
	q.Explain(wire.ExtendedErrorCodeNoReachableAuthority, last.Error())
	return nil, last
}

// try asks one upstream; with impatience when there is another one.
func (f *forward) try(ctx context.Context, u *upstream, q *plugin.Query, tcp, more bool) (*wire.Msg, error) {
	attempt := ctx
	if more {
		var cancel context.CancelFunc
		attempt, cancel = context.WithTimeout(ctx, u.patience())
		defer cancel()
	}
	start := time.Now()
	r, err := u.exchange(attempt, upstreamQuery(q), tcp)
	f.judge(attempt, u, err)
	f.srv.metrics.forwarded(u.addr, r, err)
	if q.Trace != nil {
		step := plugin.Step{Plugin: "forward", Decision: "asked", Upstream: u.String(), Took: time.Since(start)}
		if err != nil {
			step.Decision, step.Err = "no answer", err.Error()
		} else {
			step.Rcode = wire.RcodeToString[r.Rcode]
		}
		q.Record(step)
	}
	return r, err
}

// upstreamQuery is the client's question with an ID and EDNS of our own:
// options belong to one hop (RFC 6891 section 6.1.1), except those that
// `rewrite` asks for.
func upstreamQuery(q *plugin.Query) *wire.Msg {
	m := &wire.Msg{Question: slices.Clone(q.Msg.Question)}
	m.Id = wire.Id()
	m.RecursionDesired = q.Msg.RecursionDesired
	m.CheckingDisabled = q.Msg.CheckingDisabled
	m.AuthenticatedData = true // the answer may be for clients that want to know, RFC 6840 section 5.7
	m.SetEdns0(defaultBufsize, q.DO)
	opt := m.IsEdns0()
	opt.Option = append(opt.Option, q.Options...)
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
