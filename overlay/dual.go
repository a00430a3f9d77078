package overlay

import (
	"net/netip"

	"nodenet/state"
)

// metric6 is what the kernel gives a route of IPv6 that names no metric
// (IP6_RT_PRIO_USER): it is named, so that what is observed is what was planned.
const metric6 = 1024

// addr6 returns the bridge's first IPv6 address; invalid: it has none.
func (b *Bridge) addr6() netip.Addr {
	for _, a := range b.Addrs {
		if a.Addr().Is6() {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// twinRoute makes the route to the IPv6 part of another node's block from the
// route to the block. By VXLAN the next hop is the link-local address of the
// node's VTEP. A plain route needs an underlay of IPv6: the kernel takes an
// IPv6 next hop for an IPv4 prefix, but no IPv4 next hop for an IPv6 one. A
// network that may use VXLAN uses it for want of that.
func (d *deriver) twinRoute(n *state.NetworkView, node *state.NodeView, r Route, src netip.Addr) (Route, bool) {
	out := r
	out.Prefix, out.Src, out.Metric = n.TwinPrefix(r.Prefix), src, metric6
	if !out.Prefix.IsValid() {
		return out, false
	}
	if r.How == ViaRoutes && r.Via.Is4() {
		if !usesVXLAN(&n.Network) {
			d.problem(n.Name, node.ID, "give the nodes IPv6 `underlay` addresses, or set `overlay auto` or `overlay vxlan` for the network",
				"network %s: no plain route to %s of %s, which has an IPv4 underlay address", n.Name, out.Prefix, node.Name)
			return out, false
		}
		out.How, out.Reason = ViaVXLAN, "auto: no IPv6 underlay address"
	}
	if out.How == ViaVXLAN {
		out.Dev, out.Via, out.OnLink = VXLANName(n.Name), linkLocal(vtepMAC(node)), false
	}
	return out, out.Via.IsValid()
}

// node6 plans what the node needs once for IPv6: a way to the service
// addresses for its own clients, and the resolver's address.
func (d *deriver) node6() {
	for i := range d.p.Bridges {
		b := &d.p.Bridges[i]
		src := b.addr6()
		if !src.IsValid() {
			continue
		}
		if d.l.Resolver6.IsValid() {
			b.Addrs = append(b.Addrs, netip.PrefixFrom(d.l.Resolver6, 128))
		}
		if d.l.ServiceRange6.IsValid() {
			d.p.Routes = append(d.p.Routes, Route{Prefix: d.l.ServiceRange6.Masked(), Dev: b.Name, Src: src, Metric: metric6})
		}
		return
	}
}

// Serves6 reports whether the plan has the resolver's IPv6 address somewhere.
func (p *Plan) Serves6(resolver netip.Addr) bool {
	for i := range p.Bridges {
		for _, a := range p.Bridges[i].Addrs {
			if a.Addr() == resolver {
				return true
			}
		}
	}
	return false
}
