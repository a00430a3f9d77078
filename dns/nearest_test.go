package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"
	"pgregory.net/rapid"

	"nodenet/state"
)

// zonedView has a headless service with backends 10.244.N.1-3 on node N. Nodes
// 1 and 2 are in zone a, 3 in b, 4 in none; 10.244.9.1 is nobody's.
func zonedView(serving bool) *state.View {
	v := state.View{Rev: 1, Self: "n1"}
	sv := &state.ServiceView{Service: state.Service{Namespace: "apps", Name: "db", Headless: true, Ports: []state.ServicePort{{Name: "sql", Protocol: "tcp", Port: 3306}}}}
	var es []*state.EndpointView
	for i, zone := range []string{"a", "a", "b", ""} {
		id := state.NodeID(fmt.Sprintf("n%d", i+1))
		up := serving || i != 0
		v.Nodes = append(v.Nodes, state.NodeView{ID: id, Node: state.Node{Name: string(id), Zone: zone}, Serving: up})
		for j := range 3 {
			a := addr(fmt.Sprintf("10.244.%d.%d", i+1, j+1))
			es = append(es, &state.EndpointView{Endpoint: &state.Endpoint{ID: a.String(), Namespace: "apps", Network: "pods", Addrs: []netip.Addr{a}}, Owner: id, Serving: up})
			sv.Backends = append(sv.Backends, state.BackendOf{Addr: a, Targets: []uint16{3306}, Endpoint: a.String(), Node: id, Ready: up})
		}
	}
	sv.Backends = append(sv.Backends, state.BackendOf{Addr: addr("10.244.9.1"), Targets: []uint16{3306}, Ready: true})
	alias := &state.ServiceView{Service: state.Service{Namespace: "apps", Name: "alias", External: "db.apps.svc.cluster.local"}}
	return state.NewView(v, es, []*state.ServiceView{sv, alias})
}

// thirds lists the third octets of the addresses in an answer, in its order.
func thirds(m *wire.Msg) (out []byte) {
	for _, rr := range m.Answer {
		if a, ok := rr.(*wire.A); ok {
			out = append(out, a.A.To4()[2])
		}
	}
	return out
}

func TestNearestFirst(t *testing.T) {
	tests := []struct {
		name, block string
		want        func(nodes []byte) bool
	}{
		{"by default", "cluster\n loadbalance", func(n []byte) bool {
			return string(n[:6]) == "\x01\x01\x01\x02\x02\x02" && len(n) == 13
		}},
		{"as they are", "cluster", func(n []byte) bool { return slices.IsSorted(n) && len(n) == 13 }},
		{"off", "cluster {\n nearest off\n }\n loadbalance", nil},
		{"by preference", "cluster\n loadbalance round_robin {\n prefer 10.244.3.0/24\n }", func(n []byte) bool { return string(n[:3]) == "\x03\x03\x03" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := offline(t, ". {\n "+tt.block+"\n}\n", zonedView(true))
			var out [defaultBufsize]byte
			packed, firsts, orders := 0, map[byte]bool{}, map[string]bool{}
			for i := range 200 {
				m := new(wire.Msg)
				m.SetQuestion([]string{"db.apps.svc.cluster.local.", "alias.apps.svc.cluster.local."}[i%2], wire.TypeA)
				q, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				r := &responder{turn: rand.Uint64() | 1}
				r.clients = s.clients.Load()
				answers := [][]byte{s.answerPacket(t.Context(), s.live.Load().main, q, client, "udp")}
				if n := r.respond(s.live.Load().main, q, out[:]); n > 0 {
					packed++
					answers = append(answers, out[:n])
				}
				for _, b := range answers {
					reply := new(wire.Msg)
					if err := reply.Unpack(b); err != nil {
						t.Fatal(err)
					}
					nodes := thirds(reply)
					firsts[nodes[0]], orders[string(nodes[:1])+addressOf(reply.Answer[len(reply.Answer)-1]).String()] = true, true
					if tt.want != nil && !tt.want(nodes) {
						t.Fatalf("order of nodes %v", nodes)
					}
				}
			}
			if tt.name != "by preference" && packed == 0 {
				t.Error("the packed path answered nothing")
			}
			if tt.want == nil && len(firsts) < 4 {
				t.Errorf("first are always of nodes %v", firsts)
			}
			if strings.Contains(tt.block, "loadbalance") && len(orders) < 2 {
				t.Error("the order never changes")
			}
		})
	}
	if err := Validate(servers(t, ". {\n cluster {\n nearest maybe\n }\n}\n")); err == nil {
		t.Error("nearest maybe is accepted")
	}
}

// TestNotServing: what is down is in no answer, near or not.
func TestNotServing(t *testing.T) {
	s := offline(t, ". {\n cluster\n}\n", zonedView(false))
	if got := thirds(askFrom(t, s, fromNowhere, "db.apps.svc.cluster.local", "A")); slices.Contains(got, 1) || len(got) != 10 {
		t.Errorf("nodes in the answer: %v", got)
	}
}

