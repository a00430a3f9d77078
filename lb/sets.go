package lb

import (
	"net/netip"
	"slices"
	"strings"
)

// target are the parts of a destination, of one version.
func targetKinds(v Version) []Kind { return []Kind{addrKind(v), KindProto, KindPort} }

// addrType is how nft declares an address of a version.
func addrType(v Version) string { return [...]string{V4: "ipv4_addr", V6: "ipv6_addr"}[v] }

// slotSets are the two maps of one kind of service for one version: how many
// slots it has, and what is in them.
func slotSets(v Version, nodePorts bool) (cls, slots Set) {
	h := v.header()
	what, key, names := h+" daddr . meta l4proto . th dport", targetKinds(v), [2]string{"svc", "eps"}
	if nodePorts {
		what, key, names = "meta l4proto . th dport", key[1:], [2]string{"npsvc", "npeps"}
	}
	cls = Set{Name: v.name(names[0]), Decl: "typeof " + what + " : meta priority", Key: key, Val: []Kind{KindClass}}
	slots = Set{Name: v.name(names[1]), Decl: "typeof " + what + " . numgen random mod 256 : " + h + " daddr . th dport",
		Key: append(slices.Clip(key), KindSlot), Val: []Kind{addrKind(v), KindPort}}
	return cls, slots
}

// bigSets are those that grow with services and backends. Later changes of
// them are found service by service, see diffServices.
func (t *Table) bigSets() []Set {
	var out []Set
	for _, nodePorts := range []bool{false, true} {
		list := t.Services
		if nodePorts {
			list = t.NodePorts
		}
		for _, v := range versions {
			cls, slots := slotSets(v, nodePorts)
			for i := range list {
				s := &list[i]
				if versionOf(s.VIP) != v {
					continue
				}
				k := s.key()
				if n := len(s.Backends); n > 0 {
					cls.Elems = append(cls.Elems, classElem(k, n))
				}
				for n, b := range s.Backends {
					slots.Elems = append(slots.Elems, slotElem(k, n, b))
				}
			}
			cls.sort()
			slots.sort()
			out = append(out, cls, slots)
		}
	}
	return out
}

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

func (s *Service) key() key {
	if s.nodePort() {
		return key(nil).proto(s.Proto).port(s.Port)
	}
	return keyTarget(Target{s.VIP, s.Proto, s.Port})
}

func classElem(k key, n int) Elem {
	return Elem{Key: string(k), Val: string(key(nil).host(uint32(n)))}
}

func slotElem(k key, n int, b netip.AddrPort) Elem {
	return Elem{Key: string(slices.Clip(k).host(uint32(n))), Val: keyAddrPort(b)}
}

// smallSets are those that grow with this node's own workloads and networks.
func (t *Table) smallSets() []Set {
	l4 := Set{Name: "l4", Decl: "type inet_proto", Key: []Kind{KindProto}}
	l4.add(key(nil).proto(TCP), "")
	l4.add(key(nil).proto(UDP), "")
	links := Set{Name: "links", Decl: "type ifname", Key: []Kind{KindIfname}}
	for _, l := range t.Links {
		links.add(key(nil).ifname(l), "")
	}
	internal := Set{Name: "internal", Decl: "type ifname", Key: []Kind{KindIfname}}
	switched := Set{Name: "switched", Decl: "type ifname . ifname", Key: []Kind{KindIfname, KindIfname}}
	for _, b := range t.Bridges {
		if b.Internal {
			internal.add(key(nil).ifname(b.Name), "")
			switched.add(key(nil).ifname(b.Name).ifname(b.Name), "")
		}
	}
	sets := append(publishSets(t.Publishes), l4, links, internal, switched)
	for _, v := range versions {
		sets = append(sets, t.addrSets(v)...)
	}
	for i := range sets {
		sets[i].sort()
	}
	return sets
}

