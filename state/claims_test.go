package state

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// The IP plan: pods 10.244.0.0/16, services 10.96.0.0/16, nodes 192.168.1.x.

type claimant struct {
	id  NodeID
	pub ed25519.PublicKey
	seq uint64
}

func newClaimant(i byte) *claimant {
	seed := make([]byte, 32)
	seed[0] = i
	pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	return &claimant{id: NodeIDFromKey(pub), pub: pub}
}

func (c *claimant) rec(t *testing.T, k Kind, key string, v any) Record {
	t.Helper()
	b, err := Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	c.seq++
	return Record{ID: ID{Class: Owner, Kind: k, Owner: c.id, Key: key}, Version: Version{Epoch: 1, Seq: c.seq}, Value: b}
}

func (c *claimant) self(t *testing.T, name, addr string) Record {
	return c.rec(t, KindNode, "self", Node{Name: name, Advertise: netip.MustParseAddr(addr), PublicKey: c.pub, VTEPMAC: c.id.VTEPMAC()})
}

func (c *claimant) block(t *testing.T, p string, gen uint64) Record {
	return c.rec(t, KindBlock, "pods/"+p, Block{Network: "pods", Prefix: netip.MustParsePrefix(p), Gen: gen})
}

func (c *claimant) endpoint(t *testing.T, name, addr string) Record {
	return c.rec(t, KindEndpoint, name, Endpoint{ID: name, Name: name, Namespace: "default", Network: "pods",
		Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Ready: true, Labels: map[string]string{"app": "w"}})
}

func (c *claimant) network(t *testing.T) Record {
	return c.rec(t, KindNetwork, "pods", Network{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Block: 24, Overlay: OverlayVXLAN})
}

func shared(t *testing.T, class Class, k Kind, key string, gen uint64, v any) Record {
	t.Helper()
	b, err := Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return Record{ID: ID{Class: class, Kind: k, Key: key}, Version: Version{Gen: gen, HLC: 1}, Value: b}
}

func ringRecord(t *testing.T, ring, p string, owner NodeID, gen uint64) Record {
	return shared(t, Ring, KindRing, ring+"/"+p+"/r/"+string(owner), gen, Range{Ring: ring, RingID: "r", Prefix: netip.MustParsePrefix(p), Owner: owner})
}

