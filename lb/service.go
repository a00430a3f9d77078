package lb

import (
	"net/netip"
	"slices"

	"nodenet/state"
)

const (
	// maxShifted is how many ports of a range whose targets are other ports are
	// balanced: each of them has slots of its own.
	maxShifted = 1024
	// maxAffinity bounds for how long, in seconds, clients keep their backends.
	maxAffinity = 1 << 24
)

// untracked says why a kernel cannot translate SCTP, and what to do.
const untracked = "this kernel does not track SCTP: load nf_conntrack with CONFIG_NF_CT_PROTO_SCTP"

// derivation is the making of one service's part.
type derivation struct {
	*part
	sc      *scope
	s       *state.ServiceView
	key     string
	usable  []bool // parallel to Backends: reachable from here
	counted [len(versions)]map[netip.Addr]bool
}

// service derives the part of one service. Its cost is that of its backends.
func (sc *scope) service(v *state.View, s *state.ServiceView) *part {
	d := derivation{part: new(part), sc: sc, s: s, key: s.Key(), usable: make([]bool, len(s.Backends))}
	for v := range d.counted {
		d.counted[v] = make(map[netip.Addr]bool, len(s.Backends))
	}
	for _, vip := range []netip.Addr{s.VIP, s.VIP6} {
		if sc.vip(d.part, s, vip) {
			d.vips = append(d.vips, vip)
		}
	}
	for _, a := range s.Addresses {
		if sc.external(d.part, s, a) && !slices.Contains(d.externals, a) {
			d.externals = append(d.externals, a)
		}
	}
	for i := range s.Backends {
		b := &s.Backends[i]
		d.usable[i] = b.Addr.IsValid() && !sc.elsewhere(v, b)
	}
	for i := range s.Ports {
		d.port(i)
	}
	d.backends = max(len(d.counted[V4]), len(d.counted[V6]))
	return d.part
}

// port derives one port, or one range of ports.
func (d *derivation) port(i int) {
	port := &d.s.Ports[i]
	proto := protoNumber(port.Protocol)
	switch {
	case proto == 0:
		d.warn("service %s port %d: protocol %q is not balanced: use tcp, udp or sctp", d.key, port.Port, port.Protocol)
		return
	case proto == SCTP && d.sc.l.NoSCTP:
		d.warn("service %s port %d: %s", d.key, port.Port, untracked)
		return
	case port.Last <= port.Port:
		d.single(i, proto, 0)
		return
	}
	if d.straight(i) {
		d.span(i, proto)
		return
	}
	n := int(port.Last) - int(port.Port) + 1
	if n > maxShifted {
		d.warn("service %s ports %d-%d: %d ports with other target ports, %d at most: let the target be the same ports", d.key, port.Port, port.Last, n, maxShifted)
		return
	}
	for k := range n {
		d.single(i, proto, uint16(k))
	}
}

// straight reports whether all backends of a range listen on its own ports.
func (d *derivation) straight(i int) bool {
	for b := range d.s.Backends {
		if t := d.s.Backends[b].Targets; d.usable[b] && i < len(t) && t[i] != 0 && t[i] != d.s.Ports[i].Port {
			return false
		}
	}
	return true
}

// members are the backends of one port that are of one version.
type members struct {
	known         []weighted // ready or not
	candidates    []candidate
	lasting, dead []netip.AddrPort
}

