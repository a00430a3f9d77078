package lb

import (
	"fmt"
	"net/netip"
	"slices"
)

// TableName is the name of our tables, in the families inet and bridge.
const TableName = "nodenet"

// classes says which bucket sizes have a chain.
type classes [MaxSlots + 1]bool

// Ruleset returns the nftables objects of a table. It is pure.
//
// The ranges and the resolvers are constants of the rules; everything else is
// data in sets, so that only a change of those replaces the rules.
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
	addrs := slices.Clone(t.Addrs)
	for _, v := range versions {
		if a := t.resolver(v); a.IsValid() {
			addrs = append(addrs, a)
		}
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
	return bucketChain(fmt.Sprintf("lb-%d", n), func(v Version) DNATMap {
		return DNATMap{v, []Field{v.daddr(), proto, dport, slot(n)}, v.name("eps")}
	})
}

func npChain(n int) Chain {
	return bucketChain(fmt.Sprintf("np-%d", n), func(v Version) DNATMap {
		return DNATMap{v, []Field{proto, dport, slot(n)}, v.name("npeps")}
	})
}

// bucketChain serves both versions: a service may have as many backends of
// the one as another has of the other.
func bucketChain(name string, to func(Version) DNATMap) Chain {
	return Chain{Name: name, Rules: []Rule{{ClearPriority{}, inL4, to(V4)}, {inL4, to(V6)}}}
}

var (
	inL4    = MatchSet{Fields: []Field{proto}, Set: "l4"}
	accept  = Do{Verb: "accept"}
	drop    = Do{Verb: "drop"}
	goBack  = Do{Verb: "return"}
	reset   = Reject{Reset: true}
	fullTCP = MatchProto{TCP}
	fullUDP = MatchProto{UDP}
)

