package state

import (
	"net/netip"
	"time"
)

// Liveness is what membership says about a node. It decides whether a node's
// records are used, never whether they exist.
type Liveness uint8

const (
	Unknown Liveness = iota // heard of through its records only, not seen since start
	Alive
	Suspect
	Dead
	Left
)

func (l Liveness) String() string {
	return [...]string{"unknown", "alive", "suspect", "dead", "left"}[min(l, Left)]
}

// View is what the records mean at one revision: declarations merged,
// selectors resolved, liveness applied. DNS, load balancer and overlay derive
// their desired state from the same View, so that their answers agree.
// A View and all it points to is immutable and shared between goroutines.
type View struct {
	Rev       uint64
	Self      NodeID
	Nodes     []NodeView     // sorted by name, then ID; nodes that left are absent
	Networks  []NetworkView  // sorted by name; as this node sees them
	Endpoints []EndpointView // attachments and DHCP leases of all nodes, sorted by network, address, ID
	Services  []ServiceView  // sorted by namespace, name
	Publishes []Publish      // of this node, sorted by key
	Names     []Name         // sorted by name, type
	Conflicts []Conflict

	nodeByID map[NodeID]*NodeView
}

// NodeByID returns a node of the view, or nil.
func (v *View) NodeByID(id NodeID) *NodeView { return v.nodeByID[id] }

// NodeView is a node with what is known of it.
type NodeView struct {
	ID NodeID
	Node
	State Liveness
	Since time.Time // of State; zero: unknown
	Self  bool
	// Serving is false when answers and backends must leave the node out
	// (dead beyond the hold, or left). Routes stay while it is merely dead.
	Serving bool
	Blocks  []Block // sorted by network, prefix
}

// NetworkView is a network as this node uses it.
type NetworkView struct {
	Network
	Own []netip.Prefix // blocks opened by this node; for a Local network the whole prefix
}

// EndpointView is an endpoint with its owner.
type EndpointView struct {
	Endpoint
	Owner   NodeID // the node that it is attached to; for a lease, the server that last renewed it
	Serving bool   // ready, and its node is serving
	Lease   bool   // it is a DHCP lease
}

// ServiceView is a service with its address and its backends resolved.
type ServiceView struct {
	Service              // Ports carry their allocated node ports
	VIP      netip.Addr  // given or allocated; invalid: headless, external or not yet allocated
	Backends []BackendOf // sorted by address, port
}

// BackendOf is one backend of a service: one address with a target port for
// each port of the service.
type BackendOf struct {
	Addr     netip.Addr
	Targets  []uint16 // parallel to Service.Ports; 0: the backend lacks that port
	Hostname string   // for endpoint names in DNS; empty: the dashed address
	Endpoint string   // endpoint ID; empty: explicit backend
	Node     NodeID   // empty: outside the cluster or unknown
	Ready    bool     // to be used
	Why      string   // why it is not ready
}

// Ready returns how many backends are ready.
func (s *ServiceView) Ready() int {
	n := 0
	for _, b := range s.Backends {
		if b.Ready {
			n++
		}
	}
	return n
}

// Conflict is something that records disagree on. The view uses Winner.
type Conflict struct {
	What   string // e.g. "service apps/web", "network pods", "range pods/10.244.0.0/24"
	Winner string
	Loser  string
	Detail string
}
