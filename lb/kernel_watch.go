package lb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watch listens to what the kernel tells of every nftables transaction of the
// network namespace (the multicast group of `nft monitor`), and remembers
// which of them touched our tables. So a change to a single element of ours is
// noticed without listing any.
//
// A transaction is known by the generation of the ruleset that it made. Ours
// are told like everybody's until the first by a socket that touched our tables
// was read; from then on the kernel keeps that socket's back, see deaf. Who
// asks knows which generations are its own.
// All methods are safe for concurrent use; a nil watch knows nothing.
type watch struct {
	f    *os.File
	wake chan struct{} // has a value when there is something new

	mu      sync.Mutex
	moved   chan struct{} // closed and replaced at each transaction
	newest  uint32        // generation; 0: none seen
	since   uint32        // all after this one is known
	touched []touch       // oldest first
	shaped  uint32        // the newest that changed anybody's tables, chains, rules or sets; 0: none seen
}

// touch is a transaction that changed our tables.
type touch struct {
	gen      uint32
	elements bool   // elements were added or removed by themselves
	by       string // the program that did it
}

const (
	groupNFTables = 7       // NFNLGRP_NFTABLES
	watchBuffer   = 8 << 20 // what the kernel may queue: a cold load is some MB
	maxTouched    = 4096    // remembered; more, and nothing is known
	maxOwn        = 8       // sockets of ours that are filtered
	catchUp       = 50 * time.Millisecond
)

// openWatch subscribes in the calling thread's network namespace. It needs
// CAP_NET_ADMIN there. Read must run for it to learn anything.
func openWatch() (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	// Without the privilege for a large one the default has to do.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (groupNFTables - 1)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch nftables: %w", explain(err))
	}
	return newWatch(os.NewFile(uintptr(fd), "nftables")), nil
}

func newWatch(f *os.File) *watch {
	return &watch{f: f, wake: make(chan struct{}, 1), moved: make(chan struct{})}
}

func (w *watch) close() {
	if w != nil {
		w.f.Close()
	}
}

// signal is nil without a watch, which blocks for ever.
func (w *watch) signal() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.wake
}

// read takes in what the kernel tells until the watch is closed.
func (w *watch) read() {
	buf := make([]byte, 1<<17)
	var t touch
	var ours, shaped bool
	var own []uint32 // ports of our transactions
	for {
		n, err := w.f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// Too fast for us: what was lost is not known.
			t, ours, shaped = touch{}, false, false
			w.lose()
			continue
		case err != nil:
			w.lose()
			return
		}
		for m := range messages(buf[:n]) {
			switch m.kind {
			case unix.NFT_MSG_NEWGEN:
				var thread uint32
				t.gen, thread, t.by = generation(m.attrs)
				w.commit(t, ours, shaped)
				if ours && len(own) < maxOwn && !slices.Contains(own, m.port) && isOwn(thread) {
					// Without the filter it costs more, and all is known.
					own = append(own, m.port)
					_ = w.deaf(own)
				}
				t, ours, shaped = touch{}, false, false
			case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
				if m.ours() {
					ours, t.elements = true, true
				}
			default:
				ours, shaped = ours || m.ours(), true
			}
		}
	}
}

// commit notes that a transaction is complete.
func (w *watch) commit(t touch, ours, shaped bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.newest == 0, later(t.gen, w.newest+1): // those between were not told
		w.since = t.gen - 1
	case !later(t.gen, w.newest): // told late, see skip
		return
	}
	w.newest = t.gen
	if shaped {
		w.shaped = t.gen
	}
	if ours {
		w.touched = append(w.touched, t)
		if len(w.touched) > maxTouched {
			w.since, w.touched = t.gen, nil
		}
	}
	w.tell()
}

// lose forgets everything: the next transaction is the first that is known.
func (w *watch) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.newest, w.touched = 0, nil
	w.tell()
}

// leave ends the subscription until join, and reports whether it did: while
// nobody listens the kernel makes no messages. It makes one for each element,
// in a buffer of a page that lives until the transaction is complete.
func (w *watch) leave() bool {
	return w != nil && w.member(unix.NETLINK_DROP_MEMBERSHIP) == nil
}

