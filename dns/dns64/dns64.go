// Package dns64 makes IPv6 addresses of IPv4 addresses, for clients behind
// NAT64 (RFC 6147, RFC 6052).
package dns64

import (
	"context"
	"net/netip"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// wellKnown is the prefix of RFC 6052 section 2.1.
var wellKnown = netip.MustParsePrefix("64:ff9b::/96")

// mapped addresses in AAAA records are of no use to anybody (RFC 6147 section
// 5.1.4).
var mapped = netip.MustParsePrefix("::ffff:0:0/96")

type dns64 struct {
	prefix netip.Prefix
	all    bool // also names that have AAAA records
	ipv4   bool // also for clients that ask over IPv4
}

// Parse reads `dns64 [PREFIX] { prefix PREFIX; translate_all; allow_ipv4 }`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	p := &dns64{prefix: wellKnown}
	if s.Args(d, 0, 1, "dns64 [PREFIX]") && len(d.Args) == 1 {
		p.setPrefix(s, d, d.Args[0])
	}
	for _, o := range d.Block {
		switch o.Name {
		case "prefix":
			if s.Args(o, 1, 1, "prefix PREFIX") {
				p.setPrefix(s, o, o.Args[0])
			}
		case "translate_all":
			p.all = s.Args(o, 0, 0, "translate_all")
		case "allow_ipv4":
			p.ipv4 = s.Args(o, 0, 0, "allow_ipv4")
		default:
			s.Unknown(d, o, "prefix", "translate_all", "allow_ipv4")
		}
	}
	return p
}

func (p *dns64) setPrefix(s *plugin.Setup, d config.Directive, text string) {
	pfx, err := netip.ParsePrefix(text)
	if err != nil || !pfx.Addr().Is6() {
		s.Errorf(d.Pos, "dns64: %q is not an IPv6 prefix, write it like %s", text, wellKnown)
		return
	}
	switch pfx.Bits() { // RFC 6052 section 2.2
	case 32, 40, 48, 56, 64, 96:
		p.prefix = pfx.Masked()
	default:
		s.Errorf(d.Pos, "dns64: %s: the length must be 32, 40, 48, 56, 64 or 96", text)
	}
}

func (p *dns64) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Class != wire.ClassINET || !p.ipv4 && q.Client.Addr().Unmap().Is4() {
		return next(ctx, q)
	}
	switch {
	case q.Type == wire.TypePTR:
		return p.reverse(ctx, q, next)
	case q.Type != wire.TypeAAAA:
		return next(ctx, q)
	case q.DO && q.Msg.CheckingDisabled: // the client validates, RFC 6147 section 5.5
		return next(ctx, q)
	}
	m, err := next(ctx, q)
	if m == nil || err != nil || m.Rcode == wire.RcodeNameError {
		return m, err
	}
	if !p.all && m.Rcode == wire.RcodeSuccess && hasAAAA(m) {
		return m, nil
	}
	ask := q.With(q.Msg.Question[0].Name, wire.TypeA, q.Class)
	a, aerr := next(ctx, ask)
	if aerr != nil || a == nil || a.Rcode != wire.RcodeSuccess {
		return m, err
	}
	out := &wire.Msg{}
	limit := negativeTTL(m)
	for _, rr := range a.Answer {
		v4, ok := rr.(*wire.A)
		if !ok {
			if rr.Header().Rrtype != wire.TypeRRSIG {
				out.Answer = append(out.Answer, rr) // the aliases that lead there
			}
			continue
		}
		ip, ok := netip.AddrFromSlice(v4.A.To4())
		if !ok {
			continue
		}
		out.Answer = append(out.Answer, plugin.Address(v4.Hdr.Name, p.embed(ip), min(v4.Hdr.Ttl, limit)))
	}
	if !hasAAAA(out) {
		return m, err
	}
	q.Merge(ask)
	q.Source = "dns64"
	return out, nil
}

// reverse answers the PTR of a made address by an alias to the PTR of the
// IPv4 address (RFC 6147 section 5.3.1).
func (p *dns64) reverse(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	v6, ok := addrOf(q.Name)
	if !ok || !p.prefix.Contains(v6) {
		return next(ctx, q)
	}
	target := plugin.ReverseName(p.extract(v6))
	m := &wire.Msg{Answer: []wire.RR{&wire.CNAME{
		Hdr: wire.RR_Header{Name: q.Name, Rrtype: wire.TypeCNAME, Class: wire.ClassINET, Ttl: 600}, Target: target,
	}}}
	r, err := next(ctx, q.With(target, wire.TypePTR, q.Class))
	if err != nil {
		return nil, err
	}
	q.Source = "dns64"
	if r != nil {
		m.Rcode, m.Ns = r.Rcode, r.Ns
		m.Answer = append(m.Answer, r.Answer...)
	}
	return m, nil
}

func hasAAAA(m *wire.Msg) bool {
	for _, rr := range m.Answer {
		if v6, ok := rr.(*wire.AAAA); ok {
			if a, ok := netip.AddrFromSlice(v6.AAAA); ok && !mapped.Contains(a) {
				return true
			}
		}
	}
	return false
}

// negativeTTL is how long the missing AAAA may be remembered; without an SOA
// ten minutes (RFC 6147 section 5.1.7).
func negativeTTL(m *wire.Msg) uint32 {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*wire.SOA); ok {
			return soa.Hdr.Ttl
		}
	}
	return 600
}

// embed puts an IPv4 address behind the prefix; octet 8 stays zero (RFC 6052
// section 2.2).
func (p *dns64) embed(a netip.Addr) netip.Addr {
	b, v4 := p.prefix.Addr().As16(), a.As4()
	at := p.prefix.Bits() / 8
	for _, o := range v4 {
		if at == 8 {
			at++
		}
		b[at] = o
		at++
	}
	return netip.AddrFrom16(b)
}

// extract is the inverse of embed.
func (p *dns64) extract(a netip.Addr) netip.Addr {
	b, v4 := a.As16(), [4]byte{}
	at := p.prefix.Bits() / 8
	for i := range v4 {
		if at == 8 {
			at++
		}
		v4[i] = b[at]
		at++
	}
	return netip.AddrFrom4(v4)
}

// addrOf reads an address out of its name below ip6.arpa.
func addrOf(name string) (netip.Addr, bool) {
	labels := wire.SplitDomainName(name)
	if len(labels) != 34 || labels[32] != "ip6" || labels[33] != "arpa" {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		b.WriteString(labels[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// Skips implements plugin.Bystander.
func (p *dns64) Skips(_ string, qtype uint16) bool {
	return qtype != wire.TypeAAAA && qtype != wire.TypePTR
}
