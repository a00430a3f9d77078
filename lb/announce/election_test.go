package announce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nodenet/state"
)

// nodeN is node i of a LAN 192.0.2.0/24 (and 2001:db8::/64): 192.0.2.i,
// Ethernet address 02:…:i.
func nodeN(i int) state.NodeView {
	return state.NodeView{
		ID: idN(i), State: state.Alive, Serving: true,
		Node: state.Node{Name: fmt.Sprintf("node%d", i), LANs: lansN(i)},
	}
}

func idN(i int) state.NodeID { return state.NodeID(fmt.Sprintf("%032x", i)) }
func macN(i int) MAC         { return MAC{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func addrN(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

func lansN(i int) []state.LAN {
	mac := macN(i)
	six := netip.MustParseAddr("2001:db8::").As16()
	six[15] = byte(i)
	return []state.LAN{
		{Addr: netip.PrefixFrom(addrN(i), 24), MAC: mac[:]},
		{Addr: netip.PrefixFrom(netip.AddrFrom16(six), 64), MAC: mac[:]},
	}
}

// svc is a service that announces addresses.
func svc(name string, addrs ...netip.Addr) *state.ServiceView {
	return &state.ServiceView{Service: state.Service{Namespace: "default", Name: name, Announce: true, Addresses: addrs}}
}

func viewOf(self int, nodes []state.NodeView, services ...*state.ServiceView) *state.View {
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Self = nodes[i].ID == idN(self)
	}
	return state.NewView(state.View{Rev: 1, Self: idN(self), Nodes: nodes}, nil, services)
}

func nodes(n int) []state.NodeView {
	var out []state.NodeView
	for i := 1; i <= n; i++ {
		out = append(out, nodeN(i))
	}
	return out
}

// owner returns who has the first address of a view, by name, or why nobody.
func owner(v *state.View) string {
	p := Elect(v)
	if len(p.Addrs) == 0 {
		return "none"
	}
	if p.Addrs[0].Owner == "" {
		return p.Addrs[0].Why
	}
	return p.Addrs[0].Name
}

// TestOwners pins what is elected: nodes of different versions must agree, so
// a change here is a change of the protocol.
func TestOwners(t *testing.T) {
	var got []string
	v := viewOf(1, nodes(5), svc("web", addrN(200), addrN(201), addrN(202), addrN(203), addrN(204), netip.MustParseAddr("2001:db8::200")))
	for _, a := range Elect(v).Addrs {
		line := a.Addr.String()
		for _, c := range a.Order {
			line += " " + strings.TrimLeft(string(c.Node), "0")
		}
		got = append(got, line)
	}
	want := []string{
		"192.0.2.200 2 5 3 1 4",
		"192.0.2.201 2 4 5 1 3",
		"192.0.2.202 2 1 4 3 5",
		"192.0.2.203 4 5 3 1 2",
		"192.0.2.204 2 3 4 1 5",
		"2001:db8::200 4 1 3 5 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of candidates (-want +got):\n%s", diff)
	}
}

func TestElection(t *testing.T) {
	first := func(n int) int { // the node that has 192.0.2.200 among n when all are well
		p := Elect(viewOf(1, nodes(n), svc("web", addrN(200))))
		var i int
		fmt.Sscanf(string(p.Addrs[0].Owner), "%x", &i)
		return i
	}(3)
	second := func() string {
		list := nodes(3)
		list[first-1].State = state.Dead
		return owner(viewOf(first%3+1, list, svc("web", addrN(200))))
	}()
	self := first%3 + 1 // who looks
	name := fmt.Sprintf("node%d", first)
	backend := func(s *state.ServiceView, node int, ready bool) *state.ServiceView {
		s.Outside = state.PolicyLocal
		s.Backends = append(s.Backends, state.BackendOf{Node: idN(node), Ready: ready})
		return s
	}
	for _, tt := range []struct {
		name     string
		change   func(n []state.NodeView)
		services []*state.ServiceView
		want     string
	}{
		{"all well", nil, []*state.ServiceView{svc("web", addrN(200))}, name},
		{"suspect stays", func(n []state.NodeView) { n[first-1].State = state.Suspect }, []*state.ServiceView{svc("web", addrN(200))}, name},
		{"dead is out while answers still hold", func(n []state.NodeView) { n[first-1].State = state.Dead }, []*state.ServiceView{svc("web", addrN(200))}, second},
		{"not heard of yet", func(n []state.NodeView) { n[first-1].State = state.Unknown }, []*state.ServiceView{svc("web", addrN(200))}, second},
		{"flapping comes last", func(n []state.NodeView) { n[first-1].Flapping = true }, []*state.ServiceView{svc("web", addrN(200))}, second},
		{"all flap", func(n []state.NodeView) {
			for i := range n {
				n[i].Flapping = i != self-1
			}
		}, []*state.ServiceView{svc("web", addrN(200))}, fmt.Sprintf("node%d", self)},
		{"refused", func(n []state.NodeView) { n[first-1].Refused = "its key is another's" }, []*state.ServiceView{svc("web", addrN(200))}, second},
		{"leaving", func(n []state.NodeView) { n[first-1].Left = true }, []*state.ServiceView{svc("web", addrN(200))}, second},
		{"link without carrier", func(n []state.NodeView) { n[first-1].LANs = nil }, []*state.ServiceView{svc("web", addrN(200))}, second},
		{"nobody on the LAN", nil, []*state.ServiceView{svc("web", netip.MustParseAddr("198.51.100.1"))},
			"no node has an interface on its LAN: route it to any node, or give a node an address in its prefix"},
		{"a node's own address", nil, []*state.ServiceView{svc("web", addrN(2))}, "it is node node2's own address: choose another"},
		{"the LAN's broadcast address", nil, []*state.ServiceView{svc("web", addrN(255))},
			"no node has an interface on its LAN: route it to any node, or give a node an address in its prefix"},
		{"not announced", nil, []*state.ServiceView{{Service: state.Service{Name: "web", Addresses: []netip.Addr{addrN(200)}}}}, "none"},
		{"local backend", nil, []*state.ServiceView{backend(svc("web", addrN(200)), self, true)}, fmt.Sprintf("node%d", self)},
		{"no local backend is ready", nil, []*state.ServiceView{backend(svc("web", addrN(200)), self, false)},
			"no living node on its LAN has a ready backend, and the service wants local ones"},
		{"most local backends", nil, []*state.ServiceView{
			backend(backend(svc("web", addrN(200)), self, true), first, true), backend(svc("mail", addrN(200)), self, true),
		}, fmt.Sprintf("node%d", self)},
		{"another service with the address takes any node", nil, []*state.ServiceView{
			backend(svc("web", addrN(200)), self, false), svc("mail", addrN(200)),
		}, name},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := nodes(3)
			if tt.change != nil {
				tt.change(list)
			}
			if got := owner(viewOf(self, list, tt.services...)); got != tt.want {
				t.Errorf("owner %q, want %q", got, tt.want)
			}
		})
	}
}

