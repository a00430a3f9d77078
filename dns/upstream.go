package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// upstream is one server that queries are forwarded to. Safe for concurrent
// use.
type upstream struct {
	addr   netip.AddrPort
	expire time.Duration // of idle TCP connections
	secure bool          // TLS only
	name   string        // of its certificate; empty: as in dial
	dial   *dialOptions  // nil: the zero value

	fails   atomic.Uint32 // in a row
	down    atomic.Bool   // more fails than allowed; probed until it answers
	looping atomic.Bool   // it sends our queries back to us
	probing atomic.Bool
	rtt     atomic.Int64 // smoothed, nanoseconds; 0: not measured
	cookies cookies
	counts  [2]atomic.Pointer[prometheus.Counter] // of NOERROR and NXDOMAIN, see count
	pool    pool                                  // of UDP sockets

	mu      sync.Mutex
	idle    []idleConn // TCP, newest last
	retired bool       // no longer an upstream: keeps no connections
}

type idleConn struct {
	*wire.Conn
	since time.Time
}

// maxIdle bounds the TCP connections kept to one upstream, by default.
const maxIdle = 16

// String is the address, as it is written in a Nodefile.
func (u *upstream) String() string {
	if u.secure {
		return "tls://" + u.addr.String()
	}
	return u.addr.String()
}

func (u *upstream) options() *dialOptions {
	if u.dial == nil {
		return new(dialOptions)
	}
	return u.dial
}

// patience is how long to wait for an answer when there is another upstream
// to try: eight round trips, within reason.
func (u *upstream) patience() time.Duration {
	rtt := time.Duration(u.rtt.Load())
	if d := u.options().patience; d > 0 {
		return d
	}
	if rtt == 0 {
		rtt = 100 * time.Millisecond
	}
	return min(max(8*rtt, 300*time.Millisecond), 2*time.Second)
}

// exchange asks once and waits until ctx ends. An answer that came over UDP
// and is truncated is asked again over TCP.
func (u *upstream) exchange(ctx context.Context, m *wire.Msg, tcp bool) (*wire.Msg, error) {
	start := time.Now()
	var (
		r   *wire.Msg
		err error
	)
	if !tcp && !u.secure {
		r, err = u.overUDP(ctx, m)
		if err == nil && (r.Rcode == wire.RcodeBadCookie || // the server's part is known now
			r.Rcode == wire.RcodeFormatError && u.cookies.refused()) {
			r, err = u.overUDP(ctx, m)
		}
		if err != nil || !r.Truncated && r.Rcode != wire.RcodeBadCookie {
			return r, err // the pool has measured
		}
	}
	r, err = u.overTCP(ctx, m)
	u.measure(time.Since(start), err)
	return r, err
}

// count counts an answer.
func (u *upstream) count(m *metrics, rcode int) {
	i := 0
	switch rcode {
	case wire.RcodeSuccess:
	case wire.RcodeNameError:
		i = 1
	default:
		m.upstreams.WithLabelValues(u.addr.String(), wire.RcodeToString[rcode]).Inc()
		return
	}
	c := u.counts[i].Load()
	if c == nil {
		found := m.upstreams.WithLabelValues(u.addr.String(), wire.RcodeToString[rcode])
		c = &found
		u.counts[i].Store(c)
	}
	(*c).Inc()
}

// measure smooths the round trip time as TCP does (RFC 6298, alpha 1/8).
func (u *upstream) measure(d time.Duration, err error) {
	if err != nil {
		return
	}
	if old := u.rtt.Load(); old != 0 {
		d = time.Duration(old) + (d-time.Duration(old))/8
	}
	u.rtt.Store(int64(d))
}

// overUDP asks through the pool of sockets and waits until ctx ends. Equal
// questions of several clients are asked once.
func (u *upstream) overUDP(ctx context.Context, m *wire.Msg) (*wire.Msg, error) {
	w := &caller{done: make(chan result, 1)}
	f, s, err := u.ask(keyOf(m), w, nil, time.Now(), func() ([]byte, error) { return u.packQuery(m) })
	if err != nil {
		return nil, fmt.Errorf("send query to %s: %w", u.addr, err)
	}
	if s != nil {
		u.flush(s)
	}
	select {
	case r := <-w.done:
		return r.msg, r.err
	case <-ctx.Done():
		u.leave(f, w)
		return nil, fmt.Errorf("wait for answer of %s: %w", u.addr, context.Cause(ctx))
	}
}