// members sorts a port's backends, as far into a range as offset says.
func (d *derivation) members(i int, offset uint16) (out [len(versions)]members) {
	seen := make(map[netip.AddrPort]int, len(d.s.Backends)) // of candidates, from 1
	// What went can be told from what fell silent, whose flows go on, by this.
	silent := protoNumber(d.s.Ports[i].Protocol) == SCTP
	for n := range d.s.Backends {
		b := &d.s.Backends[n]
		if !d.usable[n] || i >= len(b.Targets) || b.Targets[i] == 0 || int(b.Targets[i])+int(offset) > 65535 {
			continue
		}
		to := netip.AddrPortFrom(b.Addr, b.Targets[i]+offset)
		m := &out[versionOf(b.Addr)]
		c := candidate{weighted: weighted{to, max(1, int(b.Weight))}, near: d.sc.near(b), draining: !b.Ready && b.Draining}
		at, twice := seen[to]
		switch {
		case b.Failed:
			m.dead = append(m.dead, to)
		case !b.Ready && !b.Draining:
			if silent {
				m.lasting = append(m.lasting, to)
			}
		case at > 0 && b.Ready:
			m.candidates[at-1] = c
		case at == 0:
			m.candidates = append(m.candidates, c)
			m.lasting = append(m.lasting, to)
			at = len(m.candidates)
		}
		if !twice {
			m.known = append(m.known, c.weighted)
		}
		seen[to] = at
	}
	for v := range out {
		m := &out[v]
		slices.SortFunc(m.candidates, func(a, b candidate) int { return a.to.Compare(b.to) })
		slices.SortFunc(m.lasting, netip.AddrPort.Compare)
		m.lasting = slices.Compact(m.lasting)
		slices.SortFunc(m.dead, netip.AddrPort.Compare)
		m.dead = slices.DeleteFunc(slices.Compact(m.dead), func(b netip.AddrPort) bool { return seen[b] > 0 })
	}
	return out
}

// single derives one port.
func (d *derivation) single(i int, proto uint8, offset uint16) {
	port := &d.s.Ports[i]
	number := port.Port + offset
	nodePort := port.NodePort
	if l := &d.sc.l; nodePort != 0 && l.NodePortLast != 0 && (nodePort < l.NodePortFirst || nodePort > l.NodePortLast) {
		d.warn("service %s: node port %d is outside %d-%d", d.key, nodePort, l.NodePortFirst, l.NodePortLast)
		nodePort = 0
	}
	all := d.members(i, offset)
	var said said
	for _, v := range versions {
		m := &all[v]
		base := Service{Name: d.key, Proto: proto, Port: number, Lasting: m.lasting, Dead: m.dead}
		for _, a := range d.vips {
			if versionOf(a) == v {
				d.services = append(d.services, d.inside(base, a, m, &said))
			}
		}
		for _, a := range d.externals {
			if versionOf(a) == v {
				d.services = append(d.services, d.outside(base, a, m, &said))
			}
		}
		if nodePort != 0 && (v == V4 || len(m.candidates) > 0) {
			base.Port = nodePort
			d.nodePorts = append(d.nodePorts, d.outside(base, anyOf(v), m, &said))
		}
	}
}

// span derives a range of ports that go to the same ports of the backends. Its
// slots hold the first port.
func (d *derivation) span(i int, proto uint8) {
	port := &d.s.Ports[i]
	all := d.members(i, 0)
	var said said
	if port.NodePort != 0 {
		d.warn("service %s ports %d-%d: a range has no node port", d.key, port.Port, port.Last)
	}
	for _, v := range versions {
		m := &all[v]
		base := Service{Name: d.key, Proto: proto, Port: port.Port, Last: port.Last, Lasting: m.lasting, Dead: m.dead}
		for _, a := range d.vips {
			if versionOf(a) == v {
				d.services = append(d.services, d.inside(base, a, m, &said))
			}
		}
		for _, a := range d.externals {
			if versionOf(a) == v {
				d.services = append(d.services, d.outside(base, a, m, &said))
			}
		}
	}
}

// said keeps one port from saying the same for each of its addresses.
type said map[string]bool

func (d *derivation) once(s *said, text string) {
	if *s == nil {
		*s = make(said)
	}
	if !(*s)[text] {
		(*s)[text] = true
		d.warn("%s", text)
	}
}

// inside is the port on a virtual address.
func (d *derivation) inside(base Service, vip netip.Addr, m *members, told *said) Service {
	base.VIP = vip
	d.balance(&base, d.s.Inside, m, told)
	d.reach(&base, false)
	return base
}

