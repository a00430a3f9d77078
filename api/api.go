// Package api is the control API of a running node: the types that travel
// and a Go client. It is HTTP with JSON bodies on a unix socket.
//
// Every path begins with /v1. A failed request answers with status 4xx or 5xx
// and an Error. Fields may be added; their meaning does not change within v1.
package api

import "net/netip"

// Paths of the API. GET unless a comment says otherwise.
const (
	PathStatus    = "/v1/status"    // Status
	PathEndpoints = "/v1/endpoints" // []Endpoint
	PathRoutes    = "/v1/routes"    // []Route
	PathLeases    = "/v1/leases"    // []Lease
	PathServices  = "/v1/services"  // []Service; POST ServiceSpec → Service; DELETE ?name=NAME.NS
	PathService   = "/v1/service"   // ?name=NAME.NS: Service with Conns of its backends
	PathBackends  = "/v1/backends"  // POST BackendChange → Service: add or remove an explicit backend
	PathAdmin     = "/v1/admin"     // POST AdminRequest → Service: weight or drain a backend
	PathPublishes = "/v1/publishes" // []Publish; POST Publish → Publish; DELETE ?key=KEY
	PathNetworks  = "/v1/networks"  // []NetworkInfo
	PathAttach    = "/v1/attach"    // POST AttachRequest → Attachment
	PathDetach    = "/v1/detach"    // POST DetachRequest → Empty
	PathCheck     = "/v1/check"     // POST DetachRequest → Attachment: error when the kernel differs
	PathAllocate  = "/v1/allocate"  // POST AttachRequest (Mode "ipam") → Attachment: an address without a link
	PathToken     = "/v1/token"     // POST TokenRequest → Token
	PathLeave     = "/v1/leave"     // POST Empty → Empty
	PathDNSQuery  = "/v1/dns/query" // POST DNSQuery → DNSAnswer
	PathDNSTrace  = "/v1/dns/trace" // POST DNSQuery → DNSTrace
	PathDNSWait   = "/v1/dns/wait"  // POST DNSWait → DNSAnswer
	PathDNSTop    = "/v1/dns/top"   // POST DNSTopRequest → DNSTop
	PathDoctor    = "/v1/doctor"    // []Check
	PathFirewall  = "/v1/firewall"  // []Firewall; POST FirewallRequest → FirewallChange
)

// Empty is the body of requests and answers without content.
type Empty struct{}

