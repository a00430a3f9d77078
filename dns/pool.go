package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"net"
	"sync"
	"time"

	"nodenet/dns/batch"
)

// Limits of the sockets to one upstream.
const (
	// poolSockets have ports of the kernel's random choice. Together with the
	// random ID that is what protects against forged answers (RFC 5452
	// section 9.2); a port that somebody has found out is gone soon.
	poolSockets   = 16
	socketQueries = 8192             // of one socket until it is renewed
	socketTime    = 30 * time.Second // since it was opened
	socketIdle    = 10 * time.Second // since the last query
	socketStrange = 256              // answers that nobody waits for: somebody guesses
	socketOpen    = 4096             // queries that wait at one socket, of 65536 IDs
	socketBatch   = 32
	socketRead    = 2048 // more than was advertised
	scanEvery     = 50 * time.Millisecond
	maxWaiters    = 256  // of one question
	maxQuery      = 1232 // bytes
)

// pool is what an upstream is asked through over UDP: a few sockets with many
// queries on their way. Each socket has one goroutine that reads, all together
// have one that looks after time. The zero value is ready; without queries
// there are neither sockets nor goroutines.
type pool struct {
	mu       sync.Mutex
	flights  map[flightKey]*flight
	slots    [poolSockets]*socket
	old      []*socket // take no more queries
	scanning bool
	retired  bool
	ids      [256]byte // random
	idsLeft  int
}

// socket is one connected socket: the kernel drops what others send to it.
// Guarded by the pool.
type socket struct {
	conn    *net.UDPConn
	out     *outbox
	open    map[uint16]*flight // by ID
	asked   int
	strange int
	born    time.Time
	used    time.Time
	closed  bool
}

// flightKey is what makes two questions one.
type flightKey struct {
	name         string // lower-case; empty: a question of its own
	qtype, class uint16
	do, cd, rd   bool
}

// flight is a query on its way. All but the waiters and what is about time is
// immutable.
type flight struct {
	key     flightKey
	sock    *socket
	id      uint16
	query   []byte // as it was sent
	waiters []waiter
	first   time.Time // sent for the first time
	again   time.Time // to be sent again
	tries   int
}

// waiter is told what became of a query. It is called once, unless it leaves
// before.
type waiter interface {
	answered(a *arrival)
	// expired reports whether it waits no longer; it is called with the pool
	// locked.
	expired(now time.Time) bool
}

// arrival is an answer or an error. The message is valid during the call.
type arrival struct {
	msg    []byte
	info   answerInfo
	err    error
	took   time.Duration
	now    time.Time
	desk   *desk
	packed *packed // what the first client made of it
}

// errNoAnswer is what a query ends with when time is over.
var errNoAnswer = errors.New("no answer in time")

// id draws an ID that no query of the socket has.
func (p *pool) id(s *socket) uint16 {
	for {
		if p.idsLeft == 0 {
			rand.Read(p.ids[:]) // never fails
			p.idsLeft = len(p.ids)
		}
		p.idsLeft -= 2
		id := binary.BigEndian.Uint16(p.ids[p.idsLeft:])
		if s.open[id] == nil {
			return id
		}
	}
}

// ask sends a packed query, or joins an equal one that is on its way; query is
// called for the bytes when they are needed, and its ID is filled in. They
// are in the outbox of the returned socket then, which has to be flushed; nil:
// nothing is to be sent. via is a socket used before, or nil.
func (u *upstream) ask(k flightKey, w waiter, via *socket, now time.Time, query func() ([]byte, error)) (*flight, *socket, error) {
	p := &u.pool
	p.mu.Lock()
	if k.name != "" {
		if f := p.flights[k]; f != nil && len(f.waiters) < maxWaiters {
			f.waiters = append(f.waiters, w)
			p.mu.Unlock()
			return f, nil, nil
		}
	}
	b, err := query()
	s := via
	if err == nil && (s == nil || s.closed || s.full(now)) {
		s, err = u.socketAt(randv2.IntN(poolSockets), now)
	}
	if err != nil {
		p.mu.Unlock()
		return nil, nil, err
	}
	f := &flight{key: k, sock: s, id: p.id(s), query: b, waiters: []waiter{w}, first: now, again: now.Add(u.patience()), tries: 1}
	binary.BigEndian.PutUint16(b, f.id)
	s.open[f.id] = f
	s.asked++
	s.used = now
	if k.name != "" {
		p.flights[k] = f
	}
	p.mu.Unlock()
	if err := s.out.send(b); err != nil {
		u.broken(s, err)
	}
	return f, s, nil
}

// full reports whether a socket should take no more queries.
func (s *socket) full(now time.Time) bool {
	return s.asked >= socketQueries || len(s.open) >= socketOpen || s.strange >= socketStrange || now.Sub(s.born) > socketTime
}

// socketAt returns the socket of a slot, a new one if need be.
func (u *upstream) socketAt(i int, now time.Time) (*socket, error) {
	p := &u.pool
	if s := p.slots[i]; s != nil {
		if !s.full(now) {
			return s, nil
		}
		p.old = append(p.old, s)
		p.slots[i] = nil
	}
	c, err := u.options().dialer("udp").DialContext(context.Background(), "udp", u.addr.String())
	if err != nil {
		return nil, fmt.Errorf("open socket to %s: %w", u.addr, err)
	}
	s := &socket{conn: c.(*net.UDPConn), open: make(map[uint16]*flight), born: now, used: now}
	if s.out, err = newOutbox(s.conn, socketBatch, maxQuery); err != nil {
		c.Close()
		return nil, fmt.Errorf("open socket to %s: %w", u.addr, err)
	}
	enlarge(s.conn)
	if p.flights == nil {
		p.flights = make(map[flightKey]*flight)
	}
	p.slots[i] = s
	go u.receive(s)
	if !p.scanning {
		p.scanning = true
		go u.scan()
	}
	return s, nil
}

