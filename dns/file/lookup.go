package file

import (
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// answer is what a zone knows about a question.
type answer struct {
	rcode             int
	answer, ns, extra []wire.RR
	referral          bool   // not our data: the servers below are asked
	chase             string // an alias leads here, out of the zone
}

// lookup answers a question about a name in the zone, as RFC 1034 section
// 4.3.2 says, with DNAME (RFC 6672) and wildcards (RFC 4592). Aliases are
// followed inside the zone.
func (z *zone) lookup(name string, qtype uint16, do bool) answer {
	var a answer
	for range plugin.MaxDepth {
		next, done := z.step(&a, name, qtype, do)
		if done {
			return a
		}
		if !plugin.InZone(z.origin, next) {
			a.chase = next
			return a
		}
		name = next
	}
	return answer{rcode: wire.RcodeServerFailure}
}

// step answers for one name; it returns where an alias leads, or done.
func (z *zone) step(a *answer, name string, qtype uint16, do bool) (next string, done bool) {
	// From the origin down: a delegation or a DNAME on the way decides.
	closest := z.origin
	for _, n := range z.path(name) {
		node := z.names[n]
		if node == nil {
			break
		}
		closest = n
		if n != z.origin && len(node.sets[wire.TypeNS]) > 0 && (n != name || qtype != wire.TypeDS) {
			z.refer(a, n, node, do)
			return "", true
		}
		if n != name && len(node.sets[wire.TypeDNAME]) > 0 {
			return z.redirect(a, n, node, name, do)
		}
	}
	node, owner := z.names[name], name
	if node == nil {
		owner = "*." + closest
		if closest == "." {
			owner = "*."
		}
		if node = z.names[owner]; node == nil {
			a.rcode = wire.RcodeNameError
			a.ns = z.negative(do)
			return "", true
		}
	}
	take := func(t uint16) []wire.RR {
		set := node.sets[t]
		if do {
			set = plugin.Join(set, node.sigs[t])
		}
		if owner == name {
			return set
		}
		out := make([]wire.RR, len(set))
		for i, rr := range set {
			out[i] = wire.Copy(rr)
			out[i].Header().Name = name
		}
		return out
	}
	if set := node.sets[wire.TypeCNAME]; len(set) > 0 && qtype != wire.TypeCNAME && qtype != wire.TypeNSEC {
		a.answer = plugin.Join(a.answer, take(wire.TypeCNAME))
		return wire.CanonicalName(set[0].(*wire.CNAME).Target), false
	}
	if len(node.sets[qtype]) == 0 {
		a.ns = z.negative(do)
		return "", true
	}
	a.answer = plugin.Join(a.answer, take(qtype))
	a.extra = z.additional(node.sets[qtype], do)
	return "", true
}

// path returns the names from the origin to name, both included.
func (z *zone) path(name string) []string {
	var out []string
	for n := name; ; n = parent(n) {
		out = append(out, n)
		if n == z.origin || n == "." {
			break
		}
	}
	slices.Reverse(out)
	return out
}

// refer makes a referral to the servers of a delegated zone.
func (z *zone) refer(a *answer, cut string, n *node, do bool) {
	a.referral = len(a.answer) == 0
	a.ns = n.sets[wire.TypeNS]
	if do {
		a.ns = plugin.Join(plugin.Join(a.ns, n.sets[wire.TypeDS]), n.sigs[wire.TypeDS])
	}
	a.extra = z.glue(n.sets[wire.TypeNS])
}

// redirect answers below a DNAME: the record itself and an alias made of it
// (RFC 6672 section 3.1).
func (z *zone) redirect(a *answer, owner string, n *node, name string, do bool) (next string, done bool) {
	d := n.sets[wire.TypeDNAME][0].(*wire.DNAME)
	a.answer = plugin.Join(a.answer, []wire.RR{d})
	if do {
		a.answer = plugin.Join(a.answer, n.sigs[wire.TypeDNAME])
	}
	to := strings.TrimSuffix(name, owner) + wire.CanonicalName(d.Target)
	if d.Target == "." {
		to = strings.TrimSuffix(name, owner)
	}
	if _, ok := wire.IsDomainName(to); !ok || len(to) > 254 {
		a.rcode = wire.RcodeYXDomain
		return "", true
	}
	a.answer = append(slices.Clip(a.answer), &wire.CNAME{
		Hdr: wire.RR_Header{Name: name, Rrtype: wire.TypeCNAME, Class: wire.ClassINET, Ttl: d.Hdr.Ttl}, Target: to,
	})
	return to, false
}

// negative is the SOA with the time for which a denial may be kept (RFC 2308
// section 3).
func (z *zone) negative(do bool) []wire.RR {
	soa := *z.soa
	soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
	out := []wire.RR{&soa}
	if do {
		out = append(out, z.names[z.origin].sigs[wire.TypeSOA]...)
	}
	return out
}

// additional returns the addresses in the zone of the names in records.
func (z *zone) additional(set []wire.RR, do bool) []wire.RR {
	var out []wire.RR
	for _, rr := range set {
		switch rr := rr.(type) {
		case *wire.MX:
			out = z.addresses(out, rr.Mx, do, false)
		case *wire.SRV:
			out = z.addresses(out, rr.Target, do, false)
		case *wire.NS:
			out = z.addresses(out, rr.Ns, do, false)
		}
	}
	return out
}

// glue returns the addresses of delegated servers, below the cut too.
func (z *zone) glue(ns []wire.RR) (out []wire.RR) {
	for _, rr := range ns {
		out = z.addresses(out, rr.(*wire.NS).Ns, false, true)
	}
	return out
}

func (z *zone) addresses(out []wire.RR, name string, do, glue bool) []wire.RR {
	name = wire.CanonicalName(name)
	n := z.names[name]
	if n == nil || !plugin.InZone(z.origin, name) {
		return out
	}
	if !glue {
		for _, p := range z.path(name) { // what lies below a cut is not ours
			if p != z.origin && z.names[p] != nil && len(z.names[p].sets[wire.TypeNS]) > 0 {
				return out
			}
		}
	}
	for _, t := range []uint16{wire.TypeA, wire.TypeAAAA} {
		out = append(out, n.sets[t]...)
		if do {
			out = append(out, n.sigs[t]...)
		}
	}
	return out
}
