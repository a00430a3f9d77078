package dns

import (
	"encoding/binary"
	"net"
	"strings"
	"time"
	"unsafe"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"nodenet/dns/plugin"
)

// plan is how a server block's chain is followed without running it. It is
// made once for each block and immutable.
type plan struct {
	steps  []step
	rotate bool      // loadbalance is there
	cache  *hotCache // nil: no cache, or plugins that the packed path must not skip
	pass   *passage  // nil: what is not answered here needs the chain
	search *search   // nil: questions are answered as they are

	completed *hotCache // what search has led to; nil like search

	counters [sourceCount][2]prometheus.Counter // of the block, see tally
}

// step is one directive that a question meets on its way.
type step struct {
	cluster *cluster
	other   plugin.Bystander
}

// planOf reads the plan off a chain; nil: every question needs the chain.
func planOf(plugins []plugin.Named) *plan {
	pl := new(plan)
	caches, waits := 0, false
	for _, named := range plugins {
		// It bounds the time of what takes some.
		waits = waits || named.Name == "cancel"
		switch p := named.Plugin.(type) {
		case interface{ Rotates() bool }: // loadbalance
			if !p.Rotates() {
				return pl.orNil()
			}
			pl.rotate = true
		case *cache:
			// What the node knows is not in it. What it holds comes from
			// behind, so a second cache would have to be asked first.
			if caches++; pl.cache == nil && !p.keepTTL {
				pl.cache = newHotCache(p)
			}
		case *search:
			pl.search, pl.completed = p, newHotCache(nil)
		case *cluster:
			pl.steps = append(pl.steps, step{cluster: p})
		case *loop: // its probes are of a type that is not for the packed path
		case *forward:
			switch {
			case waits || caches > 1:
			case pl.cache != nil:
				pl.pass = passageOf(p, pl.cache.cache)
			case caches == 0:
				pl.pass = passageOf(p, nil)
			}
			return pl.orNil()
		case plugin.Bystander:
			pl.steps = append(pl.steps, step{other: p})
		default:
			return pl.orNil()
		}
	}
	return pl.orNil()
}

func (pl *plan) orNil() *plan {
	for _, s := range pl.steps {
		if s.cluster != nil {
			return pl
		}
	}
	if pl.cache != nil || pl.pass != nil {
		return pl
	}
	return nil
}

// plainByte is each byte of a name in lower case; 0: its text would need an
// escape, or it is so rare that the chain may have it.
var plainByte = func() (t [256]byte) {
	for c := range 26 {
		t['a'+c], t['A'+c] = byte('a'+c), byte('a'+c)
	}
	for _, c := range []byte("0123456789-_") {
		t[c] = c
	}
	return t
}()

// responder answers questions on the packed path. It belongs to one
// goroutine.
type responder struct {
	name  [256 + keyTail]byte
	other [256]byte // a name that is thought of
	order [defaultBufsize]byte
	now   time.Time // of the batch in hand
	turn  uint64    // of rotation, a xorshift generator
	tally tally
	shard int // of the socket in its group

	ahead foresight
	known *foreseen // of the question in hand; nil: nothing

	asked
	out  []byte   // room for the answer
	pass *passage // of a question that may be sent on; nil: it may not
}

// asked is a plain question with what its answer depends on.
type asked struct {
	query   []byte
	qname   string // lower-case; as valid as the query
	qtype   uint16
	nameEnd int
	do, cd  bool
	edns    bool
	bufsize uint16 // to advertise
	size    int    // limit of the answer without OPT
	plan    *plan
	table   *table
	block   *block
	ra      byte
	asker
}