// addrSets are the small sets of addresses of one version.
func (t *Table) addrSets(v Version) []Set {
	typ, kind := addrType(v), addrKind(v)
	vips := Set{Name: v.name("vips"), Decl: "type " + typ, Key: []Kind{kind}}
	for _, a := range t.VIPs {
		if versionOf(a) == v {
			vips.add(key(nil).addr(a), "")
		}
	}
	hairpin := Set{Name: v.name("hairpin"), Decl: "type " + typ + " . " + typ, Key: []Kind{kind, kind}}
	var last netip.Addr
	for _, b := range t.LocalBackends {
		if b.Addr != last && versionOf(b.Addr) == v { // sorted by address
			hairpin.add(key(nil).addr(b.Addr).addr(b.Addr), "")
		}
		last = b.Addr
	}
	remote := Set{Name: v.name("remote"), Decl: "type " + typ + " . inet_proto . inet_service", Key: targetKinds(v)}
	for _, x := range t.Remote {
		if versionOf(x.Addr) == v {
			remote.add(keyTarget(x), "")
		}
	}
	inside := Set{Name: v.name("inside"), Decl: "type " + typ + " . " + typ, Key: []Kind{kind, kind}, Interval: true}
	var insides []netip.Prefix
	for _, b := range t.Bridges {
		if b.Internal {
			insides = append(insides, b.prefix(v))
		}
	}
	for _, p := range maximal(insides) {
		first, end := p.Addr(), lastAddr(p)
		inside.Elems = append(inside.Elems, Elem{Key: string(key(nil).addr(first).addr(first)), End: string(key(nil).addr(end).addr(end))})
	}
	return []Set{
		vips, hairpin, remote,
		intervals(v, "masq", t.Masquerade), intervals(v, "cluster", t.Cluster), intervals(v, "local", t.Local),
		inside,
	}
}

func publishSets(ps []Publish) []Set {
	var out []Set
	for _, v := range versions {
		to := " : " + v.header() + " daddr . th dport"
		val := []Kind{addrKind(v), KindPort}
		named := Set{Name: v.name("publish"), Decl: "typeof " + v.header() + " daddr . meta l4proto . th dport" + to, Key: targetKinds(v), Val: val}
		all := Set{Name: v.name("publishany"), Decl: "typeof meta l4proto . th dport" + to, Key: targetKinds(v)[1:], Val: val}
		for _, p := range ps {
			switch {
			case versionOf(p.HostAddr) != v:
			case anyAddr(p.HostAddr):
				all.add(key(nil).proto(p.Proto).port(p.HostPort), keyAddrPort(p.Target))
			default:
				named.add(keyTarget(Target{p.HostAddr, p.Proto, p.HostPort}), keyAddrPort(p.Target))
			}
		}
		named.sort()
		all.sort()
		out = append(out, named, all)
	}
	return out
}

func (t *Table) bridgeTable() TableSpec {
	spec := TableSpec{Family: "bridge", Name: TableName}
	for _, v := range versions {
		m := Set{Name: v.name("backends"), Decl: "type " + addrType(v) + " . inet_proto . inet_service : ether_addr", Key: targetKinds(v), Val: []Kind{KindEther}}
		for _, b := range t.LocalBackends {
			if b.MAC != [6]byte{} && versionOf(b.Addr) == v {
				m.add(keyTarget(b.Target), string(key(nil).ether(b.MAC)))
			}
		}
		m.sort()
		spec.Sets = append(spec.Sets, m)
	}
	spec.Sets = append(spec.Sets, t.policy.of("bridge")...)
	spec.Chains = []Chain{{Name: "lift", Type: "filter", Hook: "prerouting", Priority: 0, Rules: append([]Rule{
		{MatchUnicast{}, Lift{[]Field{V4.saddr(), proto, sport}, "backends"}},
		{MatchIPv6{Bridged: true}, MatchUnicast{}, Lift{[]Field{V6.saddr(), proto, sport}, "backends6"}},
	}, policeRules()...)}}
	return spec
}

func (s *Set) add(k key, val string) {
	s.Elems = append(s.Elems, Elem{Key: string(k), Val: val})
}

// sort orders the elements and keeps the first of equal keys.
func (s *Set) sort() {
	slices.SortStableFunc(s.Elems, func(a, b Elem) int { return strings.Compare(a.Key, b.Key) })
	s.Elems = slices.CompactFunc(s.Elems, func(a, b Elem) bool { return a.Key == b.Key })
}

// intervals makes an interval set of those of disjoint sorted prefixes that
// are of a version; ranges that touch become one.
func intervals(v Version, name string, ps []netip.Prefix) Set {
	s := Set{Name: v.name(name), Decl: "type " + addrType(v), Key: []Kind{addrKind(v)}, Interval: true}
	for _, p := range ps {
		if versionOf(p.Addr()) != v {
			continue
		}
		e := Elem{Key: string(key(nil).addr(p.Masked().Addr()))}
		if next := lastAddr(p).Next(); next.IsValid() {
			e.End = string(key(nil).addr(next))
		}
		if n := len(s.Elems); n > 0 && s.Elems[n-1].End == e.Key {
			s.Elems[n-1].End = e.End
			continue
		}
		s.Elems = append(s.Elems, e)
	}
	return s
}

// lastAddr returns the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return readAddr(string(b))
}
