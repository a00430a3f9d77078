package lb

import (
	"net/netip"
	"slices"
	"strings"
)

// edit is a change of a book on its way to a transaction.
type edit struct {
	touched      map[Target]struct{} // ports whose service or backends may differ
	publishes    bool
	wasPublished []Publish
}

func (e *edit) touch(k Target) {
	if e.touched == nil {
		e.touched = make(map[Target]struct{})
	}
	e.touched[k] = struct{}{}
}

// settle says what leads from the kernel of before the edit to that of after,
// and brings the slots up to date. A new backend takes the next slot; the last
// slot moves into the hole of one that goes; all others stay.
func (b *book) settle(e *edit) (Ops, []Target) {
	var o Ops
	var stale []Target
	var vip, np [len(versions)]slotDiff
	for v := range versions {
		d := &b.decl[v]
		vip[v] = slotDiff{cls: SetOp{Family: "inet", Set: d.svc}, slot: SetOp{Family: "inet", Set: d.eps}}
		np[v] = slotDiff{cls: SetOp{Family: "inet", Set: d.npsvc}, slot: SetOp{Family: "inet", Set: d.npeps}}
	}
	lb, nps := b.lb, b.np
	for k := range e.touched {
		had := b.slots[k]
		var now []netip.AddrPort
		if c := b.claims[k]; len(c) > 0 {
			now = place(had, c[0].Backends)
			b.slots[k] = now
		} else {
			delete(b.slots, k)
		}
		s := Service{VIP: k.Addr, Proto: k.Proto, Port: k.Port}
		if v := versionOf(k.Addr); s.nodePort() {
			np[v].change(&s, had, now)
			nps[len(now)] = true
		} else {
			vip[v].change(&s, had, now)
			lb[len(now)] = true
		}
		if k.Proto == UDP && pinned(had, now) {
			stale = append(stale, k)
		}
	}
	lb[0], nps[0] = false, false
	if lb != b.lb {
		o.addBuckets("lb", "bkt", b.lb, lb, lbChain)
	}
	if nps != b.np {
		o.addBuckets("np", "npbkt", b.np, nps, npChain)
	}
	b.lb, b.np = lb, nps
	var ops []SetOp
	for _, kind := range [][len(versions)]slotDiff{vip, np} {
		for v := range kind {
			ops = append(ops, kind[v].slot, kind[v].cls)
		}
	}
	if e.publishes {
		o.Sets = append(o.Sets, diffSets("inet", publishSets(e.wasPublished), publishSets(b.pub.publishes))...)
		stale = append(stale, staleUDP(&Table{Publishes: e.wasPublished}, &Table{Publishes: b.pub.publishes})...)
	}
	ops = append(ops, b.vips.settle("inet", func(v Version) Set { return b.decl[v].vips }, func(a netip.Addr) (Version, Elem, bool) {
		return versionOf(a), Elem{Key: string(key(nil).addr(a))}, true
	})...)
	ops = append(ops, b.hairpin.settle("inet", func(v Version) Set { return b.decl[v].hairpin }, func(a netip.Addr) (Version, Elem, bool) {
		return versionOf(a), Elem{Key: string(key(nil).addr(a).addr(a))}, true
	})...)
	ops = append(ops, b.remote.settle("inet", func(v Version) Set { return b.decl[v].remote }, func(x Target) (Version, Elem, bool) {
		return versionOf(x.Addr), Elem{Key: string(keyTarget(x))}, true
	})...)
	ops = append(ops, b.local.settle("bridge", func(v Version) Set { return b.decl[v].lift }, func(x Target) (Version, Elem, bool) {
		l := b.sc.localBackend(x)
		return versionOf(x.Addr), Elem{Key: string(keyTarget(x)), Val: string(key(nil).ether(l.MAC))}, l.MAC != [6]byte{}
	})...)
	for i := range ops {
		sortElems(ops[i].Del)
		sortElems(ops[i].Add)
	}
	o.add(ops...)
	slices.SortFunc(stale, compareTarget)
	return o, slices.Compact(stale)
}

func sortElems(es []Elem) {
	if len(es) > 1 {
		slices.SortFunc(es, func(a, b Elem) int { return strings.Compare(a.Key, b.Key) })
	}
}

// pinned reports whether flows of UDP clients may be stuck: to a backend that
// went, or to none when the first came.
func pinned(had, now []netip.AddrPort) bool {
	if len(had) == 0 {
		return len(now) > 0
	}
	return slices.ContainsFunc(had, func(b netip.AddrPort) bool { return !slices.Contains(now, b) })
}
