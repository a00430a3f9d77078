package lb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// bucketSets are the verdict maps from classes to chains. They are as small as
// the number of different classes, since a verdict map is checked as a whole
// with every change.
func (c chainset) bucketSets() []Set {
	empty := func(name string) Set {
		return Set{Name: name, Decl: "type classid : verdict", Key: []Kind{KindClass}, Val: []Kind{KindVerdict}}
	}
	bkt, npbkt, keep := empty("bkt"), empty("npbkt"), empty("keepbkt")
	learners := Set{Name: "learners", Decl: "type inet_proto : verdict", Key: []Kind{KindProto}, Val: []Kind{KindVerdict}}
	if len(c.keep) > 0 {
		for _, p := range []uint8{TCP, UDP, SCTP} {
			learners.add(key(nil).proto(p), "learn")
		}
	}
	bkt.Elems = []Elem{{Key: dropping.elem(), Val: "nowhere"}, {Key: refusing.elem(), Val: "later"}}
	npbkt.Elems = []Elem{{Key: dropping.elem(), Val: "nowhere"}}
	for k := range c.lb {
		bkt.Elems = append(bkt.Elems, Elem{Key: k.elem(), Val: k.chainName(false)})
	}
	for k := range c.np {
		npbkt.Elems = append(npbkt.Elems, Elem{Key: k.elem(), Val: k.chainName(true)})
	}
	for n := range c.keep {
		keep.Elems = append(keep.Elems, Elem{Key: class(n).elem(), Val: keepName(n)})
	}
	out := []Set{bkt, npbkt, keep, learners}
	for i := range out {
		out[i].sort()
	}
	return out
}

func keepName(seconds uint32) string { return fmt.Sprintf("keep-%d", seconds) }

// chains are those of the set, sorted.
func (c chainset) chains() []Chain {
	var out []Chain
	for _, k := range slices.Sorted(maps.Keys(c.lb)) {
		out = append(out, k.chain(false))
	}
	for _, k := range slices.Sorted(maps.Keys(c.np)) {
		out = append(out, k.chain(true))
	}
	for _, n := range slices.Sorted(maps.Keys(c.keep)) {
		out = append(out, keepChain(n))
	}
	if len(c.keep) > 0 {
		out = append(out, learnChain())
	}
	return out
}

// addChains makes the chains that are used for the first time, and leads to
// them.
func (o *Ops) addChains(old, now chainset) {
	had := make(map[string]bool)
	for _, c := range old.chains() {
		had[c.Name] = true
	}
	for _, c := range now.chains() {
		if !had[c.Name] {
			o.Chains = append(o.Chains, ChainOp{Family: "inet", Chain: c})
		}
	}
	o.Sets = append(o.Sets, diffSets("inet", old.bucketSets(), now.bucketSets())...)
}

// chain is that of a class. It serves both versions: a service may have as many
// backends of the one as another has of the other. The priority is cleared,
// because a packet of the host's own keeps it up to the queueing discipline;
// that of sticky services is looked at once more.
func (c class) chain(nodePorts bool) Chain {
	out := Chain{Name: c.chainName(nodePorts)}
	var lead Rule
	if c&sticky != sticky {
		lead = Rule{ClearPriority{}}
	}
	add := func(r ...Stmt) {
		out.Rules = append(out.Rules, append(lead, r...))
		lead = nil
	}
	prefix := ""
	if nodePorts {
		prefix = "np"
	}
	for _, v := range versions {
		port := []Field{v.daddr(), proto, dport}
		if nodePorts {
			port = port[1:]
		}
		if c&onSome != 0 {
			add(inL4, MatchSet{Fields: []Field{v.daddr(), proto, dport}, Not: true, Set: v.name("npon")}, ClearPriority{}, goBack)
		}
		if c&fromSome != 0 {
			from := prefix + "from"
			if c&inRange != 0 {
				from = "rangefrom"
			}
			add(inL4, MatchSet{Fields: append([]Field{v.saddr()}, port...), Not: true, Set: v.name(from)}, drop)
		}
		if c&sticky == sticky {
			// What is remembered of a backend that is not one any more is forgotten.
			client := []Field{v.saddr(), v.daddr(), proto, dport}
			add(inL4, SetPriority{client, v.name("aff")},
				DNATMap{V: v, Fields: append(slices.Clip(port), priority), Map: v.name(prefix + "affeps")})
			add(inL4, Unlearn{V: v, Fields: client, Map: v.name("aff")})
		}
		pick := Field{ID: FieldSlot, Mod: uint32(c.slots())}
		if c&(bySource|byMaglev) != 0 {
			pick = Field{ID: FieldHash, Mod: uint32(c.slots()), V: v}
		}
		to := DNATMap{V: v, Fields: append(slices.Clip(port), pick), Map: v.name(prefix + "eps")}
		if c&inRange != 0 {
			to.Map, to.KeepPort = v.name("rangeeps"), true
		}
		add(inL4, to)
	}
	return out
}

// learnChain finds for how long a client keeps its backend. It exists once some
// service has affinity, because nft 1.0.6 prints such rules but cannot read
// them: all other rulesets can be given to it.
func learnChain() Chain {
	out := Chain{Name: "learn"}
	for _, v := range versions {
		out.Rules = append(out.Rules,
			Rule{inL4, SetPriority{[]Field{v.origDaddr(), proto, origDport}, v.name("keep")}, PriorityVmap{"keepbkt"}},
			Rule{inL4, SetPriority{[]Field{proto, origDport}, v.name("npkeep")}, PriorityVmap{"keepbkt"}},
		)
	}
	out.Rules = append(out.Rules, Rule{ClearPriority{}})
	return out
}

// keepChain learns which backend a client got. It comes after translation, when
// the packet has the backend's address; what the client sent to is conntrack's.
func keepChain(seconds uint32) Chain {
	out := Chain{Name: keepName(seconds)}
	for _, v := range versions {
		out.Rules = append(out.Rules, Rule{
			inL4, SetPriority{[]Field{v.daddr(), proto, dport}, v.name("ids")},
			Learn{V: v, Fields: []Field{v.saddr(), v.origDaddr(), proto, origDport}, Map: v.name("aff"), Seconds: seconds},
		})
	}
	out.Rules = append(out.Rules, Rule{ClearPriority{}})
	return out
}

// backendID is what the affinity of a client remembers: the backend's identity
// on every node and in every version. Two backends of a service would share
// one in less than one of four thousand services of 256; clients of the one
// then go over to the other.
func backendID(b netip.AddrPort) class { return identified | class(identity(b))&0x7ffffff }
