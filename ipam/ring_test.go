package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nodenet/state"
)

func (r *Ring) text(names map[state.NodeID]string) string {
	var b strings.Builder
	for _, p := range r.Parts {
		fmt.Fprintf(&b, "%s-%s %s@%d", p.From, p.To, names[p.Owner], p.Gen)
		for _, c := range p.Contested {
			fmt.Fprintf(&b, " !%s", names[c])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestResolve(t *testing.T) {
	a, b := nodeID(0), nodeID(1)
	if a > b {
		a, b = b, a
	}
	names := map[state.NodeID]string{a: "a", b: "b"}
	type cl struct {
		prefix string
		owner  state.NodeID
		gen    uint64
		ring   string
	}
	for name, tt := range map[string]struct {
		claims []cl
		want   string
	}{
		"one": {[]cl{{"10.0.0.0/24", a, 1, ""}}, "10.0.0.0-10.0.0.255 a@1\n"},
		"donation in the middle": {
			[]cl{{"10.0.0.0/24", a, 1, ""}, {"10.0.0.64/26", b, 2, ""}},
			"10.0.0.0-10.0.0.63 a@1\n10.0.0.64-10.0.0.127 b@2\n10.0.0.128-10.0.0.255 a@1\n"},
		"given back in part": {
			[]cl{{"10.0.0.0/24", a, 1, ""}, {"10.0.0.128/25", b, 2, ""}, {"10.0.0.192/26", a, 3, ""}},
			"10.0.0.0-10.0.0.127 a@1\n10.0.0.128-10.0.0.191 b@2\n10.0.0.192-10.0.0.255 a@3\n"},
		"a wider, newer range covers older ones": {
			[]cl{{"10.0.0.0/24", a, 5, ""}, {"10.0.0.128/25", b, 2, ""}},
			"10.0.0.0-10.0.0.255 a@5\n"},
		"the first range is not known here": {
			[]cl{{"10.0.0.64/26", b, 2, ""}, {"10.0.0.192/26", b, 3, ""}},
			"10.0.0.64-10.0.0.127 b@2\n10.0.0.192-10.0.0.255 b@3\n"},
		"contested": {
			[]cl{{"10.0.0.0/24", a, 1, ""}, {"10.0.0.0/25", b, 2, ""}, {"10.0.0.0/26", a, 2, ""}},
			"10.0.0.0-10.0.0.63 a@2 !b\n10.0.0.64-10.0.0.127 b@2\n10.0.0.128-10.0.0.255 a@1\n"},
		"founded twice": {
			[]cl{{"10.0.0.0/24", b, 1, ""}, {"10.0.0.0/24", a, 1, ""}},
			"10.0.0.0-10.0.0.255 a@1 !b\n"},
		"another ring": {
			[]cl{{"10.0.0.0/24", a, 1, ""}, {"10.0.0.0/24", b, 7, "other"}},
			"10.0.0.0-10.0.0.255 a@1\n"},
		"to the end of the address space": {
			[]cl{{"255.255.255.0/24", a, 1, ""}, {"255.255.255.128/25", b, 2, ""}},
			"255.255.255.0-255.255.255.127 a@1\n255.255.255.128-255.255.255.255 b@2\n"},
		"v6": {
			[]cl{{"2001:db8::/32", a, 1, ""}, {"2001:db8:8000::/33", b, 2, ""}},
			"2001:db8::-2001:db8:7fff:ffff:ffff:ffff:ffff:ffff a@1\n2001:db8:8000::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff b@2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			defer c.close()
			for _, x := range tt.claims {
				id := ringID
				if x.ring != "" {
					id = x.ring
				}
				put(t, c.nodes[0].store, rangeOp(state.Range{Ring: "pods", RingID: id, Prefix: pfx(x.prefix), Owner: x.owner}, x.gen))
			}
			r := Resolve(c.nodes[0].store.Snapshot(), "pods", ringID)
			if got := r.text(names); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
			if name == "another ring" && !slices.Equal(r.Foreign, []string{"other"}) {
				t.Errorf("foreign rings %v", r.Foreign)
			}
			if name == "contested" && (len(r.Contested()) != 1 || r.Owns(b, pfx("10.0.0.0/26")) || r.Owner(ip("10.0.0.3")) != a) {
				t.Errorf("contested %v", r.Contested())
			}
		})
	}
}

// Sets against a model of single addresses.
func TestSpans(t *testing.T) {
	base := ip("10.0.0.0")
	draw := func(t *rapid.T, label string) (set []span, in [64]bool) {
		for range rapid.IntRange(0, 6).Draw(t, label) {
			f := rapid.IntRange(0, 63).Draw(t, "from")
			n := rapid.IntRange(f, 63).Draw(t, "to")
			set = append(set, span{addrIn(netip.PrefixFrom(base, 26), f), addrIn(netip.PrefixFrom(base, 26), n)})
			for i := f; i <= n; i++ {
				in[i] = true
			}
		}
		return normal(set), in
	}
	rapid.Check(t, func(t *rapid.T) {
		a, ina := draw(t, "a")
		b, inb := draw(t, "b")
		sub, both := subtract(a, b), intersect(a, b)
		ps := prefixes(a)
		for i := range 64 {
			x := addrIn(netip.PrefixFrom(base, 26), i)
			one := span{x, x}
			if covers(a, one) != ina[i] || covers(sub, one) != (ina[i] && !inb[i]) || covers(both, one) != (ina[i] && inb[i]) {
				t.Fatalf("address %s: a %v, b %v, a-b %v, a&b %v", x, a, b, sub, both)
			}
			if slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(x) }) != ina[i] {
				t.Fatalf("address %s: prefixes of %v: %v", x, a, ps)
			}
		}
		for i := 1; i < len(ps); i++ {
			if ps[i-1].Overlaps(ps[i]) {
				t.Fatalf("prefixes %v overlap", ps)
			}
		}
	})
}

