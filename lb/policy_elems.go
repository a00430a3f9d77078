package lb

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
)

type policyElem struct {
	set      policySet
	key, val string
	ports    allowed // that val stands for
}

// portsUse is how many elements lead to a set of ports, and its number.
type portsUse struct {
	elems  int
	number uint32
}

// liveSet is what a set holds, and what it held when settled last.
type liveSet struct {
	now map[string]Elem
	was map[string]Elem // of keys that changed since; without Key: it was not there
}

func (l *liveSet) put(e Elem) {
	l.remember(e.Key)
	l.now[e.Key] = e
}

func (l *liveSet) drop(k string) {
	l.remember(k)
	delete(l.now, k)
}

func (l *liveSet) remember(k string) {
	if _, ok := l.was[k]; !ok {
		l.was[k] = l.now[k]
	}
}

// settle returns what leads to the elements of now.
func (l *liveSet) settle(s policySet, v Version) SetOp {
	op := SetOp{Family: s.family(), Set: s.declaration(v)}
	for k, was := range l.was {
		is := l.now[k]
		if was == is {
			continue
		}
		if was.Key != "" {
			op.Del = append(op.Del, was)
		}
		if is.Key != "" {
			op.Add = append(op.Add, is)
		}
	}
	clear(l.was)
	sortElems(op.Del)
	sortElems(op.Add)
	return op
}

// replace gives an address its elements in place of those it has.
func (b *policyBook) replace(x *address, v Version, elems []policyElem) {
	for _, e := range x.elems {
		if !slices.Contains(elems, e) {
			b.live[e.set][v].drop(e.key)
			b.drop(e.ports)
		}
	}
	for _, e := range elems {
		if !slices.Contains(x.elems, e) {
			b.live[e.set][v].put(Elem{Key: e.key, Val: e.val})
			b.refer(e.ports)
		}
	}
	x.elems = elems
}

// refer counts one more who leads to a set of ports, and returns its number.
func (b *policyBook) refer(a allowed) uint32 {
	switch a {
	case "":
		return 0
	case anything:
		return allPorts
	}
	u := b.ports[a]
	if u == nil {
		u = &portsUse{number: b.number("ports", string(a))}
		b.ports[a] = u
		for _, r := range a.ranges() {
			b.live[setPorts][V4].put(Elem{Key: string(key(nil).host(u.number).proto(r.proto).port(r.first)),
				End: string(key(nil).host(u.number).proto(r.proto).port(r.last))})
		}
	}
	u.elems++
	return u.number
}

// drop counts one less.
func (b *policyBook) drop(a allowed) {
	u := b.ports[a]
	if u == nil {
		return
	}
	if u.elems--; u.elems > 0 {
		return
	}
	delete(b.ports, a)
	delete(b.numbers, u.number)
	for _, r := range a.ranges() {
		b.live[setPorts][V4].drop(string(key(nil).host(u.number).proto(r.proto).port(r.first)))
	}
}

// number makes a number of what it stands for, so that a restart and another
// order of events give the same, but for two that clash: there the later one
// gets the next.
func (b *policyBook) number(what, text string) uint32 {
	sum := sha256.Sum256([]byte(what + "\x00" + text))
	n := binary.BigEndian.Uint32(sum[:])
	for {
		_, taken := b.numbers[n]
		// None and root mean something else to nft.
		if !taken && n > allPorts && n != 1<<32-1 {
			b.numbers[n] = text
			return n
		}
		n++
	}
}

// bridge returns the MAC of the bridge that an endpoint of this node sits on,
// if that can take its packets.
func (b *policyBook) bridge(a netip.Addr) (m [6]byte, ok bool) {
	contains := func(p netip.Prefix) bool { return p.Contains(a) }
	if slices.ContainsFunc(b.flat, contains) {
		return m, false
	}
	for _, br := range b.sc.l.Bridges {
		if len(br.MAC) == len(m) && slices.ContainsFunc(br.Own, contains) {
			copy(m[:], br.MAC)
			return m, true
		}
	}
	return m, false
}
