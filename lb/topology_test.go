package lb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodenet/state"
)

// topology is one node with two workloads on a bridge and an outside host
// that routes the service range by the node; it also plays the other node:
//
//	w1 10.244.0.2 ─┐
//	               nn-t0 10.244.0.1  node  eth0 192.0.2.11 ── 192.0.2.1 outside
//	w2 10.244.0.3 ─┘                                          10.244.1.2 "the other node's workload"
//
// and the same in IPv6: fd00:10:244::2, ::3, gateway ::1; 2001:db8::11 and ::1; fd00:10:244::102.
type topology struct {
	t                   *testing.T
	node, w1, w2, outer *space
	lb                  *LB
	stop                context.CancelFunc
	ended               chan error
}

func (s *space) must(what string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Errorf("%s: %v", what, err)
	}
}

func (s *space) sysctl(key, value string) {
	s.t.Helper()
	s.do(func() { s.must("sysctl "+key, os.WriteFile("/proc/sys/"+key, []byte(value), 0)) })
}

// up gives a link its addresses and sets it up.
func (s *space) up(link string, addrs ...string) {
	s.t.Helper()
	s.do(func() {
		l, err := netlink.LinkByName(link)
		if err != nil {
			s.must("link "+link, err)
			return
		}
		for _, a := range addrs {
			p, scope, _ := strings.Cut(a, " ")
			na, err := netlink.ParseAddr(p)
			s.must("parse "+a, err)
			switch scope {
			case "host":
				na.Scope = int(netlink.SCOPE_HOST)
			case "deprecated": // never a source
				na.ValidLft, na.PreferedLft = math.MaxUint32, 0
			}
			if na.IP.To4() == nil {
				na.Flags = unix.IFA_F_NODAD
			}
			s.must("add "+a, netlink.AddrAdd(l, na))
		}
		s.must("set up "+link, netlink.LinkSetUp(l))
	})
}

func (s *space) route(dst, via, dev, src string) {
	s.t.Helper()
	s.do(func() {
		r := &netlink.Route{}
		if dst != "default" {
			_, n, err := net.ParseCIDR(dst)
			s.must("parse "+dst, err)
			r.Dst = n
		} else {
			_, r.Dst, _ = net.ParseCIDR("0.0.0.0/0")
		}
		if via != "" {
			r.Gw = net.ParseIP(via)
		}
		if src != "" {
			r.Src = net.ParseIP(src)
		}
		if dev != "" {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				s.must("link "+dev, err)
				return
			}
			r.LinkIndex = l.Attrs().Index
		}
		s.must("route "+dst, netlink.RouteReplace(r))
	})
}

// veth joins two namespaces.
func (s *space) veth(name string, peer *space, peerName string) {
	s.t.Helper()
	s.do(func() {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.ns)}
		s.must("add veth "+name, netlink.LinkAdd(v))
	})
}

