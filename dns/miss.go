package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/dns/batch"
	"nodenet/dns/plugin"
)

// A plain question over UDP that the cache does not hold is sent on by the
// receive loop, and its client answered by the loop that reads from the
// upstream: no goroutine, timer or unpacked message is made for it.
//
//	receive loop ─► pool of the upstream ─► upstream
//	     │ anything but plain                  │
//	     ▼                                     ▼ a plain answer
//	   chain ◄──────────────── anything else ─ desk ─► cache, client
//
// Anything else is an error, a failure, a truncated or unusual answer. The
// chain gets it together with the question (tried), so that it goes on from
// there and does not ask again.

// passage is how a plan sends questions on.
type passage struct {
	forward *forward
	cache   *cache // nil: none
}

// passageOf returns the way through forward, or nil when each of its queries
// needs the chain.
func passageOf(f *forward, c *cache) *passage {
	if f.forceTCP {
		return nil
	}
	return &passage{forward: f, cache: c}
}

// customer is a client that waits for an answer of an upstream.
type customer struct {
	asked
	srv   *udpServer
	out   *outbox
	peer  batch.Peer
	way   *passage
	up    *upstream
	key   cacheKey
	start time.Time
	until time.Time
	left  bool // it is no longer counted as in flight
	over  bool
}

// pending are the sockets of upstreams that one batch of questions uses.
type pending struct {
	ups   []*upstream
	socks []*socket
}

// via returns the socket that the batch has used for an upstream.
func (p *pending) via(u *upstream) *socket {
	if i := slices.Index(p.ups, u); i >= 0 {
		return p.socks[i]
	}
	return nil
}

func (p *pending) add(u *upstream, s *socket) {
	for i := range p.ups {
		if p.ups[i] != u {
			continue
		}
		if p.socks[i] != s { // it was full
			u.flush(p.socks[i])
			p.socks[i] = s
		}
		return
	}
	p.ups, p.socks = append(p.ups, u), append(p.socks, s)
}

func (p *pending) flush() {
	for i, u := range p.ups {
		u.flush(p.socks[i])
	}
	clear(p.ups)
	clear(p.socks)
	p.ups, p.socks = p.ups[:0], p.socks[:0]
}

// pick returns the upstream that a query goes to first and whether there are
// others; nil: the chain has to look.
func (f *forward) pick() (u *upstream, more bool) {
	all := *f.upstreams.Load()
	n := len(all)
	if n == 0 {
		return nil, false
	}
	first := 0
	switch {
	case n == 1:
	case f.policy == policyRandom:
		first = rand.IntN(n)
	case f.policy == policyRoundRobin:
		first = int(f.turn.Add(1) % uint32(n))
	}
	u = all[first]
	if u.secure || u.looping.Load() || u.down.Load() || f.isOwn(u.addr) {
		return nil, false
	}
	return u, n > 1
}

// send passes the question in hand on; false: the chain has to answer.
func (w *passage) send(u *udpServer, r *responder, out *outbox, peer batch.Peer, p *pending) bool {
	f, name := w.forward, r.qname
	if r.query[2]&0x01 == 0 || len(r.query) > maxQuery-optLen-maxCookie || !plugin.InZone(f.from, name) || f.except.Match(name) != "" {
		return false
	}
	k := cacheKey{name: name, qtype: r.qtype, class: wire.ClassINET, do: r.do, cd: r.cd}
	if c := w.cache; c != nil {
		if c.zones.Match(name) == "" || c.block.holds(name) || c.find(k, r.now) != nil {
			return false
		}
	}
	up, more := f.pick()
	if up == nil {
		return false
	}
	if f.inflight.Add(1) > f.concurrent {
		f.inflight.Add(-1)
		return false // the chain refuses it
	}
	patience := forwardTimeout
	if more {
		patience = up.patience()
	}
	k.name = strings.Clone(name)
	c := &customer{asked: r.asked, srv: u, out: out, peer: peer, way: w, up: up, key: k, start: r.now, until: r.now.Add(patience)}
	c.query, c.qname = bytes.Clone(r.query), k.name
	u.jobs.Add(1)
	fk := flightKey{name: k.name, qtype: k.qtype, class: k.class, do: k.do, cd: k.cd, rd: true}
	_, s, err := up.ask(fk, c, p.via(up), r.now, func() ([]byte, error) { return up.passOn(&c.asked), nil })
	if err != nil {
		f.inflight.Add(-1)
		u.jobs.Done()
		return false
	}
	if s != nil {
		p.add(up, s)
	}
	return true
}

// passOn is upstreamQuery in packed form.
func (u *upstream) passOn(q *asked) []byte {
	b := make([]byte, 0, q.nameEnd+4+optLen+maxCookie)
	b = append(b, 0, 0, 0x01, q.query[3]&0x10|0x20, 0, 1, 0, 0, 0, 0, 0, 1) // RD; CD, AD
	b = append(b, q.query[headerLen:q.nameEnd+4]...)
	b = append(b, 0, 0, byte(wire.TypeOPT), byte(defaultBufsize>>8), byte(defaultBufsize&0xFF), 0, 0, 0, 0, 0, 0)
	if q.do {
		b[len(b)-4] = 0x80
	}
	return u.cookies.put(b, 0)
}

// expired implements waiter.
func (c *customer) expired(now time.Time) bool {
	return now.After(c.until) || c.srv.ctx.Err() != nil
}

