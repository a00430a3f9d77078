package overlay

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"nodenet/state"
)

func TestDriftIsRepaired(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 2)
	c.start()
	a, b := c.workload(0, "a", "10.244.1.2/24"), c.workload(1, "b", "10.244.2.2/24")
	b.echo("10.244.2.2:7")
	mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
	n := c.nodes[0]
	byName := func(name string, f func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return f(l)
		}
	}
	tests := []struct {
		name    string
		breakIt func() error
	}{
		{"vxlan device deleted", byName("nv-pods", netlink.LinkDel)},
		{"bridge deleted", byName("nn-pods", netlink.LinkDel)},
		{"vxlan device down", byName("nv-pods", netlink.LinkSetDown)},
		{"route deleted", func() error {
			return netlink.RouteDel(&netlink.Route{Dst: ipNet(block(1)), Protocol: Protocol})
		}},
		{"neighbour deleted", byName("nv-pods", func(l netlink.Link) error {
			return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: []byte{192, 0, 2, 2}})
		})},
		{"FDB entry elsewhere", byName("nv-pods", func(l netlink.Link) error {
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
				State: netlink.NUD_PERMANENT, IP: []byte{192, 0, 2, 99}, HardwareAddr: id2.VTEPMAC()})
		})},
		{"gateway address deleted", byName("nn-pods", func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(pfx("10.244.1.1/24"))})
		})},
		{"port taken off the bridge", byName(HostIfName("a"), netlink.LinkSetNoMaster)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			drift := n.ov.Status().Drift
			n.do(tt.breakIt)
			// Events wake the reconciler: far sooner than its tick.
			n.wait("the repair", func() bool { s := n.ov.Status(); return s.Drift > drift && s.OK })
			mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
		})
	}
	ctx := context.Background()
	p := c.plan(0)
	obs, err := n.ov.kernel.Observe(&p)
	if err != nil {
		t.Fatal(err)
	}
	if ops, conflicts := diff(&p, &obs); len(ops)+len(conflicts) != 0 {
		t.Errorf("left to do: %v %v", ops, conflicts)
	}
	if err := n.ov.CheckAttached(ctx, spec("a", a, "10.244.1.2/24")); err != nil {
		t.Error(err)
	}
}

func TestChangesOfPlan(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 3)
	c.start()
	a, b := c.workload(0, "a", "10.244.1.2/24"), c.workload(1, "b", "10.244.2.2/24")
	b.echo("10.244.2.2:7")
	mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")

	t.Run("vxlan to auto", func(t *testing.T) {
		c.view.Networks[0].Overlay = state.OverlayAuto
		c.apply()
		mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
	})
	t.Run("auto to routes", func(t *testing.T) {
		c.view.Networks[0].Overlay = state.OverlayRoutes
		c.apply()
		if c.nodes[0].ov.Exists("nv-pods") {
			t.Error("the vxlan device is still there")
		}
		mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
	})
	t.Run("routes to vxlan with another VNI and port", func(t *testing.T) {
		n := &c.view.Networks[0]
		n.Overlay, n.VNI, n.Port = state.OverlayVXLAN, 77, 8472
		c.apply()
		mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
		n.VNI = 78 // a vxlan device cannot change it: it is rebuilt with its peers
		c.apply()
		mustAsk(t, a, "10.244.2.2:7", "10.244.1.2")
	})
	t.Run("node dead keeps routes, node left loses them", func(t *testing.T) {
		c.view.Nodes[2].State = state.Dead
		c.apply()
		if got, _ := c.nodes[0].ov.PeerVia(id3); len(got) != 1 {
			t.Errorf("dead node reached via %v", got)
		}
		c.view.Nodes = c.view.Nodes[:2]
		c.nodes = c.nodes[:2]
		c.nodes[0].ops.take()
		c.apply()
		want := []string{"ip route del 10.244.3.0/24 via 192.0.2.3 dev nv-pods onlink proto 78 src 10.244.1.1",
			"bridge fdb del " + id3.VTEPMAC().String() + " dev nv-pods dst 192.0.2.3 self permanent",
			"ip neigh del 192.0.2.3 lladdr " + id3.VTEPMAC().String() + " dev nv-pods nud permanent"}
		if diff := cmp.Diff(want, c.nodes[0].ops.take()); diff != "" {
			t.Errorf("operations (-want +got):\n%s", diff)
		}
	})
	t.Run("network renamed", func(t *testing.T) {
		// The same VNI and port move to another device.
		n := &c.view.Networks[0]
		n.Name = "blue"
		for i := range c.view.Nodes {
			c.view.Nodes[i].Blocks[0].Network = "blue"
		}
		c.apply()
		for _, gone := range []string{"nv-pods", "nn-pods"} {
			if c.nodes[0].ov.Exists(gone) {
				t.Errorf("%s is still there", gone)
			}
		}
		c.nodes[1].echo("10.244.2.1:7")
		mustAsk(t, c.nodes[0].testNS, "10.244.2.1:7", "10.244.1.1")
	})
}

func TestForeignObjectsAreRespected(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 2)
	n := c.nodes[0]
	n.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "nn-pods"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(block(1)), Gw: []byte{192, 0, 2, 9}, LinkIndex: l.Attrs().Index, Protocol: unix.RTPROT_STATIC})
	})
	n.start(t.TempDir())
	n.ov.Set(c.plan(0))
	n.wait("the report", func() bool { return n.ov.Status().Error != "" })
	s := n.ov.Status()
	if s.OK || !strings.Contains(s.Error, "link nn-pods (bridge) is in the way") || !strings.Contains(s.Error, "route 10.244.2.0/24") || s.Fix == "" {
		t.Errorf("status %+v", s)
	}
	for _, op := range n.ops.take() {
		if strings.Contains(op, "nn-pods") || strings.Contains(op, "10.244.2.0/24") {
			t.Errorf("touched what is not ours: %s", op)
		}
	}
	// Once out of the way, the plan is reached.
	n.do(func() error {
		l, err := netlink.LinkByName("nn-pods")
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(l); err != nil {
			return err
		}
		return netlink.RouteDel(&netlink.Route{Dst: ipNet(block(1)), Protocol: unix.RTPROT_STATIC})
	})
	n.wait("the plan", func() bool { return n.ov.Status().OK })
}
