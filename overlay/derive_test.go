package overlay

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"nodenet/state"
)

// IP plan
//
//	underlay  192.0.2.0/24     node1 .1, node2 .2, node3 .3 (one LAN)
//	          198.51.100.0/24  node4 .4 (behind a router)
//	pods      10.244.0.0/16    node N: 10.244.N.0/24
//	services  10.96.0.0/12     resolver 10.96.0.10

var update = flag.Bool("update", false, "write testdata/*.golden anew")

const (
	id1 = state.NodeID("aaaaaaaaaaaaaaaaaaaaaaaaaa")
	id2 = state.NodeID("bbbbbbbbbbbbbbbbbbbbbbbbba")
	id3 = state.NodeID("cccccccccccccccccccccccccc")
	id4 = state.NodeID("ddddddddddddddddddddddddda")
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func testLocal() Local {
	return Local{Self: id1, Underlay: ip("192.0.2.1"), UnderlayDev: "eth0", UnderlayMTU: 1500,
		OnLink: []netip.Prefix{pfx("192.0.2.0/24")}, ServiceRange: pfx("10.96.0.0/12"), Resolver: ip("10.96.0.10"),
		Advertise: ip("192.0.2.1")}
}

func node(id state.NodeID, name, addr, onLink string, blocks ...string) state.NodeView {
	n := state.NodeView{ID: id, State: state.Alive, Node: state.Node{Name: name, Advertise: ip(addr), VTEPMAC: id.VTEPMAC(),
		OnLink: []netip.Prefix{pfx(onLink)}}}
	for _, b := range blocks {
		n.Blocks = append(n.Blocks, state.Block{Network: "pods", Prefix: pfx(b)})
	}
	return n
}

const lan1, lan2 = "192.0.2.0/24", "198.51.100.0/24"

func testView(overlay string, own ...string) *state.View {
	n := state.NetworkView{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16"), Block: 24, Overlay: overlay, VNI: 1}}
	for _, o := range own {
		n.Own = append(n.Own, pfx(o))
	}
	self := node(id1, "node1", "192.0.2.1", lan1, own...)
	// Derive knows itself by Local.Self: the same view serves as another node's.
	return &state.View{Rev: 7, Self: id1, Networks: []state.NetworkView{n}, Nodes: []state.NodeView{self,
		node(id2, "node2", "192.0.2.2", lan1, "10.244.2.0/24"),
		node(id3, "node3", "192.0.2.3", lan1, "10.244.3.0/24", "10.244.13.0/24"),
		node(id4, "node4", "198.51.100.4", lan2, "10.244.4.0/24"),
	}}
}

// dual gives the network an IPv6 prefix, and dualLocal the services.
func dual(v *state.View) *state.View {
	v.Networks[0].Prefix6 = pfx("fd00:10:244::/112")
	return v
}

func dualLocal(l *Local) {
	l.ServiceRange6, l.Resolver6 = pfx("fd00:10:96::/108"), ip("fd00:10:96::a")
}

func TestDeriveGolden(t *testing.T) {
	tests := []struct {
		name string
		view func() *state.View
		with func(*Local)
	}{
		{name: "vxlan", view: func() *state.View { return testView(state.OverlayVXLAN, "10.244.1.0/24") }},
		{name: "routes", view: func() *state.View { return testView(state.OverlayRoutes, "10.244.1.0/24") }},
		{name: "auto", view: func() *state.View { return testView(state.OverlayAuto, "10.244.1.0/24") }},
		{name: "dual-vxlan", view: func() *state.View { return dual(testView(state.OverlayVXLAN, "10.244.1.0/24")) }, with: dualLocal},
		{name: "dual-auto", view: func() *state.View { return dual(testView(state.OverlayAuto, "10.244.1.0/24")) }, with: dualLocal},
		{name: "dual-routes", view: func() *state.View { return dual(testView(state.OverlayRoutes, "10.244.1.0/24")) }, with: dualLocal},
		{name: "dual-no-own-block", view: func() *state.View { return dual(testView(state.OverlayVXLAN)) }, with: dualLocal},
		{name: "vxlan-two-blocks", view: func() *state.View { return testView(state.OverlayVXLAN, "10.244.1.0/24", "10.244.11.0/24") }},
		{name: "vxlan-no-own-block", view: func() *state.View { return testView(state.OverlayVXLAN) }},
		{name: "vxlan-dead-stays", view: func() *state.View {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			v.Nodes[1].State = state.Dead
			v.Nodes[2].State = state.Left
			return v
		}},
		{name: "local", view: func() *state.View {
			v := testView(state.OverlayNone)
			v.Networks[0].Prefix = pfx("172.30.0.0/24")
			v.Networks[0].Block = 0
			return v
		}},
		{name: "custom", view: func() *state.View {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			n := &v.Networks[0]
			n.Bridge, n.MTU, n.Port, n.VNI, n.Gateway = "br-pods", 1400, 8472, 42, ip("10.244.1.254")
			return v
		}},
		{name: "no-gateway", view: func() *state.View {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			v.Networks[0].NoGateway = true
			return v
		}},
		{name: "conflicts", view: func() *state.View {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			v.Nodes[1].Blocks = append(v.Nodes[1].Blocks,
				state.Block{Network: "pods", Prefix: pfx("10.244.3.0/24")}, // node3's
				state.Block{Network: "pods", Prefix: pfx("10.244.1.0/24")}, // ours
				state.Block{Network: "pods", Prefix: pfx("0.0.0.0/0")})     // nobody's
			return v
		}},
		{name: "replaced-disk", view: func() *state.View {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			v.Nodes[1].State = state.Dead
			v.Nodes[2].Advertise = v.Nodes[1].Advertise // node3 is the machine that was node2
			return v
		}},
		{name: "underlay-v6", view: func() *state.View {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			v.Nodes = v.Nodes[:2]
			v.Nodes[1].Underlay = ip("2001:db8::2")
			return v
		}, with: func(l *Local) { l.Underlay = ip("2001:db8::1"); l.OnLink = []netip.Prefix{pfx("2001:db8::/64")} }},
		{name: "nothing", view: func() *state.View { return &state.View{Rev: 1, Self: id1} }, with: func(l *Local) { *l = Local{Self: id1} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := testLocal()
			if tt.with != nil {
				tt.with(&l)
			}
			got := Derive(tt.view(), l).String()
			file := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// Both ends of a pair must choose the same way, or strict reverse path filters
// drop what comes the other way.
func TestAutoIsSymmetric(t *testing.T) {
	// node2 thinks that its LAN is smaller than node1 does: it cannot see node1.
	small := []netip.Prefix{pfx("192.0.2.2/31")}
	how := func(l Local, own string, peer state.NodeID) string {
		v := testView(state.OverlayAuto, "10.244.1.0/24")
		v.Networks[0].Own, v.Nodes[1].OnLink = []netip.Prefix{pfx(own)}, small
		for _, r := range Derive(v, l).Routes {
			if r.Node == peer {
				return r.How
			}
		}
		return "none"
	}
	l1, l2 := testLocal(), testLocal()
	l2.Self, l2.Underlay, l2.OnLink = id2, ip("192.0.2.2"), small
	there, back := how(l1, "10.244.1.0/24", id2), how(l2, "10.244.2.0/24", id1)
	if there != ViaVXLAN || back != ViaVXLAN {
		t.Errorf("node1 → node2 via %s, back via %s, want vxlan both", there, back)
	}
}

func TestBridgeName(t *testing.T) {
	tests := []struct {
		name string
		n    state.Network
		want string
	}{
		{name: "short", n: state.Network{Name: "pods"}, want: "nn-pods"},
		{name: "just fits", n: state.Network{Name: "abcdefghijkl"}, want: "nn-abcdefghijkl"},
		{name: "given", n: state.Network{Name: "pods", Bridge: "cni0"}, want: "cni0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := BridgeName(tt.n); got != tt.want {
				t.Errorf("BridgeName = %q, want %q", got, tt.want)
			}
		})
	}
	a, b := BridgeName(state.Network{Name: "production-frontend"}), BridgeName(state.Network{Name: "production-backend"})
	if len(a) != 15 || len(b) != 15 || a == b || !strings.HasPrefix(a, "nn-produc") {
		t.Errorf("long names became %q and %q", a, b)
	}
}

func TestMTU(t *testing.T) {
	tests := []struct {
		name     string
		overlay  string
		underlay string
		mtu, net int
		want     int
	}{
		{name: "vxlan over v4", overlay: state.OverlayVXLAN, underlay: "192.0.2.1", mtu: 1500, want: 1450},
		{name: "vxlan over v6", overlay: state.OverlayVXLAN, underlay: "2001:db8::1", mtu: 1500, want: 1430},
		{name: "auto takes the worst", overlay: state.OverlayAuto, underlay: "192.0.2.1", mtu: 9000, want: 8950},
		{name: "routes", overlay: state.OverlayRoutes, underlay: "192.0.2.1", mtu: 9000, want: 9000},
		{name: "none", overlay: state.OverlayNone, underlay: "192.0.2.1", mtu: 1500, want: 1500},
		{name: "given", overlay: state.OverlayVXLAN, underlay: "192.0.2.1", mtu: 1500, net: 1280, want: 1280},
		{name: "unknown underlay", overlay: state.OverlayVXLAN, underlay: "192.0.2.1", want: 1450},
		{name: "loopback underlay", overlay: state.OverlayRoutes, underlay: "127.0.0.1", mtu: 65536, want: 65535},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := testView(tt.overlay, "10.244.1.0/24")
			v.Networks[0].MTU = tt.net
			l := testLocal()
			l.Underlay, l.UnderlayMTU = ip(tt.underlay), tt.mtu
			p := Derive(v, l)
			if got := p.mtu("pods"); got != tt.want || p.Bridges[0].MTU != tt.want {
				t.Errorf("MTU = %d, bridge %d, want %d", got, p.Bridges[0].MTU, tt.want)
			}
		})
	}
}

// TestMTUForIPv6: a network with an IPv6 prefix whose links are too small for
// it is a problem, with what would help.
func TestMTUForIPv6(t *testing.T) {
	for name, tt := range map[string]struct {
		underlay, net int
		prefix6       string
		fix           string // part of the problem's; "": none
	}{
		"enough":         {underlay: 1330, prefix6: "fd00:10:244::/112"},
		"underlay":       {underlay: 1329, prefix6: "fd00:10:244::/112", fix: "underlay device an MTU of 1330"},
		"given":          {underlay: 1500, net: 1200, prefix6: "fd00:10:244::/112", fix: "write `mtu 1280`"},
		"IPv4 is modest": {underlay: 700},
	} {
		t.Run(name, func(t *testing.T) {
			v := testView(state.OverlayVXLAN, "10.244.1.0/24")
			v.Networks[0].MTU = tt.net
			if tt.prefix6 != "" {
				v.Networks[0].Prefix6 = pfx(tt.prefix6)
			}
			l := testLocal()
			l.UnderlayMTU = tt.underlay
			var fixes []string
			for _, p := range Derive(v, l).Problems {
				if strings.Contains(p.Text, "too small for IPv6") {
					fixes = append(fixes, p.Fix)
				}
			}
			switch {
			case tt.fix == "" && len(fixes) > 0:
				t.Errorf("problems: %q", fixes)
			case tt.fix != "" && (len(fixes) != 1 || !strings.Contains(fixes[0], tt.fix)):
				t.Errorf("fixes %q, want one with %q", fixes, tt.fix)
			}
		})
	}
}
