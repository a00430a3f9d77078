package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

// The IP plan: pods 10.244.0.0/16 in /24, br 192.168.15.0/24 local to a node.
var (
	pods  = state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16"), Block: 24, Overlay: state.OverlayVXLAN}
	local = state.Network{Name: "br", Prefix: pfx("192.168.15.0/24"), Overlay: state.OverlayNone, Gateway: ip("192.168.15.5")}
	noon  = time.Unix(1_700_000_000, 0)
)

func req(n state.Network, id string) Request {
	return Request{Network: n, RingID: ringID, ID: id, Namespace: "default", Name: id, Now: noon}
}

func put(t *testing.T, s *state.Store, ops ...state.Op) {
	t.Helper()
	if err := write(s, func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, n *simNode, r Request) Grant {
	t.Helper()
	g, err := attach(n.store, n.id, n.alloc.Allocate, r)
	if err != nil {
		t.Fatalf("allocate for %s: %v", r.ID, err)
	}
	return g
}

func TestAllocateFirst(t *testing.T) {
	_, n := one(t, NetworkSpec(pods))
	got := must(t, n, req(pods, "a"))
	want := Grant{Addr: ip("10.244.0.2"), Prefix: pfx("10.244.0.0/24"), Gateway: ip("10.244.0.1")}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("first grant (-want +got):\n%s", d)
	}
	for _, b := range state.All[state.Block](n.store.Snapshot()) {
		if b.Network != "pods" || b.Prefix != want.Prefix {
			t.Errorf("opened %+v", b)
		}
	}
	if g := must(t, n, req(pods, "b")); g.Addr != ip("10.244.0.3") {
		t.Errorf("second: %s", g.Addr)
	}
	if g := must(t, n, req(pods, "a")); g.Addr != ip("10.244.0.2") {
		t.Errorf("the same ID again: %s, want the address that it has", g.Addr)
	}
}

func TestAllocateWanted(t *testing.T) {
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	a, b := c.nodes[0], c.nodes[1]
	found(t, a, NetworkSpec(pods))
	put(t, a.store,
		state.Put(state.Owner, state.KindNode, "self", state.Node{Name: "node1"}),
		state.Put(state.Cluster, state.KindReservation, "pods/10.244.0.77", state.Reservation{Network: "pods", Addr: ip("10.244.0.77"), MAC: "02:00:00:00:00:07"}),
		state.Put(state.Cluster, state.KindReservation, "pods/10.244.0.78", state.Reservation{Network: "pods", Addr: ip("10.244.0.78"), Name: "db-0"}),
		leaseOp("10.244.0.50", "02:00:00:00:00:50", noon.Add(time.Hour), false),
		leaseOp("10.244.0.51", "02:00:00:00:00:51", noon.Add(-time.Second), false),
		leaseOp("10.244.0.52", "02:00:00:00:00:52", noon.Add(time.Hour), true),
	)
	if g := must(t, a, req(pods, "first")); g.Addr != ip("10.244.0.2") {
		t.Fatalf("first: %+v", g)
	}
	c.sync(t)
	network := pods
	network.Exclude = []netip.Prefix{pfx("10.244.0.200/29")}
	for name, tt := range map[string]struct {
		node *simNode
		want string
		mac  string
		id   string
		held bool
		is   error
		msg  string
	}{
		"free":                 {node: a, want: "10.244.0.9"},
		"in an unopened block": {node: a, want: "10.244.7.9"},
		"endpoint":             {node: a, want: "10.244.0.2", is: ErrInUse, msg: "held by endpoint default/first"},
		"own endpoint":         {node: a, want: "10.244.0.2", id: "first"},
		"gateway":              {node: a, want: "10.244.0.1", is: ErrInUse, msg: "gateway of 10.244.0.0/24"},
		"network":              {node: a, want: "10.244.0.0", is: ErrInUse, msg: "network address"},
		"broadcast":            {node: a, want: "10.244.0.255", is: ErrInUse, msg: "broadcast address"},
		"excluded":             {node: a, want: "10.244.0.201", is: ErrInUse, msg: "excluded by 10.244.0.200/29"},
		"reserved":             {node: a, want: "10.244.0.77", is: ErrInUse, msg: "reserved for 02:00:00:00:00:07"},
		"reserved for it":      {node: a, want: "10.244.0.77", mac: "02:00:00:00:00:07"},
		"leased":               {node: a, want: "10.244.0.50", is: ErrInUse, msg: "leased to 02:00:00:00:00:50"},
		"its own lease":        {node: a, want: "10.244.0.50", mac: "02:00:00:00:00:50"},
		"lease ran out":        {node: a, want: "10.244.0.51"},
		"declined":             {node: a, want: "10.244.0.52", mac: "02:00:00:00:00:52", is: ErrInUse, msg: "declined"},
		"held in memory":       {node: a, want: "10.244.0.60", held: true, is: ErrInUse, msg: "promised"},
		"outside":              {node: a, want: "10.1.0.1", is: ErrNotOurs, msg: "outside of 10.244.0.0/16"},
		"opened elsewhere":     {node: b, want: "10.244.0.9", is: ErrNotOurs, msg: "block 10.244.0.0/24 is opened by node1"},
		"could be had":         {node: b, want: "10.244.9.9", is: ErrNeedSpace, msg: "10.244.9.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, allocate := range map[string]func(*state.Snapshot, state.NodeID, Request) (Grant, []state.Op, error){"pure": Allocate, "indexed": tt.node.alloc.Allocate} {
				r := req(network, "x")
				if tt.id != "" {
					r.ID = tt.id
				}
				r.Want, r.MAC = ip(tt.want), tt.mac
				r.Held = func(netip.Addr) bool { return tt.held }
				g, _, err := allocate(tt.node.store.Snapshot(), tt.node.id, r)
				if !errors.Is(err, tt.is) || (err != nil) != (tt.is != nil) {
					t.Errorf("%s: error %v, want %v", kind, err, tt.is)
				} else if err == nil && g.Addr != r.Want {
					t.Errorf("%s: got %s", kind, g.Addr)
				} else if err != nil && !strings.Contains(err.Error(), tt.msg) {
					t.Errorf("%s: error %q lacks %q", kind, err, tt.msg)
				}
			}
		})
	}
	r := req(pods, "db-0")
	if g := must(t, a, r); g.Addr != ip("10.244.0.78") {
		t.Errorf("reserved by name: got %s", g.Addr)
	}
}

