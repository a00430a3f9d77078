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

func TestBookGrant(t *testing.T) {
	b := newBed(t)
	addr := b.lease(macA, hostname("VM1.lan"))
	v := b.record(addr)
	if v == nil {
		t.Fatal("no record")
	}
	now := b.clock.Now().Unix()
	if v.MAC != macA.String() || v.Hostname != "vm1" || v.Server != nodeOne || v.Granted != now || v.Expires != now+3600 || v.Declined {
		t.Errorf("record %+v", *v)
	}
	if b.book.Held("pods", addr) {
		t.Error("the offer outlived the lease's grant")
	}

	// Renewal: the end moves, the beginning stays, and so does the name that
	// the client does not repeat.
	b.clock.add(30 * time.Minute)
	if out := b.send(msg(dhcpv4.MessageTypeRequest, macA, ciaddr(addr))); out.action != actAck {
		t.Fatalf("renewal: %s (%v)", out.action, out.err)
	}
	v = b.record(addr)
	if v.Granted != now || v.Expires != now+1800+3600 || v.Hostname != "vm1" {
		t.Errorf("renewed record %+v", *v)
	}
	if n, free := b.book.Usage("pods"); n != 1 || free >= 0 {
		t.Errorf("usage %d, %v, want 1 lease and no word on free addresses", n, free)
	}
	if l, ok := b.book.Lookup(context.Background(), "pods", Client{MAC: macA}); !ok || l.Addr != addr {
		t.Errorf("lookup %v %v", l, ok)
	}
}

func TestBookIdentity(t *testing.T) {
	b := newBed(t)
	one := b.lease(macA, clientID("\x00one"))
	// The identifier is the client, whatever card it uses (RFC 2131 §4.2).
	if got := b.lease(macB, clientID("\x00one")); got != one {
		t.Errorf("same identifier, other card: %s, want %s", got, one)
	}
	two := b.lease(macA, clientID("\x00two"))
	if two == one {
		t.Errorf("two identifiers on one card share %s", one)
	}
	if three := b.lease(macA); three == one || three == two {
		t.Errorf("no identifier: shares %s", three)
	}
}

func TestBookOffers(t *testing.T) {
	b := newBed(t)
	offer := func(mac net.HardwareAddr) netip.Addr {
		t.Helper()
		out := b.send(msg(dhcpv4.MessageTypeDiscover, mac))
		if out.action != actOffer {
			t.Fatalf("%s (%v)", out.action, out.err)
		}
		return addr4(out.reply.YourIPAddr)
	}
	a1, b1 := offer(macA), offer(macB)
	if a1 == b1 {
		t.Fatalf("%s offered to two clients", a1)
	}
	if again := offer(macA); again != a1 {
		t.Errorf("repeated DISCOVER: %s, want %s", again, a1)
	}
	if !b.book.Held("pods", a1) {
		t.Error("an offered address is not held")
	}
	// Another server was chosen: the address is free at once.
	b.send(msg(dhcpv4.MessageTypeRequest, macA, serverID(ip("192.0.2.2")), requested(a1)))
	if b.book.Held("pods", a1) {
		t.Error("a withdrawn offer is held")
	}
	b.clock.add(31 * time.Second)
	if b.book.Held("pods", b1) {
		t.Error("an offer is held beyond its time")
	}
	if len(b.store.Snapshot().Heads()) != 0 || b.store.Snapshot().Rev() > 1 {
		t.Error("offers were written to the tables")
	}
}

