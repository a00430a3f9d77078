package overlay

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"context"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"nodenet/state"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fakeOverlay(t interface{ Fatal(...any) }, k Kernel, dir string) (*Overlay, *transcript) {
	tr := &transcript{}
	o, err := New(Options{Kernel: k, Logger: tr.logger(), StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return o, tr
}

// The operations that build a plan from nothing are the plan's own text.
func TestApplyIsThePlansText(t *testing.T) {
	k := newFake()
	o, tr := fakeOverlay(t, k, "")
	p := Derive(testView(state.OverlayVXLAN, "10.244.1.0/24"), testLocal())
	o.Set(p)
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, l := range strings.Split(strings.TrimSpace(p.String()), "\n") {
		l, _, _ = strings.Cut(l, "  #")
		want = append(want, l)
	}
	if diff := cmp.Diff(want, tr.take()); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ops := tr.take(); len(ops) != 0 {
		t.Errorf("second apply: %v", ops)
	}
	if len(k.broken) > 0 {
		t.Error(k.broken)
	}
}

// drawView makes one of many views of up to four nodes and two networks.
func drawView(t *rapid.T) *state.View {
	overlays := []string{state.OverlayVXLAN, state.OverlayAuto, state.OverlayRoutes, state.OverlayNone}
	v := &state.View{Rev: 1, Self: id1}
	nets := []state.NetworkView{
		{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16")}},
		{Network: state.Network{Name: "blue", Prefix: pfx("10.200.0.0/16")}},
	}
	for _, n := range nets[:rapid.IntRange(0, 2).Draw(t, "networks")] {
		n.Overlay = rapid.SampledFrom(overlays).Draw(t, "overlay")
		n.VNI = uint32(rapid.IntRange(1, 2).Draw(t, "vni"))
		n.MTU = rapid.SampledFrom([]int{0, 1400}).Draw(t, "mtu")
		n.NoGateway = rapid.IntRange(0, 5).Draw(t, "nogw") == 0
		base := n.Prefix.Addr().As4()
		block := func(i int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1], byte(i), 0}), 24)
		}
		for i := range rapid.IntRange(0, 2).Draw(t, "own") {
			n.Own = append(n.Own, block(1+10*i))
		}
		if rapid.Bool().Draw(t, "gateway") {
			g := base
			g[2], g[3] = 1, 254
			n.Gateway = netip.AddrFrom4(g)
		}
		if len(v.Networks) == 1 && v.Networks[0].VNI == n.VNI {
			n.VNI += 2 // the configuration refuses two networks with one VNI
		}
		v.Networks = append(v.Networks, n)
	}
	for i, nv := range []state.NodeView{node(id1, "node1", "192.0.2.1", lan1), node(id2, "node2", "192.0.2.2", lan1),
		node(id3, "node3", "192.0.2.3", lan1), node(id4, "node4", "198.51.100.4", lan2)} {
		if i > 0 && rapid.Bool().Draw(t, "absent") {
			continue
		}
		for _, n := range v.Networks {
			base := n.Prefix.Addr().As4()
			if rapid.Bool().Draw(t, "has a block") {
				// Sometimes somebody else's, to have contested ones.
				b := netip.AddrFrom4([4]byte{base[0], base[1], byte(rapid.IntRange(1, 5).Draw(t, "block")), 0})
				nv.Blocks = append(nv.Blocks, state.Block{Network: n.Name, Prefix: netip.PrefixFrom(b, 24)})
			}
		}
		nv.State = rapid.SampledFrom([]state.Liveness{state.Alive, state.Dead}).Draw(t, "state")
		v.Nodes = append(v.Nodes, nv)
	}
	return v
}

// From any plan to any other: converges, in an order that the kernel accepts,
// and then has nothing left to do; with one failing operation it converges at
// the next try.
func TestRandomTransitions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newFake()
		o, tr := fakeOverlay(t, k, "")
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			p := Derive(drawView(t), testLocal())
			k.failIn = rapid.IntRange(0, 12).Draw(t, "fail in")
			failing := k.failIn
			o.Set(p)
			err := o.reconcile(context.Background())
			if failing == 0 && err != nil {
				t.Fatalf("apply: %v\nplan:\n%s", err, p)
			}
			k.failIn = 0
			if err := o.reconcile(context.Background()); err != nil {
				t.Fatalf("apply after an error: %v\nplan:\n%s", err, p)
			}
			// After an error the order is repaired, not kept.
			if failing == 0 && len(k.broken) > 0 {
				t.Fatalf("order: %v\noperations:\n%s", k.broken, strings.Join(tr.take(), "\n"))
			}
			k.broken = nil
			tr.take()
			if err := o.reconcile(context.Background()); err != nil {
				t.Fatal(err)
			}
			if ops := tr.take(); len(ops) != 0 {
				t.Fatalf("applied twice, the second time did %v", ops)
			}
			if s := o.Status(); s.Applied != p.Rev {
				t.Fatalf("status %+v", s)
			}
			for _, r := range o.Routes() {
				if !r.InKernel {
					t.Fatalf("not in the kernel: %+v", r)
				}
			}
		}
	})
}

