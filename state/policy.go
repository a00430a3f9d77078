package state

import "net/netip"

// Policy says who may speak with the endpoints that it selects. In a direction
// in which some policy isolates an endpoint, only what some policy allows
// passes; what no policy isolates is open. Its record's key is Key.
type Policy struct {
	Namespace string            `cbor:"1,keyasint"`
	Name      string            `cbor:"2,keyasint"`
	Selector  map[string]string `cbor:"3,keyasint,omitempty"` // empty: all endpoints of the namespace
	Ingress   []PolicyRule      `cbor:"4,keyasint,omitempty"`
	Egress    []PolicyRule      `cbor:"5,keyasint,omitempty"`
	// DenyIngress and DenyEgress isolate also where there are no rules.
	DenyIngress bool   `cbor:"6,keyasint,omitempty"`
	DenyEgress  bool   `cbor:"7,keyasint,omitempty"`
	Source      string `cbor:"8,keyasint,omitempty"` // "nodefile" or "command"
}

// PolicyRule allows traffic with any of its peers on any of its ports.
type PolicyRule struct {
	Peers []PolicyPeer `cbor:"1,keyasint,omitempty"` // empty: everybody
	Ports []PolicyPort `cbor:"2,keyasint,omitempty"` // empty: every port and protocol
}

// PolicyPeer is the other end of what a rule allows: the nodes, a prefix, or
// endpoints by namespace and labels.
type PolicyPeer struct {
	Namespace string            `cbor:"1,keyasint,omitempty"` // "*": every one; empty: the policy's
	Labels    map[string]string `cbor:"2,keyasint,omitempty"`
	Prefix    netip.Prefix      `cbor:"3,keyasint,omitempty"`
	Except    []netip.Prefix    `cbor:"4,keyasint,omitempty"` // parts of Prefix
	Node      bool              `cbor:"5,keyasint,omitempty"`
}

// PolicyPort is a range of ports.
type PolicyPort struct {
	Protocol string `cbor:"1,keyasint"` // "tcp", "udp" or "sctp"
	First    uint16 `cbor:"2,keyasint"`
	Last     uint16 `cbor:"3,keyasint"`
}

// Key returns the record key of a policy.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// FullName returns the name as people write it: NAME.NAMESPACE.
func (p *Policy) FullName() string { return p.Name + "." + p.Namespace }

// Selects reports whether the policy is about an endpoint.
func (p *Policy) Selects(e *Endpoint) bool {
	return e.Namespace == p.Namespace && matches(p.Selector, e.Labels)
}

// IsolatesIngress reports whether what selected endpoints get is limited to
// what policies allow.
func (p *Policy) IsolatesIngress() bool { return p.DenyIngress || len(p.Ingress) > 0 }

// IsolatesEgress is IsolatesIngress for what they send.
func (p *Policy) IsolatesEgress() bool { return p.DenyEgress || len(p.Egress) > 0 }

// Is reports whether a peer of a policy in a namespace is about an endpoint.
// A prefix is about addresses and a node about nodes, so they are not.
func (p *PolicyPeer) Is(namespace string, e *Endpoint) bool {
	if p.Node || p.Prefix.IsValid() {
		return false
	}
	switch p.Namespace {
	case "*":
	case "":
		if e.Namespace != namespace {
			return false
		}
	default:
		if e.Namespace != p.Namespace {
			return false
		}
	}
	return matches(p.Labels, e.Labels)
}
