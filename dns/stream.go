package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// Limits of TCP and TLS, of one socket (RFC 7766 section 6.2).
const (
	maxTCPConns     = 1024
	maxTCPPerClient = 64               // of maxTCPConns; an IPv6 client is its /64
	maxPipelined    = 32               // questions of a connection that are answered at a time
	tcpIdleTimeout  = 10 * time.Second // between questions
	tcpHurry        = 2 * time.Second  // the same, when most connections are taken
	tcpWriteTimeout = 10 * time.Second
)

// streamServer serves one socket over TCP or TLS. Questions of a connection
// are answered as they are ready, not in their order (RFC 7766 section 7).
type streamServer struct {
	srv   *Server
	ln    net.Listener
	proto string        // tcp or tls
	table func() *table // looked up for each question: blocks change

	ctx  context.Context // of the questions
	slot chan struct{}   // one taken for each connection
	quit chan struct{}   // closed by close
	done chan struct{}   // the accept loop has ended
	wg   sync.WaitGroup  // connections

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	clients map[netip.Prefix]int
	closed  bool
}

// serveStream begins to accept. It calls failed when the socket fails.
func (s *Server) serveStream(ctx context.Context, ln net.Listener, proto string, table func() *table, failed func()) *streamServer {
	t := &streamServer{
		srv: s, ln: ln, proto: proto, table: table, ctx: ctx,
		slot: make(chan struct{}, maxTCPConns), quit: make(chan struct{}), done: make(chan struct{}),
		conns: make(map[net.Conn]struct{}), clients: make(map[netip.Prefix]int),
	}
	go func() {
		defer close(t.done)
		if err := t.accept(); !errors.Is(err, net.ErrClosed) {
			failed()
		}
	}()
	return t
}

func (t *streamServer) accept() error {
	pause := time.Duration(0)
	for {
		select {
		case t.slot <- struct{}{}:
		case <-t.quit:
			return net.ErrClosed
		}
		c, err := t.ln.Accept()
		if err != nil {
			<-t.slot
			var nerr net.Error
			if errors.As(err, &nerr) && nerr.Timeout() || isResource(err) {
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				time.Sleep(pause)
				continue
			}
			return err
		}
		pause = 0
		from, _ := clientOf(c.RemoteAddr())
		if !t.enter(c, from.Addr()) {
			<-t.slot
			c.Close()
			continue
		}
		go func() {
			defer t.leave(c, from.Addr())
			t.serve(c, from)
		}()
	}
}

// clientNet is what counts as one client.
func clientNet(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

func (t *streamServer) enter(c net.Conn, from netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := clientNet(from)
	if t.closed || t.clients[p] >= maxTCPPerClient {
		return false
	}
	t.clients[p]++
	t.conns[c] = struct{}{}
	t.wg.Add(1)
	return true
}

func (t *streamServer) leave(c net.Conn, from netip.Addr) {
	c.Close()
	t.mu.Lock()
	p := clientNet(from)
	if t.clients[p]--; t.clients[p] <= 0 {
		delete(t.clients, p)
	}
	delete(t.conns, c)
	t.mu.Unlock()
	<-t.slot
	t.wg.Done()
}

// idle is how long a connection may wait for its next question.
func (t *streamServer) idle() time.Duration {
	if len(t.slot) > maxTCPConns*3/4 {
		return tcpHurry
	}
	return tcpIdleTimeout
}

// serve answers the questions of one connection until it is idle for too
// long, ends, or says what is no DNS.
func (t *streamServer) serve(c net.Conn, from netip.AddrPort) {
	var (
		jobs    sync.WaitGroup
		writing sync.Mutex
		busy    = make(chan struct{}, maxPipelined)
		length  [2]byte
	)
	defer jobs.Wait()
	for {
		if c.SetReadDeadline(time.Now().Add(t.idle())) != nil {
			return
		}
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n < headerLen {
			return
		}
		if t.table().overLimit(from.Addr()) {
			t.srv.metrics.limited.Inc()
			return
		}
		query := make([]byte, n)
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		busy <- struct{}{} // a client that asks faster than we answer waits
		jobs.Go(func() {
			defer func() { <-busy }()
			defer t.srv.recovered("dns stream")
			for _, m := range t.srv.answerStream(t.ctx, t.table(), query, from, t.proto) {
				if len(m) > wire.MaxMsgSize {
					return
				}
				out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(m)), uint16(len(m)))
				writing.Lock()
				err := c.SetWriteDeadline(time.Now().Add(tcpWriteTimeout))
				if err == nil {
					_, err = c.Write(append(out, m...))
				}
				writing.Unlock()
				if err != nil {
					c.Close() // the reader ends too
					return
				}
			}
		})
	}
}

// recovered turns a panic into a count and a line in the log.
func (s *Server) recovered(where string) {
	if r := recover(); r != nil {
		s.metrics.panics.Add(1)
		s.log.Error("panic in "+where, "err", fmt.Sprint(r), "stack", string(debug.Stack()))
	}
}

// close ends the socket and, after the questions in hand or when ctx ends,
// the connections.
func (t *streamServer) close(ctx context.Context) {
	close(t.quit)
	t.ln.Close()
	t.mu.Lock()
	t.closed = true
	for c := range t.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // no more questions
	}
	t.mu.Unlock()
	ended := make(chan struct{})
	go func() { t.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		t.mu.Lock()
		for c := range t.conns {
			c.Close()
		}
		t.mu.Unlock()
	}
}

// wait returns when nothing of the server runs any more.
func (t *streamServer) wait() {
	<-t.done
	t.wg.Wait()
}

// transferPart is about how long a message of a zone transfer is.
const transferPart = 16 << 10

// answerStream answers a message over a stream: one reply, or none, and of a
// zone transfer as many as it takes (RFC 5936 section 2.2).
func (s *Server) answerStream(ctx context.Context, t *table, b []byte, from netip.AddrPort, proto string) [][]byte {
	req := new(wire.Msg)
	h, ok := headerOf(b)
	if !ok || accept(h) != wire.MsgAccept || req.Unpack(b) != nil || len(req.Question) != 1 ||
		req.Question[0].Qtype != wire.TypeAXFR && req.Question[0].Qtype != wire.TypeIXFR {
		if packed := s.answerPacket(ctx, t, b, from, proto); packed != nil {
			return [][]byte{packed}
		}
		return nil
	}
	q := &query{table: t, Query: plugin.Query{Msg: req, Client: from, TCP: true, Proto: proto, Ask: t.asker()}}
	if t != nil {
		q.Local = t.addr
	}
	start := time.Now()
	_, opt, reply := s.check(q)
	if reply == nil {
		if reply = s.resolve(ctx, q); reply == nil {
			return nil
		}
	}
	var out [][]byte
	for rrs, first := reply.Answer, true; first || len(rrs) > 0; first = false {
		n, size := 0, 0
		for n < len(rrs) && (n == 0 || size+wire.Len(rrs[n]) < transferPart) {
			size += wire.Len(rrs[n])
			n++
		}
		m := &wire.Msg{MsgHdr: reply.MsgHdr, Answer: rrs[:n:n], Ns: reply.Ns}
		rrs = rrs[n:]
		finish(q, m, opt)
		packed, err := m.Pack()
		if err != nil {
			s.log.Error("pack zone transfer", "zone", q.Name, "err", err)
			return nil
		}
		restoreCase(packed, req)
		out = append(out, packed)
	}
	s.metrics.observe(q, reply, time.Since(start))
	return out
}
