package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"nodenet/state"
)

// cluster is up to three nodes on one LAN, each with its block and a plan from
// one view.
type cluster struct {
	t     *testing.T
	view  *state.View
	nodes []*testNode
	ids   []state.NodeID
}

func newCluster(t *testing.T, overlay string, size int) *cluster {
	t.Helper()
	needRoot(t)
	c := &cluster{t: t, ids: []state.NodeID{id1, id2, id3}[:size]}
	c.view = testView(overlay)
	c.view.Nodes = nil
	byAddr := map[string]*testNS{}
	for i, id := range c.ids {
		name, addr := fmt.Sprintf("node%d", i+1), fmt.Sprintf("192.0.2.%d", i+1)
		c.nodes = append(c.nodes, &testNode{testNS: newNS(t, name)})
		byAddr[addr] = c.nodes[i].testNS
		c.view.Nodes = append(c.view.Nodes, node(id, name, addr, lan1, block(i).String()))
	}
	lan(t, byAddr)
	return c
}

func block(i int) netip.Prefix { return pfx(fmt.Sprintf("10.244.%d.0/24", i+1)) }

// plan derives the plan of node i from what its namespace shows.
func (c *cluster) plan(i int) Plan {
	c.t.Helper()
	var l Local
	c.nodes[i].do(func() (err error) {
		l, err = ObserveLocal(ip(fmt.Sprintf("192.0.2.%d", i+1)))
		return err
	})
	l.Self, l.ServiceRange, l.Resolver, l.Advertise = c.ids[i], pfx("10.96.0.0/12"), ip("10.96.0.10"), l.Underlay
	v := *c.view
	v.Networks = slices.Clone(v.Networks)
	v.Networks[0].Own = []netip.Prefix{block(i)}
	return Derive(&v, l)
}

func (c *cluster) apply() {
	c.t.Helper()
	c.view.Rev++
	for i, n := range c.nodes {
		n.set(c.plan(i))
	}
}

func (c *cluster) start() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.start(c.t.TempDir())
	}
	c.apply()
}

func spec(id string, w *testNS, addr string) AttachSpec {
	p := pfx(addr)
	return AttachSpec{ID: id, Network: "pods", NetnsPath: w.path, Addr: p, Gateway: p.Masked().Addr().Next(), DefaultRoute: true}
}

// workload attaches a namespace to node i.
func (c *cluster) workload(i int, id, addr string) *testNS {
	c.t.Helper()
	w := newNS(c.t, id)
	if _, err := c.nodes[i].ov.Attach(c.t.Context(), spec(id, w, addr)); err != nil {
		c.t.Fatal(err)
	}
	return w
}

func mustAsk(t *testing.T, from *testNS, to, wantSeen string) {
	t.Helper()
	seen, err := from.ask(to, 64, 3*time.Second)
	if err != nil {
		t.Fatalf("%s → %s: %v", from.name, to, err)
	}
	if seen != wantSeen {
		t.Errorf("%s → %s: seen as %s, want %s", from.name, to, seen, wantSeen)
	}
}

func TestPacketsCross(t *testing.T) {
	for _, overlay := range []string{state.OverlayVXLAN, state.OverlayRoutes, state.OverlayAuto} {
		t.Run(overlay, func(t *testing.T) {
			c := newCluster(t, overlay, 2)
			c.start()
			a, b := c.workload(0, "a", "10.244.1.2/24"), c.workload(1, "b", "10.244.2.2/24")
			a2 := c.workload(0, "a2", "10.244.1.3/24")
			a.echo("10.244.1.2:7")
			b.echo("10.244.2.2:7")
			mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
			mustAsk(t, b, "10.244.1.2:7", "10.244.2.2")
			mustAsk(t, a2, "10.244.1.2:7", "10.244.1.3")
			mustAsk(t, c.nodes[0].testNS, "10.244.1.2:7", "10.244.1.1")
			mustAsk(t, c.nodes[0].testNS, "10.244.2.2:7", "10.244.1.1") // the route's source
			// A process of the node may be bound to the underlay address.
			if _, err := c.nodes[0].askFrom("192.0.2.1", "10.244.2.2:7", 64, 3*time.Second); err != nil {
				t.Errorf("from the underlay address: %v", err)
			}
			// The largest datagram that the network's MTU carries, without fragments.
			mtu := c.nodes[0].ov.MTU("pods")
			if _, err := a.ask("10.244.2.2:7", mtu-28-len("10.244.1.2|"), 3*time.Second); err != nil {
				t.Errorf("datagram of the full MTU: %v", err)
			}
			// An address of the network that nobody has opened must not leave by the default route.
			if _, err := c.nodes[0].ask("10.244.9.9:7", 1, 0); err == nil || !strings.Contains(err.Error(), unix.EHOSTUNREACH.Error()) {
				t.Errorf("unassigned block: %v, want %v", err, unix.EHOSTUNREACH)
			}
			via, m := c.nodes[0].ov.PeerVia(id2)
			wantVia := []string{ViaVXLAN}
			if overlay != state.OverlayVXLAN {
				wantVia = []string{ViaRoutes}
			}
			if !slices.Equal(via, wantVia) || m != mtu {
				t.Errorf("PeerVia = %v, %d, want %v, %d", via, m, wantVia, mtu)
			}
			for _, r := range c.nodes[0].ov.Routes() {
				if !r.InKernel {
					t.Errorf("route not in the kernel: %+v", r)
				}
			}
			if n := len(c.nodes[0].ov.Routes()); n != 2 {
				t.Errorf("%d routes, want the own block and the peer's", n)
			}
		})
	}
}

