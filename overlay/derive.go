package overlay

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"nodenet/state"
)

// Local is what the overlay must know about this node that no record says.
type Local struct {
	Self        state.NodeID
	Underlay    netip.Addr     // VTEP address and source of plain routes
	UnderlayDev string         // the device that carries it
	UnderlayMTU int            // bytes; 0: 1500
	OnLink      []netip.Prefix // of UnderlayDev
	// ServiceRange is routed to lo for the node's own clients; zero: no route.
	ServiceRange netip.Prefix
	Resolver     netip.Addr // put on lo; zero: none
	// ServiceRange6 is routed to a bridge with an IPv6 address, and Resolver6 is
	// put there: the kernel makes a route to lo a refusal, and addresses of
	// IPv6 on lo have neither a scope nor a label to know them by.
	ServiceRange6 netip.Prefix
	Resolver6     netip.Addr
	Advertise     netip.Addr // source towards ServiceRange for want of a gateway address; zero: Underlay
}

const (
	defaultVXLANPort = 4789
	defaultMTU       = 1500
	maxMTU           = 65535 // of veth and bridge
	minMTU6          = 1280  // of a link that carries IPv6 (RFC 8200 section 5)
	vxlanOverhead4   = 50    // inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20
	vxlanOverhead6   = 70    // the same with IPv6's 40
	// unreachableMetric is the worst metric: anything somebody says about
	// a network's whole prefix goes first.
	unreachableMetric = 1<<32 - 1
)

// BridgeName returns the device name of a network's bridge: its Bridge, or
// "nn-" and its name, shortened with a hash to the kernel's 15 bytes.
func BridgeName(n state.Network) string {
	if n.Bridge != "" {
		return n.Bridge
	}
	return deviceName("nn-", n.Name)
}

// VXLANName returns the device name of a network's VXLAN device.
func VXLANName(network string) string { return deviceName("nv-", network) }

func deviceName(prefix, name string) string {
	const ifnameMax = 15 // IFNAMSIZ less the NUL
	if len(prefix)+len(name) <= ifnameMax {
		return prefix + name
	}
	sum := sha256.Sum256([]byte(name))
	tail := hex.EncodeToString(sum[:3])
	return prefix + name[:ifnameMax-len(prefix)-len(tail)] + tail
}

// derivedMAC makes a stable, locally administered unicast address from words.
func derivedMAC(what, id string) string {
	sum := sha256.Sum256([]byte("nodenet " + what + " " + id))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}

// deriver carries what the steps of Derive share.
type deriver struct {
	v *state.View
	l Local
	p *Plan
}

// Derive computes the plan of node l.Self from a view. It is pure: equal
// arguments give equal plans on every machine.
//
// Routes, neighbours and FDB entries of dead nodes stay, since nobody else can
// serve their blocks; nodes that left are absent from the view.
func Derive(v *state.View, l Local) Plan {
	if l.UnderlayMTU <= 0 {
		l.UnderlayMTU = defaultMTU
	}
	p := Plan{Rev: v.Rev}
	d := deriver{v: v, l: l, p: &p}
	for i := range v.Networks {
		d.network(&v.Networks[i])
	}
	d.node()
	d.node6()
	d.dropDuplicates()
	p.sort()
	return p
}

func (d *deriver) problem(network string, node state.NodeID, fix, format string, a ...any) {
	d.p.Problems = append(d.p.Problems, Problem{Network: network, Node: node, Text: fmt.Sprintf(format, a...), Fix: fix})
}

// mtu is the worst of the ways that a network may use: a network has one MTU
// on all nodes of equal underlay, whatever way a single peer takes.
func (d *deriver) mtu(n *state.Network) int {
	m := d.l.UnderlayMTU
	switch {
	case n.MTU > 0:
		m = n.MTU
	case usesVXLAN(n) && d.l.Underlay.Is6():
		m -= vxlanOverhead6
	case usesVXLAN(n):
		m -= vxlanOverhead4
	}
	return min(m, maxMTU)
}

func usesVXLAN(n *state.Network) bool {
	return n.Overlay == state.OverlayVXLAN || n.Overlay == state.OverlayAuto
}

