package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// freebindConfig opens sockets on addresses that need not exist yet
// (IP_FREEBIND, ip(7)), so that sockets and addresses may come in any order.
func freebindConfig() net.ListenConfig {
	return net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			level, opt := unix.IPPROTO_IP, unix.IP_FREEBIND
			if network == "udp6" || network == "tcp6" {
				level, opt = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
			}
			serr = unix.SetsockoptInt(int(fd), level, opt, 1)
		})
		return errors.Join(err, serr)
	}}
}

// listener is the UDP sockets and the TCP socket of one address.
type listener struct {
	addr   netip.AddrPort
	udp    *udpServer // nil: miekg/dns serves UDP too
	tcp    *streamServer
	wire   []*wire.Server // UDP on a wildcard address
	done   chan error     // one value a wire server
	cancel context.CancelFunc
	ended  atomic.Bool // a server has ended, asked to or not
	kept   []string    // names of the sockets that the Keeper holds
}

// open binds the sockets and begins to serve. Answers come from the address
// that was asked, because the sockets are bound to it.
func (s *Server) open(ctx context.Context, addr netip.AddrPort) (*listener, error) {
	conns, kept, pc, err := s.openUDP(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("open udp socket: %w", err)
	}
	ln, keptTCP, err := s.listenTCP(ctx, addr)
	if err != nil {
		s.unkeep(kept)
		for _, c := range conns {
			c.Close()
		}
		if pc != nil {
			pc.Close()
		}
		return nil, fmt.Errorf("open tcp socket: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &listener{addr: addr, done: make(chan error, 2), cancel: cancel, kept: append(kept, keptTCP...)}
	// The table is looked up for each query: blocks and addresses change.
	table := func() *table { return s.live.Load().tables[addr] }
	l.tcp = s.serveStream(ctx, ln, "tcp", table, func() { l.end(s) })
	if pc != nil {
		h := wire.HandlerFunc(func(w wire.ResponseWriter, req *wire.Msg) {
			from, tcp := clientOf(w.RemoteAddr())
			if packed := s.answer(ctx, table(), req, from, tcp); packed != nil {
				// A client that is gone is no error of ours.
				_, _ = w.Write(packed)
			}
		})
		l.wire = append(l.wire, &wire.Server{PacketConn: pc, Handler: h, MsgAcceptFunc: accept, UDPSize: wire.DefaultMsgSize})
	}
	for _, srv := range l.wire {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() {
			err := srv.ActivateAndServe()
			l.end(s)
			l.done <- err
		}()
		// Shutdown before the start would be lost.
		select {
		case <-started:
		case err := <-l.done:
			l.done <- err
		}
	}
	if len(conns) > 0 {
		l.udp = s.serveUDP(ctx, addr, conns, func() { l.end(s) })
	}
	return l, nil
}

// end notes that a server has ended; the control loop looks why.
func (l *listener) end(s *Server) {
	l.ended.Store(true)
	s.poke()
}

// close ends all servers. Queries in flight have a second to end.
func (l *listener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if l.udp != nil {
		l.udp.close(ctx)
	}
	l.tcp.close(ctx)
	for _, srv := range l.wire {
		// It reports only that it was not running or that time is over.
		_ = srv.ShutdownContext(ctx)
	}
	l.cancel()
	l.tcp.wait()
	for range l.wire {
		<-l.done
	}
}

// clientOf reads a client's address.
func clientOf(a net.Addr) (from netip.AddrPort, tcp bool) {
	switch a := a.(type) {
	case *net.UDPAddr:
		from = a.AddrPort()
	case *net.TCPAddr:
		from, tcp = a.AddrPort(), true
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), tcp
}

// isResource reports whether an error of accept is a want of descriptors or
// memory, which passes.
func isResource(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}