// TestBookOfferFlood: clients that are made up do not cost memory without
// bound, and addresses only for as long as an offer is held.
func TestBookOfferFlood(t *testing.T) {
	b := newBed(t)
	next := uint16(0)
	b.book.pick = func(*state.Snapshot, string, Client, func(netip.Addr) bool) (Pick, error) {
		next++
		return Pick{Addr: netip.AddrFrom4([4]byte{10, 0, byte(next >> 8), byte(next)})}, nil
	}
	offer := func(i int) error {
		_, err := b.book.Offer(context.Background(), "pods", Client{MAC: net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}})
		return err
	}
	for i := range maxOffers {
		if err := offer(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := offer(maxOffers); !errors.Is(err, ErrExhausted) {
		t.Errorf("one offer too many: %v", err)
	}
	b.clock.add(DefaultHold)
	if err := offer(maxOffers); err != nil {
		t.Errorf("after the hold: %v", err)
	}
}

func TestBookDecline(t *testing.T) {
	b := newBed(t)
	addr := b.lease(macA)
	b.send(msg(dhcpv4.MessageTypeDecline, macA, requested(addr), serverID(gateway)))
	if v := b.record(addr); v == nil || !v.Declined {
		t.Fatalf("record %+v, want a declined one", v)
	}
	if next := b.lease(macA); next == addr {
		t.Errorf("a declined address was given out again")
	}
	if out := b.send(msg(dhcpv4.MessageTypeRequest, macB, requested(addr))); out.action != actNak {
		t.Errorf("quarantined address: %s, want a NAK", out.action)
	}
	if n, _ := b.book.Usage("pods"); n != 1 {
		t.Errorf("%d leases, want 1: a quarantined address is none", n)
	}
	b.clock.add(DefaultQuarantine + time.Second)
	if n, err := b.book.Sweep(context.Background()); n != 1 || err != nil {
		t.Errorf("sweep: %d, %v, want the quarantine's end", n, err)
	}
	if next := b.lease(macB); next != addr {
		t.Errorf("after quarantine: %s, want %s", next, addr)
	}
}

func TestBookRelease(t *testing.T) {
	b := newBed(t)
	addr := b.lease(macA)
	b.send(msg(dhcpv4.MessageTypeRelease, macA, ciaddr(addr), serverID(gateway)))
	if b.record(addr) != nil {
		t.Error("the record is still there")
	}
	if n, _ := b.book.Usage("pods"); n != 0 {
		t.Errorf("%d leases", n)
	}
	if got := b.lease(macB); got != addr {
		t.Errorf("a released address is not free: %s", got)
	}
}

func TestBookSweep(t *testing.T) {
	b := newBed(t)
	addr := b.lease(macA)
	sweep := func(want int, when string) {
		t.Helper()
		if n, err := b.book.Sweep(context.Background()); n != want || err != nil {
			t.Errorf("%s: %d removed, %v, want %d", when, n, err, want)
		}
	}
	b.clock.add(time.Hour)
	sweep(0, "at expiry")
	b.clock.add(DefaultGrace)
	sweep(1, "after the grace")
	sweep(0, "again")
	if b.record(addr) != nil {
		t.Error("the record is still there")
	}
}

// TestBookMove: a client that moves to a link where its address means nothing
// gets another one, and has one lease only.
func TestBookMove(t *testing.T) {
	b := newBed(t)
	old := b.lease(macA)
	b.scope = &Scope{Network: "pods", Device: "br", ServerID: gateway, Prefix: blockTwo, Routers: []netip.Addr{gateway}}
	b.book.pick = func(_ *state.Snapshot, _ string, _ Client, held func(netip.Addr) bool) (Pick, error) {
		return Pick{Addr: ip("198.51.100.10")}, nil
	}
	if out := b.send(msg(dhcpv4.MessageTypeRequest, macA, ciaddr(old))); out.action != actNak {
		t.Errorf("renewal elsewhere: %s, want a NAK", out.action)
	}
	if got := b.lease(macA); got != ip("198.51.100.10") {
		t.Errorf("got %s", got)
	}
	if b.record(old) != nil {
		t.Error("the lease before is still there")
	}
	if n, _ := b.book.Usage("pods"); n != 1 {
		t.Errorf("%d leases, want 1", n)
	}
}

// TestBookReplicated: a lease granted by one node is known to, and renewed by,
// another; and its removal is left to its server first.
func TestBookReplicated(t *testing.T) {
	c := newClock()
	one, two := newBedFor(t, nodeOne, c), newBedFor(t, nodeTwo, c)
	pass := func(from, to *bed) {
		t.Helper()
		var recs []state.Record
		for i := range state.NumBuckets {
			recs = append(recs, from.store.Snapshot().Bucket(i)...)
		}
		if _, err := to.store.Merge(recs, true); err != nil {
			t.Fatal(err)
		}
	}
	addr := one.lease(macA, hostname("vm1"))
	pass(one, two)
	if got := two.lease(macB); got == addr {
		t.Fatalf("%s given to two clients", got)
	}
	c.add(10 * time.Minute)
	if out := two.send(msg(dhcpv4.MessageTypeRequest, macA, ciaddr(addr))); out.action != actAck {
		t.Fatalf("renewal at the other node: %s (%v)", out.action, out.err)
	}
	pass(two, one)
	if v := one.record(addr); v.Server != nodeTwo || v.Hostname != "vm1" || v.Expires != c.Now().Unix()+3600 {
		t.Errorf("after renewal: %+v", *v)
	}
	if l, ok := one.book.Lookup(context.Background(), "pods", Client{MAC: macA}); !ok || l.Addr != addr {
		t.Errorf("lookup at the first node: %v %v", l, ok)
	}
	c.add(time.Hour + DefaultGrace)
	if n, _ := one.book.Sweep(context.Background()); n != 0 {
		t.Errorf("removed %d leases of another server within its time", n)
	}
	c.add(DefaultForeignGrace)
	if n, _ := one.book.Sweep(context.Background()); n != 2 {
		t.Errorf("removed %d leases of a silent server, want 2", n)
	}
	// Leases there from the start are known, too.
	if got := NewBook(two.store, two.pick); len(got.leases) != 2 {
		t.Errorf("a new book knows %d leases, want 2", len(got.leases))
	}
}

// TestBookDurable: no ACK before the disk has the lease, and a failure leaves
// nothing behind.
func TestBookDurable(t *testing.T) {
	b := newBed(t)
	addr := addr4(b.send(msg(dhcpv4.MessageTypeDiscover, macA)).reply.YourIPAddr)
	b.disk.set(errDisk)
	ctx := context.Background()
	if _, err := b.book.Commit(ctx, "pods", Client{MAC: macA}, addr, time.Hour); !errors.Is(err, errDisk) {
		t.Fatalf("commit on a full disk: %v", err)
	}
	if _, ok := b.book.Lookup(ctx, "pods", Client{MAC: macA}); ok {
		t.Error("a lease exists that was never written")
	}
	if n, _ := b.book.Usage("pods"); n != 0 {
		t.Errorf("%d leases counted, none written", n)
	}
	b.disk.set(nil)
	if _, err := b.book.Commit(ctx, "pods", Client{MAC: macA}, addr, time.Hour); err != nil {
		t.Errorf("the same request after the disk recovered: %v", err)
	}
}

// TestBookConcurrent: many clients at once, each with repeats, and never one
// address for two of them.
func TestBookConcurrent(t *testing.T) {
	b := newBed(t)
	const clients = 80
	got := make([]netip.Addr, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			c := Client{MAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}, OnLink: []netip.Prefix{podsNet}}
			for range 3 {
				l, err := b.book.Offer(context.Background(), "pods", c)
				if err == nil {
					l, err = b.book.Commit(context.Background(), "pods", c, l.Addr, time.Hour)
				}
				if err != nil || got[i].IsValid() && got[i] != l.Addr {
					t.Errorf("client %d: %v (had %v), %v", i, l.Addr, got[i], err)
				}
				got[i] = l.Addr
			}
		})
	}
	wg.Wait()
	seen := make(map[netip.Addr]int)
	for i, a := range got {
		if j, dup := seen[a]; dup {
			t.Errorf("%s for clients %d and %d", a, i, j)
		}
		seen[a] = i
	}
	if n, _ := b.book.Usage("pods"); n != clients {
		t.Errorf("%d leases, want %d", n, clients)
	}
}

