package node

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/lb"
	"nodenet/state"
)

// methodPolicy is the RPC by which a node asks another what its kernel makes of
// a connection.
const methodPolicy = "policy.trace"

// maxPolicyPairs bounds how many connections one question may stand for.
const maxPolicyPairs = 256

// policyProbe is the question of methodPolicy.
type policyProbe struct {
	Src  netip.Addr     `cbor:"1,keyasint"`
	Dst  netip.AddrPort `cbor:"2,keyasint"`
	Prot uint8          `cbor:"3,keyasint"`
}

// policyTrace is the answer.
type policyTrace struct {
	Allowed bool     `cbor:"1,keyasint"`
	Chain   string   `cbor:"2,keyasint,omitempty"`
	Lookups []string `cbor:"3,keyasint,omitempty"`
}

// policyTest judges each pair of addresses that two ends stand for by the
// records, and by the rules in the kernels of the nodes of both.
func (n *Node) policyTest(ctx context.Context, q url.Values) (api.PolicyTest, error) {
	out := api.PolicyTest{From: q.Get("from"), To: q.Get("to"), Protocol: q.Get("protocol")}
	proto := protoNumber(out.Protocol)
	if proto == 0 {
		return out, invalid("protocol %q: use tcp, udp or sctp", out.Protocol)
	}
	port, err := strconv.ParseUint(q.Get("port"), 10, 16)
	if err != nil || port == 0 {
		return out, invalid("port %q: want 1 to 65535", q.Get("port"))
	}
	out.Port = uint16(port)
	v := n.store.Snapshot().View()
	from, err := policyEnd(v, out.From, 0, "")
	if err != nil {
		return out, err
	}
	to, err := policyEnd(v, out.To, out.Port, out.Protocol)
	if err != nil {
		return out, err
	}
	if len(from)*len(to) > maxPolicyPairs {
		return out, invalid("%s to %s: %d connections, at most %d are tested at once: name a backend", out.From, out.To, len(from)*len(to), maxPolicyPairs)
	}
	for _, a := range from {
		for _, b := range to {
			if a.Addr().Is4() == b.Addr().Is4() {
				out.Results = append(out.Results, n.policyResult(ctx, v, a.Addr(), b, proto))
			}
		}
	}
	if len(out.Results) == 0 {
		return out, invalid("%s and %s have no addresses of one IP version", out.From, out.To)
	}
	return out, nil
}

func (n *Node) policyResult(ctx context.Context, v *state.View, src netip.Addr, dst netip.AddrPort, proto uint8) api.PolicyResult {
	j := lb.Judge(v, src, dst.Addr(), proto, dst.Port())
	side := func(s lb.Side) api.PolicySide {
		out := api.PolicySide{Endpoint: s.Endpoint, Isolated: s.Isolated, Allowed: s.Allowed, By: s.By}
		if s.Node != "" {
			out.Node = nodeName(v, state.NodeID(s.Node))
		}
		return out
	}
	r := api.PolicyResult{From: src, To: dst, Allowed: j.Allowed(), Networks: j.Networks, Egress: side(j.Egress), Ingress: side(j.Ingress)}
	if src == dst.Addr() {
		return r // it leaves its namespace for a service only, and comes back
	}
	var ask []state.NodeID
	for _, id := range []string{j.Egress.Node, j.Ingress.Node} {
		if id := state.NodeID(id); id != "" && !slices.Contains(ask, id) {
			ask = append(ask, id)
		}
	}
	if len(ask) == 0 {
		ask = []state.NodeID{n.self} // between outsiders, and by this node
	}
	for _, id := range ask {
		k := api.PolicyKernel{Node: nodeName(v, id)}
		t, err := n.policyKernel(ctx, id, policyProbe{src, dst, proto})
		if err != nil {
			k.Error = err.Error()
		} else {
			k.Allowed, k.Chain, k.Lookups = t.Allowed, t.Chain, t.Lookups
			k.Differs = t.Allowed != j.AllowedBy(id)
		}
		r.Differs = r.Differs || k.Differs
		r.Kernel = append(r.Kernel, k)
	}
	return r
}