// owners maps each address to its owner.
func owners(p *Plan) map[netip.Addr]state.NodeID {
	out := map[netip.Addr]state.NodeID{}
	for _, a := range p.Addrs {
		out[a.Addr] = a.Owner
	}
	return out
}

func manyAddrs(n int) []netip.Addr {
	var out []netip.Addr
	a := netip.MustParseAddr("2001:db8::1:0")
	for range n {
		out = append(out, a)
		a = a.Next()
	}
	return out
}

// TestBalance: no node has far more than its share.
func TestBalance(t *testing.T) {
	for _, n := range []int{2, 3, 10, 50} {
		const each = 200
		count := map[state.NodeID]int{}
		for _, id := range owners(Elect(viewOf(1, nodes(n), svc("web", manyAddrs(n*each)...)))) {
			count[id]++
		}
		for i := 1; i <= n; i++ {
			// The standard deviation is √200 ≈ 14.
			if c := count[idN(i)]; c < each-5*14 || c > each+5*14 {
				t.Errorf("of %d nodes node%d has %d of %d addresses, its share is %d", n, i, c, n*each, each)
			}
		}
	}
}

// TestEveryNodeElectsTheSame, and what changes moves only what it must.
func TestElectionProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 12).Draw(t, "nodes")
		list := nodes(n)
		for i := range list {
			list[i].State = rapid.SampledFrom([]state.Liveness{state.Alive, state.Alive, state.Suspect, state.Dead, state.Unknown}).Draw(t, "state")
			list[i].Flapping = rapid.IntRange(0, 9).Draw(t, "flapping") == 0
		}
		s := svc("web", manyAddrs(40)...)
		var living []int
		for i := range list {
			if list[i].State == state.Alive || list[i].State == state.Suspect {
				living = append(living, i+1)
			}
		}
		if len(living) < 2 {
			t.Skip("nobody to compare")
		}
		flapping := func(i int) bool { return list[i-1].Flapping }
		living = slices.DeleteFunc(living, flapping) // who flaps does not know it
		if len(living) < 2 {
			t.Skip("nobody to compare")
		}
		self := rapid.SampledFrom(living).Draw(t, "self")
		before := owners(Elect(viewOf(self, list, s)))
		for _, other := range living {
			if !maps.Equal(before, owners(Elect(viewOf(other, list, s)))) {
				t.Fatalf("node%d and node%d elect differently", self, other)
			}
		}
		// One dies: only what it had moves.
		dies := rapid.SampledFrom(living).Filter(func(i int) bool { return i != self }).Draw(t, "dies")
		list[dies-1].State = state.Dead
		after := owners(Elect(viewOf(self, list, s)))
		for a, was := range before {
			if is := after[a]; is != was && was != idN(dies) || is == idN(dies) {
				t.Fatalf("node%d died and %s went from %s to %s", dies, a, was.Short(), is.Short())
			}
		}
		// It comes back: all is as before.
		list[dies-1].State = state.Alive
		if !maps.Equal(before, owners(Elect(viewOf(self, list, s)))) {
			t.Fatal("after its return addresses are elsewhere than before")
		}
	})
}

