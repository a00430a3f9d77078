package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// Plan is everything the overlay should have in the kernel of this node. It
// is pure data, comparable with go-cmp; Derive makes it.
type Plan struct {
	Rev       uint64 // of the View it was derived from
	Networks  []Network
	Bridges   []Bridge
	VXLANs    []VXLAN
	Routes    []Route
	Neighbors []Neighbor
	FDB       []FDBEntry
	Addrs     []LocalAddr
	Sysctls   []Sysctl
	// Problems are wishes of the cluster's tables that cannot be fulfilled.
	// The rest of the plan stands without them.
	Problems []Problem
}

// Network is what the plan makes of a network of the view, whether or not
// this node has a block of it.
type Network struct {
	Name   string
	Bridge string // device name
	MTU    int    // bytes, of bridge, VXLAN device and attachments
	Local  bool
}

// Bridge is a network's bridge.
type Bridge struct {
	Name    string
	Network string
	MAC     string // given in the create request, so that udev leaves it alone
	MTU     int
	Addrs   []netip.Prefix // gateway addresses with the prefix length of their block, perhaps the resolver's IPv6 address
	Blocks  []netip.Prefix // own blocks and their twins, parallel to the first Addrs unless there is no gateway
}

// VXLAN is a network's VXLAN device: no learning, no address, no flooding.
type VXLAN struct {
	Name    string
	Network string
	MAC     string // of this node's VTEP
	MTU     int
	VNI     uint32
	Port    uint16 // UDP
	Local   netip.Addr
}

// Route types.
const (
	Unicast     = "" // the zero value
	Unreachable = "unreachable"
)

// Ways to reach a block.
const (
	ViaVXLAN  = "vxlan"
	ViaRoutes = "routes"
	ViaLocal  = "local"
)

// Route is a route of protocol 78 in the main table. The fields up to Metric
// are what the kernel holds, the rest says why.
type Route struct {
	Prefix netip.Prefix
	Type   string     // Unicast or Unreachable
	Via    netip.Addr // next hop; zero: on the device itself
	Dev    string     // empty for Unreachable
	OnLink bool       // the next hop is on the device though no prefix says so
	Src    netip.Addr // preferred source address; zero: the kernel's choice
	Metric uint32

	Network string
	Node    state.NodeID // whose block it is; empty: not a peer's
	Name    string       // of the node
	How     string       // ViaVXLAN, ViaRoutes; empty: not a peer's
	Reason  string       // why this way
}

// Neighbor is a permanent neighbour entry of a VXLAN device: the next hop of a
// node's routes (its underlay address; over IPv6 a link-local one) and its
// VTEP's MAC.
type Neighbor struct {
	Dev  string
	Addr netip.Addr
	MAC  string
}

// FDBEntry says to which underlay address a VXLAN device sends frames for a MAC.
type FDBEntry struct {
	Dev string
	MAC string
	Dst netip.Addr
}

// LocalAddr is an address on lo, with scope host: with global scope the
// kernel would choose it as a source address.
type LocalAddr struct {
	Addr netip.Addr
}

// Sysctl is a setting below /proc/sys.
type Sysctl struct {
	Path  string // relative, with slashes: "net/ipv4/ip_forward"
	Value string
	// Dev is the own device that the setting belongs to. Empty: it is the
	// host's, and the former value is recorded before the first change.
	Dev string
	// From and Before, if set, are conditions: only the value From is changed,
	// and only while the setting of path Before, also planned, is "0".
	From, Before string
}

// applies reports whether a setting is to be changed, of those observed.
func (s Sysctl) applies(have map[string]string) bool {
	now, ok := have[s.Path]
	return ok && now != s.Value && (s.From == "" || now == s.From) && (s.Before == "" || have[s.Before] == "0")
}

// Problem is something that the plan cannot do, with what to do about it.
type Problem struct {
	Network string
	Node    state.NodeID
	Text    string
	Fix     string
}

func (b Bridge) add() string {
	return fmt.Sprintf("ip link add %s address %s mtu %d alias %s%s type bridge mcast_snooping 0",
		b.Name, b.MAC, b.MTU, AliasPrefix, b.Network)
}

func (v VXLAN) add() string {
	return fmt.Sprintf("ip link add %s address %s mtu %d alias %s%s type vxlan id %d dstport %d local %s nolearning",
		v.Name, v.MAC, v.MTU, AliasPrefix, v.Network, v.VNI, v.Port, v.Local)
}

// spec is the route as iproute2 writes it, without the verb.
func (r Route) spec() string {
	var b strings.Builder
	if r.Type != Unicast {
		b.WriteString(r.Type + " ")
	}
	b.WriteString(r.Prefix.String())
	if r.Via.IsValid() {
		b.WriteString(" via ")
		if r.Via.Is6() && r.Prefix.Addr().Is4() {
			b.WriteString("inet6 ")
		}
		b.WriteString(r.Via.String())
	}
	if r.Dev != "" {
		b.WriteString(" dev " + r.Dev)
	}
	if r.OnLink {
		b.WriteString(" onlink")
	}
	fmt.Fprintf(&b, " proto %d", Protocol)
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.Src.IsValid() {
		b.WriteString(" src " + r.Src.String())
	}
	return b.String()
}

func (n Neighbor) spec() string {
	return fmt.Sprintf("%s lladdr %s dev %s nud permanent", n.Addr, n.MAC, n.Dev)
}

