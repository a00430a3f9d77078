package lb

import (
	"net/netip"
	"slices"
)

// staleUDP returns the destinations whose conntrack entries may point at a
// backend that is gone, or past one that has come. old is nil at the first
// apply: nothing is known to have changed then.
func staleUDP(old, now *Table) []Target {
	if old == nil {
		return nil
	}
	var out []Target
	walk := func(was, is []Service) {
		j := 0
		for i := range was {
			a := &was[i]
			if a.Proto != UDP {
				continue
			}
			for j < len(is) && compareService(is[j], *a) < 0 {
				j++
			}
			var left []netip.AddrPort
			if j < len(is) && compareService(is[j], *a) == 0 {
				left = is[j].Backends
			}
			if pinned(a.Backends, left) {
				out = append(out, a.target())
			}
		}
		i := 0
		for j := range is {
			b := &is[j]
			if b.Proto != UDP || len(b.Backends) == 0 {
				continue
			}
			for i < len(was) && compareService(was[i], *b) < 0 {
				i++
			}
			if i == len(was) || compareService(was[i], *b) != 0 {
				out = append(out, b.target())
			}
		}
	}
	walk(old.Services, now.Services)
	walk(old.NodePorts, now.NodePorts)
	asServices := func(ps []Publish) []Service {
		var s []Service
		for _, p := range ps {
			s = append(s, Service{VIP: p.HostAddr, Proto: p.Proto, Port: p.HostPort, Backends: []netip.AddrPort{p.Target}})
		}
		return s
	}
	walk(asServices(old.Publishes), asServices(now.Publishes))
	slices.SortFunc(out, compareTarget)
	return slices.Compact(out)
}
