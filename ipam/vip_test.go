package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"nodenet/state"
)

func TestAllocateVIP(t *testing.T) {
	prefix, dns := pfx("10.96.0.0/28"), ip("10.96.0.10")
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	a, b := c.nodes[0], c.nodes[1]
	found(t, a, ServicesSpec(prefix), NodePortsSpec(30000, 30003))
	put(t, a.store, state.Put(state.Owner, state.KindService, "default/db", state.Service{Namespace: "default", Name: "db", VIP: ip("10.96.0.12")}))
	c.sync(t)
	next := func(n *simNode, want string) (netip.Addr, error) {
		var w netip.Addr
		if want != "" {
			w = ip(want)
		}
		return AllocateVIP(n.store.Snapshot(), n.id, ringID, prefix, []netip.Addr{dns}, w)
	}
	for _, tt := range []struct {
		node *simNode
		want string
		is   error
	}{
		{a, "10.96.0.3", nil}, {a, "10.96.0.10", ErrInUse}, {a, "10.96.0.12", ErrInUse}, {a, "10.96.0.0", ErrInUse},
		{a, "10.96.0.15", ErrInUse}, {a, "10.97.0.1", ErrNotOurs}, {b, "10.96.0.3", ErrNeedSpace}, {b, "", ErrNeedSpace},
	} {
		if _, err := next(tt.node, tt.want); !errors.Is(err, tt.is) || (err == nil) != (tt.is == nil) {
			t.Errorf("want %q: error %v, want %v", tt.want, err, tt.is)
		}
	}
	var got []string
	for i := range 11 {
		v, err := next(a, "")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v.String())
		put(t, a.store, state.Put(state.Cluster, state.KindVIP, fmt.Sprint("default/s", i), state.VIP{Addr: v}))
	}
	want := []string{"10.96.0.11", "10.96.0.13", "10.96.0.14", "10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5", "10.96.0.6", "10.96.0.7", "10.96.0.8"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("order %v, want %v", got, want)
	}
	if v, err := next(a, ""); err != nil || v != ip("10.96.0.9") {
		t.Errorf("last: %s, %v", v, err)
	}
	put(t, a.store, state.Put(state.Cluster, state.KindVIP, "default/last", state.VIP{Addr: ip("10.96.0.9")}))
	if _, err := next(a, ""); !errors.Is(err, ErrNeedSpace) {
		t.Errorf("full: %v", err)
	}
	if r := Resolve(a.store.Snapshot(), state.RingServices, ringID); r.Owner(prefix.Addr()) != a.id {
		t.Error("the first address went away")
	}
}

func TestAllocateNodePort(t *testing.T) {
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	a, b := c.nodes[0], c.nodes[1]
	spec := NodePortsSpec(30000, 30003)
	found(t, a, ServicesSpec(pfx("10.96.0.0/28")), spec)
	put(t, a.store, state.Put(state.Owner, state.KindService, "default/web", state.Service{Namespace: "default", Name: "web", Ports: []state.ServicePort{{Port: 80, NodePort: 30001}}}))
	c.sync(t)
	pick := func(n *simNode, want uint16, taken ...uint16) (uint16, error) {
		return AllocateNodePort(n.store.Snapshot(), n.id, ringID, 30000, 30003, want, taken...)
	}
	if p, err := pick(a, 0); p != 30000 || err != nil {
		t.Errorf("first: %d, %v", p, err)
	}
	if p, err := pick(a, 0, 30000); p != 30002 || err != nil {
		t.Errorf("second of one Write: %d, %v", p, err)
	}
	for want, is := range map[uint16]error{30001: ErrInUse, 29999: ErrNotOurs, 30004: ErrNotOurs} {
		if _, err := pick(a, want); !errors.Is(err, is) {
			t.Errorf("want %d: error %v, want %v", want, err, is)
		}
	}
	if _, err := pick(b, 0); !errors.Is(err, ErrNeedSpace) {
		t.Errorf("node without ports: %v", err)
	}
	// What is given lies in the configured range, not in the upper half of all ports.
	if err := Grow(context.Background(), b.store, b.id, ringID, spec, netip.Prefix{}, c); err != nil {
		t.Fatal(err)
	}
	if p, err := pick(b, 0); err != nil || p != 30003 && p != 30002 {
		t.Errorf("after a donation: %d, %v", p, err)
	}
	for p := range 65536 {
		if AddrPort(PortAddr(uint16(p))) != uint16(p) {
			t.Fatalf("port %d", p)
		}
	}
}
