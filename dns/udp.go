package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nodenet/dns/batch"
)

const (
	// batchSize is how many datagrams are read and written at a time at most.
	batchSize = 64
	// maxShards bounds the sockets of one address.
	maxShards = 16
	// receiveBuffer is what the kernel may queue for one socket, in bytes as
	// it counts them (socket(7)): some 1000 queries.
	receiveBuffer = 1 << 20
)

// udpServer serves one address over UDP with a socket a core. Each socket has
// a loop that answers what the packed path can; the rest goes to workers.
type udpServer struct {
	srv   *Server
	addr  netip.AddrPort
	conns []*net.UDPConn
	loops sync.WaitGroup
	jobs  sync.WaitGroup
	ctx   context.Context // of the jobs
}

// openUDP binds the sockets, beside those that were handed over, and returns
// the names under which they are kept. The first one is bound without
// SO_REUSEPORT, so that an address which another program has is an error,
// whatever options that program uses.
func (s *Server) openUDP(ctx context.Context, addr netip.AddrPort) (conns []*net.UDPConn, kept []string, _ net.PacketConn, err error) {
	open := s.opt.ListenPacket
	shards := 1
	if open == nil {
		first := freebindConfig()
		open = first.ListenPacket
		shards = min(runtime.GOMAXPROCS(0), maxShards)
	}
	taken := s.takeUDP(addr)
	index := slices.Sorted(maps.Keys(taken))
	for _, i := range index {
		conns = append(conns, taken[i])
		kept = append(kept, socketName("udp", addr, i))
	}
	defer func() {
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
			s.unkeep(kept)
			conns, kept = nil, nil
		}
	}()
	free := func() (i int) {
		for slices.Contains(index, i) {
			i++
		}
		index = append(index, i)
		return i
	}
	if len(conns) == 0 {
		pc, err := open(ctx, "udp", addr.String())
		if err != nil {
			return nil, nil, nil, err
		}
		conn, ok := pc.(*net.UDPConn)
		if !ok || addr.Addr().IsUnspecified() {
			return nil, nil, pc, nil // answers need the address that was asked: miekg/dns does that
		}
		enlarge(conn)
		conns = append(conns, conn)
		kept = append(kept, s.keep(socketName("udp", addr, free()), conn)...)
	}
	if len(conns) < shards {
		raw, err := conns[0].SyscallConn()
		if err == nil {
			err = batch.ReusePort("", "", raw)
		}
		if err != nil {
			return conns, kept, nil, fmt.Errorf("share udp socket: %w", err)
		}
	}
	more := freebindConfig()
	freebind := more.Control
	more.Control = func(network, address string, c syscall.RawConn) error {
		return errors.Join(freebind(network, address, c), batch.ReusePort(network, address, c))
	}
	for len(conns) < shards {
		pc, err := more.ListenPacket(ctx, "udp", addr.String())
		if err != nil {
			return conns, kept, nil, fmt.Errorf("share udp socket: %w", err)
		}
		conn := pc.(*net.UDPConn)
		enlarge(conn)
		conns = append(conns, conn)
		kept = append(kept, s.keep(socketName("udp", addr, free()), conn)...)
	}
	return conns, kept, nil, nil
}

// enlarge asks for a longer queue; without the privilege (socket(7)) the
// system's limit holds.
func enlarge(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	// What is refused here is only less room.
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	})
}

// serveUDP begins to serve. It calls failed when a socket fails.
func (s *Server) serveUDP(ctx context.Context, addr netip.AddrPort, conns []*net.UDPConn, failed func()) *udpServer {
	u := &udpServer{srv: s, addr: addr, conns: conns, ctx: ctx}
	for i, c := range conns {
		u.loops.Go(func() {
			err := u.loop(c, i)
			if !errors.Is(err, errDrained) {
				failed()
			}
		})
	}
	return u
}

// errDrained ends a loop that was told to end.
var errDrained = errors.New("drained")

