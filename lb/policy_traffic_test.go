package lb

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"nodenet/state"
)

// TestPolicyTraffic sends real packets between two workloads on one bridge, an
// outside host that also plays the other node's workload, and the node, with
// and without the host's br_netfilter looking at bridged packets.
func TestPolicyTraffic(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			tp := newTopology(t, testView())
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				tp.node.sysctl("net/bridge/bridge-nf-call-iptables", nf)
			} else if nf == "1" {
				t.Skip("needs br_netfilter")
			}
			policyTraffic(t, tp)
		})
	}
}

func policyTraffic(t *testing.T, tp *topology) {
	tcp := func(port uint16) []state.PolicyPort {
		return []state.PolicyPort{{Protocol: "tcp", First: port, Last: port}}
	}
	peers := func(p ...state.PolicyPeer) []state.PolicyPeer { return p }
	type try struct {
		from          *space
		network, addr string
		want          []string
	}
	const direct, directUDP, vip, vipUDP, directSCTP = "10.244.0.2:8080", "10.244.0.2:5353", "10.96.0.21:80", "10.96.0.25:53", "10.244.0.2:3900"
	tp.w1.serveSCTP("w1", "10.244.0.2", 3900)
	ok := []string{"w1 10.244.0.3"}
	no := []string{"timeout"}
	fromOutside := []string{"w1 192.0.2.1"}
	steps := []struct {
		name     string
		policies []*state.Policy
		tries    []try
	}{
		{"no policy", nil, []try{
			{tp.w2, "tcp", direct, ok}, {tp.w2, "udp", directUDP, ok}, {tp.w2, "tcp", vip, ok}, {tp.outer, "tcp", vip, fromOutside},
			{tp.w2, "sctp", directSCTP, ok},
		}},
		{"default deny", []*state.Policy{{Namespace: "a", Name: "deny", DenyIngress: true}}, []try{
			{tp.w2, "tcp", direct, no}, {tp.w2, "udp", directUDP, no}, {tp.w2, "tcp", vip, no}, {tp.w2, "udp", vipUDP, no}, {tp.w2, "sctp", directSCTP, no},
			{tp.outer, "tcp", vip, no}, {tp.outer, "tcp", "192.0.2.11:8080", no}, {tp.outer, "tcp", "192.0.2.11:30080", []string{"w2 192.0.2.1", "timeout"}},
			{tp.node, "tcp", direct, []string{"w1 10.244.0.1"}}, {tp.node, "udp", vipUDP, []string{"w1 192.0.2.11"}},
			{tp.w1, "tcp", vip, []string{"w1 10.244.0.1"}},               // itself, by its service
			{tp.w1, "tcp", "10.244.0.3:8080", []string{"w2 10.244.0.2"}}, // replies to its own connections
			{tp.w1, "udp", "10.244.0.3:5353", []string{"w2 10.244.0.2"}},
			{tp.w1, "tcp", "10.244.1.2:8080", []string{"far 10.244.0.2"}},
			{tp.w1, "udp", "192.0.2.1:7001", []string{"internet 192.0.2.11"}},
		}},
		{"a port for a label", []*state.Policy{{Namespace: "a", Name: "web", Selector: labelsOf("app=w1"),
			Ingress: []state.PolicyRule{{Peers: peers(state.PolicyPeer{Namespace: "*", Labels: labelsOf("app=w2")}), Ports: tcp(8080)}}}}, []try{
			{tp.w2, "tcp", direct, ok}, {tp.w2, "tcp", vip, ok}, {tp.w2, "udp", directUDP, no}, {tp.w2, "udp", vipUDP, no}, {tp.w2, "sctp", directSCTP, no},
			{tp.outer, "tcp", vip, no},
		}},
		{"a port of SCTP", []*state.Policy{{Namespace: "a", Name: "web", Selector: labelsOf("app=w1"),
			Ingress: []state.PolicyRule{{Peers: peers(state.PolicyPeer{Namespace: "*", Labels: labelsOf("app=w2")}),
				Ports: []state.PolicyPort{{Protocol: "sctp", First: 3900, Last: 3900}}}}}}, []try{
			{tp.w2, "sctp", directSCTP, ok}, {tp.w2, "tcp", direct, no},
		}},
		{"all ports for a label", []*state.Policy{{Namespace: "a", Name: "web", Selector: labelsOf("app=w1"),
			Ingress: []state.PolicyRule{{Peers: peers(state.PolicyPeer{Namespace: "*", Labels: labelsOf("app=w2")})}}}}, []try{
			{tp.w2, "udp", directUDP, ok}, {tp.w2, "sctp", directSCTP, ok}, {tp.outer, "tcp", vip, no},
		}},
		{"a prefix", []*state.Policy{{Namespace: "a", Name: "web", Ingress: []state.PolicyRule{{Peers: peers(state.PolicyPeer{Prefix: pfx("192.0.2.0/24")})}}}}, []try{
			{tp.outer, "tcp", vip, fromOutside}, {tp.outer, "udp", vipUDP, fromOutside}, {tp.outer, "tcp", "192.0.2.11:8080", fromOutside}, {tp.w2, "tcp", direct, no},
		}},
		{"egress", []*state.Policy{{Namespace: "b", Name: "out", Egress: []state.PolicyRule{{Peers: peers(state.PolicyPeer{Namespace: "a"}), Ports: tcp(8080)}}}}, []try{
			{tp.w2, "tcp", direct, ok}, {tp.w2, "tcp", vip, ok}, {tp.w2, "udp", directUDP, no},
			{tp.w2, "tcp", "10.96.0.24:80", no}, {tp.w2, "tcp", "192.0.2.1:7000", no}, {tp.w1, "tcp", "10.96.0.24:80", []string{"far 10.244.0.2"}},
			{tp.outer, "tcp", "192.0.2.11:8443", []string{"w2 192.0.2.1"}}, // replies of what it is not the client of
			{tp.w1, "udp", "10.244.0.3:5353", []string{"w2 10.244.0.2"}},
		}},
		{"taken back", nil, []try{{tp.w2, "udp", directUDP, ok}, {tp.w2, "tcp", direct, ok}, {tp.outer, "tcp", vip, fromOutside}}},
	}
	k := tp.node.kernel()
	base := testView()
	w := newPolicyWorld()
	w.rev = 100
	w.endpoint("w1.a", selfID, "10.244.0.2", "app=w1")
	w.endpoint("w2.b", selfID, "10.244.0.3", "app=w2")
	for _, step := range steps {
		clear(w.policies)
		for _, p := range step.policies {
			w.policies[p.Key()] = p
		}
		v := w.view()
		v.Publishes = base.Publishes
		var es []*state.EndpointView
		var ss []*state.ServiceView
		for e := range v.Endpoints() {
			es = append(es, e)
		}
		for s := range base.Services() {
			ss = append(ss, s)
		}
		tp.set(state.NewView(*v, es, ss))
		for _, try := range step.tries {
			t.Run(step.name+" "+try.network+" to "+try.addr, func(t *testing.T) {
				calls(t, try.from, try.network, try.addr, try.want...)
			})
		}
		denied, err := k.Denied()
		if err != nil {
			t.Fatal(err)
		}
		if step.name == "default deny" && denied["ingress"] == 0 || step.name == "egress" && denied["egress"] == 0 {
			t.Errorf("%s: nothing was counted: %v", step.name, denied)
		}
	}
}

