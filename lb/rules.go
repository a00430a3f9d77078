package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// TableName is the name of our tables, in the families inet and bridge.
const TableName = "nodenet"

// classes says which bucket sizes have a chain.
type classes [MaxSlots + 1]bool

// Ruleset returns the nftables objects of a table. It is pure.
//
// The range and the resolver are constants of the rules; everything else is
// data in sets, so that only a change of those two replaces the rules.
func (t Table) Ruleset() Ruleset {
	inet := TableSpec{Family: "inet", Name: TableName}
	inet.Sets = append(t.bigSets(), t.smallSets()...)
	inet.Sets = append(inet.Sets, t.networkSets()...)
	inet.Sets = append(inet.Sets, t.policy.of("inet")...)
	lb, np := t.buckets()
	inet.Sets = append(inet.Sets, bucketSet("bkt", "lb", lb), bucketSet("npbkt", "np", np))
	inet.Chains = append(t.chains(), policyChains()...)
	for n := range lb {
		if lb[n] {
			inet.Chains = append(inet.Chains, lbChain(n))
		}
	}
	for n := range np {
		if np[n] {
			inet.Chains = append(inet.Chains, npChain(n))
		}
	}
	addrs := t.Addrs
	if t.Resolver.IsValid() {
		addrs = append(slices.Clone(addrs), t.Resolver)
	}
	return Ruleset{Tables: []TableSpec{inet, t.bridgeTable()}, Addrs: addrs, routes: t.routes}
}

// buckets returns the bucket sizes in use, and those that already exist in
// the kernel: a chain once made is kept until the table is rebuilt.
func (t *Table) buckets() (lb, np classes) {
	lb, np = t.lbClasses, t.npClasses
	for i := range t.Services {
		lb[len(t.Services[i].Backends)] = true
	}
	for i := range t.NodePorts {
		np[len(t.NodePorts[i].Backends)] = true
	}
	lb[0], np[0] = false, false
	return lb, np
}

func bucketSet(name, prefix string, c classes) Set {
	s := Set{Name: name, Decl: "type classid : verdict", Key: []Kind{KindClass}, Val: []Kind{KindVerdict}}
	for n := range c {
		if c[n] {
			s.Elems = append(s.Elems, bucketElem(prefix, n))
		}
	}
	s.sort()
	return s
}

func bucketElem(prefix string, n int) Elem {
	return Elem{Key: string(key(nil).host(uint32(n))), Val: fmt.Sprintf("%s-%d", prefix, n)}
}

// lbChain picks one of n slots. The priority is cleared again, because a
// packet of the host's own keeps it up to the queueing discipline.
func lbChain(n int) Chain {
	return Chain{Name: fmt.Sprintf("lb-%d", n), Rules: []Rule{
		{ClearPriority{}, inL4, DNATMap{[]Field{daddr, proto, dport, slot(n)}, "eps"}},
	}}
}

func npChain(n int) Chain {
	return Chain{Name: fmt.Sprintf("np-%d", n), Rules: []Rule{
		{ClearPriority{}, inL4, DNATMap{[]Field{proto, dport, slot(n)}, "npeps"}},
	}}
}

