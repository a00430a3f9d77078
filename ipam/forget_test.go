package ipam

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"nodenet/state"
)

func restFor(d time.Duration) func(string) time.Duration {
	return func(string) time.Duration { return d }
}

// forget makes a node take over the space of another.
func forget(tb fatal, n, dead *simNode, rest time.Duration) {
	tb.Helper()
	err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
		f := state.Forgotten{By: n.id, At: time.Now().Unix(), Epoch: dead.epoch}
		ops, err := Forget(sn, n.id, ringID, dead.id, restFor(rest), time.Now())
		return append(ops, state.Put(state.Cluster, state.KindForgotten, string(dead.id), f)), err
	})
	if err != nil {
		tb.Fatalf("forget: %v", err)
	}
}

// pair is two nodes of which the second has a block with an endpoint in it,
// a VIP and a node port.
func pair(t *testing.T) (c *cluster, a, b *simNode, held netip.Addr) {
	t.Helper()
	c = newCluster(t, 2)
	t.Cleanup(c.close)
	a, b = c.nodes[0], c.nodes[1]
	found(t, a, simSpecs...)
	c.sync(t)
	for _, spec := range simSpecs {
		if err := Grow(context.Background(), b.store, b.id, ringID, spec, netip.Prefix{}, c); err != nil {
			t.Fatal(err)
		}
	}
	g, err := attach(b.store, b.id, b.alloc.Allocate, Request{Network: podsNet, RingID: ringID, ID: "e", Namespace: "default", Name: "db", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	c.sync(t)
	return c, a, b, g.Addr
}

func TestTakenOverSpaceRests(t *testing.T) {
	_, a, b, held := pair(t)
	forget(t, a, b, time.Hour)
	sn := a.store.Snapshot()
	for _, spec := range simSpecs {
		r := Resolve(sn, spec.Ring, ringID)
		if got := r.Owners(); len(got) != 1 || got[0] != a.id {
			t.Errorf("ring %s is owned by %v", spec.Ring, got)
		}
	}
	want := Request{Network: podsNet, RingID: ringID, ID: "x", Want: held, Now: time.Now()}
	if _, err := attach(a.store, a.id, a.alloc.Allocate, want); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "rests until") {
		t.Errorf("an address of what rests: %v", err)
	}
	block := netip.PrefixFrom(held, 29).Masked()
	for range 40 {
		g, err := attach(a.store, a.id, a.alloc.Allocate, Request{Network: podsNet, RingID: ringID, ID: time.Now().String(), Now: time.Now()})
		if err != nil {
			break
		}
		if Resolve(sn, "pods", ringID).Parts[0].Until == 0 && block.Contains(g.Addr) {
			t.Fatalf("gave out %s of block %s, which rests", g.Addr, block)
		}
	}
	r := Resolve(a.store.Snapshot(), state.RingServices, ringID)
	rests := normal(r.quarantine(time.Now()))
	if len(rests) == 0 {
		t.Fatal("no VIP rests")
	}
	if _, err := AllocateVIP(sn, a.id, ringID, vipRange, nil, rests[0].to); !errors.Is(err, ErrInUse) {
		t.Errorf("a VIP that rests: %v", err)
	}
	if got, err := AllocateVIP(sn, a.id, ringID, vipRange, nil, netip.Addr{}); err != nil || covers(rests, span{got, got}) {
		t.Errorf("VIP %s, %v: it rests", got, err)
	}
	ports := Resolve(sn, state.RingNodePorts, ringID)
	for p := uint16(30000); p <= 30015; p++ {
		_, err := AllocateNodePort(sn, a.id, ringID, 30000, 30015, p)
		if _, rests := ports.resting(span{PortAddr(p), PortAddr(p)}, time.Now()); rests != (err != nil) {
			t.Errorf("node port %d: rests %v, %v", p, rests, err)
		}
	}
	// What rests is not given to others either, and Grow says so.
	if _, err := Donate(sn, a.id, ringID, Ask{Ring: "pods", RingID: ringID, To: nodeID(7), Block: 29, Want: block}); !errors.Is(err, ErrInUse) {
		t.Errorf("donated what rests: %v", err)
	}
	// An hour later it can be had.
	want.Now = time.Now().Add(2 * time.Hour)
	if g, err := attach(a.store, a.id, a.alloc.Allocate, want); err != nil || g.Addr != held {
		t.Errorf("after the quarantine: %v, %v", g.Addr, err)
	}
}

func TestForgottenNodeGivesWay(t *testing.T) {
	c, a, b, held := pair(t)
	forget(t, a, b, 0)
	// The new owner uses the address, the VIP and the node port again.
	if _, err := attach(a.store, a.id, a.alloc.Allocate, Request{Network: podsNet, RingID: ringID, ID: "y", Name: "web", Namespace: "apps", Want: held, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if got := Strays(a.store.Snapshot(), ringID); len(got) != 0 {
		t.Errorf("what a node left that is gone is in nobody's way: %+v", got)
	}
	b.close()
	b.open(t)
	c.sync(t)
	sn := b.store.Snapshot()
	if r := Resolve(sn, "pods", ringID); len(r.Owned(b.id)) > 0 {
		t.Errorf("the node that came back believes that it owns %v", r.Owned(b.id))
	}
	if _, err := attach(b.store, b.id, b.alloc.Allocate, Request{Network: podsNet, RingID: ringID, ID: "z", Now: time.Now()}); !errors.Is(err, ErrNeedSpace) {
		t.Errorf("it gave out an address of what it lost: %v", err)
	}
	// Before it gives way it takes nothing over, its own space least of all.
	if _, err := Forget(sn, b.id, ringID, a.id, restFor(0), time.Now()); !errors.Is(err, ErrGiveWay) {
		t.Errorf("it forgets others: %v", err)
	}
	if err := write(b.store, func(sn *state.Snapshot) ([]state.Op, error) { return GiveWay(sn, b.id, ringID), nil }); err != nil {
		t.Fatal(err)
	}
	sn = b.store.Snapshot()
	if ops, err := Forget(sn, b.id, ringID, a.id, restFor(0), time.Now()); err != nil || len(ops) == 0 {
		t.Errorf("it forgets nobody afterwards: %v, %v", ops, err)
	}
	for rec, bl := range state.All[state.Block](sn) {
		if rec.ID.Owner == b.id {
			t.Errorf("block %s is still open", bl.Prefix)
		}
	}
	ep, ok := state.Lookup[state.Endpoint](sn, state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: b.id, Key: "e"})
	if !ok || ep.Ready || !strings.Contains(ep.Why, held.String()) {
		t.Errorf("endpoint in a lost block: %+v", ep)
	}
	if ops := GiveWay(sn, b.id, ringID); len(ops) > 0 {
		t.Errorf("gives way again: %v", ops)
	}
	c.sync(t)
	got := Strays(a.store.Snapshot(), ringID)
	if len(got) != 1 || got[0].Addr != held || got[0].Node != b.id || got[0].Owner != a.id || got[0].Also != "apps/web" {
		t.Errorf("strays %+v", got)
	}
}

// Two sides that forget the same node by force claim its space with one
// generation: that is seen, and one of them stops.
func TestForcedTwiceIsContested(t *testing.T) {
	c := newCluster(t, 3)
	t.Cleanup(c.close)
	found(t, c.nodes[0], simSpecs...)
	c.sync(t)
	for _, n := range c.nodes[1:] {
		if err := Grow(context.Background(), n.store, n.id, ringID, simSpecs[0], netip.Prefix{}, c); err != nil {
			t.Fatal(err)
		}
	}
	c.sync(t)
	a, dead, b := c.nodes[0], c.nodes[1], c.nodes[2]
	dead.down = true
	for _, n := range []*simNode{a, b} {
		forget(t, n, dead, 0)
		for _, p := range Resolve(n.store.Snapshot(), "pods", ringID).Owned(n.id) {
			if _, err := attach(n.store, n.id, n.alloc.Allocate, Request{Network: podsNet, RingID: ringID, ID: p.String(), Want: p.Addr().Next().Next(), Now: time.Now()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	merge(t, a, b, nil, 0)
	merge(t, b, a, nil, 0)
	winner := min(a.id, b.id)
	for _, n := range []*simNode{a, b} {
		sn := n.store.Snapshot()
		r := Resolve(sn, "pods", ringID)
		parts := r.Contested()
		if len(parts) == 0 || parts[0].Owner != winner {
			t.Fatalf("contested: %+v, want %s to go on", parts, winner.Short())
		}
		ops := GiveWay(sn, n.id, ringID)
		if (len(ops) > 0) != (n.id != winner) {
			t.Errorf("%s gives way with %d ops", n.id.Short(), len(ops))
		}
		if n.id != winner {
			s := spanOf(netip.PrefixFrom(parts[0].From, 29))
			_, err := attach(n.store, n.id, n.alloc.Allocate, Request{Network: podsNet, RingID: ringID, ID: "l", Want: s.from.Next().Next().Next(), Now: time.Now()})
			if err == nil {
				t.Error("the loser goes on giving out addresses")
			}
		}
	}
}

func TestDescribeAndExplain(t *testing.T) {
	_, a, b, held := pair(t)
	sn, now := a.store.Snapshot(), time.Now()
	u := Describe(sn, ringID, simSpecs[0], &podsNet, now)
	var units, used, blocks int
	for _, p := range u.Parts {
		units, used, blocks = units+int(p.Units), used+int(p.Used), blocks+len(p.Blocks)
	}
	if units != 8 || used != 1 || blocks != 1 {
		t.Errorf("%d units, %d used, %d blocks, want 8, 1, 1: %+v", units, used, blocks, u.Parts)
	}
	if v := Describe(sn, ringID, simSpecs[2], nil, now); v.Parts[0].From != PortAddr(30000) || v.Parts[len(v.Parts)-1].To != PortAddr(30015) {
		t.Errorf("node ports: %+v", v.Parts)
	}
	block := netip.PrefixFrom(held, 29).Masked()
	for _, tt := range []struct {
		addr netip.Addr
		what string // of the holder; "": free
		want string // in Name, Detail or Free
	}{
		{held, "endpoint", "db.default"},
		{block.Addr().Next(), "gateway", "bridge"},
		{block.Addr(), "", "network address"},
		{held.Next(), "", "free"},
		{ip("10.0.0.2"), "", "nobody has opened"},
		{resolver, "resolver", "dns"},
		{vipRange.Addr(), "", "end of the range"},
	} {
		e := Explain(sn, ringID, []state.Network{podsNet}, simSpecs[1], tt.addr, now)
		text := e.Free
		if len(e.Holders) > 0 {
			text = e.Holders[0].Name + " " + e.Holders[0].Detail
			if e.Holders[0].What != tt.what {
				t.Errorf("%s: %s, want %s", tt.addr, e.Holders[0].What, tt.what)
			}
		} else if tt.what != "" {
			t.Errorf("%s: nobody has it, want %s", tt.addr, tt.what)
		}
		if !strings.Contains(text, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.addr, text, tt.want)
		}
	}
	e := Explain(sn, ringID, []state.Network{podsNet}, simSpecs[1], held, now)
	r := e.Range.Val().(*state.Range)
	if e.Part.Owner != b.id || r.Donor != a.id || e.Opened == nil || e.Opened.ID.Owner != b.id || e.Block != block {
		t.Errorf("explanation %+v", e)
	}
	if e := Explain(sn, ringID, []state.Network{podsNet}, simSpecs[1], ip("192.0.2.1"), now); e.Ring != "" {
		t.Errorf("a foreign address lies in %s", e.Ring)
	}
}
