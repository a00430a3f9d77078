package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nodenet/state"
)

// policyWorld is what views with policies are made of: endpoints in two
// namespaces on two nodes, with addresses in pods and lab (see table_test.go).
type policyWorld struct {
	rev       uint64
	peered    bool
	nodes     []state.NodeView
	endpoints map[string]*state.EndpointView
	policies  map[string]*state.Policy
}

func newPolicyWorld() *policyWorld {
	return &policyWorld{
		rev: 1, endpoints: map[string]*state.EndpointView{}, policies: map[string]*state.Policy{},
		nodes: []state.NodeView{
			{ID: selfID, Self: true, Node: state.Node{Name: "node1", Advertise: addr("192.0.2.11")},
				Blocks: []state.Block{{Network: "pods", Prefix: pfx("10.244.0.0/24")}}},
			{ID: otherID, Node: state.Node{Name: "node2", Advertise: addr("192.0.2.12")},
				Blocks: []state.Block{{Network: "pods", Prefix: pfx("10.244.1.0/24")}}},
		},
	}
}

func (w *policyWorld) view() *state.View {
	w.rev++
	v := state.View{Rev: w.rev, Self: selfID, Nodes: slices.Clone(w.nodes), Networks: slices.Clone(testView().Networks)}
	if !w.peered {
		v.Networks[0].Peers = nil
	}
	var es []*state.EndpointView
	for _, e := range w.endpoints {
		es = append(es, e)
	}
	for _, p := range w.policies {
		v.Policies = append(v.Policies, p)
	}
	slices.SortFunc(v.Policies, func(a, b *state.Policy) int { return strings.Compare(a.Key(), b.Key()) })
	return state.NewView(v, es, nil)
}

func labelsOf(words ...string) map[string]string {
	m := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		m[k] = v
	}
	return m
}

// endpoint puts an endpoint NAME.NAMESPACE somewhere.
func (w *policyWorld) endpoint(name string, owner state.NodeID, a string, labels ...string) {
	n, ns, _ := strings.Cut(name, ".")
	network := "pods"
	if pfx("172.30.0.0/24").Contains(addr(a)) {
		network = "lab"
	}
	w.endpoints[name] = &state.EndpointView{Owner: owner, Serving: true, Endpoint: &state.Endpoint{
		ID: name, Name: n, Namespace: ns, Network: network, Labels: labelsOf(labels...), Addrs: []netip.Addr{addr(a)}}}
}

func (w *policyWorld) mutate(t *rapid.T) {
	labels := func(name string) map[string]string {
		m := map[string]string{}
		for _, k := range []string{"app", "tier"} {
			if v := rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(t, name); v != "" {
				m[k] = v
			}
		}
		return m
	}
	ns := func(of ...string) string { return rapid.SampledFrom(of).Draw(t, "namespace") }
	switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
	case what < 5: // an endpoint comes, changes, or goes
		i := rapid.IntRange(2, 7).Draw(t, "endpoint")
		id := fmt.Sprint("e", i)
		if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
			delete(w.endpoints, id)
			return
		}
		owner := []state.NodeID{selfID, otherID}[i%2]
		a := netip.AddrFrom4([4]byte{10, 244, byte(i % 2), byte(i)})
		network := "pods"
		if rapid.IntRange(0, 4).Draw(t, "lab") == 0 {
			a, network = netip.AddrFrom4([4]byte{172, 30, 0, byte(i)}), "lab"
		}
		if rapid.IntRange(0, 9).Draw(t, "same address") == 0 {
			a, network = addr("10.244.0.2"), "pods"
		}
		e := &state.EndpointView{Owner: owner, Endpoint: &state.Endpoint{ID: id, Namespace: ns("a", "b"), Network: network,
			Labels: labels("label"), Addrs: []netip.Addr{a}, Mode: rapid.SampledFrom([]string{"", "", "", "host"}).Draw(t, "mode")}}
		if network == "pods" && rapid.Bool().Draw(t, "v6") {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00:10:244::%x", i%2<<8|i)))
		}
		w.endpoints[id] = e
	case what < 9: // a policy
		p := &state.Policy{Namespace: ns("a", "b"), Name: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "policy"),
			DenyIngress: rapid.Bool().Draw(t, "deny"), DenyEgress: rapid.IntRange(0, 3).Draw(t, "deny") == 0}
		if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
			delete(w.policies, p.Key())
			return
		}
		if rapid.Bool().Draw(t, "selects") {
			p.Selector = labels("select")
		}
		rules := func() (out []state.PolicyRule) {
			for range rapid.IntRange(0, 2).Draw(t, "rules") {
				var r state.PolicyRule
				for range rapid.IntRange(0, 2).Draw(t, "peers") {
					var peer state.PolicyPeer
					switch rapid.IntRange(0, 3).Draw(t, "peer") {
					case 0:
						peer.Node = true
					case 1:
						peer.Prefix = rapid.SampledFrom([]netip.Prefix{pfx("0.0.0.0/0"), pfx("10.244.0.0/16"), pfx("192.0.2.0/24"), pfx("10.244.1.0/29"), pfx("::/0"), pfx("fd00:10:244::100/120")}).Draw(t, "prefix")
						if peer.Prefix.Addr().Is4() && peer.Prefix.Bits() < 24 && rapid.Bool().Draw(t, "excepts") {
							peer.Except = []netip.Prefix{rapid.SampledFrom([]netip.Prefix{pfx("10.244.0.2/32"), pfx("10.244.1.0/24")}).Draw(t, "except")}
						} else if peer.Prefix.Bits() == 0 && peer.Prefix.Addr().Is6() {
							peer.Except = []netip.Prefix{pfx("fd00:10:244::3/128"), pfx("fd00:10:244::100/126")}
						}
					default:
						peer.Namespace, peer.Labels = ns("", "*", "a", "b"), labels("peer label")
						if peer.Namespace == "" && len(peer.Labels) == 0 {
							peer.Namespace = "a"
						}
					}
					r.Peers = append(r.Peers, peer)
				}
				for range rapid.IntRange(0, 2).Draw(t, "ports") {
					first := rapid.SampledFrom([]uint16{80, 81, 90}).Draw(t, "first")
					r.Ports = append(r.Ports, state.PolicyPort{Protocol: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "proto"),
						First: first, Last: first + rapid.SampledFrom([]uint16{0, 1, 15}).Draw(t, "more")})
				}
				out = append(out, r)
			}
			return out
		}
		p.Ingress, p.Egress = rules(), rules()
		w.policies[p.Key()] = p
	default:
		if w.nodes = slices.Clone(w.nodes); len(w.nodes[1].Blocks) > 1 {
			w.nodes[1].Blocks = w.nodes[1].Blocks[:1]
		} else {
			w.nodes[1].Blocks = append(slices.Clone(w.nodes[1].Blocks), state.Block{Network: "pods", Prefix: pfx("10.244.2.0/24")})
		}
	}
}

