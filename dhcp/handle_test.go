package dhcp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestStates goes through the client states of RFC 2131 §4.3 and what the
// server owes in each.
func TestStates(t *testing.T) {
	const (
		discover = dhcpv4.MessageTypeDiscover
		request  = dhcpv4.MessageTypeRequest
	)
	other := ip("192.0.2.2") // another server
	tests := []struct {
		name   string
		prep   func(b *bed) // what happened before
		typ    dhcpv4.MessageType
		mods   []dhcpv4.Modifier
		want   action
		yiaddr string // of the reply; "": none
		to     string // destination, "" for silence; "mac" ends it when not broadcast
	}{
		{name: "INIT: offer by unicast to the hardware address", typ: discover, want: actOffer, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "INIT: broadcast flag", typ: discover, mods: []dhcpv4.Modifier{broadcastFlag}, want: actOffer, yiaddr: "192.0.2.10", to: "255.255.255.255:68"},
		{name: "INIT: requested address is honoured", typ: discover, mods: []dhcpv4.Modifier{requested(ip("192.0.2.77"))}, want: actOffer, yiaddr: "192.0.2.77", to: "192.0.2.77:68 02:00:00:00:00:0a"},
		{name: "INIT: requested address elsewhere is only a wish", typ: discover, mods: []dhcpv4.Modifier{requested(ip("203.0.113.7"))}, want: actOffer, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "INIT: lease not yet over", prep: func(b *bed) { b.lease(macB); b.lease(macA) }, typ: discover, want: actOffer, yiaddr: "192.0.2.11", to: "192.0.2.11:68 02:00:00:00:00:0a"},
		{name: "INIT: lease over, address not taken since", prep: func(b *bed) { b.lease(macB); b.lease(macA); b.clock.add(62 * time.Minute) }, typ: discover, want: actOffer, yiaddr: "192.0.2.11", to: "192.0.2.11:68 02:00:00:00:00:0a"},
		{name: "INIT: exhausted is silence", prep: func(b *bed) { b.size = 1; b.lease(macB) }, typ: discover, want: dropExhausted},
		{name: "INIT: disk full is silence only where something must be kept", prep: func(b *bed) { b.disk.set(errDisk) }, typ: discover, want: actOffer, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},

		{name: "SELECTING: ours", prep: offered, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.10"))), want: actAck, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "SELECTING: another server's", prep: offered, typ: request, mods: mods(serverID(other), requested(ip("192.0.2.10"))), want: actWithdraw},
		{name: "SELECTING: not what was offered", prep: offered, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.99"))), want: actNak, to: "255.255.255.255:68"},
		{name: "SELECTING: offer has run out", prep: func(b *bed) { offered(b); b.clock.add(31 * time.Second) }, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.10"))), want: actNak, to: "255.255.255.255:68"},
		{name: "SELECTING: offer of another client", prep: func(b *bed) { b.send(msg(discover, macB)) }, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.10"))), want: actNak, to: "255.255.255.255:68"},
		{name: "SELECTING: taken by an attachment meanwhile", prep: func(b *bed) { offered(b); b.cni[ip("192.0.2.10")] = struct{}{} }, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.10"))), want: actNak, to: "255.255.255.255:68"},
		{name: "SELECTING: repeated after the ACK was lost", prep: func(b *bed) { b.lease(macA) }, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.10"))), want: actAck, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "SELECTING: disk full is silence", prep: func(b *bed) { offered(b); b.disk.set(errDisk) }, typ: request, mods: mods(serverID(gateway), requested(ip("192.0.2.10"))), want: dropFault},
		{name: "REQUEST without any address", typ: request, mods: mods(serverID(gateway)), want: dropMalformed},

		{name: "INIT-REBOOT: known", prep: func(b *bed) { b.lease(macA) }, typ: request, mods: mods(requested(ip("192.0.2.10"))), want: actAck, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "INIT-REBOOT: another client's", prep: func(b *bed) { b.lease(macB) }, typ: request, mods: mods(requested(ip("192.0.2.10"))), want: actNak, to: "255.255.255.255:68"},
		{name: "INIT-REBOOT: unknown, authoritative", typ: request, mods: mods(requested(ip("192.0.2.50"))), want: actNak, to: "255.255.255.255:68"},
		{name: "INIT-REBOOT: unknown, not authoritative", prep: polite, typ: request, mods: mods(requested(ip("192.0.2.50"))), want: dropUnknown},
		{name: "INIT-REBOOT: wrong network, not authoritative", prep: polite, typ: request, mods: mods(requested(ip("203.0.113.7"))), want: actNak, to: "255.255.255.255:68"},

		{name: "RENEWING: known", prep: func(b *bed) { b.lease(macA) }, typ: request, mods: mods(ciaddr(ip("192.0.2.10"))), want: actAck, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "REBINDING: broadcast flag does not matter once there is an address", prep: func(b *bed) { b.lease(macA) }, typ: request, mods: mods(ciaddr(ip("192.0.2.10")), broadcastFlag), want: actAck, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "RENEWING: lease over, still the client's", prep: func(b *bed) { b.lease(macA); b.clock.add(61 * time.Minute) }, typ: request, mods: mods(ciaddr(ip("192.0.2.10"))), want: actAck, yiaddr: "192.0.2.10", to: "192.0.2.10:68 02:00:00:00:00:0a"},
		{name: "RENEWING: lease over, somebody else's now", prep: func(b *bed) { b.size = 1; b.lease(macA); b.clock.add(61 * time.Minute); b.lease(macB) }, typ: request, mods: mods(ciaddr(ip("192.0.2.10"))), want: actNak, to: "255.255.255.255:68"},
		{name: "RENEWING: unknown, authoritative", typ: request, mods: mods(ciaddr(ip("192.0.2.10"))), want: actNak, to: "255.255.255.255:68"},
		{name: "REBINDING: unknown, not authoritative", prep: polite, typ: request, mods: mods(ciaddr(ip("192.0.2.10"))), want: dropUnknown},

		{name: "RELEASE", prep: func(b *bed) { b.lease(macA) }, typ: dhcpv4.MessageTypeRelease, mods: mods(ciaddr(ip("192.0.2.10")), serverID(gateway)), want: actRelease},
		{name: "RELEASE of another client's", prep: func(b *bed) { b.lease(macB) }, typ: dhcpv4.MessageTypeRelease, mods: mods(ciaddr(ip("192.0.2.10")), serverID(gateway)), want: dropUnknown},
		{name: "RELEASE to another server", prep: func(b *bed) { b.lease(macA) }, typ: dhcpv4.MessageTypeRelease, mods: mods(ciaddr(ip("192.0.2.10")), serverID(other)), want: dropOther},
		{name: "RELEASE without an address", typ: dhcpv4.MessageTypeRelease, mods: mods(serverID(gateway)), want: dropMalformed},
		{name: "DECLINE", prep: func(b *bed) { b.lease(macA) }, typ: dhcpv4.MessageTypeDecline, mods: mods(requested(ip("192.0.2.10")), serverID(gateway)), want: actDecline},
		{name: "DECLINE of what the client does not have", typ: dhcpv4.MessageTypeDecline, mods: mods(requested(ip("192.0.2.10")), serverID(gateway)), want: dropUnknown},
		{name: "DECLINE to another server", typ: dhcpv4.MessageTypeDecline, mods: mods(requested(ip("192.0.2.10")), serverID(other)), want: dropOther},
		{name: "INFORM", typ: dhcpv4.MessageTypeInform, mods: mods(ciaddr(ip("192.0.2.200"))), want: actAck, to: "192.0.2.200:68 02:00:00:00:00:0a"},
		{name: "INFORM with the broadcast flag", typ: dhcpv4.MessageTypeInform, mods: mods(ciaddr(ip("192.0.2.200")), broadcastFlag), want: actAck, to: "192.0.2.200:68 02:00:00:00:00:0a"},

		{name: "relay: offer", typ: discover, mods: mods(giaddr("192.0.2.3")), want: actOffer, yiaddr: "192.0.2.10", to: "192.0.2.3:67 02:00:00:00:00:fe"},
		{name: "relay: before the broadcast flag", typ: discover, mods: mods(giaddr("192.0.2.3"), broadcastFlag), want: actOffer, yiaddr: "192.0.2.10", to: "192.0.2.3:67 02:00:00:00:00:fe"},
		{name: "relay: NAK", typ: request, mods: mods(giaddr("192.0.2.3"), requested(ip("192.0.2.50"))), want: actNak, to: "192.0.2.3:67 02:00:00:00:00:fe"},

		{name: "BOOTP", typ: dhcpv4.MessageTypeNone, want: dropBOOTP},
		{name: "a server's message", typ: dhcpv4.MessageTypeOffer, want: dropUnsupported},
		{name: "a reply", typ: discover, mods: mods(func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply }), want: dropMalformed},
		{name: "a multicast hardware address", typ: discover, mods: mods(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} }), want: dropMalformed},
		{name: "no hardware address", typ: discover, mods: mods(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = make(net.HardwareAddr, 6) }), want: dropMalformed},
		{name: "not Ethernet: only broadcast reaches it", typ: discover, mods: mods(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = make(net.HardwareAddr, 8); m.HWType = 27 }), want: actOffer, yiaddr: "192.0.2.10", to: "255.255.255.255:68"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			if tt.prep != nil {
				tt.prep(b)
			}
			m := msg(tt.typ, macA, tt.mods...)
			from := m.ClientHWAddr
			if addr4(m.GatewayIPAddr).IsValid() {
				from = relayMAC
			}
			out := b.sendFrom(m, from, addr4(m.ClientIPAddr))
			if out.action != tt.want {
				t.Fatalf("action %q (%v), want %q", out.action, out.err, tt.want)
			}
			to := ""
			if out.reply != nil {
				to = out.to.addr.String()
				if out.to.mac != nil {
					to += " " + out.to.mac.String()
				}
			}
			if to != tt.to {
				t.Errorf("reply to %q, want %q", to, tt.to)
			}
			if out.reply == nil {
				return
			}
			r := out.reply
			if got := strings.TrimPrefix(r.YourIPAddr.String(), "0.0.0.0"); got != tt.yiaddr {
				t.Errorf("yiaddr %q, want %q", got, tt.yiaddr)
			}
			if r.TransactionID != m.TransactionID || !bytes.Equal(r.ClientHWAddr, m.ClientHWAddr) || r.OpCode != dhcpv4.OpcodeBootReply {
				t.Errorf("reply %v does not belong to the request", r)
			}
			if !r.ServerIdentifier().Equal(gateway.AsSlice()) {
				t.Errorf("server identifier %v, want %v", r.ServerIdentifier(), gateway)
			}
			checkTable3(t, tt.typ, r)
		})
	}
}

