package node

import (
	"net/netip"
	"slices"
	"strings"

	"nodenet/api"
	"nodenet/state"
)

// twinOf returns an endpoint's IPv6 address with the length of its block's
// twin, and the gateway there; invalid: it has none.
func twinOf(nw *state.Network, ep *state.Endpoint) (netip.Prefix, netip.Addr) {
	if len(ep.Addrs) < 2 || ep.Addrs[1] != nw.Twin(ep.Addrs[0]) {
		return netip.Prefix{}, netip.Addr{}
	}
	return netip.PrefixFrom(ep.Addrs[1], 128-(32-ep.PrefixLen)), nw.Twin(ep.Gateway)
}

// wanted returns the IPv4 address that stands for what was asked for; invalid:
// any. A wanted IPv6 address says which one, and must not say another one than
// the wanted IPv4 address.
func wanted(nw *state.Network, r *api.AttachRequest) (netip.Addr, error) {
	if !r.IP6.IsValid() {
		return r.IP, nil
	}
	if !nw.Prefix6.IsValid() {
		return r.IP, invalid("address %s: network %s has no IPv6 prefix: write one after %s in the Nodefile", r.IP6, nw.Name, nw.Prefix)
	}
	twin := state.Untwin(nw.Prefix, nw.Prefix6, r.IP6)
	switch {
	case !twin.IsValid():
		first := nw.Prefix.Masked().Addr().Next()
		return twin, invalid("address %s: stands for no IPv4 address of network %s, where %s has %s and so on: ask for one of those of %s",
			r.IP6, nw.Name, first, nw.Twin(first), nw.Prefix)
	case r.IP.IsValid() && r.IP != twin:
		return twin, invalid("addresses %s and %s: are not those of one workload: %s goes with %s, ask for these or for one of them", r.IP, r.IP6, twin, r.IP6)
	}
	return twin, nil
}

// aimAt returns the address of an endpoint that a port published on an address
// of the host leads to: the one of its IP version. A port on every address and
// one on loopback lead to the first.
func aimAt(ep *state.Endpoint, host netip.Addr) (netip.Addr, error) {
	if len(ep.Addrs) == 0 {
		return netip.Addr{}, nil // of a mode that has nothing published
	}
	host = host.Unmap()
	if !host.IsValid() || host.IsLoopback() || host.IsUnspecified() {
		return ep.Addrs[0], nil
	}
	if i := slices.IndexFunc(ep.Addrs, func(a netip.Addr) bool { return a.Is4() == host.Is4() }); i >= 0 {
		return ep.Addrs[i], nil
	}
	return netip.Addr{}, invalid("publish on %s: %s has no address of that IP version (%s): publish on another address of the host, or give network %s an IPv6 prefix",
		host, ep.ID, strings.Join(texts(ep.Addrs), " "), ep.Network)
}

func texts(list []netip.Addr) (out []string) {
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// aim is aimAt for a port whose target is an address: of a network that has
// IPv6 too, it leads to the other address of the same workload.
func (n *Node) aim(sn *state.Snapshot, p state.Publish) (netip.Addr, error) {
	h, t := p.HostAddr, p.Target
	if !h.IsValid() || h.IsLoopback() || h.Is4() == t.Is4() {
		return t, nil
	}
	for rec, ep := range state.All[state.Endpoint](sn) {
		if rec.ID.Owner == n.self && slices.Contains(ep.Addrs, t) {
			return aimAt(ep, h)
		}
	}
	for rec, nw := range state.All[state.Network](sn) {
		if rec.ID.Owner != n.self {
			continue
		}
		other := nw.Twin(t)
		if t.Is6() {
			other = state.Untwin(nw.Prefix, nw.Prefix6, t)
		}
		if other.IsValid() {
			return other, nil
		}
	}
	return t, invalid("publish %s: %s and the target %s are of different IP versions: write two of one version", p.Key(), h, t)
}
