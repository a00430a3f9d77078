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
// and brings the ports up to date. A new backend takes the next slot; the last
// slot moves into the hole of one that goes; all others stay.
func (b *book) settle(e *edit) (Ops, judge) {
	var o Ops
	var stale judge
	var diffs [2][len(versions)]*portDiff // of those that are touched
	var old chainset
	for k := range e.touched {
		was, known := b.ports[k]
		is := &Service{VIP: k.Addr, Proto: k.Proto, Port: k.Port}
		if first := b.winner(b.claims[k]); first != nil {
			s := *first
			s.Backends = s.place(backendsOf(was))
			is = &s
			b.ports[k] = is
		} else {
			delete(b.ports, k)
		}
		if !known {
			before := is.none()
			was = &before
		}
		kind := 0
		if anyAddr(k.Addr) {
			kind = 1
		}
		d := &diffs[kind][versionOf(k.Addr)]
		if *d == nil {
			*d = newPortDiff(&b.decl[versionOf(k.Addr)].ports[kind])
		}
		(*d).change(was, is)
		if !b.made.has(is) {
			if old.lb == nil {
				old = newChainset().with(b.made)
			}
			b.made.need(is)
		}
		stale.change(was, is)
	}
	if old.lb != nil {
		o.addChains(old, b.made)
	}
	var ops []SetOp
	for kind := range diffs {
		for v := range versions {
			if d := diffs[kind][v]; d != nil {
				ops = append(ops, d.ops()...)
			}
		}
	}
	if e.publishes {
		o.Sets = append(o.Sets, diffSets("inet", publishSets(e.wasPublished), publishSets(b.pub.publishes))...)
		stale.published(e.wasPublished, b.pub.publishes)
	}
	ops = append(ops, b.vips.changes("inet", func(v Version) Set { return b.decl[v].vips }, func(a netip.Addr) (Version, Elem, bool) {
		return versionOf(a), Elem{Key: string(key(nil).addr(a))}, true
	})...)
	ops = append(ops, b.external.changes("inet", func(v Version) Set { return b.decl[v].external }, func(a netip.Addr) (Version, Elem, bool) {
		return versionOf(a), Elem{Key: string(key(nil).addr(a))}, true
	})...)
	ops = append(ops, b.sticky.changes("inet", func(v Version) Set { return b.decl[v].ids }, func(x Target) (Version, Elem, bool) {
		return versionOf(x.Addr), Elem{Key: string(keyTarget(x)), Val: idOf(x)}, true
	})...)
	ops = append(ops, b.hairpin.changes("inet", func(v Version) Set { return b.decl[v].hairpin }, func(a netip.Addr) (Version, Elem, bool) {
		return versionOf(a), Elem{Key: string(key(nil).addr(a).addr(a))}, true
	})...)
	ops = append(ops, b.remote.changes("inet", func(v Version) Set { return b.decl[v].remote }, func(x Target) (Version, Elem, bool) {
		return versionOf(x.Addr), Elem{Key: string(keyTarget(x))}, true
	})...)
	ops = append(ops, b.local.changes("bridge", func(v Version) Set { return b.decl[v].lift }, func(x Target) (Version, Elem, bool) {
		l := b.sc.localBackend(x)
		return versionOf(x.Addr), Elem{Key: string(keyTarget(x)), Val: string(key(nil).ether(l.MAC))}, l.MAC != [6]byte{}
	})...)
	ops = append(ops, b.hairpin.changes("bridge", func(v Version) Set { return b.decl[v].senders }, func(a netip.Addr) (Version, Elem, bool) {
		mac := b.sc.bridgeOf(a)
		return versionOf(a), Elem{Key: string(key(nil).addr(a)), Val: string(key(nil).ether(mac))}, mac != [6]byte{}
	})...)
	b.forget()
	for i := range ops {
		sortElems(ops[i].Del)
		sortElems(ops[i].Add)
	}
	o.add(ops...)
	return o, stale
}

// backendsOf are those of a port, which may be nil.
func backendsOf(s *Service) []netip.AddrPort {
	if s == nil {
		return nil
	}
	return s.Backends
}

func sortElems(es []Elem) {
	if len(es) > 1 {
		slices.SortFunc(es, func(a, b Elem) int { return strings.Compare(a.Key, b.Key) })
	}
}