// checkTable3 holds a reply against RFC 2131 table 3: what it must and must
// not carry.
func checkTable3(t *testing.T, req dhcpv4.MessageType, r *dhcpv4.DHCPv4) {
	t.Helper()
	times := []byte{51, 58, 59}
	has := func(c byte) bool { return r.Options.Has(dhcpv4.GenericOptionCode(c)) }
	switch {
	case r.MessageType() == dhcpv4.MessageTypeNak:
		for _, c := range append(times, 1, 3, 6) {
			if has(c) {
				t.Errorf("a NAK carries option %d", c)
			}
		}
		if addr4(r.GatewayIPAddr).IsValid() && !r.IsBroadcast() {
			t.Error("a NAK through a relay lacks the broadcast flag")
		}
		if addr4(r.ClientIPAddr).IsValid() {
			t.Error("a NAK carries ciaddr")
		}
	case req == dhcpv4.MessageTypeInform:
		for _, c := range times {
			if has(c) {
				t.Errorf("the answer to INFORM carries option %d", c)
			}
		}
	default:
		for _, c := range append(times, 1) {
			if !has(c) {
				t.Errorf("option %d is missing", c)
			}
		}
	}
	for _, c := range []byte{50, 55, 57} {
		if has(c) {
			t.Errorf("a server must not send option %d", c)
		}
	}
}

