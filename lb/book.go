package lb

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"nodenet/state"
)

// book is a Table kept so that one service can change at the cost of its own
// backends, however many others there are: what each service asks for, and
// how many ask for what is shared. It also knows the order of slots in the
// kernel, which depends on the past.
//
// A book is changed before the kernel is, and is thrown away when that fails.
// It is not safe for concurrent use.
type book struct {
	sc    *scope
	view  *state.View
	frame Table
	parts map[string]*part // by service
	pub   *part
	pol   *policyBook

	// claims are the services that ask for a port, sorted by name; the first
	// has it. Of node ports the address is anyOf their version.
	claims map[Target][]*Service
	rivals map[Target]bool       // ports that several ask for
	spans  map[Target][]*Service // claims of ranges, by address and protocol
	ports  map[Target]*Service   // as the kernel has them: those of the first claims, with slots in its order
	made   chainset
	vips   refs[netip.Addr]
	// external are the addresses outside of the service ranges, sticky the
	// backends that clients keep.
	external refs[netip.Addr]
	sticky   refs[Target]
	local    refs[Target]     // targets on this node
	hairpin  refs[netip.Addr] // their addresses
	remote   refs[Target]     // elsewhere, and reached by addresses of the node

	services, backends int
	warned             map[string]bool // services with warnings
	warnings           []string        // nil: to be collected anew
	decl               [len(versions)]declarations
}

// declarations are the sets of one version whose elements a service can change.
type declarations struct {
	ports                                               [2][numPortSets]Set // node ports are the second
	vips, external, hairpin, remote, ids, lift, senders Set
}

func newDeclarations() (out [len(versions)]declarations) {
	var t Table
	sets := slices.Concat(t.smallSets(), t.bridgeTable().Sets)
	for _, v := range versions {
		named := func(name string) Set {
			i := slices.IndexFunc(sets, func(s Set) bool { return s.Name == v.name(name) })
			return sets[i]
		}
		out[v] = declarations{
			ports: [2][numPortSets]Set{portSets(v, false), portSets(v, true)},
			vips:  named("vips"), external: named("external"), hairpin: named("hairpin"), remote: named("remote"),
			ids: named("ids"), lift: named("backends"), senders: named("senders"),
		}
	}
	return out
}

// refs counts who asks for a key, and remembers until it is settled which keys
// came or went.
type refs[K comparable] struct {
	n   map[K]int
	was map[K]int // as settled last, of keys touched since
}

func newRefs[K comparable]() refs[K] { return refs[K]{make(map[K]int), make(map[K]int)} }

func (r *refs[K]) add(k K, d int) {
	n := r.n[k]
	if _, ok := r.was[k]; !ok {
		r.was[k] = n
	}
	if n += d; n == 0 {
		delete(r.n, k)
	} else {
		r.n[k] = n
	}
}

// changes returns the elements of keys that came or went since they were
// settled, in the set of each version.
func (r *refs[K]) changes(family string, set func(Version) Set, elem func(K) (Version, Elem, bool)) []SetOp {
	var ops []SetOp
	for _, v := range versions {
		ops = append(ops, SetOp{Family: family, Set: set(v)})
	}
	for k, was := range r.was {
		if is := r.n[k]; (was > 0) != (is > 0) {
			if v, e, ok := elem(k); ok && is > 0 {
				ops[v].Add = append(ops[v].Add, e)
			} else if ok {
				ops[v].Del = append(ops[v].Del, e)
			}
		}
	}
	return ops
}

func (r *refs[K]) forget() { clear(r.was) }

// forget settles what services share.
func (b *book) forget() {
	b.vips.forget()
	b.external.forget()
	b.sticky.forget()
	b.local.forget()
	b.hairpin.forget()
	b.remote.forget()
}

// newBook looks at everything. Its slots are in the order of Derive.
func newBook(v *state.View, l Local) *book {
	sc := newScope(v, l)
	n := v.NumServices()
	b := &book{
		sc: sc, view: v, frame: sc.frame(v.Rev), pub: new(part), parts: make(map[string]*part, n),
		claims: make(map[Target][]*Service, n), rivals: make(map[Target]bool), spans: make(map[Target][]*Service), ports: make(map[Target]*Service, n),
		made: newChainset(), external: newRefs[netip.Addr](), sticky: newRefs[Target](),
		vips: newRefs[netip.Addr](), local: newRefs[Target](), hairpin: newRefs[netip.Addr](), remote: newRefs[Target](),
		warned: make(map[string]bool), decl: newDeclarations(),
	}
	var e edit
	for s := range v.Services() {
		b.put(s.Key(), sc.service(v, s), &e)
	}
	b.publish(sc.published(v), &e)
	for k, c := range b.claims {
		if s := b.winner(c); s != nil {
			b.ports[k] = s
		}
	}
	b.forget()
	b.pol = newPolicyBook(v, sc)
	return b
}

