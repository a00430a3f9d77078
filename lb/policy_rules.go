package lb

import (
	"net/netip"
	"slices"

	"nodenet/state"
)

// The sets of policies; all but setPoliced are in table inet.
type policySet uint8

const (
	setSelectedIn  policySet = iota // daddr → class of what it may get
	setSelectedOut                  // saddr → class of what it may send
	setPeersIn                      // class . saddr → ports
	setPeersOut                     // class . daddr → ports
	setNetsIn                       // the same for ranges of addresses
	setNetsOut
	setPorts   // ports . proto . port range
	setNodes   // addresses of nodes
	setPoliced // address of a local endpoint → MAC of its bridge; table bridge
	numPolicySets
)

// shared reports whether one set serves both versions.
func (s policySet) shared() bool { return s == setPorts }

// declaration returns the set of a version without elements.
func (s policySet) declaration(v Version) Set {
	class, addr := []Kind{KindClass}, addrKind(v)
	selected := func(name, field string) Set {
		return Set{Name: v.name(name), Decl: "typeof " + v.header() + " " + field + " : meta priority", Key: []Kind{addr}, Val: class}
	}
	peers := func(name, field string, interval bool) Set {
		return Set{Name: v.name(name), Decl: "typeof meta priority . " + v.header() + " " + field + " : meta priority",
			Key: []Kind{KindClass, addr}, Val: class, Interval: interval}
	}
	switch s {
	case setSelectedIn:
		return selected("polin", "daddr")
	case setSelectedOut:
		return selected("polout", "saddr")
	case setPeersIn:
		return peers("inpeers", "saddr", false)
	case setPeersOut:
		return peers("outpeers", "daddr", false)
	case setNetsIn:
		return peers("innets", "saddr", true)
	case setNetsOut:
		return peers("outnets", "daddr", true)
	case setPorts:
		return Set{Name: "polports", Decl: "typeof meta priority . meta l4proto . th dport", Key: []Kind{KindClass, KindProto, KindPort}, Interval: true}
	case setNodes:
		return Set{Name: v.name("nodes"), Decl: "type " + addrType(v), Key: []Kind{addr}}
	case setPoliced:
		return Set{Name: v.name("policed"), Decl: "type " + addrType(v) + " : ether_addr", Key: []Kind{addr}, Val: []Kind{KindEther}}
	}
	panic("lb: no such set of policies")
}

func (s policySet) family() string {
	if s == setPoliced {
		return "bridge"
	}
	return "inet"
}

// policySets are the elements of the sets of policies, by set and version. The
// zero value holds none.
type policySets [numPolicySets][len(versions)][]Elem

// of returns the sets of a family in order.
func (p *policySets) of(family string) []Set {
	var out []Set
	for i := range numPolicySets {
		if i.family() != family {
			continue
		}
		for _, v := range versions {
			if i.shared() && v != V4 {
				continue
			}
			s := i.declaration(v)
			s.Elems = p[i][v]
			out = append(out, s)
		}
	}
	return out
}

// diff returns what leads from the sets of one table to those of the next.
func (p *policySets) diff(family string, now *policySets) []SetOp {
	return diffSets(family, p.of(family), now.of(family))
}

// networkSets say which networks there are and which reach one another.
func (t *Table) networkSets() []Set {
	var out []Set
	for _, v := range versions {
		reach := Set{Name: v.name("reach"), Decl: "type " + addrType(v) + " . " + addrType(v), Key: []Kind{addrKind(v), addrKind(v)}, Interval: true}
		add := func(a, b netip.Prefix) {
			reach.Elems = append(reach.Elems, Elem{
				Key: string(key(nil).addr(a.Addr()).addr(b.Addr())), End: string(key(nil).addr(lastAddr(a)).addr(lastAddr(b)))})
		}
		var prefixes []netip.Prefix
		for i := range t.Networks {
			n, p := &t.Networks[i], t.Networks[i].Prefix[v]
			if !p.IsValid() {
				continue
			}
			prefixes = append(prefixes, p)
			add(p, p)
			for j := range t.Networks[i+1:] {
				if o := &t.Networks[i+1+j]; o.Prefix[v].IsValid() && (slices.Contains(n.Peers, o.Name) || slices.Contains(o.Peers, n.Name)) {
					add(p, o.Prefix[v])
					add(o.Prefix[v], p)
				}
			}
		}
		reach.sort()
		out = append(out, intervals(v, "networks", maximal(prefixes)), reach)
	}
	return out
}

