package lb

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"nodenet/state"
)

// TestPolicyFacts are the cases of Kubernetes' end-to-end tests of network
// policies (test/e2e/network/netpol, by name), as facts about one server a in
// namespace x and its clients; each is asked of the plain reading and of the
// rules. Namespaces x, y, z have pods a, b, c with the label pod=NAME; those of
// x and the half of y are this node's.
func TestPolicyFacts(t *testing.T) {
	w := newPolicyWorld()
	place := map[string]string{}
	for i, ns := range []string{"x", "y", "z"} {
		for j, pod := range []string{"a", "b", "c"} {
			owner, a := selfID, netip.AddrFrom4([4]byte{10, 244, 0, byte(10*i + j + 2)})
			if ns == "z" || ns == "y" && pod == "c" {
				owner, a = otherID, netip.AddrFrom4([4]byte{10, 244, 1, byte(10*i + j + 2)})
			}
			w.endpoint(pod+"."+ns, owner, a.String(), "pod="+pod)
			place[ns+"/"+pod] = a.String()
		}
	}
	place["outside"] = "192.0.2.1"
	place["node2"] = "192.0.2.12"
	pod := func(name string) map[string]string { return labelsOf("pod=" + name) }
	ports := func(first, last uint16) []state.PolicyPort {
		return []state.PolicyPort{{Protocol: "tcp", First: first, Last: last}}
	}
	from := func(peers ...state.PolicyPeer) []state.PolicyRule { return []state.PolicyRule{{Peers: peers}} }
	on := func(p []state.PolicyPort, peers ...state.PolicyPeer) []state.PolicyRule {
		return []state.PolicyRule{{Peers: peers, Ports: p}}
	}
	ingress := func(sel map[string]string, rules []state.PolicyRule) *state.Policy {
		return &state.Policy{Namespace: "x", Name: "in", Selector: sel, DenyIngress: true, Ingress: rules}
	}
	egress := func(sel map[string]string, rules []state.PolicyRule) *state.Policy {
		return &state.Policy{Namespace: "x", Name: "out", Selector: sel, DenyEgress: true, Egress: rules}
	}
	list := func(p ...*state.Policy) []*state.Policy { return p }
	a := pod("a")
	tests := []struct {
		fact      string
		policies  []*state.Policy
		yes, noes string // "ns/pod>ns/pod:port" words; without a target x/a:80
	}{
		{"without policies everybody reaches everybody", nil, "x/b y/a z/c outside node2 x/a>z/a:80 x/a>outside:443", ""},
		{"should support a 'default-deny-ingress' policy", list(ingress(nil, nil)), "x/a>y/a:80 x/a>z/b:80", "x/b y/a z/a outside node2 y/a>x/b:80"},
		{"should support a 'default-deny-all' policy", list(ingress(nil, nil), egress(nil, nil)), "y/a>z/a:80", "x/b z/a x/a>y/a:80 x/a>outside:443"},
		{"should enforce policy to allow traffic from pods within server namespace based on PodSelector", list(ingress(a, from(state.PolicyPeer{Labels: pod("b")}))), "x/b x/a>x/b:80 y/b>x/c:80", "x/c y/b z/b outside"},
		{"should enforce policy to allow ingress traffic for a target", list(&state.Policy{Namespace: "x", Name: "deny", DenyIngress: true}, ingress(a, from(state.PolicyPeer{Namespace: "x"}))), "x/b x/c", "y/a x/a>x/b:80"},
		{"should enforce policy to allow ingress traffic from pods in all namespaces", list(ingress(nil, from(state.PolicyPeer{Namespace: "*"}))), "x/b y/a z/c", "outside node2"},
		{"should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector", list(ingress(a, from(state.PolicyPeer{Namespace: "y"}))), "y/a y/c", "x/b z/a outside"},
		{"should enforce policy based on PodSelector and NamespaceSelector", list(ingress(a, from(state.PolicyPeer{Namespace: "y", Labels: pod("b")}))), "y/b", "y/a x/b z/b"},
		{"should enforce policy based on PodSelector or NamespaceSelector", list(ingress(a, from(state.PolicyPeer{Namespace: "y"}, state.PolicyPeer{Labels: pod("b")}))), "y/a y/c x/b", "x/c z/b"},
		{"should enforce policy based on Ports", list(ingress(a, on(ports(81, 81), state.PolicyPeer{Namespace: "y"}))), "y/a>x/a:81", "y/a y/a>x/a:82 x/b>x/a:81"},
		{"should enforce multiple, stacked policies with overlapping podSelectors", list(ingress(a, on(ports(80, 80))), &state.Policy{Namespace: "x", Name: "more", Selector: a, Ingress: on(ports(81, 81))}), "z/a z/a>x/a:81 outside", "z/a>x/a:82"},
		{"should support allow-all policy", list(ingress(nil, []state.PolicyRule{{}})), "x/b z/c outside node2 z/c>x/a:99", ""},
		{"should allow ingress access on one named port", list(ingress(nil, on(ports(80, 80)))), "z/c outside", "z/c>x/a:81"},
		{"should enforce a range of ports", list(ingress(a, on(ports(80, 82)))), "z/c z/c>x/a:82", "z/c>x/a:83"},
		{"should support denying of egress traffic on the client side", list(egress(a, nil)), "x/b>x/c:80 x/b", "x/a>x/b:80 x/a>y/a:80 x/a>outside:443"},
		{"should enforce egress policy allowing traffic to a server in a different namespace", list(egress(a, from(state.PolicyPeer{Namespace: "y", Labels: pod("a")}))), "x/a>y/a:80", "x/a>y/b:80 x/a>x/b:80"},
		{"should enforce multiple ingress policies with ingress allow-all policy taking precedence", list(ingress(nil, on(ports(81, 81))), &state.Policy{Namespace: "x", Name: "all", Ingress: []state.PolicyRule{{}}}), "z/a outside", ""},
		{"should enforce multiple egress policies with egress allow-all policy taking precedence", list(egress(nil, on(ports(81, 81))), &state.Policy{Namespace: "x", Name: "all", Egress: []state.PolicyRule{{}}}), "x/a>z/a:80 x/a>outside:443", ""},
		{"should work with Ingress, Egress specified together", list(&state.Policy{Namespace: "x", Name: "both", Selector: a, Ingress: from(state.PolicyPeer{Labels: pod("b")}), Egress: on(ports(80, 80))}), "x/b x/a>z/a:80", "x/c x/a>z/a:81"},
		{"should allow egress access to server in CIDR block", list(egress(a, from(state.PolicyPeer{Prefix: pfx(place["y/a"] + "/32")}))), "x/a>y/a:80", "x/a>y/b:80 x/a>outside:443"},
		{"should enforce except clause while egress access to server in CIDR block", list(egress(a, from(state.PolicyPeer{Prefix: pfx("10.244.0.0/24"), Except: []netip.Prefix{pfx(place["y/b"] + "/32")}}))), "x/a>y/a:80", "x/a>y/b:80 x/a>z/a:80"},
		{"should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed", list(
			egress(a, from(state.PolicyPeer{Prefix: pfx("10.244.0.0/24"), Except: []netip.Prefix{pfx(place["y/b"] + "/32")}})),
			&state.Policy{Namespace: "x", Name: "again", Selector: a, Egress: from(state.PolicyPeer{Prefix: pfx(place["y/b"] + "/32")})}), "x/a>y/b:80", "x/a>z/a:80"},
		{"should enforce policies to check ingress and egress policies can be controlled independently", list(egress(a, from(state.PolicyPeer{Labels: pod("b")}))), "x/a>x/b:80 x/b x/c", "x/a>x/c:80"},
		{"should not allow access by TCP when a policy specifies only UDP", list(ingress(a, on([]state.PolicyPort{{Protocol: "udp", First: 80, Last: 80}}))), "", "x/b z/a"},
		{"outside by prefix, as ingress controllers need it", list(ingress(a, from(state.PolicyPeer{Prefix: pfx("192.0.2.0/28")}))), "outside node2", "x/b z/a"},
		{"nodes", list(ingress(a, from(state.PolicyPeer{Node: true}))), "node2", "x/b outside"},
	}
	for _, tt := range tests {
		t.Run(tt.fact, func(t *testing.T) {
			clear(w.policies)
			for _, p := range tt.policies {
				w.policies[p.Key()] = p
			}
			v := w.view()
			rs := Derive(v, testLocal()).Ruleset()
			for want, words := range map[bool]string{true: tt.yes, false: tt.noes} {
				for _, word := range slices.Compact(strings.Fields(words)) {
					client, server, given := strings.Cut(word, ">")
					if !given {
						server = "x/a:80"
					}
					server, port, _ := strings.Cut(server, ":")
					src, dst, n := addr(place[client]), addr(place[server]), ap("0.0.0.0:"+port).Port()
					j := Judge(v, src, dst, TCP, n)
					if j.Allowed() != want {
						t.Errorf("%s: judged %t, want %t: %+v", word, j.Allowed(), want, j)
					}
					got := Trace(rs, Packet{In: rs.Arrival(src), Src: src, Dst: dst, Proto: TCP, Dport: n})
					if (got.Action == "accept") != j.AllowedBy(selfID) {
						t.Errorf("%s: the rules say %s, by %v", word, got, got.Lookups)
					}
				}
			}
		})
	}
}