// wants says what this node's rules should make of a connection: that is what
// Judge says, as far as it is this node's to enforce.
func wants(v *state.View, src, dst netip.Addr, proto uint8, port uint16) bool {
	j := Judge(v, src, dst, proto, port)
	return j.AllowedBy(selfID)
}

// TestPolicyModel: whatever endpoints and policies come and go, the rules that
// are kept up to date let through what the plain reading of the policies lets
// through, and are those made from scratch.
func TestPolicyModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		k := newFake()
		b, err := New(Options{Kernel: k, Loopback: deaf{}})
		if err != nil {
			rt.Fatal(err)
		}
		w := newPolicyWorld()
		w.peered = rapid.Bool().Draw(rt, "peered")
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			for range rapid.IntRange(1, 3).Draw(rt, "coalesced") {
				w.mutate(rt)
			}
			v := w.view()
			if err := b.apply(&wish{v, testLocal()}); err != nil {
				rt.Fatal(err)
			}
			if what := b.book.agrees(); what != "" {
				rt.Fatalf("%s differ from those from scratch:\n%s", what, cmp.Diff(Derive(v, testLocal()).Ruleset().String(), bookTable(b).Ruleset().String()))
			}
			tab := bookTable(b)
			if wantKernel(t, k, &tab); t.Failed() {
				rt.FailNow()
			}
			compareWithJudge(rt, v, tab.Ruleset())
		}
	})
}