var (
	inL4     = MatchSet{Fields: []Field{proto}, Set: "l4"}
	loopNet  = netip.MustParsePrefix("127.0.0.0/8")
	accept   = Do{Verb: "accept"}
	drop     = Do{Verb: "drop"}
	goBack   = Do{Verb: "return"}
	reset    = Reject{Reset: true}
	refuse   = Reject{}
	fullTCP  = MatchProto{TCP}
	fullUDP  = MatchProto{UDP}
	fullICMP = MatchProto{ICMP}
)

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// chains returns the fixed part of table inet.
func (t *Table) chains() []Chain {
	var raw, dispatch, guard, resolver, vip, undelivered []Rule
	if r := t.Resolver; r.Is4() {
		to, from := MatchAddr{F: daddr, Prefix: host(r)}, MatchAddr{F: saddr, Prefix: host(r)}
		raw = []Rule{
			{to, inL4, MatchPort{dport, 53}, Notrack{}},
			{from, inL4, MatchPort{sport, 53}, Notrack{}},
		}
		dispatch = []Rule{{to, goBack}}
		guard = []Rule{{to, Do{"goto", "resolver"}}}
		// ICMP errors about answers belong to DNS; a client on the node itself
		// has the resolver's address as its source, and gets the resets that
		// these rules send.
		resolver = []Rule{
			{MatchState{Related: true}, accept},
			{fullICMP, accept},
			{inL4, MatchPort{dport, 53}, accept},
			{from, inL4, MatchPort{sport, 53}, accept},
			{fullTCP, reset},
			{refuse},
		}
		vip = []Rule{{MatchSet{Fields: []Field{daddr}, Set: "vips"}, MatchEcho{}, DNATAddr{r}}}
	}
	vip = append(vip, Rule{inL4, SetPriority{[]Field{daddr, proto, dport}, "svc"}, PriorityVmap{"bkt"}})
	if t.Range.IsValid() {
		in := MatchAddr{F: daddr, Prefix: t.Range}
		dispatch = append(dispatch, Rule{in, Do{"goto", "vip"}})
		guard = append(guard, Rule{in, Do{"goto", "undelivered"}})
	}
	dispatch = append(dispatch, Rule{MatchAddr{F: daddr, Not: true, Prefix: loopNet}, MatchLocal{daddr}, Do{"goto", "host"}})
	// A reset for a packet that conntrack cannot place would kill a good flow.
	known := MatchSet{Fields: []Field{daddr}, Set: "vips"}
	undelivered = []Rule{
		{MatchState{}, drop},
		{known, fullTCP, reset},
		{known, fullUDP, refuse},
		{drop},
	}
	target := []Field{daddr, proto, dport}
	translated := []Rule{
		{MatchSet{Fields: []Field{saddr, daddr}, Set: "hairpin"}, Masquerade{}},
		{MatchSet{Fields: []Field{daddr}, Set: "local"}, goBack},
		{MatchSet{Fields: []Field{saddr}, Set: "local"}, MatchSet{Fields: []Field{saddr}, Set: "cluster"}, goBack},
		{MatchLocal{saddr}, goBack},
	}
	if t.Range.IsValid() {
		translated = append(translated, Rule{MatchAddr{F: origDaddr, Prefix: t.Range}, Masquerade{}})
	}
	translated = append(translated, Rule{inL4, MatchSet{Fields: target, Set: "remote"}, Masquerade{}})

	inside := MatchSet{Fields: []Field{saddr, daddr}, Not: true, Set: "inside"}
	fromInternal, toInternal := MatchSet{Fields: []Field{iif}, Set: "internal"}, MatchSet{Fields: []Field{oif}, Set: "internal"}
	jump := func(c string) []Rule { return []Rule{{Do{"jump", c}}} }
	return []Chain{
		{Name: "raw_pre", Type: "filter", Hook: "prerouting", Priority: -300, Rules: raw},
		{Name: "raw_out", Type: "filter", Hook: "output", Priority: -300, Rules: raw},
		{Name: "pre", Type: "nat", Hook: "prerouting", Priority: -100, Rules: jump("dispatch")},
		{Name: "out", Type: "nat", Hook: "output", Priority: -100, Rules: jump("dispatch")},
		{Name: "guard_pre", Type: "filter", Hook: "prerouting", Priority: -90, Rules: jump("guard")},
		{Name: "guard_out", Type: "filter", Hook: "output", Priority: -90, Rules: jump("guard")},
		{Name: "forward", Type: "filter", Hook: "forward", Priority: 0, Rules: []Rule{
			{MatchSet{Fields: []Field{iif, oif}, Set: "switched"}, accept},
			{fromInternal, inside, drop},
			{toInternal, inside, drop},
			{fromInternal, MatchIPv6{}, drop},
			{toInternal, MatchIPv6{}, drop},
		}},
		{Name: "post", Type: "nat", Hook: "postrouting", Priority: 100, Rules: []Rule{
			{MatchDNAT{}, Do{"jump", "translated"}},
			{
				MatchSet{Fields: []Field{saddr}, Set: "masq"},
				MatchSet{Fields: []Field{daddr}, Not: true, Set: "cluster"},
				MatchSet{Fields: []Field{oif}, Not: true, Set: "links"},
				Masquerade{},
			},
		}},
		{Name: "dispatch", Rules: dispatch},
		{Name: "vip", Rules: vip},
		{Name: "host", Rules: []Rule{
			{inL4, DNATMap{target, "publish"}},
			{inL4, DNATMap{[]Field{proto, dport}, "publishany"}},
			{inL4, SetPriority{[]Field{proto, dport}, "npsvc"}, PriorityVmap{"npbkt"}},
		}},
		{Name: "guard", Rules: guard},
		{Name: "resolver", Rules: resolver},
		{Name: "undelivered", Rules: undelivered},
		{Name: "translated", Rules: translated},
	}
}

