package dns

import (
	"encoding/binary"
	"strings"
	"sync/atomic"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// The packed path answers a plain question from bytes that are ready, inside
// the receive loop. What it answers is byte for byte what the chain would
// have answered; for what it is not sure of it says so, and the chain does
// it.

const (
	headerLen = 12 // RFC 1035 section 4.1.1
	optLen    = 11 // of an OPT record without options, RFC 6891 section 6.1.2
	// pointerToQuestion is the compressed name of the question.
	pointerToQuestion = 0xC000 | headerLen
)

// packed is an answer in wire form: everything after the question but the
// OPT record. Compression pointers count from the question's name as it is.
// It is immutable.
type packed struct {
	qtype  uint16
	rcode  uint8
	aa, ad bool
	counts [3]uint16 // answer, authority, additional
	body   []byte    // nil: only the chain can answer this
	seq    uint64    // of the zone that it is good for; 0: as long as the node is

	// The first run of address records, to be rotated: where it begins, how
	// many there are, how long each is. With fixed set it cannot be rotated.
	run, runN, runLen int
	fixed             bool

	next *packed // of the same name, another type
}

// memos are the packed answers of one node that were asked for.
type memos struct{ first atomic.Pointer[packed] }

// maxMemos bounds the types remembered for a name.
const maxMemos = 4

// get returns a packed answer, or nil.
func (m *memos) get(qtype uint16, seq uint64) *packed {
	for p := m.first.Load(); p != nil; p = p.next {
		if p.qtype == qtype && (p.seq == 0 || p.seq == seq) {
			return p
		}
	}
	return nil
}

// put remembers an answer; of several at the same time, one may be lost.
func (m *memos) put(p *packed) {
	old := m.first.Load()
	n := 1
	for o := old; o != nil && n < maxMemos; o = o.next {
		if o.qtype == p.qtype { // it is out of date: begin anew
			m.first.CompareAndSwap(old, p)
			return
		}
		n++
	}
	if n < maxMemos {
		p.next = old
	}
	m.first.CompareAndSwap(old, p)
}

// maxPackedData is the data of a set that is packed in the receive loop at
// most; packing takes a microsecond for each 100 bytes or so, once.
const maxPackedData = 1024

// memo returns the packed answer for a name with data of that type, or with
// a CNAME. It makes it if need be.
func (z *Zone) memo(n *node, s *rrset, qtype uint16) *packed {
	seq := uint64(0)
	switch {
	case s.qtype == wire.TypeCNAME || s.qtype == wire.TypeSOA || len(z.opt.forward) > 1:
		seq = z.seq // depends on other names or on the revision
	case s.qtype == wire.TypeSRV:
		seq = z.static // the addresses of its targets change with its service, or here
	}
	if p := n.memos.get(qtype, seq); p != nil {
		return p
	}
	p := &packed{qtype: qtype, seq: seq}
	if len(s.data) <= maxPackedData {
		if a, ok := z.Lookup(n.name, qtype); ok && a.Chase == "" && a.Rcode == wire.RcodeSuccess {
			m := &wire.Msg{Answer: a.Answer, Ns: a.Ns, Extra: a.Extra}
			m.Authoritative = true
			if b, err := packWhole(m, n.name, qtype); err == nil {
				p.fill(b, len(n.name)+1, true)
			}
		}
	}
	n.memos.put(p)
	return p
}

// packWhole packs a message for a question without limit and without OPT.
func packWhole(m *wire.Msg, name string, qtype uint16) ([]byte, error) {
	m.Question = []wire.Question{{Name: name, Qtype: qtype, Qclass: wire.ClassINET}}
	m.Compress = true
	return m.Pack()
}

// fill takes over a packed message without OPT whose question's name is
// qlen bytes long.
func (p *packed) fill(msg []byte, qlen int, aa bool) {
	start := headerLen + qlen + 4
	for i := range p.counts {
		p.counts[i] = binary.BigEndian.Uint16(msg[6+2*i:])
	}
	p.rcode, p.aa = msg[3]&0xF, aa
	p.body = append([]byte(nil), msg[start:]...)
	p.findRun(start)
}

// findRun looks for the records that loadbalance rotates.
func (p *packed) findRun(start int) {
	off := 0
	for range p.counts[0] {
		end, rrType, ok := skipRecord(p.body, off)
		if !ok {
			p.body = nil
			return
		}
		isAddr := rrType == wire.TypeA || rrType == wire.TypeAAAA
		switch {
		case isAddr && p.runN == 0:
			p.run, p.runN, p.runLen = off, 1, end-off
		case isAddr && off == p.run+p.runN*p.runLen:
			p.runN++
			p.fixed = p.fixed || end-off != p.runLen
		case isAddr && p.fixed:
			p.runN++
		}
		if isAddr && (p.body[off]&0xC0 != 0xC0 || int(binary.BigEndian.Uint16(p.body[off:])&0x3FFF) >= start+p.run) {
			p.fixed = true
		}
		off = end
	}
}

// skipRecord returns where the record at off ends, and its type.
func skipRecord(b []byte, off int) (end int, rrType uint16, ok bool) {
	for off < len(b) && b[off] != 0 && b[off]&0xC0 != 0xC0 {
		off += 1 + int(b[off])
	}
	if off >= len(b) {
		return 0, 0, false
	}
	if off++; b[off-1] != 0 {
		off++
	}
	if off+10 > len(b) {
		return 0, 0, false
	}
	end = off + 10 + int(binary.BigEndian.Uint16(b[off+8:]))
	return end, binary.BigEndian.Uint16(b[off:]), end <= len(b)
}

// write appends the body to a message, with the addresses rotated by n.
func (p *packed) write(out []byte, n int) int {
	if p.runN < 2 || n%p.runN == 0 {
		return copy(out, p.body)
	}
	k := (n % p.runN) * p.runLen
	end := p.run + p.runN*p.runLen
	at := copy(out, p.body[:p.run])
	at += copy(out[at:], p.body[p.run+k:end])
	at += copy(out[at:], p.body[p.run:p.run+k])
	return at + copy(out[at:], p.body[end:])
}

// negativeAnswer is the Authority section of a name without data, in wire
// form. Its pointers depend on the length of the question.
type negativeAnswer struct {
	origin string // "": a name that is a zone of its own
	pods   string // what names of addresses end in, "": there are none
	body   []byte // nil: only the chain can answer this
	ptrs   []relocation
}

// relocation is a compression pointer: the offset from the end of the
// question's name that it points to, which is negative inside of the name.
type relocation struct{ pos, target int }

// negatives packs the negative answers of every origin.
func (z *Zone) negatives() []negativeAnswer {
	out := make([]negativeAnswer, 0, len(z.origins)+1)
	for _, origin := range z.origins {
		sample := plugin.Under("x", origin)
		out = append(out, packNegative(origin, sample, z.soa(origin)))
		out[len(out)-1].pods = z.podSuffix(origin)
	}
	return append(out, packNegative("", "x.", z.soa("x.")))
}

func packNegative(origin, sample string, soa *wire.SOA) negativeAnswer {
	g := negativeAnswer{origin: origin}
	msg, err := packWhole(&wire.Msg{Ns: []wire.RR{soa}}, sample, wire.TypeA)
	if err != nil {
		return g // no such zone can be asked for
	}
	nameEnd := headerLen + len(sample) + 1
	b := msg[nameEnd+4:]
	off := 0
	name := func() {
		for b[off] != 0 {
			if b[off]&0xC0 == 0xC0 {
				g.ptrs = append(g.ptrs, relocation{off, int(binary.BigEndian.Uint16(b[off:])&0x3FFF) - nameEnd})
				off++
				break
			}
			off += 1 + int(b[off])
		}
		off++
	}
	name()
	off += 10
	name() // MNAME
	name() // RNAME
	g.body = b
	return g
}

// covers reports whether the packed form is right for a question. A name
// below the SOA's own names would be compressed otherwise.
func (g *negativeAnswer) covers(name string) bool {
	if g.body == nil {
		return false
	}
	above := strings.TrimSuffix(name, g.origin)
	return g.origin == "" || !strings.HasSuffix(above, "dns.") && !strings.HasSuffix(above, "hostmaster.")
}

// write appends the section to a message whose question's name ends at
// nameEnd.
func (g *negativeAnswer) write(out []byte, nameEnd int) int {
	n := copy(out, g.body)
	for _, p := range g.ptrs {
		if g.origin == "" { // the name itself
			binary.BigEndian.PutUint16(out[p.pos:], pointerToQuestion)
			continue
		}
		binary.BigEndian.PutUint16(out[p.pos:], 0xC000|uint16(nameEnd+p.target))
	}
	return n
}
