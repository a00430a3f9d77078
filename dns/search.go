package dns

import (
	"net/netip"

	"nodenet/dns/plugin"
	"nodenet/state"
)

// spaces tells the namespace of a workload's address. Immutable.
type spaces struct {
	view *state.View
	of   map[netip.Addr]string
}

// namespaceOf returns the namespace of a workload by its address, or "". The
// index is made when a view is first asked about.
func (s *Server) namespaceOf(a netip.Addr) string {
	v := s.applied.Load()
	if v == nil {
		return ""
	}
	idx := s.spaces.Load()
	if idx == nil || idx.view != v {
		idx = &spaces{view: v, of: make(map[netip.Addr]string)}
		for e := range v.Endpoints() {
			for _, a := range e.Addrs {
				// An address of a network that each node has to itself means
				// its workload on this node only.
				if a = a.Unmap(); idx.of[a] == "" || e.Owner == v.Self {
					idx.of[a] = label(e.Namespace)
				}
			}
		}
		s.spaces.Store(idx)
	}
	return idx.of[a]
}

// attach implements attacher.
func (c *cluster) attach(s *Server, _ *block) { c.namespaceOf = s.namespaceOf }

// Search implements plugin.Searcher: the path that WorkloadConfig gives to the
// client's namespace.
func (c *cluster) Search(client netip.Addr) []string {
	if c.namespaceOf == nil || len(c.opt.forward) == 0 {
		return nil
	}
	ns, zone := c.namespaceOf(client), c.opt.forward[0]
	if ns == "" {
		return nil
	}
	return []string{plugin.Under(ns+".svc", zone), plugin.Under("svc", zone), zone}
}
