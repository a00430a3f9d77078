package ipam

import (
	"net/netip"
	"testing"
	"time"

	"nodenet/state"
)

// TestNamedIPv6AddressHoldsItsOffset: a service that names an IPv6 address has
// the IPv4 address with its offset, or keeps it from others.
func TestNamedIPv6AddressHoldsItsOffset(t *testing.T) {
	prefix := pfx("10.96.0.0/28")
	c := newCluster(t, 1)
	t.Cleanup(c.close)
	a := c.nodes[0]
	found(t, a, ServicesSpec(prefix))
	put(t, a.store,
		state.Put(state.Owner, state.KindNode, "self", state.Node{Name: "a", ServiceRange: prefix, ServiceRange6: pfx("fd00:10:96::/124")}),
		state.Put(state.Owner, state.KindService, "default/db", state.Service{Namespace: "default", Name: "db", VIP6: ip("fd00:10:96::1"), Families: state.FamilyV6}))
	got, err := AllocateVIP(a.store.Snapshot(), a.id, ringID, prefix, nil, netip.Addr{})
	if err != nil || got != ip("10.96.0.2") {
		t.Errorf("allocated %v, %v, want 10.96.0.2", got, err)
	}
	e := Explain(a.store.Snapshot(), ringID, nil, ServicesSpec(prefix), ip("10.96.0.1"), time.Now())
	if len(e.Holders) != 1 || e.Holders[0].Name != "db.default" || e.Holders[0].Detail != "given as fd00:10:96::1 by its " {
		t.Errorf("holders %+v", e.Holders)
	}
}