func TestSaved(t *testing.T) {
	view := func(rev uint64, others ...state.Liveness) *state.View {
		v := state.View{Rev: rev, Self: "n1", Nodes: []state.NodeView{{ID: "n1", Self: true, State: state.Alive, Serving: true, Node: state.Node{Name: "node1", Advertise: addr("192.168.1.11")}}}}
		for i, l := range others {
			v.Nodes = append(v.Nodes, state.NodeView{ID: state.NodeID(fmt.Sprint("o", i)), State: l, Serving: true, Node: state.Node{Name: fmt.Sprint("other", i)}})
		}
		return state.NewView(v, nil, nil)
	}
	s, err := New(Options{Servers: servers(t, ". {\n cluster\n whoami\n}\n")})
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		what string
		view *state.View
		want bool
	}{
		{"alone", view(1), false},
		{"others only known", view(2, state.Unknown, state.Unknown), true},
		{"one is dead by what is saved", view(3, state.Dead, state.Unknown), true},
		{"one heard", view(4, state.Dead, state.Alive), false},
		{"cut off again: what it has is of this run", view(5, state.Dead, state.Dead), false},
	}
	for _, st := range steps {
		s.deriveAt = s.deriveAt.AddDate(-1, 0, 0)
		s.Set(st.view)
		s.derive()
		for name, code := range map[string]uint16{"node1.node.cluster.local.": wire.ExtendedErrorCodeStaleAnswer, "node9.node.cluster.local.": wire.ExtendedErrorCodeStaleNXDOMAINAnswer} {
			for _, edns := range []bool{true, false} {
				m := new(wire.Msg)
				m.SetQuestion(name, wire.TypeA)
				if edns {
					m.SetEdns0(1232, false)
				}
				q, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				r := &responder{turn: 1}
				r.saved = s.saved.Load()
				var out [defaultBufsize]byte
				if n := r.respond(s.live.Load().main, q, out[:]); (n == 0) != (st.want && edns) {
					t.Errorf("%s: %s: the packed path gave %d bytes", st.what, name, n)
				}
				reply := new(wire.Msg)
				if err := reply.Unpack(s.answerPacket(t.Context(), s.live.Load().main, q, client, "udp")); err != nil {
					t.Fatal(err)
				}
				var got []uint16
				if o := reply.IsEdns0(); o != nil {
					for _, e := range o.Option {
						got = append(got, e.(*wire.EDNS0_EDE).InfoCode)
					}
				}
				var want []uint16
				if st.want && edns {
					want = []uint16{code}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s: extended errors (-want +got):\n%s", st.what, name, diff)
				}
			}
		}
		status := s.Status()
		if status.Saved != st.want || strings.Contains(status.Detail, "saved state") != st.want {
			t.Errorf("%s: saved %t, %q", st.what, status.Saved, status.Detail)
		}
	}
}

// TestClientIndexFollows: an index that follows views is that of the last one.
func TestClientIndexFollows(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var idx *clientIndex
		for rev := range rapid.IntRange(1, 6).Draw(rt, "views") {
			v := state.View{Rev: uint64(rev + 1), Self: "n1", Networks: []state.NetworkView{
				{Network: state.Network{Name: "local", Overlay: state.OverlayNone}},
				{Network: state.Network{Name: "pods", Overlay: state.OverlayVXLAN, NoSearch: rapid.IntRange(0, 9).Draw(rt, "quiet") == 0}},
			}}
			for i := range 3 {
				id := state.NodeID(fmt.Sprintf("n%d", i+1))
				v.Nodes = append(v.Nodes, state.NodeView{ID: id, Node: state.Node{Name: string(id), Zone: rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "zone")}})
			}
			var es []*state.EndpointView
			for range rapid.IntRange(0, 8).Draw(rt, "endpoints") {
				e := &state.EndpointView{Endpoint: &state.Endpoint{
					ID: rapid.SampledFrom([]string{"e1", "e2", "e3"}).Draw(rt, "id"), Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "ns"),
					Network: rapid.SampledFrom([]string{"local", "pods"}).Draw(rt, "network"),
					Addrs:   []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(rt, "addr") % 4})},
				}, Owner: state.NodeID(rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(rt, "owner"))}
				if rapid.IntRange(0, 5).Draw(rt, "off") == 0 {
					e.Labels = map[string]string{searchLabel: "off"}
				}
				es = append(es, e)
			}
			idx = clientsOf(idx, state.NewView(v, es, nil))
			fresh := clientsOf(nil, idx.view)
			for i := range 5 {
				a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
				if idx.namespace(a) != fresh.namespace(a) || idx.rank(a) != fresh.rank(a) {
					rt.Fatalf("%s: namespace %q rank %d, a fresh index says %q %d", a, idx.namespace(a), idx.rank(a), fresh.namespace(a), fresh.rank(a))
				}
			}
		}
	})
}
