package gossip

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// simNet is a network in memory: directed paths between hosts, each with
// latency, loss and cuts of its own. Packets may be lost; a stream's bytes
// wait while its path is cut, as TCP's do, and come after the heal unless one
// end has given up. Bandwidth is free and buffers have no end: a writer never
// blocks, so nobody holds a mutex across a wait (which synctest's clock could not pass).
//
// Every random choice is drawn from a generator of its path, seeded by the
// network's seed and the two addresses: traffic on one path does not shift what happens on another.
type simNet struct {
	seed uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a path opens or closes
	hosts   map[netip.Addr]*simHost
	paths   map[[2]netip.Addr]*simPath
	packets int
	lost    int
	loss    float64 // of new paths; negative: some at random
	sent    simTraffic
	members simTraffic // of it, memberlist's
}

// simTraffic is what went out of all hosts.
type simTraffic struct {
	frames, segments, packets int // writes to streams, TCP segments of 1448 bytes, datagrams
	streamBytes, packetBytes  int
}

// wire is the traffic in bytes of IP packets: with TLS's 22 bytes a record and
// IP and TCP headers of 52 bytes, and an ACK of its own for every other segment.
func (s simTraffic) wire() int {
	return s.streamBytes + 22*s.frames + 52*s.segments + 26*s.segments + s.packetBytes + 28*s.packets
}

func (s *simTraffic) stream(k int) {
	s.frames += (k + 16383) / 16384
	s.segments += (k + 1447) / 1448
	s.streamBytes += k
}

func (s simTraffic) minus(o simTraffic) simTraffic {
	return simTraffic{s.frames - o.frames, s.segments - o.segments, s.packets - o.packets, s.streamBytes - o.streamBytes, s.packetBytes - o.packetBytes}
}

// simPath is what happens to traffic from one host to another.
type simPath struct {
	rng              *rand.Rand
	latency, jitter  time.Duration
	loss             float64 // of packets
	noPackets, noTCP bool
}

// simHost is one life of a node's machine, as the network sees it.
type simHost struct {
	net  *simNet
	addr netip.Addr

	// Guarded by net.mu.
	down      bool
	paused    bool
	held      []func() // packets that came while paused
	listeners map[uint16]*simListener
	packetCh  chan *memberlist.Packet
	conns     map[*simConn]bool
}

func newSimNet(seed uint64) *simNet {
	return &simNet{seed: seed, loss: -1, changed: make(chan struct{}), hosts: map[netip.Addr]*simHost{}, paths: map[[2]netip.Addr]*simPath{}}
}

// host brings up a machine at an address, with nothing listening yet.
func (n *simNet) host(addr netip.Addr) *simHost {
	h := &simHost{net: n, addr: addr, listeners: map[uint16]*simListener{}, packetCh: make(chan *memberlist.Packet, 1024), conns: map[*simConn]bool{}}
	n.mu.Lock()
	n.hosts[addr] = h
	n.mu.Unlock()
	return h
}

// path returns the path between two addresses; n.mu is held.
func (n *simNet) path(from, to netip.Addr) *simPath {
	k := [2]netip.Addr{from, to}
	p := n.paths[k]
	if p == nil {
		h := fnv.New64a()
		h.Write(from.AsSlice())
		h.Write(to.AsSlice())
		p = &simPath{rng: rand.New(rand.NewPCG(n.seed, h.Sum64()))}
		p.latency = 100*time.Microsecond + time.Duration(p.rng.ExpFloat64()*float64(4*time.Millisecond))
		p.jitter = p.latency / 2
		if p.rng.IntN(4) == 0 {
			p.loss = 0.05 * p.rng.Float64()
		}
		if n.loss >= 0 {
			p.loss = n.loss
		}
		n.paths[k] = p
	}
	return p
}

func (p *simPath) delay() time.Duration { return p.latency + rand0(p.rng, p.jitter) }

