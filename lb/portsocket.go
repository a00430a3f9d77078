package lb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketName names a port's socket for the Keeper. A service manager takes no
// colon (sd_pid_notify_with_fds(3)).
func socketName(k Target) string {
	return fmt.Sprintf("lb-%s-%s-%d", protoName(k.Proto), strings.ReplaceAll(k.Addr.String(), ":", "_"), k.Port)
}

// portSocket is the socket of a published port; one of the two is set.
type portSocket struct {
	ln   net.Listener
	pc   net.PacketConn
	name string // under which the Keeper has it; empty: it has not
}

func (s portSocket) isOpen() bool { return s.ln != nil || s.pc != nil }

func (s portSocket) Close() error {
	if s.pc != nil {
		return s.pc.Close()
	}
	return s.ln.Close()
}

func (s portSocket) raw() (syscall.RawConn, error) {
	c, ok := any(s.ln).(syscall.Conn)
	if s.pc != nil {
		c, ok = s.pc.(syscall.Conn)
	}
	if !ok {
		return nil, errors.New("not a socket of the kernel")
	}
	return c.SyscallConn()
}

// free makes the port free for others at once, whoever else has the socket:
// it does not listen any more (inet_shutdown in net/ipv4/af_inet.c). Ports of
// UDP are free when the last has closed it.
func (s portSocket) free() {
	if s.ln == nil {
		return
	}
	if c, err := s.raw(); err == nil {
		_ = c.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
}

// spare is a second descriptor of a socket.
type spare struct {
	f    *os.File
	name string
}

func (s portSocket) dup() (spare, error) {
	c, err := s.raw()
	if err != nil {
		return spare{}, err
	}
	var fd int
	var derr error
	if err := c.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return spare{}, err
	}
	if derr != nil {
		return spare{}, os.NewSyscallError("fcntl", derr)
	}
	return spare{os.NewFile(uintptr(fd), s.name), s.name}, nil
}

// socket makes it the socket of a port.
func (s spare) socket(k Target) (portSocket, error) {
	defer s.f.Close()
	p := portSocket{name: s.name}
	var err error
	var at net.Addr
	if k.Proto == UDP {
		if p.pc, err = net.FilePacketConn(s.f); err == nil {
			at = p.pc.LocalAddr()
		}
	} else if p.ln, err = net.FileListener(s.f); err == nil {
		at = p.ln.Addr()
	}
	if err != nil {
		return portSocket{}, err
	}
	if got, want := addrPort(at), netip.AddrPortFrom(k.Addr, k.Port); got != want {
		p.Close()
		return portSocket{}, fmt.Errorf("it is bound to %v", at)
	}
	return p, nil
}

// addrPort is the address of a socket; invalid: it has none.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
