package state

import (
	"fmt"
	"net/netip"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// Node is what a node says about itself. One record a node, key "self".
type Node struct {
	Name       string     `cbor:"1,keyasint"`
	Zone       string     `cbor:"2,keyasint,omitempty"`
	Advertise  netip.Addr `cbor:"3,keyasint"`           // gossip and sync address
	Underlay   netip.Addr `cbor:"4,keyasint,omitempty"` // overlay (VTEP) address; zero: Advertise
	GossipPort uint16     `cbor:"5,keyasint,omitempty"`
	SyncPort   uint16     `cbor:"6,keyasint,omitempty"`
	PublicKey  []byte     `cbor:"7,keyasint"`
	VTEPMAC    []byte     `cbor:"8,keyasint"`
	BootID     string     `cbor:"9,keyasint,omitempty"` // random, new at each start
	Version    string     `cbor:"10,keyasint,omitempty"`
	Started    int64      `cbor:"11,keyasint,omitempty"` // Unix seconds
	Left       bool       `cbor:"12,keyasint,omitempty"` // the node left for good
	Networks   string     `cbor:"13,keyasint,omitempty"` // digest of its network definitions
	// OnLink holds the prefixes of the underlay interface, by which a peer
	// decides whether plain routes can reach this node.
	OnLink []netip.Prefix `cbor:"14,keyasint,omitempty"`
	// LANs are the Ethernet segments that the node is on now, by which the
	// owner of an external address is elected. An interface without carrier
	// is on none.
	LANs []LAN `cbor:"15,keyasint,omitempty"`
	// ServiceRange is the range of service addresses as the node was told, and
	// ServiceRange6 the IPv6 one beside it, if any: see Twin.
	ServiceRange  netip.Prefix `cbor:"16,keyasint,omitempty"`
	ServiceRange6 netip.Prefix `cbor:"17,keyasint,omitempty"`
}

// LAN is an address of a node's interface with the prefix of its segment.
type LAN struct {
	Addr netip.Prefix `cbor:"1,keyasint"` // e.g. 192.168.1.11/24
	MAC  []byte       `cbor:"2,keyasint"` // of the interface
}

// Block is a range that a node has opened on a network: a pod CIDR, the unit
// that is routed. A block is opened before the first address in it is given out.
type Block struct {
	Network string       `cbor:"1,keyasint"`
	Prefix  netip.Prefix `cbor:"2,keyasint"`
	// Gen is the highest generation of the ring's parts that the block lay in
	// when it was opened; 0: opened by a version that did not say so.
	Gen uint64 `cbor:"3,keyasint,omitempty"`
}

// How an endpoint came to be.
const (
	EndpointCNI    = "cni"
	EndpointAttach = "attach"
	EndpointDHCP   = "dhcp"
	EndpointStatic = "static"
)

// Endpoint is an attachment: a container, VM or process that has an address
// and a name. Its record's key is its ID.
type Endpoint struct {
	ID        string            `cbor:"1,keyasint"`
	Network   string            `cbor:"2,keyasint"`
	Namespace string            `cbor:"3,keyasint"`
	Name      string            `cbor:"4,keyasint,omitempty"`
	Aliases   []string          `cbor:"5,keyasint,omitempty"`
	Labels    map[string]string `cbor:"6,keyasint,omitempty"`
	Addrs     []netip.Addr      `cbor:"7,keyasint"`
	MAC       string            `cbor:"8,keyasint,omitempty"`
	Ports     []Port            `cbor:"9,keyasint,omitempty"`
	Kind      string            `cbor:"10,keyasint"`
	Ready     bool              `cbor:"11,keyasint"`
	Created   int64             `cbor:"12,keyasint,omitempty"` // Unix seconds
	HostIf    string            `cbor:"13,keyasint,omitempty"` // host side of the veth
	Netns     string            `cbor:"14,keyasint,omitempty"` // path, on its node
	IfName    string            `cbor:"15,keyasint,omitempty"` // inside the namespace
	Mode      string            `cbor:"16,keyasint,omitempty"` // bridge (default), dhcp, host, none, ipam
	Gateway   netip.Addr        `cbor:"17,keyasint,omitempty"`
	PrefixLen int               `cbor:"18,keyasint,omitempty"`
	Hostname  string            `cbor:"19,keyasint,omitempty"` // of the headless endpoint name; empty: Name
	// NoDefaultRoute says that the namespace got no default route via Gateway.
	NoDefaultRoute bool `cbor:"20,keyasint,omitempty"`
	// Why says why it is not ready; empty: nobody said.
	Why string `cbor:"21,keyasint,omitempty"`
}

// Port is a named port of an endpoint.
type Port struct {
	Name     string `cbor:"1,keyasint,omitempty"`
	Protocol string `cbor:"2,keyasint"` // "tcp", "udp" or "sctp"
	Port     uint16 `cbor:"3,keyasint"`
}

// Publish forwards a port of the node's own addresses to a workload (docker -p).
type Publish struct {
	HostAddr netip.Addr `cbor:"1,keyasint,omitempty"` // zero: every local address
	Protocol string     `cbor:"2,keyasint"`           // "tcp", "udp" or "sctp"
	HostPort uint16     `cbor:"3,keyasint"`
	Target   netip.Addr `cbor:"4,keyasint"`
	Port     uint16     `cbor:"5,keyasint"`
	Endpoint string     `cbor:"6,keyasint,omitempty"` // removed with this endpoint
	Source   string     `cbor:"7,keyasint,omitempty"` // "nodefile", "command", "cni"
	// Last is the last port of a range that begins with HostPort; 0: one port.
	// A port of the range goes to the port as far from Port as it is from
	// HostPort.
	Last uint16 `cbor:"8,keyasint,omitempty"`
}

// LastPort is the last host port of a published port or range.
func (p Publish) LastPort() uint16 { return max(p.HostPort, p.Last) }

// Overlaps reports whether two published ports of one node claim the same
// port of the same address.
func (p Publish) Overlaps(o Publish) bool {
	return p.Protocol == o.Protocol && p.HostPort <= o.LastPort() && o.HostPort <= p.LastPort() &&
		(p.HostAddr == o.HostAddr || !p.HostAddr.IsValid() || !o.HostAddr.IsValid())
}

// Key returns the record key of a published port.
func (p Publish) Key() string {
	host := "*"
	if p.HostAddr.IsValid() {
		host = p.HostAddr.String()
	}
	if p.Last > p.HostPort {
		return fmt.Sprintf("%s:%d-%d/%s", host, p.HostPort, p.Last, p.Protocol)
	}
	return fmt.Sprintf("%s:%d/%s", host, p.HostPort, p.Protocol)
}

// Health is the result of a service's check of one backend, written when it
// changes. Of an endpoint it is its own node's record, with the endpoint's ID
// in the key; where its node is suspect another node keeps one for the whole
// cluster, and so does whoever checks an explicit backend, with BackendOf.Key
// in the key. See View.healthRecord for which of them counts.
type Health struct {
	OK    bool   `cbor:"1,keyasint"`
	Why   string `cbor:"2,keyasint,omitempty"`
	Since int64  `cbor:"3,keyasint,omitempty"` // Unix seconds
	// Step is how many eighths of its share the backend has while it starts
	// slowly, 1 to 7; 0: all. Time goes into records only so, that all nodes
	// and both DNS and balancer see one step at one revision.
	Step uint8 `cbor:"4,keyasint,omitempty"`
}

// Overlay modes of a network.
const (
	OverlayVXLAN  = "vxlan"
	OverlayRoutes = "routes"
	OverlayAuto   = "auto"
	OverlayNone   = "none"
)

// Network is a prefix with a bridge on each node and one way across nodes.
type Network struct {
	Name       string         `cbor:"1,keyasint"`
	Prefix     netip.Prefix   `cbor:"2,keyasint"`
	Block      int            `cbor:"3,keyasint,omitempty"` // prefix length of a pod CIDR; 0: the whole prefix on each node
	Overlay    string         `cbor:"4,keyasint"`
	VNI        uint32         `cbor:"5,keyasint,omitempty"`
	Port       uint16         `cbor:"6,keyasint,omitempty"` // VXLAN UDP port; 0: 4789
	MTU        int            `cbor:"7,keyasint,omitempty"` // 0: derived from the underlay
	Masquerade bool           `cbor:"8,keyasint,omitempty"`
	Internal   bool           `cbor:"9,keyasint,omitempty"`
	Bridge     string         `cbor:"10,keyasint,omitempty"` // device name; empty: derived from Name
	Gateway    netip.Addr     `cbor:"11,keyasint,omitempty"` // zero: first address of each block
	NoGateway  bool           `cbor:"12,keyasint,omitempty"` // the bridge has no address
	DHCP       bool           `cbor:"13,keyasint,omitempty"`
	LeaseTime  int64          `cbor:"14,keyasint,omitempty"` // seconds; 0: 3600
	DHCPDomain string         `cbor:"15,keyasint,omitempty"`
	Namespace  string         `cbor:"16,keyasint,omitempty"` // of DHCP leases; empty: "default"
	Exclude    []netip.Prefix `cbor:"17,keyasint,omitempty"` // never given out
	Pin        netip.Prefix   `cbor:"18,keyasint,omitempty"` // this node's first block
	Source     string         `cbor:"19,keyasint,omitempty"` // "nodefile" or "cni"
	NoSearch   bool           `cbor:"20,keyasint,omitempty"` // DNS leaves its workloads' questions as they are
	Prefix6    netip.Prefix   `cbor:"21,keyasint,omitempty"` // IPv6 beside Prefix, see Twin; zero: IPv4 only
	Peers      []string       `cbor:"30,keyasint,omitempty"` // networks that it exchanges traffic with; one side says so
}

// Local reports whether each node uses the whole prefix by itself, so that
// the same address may exist on two nodes.
func (n *Network) Local() bool { return n.Overlay == OverlayNone }

// Service is a virtual address and the rule that finds its backends.
type Service struct {
	Namespace string            `cbor:"1,keyasint"`
	Name      string            `cbor:"2,keyasint"`
	VIP       netip.Addr        `cbor:"3,keyasint,omitempty"` // zero: allocated (see VIP), unless Headless
	Ports     []ServicePort     `cbor:"4,keyasint"`
	Selector  map[string]string `cbor:"5,keyasint,omitempty"` // empty: explicit backends only
	Headless  bool              `cbor:"6,keyasint,omitempty"`
	External  string            `cbor:"7,keyasint,omitempty"` // ExternalName: a CNAME, no VIP
	NodePorts bool              `cbor:"8,keyasint,omitempty"` // allocate node ports for ports that have none
	Check     string            `cbor:"9,keyasint,omitempty"` // "" or one of the Check constants; see Probe
	Backends  []Backend         `cbor:"10,keyasint,omitempty"`
	Source    string            `cbor:"11,keyasint,omitempty"` // "nodefile", "command" or "label"
	Probe     *Probe            `cbor:"12,keyasint,omitempty"` // how Check is made; nil: all defaults
	// SlowStart is for how long, in milliseconds, a backend that became ready
	// gets less than its share, growing to all of it; 0: all of it at once.
	SlowStart int64 `cbor:"13,keyasint,omitempty"`
	// Balance says how a backend is chosen: one of the Balance constants.
	Balance string `cbor:"14,keyasint,omitempty"`
	// Affinity is for how long, in seconds since its last connection, a client
	// address keeps its backend; 0: no affinity.
	Affinity int64 `cbor:"15,keyasint,omitempty"`
	// Inside and Outside say which backends connections get that come from
	// workloads and nodes of the cluster, and those that come by a node port or
	// an external address: one of the Policy constants.
	Inside  string `cbor:"16,keyasint,omitempty"`
	Outside string `cbor:"17,keyasint,omitempty"`
	// External addresses on which any node takes connections for the service.
	Addresses []netip.Addr `cbor:"18,keyasint,omitempty"`
	// Announce lets the cluster choose a node that answers ARP and neighbour
	// discovery for each of Addresses on the LAN.
	Announce bool `cbor:"19,keyasint,omitempty"`
	// Sources are the clients that may use Addresses and node ports; empty: all.
	Sources []netip.Prefix `cbor:"20,keyasint,omitempty"`
	// NodeAddrs are the host's addresses on which node ports answer; empty: all
	// but loopback.
	NodeAddrs []netip.Prefix `cbor:"21,keyasint,omitempty"`
	// HealthPort is a TCP port of every node that says by HTTP whether it has a
	// ready backend of its own, for load balancers before an Outside policy of
	// PolicyLocal; 0: none.
	HealthPort uint16 `cbor:"22,keyasint,omitempty"`
}

// How a service's backend is chosen for a new connection.
const (
	BalanceRandom = ""       // by weight
	BalanceSource = "source" // by a hash of the client's address, within this node's slots
	BalanceMaglev = "maglev" // by a hash of the client's address, the same on every node
)

// Which backends a connection may get. Of each set only the ready ones count.
const (
	PolicyAll        = ""            // all
	PolicyLocal      = "local"       // those of this node, or none
	PolicyPreferNode = "prefer-node" // those of this node; without any, all
	PolicyPreferZone = "prefer-zone" // those of this node's zone; without any, all
)

// What a check does.
const (
	CheckTCP   = "tcp"   // connect
	CheckHTTP  = "http"  // GET, a status of 200 to 399
	CheckHTTPS = "https" // the same over TLS, the certificate is not verified
	CheckExec  = "exec"  // a program on the backend's node, exit status 0
	CheckUDP   = "udp"   // a datagram is sent and none comes back as refused
	CheckDNS   = "dns"   // a DNS question has an answer
)

// Probe says how a service's backends are checked. All zero: the defaults.
type Probe struct {
	Port     uint16   `cbor:"1,keyasint,omitempty"` // 0: the backend's first port of the right protocol
	Path     string   `cbor:"2,keyasint,omitempty"` // http, https; empty: "/"
	Host     string   `cbor:"3,keyasint,omitempty"` // http, https: Host header and server name; dns: the name to ask for
	Command  []string `cbor:"4,keyasint,omitempty"` // exec
	Interval int64    `cbor:"5,keyasint,omitempty"` // milliseconds; 0: 2000
	Timeout  int64    `cbor:"6,keyasint,omitempty"` // milliseconds; 0: 1000
	Rise     int      `cbor:"7,keyasint,omitempty"` // successes in a row that take a backend in; 0: 1
	Fall     int      `cbor:"8,keyasint,omitempty"` // failures in a row that take it out; 0: 2
}

// Key returns the record key of a service.
func (s Service) Key() string { return s.Namespace + "/" + s.Name }

// FullName returns the name as people write it: NAME.NAMESPACE.
func (s Service) FullName() string { return s.Name + "." + s.Namespace }

// ServicePort is one port of a service.
type ServicePort struct {
	Name       string `cbor:"1,keyasint,omitempty"`
	Protocol   string `cbor:"2,keyasint"` // "tcp", "udp" or "sctp"
	Port       uint16 `cbor:"3,keyasint"`
	Target     uint16 `cbor:"4,keyasint,omitempty"` // 0: the endpoint's port named TargetName or Name, else Port
	TargetName string `cbor:"5,keyasint,omitempty"`
	NodePort   uint16 `cbor:"6,keyasint,omitempty"`
	// Last is the last port of a range that begins with Port; 0: one port. A
	// port of the range goes to the target as far from Target as it is from
	// Port. A range has no named target and no node port.
	Last uint16 `cbor:"7,keyasint,omitempty"`
}

// Backend is an explicit backend of a service. Port 0 means the target port
// of each service port.
type Backend struct {
	Namespace string     `cbor:"1,keyasint"`
	Service   string     `cbor:"2,keyasint"`
	Addr      netip.Addr `cbor:"3,keyasint"`
	Port      uint16     `cbor:"4,keyasint,omitempty"`
	Hostname  string     `cbor:"5,keyasint,omitempty"`
	// Weight is the backend's share, 1 to 256 times that of a backend with
	// weight 1; 0: 1.
	Weight int `cbor:"6,keyasint,omitempty"`
}

// Admin is what an operator said of one backend of a service, by command. The
// record's key is "<namespace>/<service>/<backend>"; the backend is what
// EndpointKey or BackendKey returns.
type Admin struct {
	Namespace string `cbor:"1,keyasint"`
	Service   string `cbor:"2,keyasint"`
	Backend   string `cbor:"3,keyasint"`
	Weight    int    `cbor:"4,keyasint,omitempty"` // 1 to 256; 0: as declared
	Drain     bool   `cbor:"5,keyasint,omitempty"` // no new connections, flows stay
	// Until is when connections that are left then are reset, in Unix seconds
	// by the cluster's clocks; 0: never.
	Until int64 `cbor:"6,keyasint,omitempty"`
	// Ended says that Until is over; one node writes it, so that all see the
	// same at one revision.
	Ended bool `cbor:"7,keyasint,omitempty"`
}

// Key returns the record key of what an operator said.
func (a Admin) Key() string { return a.Namespace + "/" + a.Service + "/" + a.Backend }

// VIP is what was allocated for a service that did not name it.
type VIP struct {
	Addr      netip.Addr        `cbor:"1,keyasint,omitempty"`
	NodePorts map[string]uint16 `cbor:"2,keyasint,omitempty"` // by "<port>/<protocol>"
}

// Name is a static DNS record.
type Name struct {
	Name   string `cbor:"1,keyasint"` // without the final dot
	Type   string `cbor:"2,keyasint"` // A, AAAA, CNAME
	Target string `cbor:"3,keyasint"`
}

// Reservation keeps an address for one client.
type Reservation struct {
	Network string     `cbor:"1,keyasint"`
	Addr    netip.Addr `cbor:"2,keyasint"`
	MAC     string     `cbor:"3,keyasint,omitempty"`
	Name    string     `cbor:"4,keyasint,omitempty"`
}

// LeaseValue is a DHCP lease. The record's key is "<network>/<addr>".
type LeaseValue struct {
	Network  string     `cbor:"1,keyasint"`
	Addr     netip.Addr `cbor:"2,keyasint"`
	MAC      string     `cbor:"3,keyasint"`
	ClientID []byte     `cbor:"4,keyasint,omitempty"`
	Hostname string     `cbor:"5,keyasint,omitempty"`
	Server   NodeID     `cbor:"6,keyasint"`
	Granted  int64      `cbor:"7,keyasint"` // Unix seconds
	Expires  int64      `cbor:"8,keyasint"` // Unix seconds
	// Declined marks an address that a client found in use: no lease, but
	// not to be given out before Expires.
	Declined bool `cbor:"9,keyasint,omitempty"`
}

// Range says who owns a part of a ring. The record's key is
// "<ring>/<prefix>/<ring ID>/<owner>", so that a second claim never overwrites
// the first. Where ranges overlap, the one with the higher generation
// owns the addresses that both cover: a donation is one record, written by
// the giver, with a generation above all that it overlaps.
type Range struct {
	Ring   string       `cbor:"1,keyasint"` // a network's name, "services" or "nodeports"
	RingID string       `cbor:"2,keyasint"` // random; ranges of different rings never merge
	Prefix netip.Prefix `cbor:"3,keyasint"`
	Owner  NodeID       `cbor:"4,keyasint"`
	Donor  NodeID       `cbor:"5,keyasint,omitempty"`
	// From is the node that this was taken from without its consent, because
	// it was forgotten; empty: the owner before gave it away.
	From NodeID `cbor:"6,keyasint,omitempty"`
	// Until is when what was taken over may be used, in Unix seconds by the
	// clock of the owner; zero: at once.
	Until int64 `cbor:"7,keyasint,omitempty"`
}

// Names of the rings that are not networks. A node port p is the address
// 0.0.(p>>8).(p&255) of the ring RingNodePorts.
const (
	RingServices  = "services"
	RingNodePorts = "nodeports"
)

// newValue returns a pointer to a zero value of the kind, or nil for a kind
// that this version does not know: such records are stored and passed on.
func newValue(k Kind) any {
	switch k {
	case KindNode:
		return new(Node)
	case KindBlock:
		return new(Block)
	case KindEndpoint:
		return new(Endpoint)
	case KindPublish:
		return new(Publish)
	case KindHealth:
		return new(Health)
	case KindNetwork:
		return new(Network)
	case KindService:
		return new(Service)
	case KindBackend:
		return new(Backend)
	case KindAdmin:
		return new(Admin)
	case KindPolicy:
		return new(Policy)
	case KindVIP:
		return new(VIP)
	case KindName:
		return new(Name)
	case KindReservation:
		return new(Reservation)
	case KindLease:
		return new(LeaseValue)
	case KindRing:
		return new(Range)
	case KindForgotten:
		return new(Forgotten)
	case KindHorizon:
		return new(Horizon)
	case KindSynced:
		return new(Synced)
	}
	return nil
}

// kindOf is newValue's inverse for typed access.
func kindOf(v any) Kind {
	switch v.(type) {
	case *Node, Node:
		return KindNode
	case *Block, Block:
		return KindBlock
	case *Endpoint, Endpoint:
		return KindEndpoint
	case *Publish, Publish:
		return KindPublish
	case *Health, Health:
		return KindHealth
	case *Network, Network:
		return KindNetwork
	case *Service, Service:
		return KindService
	case *Backend, Backend:
		return KindBackend
	case *Admin, Admin:
		return KindAdmin
	case *Policy, Policy:
		return KindPolicy
	case *VIP, VIP:
		return KindVIP
	case *Name, Name:
		return KindName
	case *Reservation, Reservation:
		return KindReservation
	case *LeaseValue, LeaseValue:
		return KindLease
	case *Range, Range:
		return KindRing
	case *Forgotten, Forgotten:
		return KindForgotten
	case *Horizon, Horizon:
		return KindHorizon
	case *Synced, Synced:
		return KindSynced
	}
	return ""
}

var encMode, decMode = func() (cbor.EncMode, cbor.DecMode) {
	eo := cbor.CoreDetEncOptions()
	// netip types carry no CBOR marshaller: their text or binary form does.
	eo.BinaryMarshaler = cbor.BinaryMarshalerByteString
	em, err := eo.EncMode()
	if err != nil {
		panic(err)
	}
	dm, err := cbor.DecOptions{
		MaxArrayElements:  4096,
		MaxMapPairs:       4096,
		MaxNestedLevels:   8,
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		BinaryUnmarshaler: cbor.BinaryUnmarshalerByteString,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return em, dm
}()

// Encode returns the CBOR of a value in deterministic form (RFC 8949 §4.2).
func Encode(v any) ([]byte, error) { return encMode.Marshal(v) }

// Decode parses CBOR with the limits that hold for bytes from outside.
func Decode(b []byte, v any) error { return decMode.Unmarshal(b, v) }

// decode fills r.val. A value that cannot be decoded is an error; a kind that
// is not known is not.
func (r *Record) decode() error {
	if r.Deleted || r.val != nil {
		return nil
	}
	v := newValue(r.ID.Kind)
	if v == nil {
		return nil
	}
	if err := Decode(r.Value, v); err != nil {
		return fmt.Errorf("record %s: decode value: %w", r.ID, err)
	}
	r.val = v
	return nil
}

// Val returns the decoded value, a pointer to the kind's type that the caller
// must not change, or nil for a tombstone or an unknown kind.
func (r *Record) Val() any {
	if r.val == nil && !r.Deleted {
		if err := r.decode(); err != nil {
			return nil
		}
	}
	return r.val
}

// sameValue reports whether two decoded values are equal.
func sameValue(a, b any) bool { return reflect.DeepEqual(a, b) }