// outside is the port on an external address or, with anyOf a version, the node
// port.
func (d *derivation) outside(base Service, a netip.Addr, m *members, told *said) Service {
	base.VIP = a
	d.balance(&base, d.s.Outside, m, told)
	switch {
	case len(base.Backends) > 0:
		v := versionOf(a)
		if len(d.s.Sources) > 0 {
			base.Rule |= fromSome
			base.Sources = maximal(ofVersion(d.s.Sources, v))
		}
		if len(d.s.NodeAddrs) > 0 && base.nodePort() {
			base.Rule |= onSome
			base.HostAddrs = maximal(ofVersion(d.s.NodeAddrs, v))
		}
	case len(m.candidates) > 0: // elsewhere: balancers in front must learn to leave this node out
		base.Rule = dropping
	case !base.nodePort():
		base.Rule = refusing
	}
	d.reach(&base, true)
	return base
}

// reach notes who is reached by a port.
func (d *derivation) reach(s *Service, host bool) {
	var last netip.AddrPort
	for _, b := range s.Backends {
		if b == last {
			continue
		}
		last = b
		d.counted[versionOf(b.Addr())][b.Addr()] = true
		to := Target{b.Addr(), s.Proto, b.Port()}
		if s.Rule&sticky == sticky {
			d.sticky = append(d.sticky, to)
		}
		if s.Last != 0 && !host && !d.sc.isLocal(b.Addr()) {
			continue // nobody asks for them, and they are many
		}
		for p := int(to.Port); p <= int(max(s.Last, to.Port)); p++ {
			to.Port = uint16(p)
			d.targets = append(d.targets, hosted{to, host})
		}
	}
}

// balance fills the slots of a port.
func (d *derivation) balance(s *Service, policy string, m *members, told *said) {
	chosen := choose(policy, m.candidates)
	if len(chosen) == 0 {
		return
	}
	where := sprint("service %s port %d", d.key, s.Port)
	if len(chosen) > MaxSlots {
		d.once(told, sprint("%s: %d backends, the first %d are used", where, len(chosen), MaxSlots))
		chosen = chosen[:MaxSlots]
	}
	how := d.s.Balance
	if s.Last != 0 {
		s.Rule |= inRange
	}
	if d.s.Affinity > 0 {
		s.Affinity = uint32(min(d.s.Affinity, maxAffinity))
		s.Rule |= sticky
		if s.Last != 0 {
			// What is remembered is remembered for a port.
			s.Affinity, s.Rule = 0, s.Rule&^sticky
			if how == state.BalanceRandom {
				how = state.BalanceSource
				d.once(told, sprint("service %s ports %d-%d: affinity of a range is kept by a hash of the client's address", d.key, s.Port, s.Last))
			}
		}
	}
	if how == state.BalanceMaglev {
		known := slices.Clone(m.known)
		size := maglevSize(len(known), reduce(known))
		s.Rule |= byMaglev
		s.Backends = maglev(chosen, size)
		return
	}
	slots, rounded := spread(chosen)
	if rounded != "" {
		d.once(told, sprint("%s: weights need more than %d slots: %s", where, MaxSlots, rounded))
	}
	if how == state.BalanceSource {
		s.Rule |= bySource
	}
	s.Backends = slots
}

func ofVersion(ps []netip.Prefix, v Version) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return versionOf(p.Addr()) != v })
}

// external reports whether a service's external address can be programmed.
func (sc *scope) external(p *part, s *state.ServiceView, a netip.Addr) bool {
	in := func(ps []netip.Prefix) bool {
		return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.IsValid() && p.Contains(a) })
	}
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == sc.l.Resolver || a == sc.l.Resolver6:
		p.warn("service %s: external address %s: give an address of the network outside", s.Key(), a)
		return false
	case in([]netip.Prefix{sc.l.Range, sc.l.Range6}):
		p.warn("service %s: external address %s is of the service range: give it as vip", s.Key(), a)
		return false
	case in(sc.l.ClusterPrefixes) && !slices.Contains(sc.l.NodeAddrs, a):
		p.warn("service %s: external address %s is of a network of workloads: give an address of the network outside", s.Key(), a)
		return false
	}
	return true
}
