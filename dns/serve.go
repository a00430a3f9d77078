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

	"nodenet/dns/plugin"
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
	if tcp {
		return s.answerOver(ctx, t, req, from, "tcp")
	}
	return s.answerOver(ctx, t, req, from, "udp")
}

// answerOver is answer for one of the transports udp, tcp, tls and https.
func (s *Server) answerOver(ctx context.Context, t *table, req *wire.Msg, from netip.AddrPort, proto string) (packed []byte) {
	return s.answerTraced(ctx, t, req, from, proto, nil)
}

// answerTraced is answerOver with a record of the question's way.
func (s *Server) answerTraced(ctx context.Context, t *table, req *wire.Msg, from netip.AddrPort, proto string, trace *plugin.Trace) (packed []byte) {
	if req.Response {
		return nil
	}
	start := time.Now()
	q := &query{table: t, Query: plugin.Query{Msg: req, Client: from, TCP: proto != "udp", Proto: proto, Ask: t.asker(), Trace: trace}}
	if t != nil {
		q.Local = t.addr
	}
	clients := s.clients.Load()
	size, opt, reply := s.check(q)
	if reply == nil {
		if reply = s.resolve(ctx, q); reply == nil {
			return nil // by order of a plugin
		}
		if fromCluster(&q.Query) {
			if q.block.nearest {
				s.clients.Load().nearestFirst(reply.Answer)
			}
			if s.saved.Load() {
				explainSaved(&q.Query, reply)
			}
		}
	}
	finish(q, reply, opt)
	packed, whole, err := pack(reply, size)
	if err != nil {
		s.log.Error("pack answer", "name", q.Name, "type", wire.TypeToString[q.Type], "err", err)
		reply.Answer, reply.Ns, reply.Extra = nil, nil, nil
		reply.Rcode = wire.RcodeServerFailure
		if packed, err = reply.Pack(); err != nil {
			return nil
		}
	}
	now := time.Now()
	s.metrics.observe(q, reply, now.Sub(start))
	if q.block != nil && q.block.plan != nil && (opt == nil || len(opt.Option) == 0) {
		if q.block.plan.cache != nil {
			q.block.plan.cache.learn(q, packed, whole, now)
		}
		q.block.plan.learnCompleted(q, reply, packed, whole, now, clients)
	}
	restoreCase(packed, req)
	return packed
}

// check does what the protocol asks before a name is looked at. It returns
// the size limit of the answer, the OPT record to send (nil: none), and a
// reply when the question ends here.
func (s *Server) check(q *query) (size int, opt *wire.OPT, reply *wire.Msg) {
	size = wire.MinMsgSize
	if q.TCP {
		size = wire.MaxMsgSize
	}
	opts := 0
	for _, rr := range q.Msg.Extra {
		o, ok := rr.(*wire.OPT)
		if !ok {
			continue
		}
		if opts++; opts > 1 || o.Hdr.Name != "." {
			return size, nil, plugin.Refusal(wire.RcodeFormatError) // RFC 6891 section 6.1.1
		}
		opt = &wire.OPT{Hdr: wire.RR_Header{Name: ".", Rrtype: wire.TypeOPT}}
		opt.SetUDPSize(defaultBufsize)
		if o.Do() {
			opt.SetDo()
			q.DO = true
		}
		if !q.TCP {
			size = max(size, min(int(o.UDPSize()), defaultBufsize))
		}
		if o.Version() != 0 {
			return size, opt, plugin.Refusal(wire.RcodeBadVers)
		}
	}
	switch {
	case q.Msg.Opcode != wire.OpcodeQuery:
		return size, opt, plugin.Refusal(wire.RcodeNotImplemented)
	case len(q.Msg.Question) != 1:
		return size, opt, plugin.Refusal(wire.RcodeFormatError)
	}
	question := q.Msg.Question[0]
	q.Name, q.Type, q.Class = wire.CanonicalName(question.Name), question.Qtype, question.Qclass
	if q.block = q.table.of(&q.Query); q.block == nil {
		q.Explain(wire.ExtendedErrorCodeNotAuthoritative, "no server block for this name")
		return size, opt, plugin.Refusal(wire.RcodeRefused)
	}
	if b := q.block.bufsize; b != 0 && opt != nil {
		opt.SetUDPSize(b)
		if !q.TCP {
			size = max(wire.MinMsgSize, min(int(q.Msg.IsEdns0().UDPSize()), int(b)))
		}
	}
	if q.block.nsid != nil && opt != nil {
		if slices.ContainsFunc(q.Msg.IsEdns0().Option, func(o wire.EDNS0) bool { return o.Option() == wire.EDNS0NSID }) {
			opt.Option = append(opt.Option, &wire.EDNS0_NSID{Code: wire.EDNS0NSID, Nsid: fmt.Sprintf("%x", q.block.nsid)})
		}
	}
	switch q.Type {
	case wire.TypeAXFR, wire.TypeIXFR:
		if !q.block.transfer {
			return size, opt, plugin.Refusal(wire.RcodeRefused)
		}
	case wire.TypeMAILA, wire.TypeMAILB:
		return size, opt, plugin.Refusal(wire.RcodeRefused)
	case wire.TypeOPT, wire.TypeTSIG, wire.TypeTKEY, wire.TypeNone:
		return size, opt, plugin.Refusal(wire.RcodeFormatError)
	case wire.TypeANY:
		if q.Class == wire.ClassINET {
			return size, opt, minimalANY(question.Name)
		}
	}
	return size, opt, nil
}

