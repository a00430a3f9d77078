package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"nodenet/state"
)

// The IP plan of the unit tests (RFC 5737):
//
//	network pods  192.0.2.0/24     gateway .1, pool .10 and up
//	second block  198.51.100.0/24  gateway .1
//	elsewhere     203.0.113.0/24
var (
	gateway  = netip.MustParseAddr("192.0.2.1")
	podsNet  = netip.MustParsePrefix("192.0.2.0/24")
	blockTwo = netip.MustParsePrefix("198.51.100.0/24")
	macA     = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	macB     = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
	relayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}
)

const (
	nodeOne = state.NodeID("aaaaaaaaaaaaaaaaaaaaaaaaaa")
	nodeTwo = state.NodeID("qqqqqqqqqqqqqqqqqqqqqqqqqe")
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Unix(1_800_000_000, 0)} }

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) add(d time.Duration) { c.mu.Lock(); c.t = c.t.Add(d); c.mu.Unlock() }

// failLog is a disk that can be full.
type failLog struct {
	mu  sync.Mutex
	err error
}

func (f *failLog) Commit([]state.Record) error { f.mu.Lock(); defer f.mu.Unlock(); return f.err }

func (f *failLog) set(err error) { f.mu.Lock(); f.err = err; f.mu.Unlock() }

// bed is a node's lease book on real tables.
type bed struct {
	t     *testing.T
	clock *clock
	disk  *failLog
	store *state.Store
	book  *Book
	scope *Scope
	size  int                     // of the pool
	cni   map[netip.Addr]struct{} // taken by somebody who is not a client
}

func newBed(t *testing.T) *bed { return newBedFor(t, nodeOne, newClock()) }

func newBedFor(t *testing.T, self state.NodeID, c *clock) *bed {
	t.Helper()
	b := &bed{t: t, clock: c, disk: &failLog{}, size: 100, cni: make(map[netip.Addr]struct{})}
	var err error
	b.store, err = state.NewStore(state.Options{Self: self, Epoch: 1, Log: b.disk, Clock: &state.Clock{Now: c.Now}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.store.Close() })
	b.book = NewBook(b.store, b.pick)
	b.book.Now = c.Now
	b.scope = &Scope{
		Network: "pods", Device: "br", ServerID: gateway, Routers: []netip.Addr{gateway}, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")},
		Prefix: podsNet, Links: []Link{{Prefix: blockTwo, Router: netip.MustParseAddr("198.51.100.1")}}, Domain: "default.svc.cluster.local.",
		Search: []string{"default.svc.cluster.local", "cluster.local"}, MTU: 1450, LeaseTime: time.Hour,
	}
	return b
}

// pick is the least that an allocator may be: the requested address when it
// is free, else the lowest.
func (b *bed) pick(_ *state.Snapshot, _ string, c Client, held func(netip.Addr) bool) (Pick, error) {
	first := netip.MustParseAddr("192.0.2.10")
	free := func(a netip.Addr) bool { _, taken := b.cni[a]; return !taken && !held(a) }
	a := first
	for i := range b.size {
		if i == 0 && c.Requested.IsValid() && !c.Requested.Less(first) && podsNet.Contains(c.Requested) && free(c.Requested) {
			a = c.Requested
			return Pick{Addr: a, Prefix: podsNet, Router: gateway}, nil
		}
		if free(a) {
			return Pick{Addr: a, Prefix: podsNet, Router: gateway}, nil
		}
		a = a.Next()
	}
	return Pick{}, fmt.Errorf("pods has %d addresses: %w", b.size, ErrExhausted)
}

// send gives a message to the server as if it came off the bridge.
func (b *bed) send(m *dhcpv4.DHCPv4) outcome {
	b.t.Helper()
	return b.sendFrom(m, m.ClientHWAddr, addr4(m.ClientIPAddr))
}

func (b *bed) sendFrom(m *dhcpv4.DHCPv4, mac net.HardwareAddr, src netip.Addr) outcome {
	b.t.Helper()
	// Through the codec, as from the wire.
	m, err := dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		b.t.Fatal(err)
	}
	return handle(context.Background(), b.scope, b.book, &inbound{msg: m, mac: mac, src: src}, b.clock.Now())
}

// lease takes a client through DISCOVER and REQUEST.
func (b *bed) lease(mac net.HardwareAddr, mods ...dhcpv4.Modifier) netip.Addr {
	b.t.Helper()
	out := b.send(msg(dhcpv4.MessageTypeDiscover, mac, mods...))
	if out.action != actOffer {
		b.t.Fatalf("DISCOVER of %s: %s (%v), want an offer", mac, out.action, out.err)
	}
	addr := addr4(out.reply.YourIPAddr)
	out = b.send(msg(dhcpv4.MessageTypeRequest, mac, append(mods, serverID(gateway), requested(addr))...))
	if out.action != actAck || addr4(out.reply.YourIPAddr) != addr {
		b.t.Fatalf("REQUEST of %s for %s: %s (%v), want an ACK", mac, addr, out.action, out.err)
	}
	return addr
}

// record returns the lease record of an address, or nil.
func (b *bed) record(a netip.Addr) *state.LeaseValue {
	v, _ := lookup(b.store.Snapshot(), "pods", a)
	return v
}

func msg(t dhcpv4.MessageType, mac net.HardwareAddr, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: mac, TransactionID: dhcpv4.TransactionID{1, 2, 3, 4},
		Options: dhcpv4.Options{}}
	if t != dhcpv4.MessageTypeNone {
		m.UpdateOption(dhcpv4.OptMessageType(t))
	}
	for _, mod := range mods {
		mod(m)
	}
	return m
}

func option(code byte, v ...byte) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), v)) }
}

func serverID(a netip.Addr) dhcpv4.Modifier  { return option(54, a.AsSlice()...) }
func requested(a netip.Addr) dhcpv4.Modifier { return option(50, a.AsSlice()...) }
func hostname(s string) dhcpv4.Modifier      { return option(12, []byte(s)...) }
func clientID(s string) dhcpv4.Modifier      { return option(61, []byte(s)...) }
func ask(codes ...byte) dhcpv4.Modifier      { return option(55, codes...) }

func ciaddr(a netip.Addr) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = a.AsSlice() }
}

func giaddr(s string) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.ParseIP(s).To4() }
}

func broadcastFlag(m *dhcpv4.DHCPv4) { m.SetBroadcast() }

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

var errDisk = errors.New("no space left on device")