// loop serves one socket until its read deadline is over or it fails.
func (u *udpServer) loop(c *net.UDPConn, shard int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	in := batch.NewReader(raw, batchSize, wire.DefaultMsgSize)
	out := batch.NewWriter(raw, batchSize, defaultBufsize)
	r := &responder{turn: rand.Uint64() | 1, shard: shard}
	later, err := newOutbox(c, batchSize, defaultBufsize)
	if err != nil {
		return err
	}
	l := &udpLoop{conn: c, in: in, out: out, r: r, later: later}
	for behind := true; ; {
		n, err := in.Read()
		if behind && n < batchSize {
			// What had waited for this process is read: see makeRoom.
			behind = false
			enlarge(c)
		}
		switch {
		case isTimeout(err):
			// What is in the queue is answered still.
			for {
				if n, err = in.Poll(); err != nil || n == 0 {
					return errDrained
				}
				u.batch(l, n)
			}
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENOTSOCK) {
				return err
			}
			continue // an error of one datagram, such as a checksum
		}
		u.batch(l, n)
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// udpLoop is what one receive loop works with.
type udpLoop struct {
	conn  *net.UDPConn
	in    *batch.Reader
	out   *batch.Writer
	r     *responder
	later *outbox // for answers that come from elsewhere
	ups   pending
}

// batch answers n datagrams. A panic costs the rest of the batch.
func (u *udpServer) batch(l *udpLoop, n int) {
	c, in, out, r := l.conn, l.in, l.out, l.r
	defer func() {
		if e := recover(); e != nil {
			u.srv.metrics.panics.Add(1)
			u.srv.log.Error("panic in dns receive loop", "err", fmt.Sprint(e), "stack", string(debug.Stack()))
		}
		r.ahead.names, r.known = nil, nil
		r.tally.flush(u.srv.metrics)
		l.ups.flush()
		// A client that cannot be reached is no error of ours.
		_ = out.Flush()
	}()
	// The table is looked up for each batch: blocks and addresses change.
	t := u.srv.live.Load().tables[u.addr]
	r.now, r.clients, r.saved = time.Now(), u.srv.clients.Load(), u.srv.saved.Load()
	r.warm(t, n, in.Data)
	watched := u.srv.metrics.watches.list()
	for i := range n {
		from := in.Addr(i)
		if t != nil && t.limit != nil && !t.limit.AllowAt(from.Addr(), r.now) {
			u.srv.metrics.limited.Inc() // its address may be another's: no answer
			continue
		}
		r.recall(i)
		query, room := in.Data(i), out.Room()
		if in.Cut(i) {
			continue // no question is that long
		}
		r.client = from.Addr()
		if size := r.respond(t, query, room); size > 0 {
			out.Reply(in, i, size)
			if watched != nil {
				r.watched(watched, in.Addr(i).Addr())
			}
			continue
		}
		if r.pass != nil && r.pass.send(u, r, l.later, in.Peer(i), &l.ups) {
			continue
		}
		if len(query) < headerLen || query[2]&0x80 != 0 {
			continue // never answer an answer
		}
		p := u.srv.packets.Get().(*packet)
		p.n = copy(p.buf[:], query)
		p.from = from
		u.jobs.Add(1)
		if !u.srv.pool.do(func() { u.chain(c, p) }) {
			u.jobs.Done()
			u.srv.packets.Put(p)
			if size := r.shed(query, room); size > 0 {
				out.Reply(in, i, size)
			}
			u.srv.metrics.busy.Inc()
		}
	}
}

// packet is a datagram on its way to a worker.
type packet struct {
	buf  [wire.DefaultMsgSize]byte
	n    int
	from netip.AddrPort
}

// chain answers one datagram through the plugins.
func (u *udpServer) chain(c *net.UDPConn, p *packet) {
	defer u.jobs.Done()
	t := u.srv.live.Load().tables[u.addr]
	reply := u.srv.answerPacket(u.ctx, t, p.buf[:p.n], p.from, "udp")
	from := p.from
	u.srv.packets.Put(p)
	if reply != nil {
		// A client that is gone is no error of ours.
		_, _ = c.WriteToUDPAddrPort(reply, from)
	}
}

// answerPacket is answer for a packet that nobody has looked at.
func (s *Server) answerPacket(ctx context.Context, t *table, b []byte, from netip.AddrPort, proto string) []byte {
	h, ok := headerOf(b)
	if !ok {
		return nil
	}
	req := new(wire.Msg)
	action := accept(h)
	if action == wire.MsgIgnore {
		return nil
	}
	if err := req.Unpack(b); err == nil && action == wire.MsgAccept {
		return s.answerOver(ctx, t, req, netip.AddrPortFrom(from.Addr().WithZone(""), from.Port()), proto)
	}
	// What cannot be understood is said so with the bare header.
	rcode := wire.RcodeFormatError
	if action == wire.MsgRejectNotImplemented {
		rcode = wire.RcodeNotImplemented
	}
	m := &wire.Msg{MsgHdr: wire.MsgHdr{
		Id: h.Id, Response: true, Opcode: int(h.Bits>>11) & 0xF, Rcode: rcode,
		RecursionDesired: h.Bits&(1<<8) != 0, CheckingDisabled: h.Bits&(1<<4) != 0,
	}}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}

// headerOf reads a message's header.
func headerOf(b []byte) (h wire.Header, ok bool) {
	if len(b) < headerLen {
		return h, false
	}
	word := func(i int) uint16 { return uint16(b[i])<<8 | uint16(b[i+1]) }
	return wire.Header{Id: word(0), Bits: word(2), Qdcount: word(4), Ancount: word(6), Nscount: word(8), Arcount: word(10)}, true
}

// shed tells a client to ask elsewhere: too much is being answered already.
func (r *responder) shed(query, out []byte) int {
	if _, off := plainName(query, r.name[:]); off > 0 && off+4 <= len(query) && query[2]&0x78 == 0 {
		r.query, r.out, r.nameEnd, r.ra = query, out, off, 0
		return r.header(false, false, wire.RcodeServerFailure, 0, 0, 0)
	}
	return 0
}

// close ends the loops once their queues are empty, waits for the queries in
// flight until ctx ends, and closes the sockets.
func (u *udpServer) close(ctx context.Context) {
	for _, c := range u.conns {
		// A socket that has failed already has no deadline.
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	u.loops.Wait()
	done := make(chan struct{})
	go func() {
		u.jobs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	for _, c := range u.conns {
		c.Close()
	}
}