// policyKernel asks a node what its kernel makes of a connection.
func (n *Node) policyKernel(ctx context.Context, id state.NodeID, p policyProbe) (policyTrace, error) {
	if id == n.self {
		return n.tracePolicy(p)
	}
	req, err := state.Encode(p)
	if err != nil {
		return policyTrace{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := n.gossip.Call(ctx, id, methodPolicy, req)
	if err != nil {
		return policyTrace{}, err
	}
	var t policyTrace
	if err := state.Decode(resp, &t); err != nil {
		return t, fmt.Errorf("answer of %s: %w", id.Short(), err)
	}
	return t, nil
}

func (n *Node) servePolicyTrace(_ context.Context, _ state.NodeID, req []byte) ([]byte, error) {
	var p policyProbe
	if err := state.Decode(req, &p); err != nil {
		return nil, fmt.Errorf("connection to trace: %w", err)
	}
	if !p.Src.IsValid() || !p.Dst.IsValid() || p.Src.Is4() != p.Dst.Addr().Is4() {
		return nil, fmt.Errorf("%s to %s: not two addresses of one IP version", p.Src, p.Dst)
	}
	t, err := n.tracePolicy(p)
	if err != nil {
		return nil, err
	}
	return state.Encode(t)
}

// tracePolicy follows a connection through the rules and elements that this
// node's kernel has.
func (n *Node) tracePolicy(p policyProbe) (policyTrace, error) {
	rs, err := n.lb.Inspect()
	if err != nil {
		return policyTrace{}, err
	}
	v := lb.Trace(rs, lb.Packet{In: rs.Arrival(p.Src), Src: p.Src, Dst: p.Dst.Addr(), Proto: p.Prot, Sport: 40000, Dport: p.Dst.Port()})
	t := policyTrace{Allowed: v.Action == "accept"}
	if !t.Allowed && len(v.Path) > 0 {
		t.Chain = v.Path[len(v.Path)-1]
	}
	for _, l := range v.Lookups {
		if slices.Contains(lb.PolicyChains, l.Chain) {
			t.Lookups = append(t.Lookups, l.String())
		}
	}
	return t, nil
}

// policyEnd returns the addresses that a word stands for: an address, an
// endpoint, or the backends of a service, which its VIP names too. With port
// 0, ports are of no interest.
func policyEnd(v *state.View, word string, port uint16, protocol string) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddr(word); err == nil {
		for s := range v.Services() {
			if s.IsVIP(a) {
				all, err := backendsAt(s, port, protocol)
				return slices.DeleteFunc(all, func(b netip.AddrPort) bool { return b.Addr().Is4() != a.Is4() }), err
			}
		}
		return []netip.AddrPort{netip.AddrPortFrom(a, port)}, nil
	}
	name, ns, ok := strings.Cut(word, ".")
	if !ok {
		ns = "default"
	}
	var out []netip.AddrPort
	for e := range v.Endpoints() {
		if e.ID != word && (e.Name != name || e.Namespace != ns) {
			continue
		}
		for _, a := range e.Addrs {
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if s := v.Service(ns + "/" + name); s != nil {
		return backendsAt(s, port, protocol)
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s: no endpoint, service or address of that name: `nodectl endpoints` lists them", word)}
}

// backendsAt returns where a service's port leads.
func backendsAt(s *state.ServiceView, port uint16, protocol string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	at := slices.IndexFunc(s.Ports, func(p state.ServicePort) bool {
		return p.Protocol == protocol && p.Port <= port && port <= max(p.Port, p.Last)
	})
	if at < 0 && port != 0 {
		return nil, invalid("service %s has no port %d/%s", s.FullName(), port, protocol)
	}
	for _, b := range s.Backends {
		switch {
		case port == 0:
			out = append(out, netip.AddrPortFrom(b.Addr, 0))
		case at < len(b.Targets) && b.Targets[at] != 0:
			out = append(out, netip.AddrPortFrom(b.Addr, b.Targets[at]+port-s.Ports[at].Port))
		}
	}
	if len(out) == 0 {
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("service %s has no backends", s.FullName())}
	}
	return out, nil
}
