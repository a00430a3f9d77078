package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"nodenet/state"
)

// Another node of this node's zone is otherID; farID is in another zone.
const farID state.NodeID = "cccccccccccccccccccccccccc"

// with changes a service that svc made.
func with(s *state.ServiceView, change func(*state.ServiceView)) *state.ServiceView {
	change(s)
	return s
}

func externals(addrs ...string) func(*state.ServiceView) {
	return func(s *state.ServiceView) {
		for _, a := range addrs {
			s.Addresses = append(s.Addresses, addr(a))
		}
	}
}

// optionServices have one option each that testView's have not, with addresses
// 10.96.1.x, 203.0.113.x and node ports 301xx.
func optionServices() []*state.ServiceView {
	const w1, w2, far = "10.244.0.2:8080", "10.244.0.3:8080", "10.244.1.2:8080@other"
	return []*state.ServiceView{
		with(svc("local", "10.96.1.1", "tcp", 80, 30101, w1, far), func(s *state.ServiceView) {
			s.Inside, s.Outside = state.PolicyLocal, state.PolicyLocal
			externals("203.0.113.1", "2001:db8:113::1")(s)
		}),
		with(svc("nolocal", "10.96.1.2", "tcp", 80, 30102, far), func(s *state.ServiceView) {
			s.Inside, s.Outside = state.PolicyLocal, state.PolicyLocal
			externals("203.0.113.2")(s)
		}),
		with(svc("nearest", "10.96.1.3", "tcp", 80, 30103, w2, far), func(s *state.ServiceView) {
			s.Inside = state.PolicyPreferNode
			externals("203.0.113.3")(s)
		}),
		with(svc("zone", "10.96.1.4", "tcp", 80, 0, far, "10.244.2.2:8080@other"), func(s *state.ServiceView) {
			s.Backends[1].Node = farID
			s.Inside = state.PolicyPreferZone
		}),
		with(svc("some", "10.96.1.5", "tcp", 80, 30105, w1), func(s *state.ServiceView) {
			s.Sources = []netip.Prefix{pfx("192.0.2.1/32"), pfx("2001:db8::1/128"), pfx("198.51.100.0/24")}
			externals("203.0.113.5", "2001:db8:113::5")(s)
		}),
		with(svc("on", "10.96.1.6", "tcp", 80, 30106, w1), func(s *state.ServiceView) {
			s.NodeAddrs = []netip.Prefix{pfx("192.0.2.12/30"), pfx("2001:db8::12/127")}
		}),
		with(svc("nobody", "10.96.1.7", "tcp", 80, 30107, w1+"!"), externals("203.0.113.7", "2001:db8:113::7")),
		with(svc("own", "10.96.1.8", "tcp", 80, 0, w1), externals("192.0.2.13")),
		with(svc("weights", "10.96.1.9", "tcp", 80, 0, w1, w2), func(s *state.ServiceView) {
			s.Backends[0].Weight, s.Backends[1].Weight = 6, 2
		}),
		with(svc("source", "10.96.1.10", "tcp", 80, 0, w1, w2), func(s *state.ServiceView) { s.Balance = state.BalanceSource }),
		with(svc("maglev", "10.96.1.11", "tcp", 80, 30111, w1, w2), func(s *state.ServiceView) {
			s.Balance = state.BalanceMaglev
			externals("203.0.113.11")(s)
		}),
		with(svc("range", "10.96.1.13", "tcp", 8000, 0, "10.244.0.2:8000", "10.244.0.3:8000"), func(s *state.ServiceView) {
			s.Ports[0].Last = 8099
			externals("203.0.113.13")(s)
		}),
		with(svc("shifted", "10.96.1.14", "tcp", 80, 0, "10.244.0.2:8079"), func(s *state.ServiceView) { s.Ports[0].Last = 81 }),
		with(svc("last", "10.96.1.15", "tcp", 80, 0, w1+"!", w2+"!"), func(s *state.ServiceView) { s.Backends[1].Draining = true }),
		svc("sctp", "10.96.1.16", "sctp", 80, 30116, w1),
	}
}

func optionView(services ...*state.ServiceView) *state.View {
	nodes := []state.NodeView{
		{ID: selfID, Node: state.Node{Name: "n1", Zone: "a"}},
		{ID: otherID, Node: state.Node{Name: "n2", Zone: "a"}},
		{ID: farID, Node: state.Node{Name: "n3", Zone: "b"}},
	}
	for _, s := range services {
		if s.VIP.Is4() && !s.VIP6.IsValid() {
			dual(s)
		}
	}
	return state.NewView(state.View{Rev: 9, Self: selfID, Nodes: nodes}, nil, services)
}