// answered implements waiter.
func (c *customer) answered(a *arrival) {
	f := c.way.forward
	defer func() {
		if e := recover(); e != nil {
			f.srv.metrics.panics.Add(1)
			f.srv.log.Error("panic in dns answer", "name", c.key.name, "err", fmt.Sprint(e), "stack", string(debug.Stack()))
			c.end()
		}
	}()
	if a.err != nil {
		if c.srv.ctx.Err() == nil { // else it is our own doing
			f.judge(context.Background(), c.up, a.err)
		}
		f.srv.metrics.forwarded(c.up.addr, nil, a.err)
		c.toChain(&tried{by: f, up: c.up, err: a.err})
		return
	}
	if a.info.truncated {
		c.toChain(&tried{by: f, up: c.up, tcp: true})
		return
	}
	if rcode := a.info.rcode; !a.info.regular || rcode != wire.RcodeSuccess && rcode != wire.RcodeNameError ||
		slices.Contains(f.failover, int(rcode)) || slices.Contains(f.next, int(rcode)) ||
		f.nextNodata && rcode == wire.RcodeSuccess && a.info.counts[0] == 0 {
		m := unpacked(a.msg)
		if m.Rcode == wire.RcodeBadCookie || m.Rcode == wire.RcodeFormatError {
			c.toChain(nil) // which knows how to ask again
			return
		}
		c.settle(m.Rcode)
		c.toChain(&tried{by: f, up: c.up, msg: m})
		return
	}
	if a.packed == nil {
		a.packed = c.take(a)
	}
	c.settle(int(a.info.rcode))
	if !c.reply(a) {
		c.toChain(&tried{by: f, up: c.up, msg: unpacked(a.msg)})
		return
	}
	c.end()
}

// end is called when nobody waits any longer, by the goroutine that has the
// customer.
func (c *customer) end() {
	c.leave()
	if !c.over {
		c.over = true
		c.srv.jobs.Done()
	}
}

// leave gives up the place among the queries in flight.
func (c *customer) leave() {
	if !c.left {
		c.left = true
		c.way.forward.inflight.Add(-1)
	}
}

// settle notes that the upstream answers.
func (c *customer) settle(rcode int) {
	f := c.way.forward
	if c.up.fails.Load() != 0 || c.up.down.Load() {
		f.judge(context.Background(), c.up, nil)
	}
	c.up.count(f.srv.metrics, rcode)
}

// take makes a packed answer of a message, keeps it in the cache, and gives
// its records the TTLs that the cache will give them.
func (c *customer) take(a *arrival) *packed {
	p := &packed{qtype: c.qtype, ad: a.info.ad}
	p.take(a.msg, &a.info)
	if cache := c.way.cache; cache != nil {
		cache.keepPacked(c.key, p, &a.info, a.now)
	}
	return p
}

// take is fill for a message of somebody else.
func (p *packed) take(msg []byte, info *answerInfo) {
	p.counts, p.rcode = info.counts, info.rcode
	p.body = bytes.Clone(msg[info.start:info.end])
	if p.body == nil {
		p.body = []byte{}
	}
	p.findRun(info.start)
}

// capTTLs bounds the TTL of every record, as long as nobody else has seen p.
func capTTLs(p *packed, most uint32) {
	for off := 0; off < len(p.body); {
		end, _, ok := skipRecord(p.body, off)
		if !ok {
			return
		}
		if b := p.body[ttlOf(p.body, off):]; binary.BigEndian.Uint32(b) > most {
			binary.BigEndian.PutUint32(b, most)
		}
		off = end
	}
}

// reply answers the client from what the arrival has packed.
func (c *customer) reply(a *arrival) bool {
	r := &a.desk.r
	r.asked = c.asked
	ok := c.out.reply(&c.peer, func(room []byte) int {
		r.out = room
		n := r.whole(a.packed, byForward)
		if n > 0 {
			n = r.finishEDNS(n)
		}
		return n
	})
	if ok {
		m := c.way.forward.srv.metrics
		if c.way.cache != nil {
			m.misses.Add(1)
		}
		m.passed.Observe(a.now.Sub(c.start).Seconds())
		a.desk.touch(c.srv.srv, c.out)
	}
	r.asked = asked{}
	return ok
}

// tried is what the receive loop already knows when the chain gets a question.
type tried struct {
	key  cacheKey
	by   *forward
	up   *upstream
	msg  *wire.Msg // nil: none
	err  error
	tcp  bool // the answer over UDP was truncated
	used atomic.Bool
}

type triedKey struct{}

// toChain lets the chain answer.
func (c *customer) toChain(t *tried) {
	c.leave()
	u := c.srv
	if u.ctx.Err() != nil { // the server has ended
		c.end()
		return
	}
	ctx := u.ctx
	if t != nil {
		t.key = c.key
		ctx = context.WithValue(ctx, triedKey{}, t)
	}
	job := func() {
		defer c.end()
		reply := u.srv.answerPacket(ctx, u.srv.live.Load().tables[u.addr], c.query, c.peer.Addr(), "udp")
		if reply != nil {
			// A client that is gone is no error of ours.
			_, _ = c.out.conn.WriteToUDPAddrPort(reply, c.peer.Addr())
		}
	}
	if !u.srv.pool.do(job) {
		var r responder
		r.shedTo(c)
		u.srv.metrics.busy.Inc()
		c.end()
	}
}

// shedTo tells a client of ours that too much is being answered.
func (r *responder) shedTo(c *customer) {
	if c.out.reply(&c.peer, func(room []byte) int { return r.shed(c.query, room) }) {
		_ = c.out.flush()
	}
}