func newTopology(t *testing.T, v *state.View) *topology {
	tp := &topology{t: t, node: newSpace(t), w1: newSpace(t), w2: newSpace(t), outer: newSpace(t)}
	n := tp.node
	// While a link-local address is tentative, for a second or two, neighbours
	// do not find each other for sure.
	for _, s := range []*space{tp.node, tp.w1, tp.w2, tp.outer} {
		s.sysctl("net/ipv6/conf/all/accept_dad", "0")
		s.sysctl("net/ipv6/conf/default/accept_dad", "0")
	}
	n.do(func() {
		la := netlink.LinkAttrs{Name: "nn-t0", HardwareAddr: mac(1)}
		n.must("add bridge", netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}))
	})
	n.up("lo", "10.96.0.10/32 host", "fd00:10:96::a/128 deprecated")
	n.up("nn-t0", "10.244.0.1/24", "fd00:10:244::1/120")
	n.veth("eth0", tp.outer, "eth0")
	n.up("eth0", "192.0.2.11/24", "192.0.2.13/24", "2001:db8::11/64", "2001:db8::13/64 deprecated")
	tp.outer.up("eth0", "192.0.2.1/24", "2001:db8::1/64")
	tp.outer.up("lo", "10.244.1.2/32", "fd00:10:244::102/128")
	tp.outer.route("10.96.0.0/12", "192.0.2.11", "", "192.0.2.1")
	tp.outer.route("10.244.0.0/24", "192.0.2.11", "", "10.244.1.2")
	n.route("10.96.0.0/12", "", "lo", "192.0.2.11")
	n.route("10.244.1.0/24", "192.0.2.1", "", "")
	tp.outer.route("fd00:10:96::/108", "2001:db8::11", "", "2001:db8::1")
	tp.outer.route("fd00:10:244::/120", "2001:db8::11", "", "fd00:10:244::102")
	n.route("fd00:10:96::/108", "", "nn-t0", "2001:db8::11") // lo would refuse: ip6_route_info_create
	n.route("fd00:10:244::100/120", "2001:db8::1", "", "")
	n.sysctl("net/ipv4/ip_forward", "1")
	n.sysctl("net/ipv6/conf/all/forwarding", "1")
	n.sysctl("net/ipv4/conf/all/send_redirects", "0")
	n.sysctl("net/ipv4/conf/nn-t0/send_redirects", "0")
	for i, w := range []*space{tp.w1, tp.w2} {
		port := fmt.Sprintf("p%d", i+1)
		n.veth(port, w, "eth0")
		n.do(func() {
			l, err := netlink.LinkByName(port)
			n.must("link", err)
			br, err := netlink.LinkByName("nn-t0")
			n.must("link", err)
			n.must("enslave", netlink.LinkSetMaster(l, br))
			n.must("hairpin", netlink.LinkSetHairpin(l, true))
		})
		n.up(port)
		w.up("lo")
		w.up("eth0", fmt.Sprintf("10.244.0.%d/24", i+2), fmt.Sprintf("fd00:10:244::%d/120", i+2))
		w.route("default", "10.244.0.1", "", "")
		w.route("::/0", "fd00:10:244::1", "", "")
		w.serve(fmt.Sprintf("w%d", i+1), "0.0.0.0:8080", "0.0.0.0:5353")
		w.serve(fmt.Sprintf("w%d", i+1), "[::]:8080", "[::]:5353")
	}
	tp.outer.serve("far", "10.244.1.2:8080", "10.244.1.2:5353")
	tp.outer.serve("far", "[fd00:10:244::102]:8080", "[fd00:10:244::102]:5353")
	tp.outer.serve("internet", "192.0.2.1:7000", "192.0.2.1:7001")
	tp.outer.serve("internet", "[2001:db8::1]:7000", "[2001:db8::1]:7001")
	if t.Failed() {
		t.FailNow()
	}
	tp.start(v)
	return tp
}

