package lb

import (
	"net/netip"

	"nodenet/state"
)

// address is one that endpoints have.
type address struct {
	holders []*state.EndpointView // sorted by owner, ID; the first has it
	group   *group                // of the first holder; nil: nobody holds it
	local   string                // namespace of the first holder, if it is this node's
	class   [len(directions)]*policyClass
	elems   []policyElem // that it has in the kernel
}

// work looks again at all that is dirty, until nothing is: classes that come
// and go make addresses dirty that they let through.
func (b *policyBook) work() {
	for len(b.dirty) > 0 {
		for len(b.dirty) > 0 {
			for a := range b.dirty {
				delete(b.dirty, a)
				b.look(a)
			}
		}
		for c := range b.idle {
			if c.used == 0 {
				delete(b.classes[c.dir], c.text)
				b.retire(c)
			}
		}
		clear(b.idle)
	}
}

// look brings an address up to date.
func (b *policyBook) look(a netip.Addr) {
	x := b.addrs[a]
	_, node := b.nodes[a]
	if x == nil {
		x = &address{}
		b.addrs[a] = x
	}
	var first *state.EndpointView
	if len(x.holders) > 0 {
		first = x.holders[0]
	}
	b.regroup(a, x, first)
	b.selects(a, x, first)

	var elems []policyElem
	for _, d := range directions {
		c := x.class[d]
		if c == nil {
			continue
		}
		elems = append(elems, policyElem{set: setSelectedIn + policySet(d), key: string(key(nil).addr(a)), val: string(key(nil).host(c.number))})
	}
	delete(b.bare, a)
	if x.class[ingress] != nil || x.class[egress] != nil {
		if m, ok := b.bridge(a); ok {
			elems = append(elems, policyElem{set: setPoliced, key: string(key(nil).addr(a)), val: string(key(nil).ether(m))})
		} else {
			b.bare[a] = struct{}{}
		}
	}
	var taken []allowed // references that replace counts again
	let := func(c *policyClass) {
		ok := c.nodes
		if !node {
			ok = ""
		}
		if x.group != nil {
			ok = ok.and(c.known[x.group])
		}
		if ok == "" {
			return
		}
		ok = ok.and(at(c.nets, a))
		elems = append(elems, policyElem{setPeersIn + policySet(c.dir), string(key(nil).host(c.number).addr(a)), string(key(nil).host(b.refer(ok))), ok})
		taken = append(taken, ok)
	}
	if node {
		for d := range b.classes {
			for _, c := range b.classes[d] {
				let(c)
			}
		}
	} else if x.group != nil {
		for c := range x.group.classes {
			let(c)
		}
	}
	b.replace(x, versionOf(a), elems)
	for _, p := range taken {
		b.drop(p)
	}
	if first == nil && !node {
		delete(b.addrs, a)
	}
}

// regroup finds the group of who has an address.
func (b *policyBook) regroup(a netip.Addr, x *address, first *state.EndpointView) {
	var now *group
	if first != nil {
		k := groupKey(first.Endpoint)
		if now = b.groups[k]; now == nil {
			now = &group{sample: first.Endpoint, addrs: make(map[netip.Addr]struct{}), classes: make(map[*policyClass]struct{})}
			b.groups[k] = now
			for d := range b.classes {
				for _, c := range b.classes[d] {
					meet(c, now)
				}
			}
		}
	}
	if now == x.group {
		return
	}
	if was := x.group; was != nil {
		if delete(was.addrs, a); len(was.addrs) == 0 {
			delete(b.groups, groupKey(was.sample))
			for c := range was.classes {
				delete(c.known, was)
			}
		}
	}
	if x.group = now; now != nil {
		now.addrs[a] = struct{}{}
	}
}

// selects finds the classes of who has an address, if it is this node's.
func (b *policyBook) selects(a netip.Addr, x *address, first *state.EndpointView) {
	ns := ""
	if first != nil && first.Owner == b.sc.l.Self {
		ns = first.Namespace
	}
	if x.local != ns {
		if delete(b.locals[x.local], a); len(b.locals[x.local]) == 0 {
			delete(b.locals, x.local)
		}
		if ns != "" && b.locals[ns] == nil {
			b.locals[ns] = make(map[netip.Addr]struct{})
		}
		if ns != "" {
			b.locals[ns][a] = struct{}{}
		}
		x.local = ns
	}
	for _, d := range directions {
		var now *policyClass
		if ns != "" {
			now = b.classOf(d, first.Endpoint)
		}
		if was := x.class[d]; was != now {
			if was != nil {
				if was.used--; was.used == 0 {
					b.idle[was] = struct{}{}
				}
			}
			if now != nil {
				now.used++
			}
			x.class[d] = now
		}
	}
}

// classOf returns the class of an endpoint in a direction; nil: not isolated.
func (b *policyBook) classOf(d direction, e *state.Endpoint) *policyClass {
	var of []*state.Policy
	for _, p := range b.policies[e.Namespace] {
		if _, isolates := d.of(p); isolates && p.Selects(e) {
			of = append(of, p)
		}
	}
	if len(of) == 0 {
		return nil
	}
	text := classText(d, of)
	c := b.classes[d][text]
	if c == nil {
		c = newClass(d, text, of)
		c.number = b.number(d.String(), text)
		b.classes[d][text] = c
		b.enter(c)
	}
	return c
}

// enter brings a new class together with all groups and nodes.
func (b *policyBook) enter(c *policyClass) {
	for _, id := range b.groups {
		if meet(c, id) {
			for a := range id.addrs {
				b.dirty[a] = struct{}{}
			}
		}
	}
	b.touchNodes(c)
	for _, s := range c.nets {
		b.live[setNetsIn+policySet(c.dir)][versionOf(s.first)].put(Elem{
			Key: string(key(nil).host(c.number).addr(s.first)), End: string(key(nil).host(c.number).addr(s.last)),
			Val: string(key(nil).host(b.refer(s.allowed)))})
	}
}

// retire takes a class out that nobody is in any more.
func (b *policyBook) retire(c *policyClass) {
	for id := range c.known {
		for a := range id.addrs {
			b.dirty[a] = struct{}{}
		}
	}
	c.part()
	b.touchNodes(c)
	for _, s := range c.nets {
		b.live[setNetsIn+policySet(c.dir)][versionOf(s.first)].drop(string(key(nil).host(c.number).addr(s.first)))
		b.drop(s.allowed)
	}
	delete(b.numbers, c.number)
}

func (b *policyBook) touchNodes(c *policyClass) {
	if c.nodes == "" {
		return
	}
	for a := range b.nodes {
		b.dirty[a] = struct{}{}
	}
}