// segment is how long a stream's segment takes: one that is lost comes again
// after a retransmission timeout (RFC 6298; 200 ms at least on Linux).
func (p *simPath) segment() time.Duration {
	d := p.delay()
	for rto := 200 * time.Millisecond; p.loss > 0 && rto < 10*time.Second && p.rng.Float64() < p.loss; rto *= 2 {
		d += rto
	}
	return d
}

func rand0(r *rand.Rand, d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(r.Int64N(int64(d)))
}

// edit changes paths and wakes whoever waits for one.
func (n *simNet) edit(fn func(path func(from, to netip.Addr) *simPath)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn(n.path)
	n.wake()
}

func (n *simNet) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// passes reports whether a stream's bytes get from one host to the other now;
// n.mu is held.
func (n *simNet) passes(from, to *simHost) bool {
	return !n.path(from.addr, to.addr).noTCP && !from.paused && !to.paused && !to.down
}

// pause stops or resumes a machine: it neither sends nor receives, and what
// comes waits in its buffers.
func (h *simHost) pause(yes bool) {
	h.net.mu.Lock()
	h.paused = yes
	held := h.held
	if !yes {
		h.held = nil
	}
	h.net.wake()
	h.net.mu.Unlock()
	if !yes {
		for _, f := range held {
			f()
		}
	}
}

// kill ends a machine's life. With rst its peers are told, as when a process
// is killed; without, as when the power fails, they hear nothing.
func (h *simHost) kill(rst bool) {
	h.net.mu.Lock()
	h.down = true
	conns := h.conns
	h.conns = map[*simConn]bool{}
	for _, l := range h.listeners {
		l.shut()
	}
	h.net.wake()
	h.net.mu.Unlock()
	for c := range conns {
		c.kill(rst)
	}
}

// simListener takes the streams to one port of a host.
type simListener struct {
	host *simHost
	addr netip.AddrPort
	in   chan net.Conn
	done chan struct{}
	once sync.Once
}

// network is the seam through which a Gossip uses the host.
func (h *simHost) network() network {
	return network{
		dial: func(ctx context.Context, addr string) (net.Conn, error) {
			ap, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, err
			}
			return h.dial(ctx, ap)
		},
		listen:    func(port uint16) (net.Listener, error) { return h.listen(port), nil },
		transport: func(port uint16) (memberlist.NodeAwareTransport, error) { return newSimTransport(h, port), nil },
	}
}

func (h *simHost) listen(port uint16) *simListener {
	l := &simListener{host: h, addr: netip.AddrPortFrom(h.addr, port), in: make(chan net.Conn, 64), done: make(chan struct{})}
	h.net.mu.Lock()
	h.listeners[port] = l
	h.net.mu.Unlock()
	return l
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *simListener) shut() { l.once.Do(func() { close(l.done) }) }

func (l *simListener) Close() error {
	l.shut()
	return nil
}

func (l *simListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// dial opens a stream. While the path is cut either way it tries again after 1 s,
// 2 s, 4 s …, as TCP does when nobody answers.
func (h *simHost) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	n := h.net
	for syn := time.Second; ; {
		n.mu.Lock()
		there := n.hosts[to.Addr()]
		var rtt time.Duration
		open := there != nil && n.passes(h, there) && n.passes(there, h)
		if open {
			rtt = n.path(h.addr, to.Addr()).delay() + n.path(to.Addr(), h.addr).delay()
		}
		n.mu.Unlock()
		if !open {
			select {
			case <-ctx.Done():
				return fail(os.ErrDeadlineExceeded)
			case <-time.After(syn):
			}
			syn *= 2
			continue
		}
		select {
		case <-ctx.Done():
			return fail(os.ErrDeadlineExceeded)
		case <-time.After(rtt):
		}
		n.mu.Lock()
		if n.hosts[to.Addr()] != there || !n.passes(h, there) || h.down {
			down := h.down
			n.mu.Unlock()
			if down {
				return fail(net.ErrClosed)
			}
			continue
		}
		l := there.listeners[to.Port()]
		n.mu.Unlock()
		if l == nil {
			return fail(syscall.ECONNREFUSED)
		}
		a, b := newSimConns(h, there, to.Port())
		select {
		case <-l.done:
			a.kill(true)
			return fail(syscall.ECONNREFUSED)
		case l.in <- b:
			return a, nil
		default: // backlog is full
			a.kill(true)
			return fail(syscall.ECONNREFUSED)
		}
	}
}