func TestResolverAddress(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	n := c.nodes[0]
	w := c.workload(0, "a", "10.244.1.2/24")
	n.echo("10.96.0.10:53")
	// A connected client takes answers from the address that it asked only.
	mustAsk(t, w, "10.96.0.10:53", "10.244.1.2")
	mustAsk(t, n.testNS, "10.96.0.10:53", "10.96.0.10")
	// With scope host the address is nobody's source by default.
	n.do(func() error {
		routes, err := netlink.RouteGet([]byte{192, 0, 2, 77})
		if err != nil {
			return err
		}
		if src := addrOf(routes[0].Src); src != ip("192.0.2.1") {
			t.Errorf("source towards the LAN is %s", src)
		}
		routes, err = netlink.RouteGet([]byte{10, 96, 0, 20})
		if err != nil {
			return err
		}
		if src := addrOf(routes[0].Src); src != ip("10.244.1.1") {
			t.Errorf("source towards a VIP is %s", src)
		}
		return nil
	})
}

func TestSecondApplyAndRestartDoNothing(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 2)
	c.start()
	c.workload(0, "a", "10.244.1.2/24")
	n := c.nodes[0]
	if ops := n.ops.take(); len(ops) == 0 {
		t.Fatal("the first apply recorded no operation")
	}
	c.apply() // a newer revision of the same
	if ops := n.ops.take(); len(ops) != 0 {
		t.Errorf("second apply: %s", strings.Join(ops, "\n"))
	}
	before := n.snapshot()
	n.stop()
	n.start(t.TempDir())
	n.set(c.plan(0))
	if ops := n.ops.take(); len(ops) != 0 {
		t.Errorf("apply after a restart: %s", strings.Join(ops, "\n"))
	}
	if diff := cmp.Diff(before, n.snapshot()); diff != "" {
		t.Errorf("restart changed the kernel (-before +after):\n%s", diff)
	}
	if s := n.ov.Status(); !s.OK || s.Detail != "1 peer, 1 route, no drift" {
		t.Errorf("status %+v", s)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	c := newCluster(t, state.OverlayAuto, 2)
	n := c.nodes[0]
	before := n.snapshot()
	dir := t.TempDir()
	n.start(dir)
	n.set(c.plan(0))
	c.nodes[1].start(t.TempDir())
	c.nodes[1].set(c.plan(1))
	w := c.workload(0, "a", "10.244.1.2/24")
	n.echo("10.96.0.10:53")
	mustAsk(t, w, "10.96.0.10:53", "10.244.1.2")
	if _, err := os.Stat(filepath.Join(dir, "sysctl.json")); err != nil {
		t.Errorf("former sysctls: %v", err)
	}
	n.stop()
	for i, wantOps := range []bool{true, false} {
		var ops []string
		n.do(func() (err error) {
			ops, err = Cleanup(context.Background(), dir, nil)
			return err
		})
		if (len(ops) > 0) != wantOps {
			t.Errorf("cleanup %d did:\n%s", i+1, strings.Join(ops, "\n"))
		}
	}
	if diff := cmp.Diff(before, n.snapshot()); diff != "" {
		t.Errorf("cleanup left something (-before +after):\n%s", diff)
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("left in the state directory: %v", files)
	}
}