// viewOf is what a node makes of records.
func viewOf(t *testing.T, self NodeID, live map[NodeID]Live, recs ...Record) *View {
	t.Helper()
	s, err := NewStore(Options{Self: self, Records: recs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if live != nil {
		s.SetLiveness(live)
	}
	return s.Snapshot().View()
}

func blocksOf(v *View, id NodeID) (out []string) {
	if n := v.NodeByID(id); n != nil {
		for _, b := range n.Blocks {
			out = append(out, b.Prefix.String())
		}
	}
	return out
}

func wantConflict(t *testing.T, v *View, what, winner, loser string) {
	t.Helper()
	i := slices.IndexFunc(v.Conflicts, func(c Conflict) bool { return c.What == what && c.Winner == winner && c.Loser == loser })
	if i < 0 {
		t.Errorf("no conflict about %s (%s against %s) in %+v", what, winner, loser, v.Conflicts)
	} else if !strings.HasPrefix(v.Conflicts[i].Detail, "not programmed: ") {
		t.Errorf("detail of %s: %q", what, v.Conflicts[i].Detail)
	}
}

func TestBlockOfAnother(t *testing.T) {
	a, b, me := newClaimant(1), newClaimant(2), newClaimant(3)
	base := func() []Record {
		return []Record{a.self(t, "a", "192.168.1.1"), b.self(t, "b", "192.168.1.2"), me.self(t, "me", "192.168.1.3"),
			ringRecord(t, "pods", "10.244.0.0/16", a.id, 1), ringRecord(t, "pods", "10.244.2.0/24", b.id, 2)}
	}
	for _, c := range []struct {
		name    string
		claims  []Record
		wantA   []string
		wantB   []string
		refused string // What, of a claim by b
		waits   bool
	}{
		{"each its own", []Record{a.block(t, "10.244.1.0/24", 1), b.block(t, "10.244.2.0/24", 2)}, []string{"10.244.1.0/24"}, []string{"10.244.2.0/24"}, "", false},
		{"same block", []Record{a.block(t, "10.244.1.0/24", 1), b.block(t, "10.244.1.0/24", 1)}, []string{"10.244.1.0/24"}, nil, "block 10.244.1.0/24 of pods", false},
		{"the whole network", []Record{a.block(t, "10.244.1.0/24", 1), b.block(t, "10.244.0.0/16", 1)}, []string{"10.244.1.0/24"}, nil, "block 10.244.0.0/16 of pods", false},
		{"a part of a block", []Record{a.block(t, "10.244.1.0/24", 1), b.block(t, "10.244.1.128/25", 0)}, []string{"10.244.1.0/24"}, nil, "block 10.244.1.128/25 of pods", false},
		{"nobody's block in another's range", []Record{b.block(t, "10.244.9.0/24", 1)}, nil, nil, "block 10.244.9.0/24 of pods", false},
		{"the record of the donation is late", []Record{b.block(t, "10.244.9.0/24", 5)}, nil, []string{"10.244.9.0/24"}, "block 10.244.9.0/24 of pods", true},
		{"a generation from nowhere does not help", []Record{a.block(t, "10.244.1.0/24", 1), b.block(t, "10.244.1.0/24", 99)}, []string{"10.244.1.0/24"}, nil, "block 10.244.1.0/24 of pods", false},
		{"opened by an old version", []Record{b.block(t, "10.244.2.0/24", 0)}, nil, []string{"10.244.2.0/24"}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewOf(t, me.id, nil, append(base(), c.claims...)...)
			if got := blocksOf(v, a.id); !slices.Equal(got, c.wantA) {
				t.Errorf("a has %v, want %v", got, c.wantA)
			}
			if got := blocksOf(v, b.id); !slices.Equal(got, c.wantB) {
				t.Errorf("b has %v, want %v", got, c.wantB)
			}
			i := slices.IndexFunc(v.Refusals, func(r Refusal) bool { return r.What == c.refused && r.Owner == b.id })
			switch {
			case c.refused == "" && len(v.Refusals) > 0:
				t.Errorf("refused: %+v", v.Refusals)
			case c.refused != "" && (i < 0 || v.Refusals[i].Waiting != c.waits || v.Refusals[i].Holder != a.id):
				t.Errorf("want refusal of %q (waiting %v) in %+v", c.refused, c.waits, v.Refusals)
			case c.refused != "" && !c.waits:
				wantConflict(t, v, c.refused, "a", "b")
			}
		})
	}
}

// What is our own is judged alike: a node whose block is another's does not
// put its gateway on the bridge.
func TestOwnBlockOfAnother(t *testing.T) {
	a, me := newClaimant(1), newClaimant(3)
	v := viewOf(t, me.id, nil, a.self(t, "a", "192.168.1.1"), me.self(t, "me", "192.168.1.3"), me.network(t),
		ringRecord(t, "pods", "10.244.0.0/16", a.id, 7), me.block(t, "10.244.3.0/24", 2))
	if own := v.Networks[0].Own; len(own) != 0 {
		t.Errorf("own blocks %v, want none", own)
	}
	wantConflict(t, v, "block 10.244.3.0/24 of pods", "a", "me")
}

func TestAddressOfAnotherNode(t *testing.T) {
	a, b, me := newClaimant(1), newClaimant(2), newClaimant(3)
	recs := []Record{a.self(t, "a", "192.168.1.1"), b.self(t, "b", "192.168.1.1"), me.self(t, "me", "192.168.1.3"),
		a.block(t, "10.244.1.0/24", 1), b.block(t, "10.244.2.0/24", 1), b.endpoint(t, "db", "10.244.2.2")}
	now := time.Now()
	addr := netip.MustParseAddr("192.168.1.1")
	for _, c := range []struct {
		name          string
		live          map[NodeID]Live
		winner, loser *claimant
	}{
		{"a is heard there", map[NodeID]Live{a.id: {State: Alive, Since: now, Serving: true, Addr: addr}, b.id: {State: Alive, Serving: true, Addr: netip.MustParseAddr("192.168.1.9")}}, a, b},
		{"b is heard there", map[NodeID]Live{a.id: {State: Alive, Since: now, Serving: true}, b.id: {State: Alive, Serving: true, Addr: addr}}, b, a},
		{"a is dead", map[NodeID]Live{a.id: {State: Dead}, b.id: {State: Alive, Serving: true}}, b, a},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewOf(t, me.id, c.live, recs...)
			w, l := v.NodeByID(c.winner.id), v.NodeByID(c.loser.id)
			if w.Refused != "" || len(w.Blocks) != 1 {
				t.Errorf("%s: refused %q, blocks %v", w.Name, w.Refused, w.Blocks)
			}
			if l.Refused == "" || len(l.Blocks) != 0 {
				t.Errorf("%s: refused %q, blocks %v", l.Name, l.Refused, l.Blocks)
			}
			wantConflict(t, v, "node "+l.Name, w.Name, l.Name)
			for e := range v.Endpoints() {
				if got, want := e.Serving, c.winner == b; got != want {
					t.Errorf("endpoint %s serves: %v, want %v", e.ID, got, want)
				}
			}
		})
	}
	// Our own address is ours whatever others say and however lively they are.
	v := viewOf(t, a.id, map[NodeID]Live{b.id: {State: Alive, Serving: true, Addr: addr}}, recs...)
	if n := v.NodeByID(a.id); n.Refused != "" {
		t.Errorf("own node refused: %s", n.Refused)
	}
	if n := v.NodeByID(b.id); n.Refused == "" {
		t.Error("a node with our address is not refused")
	}
}

