package lb

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// IP protocol numbers (IANA) of what is balanced.
const (
	ICMP   uint8 = 1
	TCP    uint8 = 6
	UDP    uint8 = 17
	SCTP   uint8 = 132
	ICMPv6 uint8 = 58
)

// MaxSlots is how many slots a port has at most, but for consistent tables:
// one chain a number of slots. So many backends of a port are used.
const MaxSlots = 256

// Local is what a node knows of itself and the cluster's records do not say.
type Local struct {
	Self     state.NodeID
	Range    netip.Prefix // service range; invalid: no virtual addresses
	Resolver netip.Addr   // node-local DNS address, inside or outside Range; invalid: none
	// Range6 and Resolver6 are the same for IPv6.
	Range6    netip.Prefix
	Resolver6 netip.Addr
	// NodeAddrs are the addresses of this host. They are not programmed (the
	// kernel asks its own routing table); they serve warnings and Trace.
	NodeAddrs []netip.Addr
	Bridges   []BridgeInfo
	// ClusterPrefixes are the pod ranges of all networks that span nodes, and
	// the service ranges. Nothing is masqueraded between them.
	ClusterPrefixes []netip.Prefix
	// Links are further devices of ours (VXLAN): leaving by them is never
	// leaving the cluster. The names of Bridges need not be repeated.
	Links []string
	// NodePortFirst and NodePortLast bound the node ports that are used; both
	// zero: no bound.
	NodePortFirst, NodePortLast uint16
	// NoSCTP says that the kernel does not track SCTP, so that it cannot be
	// translated; see TracksSCTP.
	NoSCTP bool
}

// BridgeInfo is a network's bridge on this node.
type BridgeInfo struct {
	Network    string
	Name       string           // device
	MAC        net.HardwareAddr // of the device; empty: not there yet, replies of siblings are not lifted
	Prefix     netip.Prefix     // of the network
	Prefix6    netip.Prefix     // its IPv6 prefix; invalid: IPv4 only
	Own        []netip.Prefix   // the part of both that is on this node
	Masquerade bool
	Internal   bool
}

// Table is what the kernel should hold at one revision. It is made by Derive
// and immutable afterwards; all slices are sorted and without duplicates.
type Table struct {
	Rev                 uint64
	Range, Range6       netip.Prefix
	Resolver, Resolver6 netip.Addr
	// VIPs are the virtual addresses that some service has, with or without
	// ready backends: unknown ports there are refused, other addresses of
	// the ranges are dropped.
	VIPs          []netip.Addr
	External      []netip.Addr // addresses outside of the ranges on which services answer
	Services      []Service
	NodePorts     []Service
	Publishes     []Publish // loopback ones excluded
	Loopback      []Publish // published on 127.0.0.0/8 and ::1 by the user-space listener
	Masquerade    []netip.Prefix
	Cluster       []netip.Prefix
	Local         []netip.Prefix // where local backends live
	LocalBackends []LocalBackend
	Remote        []Target // targets of node and published ports that are not on this node
	Sticky        []Target // backends that clients keep
	Bridges       []Bridge
	routes        []Bridge // what is behind which bridge, for Trace
	Links         []string // devices of ours, bridges included
	Tunnels       []string // those of them that are no bridges
	Addrs         []netip.Addr
	// Networks are all that this node knows, with the names of their peers.
	Networks []NetworkInfo
	// Warnings say what was left out and why, one line each.
	Warnings []string

	policy             policySets
	services, backends int      // for people
	made               chainset // chains that exist already
}

// Service is one port of a service on one of its addresses, or one node port,
// with its backends, all of one version.
type Service struct {
	Name     string     // "<namespace>/<name>"
	VIP      netip.Addr // or an external address; invalid: a node port of IPv4; ::: one of IPv6
	Proto    uint8
	Port     uint16
	Last     uint16           // last port of a range, whose backends listen on the same ports; 0: one port
	Backends []netip.AddrPort // the slots; of a range with its first port
	Rule     class            // how a slot is found and what is asked before; without slots: what becomes of clients
	Affinity uint32           // for how many seconds a client keeps its backend; 0: it does not
	// Sources are the clients that may use it, with fromSome in Rule; HostAddrs
	// the host's addresses on which a node port answers, with onSome.
	Sources, HostAddrs []netip.Prefix
	// Lasting are the backends whose flows go on, draining ones included and, of
	// SCTP, silent ones; Dead are those whose flows are ended. They are sorted.
	Lasting, Dead []netip.AddrPort
}

// Publish is a published port of the node's own addresses.
type Publish struct {
	HostAddr netip.Addr // invalid: every local IPv4 address; ::: every local IPv6 address
	Proto    uint8
	HostPort uint16
	Target   netip.AddrPort
	// Implied is set of those on loopback that nobody named: they come with
	// a port of every address, and without the address there is no port.
	Implied bool
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
	Name            string
	Prefix, Prefix6 netip.Prefix
	Internal        bool
}