// join subscribes again. What happened meanwhile is not known, unless skip
// says it. After an error nothing is known any more.
func (w *watch) join() error { return w.member(unix.NETLINK_ADD_MEMBERSHIP) }

func (w *watch) member(option int) error {
	c, err := w.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	var set error
	if err := c.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, option, groupNFTables)
	}); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	return set
}

// skip notes that all transactions up to g that were not told are our own.
func (w *watch) skip(g uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.newest == 0 {
		w.since = g
	}
	w.newest = g
	w.tell()
}

func (w *watch) tell() {
	close(w.moved)
	w.moved = make(chan struct{})
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// upTo reports whether no transaction after generation g was told or missed.
func (w *watch) upTo(g uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newest != 0 && !later(w.newest, g)
}

// between returns the transactions after generation from, up to g, that
// touched our tables. Not known: some of them were missed, or are not told
// within a moment.
func (w *watch) between(from, g uint32) (list []touch, known bool) {
	switch {
	case w == nil:
		return nil, false
	case from == g:
		return nil, true
	}
	ctx, cancel := context.WithTimeout(context.Background(), catchUp)
	defer cancel()
	for {
		w.mu.Lock()
		newest, since, moved := w.newest, w.since, w.moved
		if newest != 0 && !later(g, newest) {
			defer w.mu.Unlock()
			if later(since, from) {
				return nil, false
			}
			for _, t := range w.touched {
				if later(t.gen, from) && !later(t.gen, g) {
					list = append(list, t)
				}
			}
			return list, true
		}
		w.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, false
		}
	}
}

// reshaped reports whether anything but elements may have changed after a
// generation, in whatever table.
func (w *watch) reshaped(after uint32) bool {
	if w == nil {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newest == 0 || later(w.since, after) || w.shaped != 0 && later(w.shaped, after)
}

// forget drops what nobody will ask for any more.
func (w *watch) forget(upTo uint32) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := 0
	for i < len(w.touched) && !later(w.touched[i].gen, upTo) {
		i++
	}
	w.touched = append(w.touched[:0], w.touched[i:]...)
}

// later compares generations, which wrap around.
func later(a, b uint32) bool { return int32(a-b) > 0 }

// message is one of the kernel's about nftables.
type message struct {
	kind   uint16
	port   uint32 // netlink port of who did what it tells
	family uint8
	attrs  []byte
}

// ours reports whether it is about a table of ours, whose name is attribute 1
// of every object. Table netdev nodenet is package announce's, which renews its
// elements every few seconds.
func (m message) ours() bool {
	if m.family != unix.NFPROTO_INET && m.family != unix.NFPROTO_BRIDGE {
		return false
	}
	for kind, v := range attributes(m.attrs) {
		if kind == 1 {
			return string(v) == TableName+"\x00"
		}
	}
	return false
}

// messages are those about nftables in a datagram.
func messages(b []byte) func(func(message) bool) {
	return func(yield func(message) bool) {
		const head = unix.SizeofNlMsghdr + 4 // and struct nfgenmsg
		for len(b) >= head {
			size := int(binary.NativeEndian.Uint32(b))
			if size < head || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[4:])
			if kind>>8 == unix.NFNL_SUBSYS_NFTABLES && !yield(message{kind & 0xff, binary.NativeEndian.Uint32(b[12:]), b[unix.SizeofNlMsghdr], b[head:size]}) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

func attributes(b []byte) func(func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) || !yield(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// generation reads the message that ends a transaction: the generation that it
// made, and the thread and the name of who asked for it.
func generation(attrs []byte) (gen, thread uint32, by string) {
	for kind, v := range attributes(attrs) {
		switch {
		case kind == unix.NFTA_GEN_ID && len(v) == 4:
			gen = binary.BigEndian.Uint32(v)
		case kind == unix.NFTA_GEN_PROC_PID && len(v) == 4:
			thread = binary.BigEndian.Uint32(v)
		case kind == unix.NFTA_GEN_PROC_NAME && len(v) > 0:
			by = string(v[:len(v)-1])
		}
	}
	return gen, thread, by
}
