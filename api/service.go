package api

import "net/netip"

// ServiceSpec asks for a service; it replaces one of the same name. Zero
// fields mean what a Nodefile means that leaves the directive out.
type ServiceSpec struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	VIP       netip.Addr        `json:"vip,omitzero"`  // IPv4; zero: by VIP6 or allocated
	VIP6      netip.Addr        `json:"vip6,omitzero"` // zero: the one with the offset of the IPv4 one
	Headless  bool              `json:"headless,omitempty"`
	External  string            `json:"external,omitempty"`
	Ports     []ServicePort     `json:"ports"`
	Select    map[string]string `json:"select,omitempty"`
	Backends  []string          `json:"backends,omitempty"` // "addr[:port][=weight]"
	NodePorts bool              `json:"nodePorts,omitempty"`
	ServiceSettings
}

// ServiceSettings are how a service is checked, balanced and reached. The
// words are those of the Nodefile.
type ServiceSettings struct {
	Check             string         `json:"check,omitempty"` // tcp, http, https, exec, udp or dns; empty: none
	Probe             *Probe         `json:"probe,omitempty"` // how it is checked; nil: the defaults
	SlowStartMillis   int64          `json:"slowStartMillis,omitempty"`
	Balance           string         `json:"balance,omitempty"` // source or maglev; empty: random
	AffinitySeconds   int64          `json:"affinitySeconds,omitempty"`
	Inside            string         `json:"inside,omitempty"`  // local, prefer-node or prefer-zone; empty: all
	Outside           string         `json:"outside,omitempty"` // the same
	Addresses         []netip.Addr   `json:"addresses,omitempty"`
	Announce          bool           `json:"announce,omitempty"`
	Sources           []netip.Prefix `json:"sources,omitempty"`
	NodePortAddresses []netip.Prefix `json:"nodePortAddresses,omitempty"`
	HealthPort        uint16         `json:"healthPort,omitempty"`
	// Families are the IP versions that it is reached by, ipv4 or ipv6; empty:
	// all that the services have a range of. Both are refused without an IPv6
	// range, and told as empty.
	Families []string `json:"families,omitempty"`
}

// Probe says how a service is checked. Zero fields: the defaults.
type Probe struct {
	Port           uint16   `json:"port,omitempty"`
	Path           string   `json:"path,omitempty"`
	Host           string   `json:"host,omitempty"`
	Command        []string `json:"command,omitempty"`
	IntervalMillis int64    `json:"intervalMillis,omitempty"`
	TimeoutMillis  int64    `json:"timeoutMillis,omitempty"`
	Rise           int      `json:"rise,omitempty"`
	Fall           int      `json:"fall,omitempty"`
}

// ServicePort is one port of a service, or a range of them.
type ServicePort struct {
	Name       string `json:"name,omitempty"`
	Protocol   string `json:"protocol"` // tcp, udp or sctp
	Port       uint16 `json:"port"`
	Last       uint16 `json:"last,omitempty"` // of a range; 0: one port
	Target     uint16 `json:"target,omitempty"`
	TargetName string `json:"targetName,omitempty"`
	NodePort   uint16 `json:"nodePort,omitempty"`
}

// Service is a service with its state.
type Service struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	VIP       netip.Addr        `json:"vip,omitzero"`  // zero: none
	VIP6      netip.Addr        `json:"vip6,omitzero"` // zero: none
	Headless  bool              `json:"headless,omitempty"`
	External  string            `json:"external,omitempty"`
	Ports     []ServicePort     `json:"ports"`
	Select    map[string]string `json:"select,omitempty"`
	Source    string            `json:"source"` // nodefile, command or label
	Ready     int               `json:"ready"`
	Total     int               `json:"total"`
	Backends  []ServiceBackend  `json:"backends"`
	Announced []Announcement    `json:"announced,omitempty"` // external addresses on a LAN
	ServiceSettings
}

// ServiceBackend is one backend of a service.
type ServiceBackend struct {
	Addr     netip.Addr `json:"addr"`
	Port     uint16     `json:"port,omitempty"` // of an explicit backend that has one
	Ports    []uint16   `json:"ports"`          // parallel to the service's ports
	Name     string     `json:"name,omitempty"`
	Endpoint string     `json:"endpoint,omitempty"` // ID; empty: explicit
	Node     string     `json:"node,omitempty"`
	Zone     string     `json:"zone,omitempty"` // of the node
	Ready    bool       `json:"ready"`
	Why      string     `json:"why,omitempty"` // it is not ready
	Weight   int        `json:"weight"`
	Draining bool       `json:"draining,omitempty"`
	Until    int64      `json:"until,omitempty"`  // what is left then is reset, Unix seconds; 0: never
	Failed   bool       `json:"failed,omitempty"` // flows are reset
	// Health is what the check says: "ok", "failing" or, before its first
	// change, "" (taken for well); "" as well without a check.
	Health string `json:"health,omitempty"`
	Since  int64  `json:"since,omitempty"` // of Health, Unix seconds
	By     string `json:"by,omitempty"`    // the node that said so, if it is not Node
	Share  int    `json:"share,omitempty"` // percent of its weight, in a slow start; 0: all of it
	// Conns counts its tracked connections through this service. Only
	// PathService fills it in.
	Conns *int `json:"conns,omitempty"`
	// ConnsFrom are the nodes that were counted on.
	ConnsFrom []string `json:"connsFrom,omitempty"`
}

// BackendChange adds an explicit backend to a service, or removes one.
type BackendChange struct {
	Service string `json:"service"` // NAME.NAMESPACE
	Backend string `json:"backend"` // "addr" or "addr:port"
	Weight  int    `json:"weight,omitempty"`
	Remove  bool   `json:"remove,omitempty"`
}

// AdminRequest says what an operator wants of one backend.
type AdminRequest struct {
	Service string `json:"service"` // NAME.NAMESPACE
	Backend string `json:"backend"` // an endpoint's name, ID or address, or "addr:port"
	// Weight sets its share, 1 to 256; 0: as declared; nil: as it is.
	Weight *int `json:"weight,omitempty"`
	// Drain takes it out or, if false, back in; nil: as it is.
	Drain           *bool `json:"drain,omitempty"`
	DeadlineSeconds int64 `json:"deadlineSeconds,omitempty"` // with Drain; 0: none
}