// adopt takes over the slots and chains of an arranged table of this book.
func (b *book) adopt(t *Table) {
	for _, list := range [][]Service{t.Services, t.NodePorts} {
		for i := range list {
			b.ports[list[i].target()] = &list[i]
		}
	}
	b.made = t.chainset()
}

// put makes p what a service asks for; nil: nothing.
func (b *book) put(name string, p *part, e *edit) {
	if old := b.parts[name]; old != nil {
		b.count(old, -1)
		for _, list := range [][]Service{old.services, old.nodePorts} {
			for i := range list {
				b.unclaim(&list[i], e)
			}
		}
		delete(b.parts, name)
		b.note(name, old, nil)
	}
	if p == nil {
		return
	}
	b.parts[name] = p
	b.count(p, 1)
	for _, list := range [][]Service{p.services, p.nodePorts} {
		for i := range list {
			b.claim(&list[i], e)
		}
	}
	b.note(name, nil, p)
}

// publish makes p what is published.
func (b *book) publish(p *part, e *edit) {
	b.count(b.pub, -1)
	b.count(p, 1)
	e.publishes = true
	e.wasPublished = b.pub.publishes
	if len(b.pub.warnings)+len(p.warnings) > 0 {
		b.warnings = nil
	}
	b.pub = p
}

func (b *book) note(name string, old, now *part) {
	switch {
	case old != nil && len(old.warnings) > 0:
		delete(b.warned, name)
	case now != nil && len(now.warnings) > 0:
		b.warned[name] = true
	default:
		return
	}
	b.warnings = nil
}

// count adds or takes away what a part shares with others.
func (b *book) count(p *part, d int) {
	for _, a := range p.vips {
		b.vips.add(a, d)
	}
	for _, a := range p.externals {
		b.external.add(a, d)
	}
	for _, x := range p.sticky {
		b.sticky.add(x, d)
	}
	if len(p.vips) > 0 {
		b.services += d
	}
	b.backends += d * p.backends
	for _, x := range p.targets {
		switch {
		case b.sc.isLocal(x.Addr):
			b.local.add(x.Target, d)
			b.hairpin.add(x.Addr, d)
		case x.host:
			b.remote.add(x.Target, d)
		}
	}
}

func (b *book) claim(s *Service, e *edit) {
	k := s.target()
	c := b.claims[k]
	i := len(c)
	for i > 0 && strings.Compare(c[i-1].Name, s.Name) > 0 {
		i--
	}
	b.claims[k] = slices.Insert(c, i, s)
	if s.Last != 0 {
		b.spans[s.spanKey()] = append(b.spans[s.spanKey()], s)
	}
	b.respan(k, s, e)
	b.contest(k)
	e.touch(k)
}

func (b *book) unclaim(s *Service, e *edit) {
	k := s.target()
	c := slices.DeleteFunc(b.claims[k], func(o *Service) bool { return o == s })
	if s.Last != 0 {
		if b.spans[s.spanKey()] = slices.DeleteFunc(b.spans[s.spanKey()], func(o *Service) bool { return o == s }); len(b.spans[s.spanKey()]) == 0 {
			delete(b.spans, s.spanKey())
		}
	}
	defer b.respan(k, s, e)
	if len(c) == 0 {
		delete(b.claims, k)
	} else {
		b.claims[k] = c
	}
	b.contest(k)
	e.touch(k)
}

// winner is who of those who claim a port has it; nil: nobody.
func (b *book) winner(c []*Service) *Service {
	if len(c) == 0 || b.lost(c[0]) {
		return nil
	}
	return c[0]
}

// respan looks again at the ranges of an address on which a claim changed: of
// a range, or of the first port of one.
func (b *book) respan(k Target, s *Service, e *edit) {
	for _, o := range b.spans[s.spanKey()] {
		if s.Last != 0 || o.target() == k {
			b.spanned(o, e)
			break
		}
	}
	if s.Last != 0 {
		b.warnings = nil
	}
}

func (b *book) contest(k Target) {
	is := len(b.claims[k]) > 1
	if is || b.rivals[k] {
		b.warnings = nil
	}
	if is {
		b.rivals[k] = true
	} else {
		delete(b.rivals, k)
	}
}

// follow reports whether the changes to a view can be made service by
// service: the frame stays, no node went to another zone, and no endpoint moved
// between networks under a service that does not show it.
func (b *book) follow(v *state.View, c *state.Changes) bool {
	if c.All || c.Networks || c.Nodes && !maps.Equal(b.sc.zones, zonesOf(v)) {
		return false
	}
	for _, e := range c.Endpoints {
		if e.Old != nil && e.New != nil && b.sc.far[e.Old.Network] != b.sc.far[e.New.Network] {
			return false
		}
	}
	return true
}

