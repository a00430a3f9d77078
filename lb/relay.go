package lb

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// duplex is a stream socket of package net.
type duplex interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// relay is a connection to a published port with the one to its target, and
// what is copied between them. It can be halted without the loss of a byte:
// what was read and could not be written is the rest of a half.
type relay struct {
	at, to   netip.AddrPort // the published port, and where target goes
	client   duplex
	up, down half // to the target, and from it

	mu     sync.Mutex
	target duplex // nil: not dialed yet
	over   bool   // closed
	halted bool
}

// half is one direction of a relay. It belongs to the goroutine that copies it.
type half struct {
	rest  []byte
	ended bool // the end of the stream was passed on
	err   error
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// Close ends both connections.
func (r *relay) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	err := r.client.Close()
	if r.target != nil {
		err = errors.Join(err, r.target.Close())
	}
	return err
}

// halt makes run return, with both connections left open.
func (r *relay) halt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.halted = true
	// Of a closed connection there is nothing to halt.
	_ = r.client.SetDeadline(past)
	if r.target != nil {
		_ = r.target.SetDeadline(past)
	}
}

// join gives a relay its target; false: it was closed meanwhile, and the target is too.
func (r *relay) join(target duplex) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		target.Close()
		return false
	}
	r.target = target
	if r.halted {
		_ = target.SetDeadline(past)
	}
	return true
}

// lives reports whether a relay that does not run is one to go on with.
func (r *relay) lives() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.halted && !r.over && r.up.err == nil && r.down.err == nil && !(r.up.ended && r.down.ended)
}

// run copies both ways until both streams have ended, one fails, or it is
// halted. A stream that ended earlier ends again: its end stays to be read.
func (r *relay) run() {
	var back sync.WaitGroup
	back.Go(func() { r.pass(&r.down, r.client, r.target) })
	r.pass(&r.up, r.target, r.client)
	back.Wait()
}

// pass copies one direction and passes the end of it on.
func (r *relay) pass(d *half, dst, src duplex) {
	err := d.copy(dst, src)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // halted
	case err != nil:
		d.err = err
		dst.Close()
		src.Close()
	default:
		d.ended = true
		_ = dst.CloseWrite()
	}
}

func (d *half) copy(dst, src duplex) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	if len(d.rest) > 0 { // of a relay that was halted
		if err := d.write(dst, d.rest); err != nil {
			return err
		}
	}
	for {
		buf, n, err := receive(raw)
		if err == nil && n > 0 {
			err = d.write(dst, (*buf)[:n])
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err != nil || n == 0 {
			return err
		}
	}
}

// write writes all of b, or remembers what it could not.
func (d *half) write(dst duplex, b []byte) error {
	n, err := dst.Write(b)
	d.rest = nil
	if err != nil {
		d.rest = slices.Clone(b[n:])
	}
	return err
}

// buffers are in use only while there is something in them: most connections
// are idle.
var buffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// receive waits until there is something to read and reads it; 0: the stream has ended.
func receive(c syscall.RawConn) (buf *[128 << 10]byte, n int, err error) {
	var rerr error
	err = c.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[128 << 10]byte)
		for {
			if n, rerr = unix.Read(int(fd), buf[:]); !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if errors.Is(rerr, unix.EAGAIN) {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if err == nil {
		err = rerr
	}
	return buf, max(n, 0), err
}