// respond writes the answer to a packet into out, which takes 1232 bytes, and
// returns its length. 0: the chain has to answer.
func (r *responder) respond(t *table, query, out []byte) int {
	r.pass = nil
	if len(query) < headerLen+5 || t == nil {
		return 0
	}
	// QR 0, OPCODE 0; one question, nothing else but perhaps one OPT.
	counts := binary.BigEndian.Uint64(query[4:])
	if query[2]&0xF8 != 0 || counts&^1 != 1<<48 {
		return 0
	}
	name, off := r.nameOf(query)
	if off == 0 || off+4 > len(query) || binary.BigEndian.Uint16(query[off+2:]) != wire.ClassINET {
		return 0
	}
	r.qname, r.qtype, r.nameEnd = name, binary.BigEndian.Uint16(query[off:]), off
	if !counted(r.qtype) {
		return 0
	}
	off += 4
	b := t.only
	if b == nil {
		b = t.match(name)
	}
	if b == nil || b.plan == nil {
		return 0
	}
	r.query, r.out, r.plan, r.table, r.block = query, out, b.plan, t, b
	r.cd, r.do = query[3]&0x10 != 0, false
	r.size = wire.MinMsgSize
	r.edns, r.bufsize = counts&1 != 0, defaultBufsize
	if r.edns && r.saved {
		return 0 // the answer has an extended error
	}
	if r.edns {
		// Version 0, no options; flags other than DO are ignored (RFC 6891
		// section 6.1.4).
		if len(query) != off+optLen || query[off] != 0 || binary.BigEndian.Uint16(query[off+1:]) != wire.TypeOPT ||
			query[off+5] != 0 || query[off+6] != 0 || query[off+9] != 0 || query[off+10] != 0 {
			return 0
		}
		r.do = query[off+7]&0x80 != 0
		if b.bufsize != 0 {
			r.bufsize = b.bufsize
		}
		r.size = max(r.size, int(min(binary.BigEndian.Uint16(query[off+3:]), r.bufsize)))
		r.size -= optLen
	} else if len(query) != off {
		return 0
	}
	r.size = min(r.size, len(out)-optLen)
	r.ra = 0
	if b.recurse {
		r.ra = 0x80
	}
	n := r.follow(name)
	if n == 0 {
		return 0
	}
	return r.finishEDNS(n)
}

// finishEDNS appends the OPT record to an answer of n bytes, if the client
// sent one.
func (r *responder) finishEDNS(n int) int {
	if !r.edns {
		return n
	}
	opt := r.out[n : n+optLen]
	copy(opt, "\x00\x00\x29\x00\x00\x00\x00\x00\x00\x00\x00")
	binary.BigEndian.PutUint16(opt[3:], r.bufsize)
	if r.do {
		opt[7] = 0x80
	}
	r.out[11]++ // ARCOUNT, at most 255: the answer is that short
	if r.out[11] == 0 {
		r.out[10]++
	}
	return n + optLen
}

// nameOf reads the question's name into text, lower-case. off is where it
// ends; 0: it is not plain. The text is valid until the next question.
func (r *responder) nameOf(query []byte) (name string, off int) {
	if r.known != nil {
		return r.known.name, r.known.end
	}
	n, off := plainName(query, r.name[:])
	return unsafe.String(&r.name[0], n), off
}

// plainName reads a question's name into text, which has room for 256 bytes,
// and returns how long it is there and where it ends in the question; 0: it is
// not plain.
func plainName(query, text []byte) (n, off int) {
	off = headerLen
	for {
		if off >= len(query) {
			return 0, 0
		}
		l := int(query[off])
		off++
		if l == 0 {
			break
		}
		if l > 63 || off+l > len(query) || n+l+1 > maxName {
			return 0, 0
		}
		label, to := query[off:off+l], text[n:n+l]
		plain := true
		for i, c := range label {
			c = plainByte[c]
			plain = plain && c != 0
			to[i] = c
		}
		if !plain {
			return 0, 0
		}
		off += l
		text[n+l] = '.'
		n += l + 1
	}
	if n == 0 {
		text[0] = '.'
		n = 1
	}
	return n, off
}

// follow takes the steps of the plan.
func (r *responder) follow(name string) int {
	for i := range r.plan.steps {
		s := &r.plan.steps[i]
		switch {
		case s.cluster != nil:
			if n, done := r.fromZone(s.cluster, name); done {
				return n
			}
		case !s.other.Skips(name, r.qtype):
			return 0
		}
	}
	if r.plan.cache != nil {
		if n := r.plan.cache.respond(r, name); n > 0 {
			return n
		}
	}
	if !r.searches(name) {
		r.pass = r.plan.pass
	}
	return 0
}

// fromZone answers from a cluster's zone. Not done: the question goes on to
// the next directive.
func (r *responder) fromZone(c *cluster, name string) (n int, done bool) {
	z := c.zone.Load()
	if z == nil {
		return 0, true
	}
	nd := r.find(z.names, name)
	if nd == nil {
		g := z.negativeOf(name)
		switch {
		case g.origin == "":
			return 0, false
		case g.pods != "" && strings.HasSuffix(name, g.pods):
			return 0, true
		case c.fall.Passes(name):
			return 0, false
		case r.searches(name):
			return r.complete(name), true
		}
		return r.negative(g, name, wire.RcodeNameError), true
	}
	s := nd.set(r.qtype)
	if s == nil {
		s = nd.set(wire.TypeCNAME)
	}
	switch {
	case s == nil && !nd.hasAddress() && r.searches(name):
		return r.complete(name), true
	case s == nil:
		return r.negative(z.negativeOf(name), name, wire.RcodeSuccess), true
	case (s.qtype == wire.TypeA || s.qtype == wire.TypeAAAA) && !s.dup:
		return r.addresses(z, s), true
	}
	return r.whole(z.memo(nd, s, r.qtype), byCluster), true
}

