package lb

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"nodenet/state"
)

// IP protocol numbers (IANA) of what is balanced.
const (
	ICMP uint8 = 1
	TCP  uint8 = 6
	UDP  uint8 = 17
)

// MaxSlots is how many backends of one port are used: one chain a bucket size.
const MaxSlots = 256

// Local is what a node knows of itself and the cluster's records do not say.
type Local struct {
	Self     state.NodeID
	Range    netip.Prefix // service range; invalid: no virtual addresses
	Resolver netip.Addr   // node-local DNS address, inside or outside Range; invalid: none
	// NodeAddrs are the addresses of this host. They are not programmed (the
	// kernel asks its own routing table); they serve warnings and Trace.
	NodeAddrs []netip.Addr
	Bridges   []BridgeInfo
	// ClusterPrefixes are the pod ranges of all networks that span nodes, and
	// the service range. Nothing is masqueraded between them.
	ClusterPrefixes []netip.Prefix
	// Links are further devices of ours (VXLAN): leaving by them is never
	// leaving the cluster. The names of Bridges need not be repeated.
	Links []string
	// NodePortFirst and NodePortLast bound the node ports that are used; both
	// zero: no bound.
	NodePortFirst, NodePortLast uint16
}

// BridgeInfo is a network's bridge on this node.
type BridgeInfo struct {
	Network    string
	Name       string           // device
	MAC        net.HardwareAddr // of the device; empty: not there yet, replies of siblings are not lifted
	Prefix     netip.Prefix     // of the network
	Own        []netip.Prefix   // the part of it that is on this node
	Masquerade bool
	Internal   bool
}

// Table is what the kernel should hold at one revision. It is made by Derive
// and immutable afterwards; all slices are sorted and without duplicates.
type Table struct {
	Rev      uint64
	Range    netip.Prefix
	Resolver netip.Addr
	// VIPs are the virtual addresses that some service has, with or without
	// ready backends: unknown ports there are refused, other addresses of
	// Range are dropped.
	VIPs          []netip.Addr
	Services      []Service
	NodePorts     []Service // VIP is invalid
	Publishes     []Publish // loopback ones excluded
	Loopback      []Publish // published on 127.0.0.0/8 by the user-space listener
	Masquerade    []netip.Prefix
	Cluster       []netip.Prefix
	Local         []netip.Prefix // where local backends live
	LocalBackends []LocalBackend
	Remote        []Target // targets of node and published ports that are not on this node
	Bridges       []Bridge
	routes        []Bridge // what is behind which bridge, for Trace
	Links         []string // devices of ours, bridges included
	Addrs         []netip.Addr
	// Warnings say what was left out and why, one line each.
	Warnings []string

	services, backends   int     // for people
	lbClasses, npClasses classes // chains that exist already
}

// Service is one port of a service, or one node port, with its ready backends.
type Service struct {
	Name     string     // "<namespace>/<name>"
	VIP      netip.Addr // invalid: a node port
	Proto    uint8
	Port     uint16
	Backends []netip.AddrPort // order is the order of slots
}

// Publish is a published port of the node's own addresses.
type Publish struct {
	HostAddr netip.Addr // invalid: every local address
	Proto    uint8
	HostPort uint16
	Target   netip.AddrPort
}

// Target is an address, a protocol and a port.
type Target struct {
	Addr  netip.Addr
	Proto uint8
	Port  uint16
}

// LocalBackend is a backend on this node. Replies from it pass the IP stack
// even when the client sits on the same bridge.
type LocalBackend struct {
	Target
	MAC [6]byte // of its bridge; zero: not on one of our bridges
}

// Bridge is a network's bridge as the rules need it.
type Bridge struct {
	Name     string
	Prefix   netip.Prefix
	Internal bool
}

func compareTarget(a, b Target) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

func compareService(a, b Service) int {
	return compareTarget(Target{a.VIP, a.Proto, a.Port}, Target{b.VIP, b.Proto, b.Port})
}

func comparePublish(a, b Publish) int {
	return compareTarget(Target{a.HostAddr, a.Proto, a.HostPort}, Target{b.HostAddr, b.Proto, b.HostPort})
}

func protoNumber(s string) uint8 {
	switch s {
	case "tcp":
		return TCP
	case "udp":
		return UDP
	}
	return 0
}

func protoName(p uint8) string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprint(p)
}

// deriver collects a Table.
type deriver struct {
	l     Local
	t     Table
	own   []netip.Prefix
	local map[string]bool // networks that each node has for itself
}

