package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"nodenet/state"
)

func TestAttach(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	n := c.nodes[0]
	w := newNS(t, "w")
	s := spec("ctr1", w, "10.244.1.2/24")
	s.ExtraRoutes = []netip.Prefix{pfx("203.0.113.0/24")}
	res, err := n.ov.Attach(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want := AttachResult{HostIf: HostIfName("ctr1"), HostMAC: hostMAC("ctr1"), MAC: derivedMAC("port", "ctr1"),
		BridgeMAC: derivedMAC("bridge", string(id1)+" pods"), MTU: 1450}
	if diff := cmp.Diff(want, res); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if err := n.ov.CheckAttached(t.Context(), s); err != nil {
		t.Error(err)
	}
	if !n.ov.Exists(res.HostIf) {
		t.Error("Exists says no")
	}
	ports, err := n.ov.Ports()
	if diff := cmp.Diff(map[string]string{res.HostIf: "pods"}, ports); err != nil || diff != "" {
		t.Errorf("Ports: %v (-want +got):\n%s", err, diff)
	}
	// The announcement has taught the bridge's node the workload's MAC, or the
	// first packet will: either way the first answer comes.
	w.echo("10.244.1.2:7")
	mustAsk(t, n.testNS, "10.244.1.2:7", "10.244.1.1")

	t.Run("check says what differs", func(t *testing.T) {
		w.do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMTU(l, 1400); err != nil {
				return err
			}
			return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(s.Addr)})
		})
		err := n.ov.CheckAttached(t.Context(), s)
		for _, want := range []string{"has the MTU 1400, not 1450", "has not got the address 10.244.1.2/24", "no route 0.0.0.0/0 via 10.244.1.1"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("check: %v, want it to say %q", err, want)
			}
		}
	})
	t.Run("the name inside is taken", func(t *testing.T) {
		before, hostBefore := w.snapshot(), n.snapshot()
		s := spec("ctr2", w, "10.244.1.3/24")
		if _, err := n.ov.Attach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "eth0 exists already") {
			t.Errorf("attach: %v", err)
		}
		if diff := cmp.Diff(before, w.snapshot()); diff != "" {
			t.Errorf("inside changed (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(hostBefore, n.snapshot()); diff != "" {
			t.Errorf("host changed (-before +after):\n%s", diff)
		}
	})
	t.Run("detach twice", func(t *testing.T) {
		for range 2 {
			if err := n.ov.Detach(t.Context(), DetachSpec{ID: "ctr1", HostIf: res.HostIf}); err != nil {
				t.Error(err)
			}
		}
		if n.ov.Exists(res.HostIf) {
			t.Error("the host side is still there")
		}
		if err := n.ov.CheckAttached(t.Context(), s); err == nil || !strings.Contains(err.Error(), "there is no eth0") {
			t.Errorf("check after detach: %v", err)
		}
	})
}

func TestAttachRollsBack(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	n := c.nodes[0]
	tests := []struct {
		name string
		spec func(AttachSpec) AttachSpec
		want string
	}{
		{"a route that cannot be", func(s AttachSpec) AttachSpec {
			s.Gateway, s.ExtraRoutes = ip("2001:db8::1"), []netip.Prefix{pfx("203.0.113.0/24")}
			return s
		}, "add route 203.0.113.0/24"},
		{"no namespace", func(s AttachSpec) AttachSpec { s.NetnsPath = "/proc/self/ns/nothing"; return s }, "open network namespace"},
		{"not a namespace", func(s AttachSpec) AttachSpec { s.NetnsPath = t.TempDir(); return s }, "not a namespace"},
		{"bad MAC", func(s AttachSpec) AttachSpec { s.MAC = "no"; return s }, "parse MAC"},
		{"the node's own namespace", func(s AttachSpec) AttachSpec { s.NetnsPath = n.path; return s }, "is the node's own"},
		{"unknown mode", func(s AttachSpec) AttachSpec { s.Mode = "macvlan"; return s }, "not known"},
		{"unknown network", func(s AttachSpec) AttachSpec { s.Network = "blue"; return s }, "not known on this node"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newNS(t, "w")
			host := n.snapshot()
			s := tt.spec(spec("bad", w, "10.244.1.2/24"))
			if _, err := n.ov.Attach(t.Context(), s); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("attach: %v, want it to say %q", err, tt.want)
			}
			if diff := cmp.Diff(host, n.snapshot()); diff != "" {
				t.Errorf("host changed (-before +after):\n%s", diff)
			}
			w.do(func() error {
				if _, err := netlink.LinkByName("eth0"); !isNoLink(err) {
					t.Errorf("eth0 inside: %v", err)
				}
				return nil
			})
			// The same ID succeeds afterwards.
			if _, err := n.ov.Attach(t.Context(), spec("bad", w, "10.244.1.2/24")); err != nil {
				t.Error(err)
			}
			if err := n.ov.Detach(t.Context(), DetachSpec{ID: "bad"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAttachWaitsForTheBridge(t *testing.T) {
	c := newCluster(t, state.OverlayNone, 1)
	n := c.nodes[0]
	n.start(t.TempDir())
	w := newNS(t, "w")
	s := spec("early", w, "10.244.1.2/24")
	s.Bridge, s.MTU = "nn-pods", 1400
	done := make(chan error, 1)
	go func() {
		_, err := n.ov.Attach(context.Background(), s)
		done <- err
	}()
	n.ov.Set(c.plan(0))
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	s.ID, s.Bridge = "never", "nn-other"
	if _, err := n.ov.Attach(ctx, s); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nn-other does not exist") {
		t.Errorf("attach without a bridge: %v", err)
	}
}

func TestAttachModeNone(t *testing.T) {
	c := newCluster(t, state.OverlayNone, 1)
	c.start()
	w := newNS(t, "w")
	w.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(lo)
	})
	s := AttachSpec{ID: "lonely", Network: "pods", NetnsPath: w.path, Mode: ModeNone}
	if err := c.nodes[0].ov.CheckAttached(t.Context(), s); err == nil {
		t.Error("check with lo down: no error")
	}
	if res, err := c.nodes[0].ov.Attach(t.Context(), s); err != nil || res != (AttachResult{}) {
		t.Errorf("attach: %+v, %v", res, err)
	}
	if err := c.nodes[0].ov.CheckAttached(t.Context(), s); err != nil {
		t.Error(err)
	}
	if err := c.nodes[0].ov.Detach(t.Context(), DetachSpec{ID: "lonely"}); err != nil {
		t.Error(err)
	}
}

// A workload that asks DHCP for its address gets neither address nor routes.
func TestAttachWithoutAddress(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	w := newNS(t, "w")
	s := spec("vm", w, "10.244.1.2/24")
	s.Addr = netip.Prefix{}
	if _, err := c.nodes[0].ov.Attach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].ov.CheckAttached(t.Context(), s); err != nil {
		t.Error(err)
	}
	w.do(func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if len(routes) > 0 {
			t.Errorf("routes inside: %v", routes)
		}
		return err
	})
}