// bigSets are those that grow with services and backends. Later changes of
// them are found service by service, see diffServices.
func (t *Table) bigSets() []Set {
	svc := Set{Name: "svc", Decl: "typeof ip daddr . meta l4proto . th dport : meta priority",
		Key: []Kind{KindAddr, KindProto, KindPort}, Val: []Kind{KindClass}}
	eps := Set{Name: "eps", Decl: "typeof ip daddr . meta l4proto . th dport . numgen random mod 256 : ip daddr . th dport",
		Key: []Kind{KindAddr, KindProto, KindPort, KindSlot}, Val: []Kind{KindAddr, KindPort}}
	npsvc := Set{Name: "npsvc", Decl: "typeof meta l4proto . th dport : meta priority",
		Key: []Kind{KindProto, KindPort}, Val: []Kind{KindClass}}
	npeps := Set{Name: "npeps", Decl: "typeof meta l4proto . th dport . numgen random mod 256 : ip daddr . th dport",
		Key: []Kind{KindProto, KindPort, KindSlot}, Val: []Kind{KindAddr, KindPort}}
	fill := func(list []Service, cls, slots *Set) {
		for i := range list {
			s := &list[i]
			k := s.key()
			if n := len(s.Backends); n > 0 {
				cls.Elems = append(cls.Elems, classElem(k, n))
			}
			for n, b := range s.Backends {
				slots.Elems = append(slots.Elems, slotElem(k, n, b))
			}
		}
		cls.sort()
		slots.sort()
	}
	fill(t.Services, &svc, &eps)
	fill(t.NodePorts, &npsvc, &npeps)
	return []Set{svc, eps, npsvc, npeps}
}

func (s *Service) key() key {
	if s.VIP.IsValid() {
		return keyTarget(Target{s.VIP, s.Proto, s.Port})
	}
	return key(nil).proto(s.Proto).port(s.Port)
}

func classElem(k key, n int) Elem {
	return Elem{Key: string(k), Val: string(key(nil).host(uint32(n)))}
}

func slotElem(k key, n int, b netip.AddrPort) Elem {
	return Elem{Key: string(slices.Clip(k).host(uint32(n))), Val: keyAddrPort(b)}
}

// smallSets are those that grow with this node's own workloads and networks.
func (t *Table) smallSets() []Set {
	l4 := Set{Name: "l4", Decl: "type inet_proto", Key: []Kind{KindProto}}
	l4.add(key(nil).proto(TCP), "")
	l4.add(key(nil).proto(UDP), "")
	vips := Set{Name: "vips", Decl: "type ipv4_addr", Key: []Kind{KindAddr}}
	for _, a := range t.VIPs {
		vips.add(key(nil).addr(a), "")
	}
	hairpin := Set{Name: "hairpin", Decl: "type ipv4_addr . ipv4_addr", Key: []Kind{KindAddr, KindAddr}}
	var last netip.Addr
	for _, b := range t.LocalBackends {
		if b.Addr != last { // sorted by address
			hairpin.add(key(nil).addr(b.Addr).addr(b.Addr), "")
		}
		last = b.Addr
	}
	remote := Set{Name: "remote", Decl: "type ipv4_addr . inet_proto . inet_service", Key: []Kind{KindAddr, KindProto, KindPort}}
	for _, x := range t.Remote {
		remote.add(keyTarget(x), "")
	}
	links := Set{Name: "links", Decl: "type ifname", Key: []Kind{KindIfname}}
	for _, l := range t.Links {
		links.add(key(nil).ifname(l), "")
	}
	internal := Set{Name: "internal", Decl: "type ifname", Key: []Kind{KindIfname}}
	switched := Set{Name: "switched", Decl: "type ifname . ifname", Key: []Kind{KindIfname, KindIfname}}
	inside := Set{Name: "inside", Decl: "type ipv4_addr . ipv4_addr", Key: []Kind{KindAddr, KindAddr}, Interval: true}
	var insides []netip.Prefix
	for _, b := range t.Bridges {
		if !b.Internal {
			continue
		}
		internal.add(key(nil).ifname(b.Name), "")
		switched.add(key(nil).ifname(b.Name).ifname(b.Name), "")
		insides = append(insides, b.Prefix)
	}
	for _, p := range maximal(insides) {
		first, end := p.Addr(), lastAddr(p)
		inside.Elems = append(inside.Elems, Elem{Key: string(key(nil).addr(first).addr(first)), End: string(key(nil).addr(end).addr(end))})
	}
	sets := append(publishSets(t.Publishes),
		l4, vips, hairpin, remote,
		intervals("masq", t.Masquerade), intervals("cluster", t.Cluster), intervals("local", t.Local),
		links, internal, switched, inside,
	)
	for i := range sets {
		sets[i].sort()
	}
	return sets
}