// minimalANY is the synthesized answer of RFC 8482 section 4.2.
func minimalANY(name string) *wire.Msg {
	return &wire.Msg{Answer: []wire.RR{&wire.HINFO{
		Hdr: wire.RR_Header{Name: name, Rrtype: wire.TypeHINFO, Class: wire.ClassINET, Ttl: 8482},
		Cpu: "RFC8482",
	}}}
}

// resolve runs the chain of the block. Errors and panics become SERVFAIL,
// no answer REFUSED. A nil reply: there must be none.
func (s *Server) resolve(ctx context.Context, q *query) (reply *wire.Msg) {
	defer func() {
		if r := recover(); r != nil {
			s.metrics.panics.Add(1)
			s.log.Error("panic in dns chain", "name", q.Name, "err", fmt.Sprint(r), "stack", string(debug.Stack()))
			reply = plugin.Refusal(wire.RcodeServerFailure)
		}
	}()
	q.Block = q.block.label()
	if q.block.debug && q.Trace == nil {
		q.Trace = new(plugin.Trace)
		defer func() { s.logTrace(q) }()
	}
	reply, err := q.block.chain(ctx, &q.Query)
	switch {
	case errors.Is(err, plugin.ErrDrop):
		s.metrics.queries.Add(1)
		return nil
	case err != nil:
		if len(q.EDE) == 0 && !errors.Is(err, context.Canceled) {
			q.Explain(wire.ExtendedErrorCodeOther, err.Error())
		}
		return plugin.Refusal(wire.RcodeServerFailure)
	case reply == nil:
		q.Explain(wire.ExtendedErrorCodeNotAuthoritative, "nobody here answers for this name")
		return plugin.Refusal(wire.RcodeRefused)
	}
	return reply
}

// finish gives a reply the header, question and OPT of its query.
func finish(q *query, m *wire.Msg, opt *wire.OPT) {
	rcode, aa, ad := m.Rcode, m.Authoritative, m.AuthenticatedData
	m.MsgHdr = wire.MsgHdr{
		Id:                 q.Msg.Id,
		Response:           true,
		Opcode:             q.Msg.Opcode,
		Authoritative:      aa,
		RecursionDesired:   q.Msg.RecursionDesired,
		RecursionAvailable: q.block != nil && q.block.recurse,
		AuthenticatedData:  ad && (q.DO || q.Msg.AuthenticatedData),
		CheckingDisabled:   q.Msg.CheckingDisabled,
		Rcode:              rcode,
	}
	if q.RecursionAvailable != nil {
		m.RecursionAvailable = *q.RecursionAvailable
	}
	if q.RecursionDesired != nil {
		m.RecursionDesired = *q.RecursionDesired
	}
	m.Compress = true
	m.Question = q.Msg.Question
	if len(m.Question) == 1 && q.Name != "" {
		// In lower case, so that compression finds it, until restoreCase.
		m.Question = []wire.Question{{Name: q.Name, Qtype: m.Question[0].Qtype, Qclass: m.Question[0].Qclass}}
		m.Answer = inLowerCase(m.Answer, q.Name)
	}
	if opt == nil {
		if rcode > 0xF { // does not fit without OPT
			m.Rcode = wire.RcodeServerFailure
		}
		return
	}
	for _, e := range q.EDE {
		opt.Option = append(opt.Option, e)
	}
	m.Extra = plugin.Join(m.Extra, []wire.RR{opt})
}

// inLowerCase gives records that own the name of the question its lower-case
// form. They are compressed to a pointer to the question then, and so have the
// letter case of the question, which clients that mix cases against spoofing
// compare.
func inLowerCase(rrs []wire.RR, lower string) []wire.RR {
	out := rrs
	for i, rr := range rrs {
		if h := rr.Header(); h.Name != lower && strings.EqualFold(h.Name, lower) {
			if &out[0] == &rrs[0] {
				out = slices.Clone(rrs)
			}
			c := wire.Copy(rr)
			c.Header().Name = lower
			out[i] = c
		}
	}
	return out
}

// restoreCase writes the question's name into a packed reply as it was asked.
func restoreCase(packed []byte, req *wire.Msg) {
	if len(req.Question) != 1 || len(packed) < headerLen || packed[5] != 1 {
		return
	}
	var name [256]byte
	n, err := wire.PackDomainName(req.Question[0].Name, name[:], 0, nil, false)
	if err == nil && headerLen+n <= len(packed) {
		copy(packed[headerLen:], name[:n])
	}
}

// pack packs a message into at most size bytes. First it leaves out what is
// optional, whole: additional addresses, then the authority section of a
// positive answer. Only when records of the answer itself are missing is the
// message marked truncated (RFC 2181 section 9). It reports whether nothing
// was left out.
func pack(m *wire.Msg, size int) (packed []byte, whole bool, err error) {
	if packed, err = m.Pack(); err != nil || len(packed) <= size {
		return packed, err == nil, err
	}
	packed, err = packLess(m, size)
	return packed, false, err
}

// packLess packs a message that is too long as it is.
func packLess(m *wire.Msg, size int) ([]byte, error) {
	fits := func() ([]byte, bool, error) {
		b, err := m.Pack()
		return b, len(b) <= size, err
	}
	var opt []wire.RR
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == wire.TypeOPT {
			opt = append(opt, rr)
		}
	}
	m.Extra = opt
	b, ok, err := fits()
	if ok || err != nil {
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
