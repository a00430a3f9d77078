package state

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// labelled is an endpoint under one of its labels, so that a selector finds
// its endpoints without looking at others.
type labelled struct {
	label string
	*EndpointView
}

func byLabel(a, b labelled) int {
	if d := strings.Compare(a.Namespace, b.Namespace); d != 0 {
		return d
	}
	if d := strings.Compare(a.label, b.label); d != 0 {
		return d
	}
	if d := strings.Compare(a.Labels[a.label], b.Labels[b.label]); d != 0 {
		return d
	}
	return byPlace(a.EndpointView, b.EndpointView)
}

// endpointsStep looks again at the endpoints that are noted.
func (d *derivation) endpointsStep() {
	d.endpointsOfOwners()
	if len(d.endpoints) == 0 {
		return
	}
	d.View.endpoints, d.View.byOwner = d.old.endpoints.clone(), d.old.byOwner.clone()
	d.View.labels, d.View.several = d.old.labels.clone(), d.old.several.clone()
	for ref := range d.endpoints {
		was := d.old.find(ref)
		is, refusal := d.endpoint(ref)
		d.refuse(ref.id(), ref.owner, refusal)
		if was != nil && is != nil && was.Endpoint == is.Endpoint && was.Serving == is.Serving && was.Refused == is.Refused {
			continue
		}
		if was != nil {
			d.View.endpoints.remove(was)
			d.View.byOwner.remove(was)
			d.View.several.remove(was)
			for label := range was.Labels {
				d.View.labels.remove(labelled{label, was})
			}
			d.selecting(was)
		}
		if is != nil {
			d.View.endpoints.put(is)
			d.View.byOwner.put(is)
			if is.several() {
				d.View.several.put(is)
			}
			for label := range is.Labels {
				d.View.labels.put(labelled{label, is})
			}
			d.selecting(is)
		}
		if was != nil || is != nil {
			d.changed.endpoints = append(d.changed.endpoints, ref)
		}
	}
}

// twin is the endpoint's first IPv6 address, when that is not its first
// address at all; invalid: none.
func (e *EndpointView) twin() netip.Addr {
	for _, a := range e.Addrs[min(1, len(e.Addrs)):] {
		if a.Is6() && e.Addrs[0].Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// several reports whether more than the first address may lie in a block:
// twins do not, they go where the first one goes.
func (e *EndpointView) several() bool {
	return len(e.Addrs) > 1 && slices.ContainsFunc(e.Addrs[1:], netip.Addr.Is4)
}

// endpointsOfOwners notes the endpoints of the nodes that are noted, with the
// services that tell why one of them is not ready.
func (d *derivation) endpointsOfOwners() {
	for id := range d.owners {
		for e := range d.old.EndpointsOf(id) {
			d.endpoints[e.ref()] = true
			d.selecting(e)
		}
		for r := range d.sn.tables.scan(ID{Class: Owner, Kind: KindEndpoint, Owner: id}) {
			d.endpoints[endpointRef{owner: id, key: r.ID.Key}] = true
		}
	}
	if len(d.servers) == 0 {
		return
	}
	for r, l := range allOf[LeaseValue](d.sn) {
		if d.servers[l.Server] {
			d.endpoints[endpointRef{l.Server, r.ID.Key, true}] = true
		}
	}
}

// leaseID begins the ID of an endpoint that is a lease; the record's key follows.
const leaseID = "dhcp/"

func (e *EndpointView) ref() endpointRef {
	if e.Lease {
		return endpointRef{e.Owner, strings.TrimPrefix(e.ID, leaseID), true}
	}
	return endpointRef{owner: e.Owner, key: e.ID}
}

// find returns the endpoint that was made of ref, or nil.
func (v *View) find(ref endpointRef) *EndpointView {
	id := ref.key
	if ref.lease {
		id = leaseID + id
	}
	e, _ := v.byOwner.get(&EndpointView{Owner: ref.owner, Endpoint: &Endpoint{ID: id}, Lease: ref.lease})
	return e
}

// id returns the ID of the record.
func (ref endpointRef) id() ID {
	if ref.lease {
		return ID{Class: Lease, Kind: KindLease, Key: ref.key}
	}
	return ID{Class: Owner, Kind: KindEndpoint, Owner: ref.owner, Key: ref.key}
}

// endpoint makes the view of one endpoint, or nil, and says what of it is
// refused. A record whose key is not what its value says is none.
func (d *derivation) endpoint(ref endpointRef) (*EndpointView, *Refusal) {
	n := d.nodeByID[ref.owner]
	if n == nil {
		return nil, nil
	}
	if ref.lease {
		return d.leased(ref, n)
	}
	r := d.sn.tables.get(ref.id())
	e, ok := valueOf[Endpoint](r)
	if !ok || e.ID != ref.key || d.View.gone.Record(r) {
		return nil, nil
	}
	v := &EndpointView{Endpoint: e, Owner: r.ID.Owner}
	refusal := d.judged.endpoint(r, e)
	if refusal != nil {
		v.Refused = refusal.Why
	}
	v.Serving = e.Ready && n.Serving && n.Refused == "" && refusal == nil
	if !n.Self && e.Mode != "host" && d.localTo(ref.owner, e.Network) {
		v.Serving = false // an address that means something on its own node only
	}
	return v, refusal
}

func (d *derivation) leased(ref endpointRef, n *NodeView) (*EndpointView, *Refusal) {
	r := d.sn.tables.get(ref.id())
	l, ok := valueOf[LeaseValue](r)
	if !ok || l.Declined || l.Server != ref.owner || leaseKey(l) != ref.key {
		return nil, nil
	}
	if refusal := d.judged.lease(r, l); refusal != nil {
		return nil, refusal
	}
	return &EndpointView{
		Endpoint: &Endpoint{
			ID: leaseID + ref.key, Network: l.Network,
			Namespace: cmp.Or(d.namespace[l.Network], "default"), Name: l.Hostname,
			Addrs: []netip.Addr{l.Addr}, MAC: l.MAC, Kind: EndpointDHCP, Ready: true, Created: l.Granted,
		},
		Owner: l.Server, Lease: true,
		Serving: n.Serving && n.Refused == "" && (n.Self || !d.localTo(l.Server, l.Network)),
	}, nil
}

func leaseKey(l *LeaseValue) string { return l.Network + "/" + l.Addr.String() }

// localTo reports whether a network is one that the node has for itself.
func (d *derivation) localTo(owner NodeID, network string) bool {
	return local(d.sn.tables.get(ID{Class: Owner, Kind: KindNetwork, Owner: owner, Key: network}))
}

// selecting notes the services that select an endpoint.
func (d *derivation) selecting(e *EndpointView) {
	for label, value := range e.Labels {
		at := selector{namespace: e.Namespace, label: label, value: value}
		for s := range d.old.selectors.from(at) {
			if s.namespace != at.namespace || s.label != at.label || s.value != at.value {
				break
			}
			if sv := d.old.service(s.namespace, s.name); sv != nil && matches(sv.Selector, e.Labels) {
				d.services[sv.Key()] = true
			}
		}
	}
}
