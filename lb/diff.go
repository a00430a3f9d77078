package lb

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// slots are services with their backends in the order of slots that the
// kernel has, sorted by key.
type slots struct {
	services, nodePorts []Service
	lb, np              classes
}

func slotsOf(t *Table) slots {
	s := slots{services: t.Services, nodePorts: t.NodePorts}
	s.lb, s.np = t.buckets()
	return s
}

// slotsObserved reads the slots back from the kernel's elements.
func slotsObserved(have []Observed) slots {
	var s slots
	for _, o := range have {
		if o.Family != "inet" {
			continue
		}
		for _, v := range versions {
			s.services = append(s.services, readSlots(o.Elems[v.name("eps")], v, false)...)
			s.nodePorts = append(s.nodePorts, readSlots(o.Elems[v.name("npeps")], v, true)...)
		}
		for n := 1; n <= MaxSlots; n++ {
			_, s.lb[n] = o.Shape.Chains[lbChain(n).Name]
			_, s.np[n] = o.Shape.Chains[npChain(n).Name]
		}
	}
	return s
}

func readSlots(elems []Elem, v Version, nodePorts bool) []Service {
	type at struct {
		key  string
		slot uint32
	}
	addr := 0
	if !nodePorts {
		addr = addrKind(v).size()
	}
	n, val := addr+12, addrKind(v).size()+4
	found := make(map[at]netip.AddrPort)
	keys := make(map[string]bool)
	for _, e := range elems {
		if len(e.Key) != n || len(e.Val) != val {
			continue
		}
		k := e.Key[:n-4]
		found[at{k, binary.NativeEndian.Uint32([]byte(e.Key[n-4:]))}] = readAddrPort(e.Val)
		keys[k] = true
	}
	var out []Service
	for k := range keys {
		s := Service{VIP: anyOf(v), Proto: k[addr], Port: readPort(k[addr+4:])}
		if !nodePorts {
			s.VIP = readAddr(k[:addr])
		}
		for i := uint32(0); ; i++ {
			b, ok := found[at{k, i}]
			if !ok {
				break
			}
			s.Backends = append(s.Backends, b)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, compareService)
	return out
}

// arrange returns t with every backend in the slot that it already has, so
// that one backend more or less moves no other: the last slot goes into the
// hole.
func arrange(t Table, have slots) Table {
	t.Services = arrangeServices(t.Services, have.services)
	t.NodePorts = arrangeServices(t.NodePorts, have.nodePorts)
	for n := range t.lbClasses {
		t.lbClasses[n] = t.lbClasses[n] || have.lb[n]
		t.npClasses[n] = t.npClasses[n] || have.np[n]
	}
	t.lbClasses, t.npClasses = t.buckets()
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
			out[n].Backends = place(have[i].Backends, out[n].Backends)
		}
	}
	return out
}

// place puts want into slots: who is in have stays, newcomers fill holes
// first, then the last slots move into holes that are left.
func place(have, want []netip.AddrPort) []netip.AddrPort {
	if slices.Equal(have, want) {
		return have
	}
	wanted := make(map[netip.AddrPort]bool, len(want))
	for _, b := range want {
		wanted[b] = true
	}
	out := make([]netip.AddrPort, 0, max(len(have), len(want)))
	for _, b := range have {
		if !wanted[b] { // also a second slot of the same backend
			b = netip.AddrPort{}
		}
		delete(wanted, b)
		out = append(out, b)
	}
	hole := 0
	for _, b := range want {
		if !wanted[b] {
			continue
		}
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
	o.addBuckets("lb", "bkt", old.lbClasses, now.lbClasses, lbChain)
	o.addBuckets("np", "npbkt", old.npClasses, now.npClasses, npChain)
	o.diffServices(false, old.Services, now.Services)
	o.diffServices(true, old.NodePorts, now.NodePorts)
	a, b := *old, *now
	if slices.Equal(a.VIPs, b.VIPs) {
		a.VIPs, b.VIPs = nil, nil // the only small set that grows with the cluster
		if sameSmall(&a, &b) {
			return o
		}
	}
	o.Sets = append(o.Sets, diffSets("inet", a.smallSets(), b.smallSets())...)
	o.Sets = append(o.Sets, diffSets("bridge", a.bridgeTable().Sets[:len(versions)], b.bridgeTable().Sets[:len(versions)])...)
	return o
}

// sameSmall reports whether all that smallSets and bridgeTable read is equal.
func sameSmall(a, b *Table) bool {
	return slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Publishes, b.Publishes) &&
		slices.Equal(a.LocalBackends, b.LocalBackends) && slices.Equal(a.Remote, b.Remote) &&
		slices.Equal(a.Masquerade, b.Masquerade) && slices.Equal(a.Cluster, b.Cluster) && slices.Equal(a.Local, b.Local) &&
		slices.Equal(a.Links, b.Links) && slices.Equal(a.Bridges, b.Bridges)
}

