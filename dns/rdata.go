package dns

import (
	"encoding/binary"
	"net"
	"net/netip"

	wire "github.com/miekg/dns"
)

// Data of records as a zone keeps them, each item in the form of the wire
// (RFC 1035 section 3.3) with uncompressed names:
//
//	A, AAAA           the address
//	PTR, CNAME, NS    the name
//	SRV               port, weight and target; priority is 0; with a weight of 0 it
//	                  follows from the set
//	TXT               the strings
//	SOA               nothing, it follows from the zone
//
// Items of a set are sorted by their bytes.

// maxRecords is how many records of one set an answer considers. That many
// addresses fill the largest message there is, so a longer set is truncated
// either way.
const maxRecords = 4096

// addressData returns the type and data of an address record.
func addressData(a netip.Addr) (qtype uint16, data string) {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return wire.TypeA, string(b[:])
	}
	b := a.As16()
	return wire.TypeAAAA, string(b[:])
}

// nameData packs a name that is known to be valid.
func nameData(name string) string { return string(appendName(make([]byte, 0, 64), name)) }

// srvData packs the data of an SRV record.
func srvData(port, weight uint16, target string) string {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 64), port)
	return string(appendName(binary.BigEndian.AppendUint16(b, weight), target))
}

// appendName packs a fully qualified name.
func appendName(b []byte, name string) []byte {
	var buf [256]byte
	n, err := wire.PackDomainName(name, buf[:], 0, nil, false)
	if err != nil {
		return append(b, 0) // the root; callers have checked the name
	}
	return append(b, buf[:n]...)
}

// textName is the inverse of nameData.
func textName(data string) string {
	name, _, err := wire.UnpackDomainName([]byte(data), 0)
	if err != nil {
		return "."
	}
	return name
}

// itemLen is the length of the first item of a set's data.
func itemLen(qtype uint16, data string) int {
	n := 0
	switch qtype {
	case wire.TypeA:
		return net.IPv4len
	case wire.TypeAAAA:
		return net.IPv6len
	case wire.TypeTXT, wire.TypeSOA:
		return len(data)
	case wire.TypeSRV:
		n = 4
	}
	for data[n] != 0 {
		n += 1 + int(data[n])
	}
	return n + 1
}

// items yields the different items of a set.
func (s *rrset) items(yield func(string) bool) {
	if s.data == "" { // SOA
		yield("")
		return
	}
	last := ""
	for rest := s.data; rest != ""; {
		n := itemLen(s.qtype, rest)
		item := rest[:n]
		rest = rest[n:]
		if s.dup && item == last {
			continue
		}
		last = item
		if !yield(item) {
			return
		}
	}
}

// len counts the different items.
func (s *rrset) len() int {
	if !s.dup {
		switch s.qtype {
		case wire.TypeA:
			return len(s.data) / net.IPv4len
		case wire.TypeAAAA:
			return len(s.data) / net.IPv6len
		}
	}
	n := 0
	for range s.items {
		n++
	}
	return n
}

// records makes the records of a set, as the caller's own.
func (z *Zone) records(name string, s *rrset) []wire.RR {
	if s.qtype == wire.TypeSOA {
		return []wire.RR{z.soa(name)}
	}
	n := s.len()
	h := wire.RR_Header{Name: name, Rrtype: s.qtype, Class: wire.ClassINET, Ttl: z.opt.ttl}
	out := make([]wire.RR, 0, min(n, maxRecords))
	for item := range s.items {
		if len(out) == maxRecords {
			break
		}
		switch s.qtype {
		case wire.TypeA:
			out = append(out, &wire.A{Hdr: h, A: net.IP(item)})
		case wire.TypeAAAA:
			out = append(out, &wire.AAAA{Hdr: h, AAAA: net.IP(item)})
		case wire.TypePTR:
			out = append(out, &wire.PTR{Hdr: h, Ptr: textName(item)})
		case wire.TypeCNAME:
			out = append(out, &wire.CNAME{Hdr: h, Target: textName(item)})
		case wire.TypeNS:
			out = append(out, &wire.NS{Hdr: h, Ns: textName(item)})
		case wire.TypeTXT:
			out = append(out, &wire.TXT{Hdr: h, Txt: []string{item[1:]}})
		case wire.TypeSRV:
			weight := binary.BigEndian.Uint16([]byte(item[2:]))
			if weight == 0 {
				weight = uint16(max(1, 100/n))
			}
			out = append(out, &wire.SRV{
				Hdr: h, Weight: weight, Port: binary.BigEndian.Uint16([]byte(item)), Target: textName(item[4:]),
			})
		}
	}
	return out
}
