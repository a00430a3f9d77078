package state

import (
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// What is judged by records that come later is judged again when they come,
// and looked at again where it is used, nowhere else.
func TestClaimsAreJudgedAgain(t *testing.T) {
	a, b, me := newClaimant(1), newClaimant(2), newClaimant(3)
	addr := netip.MustParseAddr("192.168.1.1")
	s, err := NewStore(Options{Self: me.id, Records: []Record{
		me.self(t, "me", "192.168.1.3"), a.self(t, "a", "192.168.1.1"), b.self(t, "b", "192.168.1.1"),
		me.rec(t, KindNetwork, "pods", Network{Name: "pods", Prefix: netip.MustParsePrefix("10.1.0.0/16"), Overlay: OverlayVXLAN}),
		me.rec(t, KindService, "default/w", Service{Namespace: "default", Name: "w", VIP: netip.MustParseAddr("10.96.0.20"), Ports: []ServicePort{{Protocol: "tcp", Port: 80}}}),
		me.endpoint(t, "mine", "10.244.3.2"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	merge := func(recs ...Record) func() {
		return func() {
			if _, err := s.Merge(recs, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(op Op) func() { return func() { put(t, s, op) } }
	nodeA, nodeB := a.id, b.id
	heard := func(a, b netip.Addr) func() {
		return func() {
			s.SetLiveness(map[NodeID]Live{
				nodeA: {State: Alive, Serving: true, Addr: a}, nodeB: {State: Alive, Serving: true, Addr: b},
			})
		}
	}
	lease := LeaseValue{Network: "pods", Addr: netip.MustParseAddr("10.244.1.9"), Server: a.id}
	network := Network{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Overlay: OverlayVXLAN}
	old := s.Snapshot().View()
	for _, c := range []struct {
		name                string
		do                  func()
		refused             []string // what
		endpoints, services int      // changed
	}{
		{"at first", func() {}, []string{"node a"}, 0, 0},
		{"a is heard from the address", heard(addr, netip.Addr{}), []string{"node b"}, 0, 0},
		{"b is heard from the address", heard(netip.Addr{}, addr), []string{"node a"}, 0, 0},
		{"a is", heard(addr, netip.Addr{}), []string{"node b"}, 0, 0},
		{"a lease outside the network", merge(shared(t, Lease, KindLease, "pods/10.244.1.9", 1, lease)), []string{"lease 10.244.1.9 of pods", "node b"}, 0, 0},
		{"the network reaches it", write(Put(Owner, KindNetwork, "pods", network)), []string{"node b"}, 1, 0},
		{"service addresses are elsewhere", merge(ringRecord(t, RingServices, "10.97.0.0/16", a.id, 1)), []string{"VIP 10.96.0.20", "node b"}, 0, 1},
		{"they change hands", merge(ringRecord(t, RingServices, "10.97.0.0/17", me.id, 2)), []string{"VIP 10.96.0.20", "node b"}, 0, 0},
		{"and there are more", merge(ringRecord(t, RingServices, "10.96.0.0/16", a.id, 1)), []string{"node b"}, 0, 1},
		{"another's block", merge(ringRecord(t, "pods", "10.244.3.0/24", a.id, 1)), []string{"node b"}, 0, 0},
		{"opened", func() { bringBlock(t, s, a, "10.244.3.0/24") }, []string{"endpoint mine.default (10.244.3.2)", "node b"}, 1, 0},
		{"a block elsewhere", func() { bringBlock(t, s, a, "10.244.4.0/24") }, []string{"endpoint mine.default (10.244.3.2)", "node b"}, 0, 0},
		{"the endpoint ends", write(Del(Owner, KindEndpoint, "mine")), []string{"node b"}, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do()
			sn := s.Snapshot()
			v := sn.View()
			if diff := gocmp.Diff(deriveReference(sn), flat(v), viewOptions); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			var got []string
			for _, r := range v.Refusals {
				if !r.Waiting {
					got = append(got, r.What)
				}
			}
			if diff := gocmp.Diff(c.refused, got); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			d := v.Since(old)
			if d.All || len(d.Endpoints) != c.endpoints || len(d.Services) != c.services {
				t.Errorf("%d endpoints and %d services changed (all: %v), want %d and %d", len(d.Endpoints), len(d.Services), d.All, c.endpoints, c.services)
			}
			old = v
		})
	}
}

func bringBlock(t *testing.T, s *Store, c *claimant, p string) {
	t.Helper()
	at := s.Snapshot().Head(c.id).Mark
	r := c.block(t, p, 1)
	r.Version = Version{Epoch: at.Epoch, Seq: at.Seq + 1}
	if _, err := s.MergeDelta(Delta{Owner: c.id, From: at, To: r.Version.mark(), Records: []Record{r}}); err != nil {
		t.Fatal(err)
	}
}
