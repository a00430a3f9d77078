package lb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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
// several network namespaces bring their own.
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
	udpIdle     = 60 * time.Second
	maxUDPFlows = 1024 // a port; more clients than that are not answered
	maxConns    = 1024 // a TCP port; more are reset at once
	maxOpen     = 4096 // ports; of long ranges the rest is not served on loopback
)

// loopback serves published ports on 127.0.0.1 and ::1 from user space, whatever
// the version of their targets. Translating
// them in the kernel would need route_localnet, which lets neighbours on the
// LAN reach what listens on loopback only (CVE-2020-8558).
type loopback struct {
	log *slog.Logger
	io  LoopbackIO

	mu     sync.Mutex
	want   []Publish
	open   map[Target]*forwarder
	failed map[Target]string
	wg     sync.WaitGroup
}

func newLoopback(log *slog.Logger, dial LoopbackIO) *loopback {
	if dial == nil {
		dial = processIO{}
	}
	return &loopback{log: log, io: dial, open: make(map[Target]*forwarder), failed: make(map[Target]string)}
}

// forwarder is one listening port.
type forwarder struct {
	target netip.AddrPort
	close  func()          // stops listening
	ctx    context.Context // of dialing, ends with stop
	cancel context.CancelFunc

	mu    sync.Mutex
	conns map[io.Closer]bool
	done  bool
}

// hold registers a connection; false: too late.
func (f *forwarder) hold(c io.Closer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done {
		f.conns[c] = true
	}
	return !f.done
}

// full reports whether a port has more connections than it may. Each is two
// sockets once its target has answered.
func (f *forwarder) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns) > 2*maxConns
}

func (f *forwarder) drop(c io.Closer) {
	c.Close()
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
}

// stop closes the listener and everything that runs through it.
func (f *forwarder) stop() {
	f.mu.Lock()
	f.done = true
	conns := f.conns
	f.conns = make(map[io.Closer]bool)
	f.mu.Unlock()
	f.cancel()
	f.close()
	for c := range conns {
		c.Close()
	}
}

// set makes the open ports those of want. A port that is taken by somebody
// else is reported by problems and tried again by retry.
func (l *loopback) set(want []Publish) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = want
	keep := make(map[Target]netip.AddrPort, len(want))
	implied := make(map[Target]bool, len(want))
	for _, p := range want {
		k := Target{p.HostAddr, p.Proto, p.HostPort}
		keep[k], implied[k] = p.Target, p.Implied
	}
	for k, f := range l.open {
		if keep[k] != f.target {
			f.stop()
			delete(l.open, k)
		}
	}
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
			f, err = l.start(k, keep[k])
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
	}
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

// close stops everything and waits for it.
func (l *loopback) close() {
	l.set(nil)
	l.wg.Wait()
}

func (l *loopback) start(k Target, target netip.AddrPort) (*forwarder, error) {
	f := &forwarder{target: target, conns: make(map[io.Closer]bool)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	at := netip.AddrPortFrom(k.Addr, k.Port).String()
	if k.Proto == UDP {
		pc, err := l.io.ListenPacket(network("udp", k.Addr), at)
		if err != nil {
			f.cancel()
			return nil, err
		}
		f.close = func() { pc.Close() }
		l.wg.Go(func() { l.serveUDP(f, pc) })
		return f, nil
	}
	ln, err := l.io.Listen(network("tcp", k.Addr), at)
	if err != nil {
		f.cancel()
		return nil, err
	}
	f.close = func() { ln.Close() }
	l.wg.Go(func() { l.serveTCP(f, ln) })
	return f, nil
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
		if !f.hold(c) {
			c.Close()
			return
		}
		if f.full() {
			resetOnClose(c)
			f.drop(c)
			continue
		}
		l.wg.Go(func() {
			defer f.drop(c)
			up, err := l.io.Dial(f.ctx, network("tcp", f.target.Addr()), f.target.String())
			if err != nil {
				resetOnClose(c)
				return
			}
			if !f.hold(up) {
				up.Close()
				return
			}
			defer f.drop(up)
			var back sync.WaitGroup
			back.Go(func() { pipe(c, up) })
			pipe(up, c)
			back.Wait()
		})
	}
}

// resetOnClose makes the end of a connection a reset, as the kernel's path would give.
func resetOnClose(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

// pipe copies one direction and passes the end of it on.
func pipe(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if t, ok := dst.(*net.TCPConn); ok && err == nil {
		_ = t.CloseWrite()
		return
	}
	dst.Close()
	src.Close()
}

// serveUDP keeps one socket a client, which its answers come back by.
func (l *loopback) serveUDP(f *forwarder, pc net.PacketConn) {
	var mu sync.Mutex
	flows := make(map[string]net.Conn)
	buf := make([]byte, 65535)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // ICMP errors of earlier answers
		}
		mu.Lock()
		up, full := flows[from.String()], len(flows) >= maxUDPFlows
		mu.Unlock()
		if up == nil {
			if full {
				continue
			}
			if up, err = l.io.Dial(f.ctx, network("udp", f.target.Addr()), f.target.String()); err != nil {
				continue
			}
			if !f.hold(up) {
				up.Close()
				return
			}
			mu.Lock()
			flows[from.String()] = up
			mu.Unlock()
			l.wg.Go(func() {
				answerUDP(pc, from, up)
				mu.Lock()
				delete(flows, from.String())
				mu.Unlock()
				f.drop(up)
			})
		}
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = up.Write(buf[:n]) // lost like any datagram
	}
}

// answerUDP returns answers to a client until the flow is idle or refused.
func answerUDP(pc net.PacketConn, to net.Addr, up net.Conn) {
	buf := make([]byte, 65535)
	for {
		_ = up.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		if _, err := pc.WriteTo(buf[:n], to); err != nil {
			return
		}
	}
}
