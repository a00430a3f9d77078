package lb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// policyBook keeps the sets of policies so that a change costs what changed.
//
//	an endpoint comes or goes   an element for each class of this node that lets it through,
//	                            and three if it is this node's and a policy selects it
//	a group is new             a look at each class
//	a class is new              a look at each group, an element for each endpoint let through
//	a policy changes            a look at this node's endpoints of its namespace
//
// Endpoints of other nodes that no class lets through have no elements.
//
// It is not safe for concurrent use.
type policyBook struct {
	sc *scope

	policies map[string][]*state.Policy // by namespace, sorted by key
	addrs    map[netip.Addr]*address
	groups   map[string]*group
	classes  [len(directions)]map[string]*policyClass // by text
	locals   map[string]map[netip.Addr]struct{}       // addresses of this node's endpoints, by namespace
	nodes    map[netip.Addr]struct{}

	flat []netip.Prefix // networks whose bridge has no address to lift packets to

	dirty   map[netip.Addr]struct{}   // addresses to be looked at again
	idle    map[*policyClass]struct{} // that nobody was in at some time
	live    [numPolicySets][len(versions)]liveSet
	ports   map[allowed]*portsUse
	numbers map[uint32]string       // what they stand for
	bare    map[netip.Addr]struct{} // isolated, but not on their own bridge
}

// newPolicyBook looks at anything.
func newPolicyBook(v *state.View, sc *scope) *policyBook {
	b := &policyBook{
		sc: sc, policies: make(map[string][]*state.Policy), addrs: make(map[netip.Addr]*address), groups: make(map[string]*group),
		locals: make(map[string]map[netip.Addr]struct{}), nodes: make(map[netip.Addr]struct{}),
		dirty: make(map[netip.Addr]struct{}), idle: make(map[*policyClass]struct{}), ports: make(map[allowed]*portsUse),
		numbers: make(map[uint32]string), bare: make(map[netip.Addr]struct{}),
	}
	for i := range v.Networks {
		if v.Networks[i].NoGateway {
			b.flat = append(b.flat, v.Networks[i].Prefix)
		}
	}
	for d := range b.classes {
		b.classes[d] = make(map[string]*policyClass)
	}
	for i := range b.live {
		for v := range b.live[i] {
			b.live[i][v] = liveSet{make(map[string]Elem), make(map[string]Elem)}
		}
	}
	for _, p := range v.Policies {
		b.policies[p.Namespace] = append(b.policies[p.Namespace], p)
	}
	b.setNodes(v)
	for e := range v.Endpoints() {
		b.hold(e)
	}
	b.work()
	for i := range b.live {
		for v := range b.live[i] {
			clear(b.live[i][v].was)
		}
	}
	return b
}

// change turns the book to a view that differs by c, and returns what turns
// the kernel.
func (b *policyBook) change(v *state.View, c *state.Changes) []SetOp {
	if c.Nodes {
		b.setNodes(v)
	}
	for _, x := range c.Policies {
		b.setPolicy(x.Old, x.New)
	}
	for _, x := range c.Endpoints {
		if x.Old != nil {
			b.release(x.Old)
		}
		if x.New != nil {
			b.hold(x.New)
		}
	}
	b.work()
	ops := make([]SetOp, 0, len(b.live))
	for i := range b.live {
		for _, v := range versions {
			ops = append(ops, b.live[i][v].settle(policySet(i), v))
		}
	}
	return ops
}

// sets returns what the kernel holds, sorted.
func (b *policyBook) sets() policySets {
	var out policySets
	for i := range b.live {
		for v := range b.live[i] {
			for _, k := range slices.Sorted(maps.Keys(b.live[i][v].now)) {
				out[i][v] = append(out[i][v], b.live[i][v].now[k])
			}
		}
	}
	return out
}

// counts tells how many addresses of this node's endpoints are isolated, and
// how many classes they have.
func (b *policyBook) counts() (isolated, classes int) {
	return len(b.live[setPoliced][V4].now) + len(b.live[setPoliced][V6].now), len(b.classes[ingress]) + len(b.classes[egress])
}