func (d *deriver) network(n *state.NetworkView) {
	mtu := d.mtu(&n.Network)
	if n.Prefix6.IsValid() && mtu < minMTU6 {
		fix := fmt.Sprintf("write `mtu %d` or more in the network's block", minMTU6)
		if n.MTU == 0 {
			fix = fmt.Sprintf("give the underlay device an MTU of %d or more", minMTU6+d.l.UnderlayMTU-mtu)
		}
		d.problem(n.Name, "", fix,
			"network %s: its MTU is %d, too small for IPv6, which Linux switches off on links below %d", n.Name, mtu, minMTU6)
	}
	bridge := BridgeName(n.Network)
	d.p.Networks = append(d.p.Networks, Network{Name: n.Name, Bridge: bridge, MTU: mtu, Local: n.Local()})
	own := n.Own
	if n.Local() && len(own) == 0 {
		own = []netip.Prefix{n.Prefix}
	}
	own = n.Dual(own)
	src, src6 := d.l.Underlay, netip.Addr{}
	if len(own) > 0 {
		b := Bridge{Name: bridge, Network: n.Name, MTU: mtu, MAC: derivedMAC("bridge", string(d.l.Self)+" "+n.Name),
			Blocks: slices.Clone(own)}
		slices.SortFunc(b.Blocks, comparePrefixes)
		if !n.NoGateway {
			for _, block := range b.Blocks {
				b.Addrs = append(b.Addrs, netip.PrefixFrom(Gateway(n.Network, block), block.Bits()))
			}
			src, src6 = b.Addrs[0].Addr(), b.addr6()
		}
		d.p.Bridges = append(d.p.Bridges, b)
		d.bridgeSysctls(b, n.Prefix.Addr().Is4() && !n.Prefix6.IsValid())
	}
	if n.Local() {
		return
	}
	if src.IsValid() && src.Is4() != n.Prefix.Addr().Is4() {
		src = netip.Addr{}
	}
	d.p.Routes = append(d.p.Routes, Route{Prefix: n.Prefix.Masked(), Type: Unreachable, Metric: unreachableMetric, Network: n.Name})
	if usesVXLAN(&n.Network) {
		d.vxlan(n, mtu)
	}
	if n.Prefix6.IsValid() {
		d.p.Routes = append(d.p.Routes, Route{Prefix: n.Prefix6.Masked(), Type: Unreachable, Metric: unreachableMetric, Network: n.Name})
	}
	d.peers(n, src, src6)
}

// Gateway returns the bridge's address in a block: the network's Gateway when
// it lies in the block, else the block's first address.
func Gateway(n state.Network, block netip.Prefix) netip.Addr {
	for _, g := range []netip.Addr{n.Gateway, n.Twin(n.Gateway)} {
		if g.IsValid() && block.Contains(g) {
			return g
		}
	}
	return block.Masked().Addr().Next()
}

func (d *deriver) vxlan(n *state.NetworkView, mtu int) {
	if !d.l.Underlay.IsValid() {
		d.problem(n.Name, "", "set `underlay` or `advertise` in the node block", "network %s: no underlay address for VXLAN", n.Name)
		return
	}
	port := n.Port
	if port == 0 {
		port = defaultVXLANPort
	}
	v := VXLAN{Name: VXLANName(n.Name), Network: n.Name, MAC: d.l.Self.VTEPMAC().String(), MTU: mtu,
		VNI: n.VNI, Port: port, Local: d.l.Underlay}
	d.p.VXLANs = append(d.p.VXLANs, v)
	d.vxlanSysctls(v)
}

