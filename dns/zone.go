package dns

import (
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"
)

// Zone is everything that one cluster directive knows, derived from one
// state.View. It is immutable: queries read it without a lock.
//
// Names are lower-case and fully qualified. Every parent of a name up to its
// zone exists too (an empty non-terminal, RFC 8020).
type Zone struct {
	rev     uint64
	opt     zoneOptions
	origins zones
	soa     map[string][]wire.RR // by origin
	names   map[string]*node     // inside the origins
	outside map[string]*node     // static names elsewhere, each a zone of its own
	given   map[podKey]bool      // addresses that are given out, by namespace
	spaces  map[string]bool      // namespaces that exist
}

// zoneOptions are what a cluster directive says about its zone.
type zoneOptions struct {
	forward     zones // zones for names, the first is used in PTR records
	reverse     zones // zones for addresses
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

type podKey struct {
	namespace string
	addr      netip.Addr
}

// node is one name with its records.
type node struct{ sets []rrset }

// rrset holds the records of one type.
type rrset struct {
	qtype uint16
	rrs   []wire.RR
	extra []wire.RR // addresses of the targets of SRV records
}

func (n *node) set(qtype uint16) *rrset {
	for i := range n.sets {
		if n.sets[i].qtype == qtype {
			return &n.sets[i]
		}
	}
	return nil
}

// Answer is what a Zone knows about a question. Its slices are shared.
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
			a.Answer = join(a.Answer, s.rrs)
			a.Extra = s.extra
			return a, true
		}
		alias := n.set(wire.TypeCNAME)
		if alias == nil {
			a.Ns = z.negative(origin)
			return a, true
		}
		if depth == maxDepth {
			return Answer{Rcode: wire.RcodeServerFailure, Zone: a.Zone}, true
		}
		a.Answer = join(a.Answer, alias.rrs)
		name = wire.CanonicalName(alias.rrs[0].(*wire.CNAME).Target)
	}
}

// join appends without writing into shared memory.
func join(a, b []wire.RR) []wire.RR {
	if len(a) == 0 {
		return slices.Clip(b)
	}
	return append(slices.Clip(a), b...)
}

// find returns the origin of a name and its node, which is nil when the name
// does not exist there.
func (z *Zone) find(name string) (origin string, n *node, ok bool) {
	if origin = z.origins.match(name); origin != "" {
		return origin, z.names[name], true
	}
	if n = z.outside[name]; n != nil {
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

func (z *Zone) negative(origin string) []wire.RR {
	if soa := z.soa[origin]; soa != nil {
		return soa
	}
	return []wire.RR{soaOf(origin, z.opt.ttl, uint32(z.rev))}
}

// pod makes the node of <dashed address>.<namespace>.pod.<zone>, or nil.
func (z *Zone) pod(origin, name string) *node {
	if z.opt.pods == podsDisabled || isReverse(origin) {
		return nil
	}
	rest, ok := strings.CutSuffix(name, ".pod."+origin)
	if origin == "." {
		rest, ok = strings.CutSuffix(name, ".pod.")
	}
	if !ok {
		return nil
	}
	dashed, namespace, ok := strings.Cut(rest, ".")
	if !ok || !z.spaces[namespace] {
		return nil
	}
	addr, ok := parseDashed(dashed)
	if !ok || z.opt.pods == podsVerified && !z.given[podKey{namespace, addr}] {
		return nil
	}
	rr := addressRR(name, addr, z.opt.ttl)
	return &node{sets: []rrset{{qtype: rr.Header().Rrtype, rrs: []wire.RR{rr}}}}
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

// addressRR makes an A or AAAA record.
func addressRR(name string, a netip.Addr, ttl uint32) wire.RR {
	h := wire.RR_Header{Name: name, Class: wire.ClassINET, Ttl: ttl}
	if a = a.Unmap(); a.Is4() {
		h.Rrtype = wire.TypeA
		return &wire.A{Hdr: h, A: a.AsSlice()}
	}
	h.Rrtype = wire.TypeAAAA
	return &wire.AAAA{Hdr: h, AAAA: a.WithZone("").AsSlice()}
}

// soaOf makes the SOA of a zone. Its TTL and MINIMUM are how long a negative
// answer may be kept (RFC 2308).
func soaOf(origin string, ttl, serial uint32) *wire.SOA {
	return &wire.SOA{
		Hdr: wire.RR_Header{Name: origin, Rrtype: wire.TypeSOA, Class: wire.ClassINET, Ttl: ttl},
		Ns:  under("ns.dns", origin), Mbox: under("hostmaster", origin),
		Serial: max(serial, 1), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

// under joins a relative name and its zone.
func under(rel, origin string) string {
	if origin == "." {
		return rel + "."
	}
	return rel + "." + origin
}
