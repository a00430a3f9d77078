package lb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LoopbackIO opens the sockets of the loopback listener. Tests that live in
// several network namespaces bring their own. Sockets must be those of package
// net.
type LoopbackIO interface {
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

type processIO struct{}

func (processIO) Listen(network, address string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(context.Background(), network, address)
}

func (processIO) ListenPacket(network, address string) (net.PacketConn, error) {
	return new(net.ListenConfig).ListenPacket(context.Background(), network, address)
}

func (processIO) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
}

const (
	maxConns = 1024 // a TCP port; more are reset at once
	maxOpen  = 4096 // ports; of long ranges the rest is not served on loopback
)

// loopback serves published ports on 127.0.0.1 and ::1 from user space, whatever
// the version of their targets. Translating
// them in the kernel would need route_localnet, which lets neighbours on the
// LAN reach what listens on loopback only (CVE-2020-8558).
//
// With a Keeper sockets and connections outlive the process, see handover.go.
type loopback struct {
	log  *slog.Logger
	io   LoopbackIO
	keep *kept

	mu     sync.Mutex
	want   []Publish
	open   map[Target]*forwarder
	failed map[Target]string
	freed  time.Time // when a port was last given up: others may still hold it for a moment
	wg     sync.WaitGroup
}

func newLoopback(log *slog.Logger, dial LoopbackIO, k Keeper) *loopback {
	if dial == nil {
		dial = processIO{}
	}
	return &loopback{log: log, io: dial, keep: newKept(log, k), open: make(map[Target]*forwarder), failed: make(map[Target]string)}
}

// forwarder is one listening port.
type forwarder struct {
	at     netip.AddrPort
	target netip.AddrPort
	socket portSocket
	ctx    context.Context // of dialing, ends with stop
	cancel context.CancelFunc

	mu    sync.Mutex
	conns map[session]bool
	done  bool
	halts bool // done, and what runs is to go on in the next process
}

// session is what runs through a port.
type session interface {
	Close() error
	// halt makes whoever copies stop. What cannot go on elsewhere it closes.
	halt()
}

// hold registers a session; false: too late.
func (f *forwarder) hold(c session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done {
		f.conns[c] = true
	}
	return !f.done
}

// full reports whether a port has more connections than it may.
func (f *forwarder) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns) >= maxConns
}

func (f *forwarder) halting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.halts
}

func (f *forwarder) drop(c session) {
	c.Close()
	f.forget(c)
}

func (f *forwarder) forget(c session) {
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
}

// stop closes the listener and everything that runs through it.
func (f *forwarder) stop() {
	for _, c := range f.end(false) {
		c.Close()
	}
}

// halt does the same for a process that ends, of which the next one takes over.
func (f *forwarder) halt() {
	for _, c := range f.end(true) {
		c.halt()
	}
}

func (f *forwarder) end(halts bool) []session {
	f.mu.Lock()
	f.done, f.halts = true, halts
	conns := slices.Collect(maps.Keys(f.conns))
	f.mu.Unlock()
	f.cancel()
	f.socket.Close()
	return conns
}

// set makes the open ports those of want. A port that is taken by somebody
// else is reported by problems and tried again by retry.
func (l *loopback) set(want []Publish) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = want
	l.keep.begin(time.Now())
	keep := make(map[Target]netip.AddrPort, len(want))
	implied := make(map[Target]bool, len(want))
	for _, p := range want {
		k := Target{p.HostAddr, p.Proto, p.HostPort}
		keep[k], implied[k] = p.Target, p.Implied
	}
	moved := l.closeOthers(keep)
	for k := range l.failed {
		if !keep[k].IsValid() {
			delete(l.failed, k)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(keep), compareTarget) {
		if l.open[k] != nil {
			continue
		}
		f, err := (*forwarder)(nil), errTooMany
		if len(l.open) < maxOpen {
			f, err = l.start(k, keep[k], moved[k])
			delete(moved, k)
		}
		if err != nil {
			if implied[k] && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
				continue // a host without IPv6
			}
			if _, known := l.failed[k]; !known {
				l.log.Warn("published port is not served on loopback", "addr", k.Addr, "port", k.Port, "err", err)
			}
			l.failed[k] = fmt.Sprintf("publish %s/%s: %v%s", netip.AddrPortFrom(k.Addr, k.Port), protoName(k.Proto), err, fixForPort(err))
			continue
		}
		delete(l.failed, k)
		l.open[k] = f
		for _, r := range l.keep.waiting(k, f.target) {
			l.carry(f, r)
		}
	}
	for _, s := range moved { // too many are open
		s.free()
		s.Close()
		l.keep.release(s.name)
	}
}