func mods(m ...dhcpv4.Modifier) []dhcpv4.Modifier { return m }

func offered(b *bed) { b.send(msg(dhcpv4.MessageTypeDiscover, macA)) }

func polite(b *bed) { b.scope.NonAuthoritative = true }

func TestOptions(t *testing.T) {
	tests := []struct {
		name string
		prep func(s *Scope)
		mods []dhcpv4.Modifier
		want map[byte]string // printed bytes; "-": absent
	}{
		{name: "no list: the usual ones", want: map[byte]string{1: "255 255 255 0", 3: "192 0 2 1", 6: "192 0 2 53", 26: "5 170", 28: "192 0 2 255",
			51: "0 0 14 16", 58: "0 0 7 8", 59: "0 0 12 78", 121: "-", 42: "-"}},
		{name: "only what is asked for", mods: mods(ask(3, 12), hostname("VM-One.example.org")), want: map[byte]string{1: "255 255 255 0", 3: "192 0 2 1",
			6: "-", 12: "118 109 45 111 110 101", 15: "-", 28: "-"}},
		{name: "121 holds the default route", mods: mods(ask(3, 121)), want: map[byte]string{3: "192 0 2 1", 121: "0 192 0 2 1"}},
		{name: "121 with further routes", prep: func(s *Scope) {
			s.Routes = []Route{{netip.MustParsePrefix("203.0.113.128/25"), ip("192.0.2.9")}}
		}, mods: mods(ask(121)), want: map[byte]string{121: "25 203 0 113 128 192 0 2 9 0 192 0 2 1"}},
		{name: "no way out", prep: func(s *Scope) { s.Routers = nil }, mods: mods(ask(3, 121), ciaddr(ip("192.0.2.10"))), want: map[byte]string{3: "-", 121: "-"}},
		{name: "domain without its dot", mods: mods(ask(15)), want: map[byte]string{15: fmt.Sprint([]byte("default.svc.cluster.local"))}},
		{name: "client identifier comes back", mods: mods(clientID("\x00one")), want: map[byte]string{61: "0 111 110 101"}},
		{name: "relay information comes back", mods: mods(giaddr("192.0.2.3"), option(82, 1, 2, 0xca, 0xfe)), want: map[byte]string{82: "1 2 202 254"}},
		{name: "relay stands in for the server", mods: mods(giaddr("192.0.2.3"), option(82, 11, 4, 192, 0, 2, 3)), want: map[byte]string{54: "192 0 2 3"}},
		{name: "a shorter lease on request", mods: mods(option(51, 0, 0, 0, 120)), want: map[byte]string{51: "0 0 0 120", 58: "0 0 0 60", 59: "0 0 0 105"}},
		{name: "no longer lease on request", mods: mods(option(51, 255, 255, 255, 255)), want: map[byte]string{51: "0 0 14 16"}},
		{name: "no absurdly short lease", mods: mods(option(51, 0, 0, 0, 1)), want: map[byte]string{51: "0 0 0 60"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			if tt.prep != nil {
				tt.prep(b.scope)
			}
			m := msg(dhcpv4.MessageTypeDiscover, macA, tt.mods...)
			if addr4(m.ClientIPAddr).IsValid() {
				m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeInform))
			}
			out := b.send(m)
			if out.reply == nil {
				t.Fatalf("no reply: %s %v", out.action, out.err)
			}
			// As it goes over the wire.
			r, err := dhcpv4.FromBytes(out.reply.ToBytes())
			if err != nil {
				t.Fatal(err)
			}
			for code, want := range tt.want {
				got := "-"
				if v, ok := r.Options[code]; ok {
					got = strings.Trim(fmt.Sprint([]byte(v)), "[]")
				}
				if want = strings.Trim(want, "[]"); got != want {
					t.Errorf("option %d: %s, want %s", code, got, want)
				}
			}
		})
	}
}

