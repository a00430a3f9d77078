package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// listener serves one bridge: it opens the socket as soon as the bridge is
// there, and again after the bridge was made anew.
type listener struct {
	server *Server
	device string
	scope  atomic.Pointer[Scope]
	cancel context.CancelFunc
	done   chan struct{}
	again  chan struct{} // look at the device now

	mu   sync.Mutex
	sock *packetSocket // nil: not listening
	err  error         // why not
	note error         // serving, but something is odd
}

const (
	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

func (s *Server) startListener(ctx context.Context, device string, sc *Scope) *listener {
	ctx, cancel := context.WithCancel(ctx)
	l := &listener{server: s, device: device, cancel: cancel, done: make(chan struct{}), again: make(chan struct{}, 1)}
	l.scope.Store(sc)
	go l.run(ctx)
	return l
}

// stop ends the listener and waits for it.
func (l *listener) stop() {
	l.cancel()
	<-l.done
}

// poke makes the listener compare its socket with the device soon.
func (l *listener) poke() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

func (l *listener) state() (listening bool, err, note error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sock != nil, l.err, l.note
}

// set records a state and logs it when it is news.
func (l *listener) set(sock *packetSocket, err, note error) {
	l.mu.Lock()
	was, wasErr, wasNote := l.sock != nil, l.err, l.note
	l.sock, l.err, l.note = sock, err, note
	l.mu.Unlock()
	log := l.server.log.With("network", l.scope.Load().Network, "device", l.device)
	switch {
	case sock != nil && !was:
		log.Info("dhcp serving")
	case err != nil && (was || wasErr == nil || wasErr.Error() != err.Error()):
		log.Warn("dhcp not serving", "err", err)
	}
	if note != nil && wasNote == nil {
		log.Warn("dhcp serving beside another server", "err", note)
	}
}

func (l *listener) run(ctx context.Context) {
	defer close(l.done)
	wait := retryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := l.listen(ctx)
		if ctx.Err() != nil {
			break
		}
		l.set(nil, err, nil)
		if time.Since(began) > retryMax {
			wait = retryMin // it worked for a while
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
			wait = min(wait*2, retryMax)
		case <-l.again:
			wait = retryMin
		}
		t.Stop()
	}
	l.mu.Lock()
	l.sock = nil
	l.mu.Unlock()
}

// listen serves until something is wrong with the device or ctx ends.
func (l *listener) listen(ctx context.Context) error {
	sock, sink, err := l.open()
	if err != nil {
		return err
	}
	var note error
	switch {
	case sink.err == nil:
		defer unix.Close(sink.fd)
	case errors.Is(sink.err, unix.EADDRINUSE):
		note = fmt.Errorf("another program has UDP port %d on %s", serverPort, l.device)
	default:
		note = sink.err
	}
	// Closing the socket is what ends a blocked read.
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		l.guard(ctx, sock.index)
		sock.close()
	}()
	defer func() { cancel(); <-gone }()
	l.set(sock, nil, note)
	return l.receive(sock)
}

// sinkSocket is the socket of openSink, which is wanted but not needed.
type sinkSocket struct {
	fd  int
	err error
}

func (l *listener) open() (sock *packetSocket, sink sinkSocket, err error) {
	l.server.enter(func() {
		var ifi *net.Interface
		if ifi, err = net.InterfaceByName(l.device); err != nil {
			err = fmt.Errorf("find bridge %s: %w", l.device, err)
			return
		}
		if ifi.Flags&net.FlagUp == 0 {
			err = fmt.Errorf("bridge %s is down", l.device)
			return
		}
		if sock, err = openPacketSocket(ifi.Index); err == nil {
			sink.fd, sink.err = openSink(l.device)
		}
	})
	return sock, sink, err
}

// guard returns when the device is not the one that the socket is bound to
// any more, or ctx ends.
func (l *listener) guard(ctx context.Context, index int) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.again:
			same := false
			l.server.enter(func() {
				ifi, err := net.InterfaceByName(l.device)
				same = err == nil && ifi.Index == index
			})
			if !same {
				return
			}
		}
	}
}

// receive reads until the socket fails: ENETDOWN says that the device went
// down or away.
func (l *listener) receive(sock *packetSocket) error {
	s := l.server
	limit := newLimiter(s.seed)
	buf := make([]byte, 4096)
	for {
		n, mac, checked, err := sock.read(buf)
		if err != nil {
			return fmt.Errorf("receive on %s: %w", l.device, err)
		}
		now := time.Now()
		src, _, payload, err := parsePacket(buf[:n], checked)
		if err != nil || len(payload) < bootpLen || binary.BigEndian.Uint32(payload[236:]) != magicCookie {
			s.drop(l.scope.Load(), dropMalformed)
			continue
		}
		client := payload[28:44] // chaddr
		if !limit.allow(client, now) {
			s.drop(l.scope.Load(), dropRate)
			continue
		}
		j := job{from: l, sock: sock, src: src, mac: mac, payload: slices.Clone(payload), arrived: now}
		if !s.enqueue(j, client) {
			s.drop(l.scope.Load(), dropBusy)
		}
	}
}

const magicCookie = 0x63825363 // RFC 2131 §3

// limiter is a token bucket for each client, in a table of fixed size: a
// sender who makes up addresses costs no memory, and two clients that share a
// bucket are slowed, not refused, because they repeat.
type limiter struct {
	seed    maphash.Seed
	start   time.Time
	buckets []bucket
}

type bucket struct {
	last   time.Duration // since the limiter was made
	tokens float32
}

const (
	limitBuckets = 8192
	limitRate    = 20 // requests a second for one client; a healthy one sends a few a minute
	limitBurst   = 40
)

func newLimiter(seed maphash.Seed) *limiter {
	l := &limiter{seed: seed, start: time.Now(), buckets: make([]bucket, limitBuckets)}
	for i := range l.buckets {
		l.buckets[i].tokens = limitBurst
	}
	return l
}

func (l *limiter) allow(client []byte, now time.Time) bool {
	b := &l.buckets[maphash.Bytes(l.seed, client)%limitBuckets]
	t := now.Sub(l.start)
	b.tokens = min(limitBurst, b.tokens+float32((t-b.last).Seconds()*limitRate))
	b.last = t
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
