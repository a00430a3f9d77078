package node

import (
	"net/netip"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nodenet/api"
	"nodenet/config"
	"nodenet/state"
)

// What is added by command is in the view; what a Nodefile declares is its own,
// and what says nothing or nonsense is refused with a reason.
func TestPolicies(t *testing.T) {
	n := newTestNode(t)
	p := netip.MustParsePrefix
	prefix := p("192.0.2.0/24")
	web := api.Policy{Namespace: "apps", Name: "web", Select: map[string]string{"app": "web"}, Ingress: []api.PolicyRule{{
		Peers: []api.PolicyPeer{{Namespace: "*", Labels: map[string]string{"role": "probe"}}, {Prefix: &prefix, Except: []netip.Prefix{p("192.0.2.128/25")}}, {Node: true}},
		Ports: []api.PolicyPort{{Protocol: "tcp", First: 80, Last: 88}},
	}}}
	peer := func(x api.PolicyPeer) api.Policy {
		return api.Policy{Name: "p", Egress: []api.PolicyRule{{Peers: []api.PolicyPeer{x}}}}
	}
	port := func(x api.PolicyPort) api.Policy {
		return api.Policy{Name: "p", Ingress: []api.PolicyRule{{Ports: []api.PolicyPort{x}}}}
	}
	bits := netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 24)
	for _, tc := range []struct {
		what string
		p    api.Policy
		code string
	}{
		{"a policy", web, ""},
		{"the same again", web, ""},
		{"the default namespace", api.Policy{Name: "deny", DenyEgress: true}, ""},
		{"no name", api.Policy{DenyIngress: true}, api.CodeInvalid},
		{"nothing", api.Policy{Name: "p"}, api.CodeInvalid},
		{"nobody", peer(api.PolicyPeer{}), api.CodeInvalid},
		{"two kinds of peer", peer(api.PolicyPeer{Node: true, Prefix: &prefix}), api.CodeInvalid},
		{"host bits", peer(api.PolicyPeer{Prefix: &bits}), api.CodeInvalid},
		{"an exception elsewhere", peer(api.PolicyPeer{Prefix: &prefix, Except: []netip.Prefix{p("10.0.0.0/8")}}), api.CodeInvalid},
		{"an exception from nothing", peer(api.PolicyPeer{Namespace: "a", Except: []netip.Prefix{prefix}}), api.CodeInvalid},
		{"a namespace that is none", peer(api.PolicyPeer{Namespace: "a b"}), api.CodeInvalid},
		{"a range that ends before it begins", port(api.PolicyPort{Protocol: "tcp", First: 2, Last: 1}), api.CodeInvalid},
		{"port 0", port(api.PolicyPort{Protocol: "tcp"}), api.CodeInvalid},
		{"a protocol without ports", port(api.PolicyPort{Protocol: "icmp", First: 1, Last: 1}), api.CodeInvalid},
	} {
		if _, err := n.addPolicy(t.Context(), tc.p); code(err) != tc.code {
			t.Errorf("%s: %v, want code %q", tc.what, err, tc.code)
		}
	}
	list, err := n.policyList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := web
	want.Source = "command"
	if d := cmp.Diff([]api.Policy{want, {Namespace: "default", Name: "deny", DenyEgress: true, Source: "command"}}, list, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Errorf("policies (-want +got):\n%s", d)
	}

	cfg := *n.cfg
	cfg.Policies = []config.Policy{{Namespace: "default", Name: "filed", DenyIngress: true}}
	if err := n.declare(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	if p := n.store.Snapshot().View().Policy("default/filed"); p == nil || !p.DenyIngress || p.Source != sourceNodefile {
		t.Errorf("what the Nodefile declares: %+v", p)
	}
	if err := n.removePolicy(t.Context(), "filed"); code(err) != api.CodeReadOnly {
		t.Errorf("removing it by command: %v", err)
	}
	if _, err := n.addPolicy(t.Context(), api.Policy{Name: "filed", DenyEgress: true}); code(err) != api.CodeReadOnly {
		t.Errorf("changing it by command: %v", err)
	}
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web.apps": "", "deny": "", "filed": api.CodeNotFound} {
		if err := n.removePolicy(t.Context(), name); code(err) != want {
			t.Errorf("remove %s: %v, want code %q", name, err, want)
		}
	}
	if v := n.store.Snapshot().View(); len(v.Policies) != 0 {
		t.Errorf("left: %v", v.Policies)
	}
}

// What a word at the end of a connection stands for.
func TestPolicyEnds(t *testing.T) {
	a := netip.MustParseAddr
	v := state.NewView(state.View{}, []*state.EndpointView{
		{Endpoint: &state.Endpoint{ID: "apps.web", Name: "web", Namespace: "apps", Addrs: []netip.Addr{a("10.244.0.2"), a("fd00::2")}}},
		{Endpoint: &state.Endpoint{ID: "db", Name: "db", Namespace: "default", Addrs: []netip.Addr{a("10.244.0.3")}}},
	}, []*state.ServiceView{{
		Service: state.Service{Namespace: "apps", Name: "front", Ports: []state.ServicePort{{Protocol: "tcp", Port: 80}, {Protocol: "tcp", Port: 9000, Last: 9010}}},
		VIP:     a("10.96.0.20"), Backends: []state.BackendOf{{Addr: a("10.244.0.2"), Targets: []uint16{8080, 19000}}},
	}})
	for _, tc := range []struct {
		word string
		port uint16
		want string // of the first; or an error's code
		n    int
	}{
		{"192.0.2.1", 80, "192.0.2.1:80", 1},
		{"web.apps", 80, "10.244.0.2:80", 2},
		{"apps.web", 80, "10.244.0.2:80", 2},
		{"db", 3306, "10.244.0.3:3306", 1},
		{"front.apps", 80, "10.244.0.2:8080", 1},
		{"10.96.0.20", 80, "10.244.0.2:8080", 1},
		{"10.96.0.20", 9004, "10.244.0.2:19004", 1},
		{"front.apps", 0, "10.244.0.2:0", 1},
		{"front.apps", 81, api.CodeInvalid, 0},
		{"nobody", 80, api.CodeNotFound, 0},
	} {
		got, err := policyEnd(v, tc.word, tc.port, "tcp")
		text := code(err)
		if err == nil {
			text = got[0].String()
		}
		if text != tc.want || len(got) != tc.n {
			t.Errorf("%s port %d: %v, %v, want %s and %d", tc.word, tc.port, got, err, tc.want, tc.n)
		}
	}
	n := newTestNode(t)
	for _, q := range []url.Values{
		{"from": {"192.0.2.1"}, "to": {"192.0.2.2"}, "port": {"80"}, "protocol": {"icmp"}},
		{"from": {"192.0.2.1"}, "to": {"192.0.2.2"}, "port": {"0"}, "protocol": {"tcp"}},
		{"from": {"192.0.2.1"}, "to": {"2001:db8::1"}, "port": {"80"}, "protocol": {"tcp"}},
	} {
		if _, err := n.policyTest(t.Context(), q); code(err) != api.CodeInvalid {
			t.Errorf("%v: %v", q, err)
		}
	}
}
