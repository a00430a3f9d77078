package announce

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The LAN of these tests: external address 192.0.2.200 and 2001:db8::200, this
// node 02:…:01, an asker 192.0.2.9 and 2001:db8::9 at 02:…:09.
var (
	ext4, ext6     = netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::200")
	asker4, asker6 = netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
	own6           = netip.MustParseAddr("fe80::1")
	nodeMAC        = MAC{2, 0, 0, 0, 0, 1}
	askerMAC       = MAC{2, 0, 0, 0, 0, 9}
)

var cmpMessage = cmp.Options{cmp.AllowUnexported(message{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

func TestFramesARP(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    Frame
		to   MAC
		want string // hexadecimal
	}{
		{"probe", probe(ext4, nodeMAC), broadcast,
			"0001 0800 06 04 0001 020000000001 00000000 000000000000 c00002c8"},
		{"answer", answer(&message{addr: ext4, from: asker4, mac: askerMAC}, nodeMAC, own6), askerMAC,
			"0001 0800 06 04 0002 020000000001 c00002c8 020000000009 c0000209"},
		{"answer to a probe", answer(&message{addr: ext4, mac: askerMAC}, nodeMAC, own6), askerMAC,
			"0001 0800 06 04 0002 020000000001 c00002c8 020000000009 00000000"},
		{"announcement, request", announcement(ext4, nodeMAC, own6)[0], broadcast,
			"0001 0800 06 04 0001 020000000001 c00002c8 000000000000 c00002c8"},
		{"announcement, reply", announcement(ext4, nodeMAC, own6)[1], broadcast,
			"0001 0800 06 04 0002 020000000001 c00002c8 ffffffffffff c00002c8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.f.Proto != etherARP || tt.f.To != tt.to {
				t.Errorf("type %#x to %s, want ARP to %s", tt.f.Proto, tt.f.To, tt.to)
			}
			if diff := cmp.Diff(strings.ReplaceAll(tt.want, " ", ""), hex.EncodeToString(tt.f.Payload)); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFramesND(t *testing.T) {
	const (
		header  = "60000000 0018 3a ff"
		header8 = "60000000 0020 3a ff"
		zero    = "00000000000000000000000000000000"
		ext     = "20010db8000000000000000000000200"
		asker   = "20010db8000000000000000000000009"
		local   = "fe800000000000000000000000000001"
		group   = "ff0200000000000000000001ff000200"
		all     = "ff020000000000000000000000000001"
	)
	for _, tt := range []struct {
		name string
		f    Frame
		to   string
		want string // the checksum as ....
	}{
		{"probe", probe(ext6, nodeMAC), "33:33:ff:00:02:00", header + zero + group + "87 00 .... 00000000" + ext},
		{"answer", answer(&message{addr: ext6, from: asker6, mac: askerMAC}, nodeMAC, own6), askerMAC.String(),
			header8 + local + asker + "88 00 .... 60000000" + ext + "0201020000000001"},
		{"answer to a probe", answer(&message{addr: ext6, mac: askerMAC}, nodeMAC, own6), "33:33:00:00:00:01",
			header8 + local + all + "88 00 .... 20000000" + ext + "0201020000000001"},
		{"announcement without a link-local address", announcement(ext6, nodeMAC, netip.Addr{})[0], "33:33:00:00:00:01",
			header8 + ext + all + "88 00 .... 20000000" + ext + "0201020000000001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.f.Proto != etherIPv6 || tt.f.To.String() != tt.to {
				t.Errorf("type %#x to %s, want IPv6 to %s", tt.f.Proto, tt.f.To, tt.to)
			}
			if sum := checksum(tt.f.Payload); sum != 0xffff {
				t.Errorf("checksum sums up to %#x, want 0xffff", sum)
			}
			got := hex.EncodeToString(tt.f.Payload)
			got = got[:84] + "...." + got[88:]
			if diff := cmp.Diff(strings.ReplaceAll(tt.want, " ", ""), got); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
		})
	}
}

// TestChecksum compares with one that was computed by hand: the solicitation
// fe80::1 → ff02::1:ff00:2 for fe80::2 without options.
func TestChecksum(t *testing.T) {
	a, b := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
	f := nd(a, solicitedNode(b), MAC{}, typeSolicitation, 0, b, 0, MAC{})
	// fe80+1 + ff02+1+ff00+2 + 18 + 3a + 8700 + fe80+2 = 4825a, folded 825e, inverted
	if got := hex.EncodeToString(f.Payload[42:44]); got != "7da1" {
		t.Errorf("checksum %s, want 7da1", got)
	}
}

func TestParse(t *testing.T) {
	arpOf := func(change func(b []byte)) Frame {
		f := arp(1, askerMAC, asker4, MAC{}, ext4, broadcast)
		change(f.Payload)
		return f
	}
	ndOf := func(change func(b []byte)) Frame {
		f := nd(asker6, solicitedNode(ext6), MAC{}, typeSolicitation, 0, ext6, optSource, askerMAC)
		change(f.Payload)
		f.Payload[42], f.Payload[43] = 0, 0
		sum := ^checksum(f.Payload)
		f.Payload[42], f.Payload[43] = byte(sum>>8), byte(sum)
		return f
	}
	same := func([]byte) {}
	padded := arpOf(same)
	padded.Payload = append(padded.Payload, make([]byte, 18)...)
	bad := nd(asker6, solicitedNode(ext6), MAC{}, typeSolicitation, 0, ext6, optSource, askerMAC)
	bad.Payload[43] ^= 1
	plain := nd(asker6, solicitedNode(ext6), MAC{}, typeSolicitation, 0, ext6, 0, MAC{})
	plain.From = nodeMAC
	solicitedToAll := nd(asker6, allNodes, MAC{}, typeAdvertisement, flagSolicited, ext6, optTarget, askerMAC)
	for _, tt := range []struct {
		name string
		f    Frame
		want message
		err  string
	}{
		{"ARP request", arpOf(same), message{addr: ext4, from: asker4, mac: askerMAC}, ""},
		{"padded to the shortest frame", padded, message{addr: ext4, from: asker4, mac: askerMAC}, ""},
		{"ARP probe", probe(ext4, askerMAC), message{addr: ext4, mac: askerMAC}, ""},
		{"ARP reply", arp(2, askerMAC, ext4, nodeMAC, asker4, nodeMAC), message{tell: true, addr: ext4, mac: askerMAC}, ""},
		{"gratuitous request", announcement(ext4, askerMAC, own6)[0], message{addr: ext4, from: ext4, mac: askerMAC}, ""},
		{"cut short", Frame{Proto: etherARP, Payload: padded.Payload[:27]}, message{}, "neither"},
		{"reverse ARP", arpOf(func(b []byte) { b[7] = 3 }), message{}, "operation 3"},
		{"not Ethernet", arpOf(func(b []byte) { b[1] = 6 }), message{}, "neither"},
		{"longer addresses than there is room for", arpOf(func(b []byte) { b[4] = 255 }), message{}, "neither"},
		{"a group as sender", arpOf(func(b []byte) { b[8] = 1 }), message{}, "not a station's"},
		{"about nothing", arp(2, askerMAC, netip.IPv4Unspecified(), nodeMAC, asker4, nodeMAC), message{}, "0.0.0.0"},

		{"solicitation", ndOf(same), message{addr: ext6, from: asker6, mac: askerMAC}, ""},
		{"solicitation without option", plain, message{addr: ext6, from: asker6, mac: nodeMAC}, ""},
		{"duplicate address detection", Frame{Proto: etherIPv6, From: askerMAC, Payload: probe(ext6, askerMAC).Payload}, message{addr: ext6, mac: askerMAC}, ""},
		{"advertisement", announcement(ext6, askerMAC, own6)[0], message{tell: true, addr: ext6, mac: askerMAC}, ""},
		{"hop limit", ndOf(func(b []byte) { b[7] = 254 }), message{}, "hop limit 254"},
		{"checksum", bad, message{}, "checksum"},
		{"code", ndOf(func(b []byte) { b[41] = 1 }), message{}, "code"},
		{"router solicitation", ndOf(func(b []byte) { b[40] = 133 }), message{}, "neither"},
		{"about a group", ndOf(func(b []byte) { b[48] = 0xff }), message{}, "about ff"},
		{"option of no length", ndOf(func(b []byte) { b[65] = 0 }), message{}, "option of 0 bytes"},
		{"option beyond the end", ndOf(func(b []byte) { b[65] = 2 }), message{}, "option of 16 bytes"},
		{"longer than the packet", ndOf(func(b []byte) { b[5] = 40 }), message{}, "header says 40"},
		{"solicited, to all", solicitedToAll, message{}, "sent to all"},
		{"IPv4", Frame{Proto: 0x0800, Payload: make([]byte, 100)}, message{}, "neither"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(&tt.f)
			switch {
			case tt.err == "" && err != nil:
				t.Fatal(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tt.want, got, cmpMessage); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, x := range []Frame{
		probe(ext4, nodeMAC), announcement(ext4, nodeMAC, own6)[1], arp(1, askerMAC, asker4, MAC{}, ext4, broadcast),
		probe(ext6, nodeMAC), announcement(ext6, nodeMAC, own6)[0],
		nd(asker6, solicitedNode(ext6), MAC{}, typeSolicitation, 0, ext6, optSource, askerMAC),
	} {
		f.Add(x.Proto, x.Payload)
	}
	f.Fuzz(func(t *testing.T, proto uint16, b []byte) {
		m, err := parse(&Frame{Proto: proto, From: askerMAC, Payload: b})
		if err != nil {
			return
		}
		if !m.addr.IsValid() || m.addr.IsUnspecified() || m.addr.IsMulticast() && m.addr.Is6() || !m.mac.usable() {
			t.Fatalf("accepted %+v", m)
		}
		// What is said in answer is understood by whoever asked.
		if m.tell {
			return
		}
		a := answer(&m, nodeMAC, own6)
		back, err := parse(&a)
		if err != nil {
			t.Fatalf("own answer to %+v: %v", m, err)
		}
		if want := (message{tell: true, addr: m.addr, mac: nodeMAC}); back != want {
			t.Fatalf("own answer to %+v reads %+v", m, back)
		}
	})
}
