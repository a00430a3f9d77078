package lb

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodenet/state"
)

func TestTraceClamp(t *testing.T) {
	rs := Derive(testView(), testLocal()).Ruleset()
	for name, tt := range map[string]struct {
		in, src, dst string
		proto        uint8
		uplink       string
		want         bool
	}{
		"into the tunnel":           {"eth0", "192.0.2.1", "10.244.1.9:80", TCP, "nn-vx1", true},
		"into the tunnel, IPv6":     {"eth0", "2001:db8::1", "[fd00:10:244::109]:80", TCP, "nn-vx1", true},
		"a VIP's backend behind it": {"eth0", "192.0.2.1", "10.96.0.24:80", TCP, "nn-vx1", true},
		"a workload's":              {"nn-t0", "10.244.0.2", "10.244.1.9:80", TCP, "nn-vx1", true},
		"UDP":                       {"eth0", "192.0.2.1", "10.244.1.9:80", UDP, "nn-vx1", false},
		"by another device":         {"nn-t0", "10.244.0.2", "192.0.2.1:80", TCP, "eth0", false},
		"to a workload here":        {"eth0", "192.0.2.1", "10.244.0.2:80", TCP, "nn-vx1", false},
		"of the node itself":        {"", "192.0.2.11", "10.244.1.9:80", TCP, "nn-vx1", false},
	} {
		t.Run(name, func(t *testing.T) {
			v := Trace(rs, Packet{In: tt.in, Src: addr(tt.src), Dst: ap(tt.dst).Addr(), Dport: ap(tt.dst).Port(), Proto: tt.proto, Uplink: tt.uplink})
			if v.Action != "accept" || v.Clamp != tt.want {
				t.Errorf("%s, clamped %v, want %v", v, v.Clamp, tt.want)
			}
		})
	}
}

// TestClampMSS: two hosts with links of 1500 bytes, and between them a node
// whose device towards the second, a tunnel by its name, has 1400:
//
//	client 192.0.2.1 --eth0-- node --nn-vx1-- server 198.51.100.1
//
// What a host may send, after options, is what TCP_MAXSEG says.
func TestClampMSS(t *testing.T) {
	tp := &topology{t: t, node: newSpace(t), outer: newSpace(t), w1: newSpace(t)}
	client, server := tp.outer, tp.w1
	for _, s := range []*space{tp.node, client, server} {
		s.sysctl("net/ipv6/conf/all/accept_dad", "0")
		s.sysctl("net/ipv6/conf/default/accept_dad", "0")
		s.sysctl("net/ipv4/tcp_timestamps", "0") // 12 bytes of each segment
	}
	tp.node.sysctl("net/ipv4/ip_forward", "1")
	tp.node.sysctl("net/ipv6/conf/all/forwarding", "1")
	tp.node.veth("eth0", client, "eth0")
	tp.node.veth("nn-vx1", server, "eth0")
	tp.node.do(func() {
		l, err := netlink.LinkByName("nn-vx1")
		tp.node.must("link", err)
		tp.node.must("set MTU", netlink.LinkSetMTU(l, 1400))
	})
	tp.node.up("eth0", "192.0.2.11/24", "2001:db8::11/64")
	tp.node.up("nn-vx1", "198.51.100.11/24", "2001:db8:51::11/64")
	client.up("eth0", "192.0.2.1/24", "2001:db8::1/64")
	server.up("eth0", "198.51.100.1/24", "2001:db8:51::1/64")
	client.route("198.51.100.0/24", "192.0.2.11", "", "")
	client.route("2001:db8:51::/64", "2001:db8::11", "", "")
	server.route("192.0.2.0/24", "198.51.100.11", "", "")
	server.route("2001:db8::/64", "2001:db8:51::11", "", "")
	if t.Failed() {
		t.FailNow()
	}

	type sizes struct{ opens, answers int } // bytes that each side may send
	check := func(when string, want map[string]sizes) {
		t.Helper()
		for name, c := range map[string]struct {
			from, to *space
			at       string
		}{
			"client to server":       {client, server, "198.51.100.1"},
			"server to client":       {server, client, "192.0.2.1"},
			"client to server, IPv6": {client, server, "2001:db8:51::1"},
			"server to client, IPv6": {server, client, "2001:db8::1"},
		} {
			opens, answers, err := segments(c.from, c.to, addr(c.at))
			if got := (sizes{opens, answers}); err != nil || got != want[name] {
				t.Errorf("%s, %s: %+v (%v), want %+v", when, name, got, err, want[name])
			}
		}
	}
	whole := sizes{1460, 1460}
	whole6 := sizes{1440, 1440}
	check("without rules", map[string]sizes{"client to server": whole, "server to client": whole,
		"client to server, IPv6": whole6, "server to client, IPv6": whole6})
	tp.start(&state.View{Rev: 1, Self: selfID})
	// What crosses into the tunnel asks for less: the SYN of the client, and
	// its SYN+ACK.
	check("with rules", map[string]sizes{"client to server": {1460, 1360}, "server to client": {1360, 1460},
		"client to server, IPv6": {1440, 1340}, "server to client, IPv6": {1340, 1440}})
}

// segments connects two spaces and returns what the one that opens the
// connection and the one that answers may send in a segment.
func segments(from, to *space, at netip.Addr) (opens, answers int, err error) {
	l, err := to.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		return 0, 0, err
	}
	defer l.Close()
	var c net.Conn
	from.do(func() { c, err = net.Dial("tcp", l.Addr().String()) })
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	if opens, err = maxSegment(c); err != nil {
		return 0, 0, err
	}
	answers, err = maxSegment(s)
	return opens, answers, err
}

func maxSegment(c net.Conn) (n int, err error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return 0, fmt.Errorf("%T is not TCP", c)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) { n, sockErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); err != nil {
		return 0, err
	}
	return n, sockErr
}