// TestPolicyTraffic6 is the same in IPv6, for what differs there: neighbours
// find one another by messages that must not leave the link, although all else
// between them is sent to the bridge.
func TestPolicyTraffic6(t *testing.T) {
	tp := newTopology(t, testView())
	for i, w := range []*space{tp.w1, tp.w2} {
		l, err := w.Listen("tcp6", fmt.Sprintf("[fd00:10:244::%d]:8181", i+2))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "w%d %s\n", i+1, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
	}
	w := newPolicyWorld()
	w.rev = 100
	w.endpoint("w1.a", selfID, "fd00:10:244::2", "app=w1")
	w.endpoint("w2.b", selfID, "fd00:10:244::3", "app=w2")
	for _, step := range []struct {
		name   string
		policy *state.Policy
		to     map[string]string // from w2, and from w1 to w2
	}{
		// The first step is the one in which neighbours are unknown yet.
		{"allowed by label", &state.Policy{Namespace: "a", Name: "p", Ingress: []state.PolicyRule{{Peers: []state.PolicyPeer{{Namespace: "b"}}}}},
			map[string]string{"w2": "w1 fd00:10:244::3", "w1": "w2 fd00:10:244::2"}},
		{"default deny", &state.Policy{Namespace: "a", Name: "p", DenyIngress: true}, map[string]string{"w2": "timeout", "w1": "w2 fd00:10:244::2"}},
		{"except", &state.Policy{Namespace: "a", Name: "p", Ingress: []state.PolicyRule{{Peers: []state.PolicyPeer{
			{Prefix: pfx("fd00:10:244::/64"), Except: []netip.Prefix{pfx("fd00:10:244::3/128")}}}}}}, map[string]string{"w2": "timeout"}},
		{"by prefix", &state.Policy{Namespace: "a", Name: "p", Ingress: []state.PolicyRule{{Peers: []state.PolicyPeer{{Prefix: pfx("fd00:10:244::/126")}}}}},
			map[string]string{"w2": "w1 fd00:10:244::3"}},
		{"no egress", &state.Policy{Namespace: "a", Name: "p", DenyEgress: true}, map[string]string{"w2": "w1 fd00:10:244::3", "w1": "timeout"}},
	} {
		w.policies["a/p"] = step.policy
		tp.set(w.view())
		for from, want := range step.to {
			s, dst := tp.w2, "[fd00:10:244::2]:8181"
			if from == "w1" {
				s, dst = tp.w1, "[fd00:10:244::3]:8181"
			}
			if want == "timeout" {
				if got := s.call("tcp6", dst); got != want {
					t.Errorf("%s, from %s: %s, want %s", step.name, from, got, want)
				}
				continue
			}
			// The bridge asks for its neighbours once its own link-local address
			// is no longer tentative (RFC 4862 §5.4).
			eventually(t, step.name+", from "+from, func() bool { return s.call("tcp6", dst) == want })
		}
		if got := tp.node.call("tcp6", "[fd00:10:244::2]:8181"); got != "w1 fd00:10:244::1" {
			t.Errorf("%s, from the node: %s", step.name, got)
		}
	}
}
