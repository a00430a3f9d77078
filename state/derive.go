package state

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// derive computes a view from scratch: everything is new. The same snapshot
// gives the same view on every node, but for what is marked as self's.
func derive(sn *Snapshot) *View {
	edits := make([]edit, 0, sn.tables.ids.len())
	for r := range sn.tables.ids.all() {
		if !r.Deleted {
			edits = append(edits, edit{new: r})
		}
	}
	v := emptyView(sn.self).next(sn, edits)
	v.steps = nil // it says nothing of what is not there any more
	return v
}

func emptyView(self NodeID) *View {
	v := NewView(View{Self: self}, nil, nil)
	v.labels, v.selectors, v.claims = newTree(byLabel), newTree(compareSelectors), newTree(compareClaims)
	v.declared, v.names = newTree(compareDeclared), newTree(compareNames)
	v.declaredPolicies = newTree(compareDeclared)
	v.several, v.refused, v.judged = newTree(byPlace), newTree(compareRefusals), &claims{}
	return v
}

// derivation is the making of one view from the one before it. Each step looks
// at what is noted for it, replaces what differs, and notes for the later
// steps what depends on that; so the order of the steps is that of what
// depends on what: claims, nodes, networks, endpoints, services.
type derivation struct {
	*View // the view in the making
	old   *View
	sn    *Snapshot

	nodes     map[NodeID]bool // to be looked at again
	owners    map[NodeID]bool // all their endpoints are to be looked at, and the services behind them
	servers   map[NodeID]bool // the same, for leases that the old view may not show
	endpoints map[endpointRef]bool
	services  map[string]bool // by key
	policies  map[string]bool // the same
	vips      map[netip.Addr]bool
	gone      bool // a node was forgotten, or a forgotten one wrote
	networks  bool
	publishes bool
	contested bool // the conflicts of a kind changed
	judge     bool // by what claims are judged may have changed
	refusing  bool // what is refused changed
	cloned    bool // refused is this view's own

	changed step
}

// step returns what was changed.
func (d *derivation) step() *step {
	d.changed.from, d.changed.to = d.old.Rev, d.Rev
	return &d.changed
}

// endpointRef names what an endpoint of the view is made of: a node's endpoint
// record, or a lease that the node gave.
type endpointRef struct {
	owner NodeID
	key   string // of the record
	lease bool
}

// next returns the view of a newer snapshot. The edits are all that happened
// to records since; what they say is the order and the old values, the new
// ones are the snapshot's. Whoever calls holds the deriver's mutex: old trees
// are cloned.
func (v *View) next(sn *Snapshot, edits []edit) *View {
	now := *v
	now.Rev, now.deriver = sn.rev, nil
	d := &derivation{
		View: &now, old: v, sn: sn,
		nodes: map[NodeID]bool{}, owners: map[NodeID]bool{}, servers: map[NodeID]bool{},
		endpoints: map[endpointRef]bool{}, services: map[string]bool{}, policies: map[string]bool{}, vips: map[netip.Addr]bool{},
	}
	d.sort(edits)
	d.liveness()
	d.goneNodes()
	d.claimsStep()
	d.nodesStep()
	d.networksStep()
	d.endpointsStep()
	d.servicesStep()
	d.policiesStep()
	if d.publishes {
		d.publishesStep()
	}
	d.conflictsStep()
	now.steps = addStep(v.steps, d.step())
	return &now
}