// simConn is one end of a stream.
type simConn struct {
	local, peer *simHost
	laddr       net.Addr
	raddr       net.Addr
	other       *simConn
	poke        chan struct{} // the reader looks again
	membership  bool          // memberlist's

	mu       sync.Mutex
	in       []simSegment // what the other end wrote
	err      error        // reset, or closed here
	closed   bool
	deadline [2]time.Time // read, write
}

type simSegment struct {
	at   time.Time // when it arrives, if the path is open
	data []byte
	end  error // io.EOF or a reset, instead of data
}

func newSimConns(from, to *simHost, port uint16) (dialed, accepted *simConn) {
	src := netip.AddrPortFrom(from.addr, 40000)
	dst := netip.AddrPortFrom(to.addr, port)
	a := &simConn{local: from, peer: to, laddr: net.TCPAddrFromAddrPort(src), raddr: net.TCPAddrFromAddrPort(dst), poke: make(chan struct{}, 1)}
	b := &simConn{local: to, peer: from, laddr: a.raddr, raddr: a.laddr, poke: make(chan struct{}, 1)}
	a.other, b.other = b, a
	a.membership = port == DefaultGossipPort
	b.membership = a.membership
	n := from.net
	n.mu.Lock()
	from.conns[a], to.conns[b] = true, true
	n.mu.Unlock()
	return a, b
}

// put gives the other end something.
func (c *simConn) put(data []byte, end error) {
	n := c.local.net
	n.mu.Lock()
	at := time.Now().Add(n.path(c.local.addr, c.peer.addr).segment())
	if k := len(data); k > 0 {
		n.sent.stream(k)
		if c.membership {
			n.members.stream(k)
		}
	}
	n.mu.Unlock()
	o := c.other
	o.mu.Lock()
	if k := len(o.in); k > 0 && o.in[k-1].at.After(at) {
		at = o.in[k-1].at // TCP keeps the order
	}
	o.in = append(o.in, simSegment{at, data, end})
	o.mu.Unlock()
	wake(o.poke)
}

func (c *simConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	err := c.err
	if d := c.deadline[1]; err == nil && !d.IsZero() && !time.Now().Before(d) {
		err = os.ErrDeadlineExceeded
	}
	c.mu.Unlock()
	if err != nil {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: err}
	}
	c.put(append([]byte(nil), b...), nil)
	return len(b), nil
}

func (c *simConn) Read(b []byte) (int, error) {
	n := c.local.net
	for {
		n.mu.Lock()
		open := n.passes(c.peer, c.local) || c.peer.down && !n.path(c.peer.addr, c.local.addr).noTCP && !c.local.paused
		changed := n.changed
		n.mu.Unlock()
		now := time.Now()
		var wait time.Duration = -1
		c.mu.Lock()
		if c.err != nil {
			err := c.err
			c.mu.Unlock()
			if errors.Is(err, io.EOF) {
				return 0, err
			}
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: err}
		}
		if d := c.deadline[0]; !d.IsZero() {
			if wait = d.Sub(now); wait <= 0 {
				c.mu.Unlock()
				return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
			}
		}
		if len(c.in) > 0 && open {
			s := &c.in[0]
			if left := s.at.Sub(now); left > 0 {
				if wait < 0 || left < wait {
					wait = left
				}
			} else if s.end != nil {
				c.err = s.end
				c.mu.Unlock()
				continue
			} else {
				k := copy(b, s.data)
				if s.data = s.data[k:]; len(s.data) == 0 {
					c.in = c.in[1:]
				}
				c.mu.Unlock()
				return k, nil
			}
		}
		c.mu.Unlock()
		var timer <-chan time.Time
		if wait >= 0 {
			t := time.NewTimer(wait)
			timer = t.C
			select {
			case <-timer:
			case <-c.poke:
			case <-changed:
			}
			t.Stop()
			continue
		}
		select {
		case <-c.poke:
		case <-changed:
		}
	}
}

