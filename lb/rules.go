package lb

import (
	"net/netip"
	"slices"
)

// TableName is the name of our tables, in the families inet and bridge.
const TableName = "nodenet"

// Ruleset returns the nftables objects of a table. It is pure.
//
// The ranges and the resolvers are constants of the rules; everything else is
// data in sets, so that only a change of those replaces the rules.
func (t Table) Ruleset() Ruleset {
	inet := TableSpec{Family: "inet", Name: TableName}
	inet.Sets = append(t.bigSets(), t.smallSets()...)
	inet.Sets = append(inet.Sets, t.networkSets()...)
	inet.Sets = append(inet.Sets, t.policy.of("inet")...)
	made := t.chainset()
	inet.Sets = append(inet.Sets, made.bucketSets()...)
	inet.Chains = slices.Concat(t.chains(), policyChains(), made.chains())
	addrs := slices.Clone(t.Addrs)
	for _, v := range versions {
		if a := t.resolver(v); a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return Ruleset{Tables: []TableSpec{inet, t.bridgeTable()}, Addrs: addrs, routes: t.routes}
}

// chainset returns the chains that the table needs, and those that exist in
// the kernel: a chain once made is kept until the table is rebuilt.
func (t *Table) chainset() chainset {
	c := newChainset().with(t.made)
	for _, list := range [][]Service{t.Services, t.NodePorts} {
		for i := range list {
			c.need(&list[i])
		}
	}
	return c
}

var (
	inL4    = MatchSet{Fields: []Field{proto}, Set: "l4"}
	accept  = Do{Verb: "accept"}
	drop    = Do{Verb: "drop"}
	goBack  = Do{Verb: "return"}
	reset   = Reject{Reset: true}
	fullTCP = MatchProto{TCP}
)

// refuseSCTP is what ends an attempt to associate at once. After an error about
// the port SCTP goes on trying (RFC 9260 §10, ICMP8 and ICMP9). Of IPv6 the
// error that it wants is a parameter problem, which no rule can send.
func refuseSCTP(matches ...Stmt) Rule {
	return append(matches, MatchProto{SCTP}, Reject{V: V4, Protocol: true})
}

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
	raw, guard := v4.raw, []Rule{{MatchPriority{Mask: afterMask, Value: after}, Do{"jump", "marked"}}, jump("guard")}
	if len(v6.raw) > 0 {
		raw = append(raw, Rule{MatchIPv6{}, Do{"jump", "raw6"}})
	}
	if len(v6.guard) > 0 {
		guard = append(guard, Rule{MatchIPv6{}, Do{"jump", "guard6"}})
	}
	dispatch := []Rule{jump("dispatch"), {MatchIPv6{}, Do{"jump", "dispatch6"}}}
	forward := []Rule{clampRule(), jump("internals")}
	post := []Rule{{MatchDNAT{}, Do{"jump", "translated"}}}
	for _, v := range versions {
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
		t.internals(),
	}, v4.chains(V4), []Chain{{Name: "raw6", Rules: v6.raw}}, v6.chains(V6), marked())
}

// internals keeps internal networks to themselves. What is forwarded pays for
// its lookups, packet by packet, where there are such networks, and only there.
func (t *Table) internals() Chain {
	out := Chain{Name: "internals"}
	if !t.hasInternal() {
		return out
	}
	from, to := MatchSet{Fields: []Field{iif}, Set: "internal"}, MatchSet{Fields: []Field{oif}, Set: "internal"}
	out.Rules = []Rule{{MatchSet{Fields: []Field{iif, oif}, Set: "switched"}, accept}}
	for _, v := range versions {
		outside := MatchSet{Fields: []Field{v.saddr(), v.daddr()}, Not: true, Set: v.name("inside")}
		out.Rules = append(out.Rules, Rule{from, outside, drop}, Rule{to, outside, drop})
	}
	return out
}