// An operation that fails does not keep the others from being done.
func TestErrorDoesNotStopTheRest(t *testing.T) {
	k := newFake()
	k.foreign = []Route{{Prefix: pfx("10.244.2.0/24"), Dev: "eth0"}}
	o, _ := fakeOverlay(t, k, "")
	o.Set(Derive(testView(state.OverlayVXLAN, "10.244.1.0/24"), testLocal()))
	if err := o.reconcile(t.Context()); !errors.Is(err, ErrForeign) {
		t.Errorf("reconcile: %v", err)
	}
	if _, ok := k.routes[routeKey{prefix: pfx("10.244.3.0/24")}]; !ok {
		t.Error("the other routes are missing")
	}
	if _, ok := k.routes[routeKey{prefix: pfx("10.244.2.0/24")}]; ok {
		t.Error("the foreign route was replaced")
	}
	s := o.Status()
	if s.OK || s.Applied != 0 || s.Desired != 7 || s.Fix == "" {
		t.Errorf("status %+v", s)
	}
}

// A daemon that died between making a link and naming it its own finds it again.
func TestLinkWithoutAliasIsAdopted(t *testing.T) {
	k := newFake()
	o, tr := fakeOverlay(t, k, "")
	p := Derive(testView(state.OverlayVXLAN, "10.244.1.0/24"), testLocal())
	o.Set(p)
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	tr.take()
	for name, l := range k.links {
		l.Ours, l.Network = false, ""
		k.links[name] = l
	}
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"ip link set nn-pods alias nodenet:pods", "ip link set nv-pods alias nodenet:pods"}
	if diff := cmp.Diff(want, tr.take()); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

// Run backs off on errors and recovers, on a clock of the test's own.
func TestRunBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFake()
		k.failIn = 3
		o, tr := fakeOverlay(t, k, "")
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- o.Run(ctx) }()
		start := time.Now()
		o.Set(Derive(testView(state.OverlayVXLAN, "10.244.1.0/24"), testLocal()))
		for o.Status().Applied != 7 {
			o.mu.Lock()
			changed := o.changed
			o.mu.Unlock()
			<-changed
		}
		if d := time.Since(start); d != backoffMin {
			t.Errorf("recovered after %v, want %v", d, backoffMin)
		}
		synctest.Wait()
		tr.take()
		// Somebody deletes a route and no event tells: the tick finds out.
		o.opMu.Lock()
		clear(k.routes)
		o.opMu.Unlock()
		time.Sleep(tick + time.Second)
		synctest.Wait()
		if s := o.Status(); len(tr.take()) == 0 || s.Drift == 0 || !strings.Contains(s.Detail, "repaired") {
			t.Errorf("after the tick: %+v", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSysctlsAreRecordedBeforeTheChange(t *testing.T) {
	dir := t.TempDir()
	k := newFake()
	k.failIn = 1 // the very first change fails: the record must be there all the same
	o, _ := fakeOverlay(t, k, dir)
	o.Set(Derive(testView(state.OverlayVXLAN, "10.244.1.0/24"), testLocal()))
	if err := o.reconcile(t.Context()); !errors.Is(err, errInjected) {
		t.Fatalf("reconcile: %v", err)
	}
	read := func() map[string]sysctlChange {
		b, err := os.ReadFile(filepath.Join(dir, "sysctl.json"))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]sysctlChange{}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := map[string]sysctlChange{
		"net/ipv4/ip_forward":              {Before: "0", Set: "1"},
		"net/ipv4/conf/all/send_redirects": {Before: "1", Set: "0"},
	}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.sysctls["net/ipv4/ip_forward"] = "0" // drift must not overwrite the first record
	k.sysctls["net/ipv4/conf/all/send_redirects"] = "7"
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("record after drift (-want +got):\n%s", diff)
	}
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	o, err := New(Options{Kernel: newFake(), Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	o.Set(Derive(testView(state.OverlayVXLAN, "10.244.1.0/24"), testLocal()))
	if err := o.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		got = append(got, f.GetName())
	}
	want := []string{"nodenet_overlay_drift_repairs_total", "nodenet_overlay_operations_total", "nodenet_overlay_peers",
		"nodenet_overlay_reconcile_duration_seconds", "nodenet_overlay_reconcile_errors_total", "nodenet_overlay_routes"}
	if !slices.Equal(got, want) {
		t.Errorf("metrics %v, want %v", got, want)
	}
}
