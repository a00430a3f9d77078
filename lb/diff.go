package lb

import (
	"net/netip"
	"slices"
)

// slots are services with their backends in the order of slots that the
// kernel has, sorted by key.
type slots struct {
	services, nodePorts []Service
	published           []Target // observed ones only
	made                chainset
}

func slotsOf(t *Table) slots {
	return slots{services: t.Services, nodePorts: t.NodePorts, made: t.chainset()}
}

// slotsObserved reads the slots back from the kernel's elements.
func slotsObserved(have []Observed) slots {
	s := slots{made: newChainset()}
	for _, o := range have {
		if o.Family != "inet" {
			continue
		}
		for _, v := range versions {
			for _, name := range []string{"eps", "rangeeps"} {
				s.services = append(s.services, readSlots(o.Elems[v.name(name)], v, false)...)
			}
			s.nodePorts = append(s.nodePorts, readSlots(o.Elems[v.name("npeps")], v, true)...)
			s.published = append(s.published, readPublished(o.Elems[v.name("publish")], v, false)...)
			s.published = append(s.published, readPublished(o.Elems[v.name("publishany")], v, true)...)
		}
		for name := range o.Shape.Chains {
			s.made.named(name)
		}
	}
	slices.SortStableFunc(s.services, compareService)
	slices.SortStableFunc(s.nodePorts, compareService)
	return s
}

// arrange returns t with every backend in the slot that it already has, so
// that one backend more or less moves no other: the last slot goes into the
// hole.
func arrange(t Table, have slots) Table {
	t.Services = arrangeServices(t.Services, have.services)
	t.NodePorts = arrangeServices(t.NodePorts, have.nodePorts)
	t.made = t.chainset().with(have.made)
	return t
}

func arrangeServices(want, have []Service) []Service {
	out := slices.Clone(want)
	i := 0
	for n := range out {
		for i < len(have) && compareService(have[i], out[n]) < 0 {
			i++
		}
		if i < len(have) && compareService(have[i], out[n]) == 0 {
			out[n].Backends = out[n].place(have[i].Backends)
		}
	}
	return out
}

// place returns the slots of a service that had others.
func (s *Service) place(had []netip.AddrPort) []netip.AddrPort {
	if s.Rule&byMaglev != 0 {
		return s.Backends // every slot has its place
	}
	return place(had, s.Backends)
}

// place puts want into slots, where a backend may have several: who is in have
// stays, newcomers fill holes first, then the last slots move into holes that
// are left.
func place(have, want []netip.AddrPort) []netip.AddrPort {
	if slices.Equal(have, want) {
		return have
	}
	wanted := make(map[netip.AddrPort]int, len(want))
	for _, b := range want {
		wanted[b]++
	}
	out := make([]netip.AddrPort, 0, max(len(have), len(want)))
	for _, b := range have {
		if wanted[b] == 0 {
			b = netip.AddrPort{}
		} else {
			wanted[b]--
		}
		out = append(out, b)
	}
	hole := 0
	for _, b := range want {
		if wanted[b] == 0 {
			continue
		}
		wanted[b]--
		for hole < len(out) && out[hole].IsValid() {
			hole++
		}
		if hole < len(out) {
			out[hole] = b
		} else {
			out = append(out, b)
		}
	}
	for {
		for len(out) > 0 && !out[len(out)-1].IsValid() {
			out = out[:len(out)-1]
		}
		for hole < len(out) && out[hole].IsValid() {
			hole++
		}
		if hole >= len(out) {
			return out
		}
		out[hole] = out[len(out)-1]
		out = out[:len(out)-1]
	}
}

// diffTables returns the transaction that leads from one arranged table to
// the next. Its cost is a walk over both and what differs.
func diffTables(old, now *Table) Ops {
	if old.Range != now.Range || old.Resolver != now.Resolver || old.Range6 != now.Range6 || old.Resolver6 != now.Resolver6 {
		rs := now.Ruleset()
		return Ops{Replace: rs.Tables[:1], Sets: diffSets("bridge", old.bridgeTable().Sets, now.bridgeTable().Sets)}
	}
	var o Ops
	o.Sets = append(o.Sets, old.policy.diff("inet", &now.policy)...)
	o.Sets = append(o.Sets, old.policy.diff("bridge", &now.policy)...)
	o.Sets = append(o.Sets, diffSets("inet", old.networkSets(), now.networkSets())...)
	if old.hasInternal() != now.hasInternal() {
		o.Chains = append(o.Chains, ChainOp{"inet", now.internals(), true})
	}
	o.addChains(old.made, now.made)
	o.diffServices(false, old.Services, now.Services)
	o.diffServices(true, old.NodePorts, now.NodePorts)
	a, b := *old, *now
	if slices.Equal(a.VIPs, b.VIPs) {
		a.VIPs, b.VIPs = nil, nil // the small set that grows most with the cluster
		if sameSmall(&a, &b) {
			return o
		}
	}
	o.Sets = append(o.Sets, diffSets("inet", a.smallSets(), b.smallSets())...)
	o.Sets = append(o.Sets, diffSets("bridge", a.liftSets(), b.liftSets())...)
	return o
}

