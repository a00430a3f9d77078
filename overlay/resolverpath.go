package overlay

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a tracked connection, as its first packet was.
type Flow struct {
	Proto    uint8
	Src, Dst netip.AddrPort
	// Answers come from here; other than Dst, the destination was translated.
	From netip.AddrPort
}

// Flows returns the tracked connections to a destination in the caller's
// network namespace. It reads the whole table.
func (Conntrack) Flows(dst netip.AddrPort) ([]Flow, error) {
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if dst.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	all, err := dump(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, family)
	})
	if err != nil {
		return nil, fmt.Errorf("list conntrack: %w", err)
	}
	var out []Flow
	for _, f := range all {
		at := func(ip net.IP, port uint16) netip.AddrPort { return netip.AddrPortFrom(addrOf(ip), port) }
		to := at(f.Forward.DstIP, f.Forward.DstPort)
		if to != dst {
			continue
		}
		out = append(out, Flow{
			Proto: f.Forward.Protocol, Src: at(f.Forward.SrcIP, f.Forward.SrcPort), Dst: to,
			From: at(f.Reverse.SrcIP, f.Reverse.SrcPort),
		})
	}
	return out, nil
}

// IsLocal reports whether the routing table delivers an address on this host,
// and by which device.
func IsLocal(a netip.Addr) (local bool, dev string, err error) {
	routes, err := netlink.RouteGet(net.IP(a.AsSlice()))
	if err != nil {
		return false, "", fmt.Errorf("look up route to %s: %w", a, err)
	}
	if len(routes) == 0 {
		return false, "", nil
	}
	if l, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
		dev = l.Attrs().Name
	}
	return routes[0].Type == unix.RTN_LOCAL, dev, nil
}
