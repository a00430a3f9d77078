package lb

import (
	"net/netip"
	"slices"
)

// Conntrack forgets flows: those of UDP clients that are pinned to a backend
// that went or to none at all, since a UDP entry lives as long as its client
// keeps sending; those of SCTP clients, which come again from the port that they
// had, and would find the old entry; and those of failed backends, whose clients
// then get a reset for the next packet that they send.
type Conntrack interface {
	// Delete deletes the tracked flows of a protocol and an IP version for
	// which stale says so. dst is where the client sent the flow's first
	// packet, backend is who answers: the same where nothing was translated.
	// It returns how many there were.
	Delete(proto uint8, ipv6 bool, stale func(dst, backend netip.AddrPort) bool) (int, error)
}

// judge says which flows may not stay after a change.
type judge struct {
	// ports are those that changed as they are now; of a port that is gone, a
	// Service without backends.
	ports  map[Target]*Service
	ranges []*Service
	// all is set when ports are all there are: then what was sent to another
	// address of the service ranges is stale too. It is what a daemon knows that
	// has just started.
	all *Table
}

func (j *judge) add(s *Service) {
	if s.Last != 0 {
		j.ranges = append(j.ranges, s)
		return
	}
	if j.ports == nil {
		j.ports = make(map[Target]*Service)
	}
	j.ports[s.target()] = s
}

func (j *judge) empty() bool { return len(j.ports) == 0 && len(j.ranges) == 0 && j.all == nil }

// change adds a port whose flows may have become stale. Datagrams may go to
// backends that are ready or draining, associations to those that have not
// failed; one that went, or the first that came, may have left flows behind.
// TCP connections end only where a backend has failed that had not before.
func (j *judge) change(was, is *Service) {
	if is.Proto != TCP {
		if len(was.Backends) == 0 && len(is.Backends) > 0 || !subset(was.Lasting, is.Lasting) {
			j.add(is)
		}
		return
	}
	if was.Name != "" && !subset(is.Dead, was.Dead) {
		j.add(is)
	}
}

func subset(of, in []netip.AddrPort) bool {
	return !slices.ContainsFunc(of, func(b netip.AddrPort) bool { return !slices.Contains(in, b) })
}

// published does the same for published ports.
func (j *judge) published(was, is []Publish) {
	now := make(map[Target]netip.AddrPort, len(is))
	for _, p := range is {
		now[p.at()] = p.Target
	}
	old := make(map[Target]netip.AddrPort, len(was))
	for _, p := range was {
		old[p.at()] = p.Target
	}
	for _, ps := range [][]Publish{was, is} {
		for _, p := range ps {
			if k := p.at(); k.Proto != TCP && now[k] != old[k] {
				s := Service{VIP: k.Addr, Proto: k.Proto, Port: k.Port}
				if to := now[k]; to.IsValid() {
					s.Backends, s.Lasting = []netip.AddrPort{to}, []netip.AddrPort{to}
				}
				j.add(&s)
			}
		}
	}
}

func (p *Publish) at() Target { return Target{p.HostAddr, p.Proto, p.HostPort} }

// everything judges all flows by a whole table, and by what the kernel had
// before: the flows of what is gone are stale too.
func everything(t *Table, had slots) judge {
	j := judge{all: t}
	for _, list := range [][]Service{t.Services, t.NodePorts} {
		for i := range list {
			j.add(&list[i])
		}
	}
	j.published(nil, t.Publishes)
	for _, list := range [][]Service{had.services, had.nodePorts} {
		for i := range list {
			j.gone(list[i].none())
		}
	}
	for _, p := range had.published {
		j.gone(Service{VIP: p.Addr, Proto: p.Proto, Port: p.Port})
	}
	return j
}

// gone adds a port that was, or a range, behind those that are. TCP connections
// to it stay.
func (j *judge) gone(s Service) {
	if s.Proto != TCP && (s.Last != 0 || j.ports[s.target()] == nil) {
		j.add(&s)
	}
}