func publishSets(ps []Publish) []Set {
	publish := Set{Name: "publish", Decl: "typeof ip daddr . meta l4proto . th dport : ip daddr . th dport",
		Key: []Kind{KindAddr, KindProto, KindPort}, Val: []Kind{KindAddr, KindPort}}
	publishAny := Set{Name: "publishany", Decl: "typeof meta l4proto . th dport : ip daddr . th dport",
		Key: []Kind{KindProto, KindPort}, Val: []Kind{KindAddr, KindPort}}
	for _, p := range ps {
		if p.HostAddr.IsValid() {
			publish.add(keyTarget(Target{p.HostAddr, p.Proto, p.HostPort}), keyAddrPort(p.Target))
		} else {
			publishAny.add(key(nil).proto(p.Proto).port(p.HostPort), keyAddrPort(p.Target))
		}
	}
	publish.sort()
	publishAny.sort()
	return []Set{publish, publishAny}
}

func (t *Table) bridgeTable() TableSpec {
	m := Set{Name: "backends", Decl: "type ipv4_addr . inet_proto . inet_service : ether_addr",
		Key: []Kind{KindAddr, KindProto, KindPort}, Val: []Kind{KindEther}}
	for _, b := range t.LocalBackends {
		if b.MAC != [6]byte{} {
			m.add(keyTarget(b.Target), string(key(nil).ether(b.MAC)))
		}
	}
	m.sort()
	return TableSpec{Family: "bridge", Name: TableName, Sets: append([]Set{m}, t.policy.of("bridge")...), Chains: []Chain{
		{Name: "lift", Type: "filter", Hook: "prerouting", Priority: 0, Rules: append([]Rule{
			{MatchUnicast{}, Lift{[]Field{saddr, proto, sport}, "backends"}},
		}, policeRules()...)},
	}}
}

func (s *Set) add(k key, val string) {
	s.Elems = append(s.Elems, Elem{Key: string(k), Val: val})
}

// sort orders the elements and keeps the first of equal keys.
func (s *Set) sort() {
	slices.SortStableFunc(s.Elems, func(a, b Elem) int { return strings.Compare(a.Key, b.Key) })
	s.Elems = slices.CompactFunc(s.Elems, func(a, b Elem) bool { return a.Key == b.Key })
}

// intervals makes an interval set of disjoint sorted prefixes; ranges that
// touch become one.
func intervals(name string, ps []netip.Prefix) Set {
	s := Set{Name: name, Decl: "type ipv4_addr", Key: []Kind{KindAddr}, Interval: true}
	for _, p := range ps {
		e := Elem{Key: string(key(nil).addr(p.Masked().Addr()))}
		if next := lastAddr(p).Next(); next.IsValid() {
			e.End = string(key(nil).addr(next))
		}
		if n := len(s.Elems); n > 0 && s.Elems[n-1].End == e.Key {
			s.Elems[n-1].End = e.End
			continue
		}
		s.Elems = append(s.Elems, e)
	}
	return s
}

// lastAddr returns the highest address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
