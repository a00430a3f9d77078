// Package batch reads and writes many UDP datagrams with one system call
// (recvmmsg(2), sendmmsg(2)), without an allocation per datagram.
//
// It differs from golang.org/x/net/ipv4.PacketConn in that the address of a
// datagram stays in the kernel's form: an answer goes back to where it came
// from without being parsed.
package batch

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is struct mmsghdr.
type message struct {
	hdr unix.Msghdr
	len uint32
}

// Reader receives datagrams. It belongs to one goroutine.
type Reader struct {
	conn  syscall.RawConn
	msgs  []message
	iovs  []unix.Iovec
	addrs []unix.RawSockaddrInet6
	bufs  []byte
	size  int
	step  int // from one buffer to the next
	n     int
	errno syscall.Errno
	recv  func(fd uintptr) bool
}

// NewReader makes a reader of up to n datagrams of up to size bytes at a time.
// What is longer is cut off.
func NewReader(conn syscall.RawConn, n, size int) *Reader {
	step := stride(size)
	r := &Reader{
		conn: conn, size: size, step: step,
		msgs: make([]message, n), iovs: make([]unix.Iovec, n), addrs: make([]unix.RawSockaddrInet6, n), bufs: make([]byte, n*step),
	}
	for i := range r.msgs {
		r.iovs[i].Base = &r.bufs[i*step]
		r.iovs[i].SetLen(size)
		r.msgs[i].hdr.Iov = &r.iovs[i]
		r.msgs[i].hdr.SetIovlen(1)
		r.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&r.addrs[i]))
		r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	r.recv = r.try
	return r
}

// stride is how far apart buffers of a size lie: an odd number of cache lines,
// so that the beginnings of the buffers, which are all that most datagrams
// need, do not share a few sets of the cache.
func stride(size int) int { return ((size+63)/64 | 1) * 64 }

// try is one recvmmsg; false: nothing is there, wait.
func (r *Reader) try(fd uintptr) bool {
	for i := range r.msgs[:r.n] { // the kernel has written the real lengths
		r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(len(r.msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			r.n, r.errno = int(n), 0
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			r.n, r.errno = 0, errno
			return false
		}
		r.n, r.errno = 0, errno
		return true
	}
}

// Read waits for datagrams and returns how many came. The error is that of
// the connection: closed, or past its deadline.
func (r *Reader) Read() (int, error) {
	if err := r.conn.Read(r.recv); err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", r.errno)
	}
	return r.n, nil
}

// Poll is Read without waiting: it returns 0 when there is nothing.
func (r *Reader) Poll() (int, error) {
	if err := r.conn.Control(func(fd uintptr) { r.try(fd) }); err != nil {
		return 0, err
	}
	if r.errno != 0 && r.errno != unix.EAGAIN {
		return 0, os.NewSyscallError("recvmmsg", r.errno)
	}
	return r.n, nil
}

// Data returns the i-th datagram, valid until the next Read.
func (r *Reader) Data(i int) []byte {
	return r.bufs[i*r.step:][:r.msgs[i].len:r.size]
}

// Cut reports whether the i-th datagram was longer than there was room.
func (r *Reader) Cut(i int) bool { return r.msgs[i].hdr.Flags&unix.MSG_TRUNC != 0 }

// Addr returns where the i-th datagram came from, as an IPv4 address if it is
// one.
func (r *Reader) Addr(i int) netip.AddrPort { return addrPort(&r.addrs[i]) }

func addrPort(a *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&a.Port))
	p := uint16(port[0])<<8 | uint16(port[1])
	if a.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr), p)
	}
	ip := netip.AddrFrom16(a.Addr).Unmap()
	if a.Scope_id != 0 {
		ip = ip.WithZone(strconv.FormatUint(uint64(a.Scope_id), 10))
	}
	return netip.AddrPortFrom(ip, p)
}

// Writer sends datagrams. It belongs to one goroutine.
type Writer struct {
	conn  syscall.RawConn
	msgs  []message
	iovs  []unix.Iovec
	bufs  []byte
	size  int
	step  int
	n     int // queued
	sent  int
	errno syscall.Errno
	send  func(fd uintptr) bool
}

// NewWriter makes a writer of up to n datagrams of up to size bytes at a time.
func NewWriter(conn syscall.RawConn, n, size int) *Writer {
	step := stride(size)
	w := &Writer{
		conn: conn, size: size, step: step,
		msgs: make([]message, n), iovs: make([]unix.Iovec, n), bufs: make([]byte, n*step),
	}
	for i := range w.msgs {
		w.iovs[i].Base = &w.bufs[i*step]
		w.msgs[i].hdr.Iov = &w.iovs[i]
		w.msgs[i].hdr.SetIovlen(1)
	}
	w.send = w.try
	return w
}

// Room returns the buffer for the next datagram. It must not be called when
// as many are queued as the writer was made for.
func (w *Writer) Room() []byte { return w.bufs[w.n*w.step:][:w.size:w.size] }

// Reply queues the first n bytes of Room for the sender of the i-th datagram
// of r, which must not read again before Flush.
func (w *Writer) Reply(r *Reader, i, n int) {
	h := &w.msgs[w.n].hdr
	h.Name, h.Namelen = r.msgs[i].hdr.Name, r.msgs[i].hdr.Namelen
	w.iovs[w.n].SetLen(n)
	w.n++
}

// Send queues the first n bytes of Room for the peer of a connected socket.
func (w *Writer) Send(n int) {
	w.msgs[w.n].hdr.Name, w.msgs[w.n].hdr.Namelen = nil, 0
	w.iovs[w.n].SetLen(n)
	w.n++
}

// Len is how many datagrams are queued.
func (w *Writer) Len() int { return w.n }

// try is one sendmmsg; false: the socket is full, wait.
func (w *Writer) try(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.msgs[w.sent])), uintptr(w.n-w.sent), unix.MSG_DONTWAIT, 0, 0)
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
	w.sent = 0
	for w.sent < w.n {
		if err := w.conn.Write(w.send); err != nil {
			w.n = 0
			return err
		}
		if w.errno != 0 {
			errs = fmt.Errorf("send datagram: %w", w.errno)
			w.sent++ // the first of the rest is at fault, sendmmsg(2)
			w.errno = 0
		}
	}
	w.n = 0
	return errs
}

// ReusePort is a net.ListenConfig.Control that lets several sockets share an
// address and port; the kernel spreads datagrams over them by sender
// (SO_REUSEPORT, socket(7)).
func ReusePort(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, serr)
}