// negativeOf returns the negative answer for a name's origin.
func (z *Zone) negativeOf(name string) *negativeAnswer {
	best := &z.negs[len(z.negs)-1]
	for i := range z.negs[:len(z.negs)-1] {
		g := &z.negs[i]
		if len(g.origin) > len(best.origin) && plugin.InZone(g.origin, name) {
			best = g
		}
	}
	return best
}

// header writes header and question.
func (r *responder) header(aa, ad bool, rcode uint8, an, ns, ar uint16) int {
	q, out := r.query, r.out
	out[0], out[1] = q[0], q[1]
	out[2] = 0x80 | q[2]&0x01 // QR, RD
	if aa {
		out[2] |= 0x04
	}
	out[3] = r.ra | q[3]&0x10 | rcode // RA, CD
	if ad && (r.do || q[3]&0x20 != 0) {
		out[3] |= 0x20
	}
	binary.BigEndian.PutUint64(out[4:], 1<<48|uint64(an)<<32|uint64(ns)<<16|uint64(ar))
	return headerLen + copy(out[headerLen:], q[headerLen:r.nameEnd+4])
}

// negative answers that there is no such name, or no such type.
func (r *responder) negative(g *negativeAnswer, name string, rcode uint8) int {
	if !g.covers(name) || r.nameEnd+4+len(g.body) > r.size {
		return 0
	}
	n := r.header(true, false, rcode, 0, 1, 0)
	r.tally.add(r.plan, r.qtype, rcode, byCluster)
	return n + g.write(r.out[n:], r.nameEnd)
}

// addresses answers with A or AAAA records.
func (r *responder) addresses(z *Zone, s *rrset) int {
	size := net.IPv4len
	if s.qtype == wire.TypeAAAA {
		size = net.IPv6len
	}
	count := len(s.data) / size
	if r.nameEnd+4+count*(12+size) > r.size {
		return 0
	}
	at := r.header(true, false, wire.RcodeSuccess, uint16(count), 0, 0)
	first := 0
	if count > 1 {
		first = r.rotation() % count
	}
	for i := range count {
		item := s.data[(first+i)%count*size:][:size]
		rr := r.out[at : at+12+size]
		binary.BigEndian.PutUint16(rr, pointerToQuestion)
		binary.BigEndian.PutUint16(rr[2:], s.qtype)
		binary.BigEndian.PutUint16(rr[4:], wire.ClassINET)
		binary.BigEndian.PutUint32(rr[6:], z.opt.ttl)
		binary.BigEndian.PutUint16(rr[10:], uint16(size))
		copy(rr[12:], item)
		at += len(rr)
	}
	r.nearestFirst(r.out[at-count*(12+size):at], count, size)
	r.tally.add(r.plan, r.qtype, wire.RcodeSuccess, byCluster)
	return at
}

// whole answers with what is packed.
func (r *responder) whole(p *packed, by source) int {
	if p.body == nil || r.nameEnd+4+len(p.body) > r.size || r.plan.rotate && p.fixed && p.runN > 1 {
		return 0
	}
	near := by != byCache && r.block.nearest && p.runN > 1
	if near && p.fixed {
		return 0
	}
	start := r.header(p.aa, p.ad, p.rcode, p.counts[0], p.counts[1], p.counts[2])
	at := start + p.write(r.out[start:], r.rotation())
	if near {
		run := r.out[start+p.run : start+p.run+p.runN*p.runLen]
		r.nearestFirst(run, p.runN, int(binary.BigEndian.Uint16(run[10:])))
	}
	r.tally.add(r.plan, r.qtype, p.rcode, by)
	return at
}

// rotation draws by how much addresses are rotated.
func (r *responder) rotation() int {
	if !r.plan.rotate {
		return 0
	}
	r.turn ^= r.turn << 13
	r.turn ^= r.turn >> 7
	r.turn ^= r.turn << 17
	return int(r.turn >> 33)
}