func (t *Table) hasInternal() bool {
	return slices.ContainsFunc(t.Bridges, func(b Bridge) bool { return b.Internal })
}

// marked returns the chains of classes that have no slots, and the one for
// packets that still have a class after translation: those of sticky services,
// for which is learned who got which backend, and those that nobody is there
// for. Translation is no place to refuse a packet.
func marked() []Chain {
	refused := MatchPriority{Mask: ^class(0), Value: refusing}
	rules := []Rule{{refused, fullTCP, reset}, refuseSCTP(refused)}
	for _, v := range versions {
		rules = append(rules, Rule{refused, Reject{V: v}})
	}
	return []Chain{
		{Name: "marked", Rules: append(rules, Rule{ProtoVmap{"learners"}}, Rule{ClearPriority{}})},
		{Name: "nowhere", Rules: []Rule{{drop}}},
		{Name: "later", Rules: []Rule{{accept}}},
	}
}

// versionRules are the rules of the chains that exist for each version.
type versionRules struct{ raw, dispatch, vip, external, host, guard, resolver, undelivered, translated []Rule }

func (r *versionRules) chains(v Version) []Chain {
	return []Chain{
		{Name: v.name("dispatch"), Rules: r.dispatch},
		{Name: v.name("vip"), Rules: r.vip},
		{Name: v.name("external"), Rules: r.external},
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
		}
		if v == V4 {
			r.resolver = append(r.resolver, refuseSCTP())
		}
		r.resolver = append(r.resolver, Rule{refuse})
		r.vip = []Rule{{MatchEcho{v}, known, DNATAddr{a}}}
	}
	served := []Rule{
		{inL4, SetPriority{target, v.name("svc")}, PriorityVmap{"bkt"}},
		{inL4, SetPriority{target, v.name("ranges")}, PriorityVmap{"bkt"}},
	}
	r.vip = append(r.vip, served...)
	// An address of the host's own has other ports than ours.
	r.external = append(served, Rule{MatchLocal{daddr}, Do{"goto", v.name("host")}})
	if a := t.resolver(v); a.IsValid() {
		r.external = append(r.external, Rule{MatchEcho{v}, DNATAddr{a}})
	}
	r.external = append(r.external, Rule{inL4, PutPriority{refusing}})
	if p := t.serviceRange(v); p.IsValid() {
		in := MatchAddr{F: daddr, Prefix: p}
		r.dispatch = append(r.dispatch, Rule{in, Do{"goto", v.name("vip")}})
		r.guard = append(r.guard, Rule{in, Do{"goto", v.name("undelivered")}})
	}
	r.dispatch = append(r.dispatch, Rule{MatchSet{Fields: []Field{daddr}, Set: v.name("external")}, Do{"goto", v.name("external")}})
	var own Rule
	for _, p := range never(v) {
		own = append(own, MatchAddr{F: daddr, Not: true, Prefix: p})
	}
	r.dispatch = append(r.dispatch, append(own, MatchLocal{daddr}, Do{"goto", v.name("host")}))
	r.host = []Rule{
		{inL4, DNATMap{V: v, Fields: target, Map: v.name("publish")}},
		{inL4, DNATMap{V: v, Fields: []Field{proto, dport}, Map: v.name("publishany")}},
		{inL4, SetPriority{[]Field{proto, dport}, v.name("npsvc")}, PriorityVmap{"npbkt"}},
	}
	if v == V6 {
		// A host that takes a virtual address for its neighbour must be able to
		// ask for it.
		r.undelivered = []Rule{{MatchNeighbour{}, accept}}
	}
	// A reset for a packet that conntrack cannot place would kill a good flow.
	r.undelivered = append(r.undelivered, Rule{MatchState{}, drop}, Rule{known, fullTCP, reset})
	if v == V4 {
		r.undelivered = append(r.undelivered, refuseSCTP(known))
	}
	r.undelivered = append(r.undelivered, Rule{known, inL4, refuse}, Rule{drop})
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