// sort notes for each step what the edits mean for it.
func (d *derivation) sort(edits []edit) {
	var declared, names, policies bool
	for _, e := range edits {
		switch e.new.ID.Kind {
		case KindService:
			declared = true
		case KindName:
			names = true
		case KindPolicy:
			policies = true
		}
	}
	if declared {
		d.declared = d.declared.clone()
	}
	if policies {
		d.View.declaredPolicies = d.View.declaredPolicies.clone()
	}
	if names {
		d.View.names = d.View.names.clone()
	}
	for _, e := range edits {
		id := e.new.ID
		switch id.Kind {
		case KindNode:
			d.nodes[id.Owner], d.judge = true, true
			if _, ok := d.old.gone.epochs[id.Owner]; ok {
				d.gone = true
			}
			if id.Owner == d.Self && serviceRanges(e.old) != serviceRanges(e.new) {
				for s := range d.old.Services() {
					d.services[s.Key()] = true // they may have other twins
				}
			}
		case KindBlock:
			d.nodes[id.Owner], d.judge = true, true
		case KindRing:
			d.judge = true
		case KindForgotten:
			d.gone, d.judge = true, true
			d.nodes[NodeID(id.Key)], d.owners[NodeID(id.Key)] = true, true
		case KindNetwork:
			d.networks, d.judge = true, true
			was, is := local(e.old), local(e.new)
			if was != is {
				d.owners[id.Owner], d.servers[id.Owner] = true, true
			}
		case KindEndpoint:
			d.endpoints[endpointRef{owner: id.Owner, key: id.Key}] = true
		case KindLease:
			for _, r := range []*Record{e.old, e.new} {
				if l, ok := valueOf[LeaseValue](r); ok {
					d.endpoints[endpointRef{l.Server, id.Key, true}] = true
				}
			}
		case KindService:
			d.services[id.Key] = true
			d.declare(e)
		case KindPolicy:
			d.policies[id.Key] = true
			d.declarePolicy(e)
		case KindBackend:
			for _, r := range []*Record{e.old, e.new} {
				if b, ok := valueOf[Backend](r); ok {
					d.services[b.Namespace+"/"+b.Service] = true
				}
			}
		case KindAdmin:
			for _, r := range []*Record{e.old, e.new} {
				if a, ok := valueOf[Admin](r); ok {
					d.services[a.Namespace+"/"+a.Service] = true
				}
			}
		case KindVIP:
			d.services[id.Key] = true
		case KindHealth:
			// "<namespace>/<service>/<endpoint ID>"; the ID may hold slashes.
			if ns, rest, ok := strings.Cut(id.Key, "/"); ok {
				name, _, _ := strings.Cut(rest, "/")
				d.services[ns+"/"+name] = true
			}
		case KindName:
			d.changed.Names = d.nameStep(e) || d.changed.Names
		case KindPublish:
			d.publishes = d.publishes || id.Owner == d.Self
		}
	}
	if d.changed.Names {
		d.collectNames()
	}
}

// valueOf returns the value of a record, which may be nil or a tombstone.
func valueOf[T any](r *Record) (*T, bool) {
	if r == nil || r.Deleted {
		return nil, false
	}
	v, ok := r.val.(*T)
	return v, ok
}

// serviceRanges are those that a node's record names.
func serviceRanges(r *Record) (both [2]netip.Prefix) {
	if n, ok := valueOf[Node](r); ok {
		both = [2]netip.Prefix{n.ServiceRange, n.ServiceRange6}
	}
	return both
}

func local(r *Record) bool {
	n, ok := valueOf[Network](r)
	return ok && n.Local()
}

// liveness notes the nodes of which membership says something else.
func (d *derivation) liveness() {
	if d.sn.liveRev == d.liveRev && d.old.Rev > 0 {
		return
	}
	for id, l := range d.sn.live {
		was, ok := d.live[id]
		if !ok || was != l {
			d.nodes[id] = true
		}
		d.judge = d.judge || was.State != l.State || was.Addr != l.Addr
	}
	for id := range d.live {
		if _, ok := d.sn.live[id]; !ok {
			d.nodes[id], d.judge = true, true
		}
	}
	d.live, d.liveRev = d.sn.live, d.sn.liveRev
}

// goneNodes looks again at who is forgotten.
func (d *derivation) goneNodes() {
	if !d.gone {
		return
	}
	was, is := d.old.gone, d.sn.Gone()
	d.View.gone = is
	for _, m := range []map[NodeID]uint64{was.epochs, is.epochs} {
		for id := range m {
			if was.nodes[id] != is.nodes[id] || was.epochs[id] != is.epochs[id] {
				d.nodes[id], d.owners[id] = true, true
			}
		}
	}
}