// sameSmall reports whether all that smallSets and bridgeTable read is equal.
func sameSmall(a, b *Table) bool {
	return slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.External, b.External) && slices.Equal(a.Sticky, b.Sticky) && slices.Equal(a.Publishes, b.Publishes) &&
		slices.Equal(a.LocalBackends, b.LocalBackends) && slices.Equal(a.Remote, b.Remote) &&
		slices.Equal(a.Masquerade, b.Masquerade) && slices.Equal(a.Cluster, b.Cluster) && slices.Equal(a.Local, b.Local) &&
		slices.Equal(a.Links, b.Links) && slices.Equal(a.Tunnels, b.Tunnels) && slices.Equal(a.Bridges, b.Bridges)
}

func (o *Ops) diffServices(nodePorts bool, old, now []Service) {
	var diffs [len(versions)]*portDiff
	for _, v := range versions {
		sets := portSets(v, nodePorts)
		diffs[v] = newPortDiff(&sets)
	}
	i, j := 0, 0
	for i < len(old) || j < len(now) {
		switch {
		case j == len(now) || i < len(old) && compareService(old[i], now[j]) < 0:
			gone := old[i].none()
			diffs[versionOf(old[i].VIP)].change(&old[i], &gone)
			i++
		case i == len(old) || compareService(old[i], now[j]) > 0:
			before := now[j].none()
			diffs[versionOf(now[j].VIP)].change(&before, &now[j])
			j++
		default:
			diffs[versionOf(now[j].VIP)].change(&old[i], &now[j])
			i, j = i+1, j+1
		}
	}
	for v := range diffs {
		o.add(diffs[v].ops()...)
	}
}

// add appends the operations that do something.
func (o *Ops) add(ops ...SetOp) {
	for _, op := range ops {
		if len(op.Del)+len(op.Add) > 0 {
			o.Sets = append(o.Sets, op)
		}
	}
}

// diffSets compares sets of the same declaration, in the same order.
func diffSets(family string, old, now []Set) []SetOp {
	var out []SetOp
	for i := range now {
		if op, ok := diffSet(family, old[i].Elems, now[i]); ok {
			out = append(out, op)
		}
	}
	return out
}

// diffSet returns the operation that makes a set's elements those of want;
// false: nothing to do. An interval set is replaced as a whole, because a
// range that grows overlaps the one that it replaces.
func diffSet(family string, have []Elem, want Set) (SetOp, bool) {
	op := SetOp{Family: family, Set: want}
	op.Set.Elems = nil
	if want.Learned > 0 || slices.Equal(have, want.Elems) {
		return op, false
	}
	if want.Interval {
		op.Flush, op.Add = len(have) > 0, want.Elems
		return op, true
	}
	diffElems(have, want.Elems, &op)
	return op, true
}

// diffObserved returns the transaction that makes the kernel's tables those
// of want. A table that is missing or of another shape, such as one of
// another version, is replaced.
func diffObserved(k Kernel, have []Observed, want Ruleset) Ops {
	var o Ops
	for _, t := range want.Tables {
		i := slices.IndexFunc(have, func(h Observed) bool { return h.Family == t.Family })
		if i < 0 || !k.Describe(t).Equal(have[i].Shape) {
			// Bucket sizes in use are made on the way in any case; a table
			// that only lacks some of them is not of another shape.
			if i < 0 || !addable(k, have[i].Shape, t) {
				o.Replace = append(o.Replace, t)
				continue
			}
			for _, c := range t.Chains {
				if _, ok := have[i].Shape.Chains[c.Name]; !ok {
					o.Chains = append(o.Chains, ChainOp{Family: t.Family, Chain: c})
				}
			}
		}
		for _, s := range t.Sets {
			if op, ok := diffSet(t.Family, have[i].Elems[s.Name], s); ok {
				o.Sets = append(o.Sets, op)
			}
		}
	}
	return o
}

// addable reports whether a table differs from want only in bucket chains
// that are missing.
func addable(k Kernel, have Shape, want TableSpec) bool {
	rest := want
	rest.Chains = nil
	made := newChainset()
	for _, c := range want.Chains {
		if _, there := have.Chains[c.Name]; there || !made.named(c.Name) {
			rest.Chains = append(rest.Chains, c)
		}
	}
	return k.Describe(rest).Equal(have)
}

// sameShape reports whether the kernel still has all tables of a ruleset with
// their sets, chains and rules. Elements are not looked at.
func sameShape(k Kernel, rs Ruleset) (bool, error) {
	have, err := k.Observe(false)
	if err != nil {
		return false, err
	}
	for _, t := range rs.Tables {
		i := slices.IndexFunc(have, func(h Observed) bool { return h.Family == t.Family })
		if i < 0 || !k.Describe(t).Equal(have[i].Shape) {
			return false, nil
		}
	}
	return true, nil
}