// peers plans the way to each block of the other nodes.
func (d *deriver) peers(n *state.NetworkView, src, src6 netip.Addr) {
	for i := range d.v.Nodes {
		node := &d.v.Nodes[i]
		if node.Self || node.ID == d.l.Self || node.State == state.Left || node.Left {
			continue
		}
		remote := underlayOf(node)
		used, used6 := false, false
		for _, b := range node.Blocks {
			if b.Network != n.Name {
				continue
			}
			block := b.Prefix.Masked()
			if !within(n.Prefix, block) {
				d.problem(n.Name, node.ID, "make the network's prefix equal in all Nodefiles",
					"network %s: %s announces %s, which is outside %s", n.Name, node.Name, block, n.Prefix)
				continue
			}
			if slices.Contains(n.Own, block) {
				d.problem(n.Name, node.ID, "see `nodectl conflicts`; one of the two must give the block up",
					"network %s: %s announces %s, which is this node's own block", n.Name, node.Name, block)
				continue
			}
			if !remote.IsValid() || remote == d.l.Underlay {
				d.problem(n.Name, node.ID, "give each node its own `advertise` or `underlay` address",
					"network %s: %s has no underlay address of its own (%s)", n.Name, node.Name, remote)
				break
			}
			r := Route{Prefix: block, Via: remote, Src: src, Network: n.Name, Node: node.ID, Name: node.Name}
			if !d.choose(n, node, &r) {
				break
			}
			d.p.Routes = append(d.p.Routes, r)
			used = used || r.How == ViaVXLAN
			if r6, ok := d.twinRoute(n, node, r, src6); ok {
				d.p.Routes = append(d.p.Routes, r6)
				used, used6 = used || r6.How == ViaVXLAN, used6 || r6.How == ViaVXLAN
			}
		}
		if used {
			dev, mac := VXLANName(n.Name), vtepMAC(node)
			d.p.Neighbors = append(d.p.Neighbors, Neighbor{Dev: dev, Addr: nextHop(remote, mac), MAC: mac})
			if local := linkLocal(mac); used6 && remote.Is4() && local.IsValid() {
				d.p.Neighbors = append(d.p.Neighbors, Neighbor{Dev: dev, Addr: local, MAC: mac})
			}
			d.p.FDB = append(d.p.FDB, FDBEntry{Dev: dev, MAC: mac, Dst: remote})
		}
	}
}

// choose fills in how a route reaches its node, or reports why it cannot.
func (d *deriver) choose(n *state.NetworkView, node *state.NodeView, r *Route) bool {
	on := d.onLink(node, r.Via)
	switch {
	case n.Overlay == state.OverlayRoutes && !on:
		d.problem(n.Name, node.ID, "set `overlay auto` or `overlay vxlan` for the network",
			"network %s: %s at %s is not on a link of %s, so that a plain route cannot reach it",
			n.Name, node.Name, r.Via, cmp.Or(d.l.UnderlayDev, "this node"))
		return false
	case n.Overlay == state.OverlayVXLAN && !d.l.Underlay.IsValid():
		return false // reported once for the network
	case n.Overlay == state.OverlayVXLAN:
		r.How, r.Reason = ViaVXLAN, "overlay vxlan"
	case n.Overlay == state.OverlayRoutes:
		r.How, r.Reason = ViaRoutes, "overlay routes, on-link on "+d.l.UnderlayDev
	case n.Overlay == state.OverlayAuto && on:
		r.How, r.Reason = ViaRoutes, "auto: on-link on "+d.l.UnderlayDev
	case n.Overlay == state.OverlayAuto:
		r.How, r.Reason = ViaVXLAN, "auto: not on-link"
	default:
		d.problem(n.Name, "", "use vxlan, routes, auto or none", "network %s: overlay %q is not known to this version", n.Name, n.Overlay)
		return false
	}
	if r.How == ViaVXLAN {
		r.Dev, r.Via = VXLANName(n.Name), nextHop(r.Via, vtepMAC(node))
		r.OnLink = r.Via.Is4()
	} else {
		r.Dev = d.l.UnderlayDev
	}
	return true
}

