package dns

import (
	"bytes"
	"encoding/binary"
	"strings"

	wire "github.com/miekg/dns"
)

// answerInfo is what a packed answer says about itself, read without
// unpacking it.
type answerInfo struct {
	rcode     uint8
	truncated bool
	ad        bool
	counts    [3]uint16 // answer, authority, additional without OPT
	start     int       // of the records
	end       int       // of the records without OPT
	options   []byte    // of OPT
	// regular: every record was read, owners that are the question's name are
	// compressed, OPT came last or not at all, its version and part of the
	// rcode are 0. Others have to be unpacked.
	regular bool

	ttl     uint32 // the least one
	records bool   // ttl is set
	soa     bool   // in the authority section
	minimum uint32 // the SOA's
}

// matchesQuery reports whether a packed message can be the answer to a packed
// query: ID, opcode and question must be the same, letter case aside. Some
// servers leave the question out of errors.
func matchesQuery(query, msg []byte) bool {
	if len(msg) < headerLen || msg[0] != query[0] || msg[1] != query[1] || msg[2]&0x80 == 0 || (msg[2]^query[2])&0x78 != 0 {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		return msg[3]&0xF != wire.RcodeSuccess
	case 1:
	default:
		return false
	}
	end := plainEnd(query, headerLen)
	if end < 0 || len(query) < end+4 || len(msg) < end+4 {
		return false
	}
	// Bytes of lengths are below 64 and have no case; type and class are
	// compared as they are.
	return equalFold(query[headerLen:end], msg[headerLen:end]) && bytes.Equal(query[end:end+4], msg[end:end+4])
}

// plainEnd returns where an uncompressed name ends, or -1.
func plainEnd(b []byte, off int) int {
	for off < len(b) {
		n := int(b[off])
		off += 1 + n
		switch {
		case n == 0:
			return off
		case n > 63:
			return -1
		}
	}
	return -1
}

