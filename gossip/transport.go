package gossip

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's own with a gate before its streams, for each of
// which memberlist starts a goroutine, and the seam for tests in it. memberlist itself
// gives a stream 4 probe intervals in all.
type transport struct {
	*memberlist.NetTransport
	allow   func(netip.Addr) bool
	gate    *gate
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func newTransport(nt *memberlist.NetTransport, allow func(netip.Addr) bool, g *gate) *transport {
	t := &transport{NetTransport: nt, allow: allow, gate: g, streams: make(chan net.Conn), done: make(chan struct{})}
	go t.admit()
	return t
}

// admit passes streams on to memberlist.
func (t *transport) admit() {
	for {
		var c net.Conn
		select {
		case c = <-t.NetTransport.StreamCh():
		case <-t.done:
			return
		}
		p := t.gate.admit(c, remoteIP(c))
		if p == nil {
			c.Close()
			continue
		}
		gc := &gatedConn{Conn: c, pass: p, left: memberBytesEarly}
		if p.trusted {
			gc.left = memberBytes
		}
		select {
		case t.streams <- gc:
		case <-t.done:
			gc.Close()
			return
		}
	}
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport. The listeners first: they wait
// until somebody takes what they have accepted.
func (t *transport) Shutdown() error {
	err := t.NetTransport.Shutdown()
	t.once.Do(func() { close(t.done) })
	return err
}

func (t *transport) passes(addr string) bool {
	if t.allow == nil {
		return true
	}
	ap, err := netip.ParseAddrPort(addr)
	return err != nil || t.allow(ap.Addr().Unmap())
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if !t.passes(a.Addr) {
		return time.Now(), nil // lost on the way
	}
	return t.NetTransport.WriteToAddress(b, a)
}

func (t *transport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	if !t.passes(a.Addr) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: net.ErrClosed}
	}
	return t.NetTransport.DialAddressTimeout(a, d)
}
