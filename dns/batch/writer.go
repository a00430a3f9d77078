package batch

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Writer sends datagrams. It belongs to one goroutine.
//
// Datagrams to one peer that are queued one after the other go through the
// kernel as a train, which is taken apart where it arrives (UDP_SEGMENT,
// udp(7), Linux 4.18): routing, filters and the queue to the receiver are most
// of what sending costs, and are paid once. The datagrams of a train are of
// one size but the last, which may be shorter, so those to one peer are sorted
// by size; two always fit together:
//
//	queued   A:61 A:107 A:61 B:72 A:61
//	sent     A:107+61  A:61  B:72  A:61
//
// The peer gets separate datagrams, perhaps in another order.
type Writer struct {
	conn  syscall.RawConn
	iovs  []unix.Iovec
	peers []peerName // of iovs
	msgs  []message  // what is handed over, see plan
	sizes []segmentSize
	bufs  []byte
	size  int
	at    int // how much of bufs is in use
	n     int // queued
	ready int // of msgs
	sent  int // of msgs
	plain int // flushes to come without trains; < 0: all
	errno syscall.Errno
	send  func(fd uintptr) bool
}

// peerName is where a datagram goes, in the kernel's form; nil: the peer of a
// connected socket.
type peerName struct {
	addr *byte
	size uint32
}

// is reports whether two names are of the same peer.
func (a peerName) is(b peerName) bool {
	if a.addr == nil || b.addr == nil || a.size != b.size {
		return a.addr == b.addr
	}
	x, y := (*unix.RawSockaddrInet6)(unsafe.Pointer(a.addr)), (*unix.RawSockaddrInet6)(unsafe.Pointer(b.addr))
	// Family, port and, where Flowinfo is, an IPv4 address.
	if x.Family != y.Family || x.Port != y.Port || x.Flowinfo != y.Flowinfo {
		return false
	}
	return x.Family == unix.AF_INET || x.Addr == y.Addr && x.Scope_id == y.Scope_id
}

// segmentSize is the control message with the size of a train's datagrams.
type segmentSize struct {
	unix.Cmsghdr
	size uint16
	_    [6]byte // CMSG_SPACE(2)
}

const (
	// maxTrain bounds the datagrams of a train (UDP_MAX_SEGMENTS is 64 in
	// Linux before 6.9), and maxTrainSize their bytes: those of one datagram.
	maxTrain     = 64
	maxTrainSize = 1<<16 - 512
	// plainFor is for how many flushes there are no trains after one could not
	// be sent by the device, or through IPsec (EIO).
	plainFor = 1024
)

// NewWriter makes a writer of up to n datagrams of up to size bytes at a time.
func NewWriter(conn syscall.RawConn, n, size int) *Writer {
	w := &Writer{
		conn: conn, size: size,
		iovs: make([]unix.Iovec, n), peers: make([]peerName, n), msgs: make([]message, n), sizes: make([]segmentSize, n), bufs: make([]byte, n*size),
	}
	for i := range w.sizes {
		h := &w.sizes[i].Cmsghdr
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
	}
	w.send = w.try
	if !knowsTrains(conn) {
		w.plain = -1
	}
	return w
}

// knowsTrains reports whether the kernel has UDP_SEGMENT.
func knowsTrains(conn syscall.RawConn) bool {
	var serr error
	err := conn.Control(func(fd uintptr) { _, serr = unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT) })
	return errors.Join(err, serr) == nil
}

// Singly makes the writer send each datagram on its own.
func (w *Writer) Singly() { w.plain = -1 }

// Room returns the buffer for the next datagram. It must not be called when
// as many are queued as the writer was made for.
func (w *Writer) Room() []byte { return w.bufs[w.at:][:w.size:w.size] }

// Reply queues the first n bytes of Room for the sender of the i-th datagram
// of r, which must not read again before Flush.
func (w *Writer) Reply(r *Reader, i, n int) {
	w.add(peerName{r.msgs[i].hdr.Name, r.msgs[i].hdr.Namelen}, n)
}

// Send queues the first n bytes of Room for the peer of a connected socket.
func (w *Writer) Send(n int) { w.add(peerName{}, n) }