// between judges by two tables, the newer of which is whole.
func between(old, now *Table) judge {
	var j judge
	walk := func(was, is []Service) {
		a, b := 0, 0
		for a < len(was) || b < len(is) {
			switch {
			case b == len(is) || a < len(was) && compareService(was[a], is[b]) < 0:
				gone := was[a].none()
				j.change(&was[a], &gone)
				a++
			case a == len(was) || compareService(was[a], is[b]) > 0:
				j.change(&Service{}, &is[b])
				b++
			default:
				j.change(&was[a], &is[b])
				a, b = a+1, b+1
			}
		}
	}
	walk(old.Services, now.Services)
	walk(old.NodePorts, now.NodePorts)
	j.published(old.Publishes, now.Publishes)
	return j
}

// port finds what a flow was sent to; nil: nothing that is judged. Node ports
// and published ports are those of the host's own addresses, which hosts say;
// flows that merely pass through the node are none of ours.
func (j *judge) port(proto uint8, dst, backend netip.AddrPort, hosts []netip.Addr) *Service {
	k := Target{dst.Addr(), proto, dst.Port()}
	s := j.ports[k]
	if s == nil || len(s.Lasting) == 0 { // as the kernel does, which has no element of it
		for _, r := range j.ranges {
			if r.VIP == k.Addr && r.Proto == proto && r.Port <= k.Port && k.Port <= r.Last {
				return r
			}
		}
	}
	if s != nil {
		return s
	}
	if slices.Contains(hosts, k.Addr) || len(hosts) == 0 && dst != backend {
		k.Addr = anyOf(versionOf(k.Addr))
		if s := j.ports[k]; s != nil {
			return s
		}
	}
	return nil
}

// stale returns the question that Conntrack.Delete asks.
func (j *judge) stale(proto uint8, hosts []netip.Addr) func(dst, backend netip.AddrPort) bool {
	return func(dst, backend netip.AddrPort) bool {
		s := j.port(proto, dst, backend, hosts)
		switch {
		case s == nil && j.all == nil || s == nil && proto != UDP:
			return false
		case s == nil:
			return j.all.virtual(dst.Addr())
		}
		if s.Last != 0 { // its backends are kept with the first port
			backend = netip.AddrPortFrom(backend.Addr(), s.Port)
		}
		if proto != TCP {
			return !slices.Contains(s.Lasting, backend)
		}
		return slices.Contains(s.Dead, backend)
	}
}

// virtual reports whether an address is of a service range and not the
// resolver's.
func (t *Table) virtual(a netip.Addr) bool {
	v := versionOf(a)
	return t.serviceRange(v).IsValid() && t.serviceRange(v).Contains(a) && a != t.resolver(v)
}

// forget deletes the flows that a change made stale. It lists the kernel's
// flows once for each protocol and version that has any to look for.
func (b *LB) forget(j judge, hosts []netip.Addr) {
	if b.opt.Conntrack == nil || j.empty() {
		return
	}
	type kind struct {
		proto uint8
		v     Version
	}
	kinds := make(map[kind]bool)
	note := func(s *Service) {
		if s.Proto != TCP || len(s.Dead) > 0 {
			kinds[kind{s.Proto, versionOf(s.VIP)}] = true
		}
	}
	for _, s := range j.ports {
		note(s)
	}
	for _, s := range j.ranges {
		note(s)
	}
	for _, v := range versions {
		if j.all != nil && j.all.serviceRange(v).IsValid() {
			kinds[kind{UDP, v}] = true
		}
	}
	for k := range kinds {
		n, err := b.opt.Conntrack.Delete(k.proto, k.v == V6, j.stale(k.proto, hosts))
		switch {
		case err != nil:
			b.log.Warn("stale flows not forgotten", "proto", protoName(k.proto), "err", err)
		case n > 0:
			b.log.Info("stale flows forgotten", "proto", protoName(k.proto), "flows", n)
		}
		b.m.flows.WithLabelValues(protoName(k.proto)).Add(float64(n))
	}
}
