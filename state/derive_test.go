package state

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var viewOptions = gocmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}),
	cmpopts.IgnoreUnexported(ServiceView{}, reference{}),
	cmpopts.EquateEmpty(),
}

// flat is a view in the form of the reference.
func flat(v *View) *reference {
	return &reference{
		Nodes: v.Nodes, Networks: v.Networks, Publishes: v.Publishes, Names: v.Names, Conflicts: v.Conflicts, Refusals: v.Refusals,
		Endpoints: slices.Collect(v.Endpoints()), Services: slices.Collect(v.Services()), Policies: v.Policies,
	}
}

// world is a few nodes that write about few things, so that they meet.
type world struct {
	stores []*Store
	drawn  int
}

func newWorld(t *rapid.T) *world {
	w := &world{}
	for i := range 3 {
		s, err := NewStore(Options{Self: testID(byte(i + 1)), Epoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		w.stores = append(w.stores, s)
	}
	return w
}

func (w *world) close() {
	for _, s := range w.stores {
		s.Close()
	}
}

// op draws one change of a record of any kind, or its deletion.
func (w *world) op(t *rapid.T, self NodeID) Op {
	w.drawn++
	pick := func(of ...string) string { return rapid.SampledFrom(of).Draw(t, "pick") }
	num := func(n int) int { return rapid.IntRange(0, n).Draw(t, "number") }
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(num(5))}) }
	labels := func() map[string]string {
		m := map[string]string{}
		for _, k := range []string{"app", "tier"} {
			if v := pick("", "a", "b"); v != "" {
				m[k] = v
			}
		}
		if v := pick("", "", "3", "0", "many"); v != "" {
			m[LabelWeight] = v
		}
		return m
	}
	ports := func() []ServicePort {
		return []ServicePort{{Name: pick("", "http"), Protocol: "tcp", Port: 80, Target: uint16(num(1) * 8080), TargetName: pick("", "http")}}
	}
	backend := func() string {
		switch num(2) {
		case 0:
			return BackendKey(addr(), uint16(num(1)*80))
		case 1:
			return EndpointKey(self, "dhcp/lan/"+addr().String())
		}
		return EndpointKey(testID(byte(num(3)+1)), pick("e1", "e2"))
	}
	any := func() NodeID { return testID(byte(num(3) + 1)) }
	op := Op{Class: Owner}
	switch op.Kind = rapid.SampledFrom([]Kind{
		KindNode, KindNode, KindBlock, KindEndpoint, KindEndpoint, KindEndpoint, KindPublish, KindHealth, KindHealth, KindNetwork,
		KindService, KindService, KindBackend, KindAdmin, KindAdmin, KindVIP, KindName, KindReservation, KindLease, KindRing, KindForgotten, KindPolicy,
	}).Draw(t, "kind"); op.Kind {
	case KindNode:
		op.Key = "self"
		n := Node{Name: pick("n1", "n2", "n3"), BootID: fmt.Sprint(num(2)), Left: num(9) == 0, Started: int64(num(2))}
		if num(3) == 0 {
			n.Advertise = netip.AddrFrom4([4]byte{192, 0, 2, byte(num(1))})
		}
		if num(5) == 0 {
			n.VTEPMAC = any().VTEPMAC()
		}
		if num(2) > 0 {
			n.ServiceRange = netip.MustParsePrefix("10.0.0.0/24")
			if in6 := pick("2001:db8:a::/120", "2001:db8:b::/120", ""); in6 != "" {
				n.ServiceRange6 = netip.MustParsePrefix(in6)
			}
		}
		op.Value = n
	case KindBlock:
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(4 * num(1))}), 30-num(1))
		b := Block{Network: pick("pods", "lan"), Prefix: p.Masked(), Gen: uint64(num(2))}
		op.Key, op.Value = b.Network+"/"+b.Prefix.String(), b
	case KindEndpoint:
		e := Endpoint{
			ID: pick("e1", "e2", "e3"), Network: pick("pods", "lan"), Namespace: pick("x", "y"), Name: pick("", "web"), Labels: labels(),
			Ports: []Port{{Name: "http", Protocol: "tcp", Port: uint16(8000 + num(2))}}, Ready: num(4) > 0, Mode: pick("", "", "host"), Why: pick("", "starting"),
		}
		for range num(2) {
			e.Addrs = append(e.Addrs, addr())
		}
		if num(1) == 0 {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(pick("2001:db8::1", "2001:db8::2", "2001:db8::3")))
		}
		op.Key, op.Value = e.ID, e
	case KindPublish:
		p := Publish{Protocol: "tcp", HostPort: uint16(num(2)), Target: addr(), Port: 80}
		op.Key, op.Value = p.Key(), p
	case KindHealth:
		h := Health{OK: num(1) == 0, Why: "refused", Step: uint8(num(9))}
		service := pick("x", "y") + "/" + pick("s1", "s2") + "/"
		if op.Key, op.Value = service+pick("e1", "e2"), h; num(2) == 0 {
			op.Class, op.Key = Cluster, service+backend()
		}
	case KindAdmin:
		a := Admin{Namespace: pick("x", "y"), Service: pick("s1", "s2"), Backend: backend(), Weight: num(300), Drain: num(2) > 0, Ended: num(2) == 0}
		op.Class, op.Key, op.Value = Cluster, a.Key(), a
		if num(9) == 0 {
			op.Key += "x" // says something else than its key
		}
	case KindNetwork:
		n := Network{Name: pick("pods", "lan"), Overlay: pick(OverlayVXLAN, OverlayNone), VNI: uint32(num(1)), Namespace: pick("", "x", "y"),
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(num(1)), 0, 0}), 16)}
		op.Key, op.Value = n.Name, n
	case KindService:
		s := Service{
			Namespace: pick("x", "y"), Name: pick("s1", "s2", "s3"), Ports: ports(), Headless: num(5) == 0, NodePorts: num(2) == 0, Check: pick("", "tcp"),
			SlowStart: int64(1000 * max(0, num(3)-2)), Source: pick("nodefile", "label"),
		}
		if num(1) == 0 {
			s.Selector = labels()
		} else {
			s.Selector = map[string]string{"app": "a"}
		}
		if num(2) == 0 {
			s.VIP = addr()
		}
		if num(3) == 0 {
			s.VIP6 = netip.MustParseAddr(pick("2001:db8:a::1", "2001:db8:a::2", "2001:db8:b::1", "2001:db8:c::1"))
		}
		s.Families = pick("", "", FamilyV4, FamilyV6)
		if num(6) == 0 {
			s.External = "www.example"
		}
		for range num(2) / 2 {
			s.Backends = append(s.Backends, Backend{Addr: addr(), Port: uint16(num(1) * 80), Hostname: pick("", "h"), Weight: num(40)})
		}
		op.Class = rapid.SampledFrom([]Class{Owner, Cluster}).Draw(t, "class")
		op.Key, op.Value = s.Key(), s
	case KindPolicy:
		p := Policy{Namespace: pick("x", "y"), Name: pick("p1", "p2"), Selector: labels(), DenyIngress: num(1) == 0, Source: pick("nodefile", "command")}
		if num(1) == 0 {
			p.Ingress = []PolicyRule{{Peers: []PolicyPeer{{Labels: labels()}}, Ports: []PolicyPort{{"tcp", 80, 80}}}}
		}
		op.Class = rapid.SampledFrom([]Class{Owner, Cluster}).Draw(t, "class")
		op.Key, op.Value = p.Key(), p
	case KindBackend:
		b := Backend{Namespace: pick("x", "y"), Service: pick("s1", "s2"), Addr: addr(), Port: uint16(num(1) * 80), Hostname: pick("", "h")}
		op.Class, op.Key, op.Value = Cluster, b.Namespace+"/"+b.Service+"/"+b.Addr.String(), b
	case KindVIP:
		op.Class, op.Key, op.Value = Cluster, pick("x", "y")+"/"+pick("s1", "s2", "s3"), VIP{Addr: addr(), NodePorts: map[string]uint16{"80/tcp": uint16(30000 + num(2))}}
	case KindName:
		n := Name{Name: pick("a.example", "b.example"), Type: "A", Target: addr().String()}
		op.Class = rapid.SampledFrom([]Class{Owner, Cluster}).Draw(t, "class")
		op.Key, op.Value = n.Name+" A"+pick("", "1"), n
	case KindReservation:
		r := Reservation{Network: "lan", Addr: addr()}
		op.Class, op.Key, op.Value = Cluster, "lan/"+r.Addr.String(), r
	case KindLease:
		l := LeaseValue{Network: pick("pods", "lan"), Addr: addr(), MAC: "02:00:00:00:00:01", Hostname: pick("", "printer"), Server: any(), Declined: num(5) == 0}
		op.Class, op.Key, op.Value = Lease, l.Network+"/"+l.Addr.String(), l
	case KindRing:
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(4 * num(1))}), 28+num(2)).Masked()
		r := Range{Ring: pick("pods", "pods", RingServices), RingID: pick("r1", "r1", "r1", "r2"), Prefix: p, Owner: any()}
		op.Class, op.Key, op.Value = Ring, r.Ring+"/"+p.String(), r
		op.Gen = uint64(num(2))
	case KindForgotten:
		id := any()
		op.Class, op.Key, op.Value = Cluster, string(id), Forgotten{By: self, Epoch: uint64(num(2)), Name: "n"}
	}
	if num(4) == 0 {
		op.Delete, op.Value = true, nil
	}
	return op
}

