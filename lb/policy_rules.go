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

// declaration returns a set without elements.
func (s policySet) declaration() Set {
	switch s {
	case setSelectedIn:
		return Set{Name: "polin", Decl: "typeof ip daddr : meta priority", Key: []Kind{KindAddr}, Val: []Kind{KindClass}}
	case setSelectedOut:
		return Set{Name: "polout", Decl: "typeof ip saddr : meta priority", Key: []Kind{KindAddr}, Val: []Kind{KindClass}}
	case setPeersIn:
		return Set{Name: "inpeers", Decl: "typeof meta priority . ip saddr : meta priority", Key: []Kind{KindClass, KindAddr}, Val: []Kind{KindClass}}
	case setPeersOut:
		return Set{Name: "outpeers", Decl: "typeof meta priority . ip daddr : meta priority", Key: []Kind{KindClass, KindAddr}, Val: []Kind{KindClass}}
	case setNetsIn:
		return Set{Name: "innets", Decl: "typeof meta priority . ip saddr : meta priority", Key: []Kind{KindClass, KindAddr}, Val: []Kind{KindClass}, Interval: true}
	case setNetsOut:
		return Set{Name: "outnets", Decl: "typeof meta priority . ip daddr : meta priority", Key: []Kind{KindClass, KindAddr}, Val: []Kind{KindClass}, Interval: true}
	case setPorts:
		return Set{Name: "polports", Decl: "typeof meta priority . meta l4proto . th dport", Key: []Kind{KindClass, KindProto, KindPort}, Interval: true}
	case setNodes:
		return Set{Name: "nodes", Decl: "type ipv4_addr", Key: []Kind{KindAddr}}
	case setPoliced:
		return Set{Name: "policed", Decl: "type ipv4_addr : ether_addr", Key: []Kind{KindAddr}, Val: []Kind{KindEther}}
	}
	panic("lb: no such set of policies")
}

func (s policySet) family() string {
	if s == setPoliced {
		return "bridge"
	}
	return "inet"
}

// policySets are the sets of policies with their elements, by policySet. The
// zero value holds none.
type policySets [numPolicySets][]Elem

// of returns the sets of a family in order.
func (p *policySets) of(family string) []Set {
	var out []Set
	for i := range numPolicySets {
		if i.family() == family {
			s := i.declaration()
			s.Elems = p[i]
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
	reach := Set{Name: "reach", Decl: "type ipv4_addr . ipv4_addr", Key: []Kind{KindAddr, KindAddr}, Interval: true}
	var prefixes []netip.Prefix
	for _, n := range t.Networks {
		prefixes = append(prefixes, n.Prefix)
	}
	add := func(a, b netip.Prefix) {
		reach.Elems = append(reach.Elems, Elem{
			Key: string(key(nil).addr(a.Addr()).addr(b.Addr())), End: string(key(nil).addr(lastAddr(a)).addr(lastAddr(b)))})
	}
	for i, n := range t.Networks {
		add(n.Prefix, n.Prefix)
		for _, o := range t.Networks[i+1:] {
			if slices.Contains(n.Peers, o.Name) || slices.Contains(o.Peers, n.Name) {
				add(n.Prefix, o.Prefix)
				add(o.Prefix, n.Prefix)
			}
		}
	}
	reach.sort()
	return []Set{intervals("networks", maximal(prefixes)), reach}
}

// networksOf lists the networks of a view by name. Of two that overlap, which
// only a mistake can bring, the first counts.
func networksOf(v *state.View) []NetworkInfo {
	var out []NetworkInfo
	for i := range v.Networks {
		n := &v.Networks[i]
		if !n.Prefix.IsValid() || !n.Prefix.Addr().Is4() || slices.ContainsFunc(out, func(o NetworkInfo) bool { return o.Prefix.Overlaps(n.Prefix) }) {
			continue
		}
		out = append(out, NetworkInfo{n.Name, n.Prefix.Masked(), n.Peers})
	}
	return out
}

// policyChains judge what is forwarded, by its source before masquerade and its
// destination after translation: a connection to a service counts as one
// between client and backend. The class travels to the next lookup in the
// packet's priority, as in the rules of services.
func policyChains() []Chain {
	from, to := []Field{saddr}, []Field{daddr}
	permit := []Rule{
		{MatchKnown{}, accept},
		{MatchSet{Fields: []Field{saddr, daddr}, Set: "hairpin"}, accept},
		{MatchSet{Fields: from, Set: "networks"}, MatchSet{Fields: to, Set: "networks"},
			MatchSet{Fields: []Field{saddr, daddr}, Not: true, Set: "reach"}, MatchSet{Fields: from, Not: true, Set: "nodes"}, Do{"goto", "isolated"}},
		{SetPriority{from, "polout"}, Do{"jump", "egress"}},
		{SetPriority{to, "polin"}, Do{"jump", "ingress"}},
	}
	denied := []Rule{{Count{}, drop}}
	way := func(name, ports, peers, nets string, other Field) []Chain {
		pick := []Field{priority, other}
		return []Chain{
			{Name: name, Rules: append([]Rule{
				{SetPriority{pick, peers}, Do{"goto", ports}},
				{SetPriority{pick, nets}, Do{"goto", ports}},
			}, denied...)},
			{Name: ports, Rules: append([]Rule{
				{MatchPriority{allPorts}, ClearPriority{}, goBack},
				{inL4, MatchSet{Fields: []Field{priority, proto, dport}, Set: "polports"}, ClearPriority{}, goBack},
			}, denied...)},
		}
	}
	return slices.Concat(
		[]Chain{{Name: "permit", Type: "filter", Hook: "forward", Priority: 1, Rules: permit}, {Name: "isolated", Rules: denied}},
		way("egress", "egress-ports", "outpeers", "outnets", daddr),
		way("ingress", "ingress-ports", "inpeers", "innets", saddr),
	)
}

// policeRules lift what endpoints with a policy send and get into the IP stack,
// also where the other end sits on the same bridge: both directions of a flow
// pass the chains above and connection tracking, whether or not the host has
// bridge-nf-call-iptables on and the kernel tracks connections on bridges.
func policeRules() []Rule {
	return []Rule{
		{MatchUnicast{}, Lift{[]Field{saddr}, "policed"}},
		{MatchUnicast{}, Lift{[]Field{daddr}, "policed"}},
	}
}

// PolicyChains are the chains that isolate networks and enforce policies, and
// the one by which the bridge hands packets to them.
var PolicyChains = []string{"lift", "forward", "permit", "isolated", "egress", "egress-ports", "ingress", "ingress-ports"}
