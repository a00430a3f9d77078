package state

import (
	"maps"
	"net/netip"
	"slices"
)

// claimsStep judges claims anew when something changed by which they are
// judged, and notes what is now another's, or no longer. An endpoint, a lease
// or a service that changes itself is judged where it is looked at again.
func (d *derivation) claimsStep() {
	if !d.judge {
		return
	}
	was, is := d.old.judged, newClaims(d.sn, d.View.gone)
	d.View.judged = is
	d.refusing = !slices.Equal(was.found, is.found)
	for id := range differing(was.refused, is.refused) {
		d.nodes[id] = true
	}
	for id := range differing(was.blocks, is.blocks) {
		d.nodes[id.Owner] = true
	}
	for _, network := range keysOf(was.open, is.open) {
		d.reopened(network, was.open[network], is.open[network])
	}
	for _, network := range keysOf(was.prefixes, is.prefixes) {
		if !maps.EqualFunc(was.prefixes[network], is.prefixes[network], func(a, b *Network) bool {
			return a.Prefix == b.Prefix && a.Local() == b.Local()
		}) {
			d.leasesOf(network)
		}
	}
	if !slices.Equal(was.reach(), is.reach()) {
		for s := range d.old.Services() {
			d.services[s.Key()] = true
		}
	}
}

// reopened notes the endpoints with addresses in blocks of a network that have
// another owner than before.
func (d *derivation) reopened(network string, was, is *openBlocks) {
	first := func(a netip.Addr) *EndpointView {
		e := &EndpointView{Endpoint: &Endpoint{Network: network}}
		if a.IsValid() {
			e.Addrs = []netip.Addr{a}
		}
		return e
	}
	several := false
	for p := range differing(was.owners(), is.owners()) {
		several = true
		for e := range d.old.endpoints.from(first(p.Addr())) {
			if e.Network != network || !p.Contains(e.Addrs[0]) {
				break
			}
			if !e.Lease {
				d.endpoints[e.ref()] = true
			}
		}
	}
	if !several {
		return
	}
	for e := range d.old.several.from(first(netip.Addr{})) {
		if e.Network != network {
			break
		}
		d.endpoints[e.ref()] = true
	}
}

func (o *openBlocks) owners() map[netip.Prefix]NodeID {
	if o == nil {
		return nil
	}
	return o.owner
}

// leasesOf notes the leases of a network.
func (d *derivation) leasesOf(network string) {
	for r := range d.sn.tables.scan(ID{Class: Lease, Kind: KindLease, Key: network + "/"}) {
		if l, ok := valueOf[LeaseValue](r); ok {
			d.endpoints[endpointRef{l.Server, r.ID.Key, true}] = true
		}
	}
}

// reach returns the runs of addresses of the service ring, first and last,
// whoever owns them; nil: no such ring is known.
func (c *claims) reach() [][2]netip.Addr {
	var out [][2]netip.Addr
	for _, p := range c.rings[RingServices] {
		if n := len(out); n > 0 && out[n-1][1].Next() == p.From {
			out[n-1][1] = p.To
			continue
		}
		out = append(out, [2]netip.Addr{p.From, p.To})
	}
	return out
}

// refuse keeps what is refused of one owner's record; nil: nothing.
func (d *derivation) refuse(record ID, owner NodeID, r *Refusal) {
	if r == nil && d.View.refused.len() == 0 {
		return
	}
	at := &Refusal{Record: record, Owner: owner}
	was, there := d.View.refused.get(at)
	if !there && r == nil || there && r != nil && *was == *r {
		return
	}
	if !d.cloned {
		d.View.refused, d.cloned = d.View.refused.clone(), true
	}
	d.refusing = true
	if r == nil {
		d.View.refused.remove(at)
	} else {
		d.View.refused.put(r)
	}
}

// collectRefusals makes the list of all that is refused, when it changed, or
// the names of nodes in it may have.
func (d *derivation) collectRefusals() {
	if d.refusing {
		list := slices.Clone(d.judged.found)
		for r := range d.View.refused.all() {
			list = append(list, *r)
		}
		slices.SortFunc(list, inOrder)
		if !slices.Equal(list, d.Refusals) {
			d.Refusals, d.changed.Conflicts, d.contested = list, true, true
		}
	}
	d.contested = d.contested || d.changed.Nodes && len(d.Refusals) > 0
}

// nameOf names a node as people do, as far as the view knows it.
func (v *View) nameOf(id NodeID) string {
	if n := v.nodeByID[id]; n != nil && n.Name != "" {
		return n.Name
	}
	return id.Short()
}

// differing returns the keys whose values are not the same in both maps.
func differing[K, V comparable](a, b map[K]V) map[K]bool {
	out := map[K]bool{}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			out[k] = true
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out[k] = true
		}
	}
	return out
}

// keysOf returns the keys of two maps.
func keysOf[V any](a, b map[string]V) []string {
	out := slices.Collect(maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	return out
}
