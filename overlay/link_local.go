package overlay

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ObserveLocal finds the device that carries the address want, or with a zero
// want the source address of the default route, or without one the only
// address that the host has, in the network namespace of
// the calling thread. It fills Underlay, UnderlayDev, UnderlayMTU and OnLink
// and waits for nothing: a host whose address has yet to come gets an error
// and may ask again.
func ObserveLocal(want netip.Addr) (Local, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return Local{}, fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Local{}, fmt.Errorf("list addresses: %w", err)
	}
	dev := 0
	if want = want.Unmap(); !want.IsValid() {
		if want, dev, err = defaultSource(addrs); err != nil {
			return Local{}, err
		}
	}
	l := Local{Underlay: want}
	for _, a := range addrs {
		if addrOf(a.IP) == want && (dev == 0 || dev == a.LinkIndex) {
			dev = a.LinkIndex
			break
		}
	}
	link, ok := byIndex[dev]
	if !ok {
		return Local{}, fmt.Errorf("find the device with the address %s: none has it; set `advertise` in the node block to an address of this host", want)
	}
	l.UnderlayDev, l.UnderlayMTU = link.Attrs().Name, link.Attrs().MTU
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		return l, nil // nobody else is on it
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if ok && a.LinkIndex == dev && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() && !slices.Contains(l.OnLink, p.Masked()) {
			l.OnLink = append(l.OnLink, p.Masked())
		}
	}
	slices.SortFunc(l.OnLink, comparePrefixes)
	return l, nil
}

// defaultSource returns the source address and device of the best default
// route, IPv4 before IPv6.
func defaultSource(addrs []netlink.Addr) (netip.Addr, int, error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return netip.Addr{}, 0, fmt.Errorf("list routes: %w", err)
		}
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
			p, ok := netip.Prefix{}, r.Dst == nil
			if r.Dst != nil {
				p, ok = prefixOf(r.Dst)
			}
			return !ok || p.Bits() > 0 || r.Type != unix.RTN_UNICAST || r.Protocol == Protocol
		})
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
		for _, r := range routes {
			dev := r.LinkIndex
			if dev == 0 && len(r.MultiPath) > 0 {
				dev = r.MultiPath[0].LinkIndex
			}
			if src := addrOf(r.Src); src.IsValid() {
				return src, dev, nil
			}
			for _, a := range addrs {
				ip := addrOf(a.IP)
				if a.LinkIndex == dev && a.Scope == unix.RT_SCOPE_UNIVERSE && ip.Is4() == (family == unix.AF_INET) {
					return ip, dev, nil
				}
			}
		}
	}
	return soleAddress(addrs)
}

// soleAddress stands in for the default route that an isolated network may
// lack: when the host has just one address, there is nothing to choose.
func soleAddress(addrs []netlink.Addr) (netip.Addr, int, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("list links: %w", err)
	}
	skip := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		skip[a.Index] = a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 || strings.HasPrefix(a.Alias, AliasPrefix)
	}
	var found []netlink.Addr
	for _, a := range addrs {
		if ip := addrOf(a.IP); ip.Is4() && a.Scope == unix.RT_SCOPE_UNIVERSE && !skip[a.LinkIndex] {
			found = append(found, a)
		}
	}
	switch len(found) {
	case 0:
		return netip.Addr{}, 0, fmt.Errorf("find this node's address: no interface has one; give one an address, or set `advertise` in the node block")
	case 1:
		return addrOf(found[0].IP), found[0].LinkIndex, nil
	}
	return netip.Addr{}, 0, fmt.Errorf("find this node's address: there is no default route and %s and %s to choose from; set `advertise` in the node block",
		found[0].IP, found[1].IP)
}

// HostRoute is a route of the host that is not ours.
type HostRoute struct {
	Prefix   netip.Prefix
	Dev      string // empty when the route has none
	Protocol string // "kernel", "static", "dhcp", … or a number
}

// HostRoutes returns the unicast routes of the main table in the network
// namespace of the calling thread, without default routes, without those of
// protocol 78 and without those on our links: what a network's prefix must not
// overlap.
func HostRoutes() ([]HostRoute, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	byIndex, ours := map[int]string{}, map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		byIndex[a.Index] = a.Name
		ours[a.Index] = strings.HasPrefix(a.Alias, AliasPrefix)
	}
	var out []HostRoute
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, n := range routes {
			if n.Dst == nil || n.Type != unix.RTN_UNICAST || n.Protocol == Protocol || ours[n.LinkIndex] {
				continue
			}
			p, ok := prefixOf(n.Dst)
			if !ok || p.Bits() == 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
				continue
			}
			out = append(out, HostRoute{Prefix: p, Dev: byIndex[n.LinkIndex], Protocol: n.Protocol.String()})
		}
	}
	slices.SortFunc(out, func(a, b HostRoute) int {
		return cmp.Or(comparePrefixes(a.Prefix, b.Prefix), cmp.Compare(a.Dev, b.Dev))
	})
	return out, nil
}