func (b *Bridge) prefix(v Version) netip.Prefix {
	return [...]netip.Prefix{V4: b.Prefix, V6: b.Prefix6}[v]
}

// serviceRange and resolver are those of a version; invalid: none.
func (t *Table) serviceRange(v Version) netip.Prefix {
	return [...]netip.Prefix{V4: t.Range, V6: t.Range6}[v]
}

func (t *Table) resolver(v Version) netip.Addr {
	return [...]netip.Addr{V4: t.Resolver, V6: t.Resolver6}[v]
}

// NetworkInfo is a network as isolation needs it: networks reach one another
// when one of the two has the other as a peer.
type NetworkInfo struct {
	Name   string
	Prefix [len(versions)]netip.Prefix
	Peers  []string
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
	case "sctp":
		return SCTP
	}
	return 0
}

func protoName(p uint8) string {
	switch p {
	case ICMP:
		return "icmp"
	case ICMPv6:
		return "ipv6-icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

// Derive says what this node's kernel should hold for a view. It is pure: the
// same arguments give an equal Table. What cannot be done is listed in Warnings.
//
// It looks at every service. LB looks at what changed only, see book.
func Derive(v *state.View, l Local) Table {
	sc := newScope(v, l)
	t := sc.frame(v.Rev)
	for s := range v.Services() {
		t.include(sc, sc.service(v, s))
	}
	t.include(sc, sc.published(v))
	t.finish()
	t.policy = newPolicyBook(v, sc).sets()
	return t
}

// include adds a part.
func (t *Table) include(sc *scope, p *part) {
	t.VIPs = append(t.VIPs, p.vips...)
	t.External = append(t.External, p.externals...)
	t.Sticky = append(t.Sticky, p.sticky...)
	if len(p.vips) > 0 {
		t.services++
	}
	t.backends += p.backends
	t.Services = append(t.Services, p.services...)
	t.NodePorts = append(t.NodePorts, p.nodePorts...)
	t.Publishes = append(t.Publishes, p.publishes...)
	t.Loopback = append(t.Loopback, p.loopback...)
	t.Warnings = append(t.Warnings, p.warnings...)
	for _, x := range p.targets {
		switch {
		case sc.isLocal(x.Addr):
			t.LocalBackends = append(t.LocalBackends, sc.localBackend(x.Target))
		case x.host:
			t.Remote = append(t.Remote, x.Target)
		}
	}
}

// finish sorts and drops duplicates. Where two claim one key, the first by
// name wins, on every node alike.
func (t *Table) finish() {
	told := make(map[string]bool) // both versions would say the same
	byKey := func(s []Service) []Service {
		slices.SortStableFunc(s, func(a, b Service) int { return cmp.Or(compareService(a, b), strings.Compare(a.Name, b.Name)) })
		out := s[:0]
		for i := range s {
			if n := len(out); n > 0 && compareService(out[n-1], s[i]) == 0 {
				if w := taken(&out[n-1], &s[i]); !told[w] {
					told[w] = true
					t.Warnings = append(t.Warnings, w)
				}
				continue
			}
			out = append(out, s[i])
		}
		return out
	}
	t.Services, t.NodePorts = byKey(t.Services), byKey(t.NodePorts)
	var ranges []*Service
	for i := range t.Services {
		if t.Services[i].Last != 0 {
			ranges = append(ranges, &t.Services[i])
		}
	}
	if lost, warnings := overlaps(ranges); len(lost) > 0 {
		t.Warnings = append(t.Warnings, warnings...)
		out := make([]Service, 0, len(t.Services))
		for i := range t.Services {
			if !lost[&t.Services[i]] {
				out = append(out, t.Services[i])
			}
		}
		t.Services = out
	}
	slices.SortFunc(t.VIPs, netip.Addr.Compare)
	t.VIPs = slices.Compact(t.VIPs)
	slices.SortFunc(t.External, netip.Addr.Compare)
	t.External = slices.Compact(t.External)
	slices.SortFunc(t.Sticky, compareTarget)
	t.Sticky = slices.Compact(t.Sticky)
	slices.SortFunc(t.LocalBackends, func(a, b LocalBackend) int { return compareTarget(a.Target, b.Target) })
	t.LocalBackends = slices.CompactFunc(t.LocalBackends, func(a, b LocalBackend) bool { return a.Target == b.Target })
	slices.SortFunc(t.Remote, compareTarget)
	t.Remote = slices.Compact(t.Remote)
}

// taken says that a port is another service's.
func taken(winner, loser *Service) string {
	what := "port"
	if loser.nodePort() {
		what = "node port"
	}
	return fmt.Sprintf("%s %d/%s of service %s is taken by service %s", what, loser.Port, protoName(loser.Proto), loser.Name, winner.Name)
}

// maximal sorts prefixes, IPv4 first, and drops those that another one covers.
func maximal(in []netip.Prefix) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range in {
		if p.IsValid() {
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