// Derive says what this node's kernel should hold for a view. It is pure: the
// same arguments give an equal Table. Only IPv4 is balanced so far; what else
// is asked for is listed in Warnings.
func Derive(v *state.View, l Local) Table {
	d := &deriver{l: l, local: make(map[string]bool)}
	d.t = Table{Rev: v.Rev, Range: l.Range.Masked(), Resolver: l.Resolver, Addrs: slices.Clone(l.NodeAddrs)}
	for i := range v.Networks {
		d.local[v.Networks[i].Name] = v.Networks[i].Local()
	}
	d.bridges()
	d.services(v)
	d.publishes(v)
	d.finish()
	return d.t
}

func (d *deriver) warn(format string, args ...any) {
	d.t.Warnings = append(d.t.Warnings, fmt.Sprintf(format, args...))
}

func (d *deriver) bridges() {
	t := &d.t
	for _, b := range d.l.Bridges {
		if b.Name == "" || !b.Prefix.IsValid() || !b.Prefix.Addr().Is4() {
			continue
		}
		t.Bridges = append(t.Bridges, Bridge{Name: b.Name, Prefix: b.Prefix.Masked(), Internal: b.Internal})
		t.Links = append(t.Links, b.Name)
		if b.Masquerade && !b.Internal {
			t.Masquerade = append(t.Masquerade, b.Prefix.Masked())
		}
		for _, own := range b.Own {
			t.routes = append(t.routes, Bridge{Name: b.Name, Prefix: own})
		}
		d.own = append(d.own, b.Own...)
	}
	t.Links = append(t.Links, d.l.Links...)
	t.Cluster = slices.Clone(d.l.ClusterPrefixes)
	t.Local = slices.Clone(d.own)
}

