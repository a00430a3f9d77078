// Package config turns a Nodefile into a validated Config.
//
// A Nodefile has the grammar of a Corefile (coredns/caddy's caddyfile): blocks
// of directives, `import`, snippets and {$ENV}. The first key of a block
// decides what it is: one of the reserved words node, cluster, network,
// services, service, publish, policy; anything else is a list of DNS zones.
//
//	Nodefile ─► caddyfile tokens ─► raw blocks ─► Config ─► checks ─► errors, all at once
//
// The package imports nothing of nodenet's: node turns a Config into records.
package config

import (
	"net/netip"
	"time"
)

// Defaults of a node without a Nodefile, and of what a Nodefile leaves out.
const (
	DefaultFile       = "/etc/nodenet/Nodefile"
	DefaultStateDir   = "/var/lib/nodenet"
	DefaultSocket     = "/run/nodenet/nodectl.sock"
	DefaultCluster    = "nodenet"
	DefaultNamespace  = "default"
	DefaultGossipPort = 7946
	DefaultSyncPort   = 7947
	DefaultVXLANPort  = 4789
	DefaultLeaseTime  = time.Hour
	DefaultNetwork    = "pods"
	DefaultPrefix     = "10.244.0.0/16"
	DefaultBlock      = 24
	DefaultServices   = "10.96.0.0/12"
	DefaultZone       = "cluster.local"
)

// Config is a whole, validated configuration. It is comparable with go-cmp
// and never changed after Parse.
type Config struct {
	File      string // "" when there was no Nodefile
	Node      Node
	Cluster   Cluster
	Networks  []Network
	Services  ServiceRange
	Service   []Service
	Publishes []Publish
	Policies  []Policy
	Servers   []Server // DNS server blocks in file order; never empty
}

// Node is the node block.
type Node struct {
	Name      string     // one DNS label; default: the host name's first
	Advertise netip.Addr // default (zero): the address of the default route's interface
	Underlay  netip.Addr // default (zero): Advertise
	Zone      string
	StateDir  string
	Socket    string
}

// Cluster is the cluster block: `cluster NAME { join HOST[:PORT]...; secret FILE }`.
type Cluster struct {
	Name       string   // default: DefaultCluster
	Join       []string // host or host:port of the sync port; empty: a cluster of one, or what `nodectl join` saved
	Secret     string   // file; default: <StateDir>/cluster.secret
	GossipPort uint16
	SyncPort   uint16
}

// Network is a `network NAME PREFIX [PREFIX6]` block.
type Network struct {
	Name       string
	Prefix     netip.Prefix
	Prefix6    netip.Prefix // IPv6 beside it, with the same offsets; zero: IPv4 only
	Block      int          // prefix length of a pod CIDR; 0 with overlay none
	Overlay    string       // vxlan (default), routes, auto, none
	VNI        uint32       // default: 1 + position among the networks with VXLAN; 0 without VXLAN
	Port       uint16       // VXLAN UDP port, default 4789; 0 without VXLAN
	MTU        int          // 0: derived from the underlay
	Masquerade bool
	Internal   bool
	Peers      []string   // networks that it exchanges traffic with; enough on one side
	Bridge     string     // device name; default "nn-" + Name, at most 15 bytes
	Gateway    netip.Addr // address of the bridge; default: first address of the block
	NoGateway  bool       // `gateway none`
	Pin        netip.Prefix
	Exclude    []netip.Prefix
	DHCP       bool
	LeaseTime  time.Duration // whole seconds; DefaultLeaseTime also where DHCP is off
	Namespace  string        // of DHCP leases, default "default"
	NoSearch   bool          // `search off`: the server does not complete names of its workloads
	Pos        Pos
}

// ServiceRange is the `services PREFIX [PREFIX6]` block.
type ServiceRange struct {
	Prefix    netip.Prefix
	Prefix6   netip.Prefix // IPv6 beside it, with the same offsets; zero: IPv4 only
	DNS       netip.Addr   // the node-local resolver address; default: the range's tenth address
	NodePorts PortRange    // default 30000-32767
	Pos       Pos
}

