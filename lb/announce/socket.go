package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func native16(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }
func native32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func nativeWord(v int) []byte  { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }

// What the sockets let through. They see packets from the network header on.
var (
	arpFilter = []bpf.Instruction{bpf.RetConstant{Val: 0xffff}}
	// ICMPv6 types 135 and 136, sent on this link (hop limit 255).
	ndFilter = []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMPv6, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 7, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 255, SkipTrue: 4},
		bpf.LoadAbsolute{Off: ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeSolicitation, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeAdvertisement, SkipTrue: 1},
		bpf.RetConstant{Val: 0xffff},
		bpf.RetConstant{Val: 0},
	}
)

// Keeper opens the kernel's own answers: see Responder.
func (Host) Keeper() (Keeper, error) {
	r, err := OpenResponder()
	if err != nil {
		return nil, err
	}
	return r, nil
}

// hostWire is a link's two packet sockets, and one that is a member of the
// groups in which IPv6 addresses are asked for.
type hostWire struct {
	index  int
	arp    *packetSocket
	nd     *packetSocket
	frames chan Frame
	ended  chan error
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	sockets Sockets  // nil: none
	member  *os.File // UDP socket; nil: none yet
	joined  map[netip.Addr]bool
}

// Open listens on a link, which is meant by its index: one of the same name
// that appears later is another one.
func (h Host) Open(l Link) (Wire, error) {
	w := &hostWire{index: l.Index, frames: make(chan Frame), ended: make(chan error, 2), closed: make(chan struct{}), sockets: h.Sockets, joined: map[netip.Addr]bool{}}
	var err error
	if w.arp, err = openPacketSocket(l.Index, etherARP, arpFilter); err != nil {
		return nil, err
	}
	if w.nd, err = openPacketSocket(l.Index, etherIPv6, ndFilter); err != nil {
		w.arp.f.Close()
		return nil, err
	}
	go w.pump(w.arp)
	go w.pump(w.nd)
	return w, nil
}

// pump passes a socket's frames on.
func (w *hostWire) pump(s *packetSocket) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.read(b)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once, when the interface goes down; it may come up again
		}
		if err != nil {
			w.ended <- err
			return
		}
		f := Frame{Proto: s.proto, From: from, Payload: append([]byte(nil), b[:n]...)}
		select {
		case w.frames <- f:
		case <-w.closed:
			return
		}
	}
}

func (w *hostWire) Receive() (Frame, error) {
	select {
	case f := <-w.frames:
		return f, nil
	case err := <-w.ended:
		return Frame{}, err
	case <-w.closed:
		return Frame{}, os.ErrClosed
	}
}

func (w *hostWire) Send(f Frame) error {
	s := w.arp
	if f.Proto == etherIPv6 {
		s = w.nd
	}
	return s.write(f.Payload, f.To)
}

// Listen joins the groups of IPv6 addresses and leaves those of others. An
// ordinary socket does it, so that the kernel tells switches by MLD.
func (w *hostWire) Listen(addrs []netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		if a.Is6() {
			want[solicitedNode(a)] = true
		}
	}
	if len(want) == 0 {
		return w.leave()
	}
	var errs []error
	fresh := w.member == nil
	if fresh {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open group socket: %w", err)
		}
		w.member = os.NewFile(uintptr(fd), "groups")
	}
	for g := range want {
		if w.joined[g] {
			continue
		}
		if err := w.membership(unix.IPV6_JOIN_GROUP, g); err != nil {
			errs = append(errs, fmt.Errorf("join group %s: %w", g, err))
			continue
		}
		w.joined[g] = true
	}
	for g := range w.joined {
		if !want[g] {
			_ = w.membership(unix.IPV6_LEAVE_GROUP, g) // it ends with the interface at the latest
			delete(w.joined, g)
		}
	}
	if fresh && w.sockets != nil {
		errs = append(errs, w.keep())
	}
	return errors.Join(errs...)
}

// keep has the membership outlive the process: an interface without it does
// not hear the asks that the kernel's rule would answer. The socket of the
// process before, whose groups are not known, goes after this one has joined.
func (w *hostWire) keep() error {
	if old := w.sockets.Take(w.groupsName()); old != nil {
		defer old.Close()
	}
	c, err := w.member.SyscallConn()
	if err == nil {
		err = errors.Join(w.sockets.Drop(w.groupsName()), w.sockets.Keep(w.groupsName(), c))
	}
	if err != nil {
		return fmt.Errorf("stay in groups over a restart: %w", err)
	}
	return nil
}

func (w *hostWire) groupsName() string { return fmt.Sprintf("announce-groups-%d", w.index) }

// leave ends all memberships.
func (w *hostWire) leave() error {
	if w.member == nil {
		return nil
	}
	w.member.Close()
	w.member = nil
	clear(w.joined)
	if w.sockets == nil {
		return nil
	}
	return w.sockets.Drop(w.groupsName())
}

func (w *hostWire) membership(what int, group netip.Addr) error {
	c, err := w.member.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = c.Control(func(fd uintptr) {
		serr = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, what, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(w.index)})
	})
	return errors.Join(err, serr)
}

func (w *hostWire) Close() {
	w.once.Do(func() {
		close(w.closed)
		w.arp.f.Close()
		w.nd.f.Close()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.member != nil {
			w.member.Close()
		}
	})
}

// packetSocket receives and sends packets of one Ethernet type on one
// interface. Ethernet headers are the kernel's work (SOCK_DGRAM).
type packetSocket struct {
	f     *os.File
	conn  syscall.RawConn
	index int
	proto uint16
}

func openPacketSocket(index int, proto uint16, filter []bpf.Instruction) (*packetSocket, error) {
	// Protocol 0: nothing arrives before filter and binding are in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "announce")
	raw, err := bpf.Assemble(filter)
	if err == nil {
		ins := make([]unix.SockFilter, len(raw))
		for i, r := range raw {
			ins[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(ins)), Filter: &ins[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: index})
	}
	s := &packetSocket{f: f, index: index, proto: proto}
	if err == nil {
		s.conn, err = f.SyscallConn()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("bind packet socket to interface %d: %w", index, err)
	}
	return s, nil
}

// read returns the length of the next packet of another station, and that
// station's address. One reader at a time.
func (s *packetSocket) read(b []byte) (n int, from MAC, err error) {
	for {
		var sa unix.Sockaddr
		var rerr error
		err = s.conn.Read(func(fd uintptr) bool {
			n, sa, rerr = unix.Recvfrom(int(fd), b, 0)
			return !errors.Is(rerr, unix.EAGAIN) && !errors.Is(rerr, unix.EINTR)
		})
		if err == nil {
			err = rerr
		}
		if err != nil {
			return 0, MAC{}, err
		}
		ll, ok := sa.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype == unix.PACKET_OUTGOING || ll.Pkttype == unix.PACKET_OTHERHOST || ll.Halen != 6 {
			continue
		}
		return n, MAC(ll.Addr[:6]), nil
	}
}

func (s *packetSocket) write(b []byte, to MAC) error {
	sa := &unix.SockaddrLinklayer{Protocol: htons(s.proto), Ifindex: s.index, Halen: 6}
	copy(sa.Addr[:], to[:])
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

// htons brings an Ethernet type into network order as the kernel's structs
// want it.
func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
