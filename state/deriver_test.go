package state

import (
	"fmt"
	"net/netip"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

func block(i int) Op {
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
	return Put(Owner, KindBlock, "pods/"+p.String(), Block{Network: "pods", Prefix: p})
}

// A snapshot older than all that is kept, and one after more changes than are
// remembered, have the right view all the same.
func TestViewWithoutWhatWentBefore(t *testing.T) {
	s := newStore(t, 1, nil)
	put(t, s, Put(Owner, KindNode, "self", Node{Name: "node1"}))
	first := s.Snapshot()
	for i := range keptViews + 2 {
		put(t, s, block(i))
		s.Snapshot().View()
	}
	if got := len(first.View().Nodes[0].Blocks); got != 0 {
		t.Errorf("the first snapshot shows %d blocks", got)
	}
	old := s.Snapshot().View()
	ops := make([]Op, keptEdits+1)
	for i := range ops {
		ops[i] = block(100 + i)
	}
	put(t, s, ops...)
	v := s.Snapshot().View()
	if got := len(v.Nodes[0].Blocks); got != len(ops)+keptViews+2 {
		t.Errorf("%d blocks, want %d", got, len(ops)+keptViews+2)
	}
	if c := v.Since(old); !c.All {
		t.Errorf("what is not remembered is said to be known: %+v", c)
	}
	if c := v.Since(nil); !c.All {
		t.Error("since nothing, not everything changed")
	}
	if c := v.Since(v); !c.None() {
		t.Errorf("a view differs from itself: %+v", c)
	}
}

func TestCheckViewFindsAndMendsAFault(t *testing.T) {
	s := newStore(t, 1, nil)
	put(t, s, Put(Owner, KindNode, "self", Node{Name: "node1"}),
		Put(Owner, KindEndpoint, "e", Endpoint{ID: "e", Network: "pods", Namespace: "x", Labels: map[string]string{"app": "a"}}))
	v := s.Snapshot().View()
	if err := s.CheckView(); err != nil {
		t.Fatal(err)
	}
	e := v.Endpoint(s.Self(), "e")
	v.endpoints.remove(e)
	v.byOwner.remove(e)
	if err := s.CheckView(); err == nil {
		t.Error("a missing endpoint was not seen")
	}
	put(t, s, block(1))
	if s.Snapshot().View().Endpoint(s.Self(), "e") == nil {
		t.Error("the fault went on into the next view")
	}
}

// Views that were built by hand are compared as a whole.
func TestSinceOfBuiltViews(t *testing.T) {
	endpoint := func(id string, ready bool) *EndpointView {
		return &EndpointView{Endpoint: &Endpoint{ID: id, Network: "pods", Ready: ready}, Owner: "n1"}
	}
	a := NewView(View{Rev: 1, Names: []Name{{Name: "a"}}}, []*EndpointView{endpoint("e2", true), endpoint("e1", true), endpoint("e3", true)}, nil)
	b := NewView(View{Rev: 2, Names: []Name{{Name: "a"}}}, []*EndpointView{endpoint("e1", true), endpoint("e2", false)},
		[]*ServiceView{{Service: Service{Namespace: "x", Name: "s"}}})
	c := b.Since(a)
	var got []string
	for _, x := range c.Endpoints {
		got = append(got, fmt.Sprint(x.either().ID, x.Old != nil, x.New != nil))
	}
	if diff := gocmp.Diff([]string{"e2true true", "e3true false"}, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	if len(c.Services) != 1 || c.Services[0].Old != nil || c.Services[0].New != b.Service("x/s") {
		t.Errorf("services %+v", c.Services)
	}
	if c.All || c.Names || c.Nodes {
		t.Errorf("%+v", c)
	}
	if a.Endpoint("n1", "e3") == nil || a.Endpoint("n2", "e3") != nil || b.NumServices() != 1 || a.NumEndpoints() != 3 {
		t.Error("accessors are wrong")
	}
	n := 0
	for range (&View{}).Endpoints() {
		n++
	}
	if n != 0 || (&View{}).Service("x/s") != nil || (&View{}).Endpoint("n1", "e1") != nil {
		t.Error("the zero view is not empty")
	}
}

func TestKeysCompareAsJoined(t *testing.T) {
	names := []string{"a", "a-b", "a.b", "a0", "b", "ab"}
	for _, a := range names {
		for _, b := range names {
			x, y := &ServiceView{Service: Service{Namespace: a, Name: b}}, &ServiceView{Service: Service{Namespace: b, Name: a}}
			if got, want := byServiceKey(x, y), compareStrings(x.Key(), y.Key()); got != want {
				t.Errorf("%s and %s: %d, want %d", x.Key(), y.Key(), got, want)
			}
		}
	}
}

func TestEqualStringsAreOne(t *testing.T) {
	s := newStore(t, 1, nil)
	for i := range 2 * internLimit {
		e := Endpoint{ID: fmt.Sprint(i), Network: fmt.Sprint("n", i), Labels: map[string]string{"a\x00": fmt.Sprint(i), "b": ""}}
		v, err := Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		r := Record{ID: ID{Owner, KindEndpoint, s.self, e.ID}, Value: v}
		s.understand(&r)
		if diff := gocmp.Diff(&e, r.val, viewOptions); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
	if n := len(s.interner.strings.young) + len(s.interner.strings.old); n > 2*internLimit+1 {
		t.Errorf("%d strings remembered", n)
	}
}
