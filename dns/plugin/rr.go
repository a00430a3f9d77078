package plugin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"
)

// Address makes an A or AAAA record.
func Address(name string, a netip.Addr, ttl uint32) wire.RR {
	h := wire.RR_Header{Name: name, Class: wire.ClassINET, Ttl: ttl}
	if a = a.Unmap(); a.Is4() {
		h.Rrtype = wire.TypeA
		return &wire.A{Hdr: h, A: a.AsSlice()}
	}
	h.Rrtype = wire.TypeAAAA
	return &wire.AAAA{Hdr: h, AAAA: a.WithZone("").AsSlice()}
}

// SOA makes the SOA of a zone. Its TTL and MINIMUM are how long a negative
// answer may be kept, in seconds (RFC 2308).
func SOA(origin string, ttl, serial uint32) *wire.SOA {
	return &wire.SOA{
		Hdr: wire.RR_Header{Name: origin, Rrtype: wire.TypeSOA, Class: wire.ClassINET, Ttl: ttl},
		Ns:  Under("ns.dns", origin), Mbox: Under("hostmaster", origin),
		Serial: max(serial, 1), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

// Under joins a relative name and its zone.
func Under(rel, origin string) string {
	if origin == "." {
		return rel + "."
	}
	return rel + "." + origin
}

// Join appends without writing into shared memory.
func Join(a, b []wire.RR) []wire.RR {
	if len(a) == 0 {
		return slices.Clip(b)
	}
	return append(slices.Clip(a), b...)
}

// ReverseName returns the name below in-addr.arpa or ip6.arpa of an address.
func ReverseName(a netip.Addr) string {
	if a.Is4() {
		b := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", b[3], b[2], b[1], b[0])
	}
	const hex = "0123456789abcdef"
	b := a.As16()
	var out strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		out.Write([]byte{hex[b[i]&0xF], '.', hex[b[i]>>4], '.'})
	}
	return out.String() + "ip6.arpa."
}
