package ipam

import (
	"context"
	"errors"
	"testing"

	"nodenet/state"
)

// A heir that has heard of a part only must not take itself for the one that
// makes rings: it would found a ring that exists.
func TestHalfKnownHeirFoundsNothing(t *testing.T) {
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	a, b := c.nodes[0], c.nodes[1]
	found(t, a, NetworkSpec(pods), ServicesSpec(vipRange))
	put(t, a.store, Leave(a.store.Snapshot(), a.id, ringID, b.id)...)
	for _, rec := range RingRecords(a.store.Snapshot(), state.RingServices, ringID) {
		if rec.Version.Gen > 1 {
			if _, err := b.store.Merge(wire([]state.Record{rec}), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := Donate(b.store.Snapshot(), b.id, ringID, Ask{Ring: "pods", RingID: ringID, To: a.id, Prefix: pods.Prefix, Block: 24})
	if !errors.Is(err, ErrNoRing) {
		t.Errorf("donate: error %v, want %v", err, ErrNoRing)
	}
}

type heir struct{ c *cluster }

func (h heir) Take(_ context.Context, to state.NodeID, recs []state.Record) error {
	_, err := h.c.byID[to].store.Merge(wire(recs), true)
	return err
}

func TestHandOver(t *testing.T) {
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	a, b := c.nodes[0], c.nodes[1]
	found(t, a, NetworkSpec(pods), ServicesSpec(vipRange))
	must(t, a, req(pods, "pod"))
	put(t, a.store, state.Put(state.Cluster, state.KindVIP, "default/web", state.VIP{Addr: ip("10.9.0.11")}))
	give := func() error { return HandOver(context.Background(), a.store, a.id, ringID, b.id, heir{c}) }
	if err := give(); !errors.Is(err, ErrInUse) {
		t.Errorf("with an endpoint: error %v, want %v", err, ErrInUse)
	}
	put(t, a.store, state.Del(state.Owner, state.KindEndpoint, "pod"))
	for range 2 { // again: nothing new
		if err := give(); err != nil {
			t.Fatal(err)
		}
	}
	sn := b.store.Snapshot()
	for _, spec := range []Spec{NetworkSpec(pods), ServicesSpec(vipRange)} {
		if r := Resolve(sn, spec.Ring, ringID); !r.Owns(b.id, spec.Prefix) {
			t.Errorf("ring %s: %+v", spec.Ring, r.Parts)
		}
	}
	if !MayFound(sn, b.id, ringID) || MayFound(a.store.Snapshot(), a.id, ringID) {
		t.Error("the right to make rings did not move")
	}
	if _, err := AllocateVIP(sn, b.id, ringID, vipRange, nil, ip("10.9.0.11")); !errors.Is(err, ErrInUse) {
		t.Errorf("a VIP in use: error %v, want %v", err, ErrInUse)
	}
}