// TestElectorFollows: what is elected step by step is what is elected at once.
func TestElectorFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e Elector
		list := nodes(4)
		services := map[string]*state.ServiceView{}
		var last *Plan
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			changed := true
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				i := rapid.IntRange(0, 3).Draw(t, "node")
				list[i].State = rapid.SampledFrom([]state.Liveness{state.Alive, state.Dead}).Draw(t, "state")
			case 1:
				i := rapid.IntRange(0, 3).Draw(t, "node")
				if list[i].LANs = nil; rapid.Bool().Draw(t, "up") {
					list[i].LANs = lansN(i + 1)
				}
			case 2, 3:
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service")
				s := svc(name)
				for range rapid.IntRange(0, 3).Draw(t, "addresses") {
					s.Addresses = append(s.Addresses, addrN(rapid.IntRange(200, 204).Draw(t, "address")))
				}
				s.Announce = rapid.Bool().Draw(t, "announce")
				services[name] = s
				if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
					delete(services, name)
				}
			case 4:
				changed = false
			}
			v := viewOf(1, list, slices.Collect(maps.Values(services))...)
			p := e.Elect(v)
			if !changed && last != nil && p != last {
				t.Fatal("another plan although nothing changed")
			}
			last = p
			if !samePlan(p, Elect(v)) {
				t.Fatalf("step by step %+v, at once %+v", p.Addrs, Elect(v).Addrs)
			}
		}
	})
}
