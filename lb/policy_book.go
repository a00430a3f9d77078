package lb

import (
	"crypto/sha256"
	"encoding/binary"
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

// address is one that endpoints have.
type address struct {
	holders []*state.EndpointView // sorted by owner, ID; the first has it
	group   *group                // of the first holder; nil: nobody holds it
	local   string                // namespace of the first holder, if it is this node's
	class   [len(directions)]*policyClass
	elems   []policyElem // that it has in the kernel
}

type policyElem struct {
	set      policySet
	key, val string
	ports    allowed // that val stands for
}

// portsUse is how many elements lead to a set of ports, and its number.
type portsUse struct {
	elems  int
	number uint32
}

// liveSet is what a set holds, and what it held when settled last.
type liveSet struct {
	now map[string]Elem
	was map[string]Elem // of keys that changed since; without Key: it was not there
}

func (l *liveSet) put(e Elem) {
	l.remember(e.Key)
	l.now[e.Key] = e
}

func (l *liveSet) drop(k string) {
	l.remember(k)
	delete(l.now, k)
}

func (l *liveSet) remember(k string) {
	if _, ok := l.was[k]; !ok {
		l.was[k] = l.now[k]
	}
}

// settle returns what leads to the elements of now.
func (l *liveSet) settle(s policySet, v Version) SetOp {
	op := SetOp{Family: s.family(), Set: s.declaration(v)}
	for k, was := range l.was {
		is := l.now[k]
		if was == is {
			continue
		}
		if was.Key != "" {
			op.Del = append(op.Del, was)
		}
		if is.Key != "" {
			op.Add = append(op.Add, is)
		}
	}
	clear(l.was)
	sortElems(op.Del)
	sortElems(op.Add)
	return op
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

// replace gives an address its elements in place of those it has.
func (b *policyBook) replace(x *address, v Version, elems []policyElem) {
	for _, e := range x.elems {
		if !slices.Contains(elems, e) {
			b.live[e.set][v].drop(e.key)
			b.drop(e.ports)
		}
	}
	for _, e := range elems {
		if !slices.Contains(x.elems, e) {
			b.live[e.set][v].put(Elem{Key: e.key, Val: e.val})
			b.refer(e.ports)
		}
	}
	x.elems = elems
}

// refer counts one more who leads to a set of ports, and returns its number.
func (b *policyBook) refer(a allowed) uint32 {
	switch a {
	case "":
		return 0
	case anything:
		return allPorts
	}
	u := b.ports[a]
	if u == nil {
		u = &portsUse{number: b.number("ports", string(a))}
		b.ports[a] = u
		for _, r := range a.ranges() {
			b.live[setPorts][V4].put(Elem{Key: string(key(nil).host(u.number).proto(r.proto).port(r.first)),
				End: string(key(nil).host(u.number).proto(r.proto).port(r.last))})
		}
	}
	u.elems++
	return u.number
}

// drop counts one less.
func (b *policyBook) drop(a allowed) {
	u := b.ports[a]
	if u == nil {
		return
	}
	if u.elems--; u.elems > 0 {
		return
	}
	delete(b.ports, a)
	delete(b.numbers, u.number)
	for _, r := range a.ranges() {
		b.live[setPorts][V4].drop(string(key(nil).host(u.number).proto(r.proto).port(r.first)))
	}
}

// number makes a number of what it stands for, so that a restart and another
// order of events give the same, but for two that clash: there the later one
// gets the next.
func (b *policyBook) number(what, text string) uint32 {
	sum := sha256.Sum256([]byte(what + "\x00" + text))
	n := binary.BigEndian.Uint32(sum[:])
	for {
		_, taken := b.numbers[n]
		// None and root mean something else to nft.
		if !taken && n > allPorts && n != 1<<32-1 {
			b.numbers[n] = text
			return n
		}
		n++
	}
}

// bridge returns the MAC of the bridge that an endpoint of this node sits on,
// if that can take its packets.
func (b *policyBook) bridge(a netip.Addr) (m [6]byte, ok bool) {
	contains := func(p netip.Prefix) bool { return p.Contains(a) }
	if slices.ContainsFunc(b.flat, contains) {
		return m, false
	}
	for _, br := range b.sc.l.Bridges {
		if len(br.MAC) == len(m) && slices.ContainsFunc(br.Own, contains) {
			copy(m[:], br.MAC)
			return m, true
		}
	}
	return m, false
}

// warnings say what policies do not cover.
func (b *policyBook) warnings() []string {
	if len(b.bare) == 0 {
		return nil
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(b.bare)), netip.Addr.Compare)
	return []string{fmt.Sprintf("policies: %d endpoints, among them %s, are on no bridge of this node that has an address: what neighbours on the same bridge send is not judged", len(b.bare), first)}
}
