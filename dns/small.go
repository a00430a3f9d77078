package dns

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
)

// loadbalance rotates the addresses of an answer: clients take the first.
type loadbalance struct{}

func parseLoadbalance(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	if p.args(d, 0, 1, "loadbalance [round_robin]") && len(d.Args) == 1 && d.Args[0] != "round_robin" {
		p.errorf(d.Pos, "loadbalance: policy %q is not supported, write round_robin", d.Args[0])
	}
	return loadbalance{}
}

func (loadbalance) serve(ctx context.Context, q *query, next handler) (*wire.Msg, error) {
	m, err := next(ctx, q)
	if m != nil {
		m.Answer = rotate(m.Answer, rand.Int())
	}
	return m, err
}

// rotate moves the first n addresses of each run of A or AAAA records to its
// end. Other records, such as the CNAMEs before them, keep their places.
func rotate(rrs []wire.RR, n int) []wire.RR {
	isAddr := func(rr wire.RR) bool {
		t := rr.Header().Rrtype
		return t == wire.TypeA || t == wire.TypeAAAA
	}
	first := slices.IndexFunc(rrs, isAddr)
	if first < 0 {
		return rrs
	}
	last := first
	for last < len(rrs) && isAddr(rrs[last]) {
		last++
	}
	run := rrs[first:last]
	if len(run) < 2 {
		return rrs
	}
	n %= len(run)
	out := slices.Clone(rrs[:first])
	out = append(out, run[n:]...)
	out = append(out, run[:n]...)
	return append(out, rrs[last:]...)
}

// parseAny accepts `any`: the answer to ANY is always minimal (serve.go).
func parseAny(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	p.args(d, 0, 0, "any")
	return nil
}

// whoami tells the client its address and port.
type whoami struct{}

func parseWhoami(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	p.args(d, 0, 0, "whoami")
	return whoami{}
}

func (whoami) serve(_ context.Context, q *query, _ handler) (*wire.Msg, error) {
	q.local, q.source = true, "whoami"
	m := new(wire.Msg)
	m.Authoritative = true
	addr := addressRR(q.name, q.from.Addr(), 0)
	if addr.Header().Rrtype == q.qtype {
		m.Answer = []wire.RR{addr}
	} else {
		m.Extra = []wire.RR{addr}
	}
	proto := "_udp."
	if q.tcp {
		proto = "_tcp."
	}
	name := proto + strings.TrimPrefix(q.name, ".")
	if _, ok := wire.IsDomainName(name); ok {
		m.Extra = append(m.Extra, &wire.SRV{
			Hdr:  wire.RR_Header{Name: name, Rrtype: wire.TypeSRV, Class: wire.ClassINET},
			Port: q.from.Port(), Target: ".",
		})
	}
	return m, nil
}

// chaos answers version.bind and the like in class CH.
type chaos struct {
	version string
	authors []string
}

func parseChaos(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	c := &chaos{version: "nodenet", authors: []string{"nodenet"}}
	if len(d.Args) > 0 {
		c.version = d.Args[0]
	}
	if len(d.Args) > 1 {
		c.authors = d.Args[1:]
	}
	for _, s := range append([]string{c.version}, c.authors...) {
		if len(s) > 255 { // a TXT string, RFC 1035 section 3.3.14
			p.errorf(d.Pos, "chaos: %.20q… is longer than 255 bytes", s)
		}
	}
	return c
}

func (c *chaos) serve(ctx context.Context, q *query, next handler) (*wire.Msg, error) {
	if q.class != wire.ClassCHAOS || q.qtype != wire.TypeTXT {
		return next(ctx, q)
	}
	var texts []string
	switch q.name {
	case "version.bind.", "version.server.":
		texts = []string{c.version}
	case "authors.bind.":
		texts = c.authors
	default:
		return next(ctx, q)
	}
	q.local, q.source = true, "chaos"
	m := new(wire.Msg)
	m.Authoritative = true
	for _, t := range texts {
		m.Answer = append(m.Answer, &wire.TXT{Hdr: wire.RR_Header{Name: q.name, Rrtype: wire.TypeTXT, Class: wire.ClassCHAOS}, Txt: []string{t}})
	}
	return m, nil
}