// never are the host's own addresses that node ports and published ports do
// not answer on: those that mean another host to everybody else.
func never(v Version) []netip.Prefix {
	if v == V6 {
		return []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10")}
	}
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

func icmp(v Version) uint8 { return [...]uint8{V4: ICMP, V6: ICMPv6}[v] }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func jump(c string) Rule { return Rule{Do{"jump", c}} }

// chains returns the fixed part of table inet. IPv4 comes first everywhere,
// and IPv6 costs it one comparison where a chain is left unmatched.
func (t *Table) chains() []Chain {
	v4, v6 := t.versionRules(V4), t.versionRules(V6)
	raw, guard := v4.raw, []Rule{jump("guard")}
	if len(v6.raw) > 0 {
		raw = append(raw, Rule{MatchIPv6{}, Do{"jump", "raw6"}})
	}
	if len(v6.guard) > 0 {
		guard = append(guard, Rule{MatchIPv6{}, Do{"jump", "guard6"}})
	}
	dispatch := []Rule{jump("dispatch"), {MatchIPv6{}, Do{"jump", "dispatch6"}}}
	fromInternal, toInternal := MatchSet{Fields: []Field{iif}, Set: "internal"}, MatchSet{Fields: []Field{oif}, Set: "internal"}
	forward := []Rule{{MatchSet{Fields: []Field{iif, oif}, Set: "switched"}, accept}}
	post := []Rule{{MatchDNAT{}, Do{"jump", "translated"}}}
	for _, v := range versions {
		outside := MatchSet{Fields: []Field{v.saddr(), v.daddr()}, Not: true, Set: v.name("inside")}
		forward = append(forward, Rule{fromInternal, outside, drop}, Rule{toInternal, outside, drop})
		if v == V6 {
			post = append(post, Rule{MatchIPv6{}, MatchDNAT{}, Do{"jump", "translated6"}})
		}
		post = append(post, Rule{
			MatchSet{Fields: []Field{v.saddr()}, Set: v.name("masq")},
			MatchSet{Fields: []Field{v.daddr()}, Not: true, Set: v.name("cluster")},
			MatchSet{Fields: []Field{oif}, Not: true, Set: "links"},
			Masquerade{},
		})
	}
	return slices.Concat([]Chain{
		{Name: "raw_pre", Type: "filter", Hook: "prerouting", Priority: -300, Rules: raw},
		{Name: "raw_out", Type: "filter", Hook: "output", Priority: -300, Rules: raw},
		{Name: "pre", Type: "nat", Hook: "prerouting", Priority: -100, Rules: dispatch},
		{Name: "out", Type: "nat", Hook: "output", Priority: -100, Rules: dispatch},
		{Name: "guard_pre", Type: "filter", Hook: "prerouting", Priority: -90, Rules: guard},
		{Name: "guard_out", Type: "filter", Hook: "output", Priority: -90, Rules: guard},
		{Name: "forward", Type: "filter", Hook: "forward", Priority: 0, Rules: forward},
		{Name: "post", Type: "nat", Hook: "postrouting", Priority: 100, Rules: post},
	}, v4.chains(V4), []Chain{{Name: "raw6", Rules: v6.raw}}, v6.chains(V6))
}

// versionRules are the rules of the chains that exist for each version.
type versionRules struct{ raw, dispatch, vip, host, guard, resolver, undelivered, translated []Rule }

func (r *versionRules) chains(v Version) []Chain {
	return []Chain{
		{Name: v.name("dispatch"), Rules: r.dispatch},
		{Name: v.name("vip"), Rules: r.vip},
		{Name: v.name("host"), Rules: r.host},
		{Name: v.name("guard"), Rules: r.guard},
		{Name: v.name("resolver"), Rules: r.resolver},
		{Name: v.name("undelivered"), Rules: r.undelivered},
		{Name: v.name("translated"), Rules: r.translated},
	}
}

func (t *Table) versionRules(v Version) versionRules {
	var r versionRules
	saddr, daddr := v.saddr(), v.daddr()
	target := []Field{daddr, proto, dport}
	known := MatchSet{Fields: []Field{daddr}, Set: v.name("vips")}
	refuse := Reject{V: v}
	if a := t.resolver(v); a.IsValid() {
		to, from := MatchAddr{F: daddr, Prefix: host(a)}, MatchAddr{F: saddr, Prefix: host(a)}
		r.raw = []Rule{
			{to, inL4, MatchPort{dport, 53}, Notrack{}},
			{from, inL4, MatchPort{sport, 53}, Notrack{}},
		}
		r.dispatch = []Rule{{to, goBack}}
		r.guard = []Rule{{to, Do{"goto", v.name("resolver")}}}
		// ICMP errors about answers belong to DNS; a client on the node itself
		// has the resolver's address as its source, and gets the resets that
		// these rules send.
		r.resolver = []Rule{
			{MatchState{Related: true}, accept},
			{MatchProto{icmp(v)}, accept},
			{inL4, MatchPort{dport, 53}, accept},
			{from, inL4, MatchPort{sport, 53}, accept},
			{fullTCP, reset},
			{refuse},
		}
		r.vip = []Rule{{known, MatchEcho{v}, DNATAddr{a}}}
	}
	r.vip = append(r.vip, Rule{inL4, SetPriority{target, v.name("svc")}, PriorityVmap{"bkt"}})
	if p := t.serviceRange(v); p.IsValid() {
		in := MatchAddr{F: daddr, Prefix: p}
		r.dispatch = append(r.dispatch, Rule{in, Do{"goto", v.name("vip")}})
		r.guard = append(r.guard, Rule{in, Do{"goto", v.name("undelivered")}})
	}
	var own Rule
	for _, p := range never(v) {
		own = append(own, MatchAddr{F: daddr, Not: true, Prefix: p})
	}
	r.dispatch = append(r.dispatch, append(own, MatchLocal{daddr}, Do{"goto", v.name("host")}))
	r.host = []Rule{
		{inL4, DNATMap{v, target, v.name("publish")}},
		{inL4, DNATMap{v, []Field{proto, dport}, v.name("publishany")}},
		{inL4, SetPriority{[]Field{proto, dport}, v.name("npsvc")}, PriorityVmap{"npbkt"}},
	}
	if v == V6 {
		// A host that takes a virtual address for its neighbour must be able to
		// ask for it.
		r.undelivered = []Rule{{MatchNeighbour{}, accept}}
	}
	// A reset for a packet that conntrack cannot place would kill a good flow.
	r.undelivered = append(r.undelivered,
		Rule{MatchState{}, drop},
		Rule{known, fullTCP, reset},
		Rule{known, fullUDP, refuse},
		Rule{drop},
	)
	r.translated = []Rule{
		{MatchSet{Fields: []Field{saddr, daddr}, Set: v.name("hairpin")}, Masquerade{}},
		{MatchSet{Fields: []Field{daddr}, Set: v.name("local")}, goBack},
		{MatchSet{Fields: []Field{saddr}, Set: v.name("local")}, MatchSet{Fields: []Field{saddr}, Set: v.name("cluster")}, goBack},
		{MatchLocal{saddr}, goBack},
	}
	if p := t.serviceRange(v); p.IsValid() {
		r.translated = append(r.translated, Rule{MatchAddr{F: v.origDaddr(), Prefix: p}, Masquerade{}})
	}
	r.translated = append(r.translated, Rule{inL4, MatchSet{Fields: target, Set: v.name("remote")}, Masquerade{}})
	return r
}