// PortRange is inclusive at both ends.
type PortRange struct{ First, Last uint16 }

// Contains reports whether p lies in the range.
func (r PortRange) Contains(p uint16) bool { return r.First <= p && p <= r.Last }

// Service is a `service NAME[.NAMESPACE]` block. Check says what is wrong with
// one, however it was made.
type Service struct {
	Namespace string // default "default"
	Name      string
	VIP       netip.Addr    // zero: by VIP6 or allocated
	VIP6      netip.Addr    // zero: the one with the offset of the IPv4 one
	Families  []string      // IPv4, IPv6 or both, in this order; empty: what the service range has
	Ports     []ServicePort // `port [NAME] PORT[-LAST][:TARGET][/PROTO] [nodeport PORT]`
	Select    map[string]string
	Backends  []Backend // `backend ADDR[:PORT]... [weight N]`
	Headless  bool      // `vip none`
	External  string    // `external NAME`
	NodePorts bool      // `nodeport` without a number: allocate
	Probe     *Probe    // `check`; nil: none
	// SlowStart is how long a backend that became ready takes to get its whole
	// share; 0: none. Whole milliseconds.
	SlowStart time.Duration
	Balance   string        // "": random; source, maglev
	Affinity  time.Duration // whole seconds; 0: none
	Inside    string        // "": all; local, prefer-node, prefer-zone
	Outside   string        // the same, for what comes by node ports and Addresses
	Addresses []netip.Addr  // `address ADDR...`: external addresses
	Announce  bool          // on the LAN, for Addresses
	Sources   []netip.Prefix
	NodeAddrs []netip.Prefix // `nodeport_addresses PREFIX...`
	// HealthPort is a TCP port of every node that tells whether the node has a
	// ready backend of its own; 0: none.
	HealthPort uint16
	Pos        Pos
}

// ServicePort is one port of a service, or a range of them. Target is a number
// or the name of an endpoint's port; both zero: the port named Name, else Port
// itself.
type ServicePort struct {
	Name       string
	Protocol   string // tcp (default), udp or sctp
	Port       uint16
	Last       uint16 // of a range; 0: one port
	Target     uint16 // of a range: of its first port
	TargetName string
	NodePort   uint16
}

// Backend is a backend that is no endpoint.
type Backend struct {
	Addr   netip.AddrPort // port 0: the target port
	Weight int            // 0 stands for 1
}

// Probe is how the backends of a service are checked: `check TYPE …`. Zero
// fields take the defaults that docs/nodefile.md names.
type Probe struct {
	Type     string   // tcp, http, https, exec, udp, dns
	Port     uint16   // 0: the first port of the right protocol
	Path     string   // http, https
	Host     string   // http, https: host name to ask for; dns: name to look up
	Command  []string // exec
	Interval time.Duration
	Timeout  time.Duration
	Rise     int
	Fall     int
}

// Publish is a `publish [HOSTADDR:]PORT[-LAST][/PROTO] TARGET:PORT` line.
type Publish struct {
	HostAddr netip.Addr
	Protocol string
	HostPort uint16
	Last     uint16 // of a range that begins with HostPort; 0: one port
	Target   netip.AddrPort
	Pos      Pos
}

// Server is a DNS server block: its zones with scheme and port as written,
// and its directives. The dns package gives the directives their meaning.
type Server struct {
	Keys       []string // e.g. ".:53", "example.org:1053", "dns://."
	Directives []Directive
	Pos        Pos
}

// Directive is one directive of a server block with its arguments and its
// nested block. One that is written twice appears twice, in file order.
type Directive struct {
	Name  string
	Args  []string
	Block []Directive // nested lines: Name is the first word
	Pos   Pos
}

// Pos is a place in a Nodefile.
type Pos struct {
	File string
	Line int
}