// A link that is not ours is never deleted, whatever the caller says.
func TestDetachSparesForeignLinks(t *testing.T) {
	c := newCluster(t, state.OverlayNone, 1)
	c.start()
	if err := c.nodes[0].ov.Detach(t.Context(), DetachSpec{HostIf: "eth0"}); !errors.Is(err, ErrForeign) {
		t.Errorf("detach eth0: %v", err)
	}
	if err := c.nodes[0].ov.Detach(t.Context(), DetachSpec{}); err == nil {
		t.Error("detach of nothing: no error")
	}
}

func TestArpAnnouncement(t *testing.T) {
	got := arpAnnouncement(net.HardwareAddr{2, 0, 0, 0, 0, 1}, ip("192.0.2.7"))
	want := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
		2, 0, 0, 0, 0, 1, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("frame (-want +got):\n%s", diff)
	}
}

// Detaching needs no namespace: it may be gone, with its end of the pair.
func TestDetachAfterTheNamespace(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	n := c.nodes[0]
	w := newNS(t, "w")
	if _, err := n.ov.Attach(t.Context(), spec("ctr", w, "10.244.1.2/24")); err != nil {
		t.Fatal(err)
	}
	w.do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l) // what the kernel does with a namespace that goes
	})
	if n.ov.Exists(HostIfName("ctr")) {
		t.Error("the host side outlives its peer")
	}
	if err := n.ov.Detach(t.Context(), DetachSpec{ID: "ctr"}); err != nil {
		t.Error(err)
	}
}

// What a daemon left behind that died in the middle of an attachment does not
// keep the same ID from being attached again.
func TestAttachOverStaleHostSide(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	n := c.nodes[0]
	n.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = HostIfName("ctr")
		attrs.HardwareAddr, _ = net.ParseMAC(hostMAC("ctr")) // the alias was yet to come
		v := netlink.NewVeth(attrs)
		v.PeerName = "halfway"
		return netlink.LinkAdd(v)
	})
	w := newNS(t, "w")
	if _, err := n.ov.Attach(t.Context(), spec("ctr", w, "10.244.1.2/24")); err != nil {
		t.Fatal(err)
	}
	if err := n.ov.CheckAttached(t.Context(), spec("ctr", w, "10.244.1.2/24")); err != nil {
		t.Error(err)
	}
}

func TestParallelAttach(t *testing.T) {
	c := newCluster(t, state.OverlayVXLAN, 1)
	c.start()
	n := c.nodes[0]
	const count = 8
	errs := make(chan error, count)
	for i := range count {
		w := newNS(t, fmt.Sprintf("w%d", i))
		s := spec(fmt.Sprintf("ctr%d", i), w, fmt.Sprintf("10.244.1.%d/24", i+2))
		go func() {
			_, err := n.ov.Attach(t.Context(), s)
			errs <- errors.Join(err, n.ov.CheckAttached(t.Context(), s))
		}()
	}
	for range count {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if ports, err := n.ov.Ports(); err != nil || len(ports) != count {
		t.Errorf("ports %v, %v", ports, err)
	}
	if s := n.ov.Status(); s.Drift != 0 {
		t.Errorf("attachments count as drift: %+v", s)
	}
}