// Close tells the peer that nothing more comes.
func (c *simConn) Close() error {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	if c.err == nil || errors.Is(c.err, io.EOF) {
		c.err = net.ErrClosed
	}
	c.mu.Unlock()
	if was {
		return nil
	}
	c.forget()
	c.put(nil, io.EOF)
	wake(c.poke)
	return nil
}

// kill ends the stream here at once; rst tells the peer.
func (c *simConn) kill(rst bool) {
	c.mu.Lock()
	was := c.closed
	c.closed, c.err = true, net.ErrClosed
	c.mu.Unlock()
	c.forget()
	if rst && !was {
		c.put(nil, syscall.ECONNRESET)
	}
	wake(c.poke)
}

func (c *simConn) forget() {
	n := c.local.net
	n.mu.Lock()
	delete(c.local.conns, c)
	n.mu.Unlock()
}

func (c *simConn) LocalAddr() net.Addr  { return c.laddr }
func (c *simConn) RemoteAddr() net.Addr { return c.raddr }

func (c *simConn) SetDeadline(t time.Time) error { return c.setDeadline(t, 0, 1) }

func (c *simConn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, 0) }

func (c *simConn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, 1) }

func (c *simConn) setDeadline(t time.Time, which ...int) error {
	c.mu.Lock()
	for _, i := range which {
		c.deadline[i] = t
	}
	c.mu.Unlock()
	wake(c.poke)
	return nil
}

// simTransport is memberlist's transport on a host.
type simTransport struct {
	host *simHost
	port uint16
	ln   *simListener
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func newSimTransport(h *simHost, port uint16) *simTransport {
	t := &simTransport{host: h, port: port, ln: h.listen(port), conn: make(chan net.Conn), done: make(chan struct{})}
	go func() {
		for {
			c, err := t.ln.Accept()
			if err != nil {
				return
			}
			select {
			case t.conn <- c:
			case <-t.done:
				c.Close()
				return
			}
		}
	}()
	return t
}

func (t *simTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.host.addr.AsSlice(), int(t.port), nil
}

func (t *simTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return now, err
	}
	h, n := t.host, t.host.net
	data := append([]byte(nil), b...)
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.path(h.addr, ap.Addr())
	n.packets++
	n.sent.packets++
	n.sent.packetBytes += len(data)
	n.members.packets++
	n.members.packetBytes += len(data)
	if h.down || p.noPackets || p.rng.Float64() < p.loss {
		n.lost++
		return now, nil
	}
	d := p.delay()
	time.AfterFunc(d, func() { n.deliver(h.addr, ap.Addr(), data) })
	return now, nil
}

// deliver gives a packet to whoever has the address by now.
func (n *simNet) deliver(from, to netip.Addr, data []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, src := n.hosts[to], n.hosts[from]
	switch {
	case h == nil || h.down:
	case h.paused || src != nil && src.paused:
		if src != nil && src.paused {
			h = src
		}
		if len(h.held) < 256 {
			h.held = append(h.held, func() { n.deliver(from, to, data) })
		}
	default:
		select {
		case h.packetCh <- &memberlist.Packet{Buf: data, From: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, DefaultGossipPort)), Timestamp: time.Now()}:
		default:
		}
	}
}

func (t *simTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *simTransport) PacketCh() <-chan *memberlist.Packet { return t.host.packetCh }
func (t *simTransport) StreamCh() <-chan net.Conn           { return t.conn }

func (t *simTransport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return t.host.dial(ctx, ap)
}

func (t *simTransport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, d)
}

func (t *simTransport) Shutdown() error {
	t.once.Do(func() {
		close(t.done)
		t.ln.Close()
	})
	return nil
}