// isLocal reports whether an address belongs to a workload of this node.
func (d *deriver) isLocal(a netip.Addr) bool {
	return slices.ContainsFunc(d.own, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (d *deriver) services(v *state.View) {
	t := &d.t
	// A backend on another node's local network cannot be reached from here,
	// even where the same address exists on this node too.
	networkOf := make(map[string]string)
	for e := range v.Endpoints() {
		if e.Owner != d.l.Self && d.local[e.Network] {
			networkOf[e.ID] = e.Network
		}
	}
	for s := range v.Services() {
		usable := d.vip(s)
		counted := make(map[netip.Addr]bool)
		for p, port := range s.Ports {
			proto := protoNumber(port.Protocol)
			if proto == 0 {
				d.warn("service %s port %d: protocol %q is not balanced: use tcp or udp", s.Key(), port.Port, port.Protocol)
				continue
			}
			var backends []netip.AddrPort
			for b := range s.Backends {
				be := &s.Backends[b]
				if !be.Ready || !be.Addr.Is4() || p >= len(be.Targets) || be.Targets[p] == 0 || networkOf[be.Endpoint] != "" {
					continue
				}
				backends = append(backends, netip.AddrPortFrom(be.Addr, be.Targets[p]))
			}
			slices.SortFunc(backends, netip.AddrPort.Compare)
			backends = slices.Compact(backends)
			if len(backends) > MaxSlots {
				d.warn("service %s port %d: %d backends, the first %d are used", s.Key(), port.Port, len(backends), MaxSlots)
				backends = backends[:MaxSlots]
			}
			nodePort := port.NodePort
			if nodePort != 0 && d.l.NodePortLast != 0 && (nodePort < d.l.NodePortFirst || nodePort > d.l.NodePortLast) {
				d.warn("service %s: node port %d is outside %d-%d", s.Key(), nodePort, d.l.NodePortFirst, d.l.NodePortLast)
				nodePort = 0
			}
			if usable {
				t.Services = append(t.Services, Service{Name: s.Key(), VIP: s.VIP, Proto: proto, Port: port.Port, Backends: backends})
			}
			if nodePort != 0 {
				t.NodePorts = append(t.NodePorts, Service{Name: s.Key(), Proto: proto, Port: nodePort, Backends: backends})
			}
			if !usable && nodePort == 0 {
				continue
			}
			for _, b := range backends {
				counted[b.Addr()] = true
				d.target(Target{b.Addr(), proto, b.Port()}, nodePort != 0)
			}
		}
		if usable {
			t.VIPs = append(t.VIPs, s.VIP)
			t.services++
		}
		t.backends += len(counted)
	}
}

// vip reports whether a service's address can be programmed here.
func (d *deriver) vip(s *state.ServiceView) bool {
	switch {
	case !s.VIP.IsValid():
		return false
	case s.VIP == d.l.Resolver:
		return false // the resolver answers there itself
	case !s.VIP.Is4():
		d.warn("service %s: vip %s: only IPv4 is balanced", s.Key(), s.VIP)
		return false
	case !d.t.Range.IsValid() || !d.t.Range.Contains(s.VIP):
		d.warn("service %s: vip %s is outside the service range %s", s.Key(), s.VIP, d.t.Range)
		return false
	}
	return true
}

// target notes where a target lives. host is set when it can be reached by an
// address of the node, not only by a VIP.
func (d *deriver) target(x Target, host bool) {
	if !d.isLocal(x.Addr) {
		if host {
			d.t.Remote = append(d.t.Remote, x)
		}
		return
	}
	b := LocalBackend{Target: x}
	for _, br := range d.l.Bridges {
		if len(br.MAC) == 6 && slices.ContainsFunc(br.Own, func(p netip.Prefix) bool { return p.Contains(x.Addr) }) {
			copy(b.MAC[:], br.MAC)
			break
		}
	}
	d.t.LocalBackends = append(d.t.LocalBackends, b)
}

func (d *deriver) publishes(v *state.View) {
	t := &d.t
	for _, p := range v.Publishes {
		q := Publish{HostAddr: p.HostAddr, Proto: protoNumber(p.Protocol), HostPort: p.HostPort, Target: netip.AddrPortFrom(p.Target, p.Port)}
		switch {
		case q.Proto == 0:
			d.warn("publish %s: protocol %q: use tcp or udp", p.Key(), p.Protocol)
			continue
		case !p.Target.Is4() || q.HostAddr.Is6():
			d.warn("publish %s: only IPv4 is published", p.Key())
			continue
		case q.HostPort == 0 || p.Port == 0:
			d.warn("publish %s: port 0", p.Key())
			continue
		}
		if q.HostAddr.IsUnspecified() {
			q.HostAddr = netip.Addr{}
		}
		if q.HostAddr.IsLoopback() || !q.HostAddr.IsValid() {
			lo := q
			if !lo.HostAddr.IsValid() {
				lo.HostAddr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			t.Loopback = append(t.Loopback, lo)
		}
		if !q.HostAddr.IsLoopback() {
			if q.HostAddr.IsValid() && len(t.Addrs) > 0 && !slices.Contains(t.Addrs, q.HostAddr) {
				d.warn("publish %s: %s is not an address of this node now", p.Key(), q.HostAddr)
			}
			t.Publishes = append(t.Publishes, q)
			d.target(Target{p.Target, q.Proto, p.Port}, true)
		}
	}
}

// finish sorts and drops duplicates. Where two claim one key, the first by
// name wins, on every node alike.
func (d *deriver) finish() {
	t := &d.t
	byKey := func(s []Service, what string) []Service {
		slices.SortStableFunc(s, func(a, b Service) int { return cmp.Or(compareService(a, b), cmp.Compare(a.Name, b.Name)) })
		return slices.CompactFunc(s, func(b, a Service) bool {
			same := compareService(a, b) == 0
			if same {
				d.warn("%s %d/%s of service %s is taken by service %s", what, b.Port, protoName(b.Proto), b.Name, a.Name)
			}
			return same
		})
	}
	t.Services = byKey(t.Services, "port")
	t.NodePorts = byKey(t.NodePorts, "node port")
	unique := func(p []Publish) []Publish {
		slices.SortStableFunc(p, comparePublish)
		return slices.CompactFunc(p, func(a, b Publish) bool { return comparePublish(a, b) == 0 })
	}
	t.Publishes, t.Loopback = unique(t.Publishes), unique(t.Loopback)
	slices.SortFunc(t.VIPs, netip.Addr.Compare)
	t.VIPs = slices.Compact(t.VIPs)
	slices.SortFunc(t.LocalBackends, func(a, b LocalBackend) int { return compareTarget(a.Target, b.Target) })
	t.LocalBackends = slices.CompactFunc(t.LocalBackends, func(a, b LocalBackend) bool { return a.Target == b.Target })
	slices.SortFunc(t.Remote, compareTarget)
	t.Remote = slices.Compact(t.Remote)
	slices.SortFunc(t.Bridges, func(a, b Bridge) int { return cmp.Compare(a.Name, b.Name) })
	t.Bridges = slices.CompactFunc(t.Bridges, func(a, b Bridge) bool { return a.Name == b.Name })
	slices.Sort(t.Links)
	t.Links = slices.Compact(t.Links)
	t.Masquerade, t.Cluster, t.Local = maximal(t.Masquerade), maximal(t.Cluster), maximal(t.Local)
	slices.SortFunc(t.Addrs, netip.Addr.Compare)
}

// maximal sorts IPv4 prefixes and drops those that another one covers.
func maximal(in []netip.Prefix) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range in {
		if p.IsValid() && p.Addr().Is4() {
			ps = append(ps, p.Masked())
		}
	}
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range ps {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}