func TestHosts(t *testing.T) {
	for p, want := range map[string]uint64{
		"10.32.0.0/12": 1048574, // lab 8
		"10.0.0.0/24":  254, "10.0.0.0/30": 2, "10.0.0.0/31": 2, "10.0.0.0/32": 1, "0.0.0.0/0": 1<<32 - 2,
		"2001:db8::/120": 255, "2001:db8::/127": 2,
	} {
		if got := Hosts(pfx(p)); got != want {
			t.Errorf("hosts of %s: %d, want %d", p, got, want)
		}
	}
}

// named gives nodes the names node1, node2, ...
func named(t *testing.T, c *cluster) {
	t.Helper()
	for i, n := range c.nodes {
		put(t, n.store, state.Put(state.Owner, state.KindNode, "self", state.Node{Name: fmt.Sprint("node", i+1)}))
	}
	c.sync(t)
}

// Lab 8: 10.32.0.0/12 split between three peers.
func TestThreePeersShareARange(t *testing.T) {
	weave := state.Network{Name: "weave", Prefix: pfx("10.32.0.0/12"), Block: 24, Overlay: state.OverlayVXLAN}
	c := newCluster(t, 3)
	t.Cleanup(c.close)
	found(t, c.nodes[0], NetworkSpec(weave))
	c.sync(t)
	for _, n := range c.nodes {
		if err := Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(weave), netip.Prefix{}, c); err != nil {
			t.Fatal(err)
		}
		c.sync(t)
	}
	r := Resolve(c.nodes[0].store.Snapshot(), "weave", ringID)
	names := map[state.NodeID]string{c.nodes[0].id: "1", c.nodes[1].id: "2", c.nodes[2].id: "3"}
	want := "10.32.0.0-10.39.255.255 1@1\n10.40.0.0-10.47.255.255 2@2\n"
	if got := r.text(names); r.Size() != 1<<20 || len(r.Owners()) != 3 || got == want {
		t.Errorf("shares:\n%s", got)
	}
	for _, n := range c.nodes {
		if g := must(t, n, req(weave, "w")); r.Owner(g.Addr) != n.id {
			t.Errorf("%s is not in the share of its node", g.Addr)
		}
	}
}

// A /16 in blocks of /24 serves 256 nodes, and says so when it is full.
func TestBlocksRunOut(t *testing.T) {
	if n := units(pods.Prefix, BlockBits(pods)); n != 256 {
		t.Errorf("%d blocks, want 256", n)
	}
	small := pods
	small.Prefix = pfx("10.244.0.0/22") // four
	c := newCluster(t, 5)
	t.Cleanup(c.close)
	found(t, c.nodes[0], NetworkSpec(small))
	named(t, c)
	live := map[state.NodeID]state.Live{c.nodes[0].id: {State: state.Alive}}
	for i, n := range c.nodes {
		n.store.SetLiveness(live)
		err := Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(small), netip.Prefix{}, c)
		if i < 4 {
			if err != nil {
				t.Fatalf("node%d: %v", i+1, err)
			}
			must(t, n, req(small, "pod"))
			c.sync(t)
			continue
		}
		want := "network pods: no space left: node1 1 of 1 blocks, node2 1 of 1 blocks, node3 1 of 1 blocks, node4 1 of 1 blocks"
		if !errors.Is(err, ErrExhausted) || err.Error() != want {
			t.Errorf("node5: %v\nwant %s", err, want)
		}
	}
}