// start runs an LB in the node and waits until it has applied v.
func (tp *topology) start(v *state.View) {
	tp.t.Helper()
	var err error
	tp.node.do(func() { tp.lb, err = New(Options{Loopback: tp.node, Conntrack: conntrack{tp.node}}) })
	if err != nil {
		tp.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tp.stop, tp.ended = cancel, make(chan error, 1)
	go func(b *LB, ended chan error) { ended <- b.Run(ctx) }(tp.lb, tp.ended)
	tp.t.Cleanup(tp.halt)
	tp.set(v)
}

// halt ends the LB; the kernel keeps its rules.
func (tp *topology) halt() {
	if tp.ended == nil {
		return
	}
	tp.stop()
	if err := <-tp.ended; err != nil {
		tp.t.Errorf("Run: %v", err)
	}
	tp.ended = nil
}

func (tp *topology) set(v *state.View) {
	tp.t.Helper()
	tp.lb.Set(v, testLocal())
	eventually(tp.t, "the view is applied", func() bool {
		s := tp.lb.Status()
		return s.OK && s.Applied == v.Rev
	})
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// A space opens sockets for the loopback listener, whichever thread asks.

func (s *space) Listen(network, address string) (l net.Listener, err error) {
	s.do(func() { l, err = net.Listen(network, address) })
	return l, err
}

func (s *space) ListenPacket(network, address string) (c net.PacketConn, err error) {
	s.do(func() { c, err = net.ListenPacket(network, address) })
	return c, err
}

func (s *space) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	s.do(func() { c, err = (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address) })
	return c, err
}

// serve answers "<name> <address of the client>" on a TCP and a UDP port.
func (s *space) serve(name, tcp, udp string) {
	s.t.Helper()
	l, err := s.Listen(network("tcp", ap(tcp).Addr()), tcp)
	if err != nil {
		s.t.Fatal(err)
	}
	pc, err := s.ListenPacket(network("udp", ap(udp).Addr()), udp)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close(); pc.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(fmt.Sprintf("%s %s\n", name, from.(*net.UDPAddr).IP)), from)
		}
	}()
}

// call connects by tcp, udp or sctp and returns the answer, or "refused",
// "timeout" or an error.
func (s *space) call(network, address string) string {
	s.t.Helper()
	if network == "sctp" {
		return s.associate(0, address)
	}
	return s.callFrom(nil, network, address)
}

func (s *space) callFrom(src net.Addr, network, address string) string {
	s.t.Helper()
	var c net.Conn
	var err error
	s.do(func() { c, err = (&net.Dialer{Timeout: time.Second, LocalAddr: src}).Dial(network, address) })
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if strings.HasPrefix(network, "udp") {
			_, err = c.Write([]byte("?"))
		}
		var line string
		if err == nil {
			line, err = bufio.NewReader(c).ReadString('\n')
		}
		if err == nil {
			return strings.TrimSpace(line)
		}
	}
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		return "reset"
	case errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case errors.Is(err, syscall.EPERM):
		return "denied" // dropped on the way out of the host itself
	}
	return err.Error()
}

// dialUDP opens a socket that hears a peer only, and the errors about it.
func (s *space) dialUDP(to string) (c net.Conn) {
	s.t.Helper()
	var err error
	s.do(func() { c, err = net.Dial("udp", to) })
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// ping sends one echo request and reports whether it is answered.
func (s *space) ping(a netip.Addr) bool {
	s.t.Helper()
	v := versionOf(a)
	c, err := s.ListenPacketICMP(v)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	msg, reply := []byte{8, 0, 0, 0, 0x4e, 0x4e, 0, 1}, byte(0)
	sum := uint32(0x0800 + 0x4e4e + 1)
	sum = ^(sum&0xffff + sum>>16)
	msg[2], msg[3] = byte(sum>>8), byte(sum)
	if v == V6 { // the kernel writes the checksum (RFC 3542 §3.1)
		msg[0], reply = 128, 129
	}
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 100)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return false
		}
		if n >= 8 && b[0] == reply && from.String() == a.String() {
			return true
		}
	}
}

func (s *space) ListenPacketICMP(v Version) (c net.PacketConn, err error) {
	at := [...][2]string{V4: {"ip4:icmp", "0.0.0.0"}, V6: {"ip6:ipv6-icmp", "::"}}[v]
	s.do(func() { c, err = net.ListenPacket(at[0], at[1]) })
	return c, err
}

// forgetNeighbours empties the table of IPv6 neighbours.
func (s *space) forgetNeighbours() {
	s.t.Helper()
	s.do(func() {
		ns, err := netlink.NeighList(0, netlink.FAMILY_V6)
		s.must("list neighbours", err)
		for i := range ns {
			if ns[i].State&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) == 0 {
				s.must("forget neighbour", netlink.NeighDel(&ns[i]))
			}
		}
	})
}
