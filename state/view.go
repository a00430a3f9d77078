package state

import (
	"iter"
	"net/netip"
	"strings"
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
// A View and all it points to is immutable and shared between goroutines; what
// did not change is shared between views. Since says what did.
//
// The zero View is empty. One with endpoints and services comes from
// Snapshot.View or NewView.
type View struct {
	Rev       uint64
	Self      NodeID
	Nodes     []NodeView    // sorted by name, then ID; nodes that left are absent
	Networks  []NetworkView // sorted by name; as this node sees them
	Publishes []Publish     // of this node, sorted by key
	Names     []Name        // sorted by name, type
	Policies  []*Policy     // sorted by key; one that did not change is the same pointer in the next view
	Conflicts []Conflict
	// Refusals are the claims of records to what is another's. Those that do
	// not wait are among Conflicts too.
	Refusals []Refusal

	nodeByID  map[NodeID]*NodeView
	endpoints tree[*EndpointView] // by network, address, ID
	byOwner   tree[*EndpointView] // by owner, ID
	services  tree[*ServiceView]  // by key

	deriver *deriver // whose revisions these are; nil: nobody's
	steps   []*step  // how it came to be, oldest first

	// What the next view is derived from; see derivation.
	labels           tree[labelled]
	selectors        tree[selector]
	claims           tree[claim]
	several          tree[*EndpointView] // those with several addresses, by network, address, ID
	judged           *claims
	refused          tree[*Refusal] // of endpoints, leases and services
	declared         tree[*Record]  // declarations of services
	declaredPolicies tree[*Record]
	names            tree[*Record]
	namespace        map[string]string // of a network's leases
	gone             Gone
	live             map[NodeID]Live
	liveRev          uint64
	marks            map[ID]Conflict // found while merging
	nodeConflicts    []Conflict
	networkConflicts []Conflict
	serviceConflicts []keyed
	policyConflicts  []keyed
	vipConflicts     []keyed
	vip6Conflicts    []keyed
}

// NewView returns v with the given nodes' index, endpoints and services, which
// may come in any order: for those who test what a view is turned into. Of
// two endpoints with one owner and ID, and of two services with one key, the
// last stays.
func NewView(v View, endpoints []*EndpointView, services []*ServiceView) *View {
	v.nodeByID = make(map[NodeID]*NodeView, len(v.Nodes))
	for i := range v.Nodes {
		v.nodeByID[v.Nodes[i].ID] = &v.Nodes[i]
	}
	v.endpoints, v.byOwner, v.services = newTree(byPlace), newTree(byOwner), newTree(byServiceKey)
	for _, e := range endpoints {
		v.putEndpoint(e)
	}
	for _, s := range services {
		v.services.put(s)
	}
	return &v
}

// NodeByID returns a node of the view, or nil.
func (v *View) NodeByID(id NodeID) *NodeView { return v.nodeByID[id] }

// Endpoints returns the attachments and DHCP leases of all nodes, sorted by
// network, address, ID. An endpoint that did not change is the same pointer in
// the next view.
func (v *View) Endpoints() iter.Seq[*EndpointView] { return v.endpoints.all() }

// NumEndpoints returns how many endpoints there are.
func (v *View) NumEndpoints() int { return v.endpoints.len() }

// EndpointsOf returns the endpoints of one node, sorted by ID. Its cost does
// not depend on the other nodes'.
func (v *View) EndpointsOf(node NodeID) iter.Seq[*EndpointView] {
	return func(yield func(*EndpointView) bool) {
		for e := range v.byOwner.from(&EndpointView{Owner: node, Endpoint: noEndpoint}) {
			if e.Owner != node || !yield(e) {
				return
			}
		}
	}
}

// Endpoint returns the endpoint of a node with an ID, or nil.
func (v *View) Endpoint(node NodeID, id string) *EndpointView {
	probe := &EndpointView{Owner: node, Endpoint: &Endpoint{ID: id}}
	e, ok := v.byOwner.get(probe)
	if !ok {
		probe.Lease = true
		e, _ = v.byOwner.get(probe)
	}
	return e
}

// Services returns the services, sorted by their keys. A service that did not
// change is the same pointer in the next view.
func (v *View) Services() iter.Seq[*ServiceView] { return v.services.all() }

// NumServices returns how many services there are.
func (v *View) NumServices() int { return v.services.len() }

// Service returns the service with a key, "<namespace>/<name>", or nil.
func (v *View) Service(key string) *ServiceView {
	ns, name, _ := strings.Cut(key, "/")
	return v.service(ns, name)
}

func (v *View) service(namespace, name string) *ServiceView {
	s, _ := v.services.get(&ServiceView{Service: Service{Namespace: namespace, Name: name}})
	return s
}

// putEndpoint stores an endpoint in place of the one with its owner and ID.
func (v *View) putEndpoint(e *EndpointView) {
	if old, ok := v.byOwner.put(e); ok {
		v.endpoints.remove(old)
	}
	v.endpoints.put(e)
}

// NodeView is a node with what is known of it.
type NodeView struct {
	ID NodeID
	Node
	State Liveness
	Since time.Time // of State; zero: unknown
	Self  bool
	// Serving is false when answers and backends must leave the node out
	// (dead beyond the hold, or left). Routes stay while it is merely dead.
	Serving  bool
	Flapping bool    // serving, but services prefer backends on other nodes
	Blocks   []Block // sorted by network, prefix; those that are another's left out
	// Refused says why nothing of the node is programmed: it claims to be what
	// another node is. Empty: it is what it says.
	Refused string
}

// NetworkView is a network as this node uses it.
type NetworkView struct {
	Network
	Own []netip.Prefix // blocks opened by this node; for a Local network the whole prefix
}

// EndpointView is an endpoint with its owner. The Endpoint is the record's own
// value, shared by all views.
type EndpointView struct {
	*Endpoint
	Owner   NodeID // the node that it is attached to; for a lease, the server that last renewed it
	Serving bool   // ready, and its node is serving
	Lease   bool   // it is a DHCP lease
	Refused string // why it is not used although it is ready: its address is another node's
}

// ServiceView is a service with its address and its backends resolved.
type ServiceView struct {
	Service              // Ports carry their allocated node ports
	VIP      netip.Addr  // given or allocated; invalid: headless, external, IPv6 only or not yet allocated
	VIP6     netip.Addr  // given, or the same in the services' IPv6 range; invalid: there is none
	Backends []BackendOf // sorted by address, port

	claims [2]netip.Addr // what it would have as VIP and VIP6 if nobody came before
	by     string        // the label by which its endpoints are found
}

// BackendOf is one backend of a service: one address with a target port for
// each port of the service.
type BackendOf struct {
	Key      string // by what Admin and Health records know it: see EndpointKey, BackendKey
	Addr     netip.Addr
	Targets  []uint16 // parallel to Service.Ports; 0: the backend lacks that port
	Hostname string   // for endpoint names in DNS; empty: the dashed address
	Endpoint string   // endpoint ID; empty: explicit backend
	Node     NodeID   // empty: outside the cluster or unknown
	Why      string   // why it is not ready
	Weight   uint16   // its share of new connections, 1 to 256; 0 stands for 1
	Declared uint16   // its share once it has started; Weight may be scaled meanwhile
	Step     uint8    // how many eighths of its share it has while it starts slowly; 0: all
	By       NodeID   // whose check counts, if not that of its own node
	Ready    bool     // to be used
	// Draining: no new connections unless there is no ready backend; flows
	// stay. It is not Ready then.
	Draining bool
	// Failed: its check says so, or its draining came to an end. It is not
	// Ready, and flows that it has are reset; those of a backend whose node
	// merely fell silent are left alone.
	Failed bool
}

// Ready returns how many backends are ready; an endpoint with addresses of
// both IP versions is one.
func (s *ServiceView) Ready() int {
	ready, _ := s.Count()
	return ready
}

// Count returns how many backends there are, and how many of them are ready.
func (s *ServiceView) Count() (ready, all int) {
	dual := make(map[[2]string]bool)
	for i := range s.Backends { // IPv4 first
		b := &s.Backends[i]
		at := [2]string{string(b.Node), b.Endpoint}
		switch {
		case b.Endpoint == "":
		case b.Addr.Is4():
			dual[at] = true
		case dual[at]:
			continue
		}
		all++
		if b.Ready {
			ready++
		}
	}
	return ready, all
}

// Conflict is something that records disagree on. The view uses Winner.
type Conflict struct {
	What   string // e.g. "service apps/web", "network pods", "range pods/10.244.0.0/24"
	Winner string
	Loser  string
	Detail string
}