// TestSubnetOfLease: mask and router are those of the block that the address
// lies in.
func TestSubnetOfLease(t *testing.T) {
	b := newBed(t)
	out := b.send(msg(dhcpv4.MessageTypeInform, macA, ciaddr(ip("198.51.100.20"))))
	if r := out.reply.Router(); len(r) != 1 || !r[0].Equal(net.IP{198, 51, 100, 1}) {
		t.Errorf("router %v, want that of the second block", r)
	}
}

func TestRapidCommit(t *testing.T) {
	b := newBed(t)
	b.scope.RapidCommit = true
	if out := b.send(msg(dhcpv4.MessageTypeDiscover, macA)); out.action != actOffer {
		t.Errorf("without option 80: %s, want an offer", out.action)
	}
	out := b.send(msg(dhcpv4.MessageTypeDiscover, macA, option(80)))
	if out.action != actAck || !out.reply.Options.Has(optRapidCommit) {
		t.Fatalf("with option 80: %s, want an ACK with it", out.action)
	}
	if b.record(ip("192.0.2.10")) == nil {
		t.Error("no lease was recorded")
	}
}

// TestFit: a reply is never longer than the client accepts, and loses what
// hurts least.
func TestFit(t *testing.T) {
	b := newBed(t)
	for i := range 20 {
		b.scope.Search = append(b.scope.Search, fmt.Sprintf("department-%02d.a-rather-long-name.example.org", i))
	}
	m := msg(dhcpv4.MessageTypeDiscover, macA, ask(3, 6, 119))
	r := b.send(m).reply
	if n := len(r.ToBytes()); n > 548 || r.Options.Has(dhcpv4.OptionDNSDomainSearchList) {
		t.Errorf("%d bytes with option 119 %v, want at most 548 without", n, r.Options.Has(dhcpv4.OptionDNSDomainSearchList))
	}
	if len(r.Router()) == 0 || len(r.DNS()) == 0 {
		t.Error("router or name servers were shed")
	}
	option(57, 5, 120)(m) // 1400
	r = b.send(m).reply
	wire, err := dhcpv4.FromBytes(r.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	if got := wire.DomainSearch(); got == nil || !slices.Equal(got.Labels, b.scope.Search) {
		t.Errorf("search list %v, want all %d names", got, len(b.scope.Search))
	}
	if got, want := messageLen(r), len(r.ToBytes()); got != want {
		t.Errorf("messageLen %d, encoded %d", got, want)
	}
}

func TestSanitize(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "Web.Example.ORG": "web", "my_vm 1": "my-vm-1", "--x--": "x", "": "", "...": "", "localhost": "", "é": "",
		"win\x00\x00": "win", strings.Repeat("a", 70): strings.Repeat("a", 63), "a\nb": "a-b",
	} {
		if got := sanitize(in); got != want {
			t.Errorf("sanitize(%q) = %q, want %q", in, got, want)
		}
	}
	m := msg(dhcpv4.MessageTypeDiscover, macA, option(81, 4, 0, 0, 3, 'v', 'm', '7', 3, 'o', 'r', 'g', 0))
	if got := hostnameOf(m); got != "vm7" {
		t.Errorf("option 81 in wire form gives %q, want vm7", got)
	}
	m = msg(dhcpv4.MessageTypeDiscover, macA, option(81, 0, 0, 0, 'v', 'm', '8', '.', 'o'))
	if got := hostnameOf(m); got != "vm8" {
		t.Errorf("option 81 as text gives %q, want vm8", got)
	}
}

func TestScopeFor(t *testing.T) {
	own := &Scope{Network: "own", Prefix: podsNet, Links: []Link{{Prefix: blockTwo}}}
	far := &Scope{Network: "far", Prefix: netip.MustParsePrefix("203.0.113.0/25")}
	for name, tt := range map[string]struct {
		m    *dhcpv4.DHCPv4
		want *Scope
	}{
		"direct":              {msg(dhcpv4.MessageTypeDiscover, macA), own},
		"relay on the link":   {msg(dhcpv4.MessageTypeDiscover, macA, giaddr("198.51.100.3")), own},
		"relay elsewhere":     {msg(dhcpv4.MessageTypeDiscover, macA, giaddr("203.0.113.3")), far},
		"relay of nobody":     {msg(dhcpv4.MessageTypeDiscover, macA, giaddr("203.0.113.200")), nil},
		"link selection":      {msg(dhcpv4.MessageTypeDiscover, macA, giaddr("203.0.113.200"), option(82, 5, 4, 203, 0, 113, 0)), far},
		"selection, no relay": {msg(dhcpv4.MessageTypeDiscover, macA, option(82, 5, 4, 203, 0, 113, 0)), own},
	} {
		if got := scopeFor(own, []*Scope{own, far}, tt.m); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