// Error is the body of every failed request.
type Error struct {
	Message string `json:"error"`
	// Code is one of the Code constants, or empty.
	Code string `json:"code,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Codes by which a caller may branch.
const (
	CodeNotFound  = "not-found"
	CodeExists    = "exists"
	CodeInvalid   = "invalid"
	CodeExhausted = "exhausted" // no address, VIP or port left
	CodeNotReady  = "not-ready" // try again: not yet synced
	CodeDiffers   = "differs"   // check: the kernel does not hold what it should
	CodeForbidden = "forbidden" // caller's credentials do not allow it
	CodeReadOnly  = "read-only" // declared in the Nodefile: change it there
)

// Status is what `nodectl status` shows.
type Status struct {
	Version    string            `json:"version"`
	Node       string            `json:"node"`
	NodeID     string            `json:"nodeId"`
	Zone       string            `json:"zone,omitempty"`
	Advertise  netip.Addr        `json:"advertise"`
	Started    int64             `json:"started"` // Unix seconds
	Cluster    string            `json:"cluster"`
	ClusterID  string            `json:"clusterId"`
	Stale      bool              `json:"stale"`                // answering from saved state: no peer heard since start
	StaleSince int64             `json:"staleSince,omitempty"` // Unix seconds; 0: not stale
	Synced     bool              `json:"synced"`
	Revision   uint64            `json:"revision"`
	Peers      []Peer            `json:"peers"`
	Networks   []NetworkStatus   `json:"networks"`
	Services   []Service         `json:"services"`
	Subsystems []SubsystemStatus `json:"subsystems"` // dns, lb, overlay, dhcp, gossip, in this order, then those in trouble or use
	Conflicts  []string          `json:"conflicts,omitempty"`
}

// Peer is another node of the cluster.
type Peer struct {
	Name     string     `json:"name"`
	ID       string     `json:"id"`
	State    string     `json:"state"`           // alive, suspect, dead, unknown
	Since    int64      `json:"since,omitempty"` // Unix seconds
	Address  netip.Addr `json:"address"`
	Via      string     `json:"via"` // overlay used towards it: "vxlan", "routes", several joined by ","
	MTU      int        `json:"mtu,omitempty"`
	RTTMicro int64      `json:"rttMicro,omitempty"`       // microseconds; 0: not measured
	LastSync int64      `json:"lastSyncMillis"`           // milliseconds ago; -1: never
	Skew     int64      `json:"skewMicro,omitempty"`      // how far its clock is ahead, microseconds; behind if negative; 0: not known
	Flapping int64      `json:"flappingMillis,omitempty"` // how much longer services prefer other nodes, milliseconds
	Version  string     `json:"version,omitempty"`
}

// NetworkStatus is a network as this node uses it.
type NetworkStatus struct {
	Name    string         `json:"name"`
	Prefix  netip.Prefix   `json:"prefix"`
	Prefix6 netip.Prefix   `json:"prefix6,omitzero"` // IPv6 beside it; zero: IPv4 only
	Blocks  []netip.Prefix `json:"blocks"`           // opened by this node
	Used    int            `json:"used"`
	Total   int            `json:"total"` // usable addresses of the opened blocks
	Owned   uint64         `json:"owned"` // addresses of the ring that this node owns
	Overlay string         `json:"overlay"`
	VNI     uint32         `json:"vni,omitempty"`
	MTU     int            `json:"mtu,omitempty"`
	Bridge  string         `json:"bridge"`
	Leases  int            `json:"leases"`
	DHCP    bool           `json:"dhcp"`
}

// NetworkInfo is a network's definition.
type NetworkInfo struct {
	Name    string       `json:"name"`
	Prefix  netip.Prefix `json:"prefix"`
	Prefix6 netip.Prefix `json:"prefix6,omitzero"` // IPv6 beside it; zero: IPv4 only
	Overlay string       `json:"overlay"`
	Bridge  string       `json:"bridge"`
}

// SubsystemStatus is the state of one part of the daemon.
type SubsystemStatus struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Desired uint64 `json:"desired"`         // revision wanted
	Applied uint64 `json:"applied"`         // revision the kernel or sockets hold
	Detail  string `json:"detail"`          // one line for people
	Error   string `json:"error,omitempty"` // the last error, empty when it has passed
	Fix     string `json:"fix,omitempty"`   // what to do about it
}

// Endpoint is an attachment, a DHCP lease or a static host, on any node.
type Endpoint struct {
	ID        string            `json:"id"`
	Node      string            `json:"node"`
	Network   string            `json:"network"`
	Namespace string            `json:"namespace"`
	Name      string            `json:"name,omitempty"`
	Addrs     []netip.Addr      `json:"addrs"`
	MAC       string            `json:"mac,omitempty"`
	Kind      string            `json:"kind"`
	Ready     bool              `json:"ready"`
	Serving   bool              `json:"serving"`
	Labels    map[string]string `json:"labels,omitempty"`
	Ports     []string          `json:"ports,omitempty"` // "http=80/tcp"
	HostIf    string            `json:"hostIf,omitempty"`
	Created   int64             `json:"created,omitempty"`
}

// Route is a route, with its neighbour and forwarding entry, that the overlay
// wants in the kernel.
type Route struct {
	Network  string       `json:"network"`
	Prefix   netip.Prefix `json:"prefix"`
	Node     string       `json:"node"`
	Via      string       `json:"via"` // "local", "vxlan", "routes"
	NextHop  netip.Addr   `json:"nextHop,omitempty"`
	Device   string       `json:"device"`
	MAC      string       `json:"mac,omitempty"`
	State    string       `json:"state"`            // of the node
	Reason   string       `json:"reason,omitempty"` // why this way
	InKernel bool         `json:"inKernel"`
}

// Lease is a DHCP lease.
type Lease struct {
	Network  string     `json:"network"`
	Addr     netip.Addr `json:"addr"`
	MAC      string     `json:"mac"`
	ClientID string     `json:"clientId,omitempty"` // hexadecimal
	Hostname string     `json:"hostname,omitempty"`
	Server   string     `json:"server"`
	Granted  int64      `json:"granted"`
	Expires  int64      `json:"expires"`
}

// Publish is a published port of this node.
type Publish struct {
	Key      string     `json:"key,omitempty"`
	HostAddr netip.Addr `json:"hostAddr,omitzero"` // zero: every local address
	Protocol string     `json:"protocol"`
	HostPort uint16     `json:"hostPort"`
	Last     uint16     `json:"last,omitempty"` // of a range of host ports that begins with HostPort
	Target   netip.Addr `json:"target"`
	Port     uint16     `json:"port"`
	Endpoint string     `json:"endpoint,omitempty"`
	Source   string     `json:"source,omitempty"`
}

// Firewall is a firewall of the host that nodenet can live beside.
type Firewall struct {
	Name  string   `json:"name"`
	Found bool     `json:"found"`           // its chains are there
	On    bool     `json:"on"`              // rules of ours are kept in them
	Rules []string `json:"rules,omitempty"` // of ours, in nft's syntax
	Error string   `json:"error,omitempty"` // why it cannot be integrated
}

// FirewallRequest integrates the named firewalls, or removes the rules of the
// named; without names, of all.
type FirewallRequest struct {
	Names  []string `json:"names"`
	Remove bool     `json:"remove,omitempty"`
	DryRun bool     `json:"dryRun,omitempty"`
}

// FirewallChange is what was done, or would be, in nft's syntax.
type FirewallChange struct {
	Operations []string `json:"operations"`
}

// AttachRequest attaches a network namespace to a network.
type AttachRequest struct {
	// ID identifies the attachment on this node; the same ID again is an
	// error. Empty: "<namespace>.<name>" or a random one.
	ID      string `json:"id,omitempty"`
	Network string `json:"network"`
	// Define describes a network that the caller brings with it (a CNI
	// configuration); it exists on this node only.
	Define    *NetworkDef       `json:"define,omitempty"`
	Netns     string            `json:"netns,omitempty"`  // path
	IfName    string            `json:"ifName,omitempty"` // default eth0
	Name      string            `json:"name,omitempty"`
	Namespace string            `json:"namespace,omitempty"` // default "default"
	Aliases   []string          `json:"aliases,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Ports     []Port            `json:"ports,omitempty"`
	IP        netip.Addr        `json:"ip,omitzero"` // a wanted address
	// IP6 is a wanted IPv6 address: the one with the offset of IP, which it
	// stands for when it is alone.
	IP6            netip.Addr `json:"ip6,omitzero"`
	MAC            string     `json:"mac,omitempty"`
	Mode           string     `json:"mode,omitempty"`    // bridge (default), dhcp, host, none, ipam
	Kind           string     `json:"kind,omitempty"`    // attach (default) or cni
	Publish        []Publish  `json:"publish,omitempty"` // Target is filled in
	NoDefaultRoute bool       `json:"noDefaultRoute,omitempty"`
}

