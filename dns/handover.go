package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Keeper holds sockets beyond the life of the process, so that the next one
// goes on with the very same: what arrives while no process runs waits in
// their queues. Names are those of this package, such as
// dns-udp-10.96.0.10-53-0. It is called by one goroutine at a time.
type Keeper interface {
	// Take returns the socket that the process before this one left under a
	// name, once; the caller closes it. Nil: there is none. It stays kept.
	Take(name string) *os.File
	// Keep holds a socket under a name from now on.
	Keep(name string, c syscall.RawConn) error
	// Drop ends that. Without it a socket that was closed here stays open.
	Drop(name string) error
	// DropRest drops what the process before left and nobody took.
	DropRest() error
}

const (
	// handoverGrace is how long sockets that were handed over wait for the
	// first data, and to be wanted at all.
	handoverGrace = 10 * time.Second
	// waitingRoom is what the kernel may queue for one socket, in bytes as it
	// counts them, while no process reads it.
	waitingRoom = 16 << 20
)

// socketName names a socket for the Keeper. A service manager takes no colon
// (sd_pid_notify_with_fds(3)).
func socketName(network string, addr netip.AddrPort, i int) string {
	a := strings.ReplaceAll(addr.Addr().String(), ":", "_")
	return fmt.Sprintf("dns-%s-%s-%d-%d", network, a, addr.Port(), i)
}

// takeUDP returns the sockets of an address that were handed over, by their
// index. Those of a group keep their order in it, by which the kernel spreads
// the clients: it is the very same group.
func (s *Server) takeUDP(addr netip.AddrPort) map[int]*net.UDPConn {
	if s.opt.Keeper == nil {
		return nil
	}
	out := make(map[int]*net.UDPConn)
	for i := range maxShards {
		name := socketName("udp", addr, i)
		f := s.opt.Keeper.Take(name)
		if f == nil {
			continue
		}
		pc, err := net.FilePacketConn(f)
		f.Close()
		c, ok := pc.(*net.UDPConn)
		if err == nil && (!ok || !isAt(pc.LocalAddr(), addr)) {
			err = fmt.Errorf("it is bound to %v", pc.LocalAddr())
			pc.Close()
		}
		if err != nil {
			s.log.Warn("dns socket that was handed over is no good", "name", name, "err", err)
			s.unkeep([]string{name})
			continue
		}
		out[i] = c
	}
	return out
}

// listenTCP returns the listening socket that was handed over, or opens one.
// The names are those under which it is kept from now on.
func (s *Server) listenTCP(ctx context.Context, addr netip.AddrPort) (net.Listener, []string, error) {
	name := socketName("tcp", addr, 0)
	if s.opt.Keeper != nil {
		if f := s.opt.Keeper.Take(name); f != nil {
			ln, err := net.FileListener(f)
			f.Close()
			if err == nil && isAt(ln.Addr(), addr) {
				return ln, []string{name}, nil
			}
			if err == nil {
				err = fmt.Errorf("it is bound to %v", ln.Addr())
				ln.Close()
			}
			s.log.Warn("dns socket that was handed over is no good", "name", name, "err", err)
			s.unkeep([]string{name})
		}
	}
	ln, err := s.opt.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, nil, err
	}
	return ln, s.keep(name, ln), nil
}

// isAt reports whether a socket is bound to an address.
func isAt(a net.Addr, want netip.AddrPort) bool {
	switch a := a.(type) {
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) == want
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) == want
	}
	return false
}

// keep leaves a socket with the Keeper and returns the names of what it took.
// A socket that is not kept serves all the same, until the process ends.
func (s *Server) keep(name string, socket any) []string {
	c, ok := socket.(syscall.Conn)
	if s.opt.Keeper == nil || !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err == nil {
		err = s.opt.Keeper.Keep(name, raw)
	}
	s.note("keep sockets", err, "queries that arrive while the daemon restarts are lost; see what the service manager says about the unit")
	if err != nil {
		return nil
	}
	return []string{name}
}

// unkeep drops sockets that are not wanted any more.
func (s *Server) unkeep(names []string) {
	for _, name := range names {
		if err := s.opt.Keeper.Drop(name); err != nil {
			s.log.Warn("dns socket stays with the service manager", "name", name, "err", err)
		}
	}
}

// mayListen reports whether sockets may be opened. Those that wait with
// queries in them are opened when there is something to answer from.
func (s *Server) mayListen(now time.Time) bool {
	return s.opt.Keeper == nil || s.applied.Load() != nil || now.Sub(s.began) >= handoverGrace
}

// dropRest gives up the sockets that were handed over and are not wanted.
func (s *Server) dropRest(now time.Time) {
	if s.opt.Keeper == nil || s.restDropped || now.Sub(s.began) < handoverGrace {
		return
	}
	s.restDropped = true
	if err := s.opt.Keeper.DropRest(); err != nil {
		s.log.Warn("dns sockets that are not wanted stay with the service manager", "err", err)
	}
}

// makeRoom lets more queries wait in the sockets of an address for the next
// process.
func (u *udpServer) makeRoom() {
	for _, c := range u.conns {
		if raw, err := c.SyscallConn(); err == nil {
			// Without the privilege there is the room that there was.
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, waitingRoom)
			})
		}
	}
}