func TestIdentityOfAnotherNode(t *testing.T) {
	a, b, me := newClaimant(1), newClaimant(2), newClaimant(3)
	for _, c := range []struct {
		name   string
		node   Node
		winner string
	}{
		{"another's key", Node{Name: "b", Advertise: netip.MustParseAddr("192.168.1.2"), PublicKey: a.pub}, "nobody"},
		{"another's VTEP address", Node{Name: "b", Advertise: netip.MustParseAddr("192.168.1.2"), PublicKey: b.pub, VTEPMAC: a.id.VTEPMAC()}, "a"},
		{"nobody's VTEP address", Node{Name: "b", Advertise: netip.MustParseAddr("192.168.1.2"), VTEPMAC: []byte{2, 0, 0, 0, 0, 1}}, "nobody"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewOf(t, me.id, nil, a.self(t, "a", "192.168.1.1"), me.self(t, "me", "192.168.1.3"),
				b.rec(t, KindNode, "self", c.node), b.block(t, "10.244.2.0/24", 1))
			if n := v.NodeByID(b.id); n.Refused == "" || len(n.Blocks) != 0 {
				t.Errorf("refused %q, blocks %v", n.Refused, n.Blocks)
			}
			wantConflict(t, v, "node b", c.winner, "b")
		})
	}
}

func TestEndpointInAnothersBlock(t *testing.T) {
	a, b, me := newClaimant(1), newClaimant(2), newClaimant(3)
	v := viewOf(t, me.id, nil, a.self(t, "a", "192.168.1.1"), b.self(t, "b", "192.168.1.2"), me.self(t, "me", "192.168.1.3"),
		ringRecord(t, "pods", "10.244.0.0/16", a.id, 1), a.block(t, "10.244.1.0/24", 1),
		a.endpoint(t, "real", "10.244.1.2"), b.endpoint(t, "fake", "10.244.1.2"), b.endpoint(t, "elsewhere", "192.0.2.7"),
		me.rec(t, KindService, "default/w", Service{Namespace: "default", Name: "w", Selector: map[string]string{"app": "w"}, Ports: []ServicePort{{Protocol: "tcp", Port: 80}}}))
	for e := range v.Endpoints() {
		if got, want := e.Serving, e.ID != "fake"; got != want {
			t.Errorf("%s serves: %v, want %v", e.ID, got, want)
		}
	}
	wantConflict(t, v, "endpoint fake.default (10.244.1.2)", "a", "b")
	for _, x := range v.Service("default/w").Backends {
		if x.Endpoint == "fake" && x.Ready {
			t.Errorf("backend %+v is used", x)
		}
	}
}

func TestLeaseAndVIPOutside(t *testing.T) {
	a, me := newClaimant(1), newClaimant(3)
	lease := func(addr string) Record {
		return shared(t, Lease, KindLease, "pods/"+addr, 1, LeaseValue{Network: "pods", Addr: netip.MustParseAddr(addr), Server: a.id, Hostname: "vm"})
	}
	service := func(name, vip string) Record {
		return me.rec(t, KindService, "default/"+name, Service{Namespace: "default", Name: name, VIP: netip.MustParseAddr(vip), Ports: []ServicePort{{Protocol: "tcp", Port: 80}}})
	}
	v := viewOf(t, me.id, nil, a.self(t, "a", "192.168.1.1"), me.self(t, "me", "192.168.1.3"), me.network(t),
		ringRecord(t, RingServices, "10.96.0.0/16", a.id, 1),
		lease("10.244.1.9"), lease("203.0.113.9"), service("in", "10.96.0.20"), service("out", "203.0.113.80"))
	if list := slices.Collect(v.Endpoints()); len(list) != 1 || list[0].Addrs[0].String() != "10.244.1.9" {
		t.Errorf("endpoints %+v", list)
	}
	wantConflict(t, v, "lease 203.0.113.9 of pods", "nobody", "a")
	wantConflict(t, v, "VIP 203.0.113.80", "nobody", "default/out")
	for s := range v.Services() {
		if got, want := s.VIP.IsValid(), s.Name == "in"; got != want {
			t.Errorf("service %s: VIP %v", s.Name, s.VIP)
		}
	}
}