// stickyService keeps clients on their backends.
func stickyService(seconds int64, backends ...string) *state.ServiceView {
	return with(svc("sticky", "10.96.1.12", "tcp", 80, 30112, backends...), func(s *state.ServiceView) {
		s.Affinity = seconds
		externals("203.0.113.12")(s)
	})
}

func TestTraceOptions(t *testing.T) {
	tab := Derive(optionView(append(optionServices(), stickyService(60, "10.244.0.2:8080", "10.244.0.3:8080"))...), testLocal())
	if len(tab.Warnings) > 0 {
		t.Errorf("warnings: %v", tab.Warnings)
	}
	rs := tab.Ruleset()
	rs.Addrs = append(rs.Addrs, addr("192.0.2.13"), addr("2001:db8::13"))
	const client, stranger, w1, w2 = "192.0.2.1", "192.0.2.2", "10.244.0.2", "10.244.0.3"
	tests := map[string]struct {
		in, src, dst string
		rand         uint32
		want         string
	}{
		"local, inside":                       {"nn-t0", w2, "10.96.1.1:80/tcp", 1, "accept to 10.244.0.2:8080"},
		"local, outside":                      {"eth0", client, "203.0.113.1:80/tcp", 1, "accept to 10.244.0.2:8080"},
		"local, outside, IPv6":                {"eth0", "2001:db8::1", "[2001:db8:113::1]:80/tcp", 1, "accept to [fd00:10:244::2]:8080"},
		"local, node port":                    {"eth0", client, "192.0.2.11:30101/tcp", 1, "accept to 10.244.0.2:8080"},
		"nobody local, inside":                {"nn-t0", w2, "10.96.1.2:80/tcp", 0, "reset"},
		"nobody local, outside":               {"eth0", client, "203.0.113.2:80/tcp", 0, "drop"},
		"nobody local, node port":             {"eth0", client, "192.0.2.11:30102/tcp", 0, "drop"},
		"nobody local, node port, IPv6":       {"eth0", "2001:db8::1", "[2001:db8::11]:30102/tcp", 0, "drop"},
		"prefer node, inside":                 {"nn-t0", w1, "10.96.1.3:80/tcp", 1, "accept to 10.244.0.3:8080"},
		"prefer node is not for outside":      {"eth0", client, "203.0.113.3:80/tcp", 1, "accept to 10.244.1.2:8080 masquerade"},
		"prefer node is not for node ports":   {"eth0", client, "192.0.2.11:30103/tcp", 1, "accept to 10.244.1.2:8080 masquerade"},
		"workload to an external address":     {"nn-t0", w1, "203.0.113.3:80/tcp", 1, "accept to 10.244.1.2:8080"},
		"node to an external address":         {"", "192.0.2.11", "203.0.113.3:80/tcp", 1, "accept to 10.244.1.2:8080"},
		"prefer zone":                         {"nn-t0", w1, "10.96.1.4:80/tcp", 1, "accept to 10.244.1.2:8080"},
		"source that may":                     {"eth0", client, "203.0.113.5:80/tcp", 0, "accept to 10.244.0.2:8080"},
		"source that may not":                 {"eth0", stranger, "203.0.113.5:80/tcp", 0, "drop"},
		"source that may, IPv6":               {"eth0", "2001:db8::1", "[2001:db8:113::5]:80/tcp", 0, "accept to [fd00:10:244::2]:8080"},
		"source that may not, IPv6":           {"eth0", "2001:db8::2", "[2001:db8:113::5]:80/tcp", 0, "drop"},
		"source that may, node port":          {"eth0", client, "192.0.2.11:30105/tcp", 0, "accept to 10.244.0.2:8080"},
		"source that may not, node port":      {"eth0", stranger, "192.0.2.11:30105/tcp", 0, "drop"},
		"sources are not asked inside":        {"nn-t0", w2, "10.96.1.5:80/tcp", 0, "accept to 10.244.0.2:8080"},
		"node port on its address":            {"eth0", client, "192.0.2.13:30106/tcp", 0, "accept to 10.244.0.2:8080"},
		"node port on another address":        {"eth0", client, "192.0.2.11:30106/tcp", 0, "accept"},
		"node port on its address, IPv6":      {"eth0", "2001:db8::1", "[2001:db8::13]:30106/tcp", 0, "accept to [fd00:10:244::2]:8080"},
		"node port on another, IPv6":          {"eth0", "2001:db8::1", "[2001:db8::11]:30106/tcp", 0, "accept"},
		"no backends, external":               {"eth0", client, "203.0.113.7:80/tcp", 0, "reset"},
		"no backends, external, IPv6":         {"eth0", "2001:db8::1", "[2001:db8:113::7]:80/tcp", 0, "reset"},
		"unknown port, external":              {"eth0", client, "203.0.113.7:81/udp", 0, "unreachable"},
		"unknown port, external, IPv6":        {"eth0", "2001:db8::1", "[2001:db8:113::7]:81/udp", 0, "unreachable"},
		"unknown port, external, node":        {"", "192.0.2.11", "203.0.113.7:81/tcp", 0, "reset"},
		"echo of an external address":         {"eth0", client, "203.0.113.7/echo", 0, "accept to 10.96.0.10:0"},
		"external address of the host":        {"eth0", client, "192.0.2.13:80/tcp", 0, "accept to 10.244.0.2:8080"},
		"its other ports":                     {"eth0", client, "192.0.2.13:22/tcp", 0, "accept"},
		"its node ports":                      {"eth0", client, "192.0.2.13:30101/tcp", 0, "accept to 10.244.0.2:8080"},
		"no service's address":                {"eth0", client, "203.0.113.99:80/tcp", 0, "accept"},
		"heavier backend":                     {"nn-t0", w1, "10.96.1.9:80/tcp", 2, "accept to 10.244.0.2:8080 masquerade"},
		"lighter backend":                     {"nn-t0", w1, "10.96.1.9:80/tcp", 3, "accept to 10.244.0.3:8080"},
		"range":                               {"eth0", client, "10.96.1.13:8042/tcp", 1, "accept to 10.244.0.3:8042"},
		"range, IPv6":                         {"eth0", "2001:db8::1", "[fd00:10:96::10d]:8042/tcp", 1, "accept to [fd00:10:244::3]:8042"},
		"range, external":                     {"eth0", client, "203.0.113.13:8099/tcp", 0, "accept to 10.244.0.2:8099"},
		"beyond a range":                      {"eth0", client, "10.96.1.13:8100/tcp", 1, "reset"},
		"range with other targets":            {"eth0", client, "10.96.1.14:81/tcp", 1, "accept to 10.244.0.2:8080"},
		"draining backend as the last resort": {"eth0", client, "10.96.1.15:80/tcp", 1, "accept to 10.244.0.3:8080"},
		"SCTP":                                {"eth0", client, "10.96.1.16:80/sctp", 1, "accept to 10.244.0.2:8080"},
		"SCTP, unknown port":                  {"eth0", client, "10.96.1.16:81/sctp", 1, "unreachable"},
		"sticky, at first":                    {"eth0", client, "10.96.1.12:80/tcp", 1, "accept to 10.244.0.3:8080"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Packet{In: tt.in, Src: addr(tt.src), Sport: 40000, Rand: tt.rand}
			dst, proto, _ := strings.Cut(tt.dst, "/")
			if proto == "echo" {
				p.Dst, p.Proto, p.Echo = addr(dst), ICMP, true
			} else {
				p.Dst, p.Dport, p.Proto = ap(dst).Addr(), ap(dst).Port(), protoNumber(proto)
			}
			if got := Trace(rs, p); got.String() != tt.want {
				t.Errorf("got %q, want %q\npath %v\n%v", got, tt.want, got.Path, got.Lookups)
			}
		})
	}
}

// TestSlowPathsCostNobody: the first packet of a flow to a plain service asks
// the same maps whatever options other services have.
func TestSlowPathsCostNobody(t *testing.T) {
	plain := svc("web", "10.96.0.20", "tcp", 80, 0, "10.244.0.2:8080", "10.244.0.3:8080")
	p := Packet{In: "eth0", Src: addr("192.0.2.1"), Dst: addr("10.96.0.20"), Proto: TCP, Dport: 80}
	alone := Trace(Derive(optionView(plain), testLocal()).Ruleset(), p)
	among := Trace(Derive(optionView(append(optionServices(), stickyService(60), plain)...), testLocal()).Ruleset(), p)
	if fmt.Sprint(alone.Lookups) != fmt.Sprint(among.Lookups) || !slices.Equal(alone.Path, among.Path) {
		t.Errorf("alone %v by %v, among others %v by %v", alone.Lookups, alone.Path, among.Lookups, among.Path)
	}
	want := "raw_pre pre dispatch vip lb-2 guard_pre guard forward internals permit post translated"
	if got := strings.TrimPrefix(strings.Join(alone.Path, " "), "lift "); got != want {
		t.Errorf("path %q, want %q", got, want)
	}
}
