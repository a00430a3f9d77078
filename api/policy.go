package api

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
)

// Paths of policies.
const (
	PathPolicies   = "/v1/policies"      // []Policy; POST Policy → Policy; DELETE ?name=NAME.NS
	PathPolicyTest = "/v1/policies/test" // ?from=END&to=END&port=N&protocol=tcp: PolicyTest
)

// Policy says who may speak with the endpoints that it selects.
type Policy struct {
	Namespace   string            `json:"namespace"` // empty in a request: "default"
	Name        string            `json:"name"`
	Select      map[string]string `json:"select,omitempty"` // none: all endpoints of the namespace
	Ingress     []PolicyRule      `json:"ingress,omitempty"`
	Egress      []PolicyRule      `json:"egress,omitempty"`
	DenyIngress bool              `json:"denyIngress,omitempty"` // isolates also without rules
	DenyEgress  bool              `json:"denyEgress,omitempty"`
	Source      string            `json:"source,omitempty"`  // "nodefile" or "command"; in answers
	Selects     int               `json:"selects,omitempty"` // endpoints now; in answers
}

// PolicyRule allows traffic with any of its peers on any of its ports. No peers
// stand for everybody, no ports for every port and protocol.
type PolicyRule struct {
	Peers []PolicyPeer `json:"peers,omitempty"`
	Ports []PolicyPort `json:"ports,omitempty"`
}

// PolicyPeer is endpoints by namespace and labels, a prefix, or the nodes.
type PolicyPeer struct {
	Namespace string            `json:"namespace,omitempty"` // "*": every one; empty: the policy's
	Labels    map[string]string `json:"labels,omitempty"`
	Prefix    *netip.Prefix     `json:"prefix,omitempty"`
	Except    []netip.Prefix    `json:"except,omitempty"`
	Node      bool              `json:"node,omitempty"`
}

// PolicyPort is a range of ports.
type PolicyPort struct {
	Protocol string `json:"protocol"`
	First    uint16 `json:"first"`
	Last     uint16 `json:"last"`
}

// PolicyTest says what becomes of new connections between two ends.
type PolicyTest struct {
	From     string         `json:"from"` // as asked
	To       string         `json:"to"`
	Port     uint16         `json:"port"`
	Protocol string         `json:"protocol"`
	Results  []PolicyResult `json:"results"` // one for each pair of addresses that the ends stand for
}

// PolicyResult is one connection, to a backend where a service was asked for.
type PolicyResult struct {
	From     netip.Addr     `json:"from"`
	To       netip.AddrPort `json:"to"`
	Allowed  bool           `json:"allowed"`            // by what the records say
	Networks string         `json:"networks,omitempty"` // what the isolation of networks has against it
	Egress   PolicySide     `json:"egress"`             // of the client
	Ingress  PolicySide     `json:"ingress"`            // of the backend
	Kernel   []PolicyKernel `json:"kernel"`             // of the nodes of both ends
	Differs  bool           `json:"differs"`            // a kernel does not do what the records say
}

// PolicySide is what policies make of a connection at one end.
type PolicySide struct {
	Endpoint string   `json:"endpoint,omitempty"` // NAME.NAMESPACE; empty: no endpoint
	Node     string   `json:"node,omitempty"`     // that enforces
	Isolated []string `json:"isolated,omitempty"` // policies that isolate it
	Allowed  bool     `json:"allowed"`
	By       string   `json:"by,omitempty"` // what allows it
}

// PolicyKernel is what the rules in one node's kernel make of a connection.
type PolicyKernel struct {
	Node    string   `json:"node"`
	Allowed bool     `json:"allowed"`
	Differs bool     `json:"differs"` // from what the records say for this node
	Chain   string   `json:"chain,omitempty"`
	Lookups []string `json:"lookups,omitempty"`
	Error   string   `json:"error,omitempty"` // it could not be asked
}

// Policies returns the policies of the cluster.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return get[[]Policy](ctx, c, PathPolicies)
}

// AddPolicy adds a policy for the whole cluster, or replaces it.
func (c *Client) AddPolicy(ctx context.Context, p Policy) (Policy, error) {
	return post[Policy](ctx, c, PathPolicies, p)
}

// RemovePolicy removes a policy that AddPolicy added, by NAME.NAMESPACE.
func (c *Client) RemovePolicy(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, PathPolicies+"?name="+url.QueryEscape(name), nil, nil)
}

// TestPolicy says whether new connections from one end to a port of another
// are allowed. An end is an address, an endpoint or a service, the last two as
// NAME.NAMESPACE.
func (c *Client) TestPolicy(ctx context.Context, from, to, port, protocol string) (PolicyTest, error) {
	q := url.Values{"from": {from}, "to": {to}, "port": {port}, "protocol": {protocol}}
	return get[PolicyTest](ctx, c, PathPolicyTest+"?"+q.Encode())
}