// change turns the book to a view that differs by c, and returns the
// transaction that turns the kernel, with what says which flows are stale. Its
// cost is that of the services in c.
func (b *book) change(v *state.View, c *state.Changes) (Ops, judge) {
	var e edit
	b.view, b.frame.Rev = v, v.Rev
	for _, s := range c.Services {
		if s.New == nil {
			b.put(s.Old.Key(), nil, &e)
		} else {
			b.put(s.New.Key(), b.sc.service(v, s.New), &e)
		}
	}
	if c.Publishes {
		b.publish(b.sc.published(v), &e)
	}
	ops, stale := b.settle(&e)
	ops.add(b.pol.change(v, c)...)
	return ops, stale
}

// warningsNow returns all warnings in the order of Derive. Nobody may change
// what it returns.
func (b *book) warningsNow() []string {
	if b.warnings != nil {
		return b.warnings
	}
	out := []string{}
	for _, name := range slices.Sorted(maps.Keys(b.warned)) {
		out = append(out, b.parts[name].warnings...)
	}
	out = append(out, b.pub.warnings...)
	// Those of virtual addresses first.
	keys := slices.SortedFunc(maps.Keys(b.rivals), func(x, y Target) int {
		if anyAddr(x.Addr) != anyAddr(y.Addr) {
			return map[bool]int{true: 1, false: -1}[anyAddr(x.Addr)]
		}
		return compareTarget(x, y)
	})
	told := make(map[string]bool) // both versions would say the same
	for _, k := range keys {
		for _, loser := range b.claims[k][1:] {
			if w := taken(b.claims[k][0], loser); !told[w] {
				told[w] = true
				out = append(out, w)
			}
		}
	}
	out = append(out, b.overlapping()...)
	b.warnings = out
	return out
}

// table returns the book as a Table with the slots in the kernel's order. It
// costs a walk over everything.
func (b *book) table() Table {
	t := b.frame
	t.services, t.backends = b.services, b.backends
	t.made = newChainset().with(b.made)
	for k, s := range b.ports {
		if !anyAddr(k.Addr) {
			t.Services = append(t.Services, *s)
		} else {
			t.NodePorts = append(t.NodePorts, *s)
		}
	}
	slices.SortFunc(t.Services, compareService)
	slices.SortFunc(t.NodePorts, compareService)
	t.VIPs = slices.SortedFunc(maps.Keys(b.vips.n), netip.Addr.Compare)
	t.External = slices.SortedFunc(maps.Keys(b.external.n), netip.Addr.Compare)
	t.Sticky = slices.SortedFunc(maps.Keys(b.sticky.n), compareTarget)
	t.LocalBackends = b.localBackends()
	t.Remote = slices.SortedFunc(maps.Keys(b.remote.n), compareTarget)
	t.Publishes, t.Loopback = b.pub.publishes, b.pub.loopback
	t.Warnings = b.warningsNow()
	t.policy = b.pol.sets()
	return t
}

func (b *book) localBackends() (out []LocalBackend) {
	for _, x := range slices.SortedFunc(maps.Keys(b.local.n), compareTarget) {
		out = append(out, b.sc.localBackend(x))
	}
	return out
}

// outline is the table without what services change: enough to compare shapes.
func (b *book) outline() Table {
	t := b.frame
	t.made = b.made
	return t
}

// agrees compares the book with one from scratch and names what differs;
// empty: nothing.
func (b *book) agrees() string {
	have := b.table()
	want := arrange(Derive(b.view, b.sc.l), slotsOf(&have))
	switch {
	case !slices.EqualFunc(have.Services, want.Services, equalService):
		return "services"
	case !slices.EqualFunc(have.NodePorts, want.NodePorts, equalService):
		return "node ports"
	case !sameSmall(&have, &want):
		return "addresses, targets or networks"
	case !reflect.DeepEqual(have.policy, want.policy):
		return "policies"
	case !slices.Equal(have.Loopback, want.Loopback):
		return "ports published on loopback"
	case have.services != want.services || have.backends != want.backends:
		return "counts"
	case !slices.Equal(have.Warnings, want.Warnings):
		return "warnings"
	}
	return ""
}

func equalService(a, b Service) bool {
	return a.Name == b.Name && compareService(a, b) == 0 && a.Last == b.Last && a.class() == b.class() && a.Affinity == b.Affinity &&
		slices.Equal(a.Backends, b.Backends) && slices.Equal(a.Sources, b.Sources) && slices.Equal(a.HostAddrs, b.HostAddrs) &&
		slices.Equal(a.Lasting, b.Lasting) && slices.Equal(a.Dead, b.Dead)
}

// equal reports whether two Locals mean the same.
func (l *Local) equal(o *Local) bool { return reflect.DeepEqual(l, o) }