// step changes something: a write, what replication brings, liveness, the end
// of tombstones.
func (w *world) step(t *rapid.T) {
	i := rapid.IntRange(0, len(w.stores)-1).Draw(t, "store")
	s, first := w.stores[i], w.stores[0]
	switch rapid.IntRange(0, 9).Draw(t, "step") {
	case 0:
		live := map[NodeID]Live{}
		for n := range byte(4) {
			if st := Liveness(rapid.IntRange(0, 5).Draw(t, "live")); st <= Left {
				live[testID(n+1)] = Live{State: st, Serving: rapid.Bool().Draw(t, "serving")}
				if rapid.Bool().Draw(t, "heard") {
					l := live[testID(n+1)]
					l.Addr = netip.AddrFrom4([4]byte{192, 0, 2, n & 1})
					live[testID(n+1)] = l
				}
			}
		}
		first.SetLiveness(live)
	case 1:
		s.RaiseEpoch(s.Epoch() + 1)
	case 2:
		later := s.Snapshot().Head(s.Self()).Mark
		if _, err := s.Reissue(Mark{Epoch: later.Epoch + 1}); err != nil && s.reissues < maxReissues {
			t.Fatal(err)
		}
	default:
		ops := make([]Op, rapid.IntRange(1, 4).Draw(t, "ops"))
		for j := range ops {
			ops[j] = w.op(t, s.Self())
		}
		inside := rapid.IntRange(0, 5).Draw(t, "view inside") == 0
		_, err := s.Write(context.Background(), func(sn *Snapshot) ([]Op, error) {
			if inside {
				if diff := gocmp.Diff(deriveReference(sn), flat(sn.View()), viewOptions); diff != "" {
					t.Errorf("view inside a write (-want +got):\n%s", diff)
				}
			}
			return ops, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if rapid.Bool().Draw(t, "replicate") {
		for _, o := range w.stores[1:] {
			bring(t, first, o)
		}
	}
}

// bring gives to what from holds.
func bring(t *rapid.T, to, from *Store) {
	sn := from.Snapshot()
	for _, h := range sn.Heads() {
		at := to.Snapshot().Head(h.Owner).Mark
		if at.Compare(h.Mark) >= 0 {
			continue
		}
		if _, err := to.MergeDelta(sn.Delta(h.Owner, at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := sn.Buckets(), to.Snapshot().Buckets()
	for i := range a {
		if a[i] != b[i] {
			if _, err := to.Merge(sn.Bucket(i), true); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestViewsAreKeptRight: whatever was written, and however seldom somebody
// looked, the view is the one that walking all tables gives, and what is said
// to have changed turns the old view into the new one.
func TestViewsAreKeptRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		defer w.close()
		s := w.stores[0]
		var seen []*View
		var snapshots []*Snapshot
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			w.step(t)
			if rapid.IntRange(0, 3).Draw(t, "look") == 0 {
				snapshots = append(snapshots, s.Snapshot()) // its view is asked for later
				continue
			}
			if rapid.Bool().Draw(t, "do not look") {
				continue
			}
			sn := s.Snapshot()
			if n := len(snapshots); n > 0 && rapid.Bool().Draw(t, "an older one") {
				sn = snapshots[n-1]
			}
			v := sn.View()
			if diff := gocmp.Diff(deriveReference(sn), flat(v), viewOptions); diff != "" {
				t.Fatalf("view of revision %d (-want +got):\n%s", sn.Rev(), diff)
			}
			if diff := gocmp.Diff(flat(derive(sn)), flat(v), viewOptions); diff != "" {
				t.Fatalf("revision %d from scratch and kept up to date differ (-want +got):\n%s", sn.Rev(), diff)
			}
			for _, old := range seen {
				checkSince(t, old, v)
			}
			seen = append(seen, v)
		}
	})
}

// checkSince applies what changed since old to it: that must give v.
func checkSince(t *rapid.T, old, v *View) {
	c := v.Since(old)
	if c.All {
		return
	}
	type place struct {
		owner NodeID
		id    string
		lease bool
	}
	endpoints, services := map[place]*EndpointView{}, map[string]*ServiceView{}
	for e := range old.Endpoints() {
		endpoints[place{e.Owner, e.ID, e.Lease}] = e
	}
	for s := range old.Services() {
		services[s.Key()] = s
	}
	for _, x := range c.Endpoints {
		if x.Old != nil {
			p := place{x.Old.Owner, x.Old.ID, x.Old.Lease}
			if endpoints[p] != x.Old {
				t.Fatalf("change of %v from what was not there", p)
			}
			delete(endpoints, p)
		}
		if x.New != nil {
			endpoints[place{x.New.Owner, x.New.ID, x.New.Lease}] = x.New
		}
	}
	for _, x := range c.Services {
		if x.Old != nil {
			if services[x.Old.Key()] != x.Old {
				t.Fatalf("change of %s from what was not there", x.Old.Key())
			}
			delete(services, x.Old.Key())
		}
		if x.New != nil {
			services[x.New.Key()] = x.New
		}
	}
	policies := map[string]*Policy{}
	for _, p := range old.Policies {
		policies[p.Key()] = p
	}
	for _, x := range c.Policies {
		if x.Old != nil {
			if policies[x.Old.Key()] != x.Old {
				t.Fatalf("change of %s from what was not there", x.Old.Key())
			}
			delete(policies, x.Old.Key())
		}
		if x.New != nil {
			policies[x.New.Key()] = x.New
		}
	}
	got := &reference{
		Policies: slices.SortedFunc(maps.Values(policies), byPolicyKey),
		Nodes:    old.Nodes, Networks: old.Networks, Publishes: old.Publishes, Names: old.Names, Conflicts: old.Conflicts, Refusals: old.Refusals,
		Endpoints: slices.SortedFunc(maps.Values(endpoints), byPlace), Services: slices.SortedFunc(maps.Values(services), byServiceKey),
	}
	for _, x := range []struct {
		changed bool
		do      func()
	}{
		{c.Nodes, func() { got.Nodes = v.Nodes }}, {c.Networks, func() { got.Networks = v.Networks }},
		{c.Publishes, func() { got.Publishes = v.Publishes }}, {c.Names, func() { got.Names = v.Names }},
		{c.Conflicts, func() { got.Conflicts, got.Refusals = v.Conflicts, v.Refusals }},
	} {
		if x.changed {
			x.do()
		}
	}
	if diff := gocmp.Diff(flat(v), got, viewOptions); diff != "" {
		t.Fatalf("changes from %d to %d (-want +got):\n%s", old.Rev, v.Rev, diff)
	}
}
