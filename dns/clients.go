package dns

import (
	"maps"
	"net/netip"
	"slices"

	"nodenet/state"
)

// searchLabel on an endpoint, with the value off, leaves its questions as they
// are.
const searchLabel = "nodenet.io/dns-search"

// clientIndex tells who has an address: the namespace whose search path its
// questions are completed by, and how far away it is. The allocator's records
// say so; nothing is guessed from packets. Immutable: it changes with the view
// that the zones are of, and versions share what did not change.
type clientIndex struct {
	view   *state.View
	shards [clientShards]map[netip.Addr]holderOf
	near   map[state.NodeID]uint8 // what is not here is far
	local  map[string]bool        // networks whose addresses mean something on their node only
	quiet  map[string]bool        // networks with `search off`
}

// clientShards is how many parts an index is copied in when it changes.
const clientShards = 256

// holderOf is what is known of one address.
type holderOf struct {
	ns   string       // "": its questions are not completed
	node state.NodeID // "": several say that it is theirs
	of   []*state.EndpointView
}

// How far away an address is.
const (
	nearNode = iota
	nearZone
	far
)

// clientsOf derives the index of a view from an older one, or, when that is nil
// or not of the same tables, anew.
func clientsOf(old *clientIndex, v *state.View) *clientIndex {
	var diff *state.Changes
	if old != nil {
		diff = v.Since(old.view)
	}
	if diff == nil || diff.All || diff.Networks {
		c := &clientIndex{view: v, near: nearNodes(v), local: map[string]bool{}, quiet: map[string]bool{}}
		for i := range v.Networks {
			n := &v.Networks[i]
			if n.Local() {
				c.local[n.Name] = true
			}
			if n.NoSearch {
				c.quiet[n.Name] = true
			}
		}
		d := clientDraft{clientIndex: c, owned: make(map[uint8]bool)}
		for e := range v.Endpoints() {
			d.endpoint(e, true)
		}
		return c
	}
	c := *old
	c.view = v
	if diff.Nodes {
		c.near = nearNodes(v)
	}
	d := clientDraft{clientIndex: &c, owned: make(map[uint8]bool)}
	for _, p := range diff.Endpoints {
		if p.Old != nil {
			d.endpoint(p.Old, false)
		}
		if p.New != nil {
			d.endpoint(p.New, true)
		}
	}
	return &c
}

// nearNodes ranks the nodes that are not far.
func nearNodes(v *state.View) map[state.NodeID]uint8 {
	out := map[state.NodeID]uint8{v.Self: nearNode}
	self := v.NodeByID(v.Self)
	if self == nil || self.Zone == "" {
		return out
	}
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Zone == self.Zone && n.ID != v.Self {
			out[n.ID] = nearZone
		}
	}
	return out
}

// clientDraft changes an index that nobody else sees yet.
type clientDraft struct {
	*clientIndex
	owned map[uint8]bool // shards that are its alone
}

// endpoint adds or removes an endpoint's addresses.
func (d *clientDraft) endpoint(e *state.EndpointView, add bool) {
	if d.local[e.Network] && e.Owner != d.view.Self {
		return
	}
	for _, a := range e.Addrs {
		a = a.Unmap()
		i := shardOf(a)
		if !d.owned[i] {
			if d.shards[i] = maps.Clone(d.shards[i]); d.shards[i] == nil {
				d.shards[i] = make(map[netip.Addr]holderOf)
			}
			d.owned[i] = true
		}
		of := slices.DeleteFunc(slices.Clone(d.shards[i][a].of), func(o *state.EndpointView) bool {
			return o.Owner == e.Owner && o.ID == e.ID && o.Lease == e.Lease
		})
		if add {
			of = append(of, e)
		}
		if len(of) == 0 {
			delete(d.shards[i], a)
			continue
		}
		d.shards[i][a] = d.resolve(of)
	}
}

// resolve decides about an address that endpoints have. An address that two
// namespaces have is nobody's, unless just one of them is on this node.
func (d *clientDraft) resolve(of []*state.EndpointView) holderOf {
	c := holderOf{of: of}
	here := of
	if len(of) > 1 {
		own := slices.DeleteFunc(slices.Clone(of), func(e *state.EndpointView) bool { return e.Owner != d.view.Self })
		if len(own) > 0 {
			here = own
		}
	}
	for i, e := range here {
		ns := label(e.Namespace)
		if d.quiet[e.Network] || e.Labels[searchLabel] == "off" {
			ns = ""
		}
		if i == 0 {
			c.ns, c.node = ns, e.Owner
		}
		if ns != c.ns {
			c.ns = ""
		}
		if e.Owner != c.node {
			c.node = ""
		}
	}
	return c
}

func shardOf(a netip.Addr) uint8 {
	b := a.As16()
	return b[15] ^ b[14]*31 ^ b[13]*101
}

// namespace returns the namespace by which the questions from an address are
// completed, or "".
func (c *clientIndex) namespace(a netip.Addr) string {
	if c == nil {
		return ""
	}
	a = a.Unmap()
	return c.shards[shardOf(a)][a].ns
}

// rank returns how far away an address is.
func (c *clientIndex) rank(a netip.Addr) uint8 {
	who, ok := c.shards[shardOf(a)][a]
	if !ok {
		return far
	}
	if r, ok := c.near[who.node]; ok {
		return r
	}
	return far
}

// namespaceOf returns the namespace of a workload by its address, or "".
func (s *Server) namespaceOf(a netip.Addr) string { return s.clients.Load().namespace(a) }