// TestBookDistrustsPick: an allocator that returns a leased address is an
// error, not a duplicate.
func TestBookDistrustsPick(t *testing.T) {
	b := newBed(t)
	addr := b.lease(macA)
	b.book.pick = func(*state.Snapshot, string, Client, func(netip.Addr) bool) (Pick, error) {
		return Pick{Addr: addr}, nil
	}
	if out := b.send(msg(dhcpv4.MessageTypeDiscover, macB)); out.action != dropFault {
		t.Errorf("%s, want a fault", out.action)
	}
}

func BenchmarkLease(b *testing.B) {
	store, err := state.NewStore(state.Options{Self: nodeOne, Epoch: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	next := uint32(0)
	book := NewBook(store, func(_ *state.Snapshot, _ string, c Client, _ func(netip.Addr) bool) (Pick, error) {
		if c.Requested.IsValid() {
			return Pick{Addr: c.Requested}, nil
		}
		next++
		return Pick{Addr: netip.AddrFrom4([4]byte{10, byte(next >> 16), byte(next >> 8), byte(next)})}, nil
	})
	ctx := context.Background()
	i := 0
	for b.Loop() {
		i++
		c := Client{MAC: net.HardwareAddr{2, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}}
		l, err := book.Offer(ctx, "pods", c)
		if err == nil {
			_, err = book.Commit(ctx, "pods", c, l.Addr, time.Hour)
		}
		if err != nil {
			b.Fatal(fmt.Errorf("client %d: %w", i, err))
		}
	}
}