// addBuckets makes the chains of bucket sizes that are used for the first time.
func (o *Ops) addBuckets(prefix, set string, old, now classes, chain func(int) Chain) {
	op := SetOp{Family: "inet", Set: bucketSet(set, prefix, classes{})}
	for n := range now {
		if now[n] && !old[n] {
			o.Chains = append(o.Chains, ChainOp{"inet", chain(n)})
			op.Add = append(op.Add, bucketElem(prefix, n))
		}
	}
	if len(op.Add) > 0 {
		o.Sets = append(o.Sets, op)
	}
}

func (o *Ops) diffServices(nodePorts bool, old, now []Service) {
	var diffs [len(versions)]slotDiff
	for _, v := range versions {
		cls, slots := slotSets(v, nodePorts)
		diffs[v] = slotDiff{cls: SetOp{Family: "inet", Set: cls}, slot: SetOp{Family: "inet", Set: slots}}
	}
	i, j := 0, 0
	for i < len(old) || j < len(now) {
		switch {
		case j == len(now) || i < len(old) && compareService(old[i], now[j]) < 0:
			diffs[versionOf(old[i].VIP)].change(&old[i], old[i].Backends, nil)
			i++
		case i == len(old) || compareService(old[i], now[j]) > 0:
			diffs[versionOf(now[j].VIP)].change(&now[j], nil, now[j].Backends)
			j++
		default:
			diffs[versionOf(now[j].VIP)].change(&now[j], old[i].Backends, now[j].Backends)
			i, j = i+1, j+1
		}
	}
	for _, d := range diffs {
		o.add(d.slot, d.cls)
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

// slotDiff collects what changes in a pair of maps, class and slots.
type slotDiff struct{ cls, slot SetOp }

// change leads from one list of slots of a service to another.
func (d *slotDiff) change(s *Service, old, now []netip.AddrPort) {
	k := s.key()
	if len(old) != len(now) {
		if len(old) > 0 {
			d.cls.Del = append(d.cls.Del, classElem(k, len(old)))
		}
		if len(now) > 0 {
			d.cls.Add = append(d.cls.Add, classElem(k, len(now)))
		}
	}
	for i := range max(len(old), len(now)) {
		if i < len(old) && i < len(now) && old[i] == now[i] {
			continue
		}
		if i < len(old) {
			d.slot.Del = append(d.slot.Del, slotElem(k, i, old[i]))
		}
		if i < len(now) {
			d.slot.Add = append(d.slot.Add, slotElem(k, i, now[i]))
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
	if slices.Equal(have, want.Elems) {
		return op, false
	}
	if want.Interval {
		op.Flush, op.Add = len(have) > 0, want.Elems
		return op, true
	}
	now := want.Elems
	i, j := 0, 0
	for i < len(have) || j < len(now) {
		c := 0
		switch {
		case j == len(now):
			c = -1
		case i == len(have):
			c = 1
		default:
			c = strings.Compare(have[i].Key, now[j].Key)
		}
		switch {
		case c < 0:
			op.Del = append(op.Del, have[i])
			i++
		case c > 0:
			op.Add = append(op.Add, now[j])
			j++
		default:
			if have[i].Val != now[j].Val {
				op.Del = append(op.Del, have[i])
				op.Add = append(op.Add, now[j])
			}
			i, j = i+1, j+1
		}
	}
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
					o.Chains = append(o.Chains, ChainOp{t.Family, c})
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
	for _, c := range want.Chains {
		_, there := have.Chains[c.Name]
		if there || c.Type != "" || !strings.HasPrefix(c.Name, "lb-") && !strings.HasPrefix(c.Name, "np-") {
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
