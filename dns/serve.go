package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"
)

// defaultBufsize is the UDP size that avoids fragments everywhere (DNS flag
// day 2020).
const defaultBufsize = 1232

// accept decides about a message by its header alone.
func accept(h wire.Header) wire.MsgAcceptAction {
	const responseBit = 1 << 15
	switch {
	case h.Bits&responseBit != 0:
		return wire.MsgIgnore
	case int(h.Bits>>11)&0xF != wire.OpcodeQuery:
		return wire.MsgRejectNotImplemented
	case h.Qdcount != 1, h.Ancount > 0, h.Nscount > 1:
		return wire.MsgReject
	case h.Arcount > 4: // OPT, TSIG and little else
		return wire.MsgReject
	}
	return wire.MsgAccept
}

// answer turns a query into the packed reply for its client, or nil when it
// must not be answered. It never panics.
func (s *Server) answer(ctx context.Context, t *table, req *wire.Msg, from netip.AddrPort, tcp bool) (packed []byte) {
	if req.Response {
		return nil
	}
	start := time.Now()
	q := &query{msg: req, table: t, from: from, tcp: tcp}
	size, opt, reply := s.check(q)
	if reply == nil {
		reply = s.resolve(ctx, q)
	}
	finish(q, reply, opt)
	packed, err := pack(reply, size)
	if err != nil {
		s.log.Error("pack answer", "name", q.name, "type", wire.TypeToString[q.qtype], "err", err)
		reply.Answer, reply.Ns, reply.Extra = nil, nil, nil
		reply.Rcode = wire.RcodeServerFailure
		if packed, err = reply.Pack(); err != nil {
			return nil
		}
	}
	s.metrics.observe(q, reply, time.Since(start))
	return packed
}

// check does what the protocol asks before a name is looked at. It returns
// the size limit of the answer, the OPT record to send (nil: none), and a
// reply when the question ends here.
func (s *Server) check(q *query) (size int, opt *wire.OPT, reply *wire.Msg) {
	size = wire.MinMsgSize
	if q.tcp {
		size = wire.MaxMsgSize
	}
	opts := 0
	for _, rr := range q.msg.Extra {
		o, ok := rr.(*wire.OPT)
		if !ok {
			continue
		}
		if opts++; opts > 1 || o.Hdr.Name != "." {
			return size, nil, refusal(wire.RcodeFormatError) // RFC 6891 section 6.1.1
		}
		opt = &wire.OPT{Hdr: wire.RR_Header{Name: ".", Rrtype: wire.TypeOPT}}
		opt.SetUDPSize(defaultBufsize)
		if o.Do() {
			opt.SetDo()
			q.do = true
		}
		if !q.tcp {
			size = max(size, min(int(o.UDPSize()), defaultBufsize))
		}
		if o.Version() != 0 {
			return size, opt, refusal(wire.RcodeBadVers)
		}
	}
	switch {
	case q.msg.Opcode != wire.OpcodeQuery:
		return size, opt, refusal(wire.RcodeNotImplemented)
	case len(q.msg.Question) != 1:
		return size, opt, refusal(wire.RcodeFormatError)
	}
	question := q.msg.Question[0]
	q.name, q.qtype, q.class = wire.CanonicalName(question.Name), question.Qtype, question.Qclass
	if q.block = q.table.match(q.name); q.block == nil {
		q.explain(wire.ExtendedErrorCodeNotAuthoritative, "no server block for this name")
		return size, opt, refusal(wire.RcodeRefused)
	}
	if b := q.block.bufsize; b != 0 && opt != nil {
		opt.SetUDPSize(b)
		if !q.tcp {
			size = max(wire.MinMsgSize, min(int(q.msg.IsEdns0().UDPSize()), int(b)))
		}
	}
	if q.block.nsid != nil && opt != nil {
		if slices.ContainsFunc(q.msg.IsEdns0().Option, func(o wire.EDNS0) bool { return o.Option() == wire.EDNS0NSID }) {
			opt.Option = append(opt.Option, &wire.EDNS0_NSID{Code: wire.EDNS0NSID, Nsid: fmt.Sprintf("%x", q.block.nsid)})
		}
	}
	switch q.qtype {
	case wire.TypeAXFR, wire.TypeIXFR, wire.TypeMAILA, wire.TypeMAILB:
		return size, opt, refusal(wire.RcodeRefused)
	case wire.TypeOPT, wire.TypeTSIG, wire.TypeTKEY, wire.TypeNone:
		return size, opt, refusal(wire.RcodeFormatError)
	case wire.TypeANY:
		if q.class == wire.ClassINET {
			return size, opt, minimalANY(question.Name)
		}
	}
	return size, opt, nil
}