func leaseOp(addr, mac string, expires time.Time, declined bool) state.Op {
	l := state.LeaseValue{Network: "pods", Addr: ip(addr), MAC: mac, Expires: expires.Unix(), Declined: declined}
	return state.Put(state.Lease, state.KindLease, "pods/"+addr, l)
}

func TestRest(t *testing.T) {
	n := pods
	n.Prefix, n.Block = pfx("10.244.0.0/29"), 29 // .1 gateway, .2 to .6
	_, node := one(t, NetworkSpec(n))
	for i := range 5 {
		must(t, node, req(n, fmt.Sprint("e", i)))
	}
	release := func(id string, at time.Time) {
		t.Helper()
		if err := write(node.store, func(sn *state.Snapshot) ([]state.Op, error) {
			return node.alloc.Release(sn, node.id, id, at), nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now() // the store's clock: the index sees the tombstone too
	release("e3", start)
	r := req(n, "new")
	r.Now = start.Add(59 * time.Second)
	if _, err := attach(node.store, node.id, node.alloc.Allocate, r); !errors.Is(err, ErrNeedSpace) {
		t.Fatalf("an address that rests: error %v, want %v", err, ErrNeedSpace)
	}
	same := req(n, "e3")
	same.Now = r.Now
	if g := must(t, node, same); g.Addr != ip("10.244.0.5") {
		t.Errorf("the same ID while it rests: %s, want 10.244.0.5", g.Addr)
	}
	release("e3", r.Now)
	byName := req(n, "other-id")
	byName.Name, byName.Now = "e3", r.Now.Add(time.Second)
	if g := must(t, node, byName); g.Addr != ip("10.244.0.5") {
		t.Errorf("the same name while it rests: %s, want 10.244.0.5", g.Addr)
	}
	release("other-id", byName.Now)
	r.Now = byName.Now.Add(61 * time.Second)
	if g := must(t, node, r); g.Addr != ip("10.244.0.5") {
		t.Errorf("after the rest: %s", g.Addr)
	}
	// Deleted by somebody who does not know Release: rests as well.
	put(t, node.store, state.Del(state.Owner, state.KindEndpoint, "e1"))
	r = req(n, "newer")
	r.Now = time.Now()
	if _, err := attach(node.store, node.id, node.alloc.Allocate, r); !errors.Is(err, ErrNeedSpace) {
		t.Errorf("deleted endpoint's address: error %v, want %v", err, ErrNeedSpace)
	}
}

func TestRoundRobinAfterRestart(t *testing.T) {
	_, n := one(t, NetworkSpec(pods))
	for i := range 4 {
		r := req(pods, fmt.Sprint("e", i))
		r.Now = noon.Add(time.Duration(i) * time.Second)
		must(t, n, r) // .2 to .5
	}
	put(t, n.store, state.Del(state.Owner, state.KindEndpoint, "e1"))
	n.close()
	n.open(t)
	if g := must(t, n, req(pods, "next")); g.Addr != ip("10.244.0.6") {
		t.Errorf("after a restart: %s, want the address after the newest endpoint's", g.Addr)
	}
}

func TestOpenAhead(t *testing.T) {
	_, n := one(t, NetworkSpec(pods))
	opens := func() []state.Op {
		return n.alloc.OpenAhead(n.store.Snapshot(), n.id, ringID, pods)
	}
	if ops := opens(); len(ops) != 0 {
		t.Errorf("before the first address: %v", ops)
	}
	for i := 1; i <= 203; i++ { // 203 of 253 is 80.2 %
		must(t, n, req(pods, fmt.Sprint("e", i)))
		ops := opens()
		if want := i >= 203; (len(ops) > 0) != want {
			t.Fatalf("with %d of 253 in use: opens %v", i, ops)
		}
		if pure := OpenAhead(n.store.Snapshot(), n.id, ringID, pods); i%50 == 0 && len(pure) != len(ops) {
			t.Fatalf("with %d in use the index says %v, the snapshot %v", i, ops, pure)
		}
	}
	put(t, n.store, opens()...)
	if ops := opens(); len(ops) != 0 {
		t.Errorf("after opening one: %v", ops)
	}
	for i := range 51 {
		must(t, n, req(pods, fmt.Sprint("f", i)))
	}
	u, err := GroupUse(n.store.Snapshot(), n.id, ringID, pods, noon)
	if err != nil || len(u.Blocks) != 2 || u.Used != 254 || u.Total != 506 || u.Owned != 256 || u.Spare != 254 || u.Ring != 256 {
		t.Errorf("use %+v, %v", u, err)
	}
}

func TestAheadNeedsSpace(t *testing.T) {
	n := pods
	n.Prefix = pfx("10.244.0.0/24")
	_, node := one(t, NetworkSpec(n))
	for i := range 203 {
		must(t, node, req(n, fmt.Sprint("e", i)))
	}
	if ops, err := Ahead(node.store.Snapshot(), node.id, ringID, n); len(ops) != 0 || !errors.Is(err, ErrNeedSpace) {
		t.Errorf("nothing left to open: %v, %v", ops, err)
	}
}

func TestLocal(t *testing.T) {
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	for i, n := range c.nodes {
		if g := must(t, n, req(local, fmt.Sprint("e", i))); g.Addr != ip("192.168.15.1") || g.Gateway != local.Gateway || g.Prefix != local.Prefix {
			t.Errorf("node %d: %+v", i, g)
		}
	}
	c.sync(t)
	r := req(local, "more")
	r.Want = ip("192.168.15.2")
	if g := must(t, c.nodes[1], r); g.Addr != r.Want {
		t.Errorf("wanted: %+v", g)
	}
	var err error
	for i := 0; err == nil; i++ {
		_, err = attach(c.nodes[0].store, c.nodes[0].id, c.nodes[0].alloc.Allocate, req(local, fmt.Sprint("fill", i)))
	}
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "253 of 253") {
		t.Errorf("full: %v", err)
	}
}

func TestNoRing(t *testing.T) {
	c := newCluster(t, 1)
	t.Cleanup(c.close)
	n := c.nodes[0]
	if _, err := attach(n.store, n.id, Allocate, req(pods, "a")); !errors.Is(err, ErrNoRing) {
		t.Errorf("error %v, want %v", err, ErrNoRing)
	}
	if err := Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(pods), netip.Prefix{}, c); !errors.Is(err, ErrNoRing) {
		t.Errorf("grow: error %v, want %v", err, ErrNoRing)
	}
}

// Lab 7: three nodes with pinned blocks.
func TestPins(t *testing.T) {
	c := newCluster(t, 3)
	t.Cleanup(c.close)
	found(t, c.nodes[0], NetworkSpec(pods))
	nets := make([]state.Network, 3)
	for i, n := range c.nodes {
		nets[i] = pods
		nets[i].Overlay, nets[i].Pin = state.OverlayRoutes, pfx(fmt.Sprintf("10.244.%d.0/24", i+1))
		put(t, n.store,
			state.Put(state.Owner, state.KindNode, "self", state.Node{Name: fmt.Sprint("node", i+1)}),
			state.Put(state.Owner, state.KindNetwork, "pods", nets[i]))
	}
	c.sync(t)
	for i, n := range c.nodes {
		ops, err := n.alloc.Ahead(n.store.Snapshot(), n.id, ringID, nets[i])
		if i > 0 {
			var need *NeedSpaceError
			if !errors.As(err, &need) || need.Want != nets[i].Pin {
				t.Fatalf("node %d: %v", i+1, err)
			}
			if err := Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(nets[i]), need.Want, c); err != nil {
				t.Fatalf("node %d: %v", i+1, err)
			}
			ops = n.alloc.OpenAhead(n.store.Snapshot(), n.id, ringID, nets[i])
		}
		put(t, n.store, ops...)
		if g := must(t, n, req(nets[i], "pod")); g.Prefix != nets[i].Pin || g.Addr != nets[i].Pin.Addr().Next().Next() {
			t.Errorf("node %d: %+v", i+1, g)
		}
	}
	// What a node opens next avoids the others' pins.
	for i := range 300 {
		must(t, c.nodes[0], req(nets[0], fmt.Sprint("e", i)))
	}
	if u, _ := GroupUse(c.nodes[0].store.Snapshot(), c.nodes[0].id, ringID, nets[0], noon); len(u.Blocks) != 2 || u.Blocks[0] != pfx("10.244.0.0/24") {
		t.Errorf("node1 opened %v", u.Blocks)
	}
	nets[1].Pin = nets[0].Pin
	_, err := c.nodes[1].alloc.Ahead(c.nodes[1].store.Snapshot(), c.nodes[1].id, ringID, nets[1])
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "pinned by node1") {
		t.Errorf("a pin that another node has: %v", err)
	}
}

