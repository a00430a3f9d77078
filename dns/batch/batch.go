// Package batch reads and writes many UDP datagrams with one system call
// (recvmmsg(2), sendmmsg(2)), without an allocation per datagram.
//
// It differs from golang.org/x/net/ipv4.PacketConn in that the address of a
// datagram stays in the kernel's form: an answer goes back to where it came
// from without being parsed. And in that datagrams to one peer which follow one
// another are handed over as one, see Writer.
package batch

import (
	"errors"
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
	iovs  []unix.Iovec // two for each: head, and the rest of its buffer
	addrs []unix.RawSockaddrInet6
	heads []byte
	bufs  []byte
	size  int
	head  int
	n     int
	errno syscall.Errno
	recv  func(fd uintptr) bool
}

// headSize is how much of a datagram is read to where those of the others are
// close by. Most are not longer. A processor that forgets its page tables with
// each system call (page table isolation) has to look up few pages for them.
const headSize = 128

// NewReader makes a reader of up to n datagrams of up to size bytes at a time.
// What is longer is cut off.
func NewReader(conn syscall.RawConn, n, size int) *Reader {
	head := min(size, headSize)
	r := &Reader{
		conn: conn, size: size, head: head,
		msgs: make([]message, n), iovs: make([]unix.Iovec, 2*n), addrs: make([]unix.RawSockaddrInet6, n),
		heads: make([]byte, n*head), bufs: make([]byte, n*size),
	}
	for i := range r.msgs {
		v := r.iovs[2*i : 2*i+2]
		v[0].Base = &r.heads[i*head]
		v[0].SetLen(head)
		r.msgs[i].hdr.Iov = &v[0]
		r.msgs[i].hdr.SetIovlen(1)
		if size > head {
			v[1].Base = &r.bufs[i*size+head]
			v[1].SetLen(size - head)
			r.msgs[i].hdr.SetIovlen(2)
		}
		r.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&r.addrs[i]))
		r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	r.recv = r.try
	return r
}

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
	n := int(r.msgs[i].len)
	head := r.heads[i*r.head:][:r.head:r.head]
	if n <= r.head {
		return head[:n]
	}
	whole := r.bufs[i*r.size:][:n:r.size]
	copy(whole, head)
	return whole
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

// ReusePort is a net.ListenConfig.Control that lets several sockets share an
// address and port; the kernel spreads datagrams over them by sender
// (SO_REUSEPORT, socket(7)).
func ReusePort(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, serr)
}