// To queues the first n bytes of Room for a peer, which must not change until
// Flush.
func (w *Writer) To(p *Peer, n int) {
	w.add(peerName{(*byte)(unsafe.Pointer(&p.addr)), p.size}, n)
}

func (w *Writer) add(to peerName, n int) {
	w.iovs[w.n].Base = &w.bufs[w.at]
	w.iovs[w.n].SetLen(n)
	w.at += n
	w.peers[w.n] = to
	w.n++
}

// Len is how many datagrams are queued.
func (w *Writer) Len() int { return w.n }

// Full reports whether Room must not be called before Flush.
func (w *Writer) Full() bool { return w.n == len(w.iovs) }

// plan makes messages of the datagrams from the i-th on: with trains, or one
// for each.
func (w *Writer) plan(i int, trains bool) {
	w.ready, w.sent = 0, 0
	for i < w.n {
		run := 1
		for trains && i+run < w.n && w.peers[i+run].is(w.peers[i]) {
			run++
		}
		if run > 1 {
			sortBySize(w.iovs[i : i+run])
		}
		for run > 0 {
			n := trainOf(w.iovs[i : i+run])
			w.couple(i, n)
			i, run = i+n, run-n
		}
	}
}

// sortBySize sorts a peer's datagrams, longest first. They are few, and of few
// sizes.
func sortBySize(iovs []unix.Iovec) {
	for i := 1; i < len(iovs); i++ {
		for j := i; j > 0 && iovs[j].Len > iovs[j-1].Len; j-- {
			iovs[j], iovs[j-1] = iovs[j-1], iovs[j]
		}
	}
}

// trainOf returns how many of a peer's datagrams fit into one train, beginning
// with the first.
func trainOf(iovs []unix.Iovec) int {
	size := int(iovs[0].Len)
	if size == 0 { // means "no train" to the kernel
		return 1
	}
	most := max(1, min(len(iovs), maxTrain, maxTrainSize/size))
	for n := range most {
		switch int(iovs[n].Len) {
		case size:
		case 0:
			return n
		default:
			return n + 1
		}
	}
	return most
}

// couple makes one message of n datagrams from the i-th on.
func (w *Writer) couple(i, n int) {
	h := &w.msgs[w.ready].hdr
	h.Name, h.Namelen = w.peers[i].addr, w.peers[i].size
	h.Iov = &w.iovs[i]
	h.SetIovlen(n)
	h.Control = nil
	h.SetControllen(0)
	if n > 1 {
		c := &w.sizes[w.ready]
		c.size = uint16(w.iovs[i].Len)
		h.Control = (*byte)(unsafe.Pointer(c))
		h.SetControllen(int(unsafe.Sizeof(*c)))
	}
	w.ready++
}

// try is one sendmmsg; false: the socket is full, wait.
func (w *Writer) try(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.msgs[w.sent])), uintptr(w.ready-w.sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			w.sent, w.errno = w.sent+int(n), 0
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		w.errno = errno
		return true
	}
}

// Flush sends what is queued. A datagram that cannot be sent, because its
// client cannot be reached, is left out: it returns the last such error after
// the others have been sent. After an error of the connection nothing is
// queued any more.
func (w *Writer) Flush() error {
	var errs error
	w.plan(0, w.plain == 0)
	if w.plain > 0 {
		w.plain--
	}
	for w.sent < w.ready {
		if err := w.conn.Write(w.send); err != nil {
			w.n, w.at = 0, 0
			return err
		}
		if w.errno == 0 {
			continue
		}
		// The first of the rest is at fault, sendmmsg(2).
		if h := &w.msgs[w.sent].hdr; h.Iovlen > 1 { // perhaps only as a train
			if w.errno == unix.EIO {
				w.plain = plainFor
			}
			w.plan(w.index(h.Iov), false)
			continue
		}
		errs = fmt.Errorf("send datagrams: %w", os.NewSyscallError("sendmmsg", w.errno))
		w.sent++
	}
	w.n, w.at = 0, 0
	return errs
}

// index returns the place of one of iovs.
func (w *Writer) index(v *unix.Iovec) int {
	return int((uintptr(unsafe.Pointer(v)) - uintptr(unsafe.Pointer(&w.iovs[0]))) / unsafe.Sizeof(*v))
}
