package plugin

import (
	"fmt"
	"net/netip"
	"strings"

	wire "github.com/miekg/dns"
)

// Zones is a set of zones, lower-case and fully qualified.
type Zones []string

// Match returns the longest zone that name lies in, or "".
func (z Zones) Match(name string) string {
	best := ""
	for _, zone := range z {
		if len(zone) > len(best) && InZone(zone, name) {
			best = zone
		}
	}
	return best
}

// InZone reports whether a name is a zone's or below it. Both are lower-case
// and fully qualified; a dot after a backslash does not separate labels.
func InZone(zone, name string) bool {
	cut := len(name) - len(zone)
	if zone == "." || cut == 0 {
		return zone == "." || zone == name
	}
	if cut < 0 || name[cut-1] != '.' || name[cut:] != zone {
		return false
	}
	slashes := 0
	for i := cut - 2; i >= 0 && name[i] == '\\'; i-- {
		slashes++
	}
	return slashes%2 == 0
}

// Fall says for which names a directive passes on what it does not know. The
// zero value: for none.
type Fall struct {
	Set   bool
	Zones Zones // empty: every name
}

// Passes reports whether an unknown name goes on to the next directive.
func (f Fall) Passes(name string) bool {
	return f.Set && (len(f.Zones) == 0 || f.Zones.Match(name) != "")
}

// ParseZone reads a zone as written in a Corefile: a domain name or, for the
// reverse zones of a prefix, 10.0.0.0/8. A prefix may need several zones.
func ParseZone(s string) (Zones, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return ReverseZones(p.Masked()), nil
	}
	z := wire.CanonicalName(s)
	odd := ":/ \\"
	if IsReverse(z) {
		odd = ": \\" // 0/25.2.0.192.in-addr.arpa, RFC 2317
	}
	if _, ok := wire.IsDomainName(z); !ok || strings.ContainsAny(s, odd) {
		return nil, fmt.Errorf("%q is not a zone, write a domain name or a prefix", s)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r > 0x7F }) {
		return nil, fmt.Errorf("zone %q is not ASCII, write it in punycode (xn--…)", s)
	}
	return Zones{z}, nil
}

// ReverseZones returns the zones that cover a prefix: at octet boundaries for
// IPv4, nibble boundaries for IPv6; in between, the next longer boundary.
func ReverseZones(p netip.Prefix) Zones {
	unit := 8
	if p.Addr().Is6() {
		unit = 4
	}
	n := (p.Bits() + unit - 1) / unit // labels of the zone
	count := 1 << (n*unit - p.Bits())
	var out Zones
	first := p.Addr().AsSlice()
	for i := range count {
		b := append([]byte(nil), first...)
		if n > 0 {
			bit := n*unit - 1 // last bit of the last label
			b[bit/8] |= byte(i << (7 - bit%8))
		}
		a, _ := netip.AddrFromSlice(b)
		labels := wire.SplitDomainName(ReverseName(a))
		out = append(out, wire.Fqdn(strings.Join(labels[len(labels)-2-n:], ".")))
	}
	return out
}

// IsReverse reports whether a zone holds PTR records.
func IsReverse(zone string) bool {
	return wire.IsSubDomain("in-addr.arpa.", zone) || wire.IsSubDomain("ip6.arpa.", zone)
}
