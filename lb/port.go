package lb

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// portSet names the maps and sets that hold what the kernel knows of one port,
// of one version and kind.
type portSet uint8

const (
	setClass     portSet = iota // → class
	setSlots                    // slot → backend
	setFrom                     // clients that may use it
	setOn                       // host addresses on which a node port answers
	setKeep                     // → for how long clients keep their backends
	setKept                     // identity of a backend → backend
	setRanges                   // of a range: → class
	setSpread                   // of a range: slot → backend
	setRangeFrom                // of a range: clients that may use it
	numPortSets
)

// portSets declares them. Node ports have no ranges, others answer on one
// address; the sets that are not needed have no name.
func portSets(v Version, nodePorts bool) (out [numPortSets]Set) {
	h, typ := v.header(), addrType(v)
	typeOf, what, key, prefix := h+" daddr . meta l4proto . th dport", typ+" . inet_proto . inet_service", targetKinds(v), ""
	if nodePorts {
		typeOf, what, key, prefix = "meta l4proto . th dport", "inet_proto . inet_service", key[1:], "np"
	}
	key = slices.Clip(key)
	backend := []Kind{addrKind(v), KindPort}
	to := " : " + h + " daddr . th dport"
	out[setSlots] = Set{Name: v.name(prefix + "eps"), Decl: "typeof " + typeOf + " . numgen random mod 256" + to,
		Key: append(key, KindSlot), Val: backend}
	out[setClass] = Set{Name: v.name(prefix + "svc"), Decl: "typeof " + typeOf + " : meta priority", Key: key, Val: []Kind{KindClass}}
	out[setFrom] = Set{Name: v.name(prefix + "from"), Decl: "type " + typ + " . " + what, Key: append([]Kind{addrKind(v)}, key...), Interval: true}
	out[setKeep] = Set{Name: v.name(prefix + "keep"), Decl: "type " + what + " : classid", Key: key, Val: []Kind{KindClass}}
	out[setKept] = Set{Name: v.name(prefix + "affeps"), Decl: "type " + what + " . classid : " + typ + " . inet_service",
		Key: append(key, KindClass), Val: backend}
	if nodePorts {
		out[setOn] = Set{Name: v.name("npon"), Decl: "type " + typ + " . " + what, Key: append([]Kind{addrKind(v)}, key...), Interval: true}
		return out
	}
	out[setRanges] = Set{Name: v.name("ranges"), Decl: "type " + what + " : classid", Key: key, Val: []Kind{KindClass}, Interval: true}
	out[setSpread] = Set{Name: v.name("rangeeps"), Decl: "typeof " + typeOf + " . numgen random mod 256 : " + h + " daddr",
		Key: append(key, KindSlot), Val: []Kind{addrKind(v)}, Interval: true}
	// Apart from setFrom: a port may lie within another service's range.
	out[setRangeFrom] = out[setFrom]
	out[setRangeFrom].Name = v.name("rangefrom")
	return out
}

// none is the port as it is when nobody asks for it.
func (s *Service) none() Service {
	return Service{VIP: s.VIP, Proto: s.Proto, Port: s.Port, Last: s.Last}
}

func (s *Service) target() Target { return Target{s.VIP, s.Proto, s.Port} }

// nodePort reports whether it is reached by the host's own addresses.
func (s *Service) nodePort() bool { return anyAddr(s.VIP) }

// anyAddr reports whether an address stands for all of the host's own: the
// invalid one for those of IPv4, :: for those of IPv6.
func anyAddr(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }

// anyOf is the address that stands for all of the host's own of a version.
func anyOf(v Version) netip.Addr {
	if v == V6 {
		return netip.IPv6Unspecified()
	}
	return netip.Addr{}
}

// class is what its element says; 0: it has none.
func (s *Service) class() class {
	switch n := len(s.Backends); {
	case n > 0:
		return s.Rule | class(n)
	case s.Rule == dropping || s.Rule == refusing:
		return s.Rule
	}
	return 0
}

// key is that of a port, or of the first or last of a range.
func (s *Service) key(port uint16) key {
	if s.nodePort() {
		return key(nil).proto(s.Proto).port(port)
	}
	return keyTarget(Target{s.VIP, s.Proto, port})
}

// slot is the element of a slot.
func (s *Service) slot(n int) Elem {
	b := s.Backends[n]
	if s.Last != 0 {
		return Elem{Key: string(s.key(s.Port).host(uint32(n))), End: string(s.key(s.Last).host(uint32(n))), Val: string(key(nil).addr(b.Addr()))}
	}
	return Elem{Key: string(s.key(s.Port).host(uint32(n))), Val: keyAddrPort(b)}
}

// classElem is the element of its class; false: none.
func (s *Service) classElem() (Elem, bool) {
	c := s.class()
	e := Elem{Key: string(s.key(s.Port)), Val: c.elem()}
	if s.Last != 0 {
		e.End = string(s.key(s.Last))
	}
	return e, c != 0
}

// sets are those of its slots and its class.
func (s *Service) sets() (slots, cls portSet) {
	if s.Last != 0 {
		return setSpread, setRanges
	}
	return setSlots, setClass
}

// plain reports whether it has no other elements than those.
func (s *Service) plain() bool { return s.class()&(fromSome|onSome|afterMask) == 0 }