func refusal(rcode int) *wire.Msg {
	return &wire.Msg{MsgHdr: wire.MsgHdr{Rcode: rcode}}
}

// minimalANY is the synthesized answer of RFC 8482 section 4.2.
func minimalANY(name string) *wire.Msg {
	return &wire.Msg{Answer: []wire.RR{&wire.HINFO{
		Hdr: wire.RR_Header{Name: name, Rrtype: wire.TypeHINFO, Class: wire.ClassINET, Ttl: 8482},
		Cpu: "RFC8482",
	}}}
}

// resolve runs the chain of the block. Errors and panics become SERVFAIL,
// no answer REFUSED.
func (s *Server) resolve(ctx context.Context, q *query) (reply *wire.Msg) {
	defer func() {
		if r := recover(); r != nil {
			s.metrics.panics.Add(1)
			s.log.Error("panic in dns chain", "name", q.name, "err", fmt.Sprint(r), "stack", string(debug.Stack()))
			reply = refusal(wire.RcodeServerFailure)
		}
	}()
	reply, err := q.block.chain(ctx, q)
	switch {
	case err != nil:
		if len(q.ede) == 0 && !errors.Is(err, context.Canceled) {
			q.explain(wire.ExtendedErrorCodeOther, err.Error())
		}
		return refusal(wire.RcodeServerFailure)
	case reply == nil:
		q.explain(wire.ExtendedErrorCodeNotAuthoritative, "nobody here answers for this name")
		return refusal(wire.RcodeRefused)
	}
	return reply
}

// finish gives a reply the header, question and OPT of its query.
func finish(q *query, m *wire.Msg, opt *wire.OPT) {
	rcode, aa, ad := m.Rcode, m.Authoritative, m.AuthenticatedData
	m.MsgHdr = wire.MsgHdr{
		Id:                 q.msg.Id,
		Response:           true,
		Opcode:             q.msg.Opcode,
		Authoritative:      aa,
		RecursionDesired:   q.msg.RecursionDesired,
		RecursionAvailable: q.block != nil && q.block.recurse,
		AuthenticatedData:  ad && (q.do || q.msg.AuthenticatedData),
		CheckingDisabled:   q.msg.CheckingDisabled,
		Rcode:              rcode,
	}
	m.Compress = true
	m.Question = q.msg.Question
	if len(m.Question) == 1 && m.Question[0].Name != q.name && q.name != "" {
		m.Answer = withCase(m.Answer, m.Question[0].Name, q.name)
	}
	if opt == nil {
		if rcode > 0xF { // does not fit without OPT
			m.Rcode = wire.RcodeServerFailure
		}
		return
	}
	for _, e := range q.ede {
		opt.Option = append(opt.Option, e)
	}
	m.Extra = join(m.Extra, []wire.RR{opt})
}

// withCase gives the records of a name the letter case of the question:
// clients that mix cases against spoofing compare it.
func withCase(rrs []wire.RR, asked, lower string) []wire.RR {
	out := slices.Clone(rrs)
	for i, rr := range out {
		if h := rr.Header(); h.Name != asked && strings.EqualFold(h.Name, lower) {
			c := wire.Copy(rr)
			c.Header().Name = asked
			out[i] = c
		}
	}
	return out
}

// pack packs a message into at most size bytes. First it leaves out what is
// optional, whole: additional addresses, then the authority section of a
// positive answer. Only when records of the answer itself are missing is the
// message marked truncated (RFC 2181 section 9).
func pack(m *wire.Msg, size int) ([]byte, error) {
	fits := func() ([]byte, bool, error) {
		b, err := m.Pack()
		return b, len(b) <= size, err
	}
	b, ok, err := fits()
	if ok || err != nil {
		return b, err
	}
	var opt []wire.RR
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == wire.TypeOPT {
			opt = append(opt, rr)
		}
	}
	m.Extra = opt
	if b, ok, err = fits(); ok || err != nil {
		return b, err
	}
	answers := m.Answer
	if len(answers) > 0 {
		m.Ns = nil
		if b, ok, err = fits(); ok || err != nil {
			return b, err
		}
	}
	m.Truncated = true
	low, high := 0, len(answers) // low records fit, high do not
	for high-low > 1 {
		mid := (low + high) / 2
		m.Answer = answers[:mid]
		if _, ok, err = fits(); err != nil {
			return nil, err
		}
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	m.Answer = answers[:low]
	if b, ok, err = fits(); ok || err != nil {
		return b, err
	}
	m.Answer, m.Ns = nil, nil
	if b, ok, err = fits(); ok || err != nil {
		return b, err
	}
	// Long explanations: the bare OPT always fits.
	for _, rr := range m.Extra {
		rr.(*wire.OPT).Option = nil
	}
	return m.Pack()
}