// NetworkDef is a network defined by a CNI configuration.
type NetworkDef struct {
	Prefix     netip.Prefix `json:"prefix"`
	Bridge     string       `json:"bridge,omitempty"`
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	NoGateway  bool         `json:"noGateway,omitempty"` // the bridge gets no address
	Masquerade bool         `json:"masquerade,omitempty"`
	MTU        int          `json:"mtu,omitempty"`
	RangeStart netip.Addr   `json:"rangeStart,omitzero"`
	RangeEnd   netip.Addr   `json:"rangeEnd,omitzero"`
	Peers      []string     `json:"peers,omitempty"` // networks of the Nodefile that it exchanges traffic with
}

// Port is a named port of an endpoint.
type Port struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

// Attachment is the result of an attach.
type Attachment struct {
	ID         string       `json:"id"`
	Network    string       `json:"network"`
	Addr       netip.Prefix `json:"addr"` // with the prefix length for the interface
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	Addr6      netip.Prefix `json:"addr6,omitzero"` // of a network with an IPv6 prefix
	Gateway6   netip.Addr   `json:"gateway6,omitzero"`
	MAC        string       `json:"mac,omitempty"`
	IfName     string       `json:"ifName,omitempty"`
	HostIf     string       `json:"hostIf,omitempty"`
	HostMAC    string       `json:"hostMac,omitempty"`
	Bridge     string       `json:"bridge,omitempty"`
	BridgeMAC  string       `json:"bridgeMac,omitempty"`
	MTU        int          `json:"mtu,omitempty"`
	DNS        DNSConfig    `json:"dns"`
	ResolvConf string       `json:"resolvConf"` // content for the workload's /etc/resolv.conf
}

// DNSConfig is the resolver configuration of a workload.
type DNSConfig struct {
	Nameservers []string `json:"nameservers"`
	Search      []string `json:"search"`
	Options     []string `json:"options"`
}

// DetachRequest names an attachment. Detaching what is not there succeeds.
type DetachRequest struct {
	ID        string `json:"id,omitempty"`
	Network   string `json:"network,omitempty"`
	Name      string `json:"name,omitempty"` // with Namespace, instead of ID
	Namespace string `json:"namespace,omitempty"`
	IfName    string `json:"ifName,omitempty"`
	Netns     string `json:"netns,omitempty"`
}

// TokenRequest asks for a join credential.
type TokenRequest struct {
	TTLSeconds int64 `json:"ttlSeconds,omitempty"` // 0: one hour
}

// Token is a one-time join credential.
type Token struct {
	Token   string `json:"token"`
	Expires int64  `json:"expires"` // Unix seconds
}

// DNSQuery asks the node's own DNS server.
type DNSQuery struct {
	Name string     `json:"name"`
	Type string     `json:"type,omitempty"` // default A
	From netip.Addr `json:"from,omitzero"`  // client address to pretend
	TCP  bool       `json:"tcp,omitempty"`
}

// DNSAnswer is an answer in the usual presentation form.
type DNSAnswer struct {
	Rcode      string   `json:"rcode"`
	Flags      []string `json:"flags"`
	Answer     []string `json:"answer"`
	Authority  []string `json:"authority"`
	Additional []string `json:"additional"`
	Server     string   `json:"server"`
	Micros     int64    `json:"micros"`
}

// Check is one finding of `nodectl doctor`.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warn, fail, skip
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}
