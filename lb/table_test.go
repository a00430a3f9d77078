package lb

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

// The IP plan of all tests:
//
//	services 10.96.0.0/12, resolver 10.96.0.10, node ports 30000-32767
//	network pods 10.244.0.0/16: 10.244.0.0/24 here (bridge nn-t0), 10.244.1.0/24 on the other node
//	network lab 172.30.0.0/24, local to each node (nn-t1), masqueraded
//	network vault 172.31.0.0/24, internal (nn-t2)
//	LAN 192.0.2.0/24: this node .11, the other node .12, an outside host .1
//
// and the same in IPv6, with the offsets of IPv4:
//
//	services fd00:10:96::/108, resolver fd00:10:96::a
//	network pods fd00:10:244::/112: fd00:10:244::/120 here, fd00:10:244::100/120 on the other node
//	network vault fd00:172:31::/120
//	LAN 2001:db8::/64: this node ::11, the other node ::12, an outside host ::1
const (
	selfID  state.NodeID = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	otherID state.NodeID = "bbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func addr(s string) netip.Addr       { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix      { return netip.MustParsePrefix(s) }
func ap(s string) netip.AddrPort     { return netip.MustParseAddrPort(s) }
func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func testLocal() Local {
	return Local{
		Self: selfID, Range: pfx("10.96.0.0/12"), Resolver: addr("10.96.0.10"),
		Range6: pfx("fd00:10:96::/108"), Resolver6: addr("fd00:10:96::a"),
		NodeAddrs: []netip.Addr{
			addr("192.0.2.11"), addr("10.244.0.1"), addr("172.30.0.1"), addr("127.0.0.1"),
			addr("2001:db8::11"), addr("fd00:10:244::1"), addr("fe80::11"), addr("::1"),
		},
		Bridges: []BridgeInfo{
			{Network: "pods", Name: "nn-t0", MAC: mac(1), Prefix: pfx("10.244.0.0/16"), Prefix6: pfx("fd00:10:244::/112"),
				Own: []netip.Prefix{pfx("10.244.0.0/24"), pfx("fd00:10:244::/120")}, Masquerade: true},
			{Network: "lab", Name: "nn-t1", MAC: mac(2), Prefix: pfx("172.30.0.0/24"), Own: []netip.Prefix{pfx("172.30.0.0/24")}, Masquerade: true},
			{Network: "vault", Name: "nn-t2", MAC: mac(3), Prefix: pfx("172.31.0.0/24"), Prefix6: pfx("fd00:172:31::/120"),
				Own: []netip.Prefix{pfx("172.31.0.0/24"), pfx("fd00:172:31::/120")}, Internal: true},
		},
		ClusterPrefixes: []netip.Prefix{pfx("10.244.0.0/16"), pfx("10.96.0.0/12"), pfx("fd00:10:244::/112"), pfx("fd00:10:96::/108")},
		Links:           []string{"nn-vx1"},
		NodePortFirst:   30000, NodePortLast: 32767,
	}
}

// svc builds a service; a backend is "addr:port", "addr:port@other" on the
// other node, or "addr:port!" when it is not ready.
func svc(name, vip, proto string, port, nodePort uint16, backends ...string) *state.ServiceView {
	s := &state.ServiceView{Service: state.Service{Namespace: "default", Name: name,
		Ports: []state.ServicePort{{Protocol: proto, Port: port, NodePort: nodePort}}}}
	if vip != "" {
		s.VIP = addr(vip)
	}
	for _, b := range backends {
		be := state.BackendOf{Ready: true, Node: selfID}
		if x, ok := strings.CutSuffix(b, "@other"); ok {
			b, be.Node = x, otherID
		}
		if x, ok := strings.CutSuffix(b, "!"); ok {
			b, be.Ready = x, false
		}
		be.Addr, be.Targets = ap(b).Addr(), []uint16{ap(b).Port()}
		s.Backends = append(s.Backends, be)
	}
	return s
}

// twin is the IPv6 address of the plan with the offset of an IPv4 one.
func twin(a netip.Addr) netip.Addr {
	for in, in6 := range map[string]string{"10.96.0.0/12": "fd00:10:96::", "10.244.0.0/16": "fd00:10:244::"} {
		if p := pfx(in); p.Contains(a) {
			b, base, out := a.As4(), p.Addr().As4(), addr(in6).As16()
			for i := range b {
				out[12+i] = b[i] - base[i]
			}
			return netip.AddrFrom16(out)
		}
	}
	panic("no twin of " + a.String())
}

// dual gives services and their backends IPv6 addresses too.
func dual(services ...*state.ServiceView) []*state.ServiceView {
	for _, s := range services {
		s.VIP6 = twin(s.VIP)
		for _, b := range s.Backends {
			b.Addr = twin(b.Addr)
			s.Backends = append(s.Backends, b)
		}
	}
	return services
}

func pub(host, proto string, port uint16, target string) state.Publish {
	p := state.Publish{Protocol: proto, HostPort: port, Target: ap(target).Addr(), Port: ap(target).Port()}
	if host != "" {
		p.HostAddr = addr(host)
	}
	return p
}

func testView() *state.View {
	return state.NewView(state.View{
		Rev: 7, Self: selfID,
		Networks: []state.NetworkView{
			{Network: state.Network{Name: "lab", Prefix: pfx("172.30.0.0/24"), Overlay: state.OverlayNone, Peers: []string{"pods"}}},
			{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16"), Overlay: state.OverlayVXLAN}},
		},
		Publishes: []state.Publish{
			pub("", "tcp", 8080, "10.244.0.2:8080"),
			pub("", "udp", 5300, "10.244.0.2:5353"),
			pub("192.0.2.11", "tcp", 8443, "10.244.0.3:8080"),
			pub("127.0.0.1", "tcp", 9000, "10.244.0.3:8080"),
			pub("::", "tcp", 8080, "[fd00:10:244::2]:8080"),
			pub("::", "udp", 5300, "[fd00:10:244::2]:5353"),
			pub("2001:db8::11", "tcp", 8443, "[fd00:10:244::3]:8080"),
			pub("::1", "tcp", 9000, "[fd00:10:244::3]:8080"),
		},
	}, []*state.EndpointView{
		{Endpoint: &state.Endpoint{ID: "far", Network: "lab"}, Owner: otherID},
	}, dual(
		svc("both", "10.96.0.23", "tcp", 80, 30090, "10.244.0.2:8080", "10.244.1.2:8080@other"),
		svc("empty", "10.96.0.22", "tcp", 80, 30081, "10.244.0.2:8080!"),
		svc("far", "10.96.0.24", "tcp", 80, 0, "10.244.1.2:8080@other"),
		svc("self", "10.96.0.21", "tcp", 80, 0, "10.244.0.2:8080"),
		svc("udp", "10.96.0.25", "udp", 53, 0, "10.244.0.2:5353"),
		svc("web", "10.96.0.20", "tcp", 80, 30080, "10.244.0.2:8080", "10.244.0.3:8080"),
	))
}

func TestDerive(t *testing.T) {
	tab := Derive(testView(), testLocal())
	if len(tab.Warnings) != 0 {
		t.Errorf("warnings: %v", tab.Warnings)
	}
	if tab.services != 6 || tab.backends != 7 {
		t.Errorf("%d services, %d backends, want 6, 7", tab.services, tab.backends)
	}
	if diff := cmp.Diff(Derive(testView(), testLocal()).Ruleset().String(), tab.Ruleset().String()); diff != "" {
		t.Errorf("not deterministic (-want +got):\n%s", diff)
	}
	var lo []string
	for _, p := range tab.Loopback {
		lo = append(lo, netip.AddrPortFrom(p.HostAddr, p.HostPort).String()+"/"+protoName(p.Proto))
	}
	if diff := cmp.Diff([]string{"127.0.0.1:8080/tcp", "127.0.0.1:9000/tcp", "127.0.0.1:5300/udp", "[::1]:8080/tcp", "[::1]:9000/tcp", "[::1]:5300/udp"}, lo); diff != "" {
		t.Errorf("loopback (-want +got):\n%s", diff)
	}
}

// TestDerivePublishedSCTP: ports of SCTP are published, but not on loopback, and
// not where the kernel cannot translate them.
func TestDerivePublishedSCTP(t *testing.T) {
	v := state.NewView(state.View{Rev: 1, Self: selfID, Publishes: []state.Publish{
		pub("", "sctp", 3868, "10.244.0.2:3868"), pub("192.0.2.11", "sctp", 3869, "10.244.0.2:3868"), pub("127.0.0.1", "sctp", 3870, "10.244.0.2:3868"),
	}}, nil, nil)
	const lo = "publish 127.0.0.1:3870/sctp: SCTP is not served on loopback: publish an address of the network, or none for all"
	tab := Derive(v, testLocal())
	if len(tab.Publishes) != 3 || len(tab.Loopback) != 0 { // all addresses of either version, and the named one
		t.Errorf("published %v, on loopback %v", tab.Publishes, tab.Loopback)
	}
	if diff := cmp.Diff([]string{lo}, tab.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	l := testLocal()
	l.NoSCTP = true
	tab = Derive(v, l)
	if len(tab.Publishes) != 0 || len(tab.Warnings) != 3 || !strings.Contains(tab.Warnings[0], "does not track SCTP") {
		t.Errorf("without tracking: published %v, warnings %q", tab.Publishes, tab.Warnings)
	}
}

func TestDeriveLeavesOut(t *testing.T) {
	v := testView()
	local := svc("elsewhere", "10.96.0.30", "tcp", 80, 0, "172.30.0.9:80@other")
	local.Backends[0].Endpoint = "far"
	services := []*state.ServiceView{
		svc("dns", "10.96.0.10", "udp", 53, 0, "10.244.0.2:53"),
		local,
		svc("out", "203.0.113.1", "tcp", 80, 0, "10.244.0.2:80"),
		svc("port", "10.96.0.31", "tcp", 80, 80, "10.244.0.2:80"),
		svc("odd", "10.96.0.32", "dccp", 80, 0, "10.244.0.2:80"),
		svc("zz", "10.96.0.31", "tcp", 80, 0, "10.244.0.3:80"),
	}
	many := svc("many", "10.96.0.33", "tcp", 80, 0)
	for i := range 300 {
		many.Backends = append(many.Backends, state.BackendOf{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i / 250), byte(i % 250)}), Targets: []uint16{80}, Ready: true})
	}
	v = state.NewView(*v, slices.Collect(v.Endpoints()), append(services, many))
	tab := Derive(v, testLocal())
	want := []string{
		"service default/many port 80: 300 backends, the first 256 are used",
		`service default/odd port 80: protocol "dccp" is not balanced: use tcp, udp or sctp`,
		"service default/out: vip 203.0.113.1 is outside the service range 10.96.0.0/12",
		"service default/port: node port 80 is outside 30000-32767",
		"port 80/tcp of service default/zz is taken by service default/port",
	}
	if diff := cmp.Diff(want, tab.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	for _, s := range tab.Services {
		if s.Name == "default/elsewhere" && len(s.Backends) != 0 {
			t.Errorf("another node's local network is used: %v", s.Backends)
		}
		if s.Name == "default/dns" {
			t.Errorf("the resolver's address is balanced")
		}
	}
}
