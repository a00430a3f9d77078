package lb

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/state"
)

// TestStaleFlows: which flows are left after a change, or after a start without
// knowledge of what was before.
func TestStaleFlows(t *testing.T) {
	const w1, w2, far = "10.244.0.2:53", "10.244.0.3:53", "10.244.1.2:53@other"
	udp := func(backends ...string) *state.ServiceView {
		return with(svc("u", "10.96.1.30", "udp", 53, 0, backends...), externals("203.0.113.30"))
	}
	tcp := func(mark func(*state.BackendOf)) *state.ServiceView {
		s := svc("t", "10.96.1.31", "tcp", 53, 30131, w1, w2)
		if mark != nil {
			s.Backends[0].Ready = false
			mark(&s.Backends[0])
		}
		return s
	}
	dia := func(mark func(*state.BackendOf), backends ...string) *state.ServiceView {
		s := svc("s", "10.96.1.33", "sctp", 53, 30133, backends...)
		if mark != nil {
			s.Backends[0].Ready = false
			mark(&s.Backends[0])
		}
		return s
	}
	ofSCTP := []string{"sctp 10.96.1.33:53 10.244.0.2:53", "sctp 10.96.1.33:53 10.244.0.3:53", "sctp 192.0.2.11:30133 10.244.0.2:53", "sctp 198.51.100.1:30133 198.51.100.1:30133"}
	drains, fails := func(b *state.BackendOf) { b.Draining = true }, func(b *state.BackendOf) { b.Failed = true }
	other := svc("v", "10.96.1.30", "udp", 53, 0, w2)
	draining := udp(w1, w2)
	draining.Backends[0].Ready, draining.Backends[0].Draining = false, true
	spread := with(svc("r", "10.96.1.32", "udp", 8000, 0, "10.244.0.2:8000", "10.244.0.3:8000"), func(s *state.ServiceView) { s.Ports[0].Last = 8010 })
	spreadLess := with(svc("r", "10.96.1.32", "udp", 8000, 0, "10.244.0.3:8000"), func(s *state.ServiceView) { s.Ports[0].Last = 8010 })
	// A port within the range, without the other backend.
	oneOf := svc("r", "10.96.1.32", "udp", 8004, 0, "10.244.0.2:8004")
	ofRange := []string{"udp 10.96.1.32:8004 10.244.0.2:8004", "udp 10.96.1.32:8004 10.244.0.4:8004", "udp 10.96.1.32:8005 10.244.0.3:8005"}
	tests := map[string]struct {
		was, is *state.ServiceView // with started, of the daemon before
		started bool
		flows   []string
		gone    []int // of flows
	}{
		"UDP backend goes":             {udp(w1, w2), udp(w2), false, []string{"udp 10.96.1.30:53 10.244.0.2:53", "udp 10.96.1.30:53 10.244.0.3:53", "udp 203.0.113.30:53 10.244.0.2:53"}, []int{0, 2}},
		"UDP backend drains":           {udp(w1, w2), draining, false, []string{"udp 10.96.1.30:53 10.244.0.2:53"}, nil},
		"UDP backend falls silent":     {udp(w1, w2), udp(w1+"!", w2), false, []string{"udp 10.96.1.30:53 10.244.0.2:53"}, []int{0}},
		"UDP service goes":             {udp(w1), nil, false, []string{"udp 10.96.1.30:53 10.244.0.2:53", "tcp 10.96.1.30:53 10.244.0.2:53"}, []int{0}},
		"UDP address is another's":     {udp(w1), other, false, []string{"udp 10.96.1.30:53 10.244.0.2:53", "udp 10.96.1.30:53 10.244.0.3:53"}, []int{0}},
		"UDP backend of a policy":      {udp(w1, far), with(udp(w1, far), func(s *state.ServiceView) { s.Inside = state.PolicyLocal }), false, []string{"udp 10.96.1.30:53 10.244.1.2:53"}, nil},
		"UDP range":                    {spread, spreadLess, false, []string{"udp 10.96.1.32:8004 10.244.0.2:8004", "udp 10.96.1.32:8004 10.244.0.3:8004", "udp 10.96.1.32:8011 10.244.0.2:8011"}, []int{0}},
		"start, UDP":                   {nil, udp(w2), true, []string{"udp 10.96.1.30:53 10.244.0.2:53", "udp 10.96.1.30:53 10.244.0.3:53", "udp 10.96.7.7:53 10.244.0.3:53", "udp 10.96.0.10:53 10.96.0.10:53", "udp 198.51.100.1:53 198.51.100.1:53"}, []int{0, 2}},
		"UDP port becomes a range":     {oneOf, spread, false, ofRange, []int{1}},
		"start, a range now":           {oneOf, spread, true, ofRange, []int{1}},
		"start, no range now":          {spread, oneOf, true, ofRange, []int{1, 2}},
		"start, external address went": {udp(w1, w2), svc("u", "10.96.1.30", "udp", 53, 0, w1, w2), true, []string{"udp 203.0.113.30:53 10.244.0.2:53", "udp 203.0.113.31:53 10.244.0.2:53"}, []int{0}},
		"TCP backend goes":             {tcp(nil), svc("t", "10.96.1.31", "tcp", 53, 30131, w2), false, []string{"tcp 10.96.1.31:53 10.244.0.2:53"}, nil},
		"TCP backend drains":           {tcp(nil), tcp(drains), false, []string{"tcp 10.96.1.31:53 10.244.0.2:53"}, nil},
		"TCP backend fails":            {tcp(nil), tcp(fails), false, []string{"tcp 10.96.1.31:53 10.244.0.2:53", "tcp 10.96.1.31:53 10.244.0.3:53", "tcp 192.0.2.11:30131 10.244.0.2:53", "tcp 10.96.1.99:53 10.244.0.2:53"}, []int{0, 2}},
		"TCP backend drained, fails":   {tcp(drains), tcp(fails), false, []string{"tcp 10.96.1.31:53 10.244.0.2:53"}, []int{0}},
		"TCP backend failed already":   {tcp(fails), with(tcp(fails), func(s *state.ServiceView) { s.Backends[1].Weight = 2 }), false, []string{"tcp 10.96.1.31:53 10.244.0.2:53"}, nil},
		"start, TCP backend failed":    {nil, tcp(fails), true, []string{"tcp 10.96.1.31:53 10.244.0.2:53", "tcp 10.96.1.31:53 10.244.0.3:53"}, []int{0}},
		"SCTP backend goes":            {dia(nil, w1, w2), dia(nil, w2), false, ofSCTP, []int{0, 2}},
		"SCTP backend drains":          {dia(nil, w1, w2), dia(drains, w1, w2), false, ofSCTP, nil},
		"SCTP backend falls silent":    {dia(nil, w1, w2), dia(func(*state.BackendOf) {}, w1, w2), false, ofSCTP, nil},
		"SCTP backend fails":           {dia(nil, w1, w2), dia(fails, w1, w2), false, ofSCTP, []int{0, 2}},
		"SCTP backend drained, fails":  {dia(drains, w1, w2), dia(fails, w1, w2), false, ofSCTP, []int{0, 2}},
		"SCTP backend comes":           {dia(nil, w2), dia(nil, w1, w2), false, ofSCTP, nil},
		"SCTP service goes":            {dia(nil, w1, w2), nil, false, ofSCTP, []int{0, 1, 2}},
		"start, SCTP":                  {nil, dia(nil, w2), true, append(ofSCTP, "sctp 10.96.7.7:53 10.244.0.3:53"), []int{0, 2}},
		"start, SCTP backend silent":   {nil, dia(func(*state.BackendOf) {}, w1, w2), true, ofSCTP, nil},
		"TCP through the node, passes": {tcp(nil), tcp(fails), false, []string{"tcp 198.51.100.1:30131 198.51.100.1:30131"}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ct, k := new(tracked), newFake()
			daemon := func() *LB {
				b, err := New(Options{Kernel: k, Conntrack: ct, Loopback: deaf{}})
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			b := daemon()
			view := func(rev uint64, s *state.ServiceView) *state.View {
				var list []*state.ServiceView
				if s != nil {
					list = append(list, s)
				}
				return state.NewView(state.View{Rev: rev, Self: selfID}, nil, list)
			}
			if tt.was != nil || !tt.started {
				if err := b.apply(&wish{view(1, tt.was), testLocal()}); err != nil {
					t.Fatal(err)
				}
			}
			if tt.started {
				b = daemon()
			}
			ct.track(tt.flows...)
			all := ct.left()
			if err := b.apply(&wish{view(2, tt.is), testLocal()}); err != nil {
				t.Fatal(err)
			}
			var want []string
			for i, f := range all {
				gone := false
				for _, g := range tt.gone {
					gone = gone || g == i
				}
				if !gone {
					want = append(want, f)
				}
			}
			if diff := cmp.Diff(want, ct.left()); diff != "" {
				t.Errorf("flows left (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStalePublished: flows to what a published port led to before are
// forgotten, but of TCP.
func TestStalePublished(t *testing.T) {
	view := func(rev uint64, target string) *state.View {
		v := state.View{Rev: rev, Self: selfID}
		for _, proto := range []string{"tcp", "udp", "sctp"} {
			v.Publishes = append(v.Publishes, pub("", proto, 9000, target))
		}
		return state.NewView(v, nil, nil)
	}
	ct, k := new(tracked), newFake()
	b, err := New(Options{Kernel: k, Conntrack: ct, Loopback: deaf{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.apply(&wish{view(1, "10.244.0.2:53"), testLocal()}); err != nil {
		t.Fatal(err)
	}
	ct.track("tcp 192.0.2.11:9000 10.244.0.2:53", "udp 192.0.2.11:9000 10.244.0.2:53", "sctp 192.0.2.11:9000 10.244.0.2:53", "sctp 192.0.2.11:9001 10.244.0.2:53")
	if err := b.apply(&wish{view(2, "10.244.0.3:53"), testLocal()}); err != nil {
		t.Fatal(err)
	}
	want := []string{"tcp 192.0.2.11:9000 by 10.244.0.2:53", "sctp 192.0.2.11:9001 by 10.244.0.2:53"}
	if diff := cmp.Diff(want, ct.left()); diff != "" {
		t.Errorf("flows left (-want +got):\n%s", diff)
	}
	// The next daemon finds in the kernel what was published before it.
	ct.track("tcp 192.0.2.11:9000 10.244.0.3:53", "udp 192.0.2.11:9000 10.244.0.3:53", "udp 192.0.2.11:9002 10.244.0.3:53")
	want = []string{"tcp 192.0.2.11:9000 by 10.244.0.3:53", "udp 192.0.2.11:9002 by 10.244.0.3:53"}
	if b, err = New(Options{Kernel: k, Conntrack: ct, Loopback: deaf{}}); err != nil {
		t.Fatal(err)
	}
	if err := b.apply(&wish{state.NewView(state.View{Rev: 3, Self: selfID}, nil, nil), testLocal()}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, ct.left()); diff != "" {
		t.Errorf("flows left after a start (-want +got):\n%s", diff)
	}
}

// TestZones: a node that moves to another zone is looked at again, and nothing
// is when a node changes otherwise.
func TestZones(t *testing.T) {
	b, err := New(Options{Kernel: newFake(), Loopback: deaf{}})
	if err != nil {
		t.Fatal(err)
	}
	s := with(svc("zone", "10.96.1.4", "tcp", 80, 0, "10.244.1.2:80@other", "10.244.2.2:80@other"), func(s *state.ServiceView) {
		s.Backends[1].Node = farID
		s.Inside = state.PolicyPreferZone
	})
	steps := []struct {
		rev         uint64
		here, there string // zones of otherID's node and this one
		state       state.Liveness
		slots       int
		anew        bool
	}{
		{1, "a", "a", state.Alive, 1, true},
		{2, "a", "a", state.Suspect, 1, false},
		{3, "b", "a", state.Suspect, 2, true},
		{4, "b", "b", state.Alive, 2, true},
		{5, "c", "c", state.Alive, 1, true},
	}
	for _, st := range steps {
		was := b.book
		v := state.NewView(state.View{Rev: st.rev, Self: selfID, Nodes: []state.NodeView{
			{ID: selfID, Node: state.Node{Name: "n1", Zone: st.there}}, {ID: otherID, Node: state.Node{Name: "n2", Zone: st.here}, State: st.state},
			{ID: farID, Node: state.Node{Name: "n3", Zone: "b"}},
		}}, nil, []*state.ServiceView{s})
		if err := b.apply(&wish{v, testLocal()}); err != nil {
			t.Fatal(err)
		}
		tab := bookTable(b)
		if n := len(tab.Services[0].Backends); n != st.slots {
			t.Errorf("revision %d: %d slots, want %d", st.rev, n, st.slots)
		}
		if anew := b.book != was; anew != st.anew {
			t.Errorf("revision %d: everything looked at: %v, want %v", st.rev, anew, st.anew)
		}
	}
}