// The index must agree with the snapshot in whatever order things happen.
func TestIndexFollows(t *testing.T) {
	_, n := one(t, NetworkSpec(pods))
	must(t, n, req(pods, "a"))
	put(t, n.store, leaseOp("10.244.0.3", "02:00:00:00:00:03", noon.Add(time.Hour), false))
	put(t, n.store, state.Put(state.Owner, state.KindReservation, "pods/10.244.0.4", state.Reservation{Network: "pods", Addr: ip("10.244.0.4"), Name: "other"}))
	if g := must(t, n, req(pods, "b")); g.Addr != ip("10.244.0.5") {
		t.Errorf("after a lease and a reservation: %s", g.Addr)
	}
	put(t, n.store, state.Del(state.Lease, state.KindLease, "pods/10.244.0.3"), state.Del(state.Owner, state.KindReservation, "pods/10.244.0.4"))
	for _, want := range []string{"10.244.0.3", "10.244.0.4"} {
		r := req(pods, want)
		r.Want = ip(want)
		must(t, n, r)
	}
}

func TestAllocateIPv6(t *testing.T) {
	n := state.Network{Name: "six", Prefix: pfx("2001:db8::/48"), Block: 64, Overlay: state.OverlayVXLAN}
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	found(t, c.nodes[0], NetworkSpec(n), ServicesSpec(vipRange))
	c.sync(t)
	if g := must(t, c.nodes[0], req(n, "a")); g.Addr != ip("2001:db8::2") || g.Gateway != ip("2001:db8::1") {
		t.Errorf("first: %+v", g)
	}
	if err := Grow(context.Background(), c.nodes[1].store, c.nodes[1].id, ringID, NetworkSpec(n), netip.Prefix{}, c); err != nil {
		t.Fatal(err)
	}
	if g := must(t, c.nodes[1], req(n, "b")); g.Addr != ip("2001:db8:0:8000::2") {
		t.Errorf("second node: %+v", g)
	}
	if ops := c.nodes[0].alloc.OpenAhead(c.nodes[0].store.Snapshot(), c.nodes[0].id, ringID, n); len(ops) != 0 {
		t.Errorf("a /64 with one address: opens %v", ops)
	}
}
