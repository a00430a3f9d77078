package lb

import "net/netip"

// publish adds a published port, or a range of them: a port of a range goes to
// the target's port as far from its first one as it is from HostPort. In the
// kernel and on loopback each port is an entry of its own, since the target's
// ports differ. A range that would pass 65535 ends there. SCTP is not served on
// loopback: that would take SCTP sockets, which many kernels lack, and what goes
// through a process loses its streams and addresses.
func (p *part) publish(q Publish, last uint16) {
	all := anyAddr(q.HostAddr)
	if all {
		q.HostAddr = anyOf(versionOf(q.Target.Addr()))
	}
	for {
		if q.Proto != SCTP && (all || q.HostAddr.IsLoopback()) {
			p.onLoopback(q, all)
		}
		if all || !q.HostAddr.IsLoopback() {
			p.publishes = append(p.publishes, q)
			p.targets = append(p.targets, hosted{Target{q.Target.Addr(), q.Proto, q.Target.Port()}, true})
		}
		if q.HostPort >= last || q.Target.Port() == 65535 {
			return
		}
		q.HostPort++
		q.Target = netip.AddrPortFrom(q.Target.Addr(), q.Target.Port()+1)
	}
}

// onLoopback adds the listeners of a port. They are a process, which reaches a
// target of either IP version.
func (p *part) onLoopback(q Publish, all bool) {
	if !all {
		p.loopback = append(p.loopback, q)
		return
	}
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		q.HostAddr, q.Implied = a, true
		p.loopback = append(p.loopback, q)
	}
}