func TestObserveLocal(t *testing.T) {
	n := newNS(t, "local")
	m := newNS(t, "other")
	wire(n, "eth0", m, "peer0")
	n.do(up("eth0", "192.0.2.1/24", "203.0.113.1/25"))
	m.do(up("peer0"))
	n.do(func() error {
		if _, err := ObserveLocal(netip.Addr{}); err == nil {
			t.Error("without a default route: no error")
		}
		if _, err := ObserveLocal(ip("192.0.2.200")); err == nil {
			t.Error("an address that nobody has: no error")
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: []byte{203, 0, 113, 126}}); err != nil {
			return err
		}
		want := Local{Underlay: ip("192.0.2.1"), UnderlayDev: "eth0", UnderlayMTU: 1500,
			OnLink: []netip.Prefix{pfx("192.0.2.0/24"), pfx("203.0.113.0/25")}}
		for _, addr := range []netip.Addr{ip("192.0.2.1"), {}} {
			got, err := ObserveLocal(addr)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("ObserveLocal(%v) (-want +got):\n%s", addr, diff)
			}
		}
		routes, err := HostRoutes()
		if err != nil {
			return err
		}
		wantRoutes := []HostRoute{{pfx("192.0.2.0/24"), "eth0", "kernel"}, {pfx("203.0.113.0/25"), "eth0", "kernel"}}
		if !slices.Equal(routes, wantRoutes) {
			t.Errorf("HostRoutes = %v, want %v", routes, wantRoutes)
		}
		return nil
	})
}

// A thousand nodes: what one apply and one look cost on this machine.
func TestThousandNodes(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	v := testView(state.OverlayVXLAN, "10.244.0.0/24")
	v.Rev, v.Nodes = 1, v.Nodes[:1]
	v.Networks[0].Prefix = pfx("10.240.0.0/12")
	for i := 1; i < 1000; i++ {
		addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		n := node(state.NodeID(fmt.Sprintf("node%d", i)), fmt.Sprintf("n%d", i), addr.String(), lan1,
			fmt.Sprintf("10.%d.%d.0/24", 245+i>>8, i&255))
		v.Nodes = append(v.Nodes, n)
	}
	n := c.nodes[0]
	n.start(t.TempDir())
	start := time.Now()
	n.set(Derive(v, testLocal()))
	t.Logf("first apply: %v", time.Since(start))
	v.Rev, v.Nodes = 2, v.Nodes[:999]
	n.ops.take()
	start = time.Now()
	n.set(Derive(v, testLocal()))
	t.Logf("one node less: %v", time.Since(start))
	if ops := n.ops.take(); len(ops) != 3 {
		t.Errorf("one node less: %d operations", len(ops))
	}
	if s := n.ov.Status(); s.Detail != "998 peers, 998 routes, no drift" {
		t.Errorf("status %+v", s)
	}
}

// VXLAN over an IPv6 underlay: IPv4 prefixes behind IPv6 next hops.
func TestUnderlayV6(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 2)
	for i, n := range c.nodes {
		n.do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(pfx(fmt.Sprintf("2001:db8::%d/64", i+1))), Flags: unix.IFA_F_NODAD})
		})
		c.view.Nodes[i].Underlay = ip(fmt.Sprintf("2001:db8::%d", i+1))
	}
	for i, n := range c.nodes {
		v := *c.view
		v.Networks = slices.Clone(v.Networks)
		v.Networks[0].Own = []netip.Prefix{block(i)}
		var l Local
		n.do(func() (err error) {
			l, err = ObserveLocal(v.Nodes[i].Underlay)
			return err
		})
		l.Self = c.ids[i]
		n.start(t.TempDir())
		n.set(Derive(&v, l))
		n.ops.take()
		n.set(Derive(&v, l))
		if ops := n.ops.take(); len(ops) != 0 {
			t.Errorf("second apply: %v", ops)
		}
	}
	a, b := c.workload(0, "a", "10.244.1.2/24"), c.workload(1, "b", "10.244.2.2/24")
	b.echo("10.244.2.2:7")
	mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
	if got := c.nodes[0].ov.MTU("pods"); got != 1430 {
		t.Errorf("MTU %d", got)
	}
}