// equalFold compares ASCII without regard to letter case.
func equalFold(a, b []byte) bool {
	for i, c := range a {
		d := b[i]
		if c != d && (c|0x20 != d|0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

// parseAnswer reads a message that matchesQuery has accepted.
func parseAnswer(msg []byte) (a answerInfo) {
	a.rcode, a.truncated, a.ad = msg[3]&0xF, msg[2]&0x02 != 0, msg[3]&0x20 != 0
	off := headerLen
	if msg[5] == 1 {
		off = plainEnd(msg, off) + 4
	}
	a.start, a.end = off, off
	for i := range a.counts {
		a.counts[i] = binary.BigEndian.Uint16(msg[6+2*i:])
	}
	question := msg[headerLen:max(headerLen, off-4)]
	irregular := msg[5] != 1
	opts := uint16(0)
	for section, n := range a.counts {
		for range n {
			r, ok := parseRecord(msg, off)
			if !ok {
				return a
			}
			// An owner that spells the question's name out has the letter case
			// of somebody else's question.
			irregular = irregular || opts > 0 || r.rrType == wire.TypeTSIG || spells(msg[off:], question)
			if r.rrType == wire.TypeOPT {
				opts++
				// Owner, part of the rcode, version (RFC 6891 section 6.1.3).
				irregular = irregular || section != 2 || msg[off] != 0 || r.ttl>>16 != 0
				a.options = msg[r.data:r.end]
				off = r.end
				continue
			}
			if !a.records || r.ttl < a.ttl {
				a.ttl, a.records = r.ttl, true
			}
			if section == 1 && r.rrType == wire.TypeSOA {
				a.soa, a.minimum = true, binary.BigEndian.Uint32(msg[r.end-4:])
			}
			off = r.end
			a.end = off
		}
	}
	a.counts[2] -= opts
	a.regular = !irregular && off == len(msg)
	return a
}

// spells reports whether a name that is not the root begins b, uncompressed.
func spells(b, name []byte) bool {
	return len(name) > 1 && len(b) >= len(name) && b[0] == name[0] && equalFold(name, b)
}

// packedRecord is a record in a packed message.
type packedRecord struct {
	rrType    uint16
	ttl       uint32
	data, end int // of the data
}

// parseRecord reads the record at off and checks names and addresses in it.
func parseRecord(msg []byte, off int) (r packedRecord, ok bool) {
	off = nameEnd(msg, off)
	if off < 0 || off+10 > len(msg) {
		return r, false
	}
	r.rrType, r.ttl = binary.BigEndian.Uint16(msg[off:]), binary.BigEndian.Uint32(msg[off+4:])
	r.data = off + 10
	r.end = r.data + int(binary.BigEndian.Uint16(msg[off+8:]))
	if r.end > len(msg) {
		return r, false
	}
	size := r.end - r.data
	switch r.rrType {
	case wire.TypeA:
		return r, size == 4
	case wire.TypeAAAA:
		return r, size == 16
	case wire.TypeCNAME, wire.TypeDNAME, wire.TypeNS, wire.TypePTR:
		return r, nameEnd(msg, r.data) == r.end
	case wire.TypeMX:
		return r, nameEnd(msg, r.data+2) == r.end
	case wire.TypeSRV:
		return r, nameEnd(msg, r.data+6) == r.end
	case wire.TypeSOA:
		n := nameEnd(msg, r.data)
		return r, n > 0 && nameEnd(msg, n)+20 == r.end
	}
	return r, true
}

// nameEnd returns where the name at off ends, or -1 when it is none. A pointer
// must lead backwards, to a label, so that no name is endless.
func nameEnd(msg []byte, off int) (end int) {
	limit, length := off, 0
	for off < len(msg) {
		c := int(msg[off])
		switch c & 0xC0 {
		case 0:
			off += 1 + c
			if length += 1 + c; length > 255 {
				return -1
			}
			if c == 0 {
				if end == 0 {
					end = off
				}
				return end
			}
		case 0xC0:
			if off+2 > len(msg) {
				return -1
			}
			if end == 0 {
				end = off + 2
			}
			off = int(binary.BigEndian.Uint16(msg[off:]) & 0x3FFF)
			if off < headerLen || off >= limit || msg[off]&0xC0 != 0 {
				return -1
			}
			limit = off
		default:
			return -1
		}
	}
	return -1
}

// unpacked returns the message. One that was cut off in the middle is only
// known to be truncated.
func unpacked(msg []byte) *wire.Msg {
	m := new(wire.Msg)
	if m.Unpack(msg) != nil {
		*m = wire.Msg{MsgHdr: wire.MsgHdr{Rcode: int(msg[3] & 0xF), Truncated: true}}
	}
	return m
}

// unpacks reports whether a message that was not read to its end is a message
// all the same.
func unpacks(msg []byte) bool { return new(wire.Msg).Unpack(msg) == nil }

// message unpacks an answer to a question of class IN for a plain name.
func (p *packed) message(name string) (*wire.Msg, error) {
	b := make([]byte, headerLen, headerLen+len(name)+5+len(p.body))
	b[2], b[3], b[5] = 0x80, p.rcode, 1
	if p.ad {
		b[3] |= 0x20
	}
	for i, n := range p.counts {
		binary.BigEndian.PutUint16(b[6+2*i:], n)
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label != "" {
			b = append(append(b, byte(len(label))), label...)
		}
	}
	b = append(b, 0, byte(p.qtype>>8), byte(p.qtype), 0, wire.ClassINET)
	b = append(b, p.body...)
	m := new(wire.Msg)
	if err := m.Unpack(b); err != nil {
		return nil, err
	}
	return &wire.Msg{MsgHdr: wire.MsgHdr{Rcode: m.Rcode, AuthenticatedData: m.AuthenticatedData}, Answer: m.Answer, Ns: m.Ns, Extra: m.Extra}, nil
}
