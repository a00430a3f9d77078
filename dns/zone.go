package dns

import (
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// Zone is everything that one cluster directive knows, derived from one
// state.View. It is immutable: queries read it without a lock. Zones that
// follow one another share what did not change.
//
// Names are lower-case and fully qualified. Every parent of a name up to its
// zone exists too (an empty non-terminal, RFC 8020).
type Zone struct {
	rev     uint64
	seq     uint64 // counts the zones of one directive
	static  uint64 // seq of the zone in which static names changed last
	opt     zoneOptions
	origins plugin.Zones
	negs    []negativeAnswer // by origin, and one for names that are a zone of their own
	names   *nameTable
	odd     bool // two services may share a name: see change
}

// zoneOptions are what a cluster directive says about its zone.
type zoneOptions struct {
	forward     plugin.Zones // zones for names, the first is used in PTR records
	reverse     plugin.Zones // zones for addresses
	pods        podMode
	ttl         uint32 // seconds
	noEndpoints bool
	namespaces  []string     // empty: all
	ns          []netip.Addr // of the name server itself
}

// podMode says what <dashed address>.<namespace>.pod answers.
type podMode uint8

const (
	podsDisabled podMode = iota // nothing
	podsInsecure                // the address in the name, whatever it is
	podsVerified                // only an address that was given out in that namespace
)

// Answer is what a Zone knows about a question. Its slices belong to the
// caller.
type Answer struct {
	Rcode             int
	Answer, Ns, Extra []wire.RR
	Chase             string // a CNAME leads here, outside the zone
	Zone              string // the origin that the name lies in
}

// Rev is the revision of the View that the zone was derived from.
func (z *Zone) Rev() uint64 { return z.rev }

// Lookup answers a question for a lower-case, fully qualified name. It
// follows CNAMEs inside the zone; a chain that is circular or too long fails
// (SERVFAIL). False: the zone has nothing to do with the
// name.
func (z *Zone) Lookup(name string, qtype uint16) (Answer, bool) {
	var a Answer
	for depth := 0; ; depth++ {
		origin, n, ok := z.find(name)
		if !ok {
			if depth == 0 {
				return Answer{}, false
			}
			a.Chase = name
			return a, true
		}
		if depth == 0 {
			a.Zone = origin
		}
		if n == nil {
			n = z.pod(origin, name)
		}
		if n == nil {
			a.Rcode = wire.RcodeNameError
			a.Ns = z.negative(origin)
			return a, true
		}
		if s := n.set(qtype); s != nil {
			a.Answer = append(a.Answer, z.records(name, s)...)
			if qtype == wire.TypeSRV {
				a.Extra = z.targets(a.Answer)
			}
			return a, true
		}
		alias := n.set(wire.TypeCNAME)
		if alias == nil {
			a.Ns = z.negative(origin)
			return a, true
		}
		if depth == plugin.MaxDepth {
			return Answer{Rcode: wire.RcodeServerFailure, Zone: a.Zone}, true
		}
		rrs := z.records(name, alias)
		a.Answer = append(a.Answer, rrs...)
		name = wire.CanonicalName(rrs[0].(*wire.CNAME).Target)
	}
}

// targets returns the addresses of the targets of SRV records.
func (z *Zone) targets(srvs []wire.RR) (out []wire.RR) {
	seen := make(map[string]bool, len(srvs))
	for _, rr := range srvs {
		srv, ok := rr.(*wire.SRV)
		if !ok || seen[srv.Target] {
			continue
		}
		seen[srv.Target] = true
		n := z.names.get(srv.Target)
		if n == nil {
			continue
		}
		for _, t := range []uint16{wire.TypeA, wire.TypeAAAA} {
			if s := n.set(t); s != nil {
				out = append(out, z.records(srv.Target, s)...)
			}
		}
	}
	return out
}

// find returns the origin of a name and its node, which is nil when the name
// does not exist there. A static name outside the origins is a zone of its own.
func (z *Zone) find(name string) (origin string, n *node, ok bool) {
	n = z.names.get(name)
	if origin = z.origins.Match(name); origin != "" {
		return origin, n, true
	}
	if n != nil {
		return name, n, true
	}
	return "", nil, false
}

// holds reports whether the zone has records for a name, or decides that
// there are none.
func (z *Zone) holds(name string) bool {
	origin, n, ok := z.find(name)
	return ok && (n != nil || z.pod(origin, name) != nil)
}

// negative returns the Authority section of an answer without data.
func (z *Zone) negative(origin string) []wire.RR { return []wire.RR{z.soa(origin)} }

// soa makes the SOA of an origin, or of a name that is a zone of its own.
func (z *Zone) soa(origin string) *wire.SOA {
	soa := plugin.SOA(origin, z.opt.ttl, uint32(z.rev))
	if plugin.IsReverse(origin) && len(z.opt.forward) > 0 && slices.Contains(z.opt.reverse, origin) {
		soa.Ns, soa.Mbox = plugin.Under("ns.dns", z.opt.forward[0]), plugin.Under("hostmaster", z.opt.forward[0])
	}
	return soa
}

// podSuffix returns what the names of addresses end in, or "".
func (z *Zone) podSuffix(origin string) string {
	switch {
	case z.opt.pods == podsDisabled || plugin.IsReverse(origin):
		return ""
	case origin == ".":
		return ".pod."
	}
	return ".pod." + origin
}

// pod makes the node of <dashed address>.<namespace>.pod.<zone>, or nil.
func (z *Zone) pod(origin, name string) *node {
	suffix := z.podSuffix(origin)
	if suffix == "" {
		return nil
	}
	rest, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return nil
	}
	dashed, namespace, ok := strings.Cut(rest, ".")
	if !ok || z.names.get(spaceKey(namespace)) == nil {
		return nil
	}
	addr, ok := parseDashed(dashed)
	if !ok || z.opt.pods == podsVerified && z.names.get(givenKey(namespace, addr)) == nil {
		return nil
	}
	n := &node{name: name, sets: make([]rrset, 1), shown: 1}
	n.sets[0].qtype, n.sets[0].data = addressData(addr)
	return n
}

// spaceKey and givenKey are entries of the name table that no question
// reaches, because they do not end in a dot: a namespace that exists, and an
// address that is given out in it.
func spaceKey(namespace string) string { return "=" + namespace }

func givenKey(namespace string, a netip.Addr) string {
	b := a.As16()
	return "@" + namespace + "/" + string(b[:])
}

// dashed writes an address as one label: 10-244-1-5, 2001-db8--1.
func dashed(a netip.Addr) string {
	s := a.WithZone("").String()
	if strings.HasPrefix(s, "::") {
		s = "0" + s // no label begins with a dash
	}
	if strings.HasSuffix(s, "::") {
		s += "0"
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(s)
}

// parseDashed is the inverse of dashed.
func parseDashed(s string) (netip.Addr, bool) {
	sep := ":"
	if strings.Count(s, "-") == 3 && !strings.Contains(s, "--") {
		sep = "."
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(s, "-", sep))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}
