package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// boundSocket is a socket of this host that waits for packets on a port: a TCP
// or SCTP one that listens, or a UDP one that is connected to nobody.
type boundSocket struct {
	proto string // "tcp", "udp" or "sctp"
	at    netip.AddrPort
	v6    bool // IPv6 only: no packet of IPv4 gets there
	inode uint32
}

// hostSockets is what the kernel knows of the host's sockets.
type hostSockets interface {
	// Bound lists the sockets of the calling thread's network namespace.
	Bound() ([]boundSocket, error)
	// Owner names who holds a socket, "nginx (pid 812)"; empty: nobody that
	// this process may look at.
	Owner(inode uint32) string
	// Own reports whether this very process holds a socket.
	Own(inode uint32) bool
}

// kernelSockets asks by sock_diag(7), and for SCTP reads what its module has
// under /proc. Only sockets in a waiting state are listed, so the cost does not
// grow with the connections of the host.
type kernelSockets struct{}

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagV6Only       = 11 // INET_DIAG_SKV6ONLY
	stateClose       = 7  // TCP_CLOSE, of UDP: not connected
	stateListen      = 10 // TCP_LISTEN
	diagRequestLen   = unix.SizeofNlMsghdr + 56
	diagMessageLen   = 72 // struct inet_diag_msg
)

func (kernelSockets) Bound() ([]boundSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("list the host's sockets: %w", err)
	}
	defer unix.Close(fd)
	var out []boundSocket
	for _, q := range []struct {
		family, proto uint8
		state         uint
		name          string
	}{
		{unix.AF_INET, unix.IPPROTO_TCP, stateListen, "tcp"},
		{unix.AF_INET6, unix.IPPROTO_TCP, stateListen, "tcp"},
		{unix.AF_INET, unix.IPPROTO_UDP, stateClose, "udp"},
		{unix.AF_INET6, unix.IPPROTO_UDP, stateClose, "udp"},
	} {
		req := make([]byte, diagRequestLen)
		binary.NativeEndian.PutUint32(req, diagRequestLen)
		binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
		binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
		req[unix.SizeofNlMsghdr], req[unix.SizeofNlMsghdr+1] = q.family, q.proto
		binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4:], 1<<q.state)
		if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return nil, fmt.Errorf("list the host's %s sockets: %w", q.name, err)
		}
		list, err := readDiag(fd, q.name)
		if errors.Is(err, unix.ENOENT) {
			continue // a kernel without this family or without udp_diag
		}
		if err != nil {
			return nil, fmt.Errorf("list the host's %s sockets: %w", q.name, err)
		}
		out = append(out, list...)
	}
	list, err := sctpSockets(sctpEndpoints)
	return append(out, list...), err
}

// readDiag reads the answers to one question.
func readDiag(fd int, proto string) ([]boundSocket, error) {
	var out []boundSocket
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return nil, fmt.Errorf("a message of %d bytes in %d", size, len(b))
			}
			body := b[unix.SizeofNlMsghdr:size]
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return out, nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return nil, unix.EINVAL
				}
				return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			default:
				if s, ok := parseDiag(body, proto); ok {
					out = append(out, s)
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// parseDiag reads a struct inet_diag_msg with its attributes: family, three
// bytes, ports at 4 and 6, addresses at 8 and 24, inode at 68.
func parseDiag(b []byte, proto string) (boundSocket, bool) {
	if len(b) < diagMessageLen {
		return boundSocket{}, false
	}
	s := boundSocket{proto: proto, inode: binary.NativeEndian.Uint32(b[68:])}
	port := binary.BigEndian.Uint16(b[4:])
	addr := netip.AddrFrom4([4]byte(b[8:12]))
	if b[0] == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
	s.at = netip.AddrPortFrom(addr, port)
	for a := b[diagMessageLen:]; len(a) >= 5; {
		size := int(binary.NativeEndian.Uint16(a))
		if size < 4 || size > len(a) {
			break
		}
		if binary.NativeEndian.Uint16(a[2:]) == diagV6Only && size > 4 {
			s.v6 = a[4] != 0
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s, port != 0
}

func (kernelSockets) Owner(inode uint32) string {
	want := fmt.Sprintf("socket:[%d]", inode)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		if holds(dir, want) {
			name, _ := os.ReadFile(dir + "/comm")
			return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
		}
	}
	return ""
}

func (kernelSockets) Own(inode uint32) bool {
	return holds("/proc/self", fmt.Sprintf("socket:[%d]", inode))
}

// holds reports whether a process has a descriptor of a socket.
func holds(dir, socket string) bool {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false // gone, or somebody else's
	}
	for _, fd := range fds {
		if to, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && to == socket {
			return true
		}
	}
	return false
}
