package overlay

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Conntrack forgets tracked connections in the daemon's network namespace.
// It is safe for concurrent use.
type Conntrack struct{}

// Conntrack returns the connection tracking table of the host.
func (o *Overlay) Conntrack() Conntrack { return Conntrack{} }

// Flush deletes the entries whose original destination is dst and port. An
// invalid dst stands for every IPv4 address, :: for every IPv6 address.
func (Conntrack) Flush(proto uint8, dst netip.Addr, port uint16) error {
	f := &netlink.ConntrackFilter{}
	if err := f.AddProtocol(proto); err != nil {
		return fmt.Errorf("flush conntrack: %w", err)
	}
	if err := f.AddPort(netlink.ConntrackOrigDstPort, port); err != nil {
		return fmt.Errorf("flush conntrack of port %d: %w", port, err)
	}
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if dst.Is6() {
		family = netlink.FAMILY_V6
	}
	if dst.IsValid() && !dst.IsUnspecified() {
		if err := f.AddIP(netlink.ConntrackOrigDstIP, net.IP(dst.AsSlice())); err != nil {
			return fmt.Errorf("flush conntrack of %s: %w", dst, err)
		}
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
		return fmt.Errorf("flush conntrack of %s port %d: %w", dst, port, err)
	}
	return nil
}
