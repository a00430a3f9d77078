package lb

import "net/netip"

// publish adds a published port and those of its range up to last, if that is
// more. Each is an element of its own: a range as one element could not shift
// the port by as much as the host's port is from the first.
func (p *part) publish(q Publish, last uint16) {
	for i := range int(max(q.HostPort, last)) - int(q.HostPort) + 1 {
		one := q
		one.HostPort += uint16(i)
		one.Target = netip.AddrPortFrom(q.Target.Addr(), q.Target.Port()+uint16(i))
		if one.Target.Port() < q.Target.Port() {
			return // past 65535: refused where it is asked for
		}
		if !one.HostAddr.IsLoopback() {
			p.publishes = append(p.publishes, one)
			p.targets = append(p.targets, hosted{Target{one.Target.Addr(), one.Proto, one.Target.Port()}, true})
		}
		if one.HostAddr.IsLoopback() || !one.HostAddr.IsValid() {
			if !one.HostAddr.IsValid() {
				one.HostAddr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			p.loopback = append(p.loopback, one)
		}
	}
}