// networksOf lists the networks of a view by name. A prefix that overlaps one
// before it, which only a mistake can bring, is left out.
func networksOf(v *state.View, l Local) []NetworkInfo {
	var out []NetworkInfo
	for i := range v.Networks {
		n := NetworkInfo{Name: v.Networks[i].Name, Peers: v.Networks[i].Peers}
		prefixes := []netip.Prefix{v.Networks[i].Prefix}
		for _, b := range l.Bridges {
			if b.Network == n.Name {
				prefixes = append(prefixes, b.Prefix6)
			}
		}
		for _, p := range prefixes {
			ver := versionOf(p.Addr())
			if p.IsValid() && !slices.ContainsFunc(out, func(o NetworkInfo) bool { return o.Prefix[ver].Overlaps(p) }) {
				n.Prefix[ver] = p.Masked()
			}
		}
		out = append(out, n)
	}
	return out
}

// policyChains judge what is forwarded, by its source before masquerade and its
// destination after translation: a connection to a service counts as one
// between client and backend. The class travels to the next lookup in the
// packet's priority, as in the rules of services.
func policyChains() []Chain {
	denied := []Rule{{Count{}, drop}}
	permit := []Rule{{MatchKnown{}, accept}}
	var ways []Chain
	for _, v := range versions {
		saddr, daddr := v.saddr(), v.daddr()
		from, to, both := []Field{saddr}, []Field{daddr}, []Field{saddr, daddr}
		permit = append(permit,
			Rule{MatchSet{Fields: both, Set: v.name("hairpin")}, accept},
			Rule{MatchSet{Fields: from, Set: v.name("networks")}, MatchSet{Fields: to, Set: v.name("networks")},
				MatchSet{Fields: both, Not: true, Set: v.name("reach")}, MatchSet{Fields: from, Not: true, Set: v.name("nodes")}, Do{"goto", "isolated"}},
			Rule{SetPriority{from, v.name("polout")}, jump(v.name("egress"))[0]},
			Rule{SetPriority{to, v.name("polin")}, jump(v.name("ingress"))[0]},
		)
		way := func(name, ports, peers, nets string, other Field) Chain {
			pick := []Field{priority, other}
			return Chain{Name: v.name(name), Rules: append([]Rule{
				{SetPriority{pick, v.name(peers)}, Do{"goto", ports}},
				{SetPriority{pick, v.name(nets)}, Do{"goto", ports}},
			}, denied...)}
		}
		ways = append(ways, way("egress", "egress-ports", "outpeers", "outnets", daddr), way("ingress", "ingress-ports", "inpeers", "innets", saddr))
	}
	onPorts := func(name string) Chain {
		return Chain{Name: name, Rules: append([]Rule{
			{MatchPriority{^class(0), allPorts}, ClearPriority{}, goBack},
			{inL4, MatchSet{Fields: []Field{priority, proto, dport}, Set: "polports"}, ClearPriority{}, goBack},
		}, denied...)}
	}
	return slices.Concat(
		[]Chain{{Name: "permit", Type: "filter", Hook: "forward", Priority: 1, Rules: permit}, {Name: "isolated", Rules: denied}},
		ways, []Chain{onPorts("egress-ports"), onPorts("ingress-ports")},
	)
}

// policeRules lift what endpoints with a policy send and get into the IP stack,
// also where the other end sits on the same bridge: both directions of a flow
// pass the chains above and connection tracking, whether or not the host has
// bridge-nf-call-iptables on and the kernel tracks connections on bridges.
// Neighbour discovery stays on the link, as it must (RFC 4861 §7.1).
func policeRules() []Rule {
	out := []Rule{{MatchIPv6{Bridged: true}, MatchNeighbour{}, accept}}
	for _, v := range versions {
		for _, f := range []Field{v.saddr(), v.daddr()} {
			out = append(out, Rule{MatchUnicast{}, Lift{[]Field{f}, v.name("policed")}})
		}
	}
	return out
}

// PolicyChains are the chains that isolate networks and enforce policies, and
// the one by which the bridge hands packets to them.
var PolicyChains = []string{"lift", "forward", "permit", "isolated", "egress", "egress6", "egress-ports", "ingress", "ingress6", "ingress-ports"}