// others returns its other elements, sorted.
func (s *Service) others() (out [numPortSets][]Elem) {
	c := s.class()
	if s.plain() || c.slots() == 0 {
		return out
	}
	k, end := s.key(s.Port), s.key(max(s.Port, s.Last))
	within := func(set portSet, ps []netip.Prefix) {
		for _, p := range ps {
			out[set] = append(out[set], Elem{
				Key: string(append(key(nil).addr(p.Masked().Addr()), k...)), End: string(append(key(nil).addr(lastAddr(p)), end...)),
			})
		}
	}
	switch {
	case c&fromSome == 0:
	case s.Last != 0:
		within(setRangeFrom, s.Sources)
	default:
		within(setFrom, s.Sources)
	}
	if c&onSome != 0 {
		within(setOn, s.HostAddrs)
	}
	if c&sticky == sticky {
		out[setKeep] = []Elem{{Key: string(k), Val: class(s.Affinity).elem()}}
		for _, b := range s.Backends {
			out[setKept] = append(out[setKept], Elem{Key: string(slices.Clip(k).host(uint32(backendID(b)))), Val: keyAddrPort(b)})
		}
	}
	for set := range out {
		sortElems(out[set])
		out[set] = slices.CompactFunc(out[set], func(a, b Elem) bool { return a.Key == b.Key })
	}
	return out
}

// portDiff collects what changes in the sets of ports of one version and kind.
type portDiff [numPortSets]SetOp

func newPortDiff(sets *[numPortSets]Set) *portDiff {
	d := new(portDiff)
	for i := range sets {
		d[i] = SetOp{Family: "inet", Set: sets[i]}
	}
	return d
}

// change leads from what a port was to what it is. Where nothing was or is,
// the Service has no backends.
func (d *portDiff) change(was, is *Service) {
	if was.Last != is.Last { // other elements in other sets
		gone, before := was.none(), is.none()
		d.change(was, &gone)
		d.change(&before, is)
		return
	}
	slots, cls := is.sets()
	old, hadClass := was.classElem()
	now, hasClass := is.classElem()
	if hadClass != hasClass || old != now {
		if hadClass {
			d[cls].Del = append(d[cls].Del, old)
		}
		if hasClass {
			d[cls].Add = append(d[cls].Add, now)
		}
	}
	for i := range max(len(was.Backends), len(is.Backends)) {
		if i < len(was.Backends) && i < len(is.Backends) && was.Backends[i] == is.Backends[i] {
			continue
		}
		if i < len(was.Backends) {
			d[slots].Del = append(d[slots].Del, was.slot(i))
		}
		if i < len(is.Backends) {
			d[slots].Add = append(d[slots].Add, is.slot(i))
		}
	}
	if was.plain() && is.plain() {
		return
	}
	before, after := was.others(), is.others()
	for set := range before {
		diffElems(before[set], after[set], &d[set])
	}
}

// ops are the operations in the order in which they are printed.
func (d *portDiff) ops() []SetOp {
	return append([]SetOp{d[setSlots], d[setClass]}, d[setFrom:]...)
}

// diffElems adds what leads from one sorted list of elements to another.
func diffElems(have, want []Elem, op *SetOp) {
	i, j := 0, 0
	for i < len(have) || j < len(want) {
		c := 0
		switch {
		case j == len(want):
			c = -1
		case i == len(have):
			c = 1
		default:
			c = strings.Compare(have[i].Key, want[j].Key)
		}
		switch {
		case c < 0:
			op.Del = append(op.Del, have[i])
			i++
		case c > 0:
			op.Add = append(op.Add, want[j])
			j++
		default:
			if have[i] != want[j] {
				op.Del = append(op.Del, have[i])
				op.Add = append(op.Add, want[j])
			}
			i, j = i+1, j+1
		}
	}
}

// fill adds the elements of ports to their sets.
func fill(sets *[numPortSets]Set, v Version, list []Service) {
	for i := range list {
		s := &list[i]
		if versionOf(s.VIP) != v {
			continue
		}
		slots, cls := s.sets()
		if e, ok := s.classElem(); ok {
			sets[cls].Elems = append(sets[cls].Elems, e)
		}
		for n := range s.Backends {
			sets[slots].Elems = append(sets[slots].Elems, s.slot(n))
		}
		for set, es := range s.others() {
			sets[set].Elems = append(sets[set].Elems, es...)
		}
	}
	for i := range sets {
		sets[i].sort()
	}
}

// readSlots returns the ports of a map of slots, with their backends in the
// order of slots.
func readSlots(elems []Elem, v Version, nodePorts bool) []Service {
	type at struct {
		key  string
		slot uint32
	}
	addr := 0
	if !nodePorts {
		addr = addrKind(v).size()
	}
	n, val := addr+12, addrKind(v).size()
	found := make(map[at]netip.AddrPort)
	keys := make(map[string]string)
	for _, e := range elems {
		if len(e.Key) != n || len(e.Val) < val {
			continue
		}
		k := e.Key[:n-4]
		b := netip.AddrPortFrom(readAddr(e.Val[:val]), readPort(k[addr+4:]))
		if len(e.Val) > val {
			b = readAddrPort(e.Val)
		}
		found[at{k, binary.NativeEndian.Uint32([]byte(e.Key[n-4:]))}] = b
		keys[k] = e.End
	}
	var out []Service
	for k, end := range keys {
		s := Service{VIP: anyOf(v), Proto: k[addr], Port: readPort(k[addr+4:])}
		if !nodePorts {
			s.VIP = readAddr(k[:addr])
		}
		if len(end) == n {
			s.Last = readPort(end[addr+4:])
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