func (f FDBEntry) spec() string {
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Dev, f.Dst)
}

func (a LocalAddr) spec() string {
	return fmt.Sprintf("%s dev lo scope host label %s", netip.PrefixFrom(a.Addr, a.Addr.BitLen()), LoLabel)
}

func (s Sysctl) spec() string { return s.Path + "=" + s.Value }

// String prints the plan as the shell commands that would build it from
// nothing, in an order that would work; problems come as comments. The text
// is sorted and stable.
func (p Plan) String() string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	sysctls := func(dev string) {
		for _, s := range p.Sysctls {
			if s.Dev == dev {
				line("sysctl -w %s", s.spec())
			}
		}
	}
	sysctls("")
	for _, br := range p.Bridges {
		line("%s", br.add())
		sysctls(br.Name)
		for _, a := range br.Addrs {
			line("ip addr add %s dev %s", a, br.Name)
		}
		line("ip link set %s up", br.Name)
	}
	for _, v := range p.VXLANs {
		line("%s", v.add())
		sysctls(v.Name)
		line("ip link set %s up", v.Name)
	}
	for _, a := range p.Addrs {
		line("ip addr add %s", a.spec())
	}
	for _, n := range p.Neighbors {
		line("ip neigh replace %s", n.spec())
	}
	for _, f := range p.FDB {
		line("bridge fdb replace %s", f.spec())
	}
	for _, r := range p.Routes {
		s := "ip route replace " + r.spec()
		if r.Node != "" {
			s += fmt.Sprintf("  # %s: %s", r.Name, r.Reason)
		}
		line("%s", s)
	}
	for _, pr := range p.Problems {
		line("# problem: %s; %s", pr.Text, pr.Fix)
	}
	return b.String()
}

// sort puts every list in its canonical order.
func (p *Plan) sort() {
	by := func(a, b string) int { return strings.Compare(a, b) }
	slices.SortFunc(p.Networks, func(a, b Network) int { return by(a.Name, b.Name) })
	slices.SortFunc(p.Bridges, func(a, b Bridge) int { return by(a.Name, b.Name) })
	slices.SortFunc(p.VXLANs, func(a, b VXLAN) int { return by(a.Name, b.Name) })
	slices.SortFunc(p.Routes, func(a, b Route) int { return compareRouteKeys(a.key(), b.key()) })
	slices.SortFunc(p.Neighbors, func(a, b Neighbor) int {
		if d := by(a.Dev, b.Dev); d != 0 {
			return d
		}
		return a.Addr.Compare(b.Addr)
	})
	slices.SortFunc(p.FDB, func(a, b FDBEntry) int {
		if d := by(a.Dev, b.Dev); d != 0 {
			return d
		}
		return a.Dst.Compare(b.Dst)
	})
	slices.SortFunc(p.Addrs, func(a, b LocalAddr) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(p.Sysctls, func(a, b Sysctl) int {
		if (a.Before == "") != (b.Before == "") {
			return by(b.Before, a.Before) // before the one that it looks at
		}
		return by(a.Path, b.Path)
	})
	slices.SortFunc(p.Problems, func(a, b Problem) int {
		return by(a.Network+" "+a.Text, b.Network+" "+b.Text)
	})
}

// equal reports whether two plans want the same, whatever their revisions.
func (p *Plan) equal(q *Plan) bool {
	return slices.Equal(p.Networks, q.Networks) &&
		slices.EqualFunc(p.Bridges, q.Bridges, func(a, b Bridge) bool {
			return a.Name == b.Name && a.Network == b.Network && a.MAC == b.MAC && a.MTU == b.MTU &&
				slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Blocks, b.Blocks)
		}) &&
		slices.Equal(p.VXLANs, q.VXLANs) && slices.Equal(p.Routes, q.Routes) &&
		slices.Equal(p.Neighbors, q.Neighbors) && slices.Equal(p.FDB, q.FDB) &&
		slices.Equal(p.Addrs, q.Addrs) && slices.Equal(p.Sysctls, q.Sysctls) && slices.Equal(p.Problems, q.Problems)
}

// peers returns how many other nodes the plan reaches.
func (p *Plan) peers() int {
	seen := map[state.NodeID]bool{}
	for _, r := range p.Routes {
		if r.Node != "" {
			seen[r.Node] = true
		}
	}
	return len(seen)
}

// peerRoutes returns how many blocks of other nodes the plan routes.
func (p *Plan) peerRoutes() int {
	n := 0
	for _, r := range p.Routes {
		if r.Node != "" {
			n++
		}
	}
	return n
}

// routeKey is what the kernel tells routes of one table apart by.
type routeKey struct {
	prefix netip.Prefix
	metric uint32
}

func (r Route) key() routeKey { return routeKey{r.Prefix, r.Metric} }

func compareRouteKeys(a, b routeKey) int {
	if d := a.prefix.Addr().Compare(b.prefix.Addr()); d != 0 {
		return d
	}
	if d := a.prefix.Bits() - b.prefix.Bits(); d != 0 {
		return d
	}
	switch {
	case a.metric < b.metric:
		return -1
	case a.metric > b.metric:
		return 1
	}
	return 0
}

// inKernel is the route without what the kernel does not know.
func (r Route) inKernel() Route {
	return Route{Prefix: r.Prefix, Type: r.Type, Via: r.Via, Dev: r.Dev, OnLink: r.OnLink, Src: r.Src, Metric: r.Metric}
}
