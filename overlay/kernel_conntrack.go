package overlay

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Conntrack forgets tracked connections in the daemon's network namespace.
// It is safe for concurrent use.
type Conntrack struct{}

// Conntrack returns the connection tracking table of the host.
func (o *Overlay) Conntrack() Conntrack { return Conntrack{} }

// Delete deletes the flows of a protocol and an IP version for which stale says
// so, and returns how many there were. dst is where the first packet was sent,
// backend is who answers: the same where nothing was translated. All flows of
// the version are listed once.
func (Conntrack) Delete(proto uint8, ipv6 bool, stale func(dst, backend netip.AddrPort) bool) (int, error) {
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if ipv6 {
		family = netlink.FAMILY_V6
	}
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowFilter{proto, stale})
	if err != nil {
		return int(n), fmt.Errorf("delete conntrack entries of protocol %d: %w", proto, err)
	}
	return int(n), nil
}

type flowFilter struct {
	proto uint8
	stale func(dst, backend netip.AddrPort) bool
}

func (f flowFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if c.Forward.Protocol != f.proto {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(c.Forward.DstIP)
	backend, ok2 := netip.AddrFromSlice(c.Reverse.SrcIP)
	return ok1 && ok2 && f.stale(netip.AddrPortFrom(dst.Unmap(), c.Forward.DstPort), netip.AddrPortFrom(backend.Unmap(), c.Reverse.SrcPort))
}