// flush sends what is queued at a socket.
func (u *upstream) flush(s *socket) {
	if err := s.out.flush(); err != nil {
		u.broken(s, err)
	}
}

// leave ends the wait of one waiter.
func (u *upstream) leave(f *flight, w waiter) {
	u.pool.mu.Lock()
	defer u.pool.mu.Unlock()
	for i := range f.waiters {
		if f.waiters[i] == w {
			f.waiters = append(f.waiters[:i:i], f.waiters[i+1:]...)
			break
		}
	}
	if len(f.waiters) == 0 {
		u.pool.remove(f)
	}
}

// remove forgets a flight: an answer that is still to come finds nobody.
func (p *pool) remove(f *flight) {
	if f.sock.open[f.id] == f {
		delete(f.sock.open, f.id)
	}
	if p.flights[f.key] == f {
		delete(p.flights, f.key)
	}
}

// receive reads answers from a socket until it is closed or fails.
func (u *upstream) receive(s *socket) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		u.broken(s, err)
		return
	}
	in := batch.NewReader(raw, socketBatch, socketRead)
	d := newDesk()
	for {
		n, err := in.Read()
		if err != nil {
			u.broken(s, err)
			return
		}
		now := time.Now()
		for i := range n {
			u.arrived(s, in.Data(i), in.Cut(i), d, now)
		}
		d.flush()
	}
}

// arrived takes one datagram. What may be forged is passed over: the real
// answer may still come.
func (u *upstream) arrived(s *socket, msg []byte, cut bool, d *desk, now time.Time) {
	if len(msg) < headerLen {
		return
	}
	p := &u.pool
	id := binary.BigEndian.Uint16(msg)
	p.mu.Lock()
	f := s.open[id]
	if f == nil || !matchesQuery(f.query, msg) {
		s.strange++
		p.mu.Unlock()
		return
	}
	info := parseAnswer(msg)
	if cut {
		info.truncated, info.regular = true, false
		msg[2] |= 0x02
	}
	if !info.regular && !info.truncated && !unpacks(msg) || !u.cookies.check(info.options) {
		s.strange++
		p.mu.Unlock()
		return
	}
	p.remove(f)
	a := arrival{msg: msg, info: info, took: now.Sub(f.first), now: now, desk: d}
	if f.tries == 1 { // else nobody knows which one was answered (RFC 6298 section 3)
		u.measure(a.took, nil)
	}
	waiters := f.waiters
	f.waiters = nil
	p.mu.Unlock()
	for _, w := range waiters {
		w.answered(&a)
	}
}

// broken closes a socket after an error, such as a port that nobody listens
// on; what waits for an answer on it is told.
func (u *upstream) broken(s *socket, err error) {
	p := &u.pool
	p.mu.Lock()
	var waiters []waiter
	for _, f := range s.open {
		waiters = append(waiters, f.waiters...)
		f.waiters = nil
		p.remove(f)
	}
	for i := range p.slots {
		if p.slots[i] == s {
			p.slots[i] = nil
		}
	}
	again := s.closed
	s.closed = true
	p.mu.Unlock()
	if !again {
		s.conn.Close()
	}
	u.tell(waiters, fmt.Errorf("wait for answer of %s: %w", u.addr, err))
}

func (u *upstream) tell(waiters []waiter, err error) {
	if len(waiters) == 0 {
		return
	}
	a := arrival{err: err, now: time.Now(), desk: newDesk()}
	for _, w := range waiters {
		w.answered(&a)
	}
	a.desk.flush()
}

// scan looks after time as long as there is a socket.
func (u *upstream) scan() {
	t := time.NewTicker(scanEvery)
	defer t.Stop()
	for now := range t.C {
		if !u.sweep(now) {
			return
		}
	}
}

// sweep ends waits, sends again what may be lost, and closes sockets that are
// not needed. False: none is left.
func (u *upstream) sweep(now time.Time) bool {
	var (
		late   []waiter
		resend []*flight
		left   bool
	)
	p := &u.pool
	p.mu.Lock()
	for i, s := range p.slots {
		if s != nil && (s.full(now) || p.retired || len(s.open) == 0 && now.Sub(s.used) > socketIdle) {
			p.old = append(p.old, s)
			p.slots[i] = nil
		}
		left = left || p.slots[i] != nil
	}
	look := func(s *socket) {
		for _, f := range s.open {
			stay := f.waiters[:0:0]
			for _, w := range f.waiters {
				if w.expired(now) {
					late = append(late, w)
				} else {
					stay = append(stay, w)
				}
			}
			if f.waiters = stay; len(stay) == 0 {
				p.remove(f)
			} else if now.After(f.again) {
				f.tries++
				f.again = now.Add(u.patience())
				resend = append(resend, f)
			}
		}
	}
	for _, s := range p.slots {
		if s != nil {
			look(s)
		}
	}
	var drain []*socket
	for _, s := range p.old {
		look(s)
		if len(s.open) > 0 {
			drain = append(drain, s)
		} else if !s.closed {
			s.closed = true
			s.conn.Close()
		}
	}
	p.old = drain
	left = left || len(drain) > 0
	p.scanning = left
	p.mu.Unlock()
	for _, f := range resend {
		if err := f.sock.out.send(f.query); err != nil {
			u.broken(f.sock, err)
		}
		u.flush(f.sock)
	}
	u.tell(late, fmt.Errorf("wait for answer of %s: %w", u.addr, errNoAnswer))
	return left
}