// closeOthers closes the ports that are not open as keep says. Of those that
// have another target now it returns the sockets: a client that connects
// meanwhile waits.
func (l *loopback) closeOthers(keep map[Target]netip.AddrPort) (moved map[Target]portSocket) {
	moved = make(map[Target]portSocket)
	for k, f := range l.open {
		if keep[k] == f.target {
			continue
		}
		delete(l.open, k)
		if keep[k].IsValid() {
			again, err := f.socket.dup()
			f.stop()
			if err == nil {
				if moved[k], err = again.socket(k); err == nil {
					continue
				}
			}
			l.log.Debug("published port is opened anew on loopback", "addr", k.Addr, "port", k.Port, "err", err)
		} else {
			f.socket.free()
			f.stop()
		}
		l.keep.release(f.socket.name)
		l.freed = time.Now()
	}
	return moved
}

var errTooMany = fmt.Errorf("%d ports are served on loopback already", maxOpen)

func fixForPort(err error) string {
	if errors.Is(err, syscall.EADDRINUSE) {
		return ": stop what listens there, or publish another port"
	}
	return ""
}

// retry opens what could not be opened before.
func (l *loopback) retry() {
	l.mu.Lock()
	want, failed := l.want, len(l.failed)
	l.mu.Unlock()
	if failed > 0 {
		l.set(want)
	}
}

// tend does what time asks for.
func (l *loopback) tend(now time.Time) {
	if l.keep.giveUp(now) {
		l.mu.Lock()
		l.freed = now
		l.mu.Unlock()
	}
	l.mu.Lock()
	soon := now.Sub(l.freed) < freedWithin
	l.mu.Unlock()
	if soon {
		l.retry()
	}
}

// problems lists the ports that could not be opened, one line each.
func (l *loopback) problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]string, 0, len(l.failed))
	for _, s := range l.failed {
		out = append(out, s)
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}

// close stops everything, waits for it, and leaves what the next process can
// go on with.
func (l *loopback) close() {
	l.mu.Lock()
	open := l.open
	l.want, l.open = nil, make(map[Target]*forwarder)
	l.mu.Unlock()
	for _, f := range open {
		if l.keep.k == nil {
			f.stop()
		} else {
			f.halt()
		}
	}
	l.wg.Wait()
	l.keep.handOver()
}

// start serves a port, by the socket that it had where there is one.
func (l *loopback) start(k Target, target netip.AddrPort, had portSocket) (f *forwarder, err error) {
	s := had
	if !s.isOpen() {
		if s, err = l.keep.take(k); err != nil {
			return nil, err
		}
	}
	if !s.isOpen() {
		if s, err = l.listen(k); err != nil {
			return nil, err
		}
		s.name = l.keep.add(k, s)
	}
	f = &forwarder{at: netip.AddrPortFrom(k.Addr, k.Port), target: target, socket: s, conns: make(map[session]bool)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	if s.pc != nil {
		l.wg.Go(func() { l.serveUDP(f, s.pc) })
	} else {
		l.wg.Go(func() { l.serveTCP(f, s.ln) })
	}
	return f, nil
}

func (l *loopback) listen(k Target) (s portSocket, err error) {
	at := netip.AddrPortFrom(k.Addr, k.Port).String()
	if k.Proto == UDP {
		s.pc, err = l.io.ListenPacket(network("udp", k.Addr), at)
	} else {
		s.ln, err = l.io.Listen(network("tcp", k.Addr), at)
	}
	return s, err
}

// network is how package net calls a protocol over the version of an address.
func network(proto string, a netip.Addr) string {
	if versionOf(a) == V6 {
		return proto + "6"
	}
	return proto + "4"
}

func (l *loopback) serveTCP(f *forwarder, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely
			time.Sleep(10 * time.Millisecond)
			continue
		}
		client, ok := c.(duplex)
		if !ok || f.full() {
			resetOnClose(c)
			c.Close()
			continue
		}
		l.carry(f, &relay{at: f.at, to: f.target, client: client})
	}
}

// carry begins a connection: one just accepted, or one that the process before
// left, whose target may have been reached already.
func (l *loopback) carry(f *forwarder, r *relay) {
	switch {
	case f.hold(r):
		l.wg.Go(func() { l.run(f, r) })
	case f.halting():
		l.keep.leave(r)
	default:
		r.Close()
	}
}

func (l *loopback) run(f *forwarder, r *relay) {
	if r.target == nil {
		up, err := l.io.Dial(f.ctx, network("tcp", f.target.Addr()), f.target.String())
		target, ok := up.(duplex)
		switch {
		case err != nil && f.halting():
			f.forget(r)
			l.keep.leave(r)
			return
		case err != nil || !ok:
			resetOnClose(r.client)
			f.drop(r)
			return
		case !r.join(target):
			f.forget(r)
			return
		}
	}
	r.run()
	if f.halting() && r.lives() {
		f.forget(r)
		l.keep.leave(r)
		return
	}
	f.drop(r)
}

// resetOnClose makes the end of a connection a reset, as the kernel's path would give.
func resetOnClose(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}