func compareWithJudge(t *rapid.T, v *state.View, rs Ruleset) {
	addrs := []netip.Addr{addr("192.0.2.1"), addr("192.0.2.12"), addr("10.244.1.1"), addr("10.244.2.1"), addr("10.244.0.200"), addr("10.244.1.200"), addr("172.30.0.200"),
		addr("2001:db8::1"), addr("fd00:10:244::200"), addr("fd00:10:244::102")}
	for e := range v.Endpoints() {
		addrs = append(addrs, e.Addrs...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	for _, src := range addrs {
		for _, dst := range addrs {
			if src == dst || src.Is4() != dst.Is4() {
				continue // never forwarded, but to a service's only backend
			}
			for _, to := range []struct {
				proto uint8
				port  uint16
			}{{TCP, 80}, {TCP, 81}, {TCP, 105}, {UDP, 90}, {icmp(versionOf(src)), 0}} {
				got := Trace(rs, Packet{In: rs.Arrival(src), Src: src, Dst: dst, Proto: to.proto, Dport: to.port})
				if want := wants(v, src, dst, to.proto, to.port); (got.Action == "accept") != want {
					t.Fatalf("%s to %s:%d/%s: %s by %v, judged %+v", src, dst, to.port, protoName(to.proto), got.Action, got.Lookups, Judge(v, src, dst, to.proto, to.port))
				}
			}
		}
	}
}

// TestPolicyChangesAreSmall: what comes and goes in the kernel with an endpoint.
func TestPolicyChangesAreSmall(t *testing.T) {
	k := &recorder{fakeKernel: newFake()}
	b, err := New(Options{Kernel: k, Loopback: deaf{}})
	if err != nil {
		t.Fatal(err)
	}
	w := newPolicyWorld()
	w.endpoint("web1.a", selfID, "10.244.0.2", "app=web")
	for i := range 50 {
		w.endpoint(fmt.Sprintf("other%d.b", i), otherID, fmt.Sprintf("10.244.1.%d", 100+i), "app=other")
	}
	w.policies["a/web"] = &state.Policy{Namespace: "a", Name: "web", Selector: labelsOf("app=web"), Ingress: []state.PolicyRule{
		{Peers: []state.PolicyPeer{{Namespace: "*", Labels: labelsOf("app=proxy")}}, Ports: []state.PolicyPort{{Protocol: "tcp", First: 80, Last: 80}}},
		{Peers: []state.PolicyPeer{{Prefix: pfx("10.244.1.0/30")}}, Ports: []state.PolicyPort{{Protocol: "tcp", First: 81, Last: 90}}},
	}}
	w.endpoint("proxy1.b", otherID, "10.244.1.9", "app=proxy")
	steps := []struct {
		name string
		do   func()
		want string
	}{
		{"at first", func() {}, ""},
		{"a client that the policy names", func() { w.endpoint("proxy2.b", otherID, "10.244.1.10", "app=proxy") }, `
add element inet nodenet inpeers { CLASS . 10.244.1.10 : PORTS }
`},
		{"one that it does not name", func() { w.endpoint("other.b", otherID, "10.244.1.11", "app=other") }, "\n"},
		{"one that is in a prefix too gets both", func() { w.endpoint("proxy3.b", otherID, "10.244.1.2", "app=proxy") }, `
add element inet nodenet inpeers { CLASS . 10.244.1.2 : BOTH }
add element inet nodenet polports { BOTH . tcp . 80-90 }
`},
		{"another backend of the same kind", func() { w.endpoint("web2.a", selfID, "10.244.0.3", "app=web") }, `
add element inet nodenet polin { 10.244.0.3 : CLASS }
add element bridge nodenet policed { 10.244.0.3 : 02:00:00:00:00:01 }
`},
		{"one elsewhere is not this node's", func() { w.endpoint("web3.a", otherID, "10.244.1.12", "app=web") }, "\n"},
		{"it goes", func() { delete(w.endpoints, "web2.a") }, `
delete element inet nodenet polin { 10.244.0.3 : CLASS }
delete element bridge nodenet policed { 10.244.0.3 : 02:00:00:00:00:01 }
`},
		{"the last that the policy selects", func() { delete(w.endpoints, "web1.a") }, `
delete element inet nodenet polin { 10.244.0.2 : CLASS }
delete element inet nodenet inpeers { CLASS . 10.244.1.2 : BOTH }
delete element inet nodenet inpeers { CLASS . 10.244.1.9 : PORTS }
delete element inet nodenet inpeers { CLASS . 10.244.1.10 : PORTS }
delete element inet nodenet innets { CLASS . 10.244.1.0-10.244.1.3 : NETS }
delete element inet nodenet polports { PORTS . tcp . 80 }
delete element inet nodenet polports { NETS . tcp . 81-90 }
delete element inet nodenet polports { BOTH . tcp . 80-90 }
delete element bridge nodenet policed { 10.244.0.2 : 02:00:00:00:00:01 }
`},
	}
	for _, s := range steps {
		s.do()
		k.last = Ops{}
		if err := b.apply(&wish{w.view(), testLocal()}); err != nil {
			t.Fatal(err)
		}
		if s.want == "" {
			continue
		}
		if diff := cmp.Diff(sortedLines(s.want), sortedLines(withoutNumbers(b, "\n"+k.last.String()))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
	}
}

func sortedLines(s string) []string {
	return slices.Sorted(strings.SplitSeq(s, "\n"))
}

var numberNames = map[uint32]string{}

// withoutNumbers puts words in place of the numbers of classes and ports.
func withoutNumbers(b *LB, s string) string {
	for _, c := range b.book.pol.classes[ingress] {
		numberNames[c.number] = "CLASS"
	}
	for a, u := range b.book.pol.ports {
		numberNames[u.number] = map[allowed]string{
			allow([]portRange{{TCP, 80, 80}}): "PORTS", allow([]portRange{{TCP, 81, 90}}): "NETS", allow([]portRange{{TCP, 80, 90}}): "BOTH"}[a]
	}
	for n, name := range numberNames {
		s = strings.ReplaceAll(s, fmt.Sprintf("%x:%x", n>>16, n&0xffff), name)
	}
	return s
}