func TestGrowAroundSilentPeer(t *testing.T) {
	c := newCluster(t, 3)
	t.Cleanup(c.close)
	found(t, c.nodes[0], NetworkSpec(pods))
	named(t, c)
	c.loss = func() loss { return requestLost }
	err := Grow(context.Background(), c.nodes[1].store, c.nodes[1].id, ringID, NetworkSpec(pods), netip.Prefix{}, c)
	if want := "network pods: no space left: node1 0 of 256 blocks (unknown: timeout)"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	// The answer is lost, the donation is not: the next request repeats it.
	c.loss = func() loss { return replyLost }
	_ = Grow(context.Background(), c.nodes[1].store, c.nodes[1].id, ringID, NetworkSpec(pods), netip.Prefix{}, c)
	c.loss = nil
	if err := Grow(context.Background(), c.nodes[1].store, c.nodes[1].id, ringID, NetworkSpec(pods), netip.Prefix{}, c); err != nil {
		t.Fatal(err)
	}
	if got := c.nodes[1].store; Resolve(got.Snapshot(), "pods", ringID).Owned(c.nodes[1].id)[0] != pfx("10.244.128.0/17") {
		t.Errorf("owns %v", Resolve(got.Snapshot(), "pods", ringID).Owned(c.nodes[1].id))
	}
	c.sync(t)
	// node1 is dead: node3 asks node2 although node1 has as much to spare.
	c.nodes[2].store.SetLiveness(map[state.NodeID]state.Live{c.nodes[0].id: {State: state.Dead}, c.nodes[1].id: {State: state.Alive}})
	if err := Grow(context.Background(), c.nodes[2].store, c.nodes[2].id, ringID, NetworkSpec(pods), netip.Prefix{}, c); err != nil {
		t.Fatal(err)
	}
	if got := Resolve(c.nodes[2].store.Snapshot(), "pods", ringID).Owned(c.nodes[2].id); len(got) != 1 || got[0] != pfx("10.244.192.0/18") {
		t.Errorf("node3 owns %v", got)
	}
}

func TestDonateWanted(t *testing.T) {
	c := newCluster(t, 2)
	t.Cleanup(c.close)
	a, b := c.nodes[0], c.nodes[1]
	found(t, a, NetworkSpec(pods))
	named(t, c)
	must(t, a, req(pods, "pod"))
	for want, is := range map[string]error{
		"10.244.0.0/24": ErrInUse, "10.244.0.0/23": ErrInUse, "10.244.7.0/24": nil, "10.1.0.0/24": ErrNotOurs, "10.0.0.0/8": ErrNotOurs,
	} {
		ops, err := Donate(a.store.Snapshot(), a.id, ringID, Ask{Ring: "pods", RingID: ringID, To: b.id, Want: pfx(want), Block: 24})
		if !errors.Is(err, is) || (err == nil) != (len(ops) == 1) {
			t.Errorf("want %s: %v, %v", want, ops, err)
		}
	}
	err := Grow(context.Background(), b.store, b.id, ringID, NetworkSpec(pods), pfx("10.244.0.0/24"), c)
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "node1 uses it or has opened or pinned it") {
		t.Errorf("grow by an opened block: %v", err)
	}
	if _, err := ServeAsk(context.Background(), a.store, a.id, "another", Ask{Ring: "pods", RingID: ringID, To: b.id}); err == nil || !strings.Contains(err.Error(), "founded apart") {
		t.Errorf("a foreign ring: %v", err)
	}
}

func TestNewNetworkIsFoundedOnce(t *testing.T) {
	c := newCluster(t, 3)
	t.Cleanup(c.close)
	found(t, c.nodes[0], ServicesSpec(vipRange))
	c.sync(t)
	for _, n := range c.nodes[1:] {
		if ops := Bootstrap(n.store.Snapshot(), n.id, ringID, []Spec{NetworkSpec(pods)}); len(ops) != 0 {
			t.Errorf("a node that is not the founder makes a ring: %v", ops)
		}
		if err := Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(pods), netip.Prefix{}, c); err != nil {
			t.Fatal(err)
		}
	}
	sn, done := c.union(t)
	defer done()
	if r := Resolve(sn, "pods", ringID); len(r.Contested()) > 0 || len(r.Owners()) != 3 {
		t.Errorf("ring %+v", r.Parts)
	}
}

func TestAskCBOR(t *testing.T) {
	for _, a := range []Ask{{}, {Ring: "pods", RingID: ringID, To: nodeID(1), Prefix: pods.Prefix, Block: 24, Want: pfx("10.244.2.0/24"), First: PortAddr(1), Last: PortAddr(65535), Owned: 7}} {
		b, err := state.Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		var got Ask
		if err := state.Decode(b, &got); err != nil || got != a {
			t.Errorf("got %+v, %v, want %+v", got, err, a)
		}
	}
}