// counted reports whether an endpoint is one for policies: it has its address
// for itself, and that means something here.
func (b *policyBook) counted(e *state.EndpointView) bool {
	return e.Refused == "" && e.Mode != "host" && (e.Owner == b.sc.l.Self || !b.sc.far[e.Network])
}

func (b *policyBook) hold(e *state.EndpointView) {
	if !b.counted(e) {
		return
	}
	for _, a := range e.Addrs {
		x := b.addrs[a]
		if x == nil {
			x = &address{}
			b.addrs[a] = x
		}
		x.holders = append(x.holders, e)
		slices.SortFunc(x.holders, compareHolders)
		b.dirty[a] = struct{}{}
	}
}

func (b *policyBook) release(e *state.EndpointView) {
	for _, a := range e.Addrs {
		if x := b.addrs[a]; x != nil {
			x.holders = slices.DeleteFunc(x.holders, func(o *state.EndpointView) bool { return compareHolders(o, e) == 0 })
			b.dirty[a] = struct{}{}
		}
	}
}

func compareHolders(a, b *state.EndpointView) int {
	if d := strings.Compare(string(a.Owner), string(b.Owner)); d != 0 {
		return d
	}
	return strings.Compare(a.ID, b.ID)
}

// setPolicy puts one policy in place of another.
func (b *policyBook) setPolicy(old, now *state.Policy) {
	for _, p := range []*state.Policy{old, now} {
		if p == nil {
			continue
		}
		list := slices.DeleteFunc(slices.Clone(b.policies[p.Namespace]), func(o *state.Policy) bool { return o.Name == p.Name })
		if p == now {
			list = append(list, p)
			slices.SortFunc(list, func(a, b *state.Policy) int { return strings.Compare(a.Key(), b.Key()) })
		}
		b.policies[p.Namespace] = list
		if len(list) == 0 {
			delete(b.policies, p.Namespace)
		}
		for a := range b.locals[p.Namespace] {
			b.dirty[a] = struct{}{}
		}
	}
}

// setNodes notes by which addresses the nodes speak.
func (b *policyBook) setNodes(v *state.View) {
	now := nodeAddrs(v)
	for a := range b.nodes {
		if _, ok := now[a]; !ok {
			b.dirty[a] = struct{}{}
			b.live[setNodes][versionOf(a)].drop(string(key(nil).addr(a)))
		}
	}
	for a := range now {
		if _, ok := b.nodes[a]; !ok {
			b.dirty[a] = struct{}{}
			b.live[setNodes][versionOf(a)].put(Elem{Key: string(key(nil).addr(a))})
		}
	}
	b.nodes = now
}

// nodeAddrs are the addresses of the cluster's nodes: those that peers know
// them by, and those of their bridges.
func nodeAddrs(v *state.View) map[netip.Addr]struct{} {
	out := make(map[netip.Addr]struct{})
	gateway := make(map[string]netip.Addr)
	for i := range v.Networks {
		gateway[v.Networks[i].Name] = v.Networks[i].Gateway
	}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		addrs := []netip.Addr{n.Advertise, n.Underlay}
		for _, b := range n.Blocks {
			if g := gateway[b.Network]; g.IsValid() && b.Prefix.Contains(g) {
				addrs = append(addrs, g)
			} else {
				addrs = append(addrs, b.Prefix.Masked().Addr().Next())
			}
		}
		for _, a := range addrs {
			if a.IsValid() {
				out[a] = struct{}{}
			}
		}
	}
	return out
}

// warnings say what policies do not cover.
func (b *policyBook) warnings() []string {
	if len(b.bare) == 0 {
		return nil
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(b.bare)), netip.Addr.Compare)
	return []string{fmt.Sprintf("policies: %d endpoints, among them %s, are on no bridge of this node that has an address: what neighbours on the same bridge send is not judged", len(b.bare), first)}
}
