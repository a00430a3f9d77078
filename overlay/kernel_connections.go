package overlay

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Connection is a tracked connection whose destination was translated on this host.
type Connection struct {
	Proto  uint8
	Dest   netip.AddrPort // as the client has it
	Target netip.AddrPort // who answers
}

// Translated lists the connections whose destination this host translated and
// that are not over: TCP that neither side has closed, and whatever else the
// table has. It dumps the whole table (ctnetlink knows no filter for who
// answers), so it is for questions of people, not for the hot path.
func (Conntrack) Translated() ([]Connection, error) {
	var out []Connection
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			return nil, fmt.Errorf("list conntrack: %w", err)
		}
		for _, f := range all {
			dest, ok1 := addrPort(f.Forward.DstIP, f.Forward.DstPort)
			target, ok2 := addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort)
			if !ok1 || !ok2 || dest == target || over(f) {
				continue
			}
			out = append(out, Connection{f.Forward.Protocol, dest, target})
		}
	}
	return out, nil
}

// over reports a TCP connection that is closed and only remembered.
func over(f *netlink.ConntrackFlow) bool {
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && (tcp.State == nl.TCP_CONNTRACK_LAST_ACK || tcp.State == nl.TCP_CONNTRACK_TIME_WAIT || tcp.State == nl.TCP_CONNTRACK_CLOSE)
}

func addrPort(ip []byte, port uint16) (netip.AddrPort, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port), ok
}