// publishesStep makes the list anew: it is this node's own.
func (d *derivation) publishesStep() {
	var list []Publish
	for r := range d.sn.tables.scan(ID{Class: Owner, Kind: KindPublish, Owner: d.Self}) {
		if p, ok := valueOf[Publish](r); ok {
			list = append(list, *p)
		}
	}
	if !slices.Equal(list, d.Publishes) {
		d.Publishes, d.changed.Publishes = list, true
	}
}

// conflictsStep puts the list together when a part of it may differ.
func (d *derivation) conflictsStep() {
	if !maps.Equal(d.marks, d.sn.conflicts) {
		d.marks, d.contested = d.sn.conflicts, true
	}
	d.collectRefusals()
	if !d.contested {
		return
	}
	list := slices.Concat(d.nodeConflicts, d.networkConflicts)
	for _, c := range d.serviceConflicts {
		list = append(list, c.Conflict)
	}
	for _, c := range d.policyConflicts {
		list = append(list, c.Conflict)
	}
	for c := range d.duplicates {
		list = append(list, c.Conflict)
	}
	list = append(list, d.sn.Conflicts()...)
	list = append(list, conflictsOf(d.Refusals, d.nameOf)...)
	if !slices.Equal(list, d.Conflicts) {
		d.Conflicts, d.changed.Conflicts = list, true
	}
}

// keyed is a conflict with the key of the service that has it.
type keyed struct {
	namespace, name string
	Conflict
}

func compareKeyed(a, b keyed) int { return compareKeys(a.namespace, a.name, b.namespace, b.name) }

// conflictOf returns the service's conflict in a list, or nil.
func conflictOf(list []keyed, namespace, name string) *Conflict {
	i, found := slices.BinarySearchFunc(list, keyed{namespace: namespace, name: name}, compareKeyed)
	if !found {
		return nil
	}
	return &list[i].Conflict
}

// setConflict returns a list with the service's conflict in its place, or
// without it when c is nil. It never changes the list that it was given.
func setConflict(list []keyed, namespace, name string, c *Conflict) []keyed {
	i, found := slices.BinarySearchFunc(list, keyed{namespace: namespace, name: name}, compareKeyed)
	switch {
	case c == nil && !found:
		return list
	case c == nil:
		return slices.Concat(list[:i], list[i+1:])
	case found && list[i].Conflict == *c:
		return list
	case found:
		return slices.Concat(list[:i], []keyed{{namespace, name, *c}}, list[i+1:])
	}
	return slices.Concat(list[:i], []keyed{{namespace, name, *c}}, list[i:])
}

// nameStep brings one static name into the order of names. It reports whether
// that may change what the view shows.
func (d *derivation) nameStep(e edit) bool {
	t := d.View.names
	changed := false
	if n, ok := valueOf[Name](e.old); ok {
		t.remove(e.old)
		changed = !holds(t.from(&Record{val: n}), *n)
	}
	if n, ok := valueOf[Name](e.new); ok {
		changed = !holds(t.from(&Record{val: n}), *n) || changed
		t.put(e.new)
	}
	return changed
}

// holds reports whether the first of the records is of the name n.
func holds(records iter.Seq[*Record], n Name) bool {
	for r := range records {
		return *r.val.(*Name) == n
	}
	return false
}

// collectNames makes the list of names, each once.
func (d *derivation) collectNames() {
	var list []Name
	for r := range d.View.names.all() {
		n := r.val.(*Name)
		if len(list) == 0 || list[len(list)-1] != *n {
			list = append(list, *n)
		}
	}
	d.Names = list
}

// compareNames orders records of static names by what they say.
func compareNames(a, b *Record) int {
	x, y := a.val.(*Name), b.val.(*Name)
	return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.Type, y.Type), strings.Compare(x.Target, y.Target), compareIDs(a, b))
}
