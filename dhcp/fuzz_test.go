package dhcp

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// oneLease is a Leases that grants everything and keeps nothing.
type oneLease struct{ lease Lease }

func (o oneLease) Offer(context.Context, string, Client) (Lease, error) { return o.lease, nil }

func (o oneLease) Commit(_ context.Context, _ string, _ Client, addr netip.Addr, _ time.Duration) (Lease, error) {
	if addr != o.lease.Addr {
		return Lease{}, ErrNotYours
	}
	return o.lease, nil
}

func (o oneLease) Release(context.Context, string, Client, netip.Addr) error { return nil }
func (o oneLease) Decline(context.Context, string, Client, netip.Addr) error { return nil }
func (o oneLease) Lookup(context.Context, string, Client) (Lease, bool)      { return o.lease, true }

// FuzzHandle: whatever comes off the wire, the server does not fail, and what
// it sends is a message that parses, is short enough and goes somewhere.
func FuzzHandle(f *testing.F) {
	for _, m := range []*dhcpv4.DHCPv4{
		msg(dhcpv4.MessageTypeDiscover, macA, ask(1, 3, 6, 12, 15, 119, 121), hostname("vm1")),
		msg(dhcpv4.MessageTypeRequest, macA, serverID(gateway), requested(ip("192.0.2.10"))),
		msg(dhcpv4.MessageTypeRequest, macA, ciaddr(ip("192.0.2.99"))),
		msg(dhcpv4.MessageTypeRequest, macA, giaddr("192.0.2.3"), option(82, 5, 4, 192, 0, 2, 0, 11, 4, 192, 0, 2, 3), requested(ip("192.0.2.99"))),
		msg(dhcpv4.MessageTypeInform, macA, ciaddr(ip("192.0.2.10")), option(81, 4, 0, 0, 3, 'v', 'm', '7')),
		msg(dhcpv4.MessageTypeDiscover, macA, option(57, 2, 64), clientID("\x00x"), option(80)),
		msg(dhcpv4.MessageTypeDecline, macA, requested(ip("192.0.2.10"))),
		msg(dhcpv4.MessageTypeRelease, macA, ciaddr(ip("192.0.2.10"))),
	} {
		f.Add(buildPacket(netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), m.ToBytes()))
	}
	s := &Scope{Network: "pods", Device: "br", ServerID: gateway, Routers: []netip.Addr{gateway}, Prefix: podsNet, RapidCommit: true,
		DNS: []netip.Addr{gateway}, Search: []string{"cluster.local"}, Domain: "cluster.local", MTU: 1450}
	now := time.Unix(1_800_000_000, 0)
	leases := oneLease{Lease{Addr: ip("192.0.2.10"), Expires: now.Add(time.Hour)}}
	f.Fuzz(func(t *testing.T, b []byte) {
		src, _, payload, err := parsePacket(b, true)
		if err != nil {
			payload = b // the message alone deserves a try as well
		}
		m, err := dhcpv4.FromBytes(payload)
		if err != nil {
			return
		}
		scopeFor(s, []*Scope{s}, m)
		out := handle(t.Context(), s, leases, &inbound{msg: m, mac: macA, src: src}, now)
		if out.action == "" {
			t.Fatal("no action")
		}
		if out.reply == nil {
			return
		}
		wire := out.reply.ToBytes()
		if _, err := dhcpv4.FromBytes(wire); err != nil {
			t.Fatalf("own reply: %v", err)
		}
		// Options 61 and 82 go back whatever their length; a client that
		// sends them accepts them.
		if n := len(wire) - len(m.Options.Get(dhcpv4.OptionClientIdentifier)) - len(m.Options.Get(dhcpv4.OptionRelayAgentInformation)); n > maxPacket {
			t.Fatalf("reply of %d bytes", n)
		}
		if !out.to.addr.IsValid() || !out.to.addr.Addr().Is4() {
			t.Fatalf("reply to %v", out.to.addr)
		}
		buildPacket(netip.AddrPortFrom(gateway, serverPort), out.to.addr, wire)
	})
}

