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
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// Limits of TCP: connections a socket, and how long one may be idle
// (RFC 7766 section 6.2.3).
const (
	maxTCPConns    = 1024
	tcpIdleTimeout = 10 * time.Second
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

// listener is the UDP and the TCP socket of one address.
type listener struct {
	addr     netip.AddrPort
	udp, tcp *wire.Server
	done     chan error         // one value a server
	cancel   context.CancelFunc // ends queries in flight
	ended    atomic.Bool        // a server has ended, asked to or not
}

// open binds both sockets and begins to serve. Answers come from the address
// that was asked, because the sockets are bound to it.
func (s *Server) open(ctx context.Context, addr netip.AddrPort) (*listener, error) {
	pc, err := s.opt.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("open udp socket: %w", err)
	}
	ln, err := s.opt.Listen(ctx, "tcp", addr.String())
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("open tcp socket: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &listener{addr: addr, done: make(chan error, 2), cancel: cancel}
	h := wire.HandlerFunc(func(w wire.ResponseWriter, req *wire.Msg) {
		from, tcp := clientOf(w.RemoteAddr())
		// The table is looked up for each query: blocks and addresses change.
		if packed := s.answer(ctx, s.live.Load().tables[addr], req, from, tcp); packed != nil {
			// A client that is gone is no error of ours.
			_, _ = w.Write(packed)
		}
	})
	l.udp = &wire.Server{PacketConn: pc, Handler: h, MsgAcceptFunc: accept, UDPSize: wire.DefaultMsgSize}
	l.tcp = &wire.Server{
		Listener: netutil.LimitListener(ln, maxTCPConns), Handler: h, MsgAcceptFunc: accept,
		ReadTimeout: tcpIdleTimeout, WriteTimeout: tcpIdleTimeout, IdleTimeout: func() time.Duration { return tcpIdleTimeout },
	}
	for _, srv := range []*wire.Server{l.udp, l.tcp} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() {
			err := srv.ActivateAndServe()
			l.ended.Store(true)
			s.poke()
			l.done <- err
		}()
		// Shutdown before the start would be lost.
		select {
		case <-started:
		case err := <-l.done:
			l.done <- err
		}
	}
	return l, nil
}

// close ends both servers. Queries in flight have a second to end.
func (l *listener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// Both report only that they were not running or that time is over.
	_ = l.udp.ShutdownContext(ctx)
	_ = l.tcp.ShutdownContext(ctx)
	l.cancel()
	for range 2 {
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