// keyOf tells what a query of upstreamQuery has in common with others. Those
// with options, and probes, which have no EDNS, are nobody else's.
func keyOf(m *wire.Msg) flightKey {
	opt := m.IsEdns0()
	if opt == nil || len(opt.Option) > 0 {
		return flightKey{}
	}
	q := m.Question[0]
	return flightKey{name: wire.CanonicalName(q.Name), qtype: q.Qtype, class: q.Qclass, do: opt.Do(), cd: m.CheckingDisabled, rd: m.RecursionDesired}
}

// packQuery packs a query; one with EDNS gets our cookie.
func (u *upstream) packQuery(m *wire.Msg) ([]byte, error) {
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if opt := m.IsEdns0(); opt != nil {
		b = u.cookies.put(b, wire.Len(opt)-optLen)
	}
	if len(b) > maxQuery {
		return nil, errors.New("the query is too long for a datagram")
	}
	return b, nil
}

// caller is a goroutine that waits for an answer.
type caller struct{ done chan result }

type result struct {
	msg *wire.Msg
	err error
}

func (c *caller) answered(a *arrival) {
	if a.err != nil {
		c.done <- result{err: a.err}
		return
	}
	// Others may have the same message, and records are shared by contract:
	// each unpacks its own.
	c.done <- result{msg: unpacked(a.msg)}
}

// expired implements waiter: the caller has a context.
func (c *caller) expired(time.Time) bool { return false }

// overTCP reuses an idle connection. If that one is dead, which only shows
// when it is used, a new one gets the query.
func (u *upstream) overTCP(ctx context.Context, m *wire.Msg) (*wire.Msg, error) {
	for {
		conn, reused := u.take()
		if conn == nil {
			c, err := u.connect(ctx)
			if err != nil {
				return nil, err
			}
			conn = &wire.Conn{Conn: c}
		}
		r, err := u.once(ctx, conn, m)
		if err == nil {
			u.give(conn)
			return r, nil
		}
		conn.Close()
		if !reused || ctx.Err() != nil {
			return nil, fmt.Errorf("exchange with %s over tcp: %w", u.addr, cause(ctx, err))
		}
	}
}

func (u *upstream) once(ctx context.Context, conn *wire.Conn, m *wire.Msg) (*wire.Msg, error) {
	defer bound(ctx, conn)()
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	r, err := conn.ReadMsg()
	if err == nil && !matches(m, r) {
		err = errors.New("the answer is to another question")
	}
	return r, err
}

func (u *upstream) take() (conn *wire.Conn, reused bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.trim()
	if n := len(u.idle); n > 0 {
		conn = u.idle[n-1].Conn
		u.idle = u.idle[:n-1]
		return conn, true
	}
	return nil, false
}

func (u *upstream) give(conn *wire.Conn) {
	// The deadline of the last exchange is gone only if that took no error.
	if conn.SetDeadline(time.Time{}) != nil {
		conn.Close()
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.idle = append(u.idle, idleConn{conn, time.Now()})
	u.trim()
}

// tidy closes connections that are idle for too long.
func (u *upstream) tidy() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.trim()
}

// trim closes what is idle for too long and what is too many. Oldest first.
func (u *upstream) trim() {
	for len(u.idle) > 0 && (u.retired || len(u.idle) > u.options().most() || time.Since(u.idle[0].since) > u.expire) {
		u.idle[0].Close()
		u.idle = u.idle[1:]
	}
}

// retire closes all connections, and those in use when they come back.
func (u *upstream) retire() {
	u.pool.mu.Lock()
	u.pool.retired = true
	u.pool.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.retired = true
	u.trim()
}

// bound ends the connection's waits when ctx ends. The returned function
// lifts that again.
func bound(ctx context.Context, conn net.Conn) (lift func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// cause prefers the reason why ctx ended over the i/o timeout it produced.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// matches reports whether r answers m.
func matches(m, r *wire.Msg) bool {
	if r.Id != m.Id || !r.Response || r.Opcode != m.Opcode {
		return false
	}
	if len(r.Question) == 0 { // some servers leave it out of errors
		return r.Rcode != wire.RcodeSuccess
	}
	a, b := m.Question[0], r.Question[0]
	return len(r.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