func TestPacket(t *testing.T) {
	from, to := netip.MustParseAddrPort("192.0.2.10:68"), netip.MustParseAddrPort("192.0.2.1:67")
	for _, n := range []int{0, 1, 300, 1371} {
		payload := bytes.Repeat([]byte{0xa5}, n)
		b := buildPacket(from, to, payload)
		src, dst, got, err := parsePacket(b, false)
		if err != nil || src != from.Addr() || dst != to.Addr() || !bytes.Equal(got, payload) {
			t.Fatalf("%d bytes: %v %v %d bytes, %v", n, src, dst, len(got), err)
		}
		// Ethernet pads short frames.
		if _, _, got, err := parsePacket(append(bytes.Clone(b), 0, 0, 0), false); err != nil || len(got) != n {
			t.Errorf("%d bytes, padded: %d, %v", n, len(got), err)
		}
	}
	good := buildPacket(from, to, []byte("payload"))
	for name, spoil := range map[string]func(b []byte) []byte{
		"truncated":       func(b []byte) []byte { return b[:len(b)-1] },
		"no header":       func(b []byte) []byte { return b[:19] },
		"IPv6":            func(b []byte) []byte { b[0] = 0x65; return b },
		"header length":   func(b []byte) []byte { b[0] = 0x44; return b },
		"header checksum": func(b []byte) []byte { b[8]--; return b },
		"UDP checksum":    func(b []byte) []byte { b[len(b)-1]++; return b },
	} {
		if _, _, _, err := parsePacket(spoil(bytes.Clone(good)), false); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	bad := bytes.Clone(good)
	bad[len(bad)-1]++
	if _, _, _, err := parsePacket(bad, true); err != nil {
		t.Errorf("a checksum that the kernel vouches for was looked at: %v", err)
	}
	if _, _, _, err := parsePacket(buildPacket(to, from, nil), false); err == nil {
		t.Error("another port: accepted")
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter(testSeed)
	now := time.Now()
	count := func(client string, at time.Time) int {
		n := 0
		for range 100 {
			if l.allow([]byte(client), at) {
				n++
			}
		}
		return n
	}
	if n := count("flood", now); n != limitBurst {
		t.Errorf("burst of %d, want %d", n, limitBurst)
	}
	if n := count("other", now); n != limitBurst {
		t.Errorf("another client got %d, want %d", n, limitBurst)
	}
	if n := count("flood", now.Add(time.Second)); n < limitRate-1 || n > limitRate+1 {
		t.Errorf("%d after a second, want %d", n, limitRate)
	}
}

func TestScopeErrors(t *testing.T) {
	s, err := New(Options{Leases: oneLease{}})
	if err != nil {
		t.Fatal(err)
	}
	good := Scope{Network: "pods", Device: "nnt-dhcp-none", ServerID: gateway, Prefix: podsNet}
	twice, noID, noPrefix, noDevice := good, good, good, good
	twice.Network, noID.Network, noPrefix.Network, noDevice.Network = "twice", "noid", "noprefix", "nodevice"
	noID.ServerID, noID.Device = netip.Addr{}, "b"
	noPrefix.Prefix, noPrefix.Device = netip.Prefix{}, "c"
	noDevice.Device = ""
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.Set(Scopes{Rev: 7, List: []Scope{good, twice, noID, noPrefix, noDevice}})
	st := waitStatus(t, s, func(st Status) bool { return st.Error != "" && st.Detail != "pods: opening nnt-dhcp-none" })
	if st.OK || st.Desired != 7 || st.Applied != 0 || st.Detail != "pods: not served" || st.Fix == "" {
		t.Errorf("%+v", st)
	}
	for _, want := range []string{"network twice", "network noid", "network noprefix", "network nodevice", "find bridge nnt-dhcp-none"} {
		if !bytes.Contains([]byte(st.Error), []byte(want)) {
			t.Errorf("error %q does not mention %q", st.Error, want)
		}
	}
	s.Set(Scopes{Rev: 8})
	st = waitStatus(t, s, func(st Status) bool { return st.Applied == 8 })
	if !st.OK || st.Error != "" || st.Detail != "no network has dhcp" {
		t.Errorf("%+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// waitStatus waits until the server says what is wanted.
func waitStatus(t *testing.T, s *Server, ok func(Status) bool) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		st := s.Status()
		if ok(st) {
			return st
		}
		select {
		case <-ctx.Done():
			t.Fatalf("status stays %+v", st)
		case <-tick.C:
		}
	}
}
