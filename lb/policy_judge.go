package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// Judgement says whether a connection is allowed, and by what.
type Judgement struct {
	Src, Dst netip.AddrPort // Dst after translation; the port of Src has no meaning
	// Networks says which networks are not peers; empty: nothing against it.
	Networks string
	Egress   Side // of the client
	Ingress  Side // of the backend
}

// AllowedBy reports whether nothing that one node enforces is against the
// connection: each node judges the ends that it has.
func (j *Judgement) AllowedBy(node state.NodeID) bool {
	here := func(s Side) bool { return s.Allowed || s.Node != string(node) }
	return j.Networks == "" && here(j.Egress) && here(j.Ingress)
}

// Side is one end's view of a connection.
type Side struct {
	Endpoint string   // NAME.NAMESPACE, or the ID; empty: no endpoint that policies could be about
	Node     string   // ID of the node that enforces
	Isolated []string // policies that isolate it in this direction
	Allowed  bool
	By       string // the rule that allows it, or why it needs none; empty: denied
}

// Allowed reports whether nothing is against the connection.
func (j *Judgement) Allowed() bool {
	return j.Networks == "" && j.Egress.Allowed && j.Ingress.Allowed
}

// Judge says from a view alone what policies and the isolation of networks make
// of a new connection between two addresses. The destination is that of a
// backend, not of a service. It looks at anything: for people, and for tests
// of the rules, with which it shares nothing.
func Judge(v *state.View, src, dst netip.Addr, proto uint8, port uint16) Judgement {
	j := Judgement{Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, port)}
	_, fromNode := nodeAddrs(v)[src]
	from, to := endpointAt(v, src), endpointAt(v, dst)
	if from != nil {
		j.Egress.Endpoint, j.Egress.Node = endpointName(from), string(from.Owner)
	}
	if to != nil {
		j.Ingress.Endpoint, j.Ingress.Node = endpointName(to), string(to.Owner)
	}
	if src == dst {
		j.Egress.Allowed, j.Egress.By = true, "itself"
		j.Ingress.Allowed, j.Ingress.By = true, "itself"
		return j
	}
	_, toNode := nodeAddrs(v)[dst]
	switch a, b := networkAt(v, src), networkAt(v, dst); {
	case a == b:
	case a != nil && a.Internal && !toNode:
		j.Networks = fmt.Sprintf("network %s is internal", a.Name)
	case b != nil && b.Internal && !fromNode:
		j.Networks = fmt.Sprintf("network %s is internal", b.Name)
	case a != nil && b != nil && !fromNode && !slices.Contains(a.Peers, b.Name) && !slices.Contains(b.Peers, a.Name):
		j.Networks = fmt.Sprintf("networks %s and %s are not peers", a.Name, b.Name)
	}
	j.Egress.judge(v, egress, from, to, dst, proto, port)
	j.Ingress.judge(v, ingress, to, from, src, proto, port)
	if to != nil && fromNode && ownAddr(v, to.Owner, src) {
		j.Ingress.Allowed, j.Ingress.By = true, "its own node"
	}
	return j
}

// judge says what a connection is to one end, self; peer is the other, at addr.
func (s *Side) judge(v *state.View, d direction, self, peer *state.EndpointView, addr netip.Addr, proto uint8, port uint16) {
	if self == nil {
		s.Allowed, s.By = true, "no endpoint"
		return
	}
	for _, p := range v.Policies {
		rules, isolates := d.of(p)
		if !isolates || !p.Selects(self.Endpoint) {
			continue
		}
		s.Isolated = append(s.Isolated, p.FullName())
		for i, r := range rules {
			if !s.Allowed && lets(v, p.Namespace, &r, peer, addr, proto, port) {
				s.Allowed, s.By = true, fmt.Sprintf("policy %s, %s %d", p.FullName(), d, i+1)
			}
		}
	}
	if len(s.Isolated) == 0 {
		s.Allowed, s.By = true, "no policy for its "+d.String()
	}
}

// lets reports whether one rule of a policy lets a connection through.
func lets(v *state.View, namespace string, r *state.PolicyRule, peer *state.EndpointView, addr netip.Addr, proto uint8, port uint16) bool {
	onPort := len(r.Ports) == 0
	for _, p := range r.Ports {
		onPort = onPort || protoNumber(p.Protocol) == proto && p.First <= port && port <= p.Last
	}
	if !onPort {
		return false
	}
	if len(r.Peers) == 0 {
		return true
	}
	for i := range r.Peers {
		p := &r.Peers[i]
		switch {
		case p.Node:
			if _, node := nodeAddrs(v)[addr]; node {
				return true
			}
		case p.Prefix.IsValid():
			if p.Prefix.Contains(addr) && !slices.ContainsFunc(p.Except, func(x netip.Prefix) bool { return x.Contains(addr) }) {
				return true
			}
		case peer != nil && p.Is(namespace, peer.Endpoint):
			return true
		}
	}
	return false
}

// endpointAt returns who has an address, as seen from this node.
func endpointAt(v *state.View, a netip.Addr) *state.EndpointView {
	var found *state.EndpointView
	for e := range v.Endpoints() {
		if e.Refused != "" || e.Mode == "host" || !slices.Contains(e.Addrs, a) {
			continue
		}
		if n := networkNamed(v, e.Network); n != nil && n.Local() && e.Owner != v.Self {
			continue
		}
		if found == nil || compareHolders(e, found) < 0 {
			found = e
		}
	}
	return found
}

func networkNamed(v *state.View, name string) *state.NetworkView {
	i := slices.IndexFunc(v.Networks, func(n state.NetworkView) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &v.Networks[i]
}

func networkAt(v *state.View, a netip.Addr) *state.NetworkView {
	i := slices.IndexFunc(v.Networks, func(n state.NetworkView) bool { return n.Prefix.IsValid() && n.Prefix.Contains(a) })
	if i < 0 {
		return nil
	}
	return &v.Networks[i]
}

// ownAddr reports whether an address is one of a node's.
func ownAddr(v *state.View, id state.NodeID, a netip.Addr) bool {
	n := v.NodeByID(id)
	if n == nil {
		return false
	}
	only := state.View{Networks: v.Networks, Nodes: []state.NodeView{*n}}
	_, ok := nodeAddrs(&only)[a]
	return ok
}

func endpointName(e *state.EndpointView) string {
	if e.Name == "" {
		return e.ID
	}
	return strings.Join([]string{e.Name, e.Namespace}, ".")
}