// onLink reports whether this node and a peer see one another on a link. Both
// directions count, so that both nodes choose the same way: with plain routes
// one way and VXLAN the other, strict reverse path filters drop everything.
func (d *deriver) onLink(node *state.NodeView, remote netip.Addr) bool {
	in := func(ps []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if d.l.UnderlayDev == "" || !in(d.l.OnLink, remote) {
		return false
	}
	return len(node.OnLink) == 0 || in(node.OnLink, d.l.Underlay)
}

// node plans what the node needs once: forwarding and its service addresses.
func (d *deriver) node() {
	if len(d.p.Networks) > 0 {
		d.hostSysctls()
	}
	if d.l.Resolver.IsValid() {
		d.p.Addrs = append(d.p.Addrs, LocalAddr{Addr: d.l.Resolver})
	}
	if d.l.ServiceRange.IsValid() {
		d.p.Routes = append(d.p.Routes, Route{Prefix: d.l.ServiceRange.Masked(), Dev: "lo", Src: d.serviceSource()})
	}
}

// serviceSource returns the address from which the node's own clients speak to
// VIPs. It is chosen before DNAT says where the packet goes, so it must suit
// any backend. From the underlay address, answers of another node's workload
// would come back over the underlay without VXLAN, which reverse path filters
// and cloud networks drop: hence an own gateway address, to which every node
// has a route. Towards the world it is masqueraded, where the network is; such
// a network goes first. A node without one takes Advertise or Underlay.
func (d *deriver) serviceSource() netip.Addr {
	v4 := d.l.ServiceRange.Addr().Is4()
	var best netip.Addr
	masqueraded := false
	for i := range d.v.Networks {
		n := &d.v.Networks[i]
		if n.Local() || n.Internal || best.IsValid() && (masqueraded || !n.Masquerade) {
			continue
		}
		for _, b := range d.p.Bridges {
			if b.Network == n.Name && len(b.Addrs) > 0 && b.Addrs[0].Addr().Is4() == v4 {
				best, masqueraded = b.Addrs[0].Addr(), n.Masquerade
			}
		}
	}
	for _, a := range []netip.Addr{best, d.l.Advertise, d.l.Underlay} {
		if a.IsValid() && a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// dropDuplicates settles what only one can have: a prefix one route, a next
// hop one MAC, a MAC one place. Which one wins depends on the claims alone, so
// that all nodes agree, except that of two nodes with one underlay address
// (a replaced disk) the one that lives has it.
func (d *deriver) dropDuplicates() {
	rank := func(id state.NodeID) string {
		for i := range d.v.Nodes {
			if n := &d.v.Nodes[i]; n.ID == id && n.State == state.Alive {
				return "0" + string(id)
			}
		}
		return "1" + string(id)
	}
	slices.SortStableFunc(d.p.Routes, func(a, b Route) int {
		if c := compareRouteKeys(a.key(), b.key()); c != 0 {
			return c
		}
		return cmp.Compare(a.Node, b.Node)
	})
	kept := d.p.Routes[:0]
	for _, r := range d.p.Routes {
		if n := len(kept); n > 0 && kept[n-1].key() == r.key() {
			w := kept[n-1]
			d.problem(r.Network, r.Node, "see `nodectl conflicts`; one of the two must give the block up",
				"%s is announced by %s (used) and %s", r.Prefix, cmp.Or(w.Name, w.Network, "this node"), cmp.Or(r.Name, r.Network))
			continue
		}
		kept = append(kept, r)
	}
	d.p.Routes = kept

	owner := map[string]state.NodeID{} // by VTEP MAC
	for i := range d.v.Nodes {
		owner[vtepMAC(&d.v.Nodes[i])] = d.v.Nodes[i].ID
	}
	best := map[hop]string{}
	for _, n := range d.p.Neighbors {
		h := hop{n.Dev, n.Addr}
		if mac, ok := best[h]; !ok || rank(owner[n.MAC]) < rank(owner[mac]) {
			best[h] = n.MAC
		}
	}
	d.p.Neighbors = slices.DeleteFunc(d.p.Neighbors, func(n Neighbor) bool { return best[hop{n.Dev, n.Addr}] != n.MAC })
	used := map[[2]string]bool{}
	for _, n := range d.p.Neighbors {
		used[[2]string{n.Dev, n.MAC}] = true
	}
	d.p.FDB = slices.DeleteFunc(d.p.FDB, func(f FDBEntry) bool { return !used[[2]string{f.Dev, f.MAC}] })
}

// nextHop returns the next hop, on a VXLAN device, of the routes to the node
// with an underlay address: that address itself, or over IPv6 the link-local
// address of its VTEP's MAC (RFC 4291, appendix A), since the kernel refuses
// an IPv6 next hop that it would reach by another device.
func nextHop(remote netip.Addr, mac string) netip.Addr {
	if local := linkLocal(mac); remote.Is6() && local.IsValid() {
		return local
	}
	return remote
}

// linkLocal returns the link-local address of a MAC; invalid: it is none.
func linkLocal(mac string) netip.Addr {
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// hop is a next hop on a device.
type hop struct {
	dev  string
	addr netip.Addr
}

func underlayOf(n *state.NodeView) netip.Addr {
	if n.Underlay.IsValid() {
		return n.Underlay
	}
	return n.Advertise
}

func vtepMAC(n *state.NodeView) string {
	if len(n.VTEPMAC) == 6 {
		return net.HardwareAddr(n.VTEPMAC).String()
	}
	return n.ID.VTEPMAC().String()
}

func within(outer, inner netip.Prefix) bool {
	return outer.Contains(inner.Addr()) && inner.Bits() >= outer.Bits()
}

func comparePrefixes(a, b netip.Prefix) int {
	return compareRouteKeys(routeKey{prefix: a}, routeKey{prefix: b})
}
