package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// filter lets unfragmented IPv4 UDP packets to port 67 through. The socket
// sees packets from the network header on.
var filter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4},
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort, SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

// packetSocket receives and sends IPv4 packets on one interface. Ethernet
// headers are the kernel's work (SOCK_DGRAM).
type packetSocket struct {
	f     *os.File
	conn  syscall.RawConn
	index int
	oob   []byte
}

// openPacketSocket binds to an interface by its index: one of the same name
// that appears later is another one.
func openPacketSocket(index int) (*packetSocket, error) {
	// Protocol 0: nothing arrives before filter and binding are in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := preparePacketSocket(fd, index); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "packet")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	return &packetSocket{f: f, conn: conn, index: index, oob: make([]byte, unix.CmsgSpace(64))}, nil
}

func preparePacketSocket(fd, index int) error {
	if err := attachFilter(fd, filter); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("ask for packet details: %w", err)
	}
	// A burst of clients after a power cut: 1 MiB holds about a thousand.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20); err != nil {
		return fmt.Errorf("size receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index}); err != nil {
		return fmt.Errorf("bind packet socket to interface %d: %w", index, err)
	}
	return nil
}

func attachFilter(fd int, prog []bpf.Instruction) error {
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return fmt.Errorf("assemble socket filter: %w", err)
	}
	ins := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		ins[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(ins)), Filter: &ins[0]}); err != nil {
		return fmt.Errorf("attach socket filter: %w", err)
	}
	return nil
}

// read returns the length of the next packet, its sender's Ethernet address
// and whether the kernel vouches for the UDP checksum. One reader at a time.
func (s *packetSocket) read(b []byte) (n int, from net.HardwareAddr, checked bool, err error) {
	var oobn int
	var sa unix.Sockaddr
	var rerr error
	err = s.conn.Read(func(fd uintptr) bool {
		n, oobn, _, sa, rerr = unix.Recvmsg(int(fd), b, s.oob, 0)
		return !errors.Is(rerr, unix.EAGAIN) && !errors.Is(rerr, unix.EINTR)
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return 0, nil, false, err
	}
	if ll, ok := sa.(*unix.SockaddrLinklayer); ok && ll.Halen == 6 {
		from = net.HardwareAddr(ll.Addr[:6:6])
	}
	return n, from, checksumVouched(s.oob[:oobn]), nil
}

// checksumVouched reads struct tpacket_auxdata: its first word is the status.
func checksumVouched(oob []byte) bool {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			status := binary.NativeEndian.Uint32(m.Data)
			return status&(unix.TP_STATUS_CSUMNOTREADY|unix.TP_STATUS_CSUM_VALID) != 0
		}
	}
	return false
}

// write sends an IPv4 packet; a nil to is the broadcast address. It is safe
// for concurrent use.
func (s *packetSocket) write(b []byte, to net.HardwareAddr) error {
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: s.index, Halen: 6}
	if len(to) == 6 {
		copy(sa.Addr[:], to)
	} else {
		copy(sa.Addr[:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	var werr error
	err := s.conn.Write(func(fd uintptr) bool {
		werr = unix.Sendto(int(fd), b, 0, sa)
		return !errors.Is(werr, unix.EAGAIN) && !errors.Is(werr, unix.EINTR)
	})
	if err == nil {
		err = werr
	}
	return err
}

func (s *packetSocket) close() { s.f.Close() }

// openSink takes UDP port 67 on the interface and throws away all that
// arrives. Without it the kernel would answer the unicast requests of
// renewing clients with an ICMP "port unreachable" beside our reply.
func openSink(device string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	err = attachFilter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err == nil {
		if err = unix.BindToDevice(fd, device); err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: serverPort})
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("take UDP port %d on %s: %w", serverPort, device, err)
	}
	return fd, nil
}

// htons brings a protocol number into network order as the kernel's structs
// want it.
func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
