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

// bigSets are those that grow with services and backends. Later changes of
// them are found port by port, see portDiff.
func (t *Table) bigSets() []Set {
	var out []Set
	for _, nodePorts := range []bool{false, true} {
		list := t.Services
		if nodePorts {
			list = t.NodePorts
		}
		for _, v := range versions {
			sets := portSets(v, nodePorts)
			fill(&sets, v, list)
			for _, s := range sets {
				if s.Name != "" {
					out = append(out, s)
				}
			}
		}
	}
	return out
}

// smallSets are those that grow with this node's own workloads and networks.
func (t *Table) smallSets() []Set {
	l4 := Set{Name: "l4", Decl: "type inet_proto", Key: []Kind{KindProto}}
	l4.add(key(nil).proto(TCP), "")
	l4.add(key(nil).proto(UDP), "")
	l4.add(key(nil).proto(SCTP), "")
	links := Set{Name: "links", Decl: "type ifname", Key: []Kind{KindIfname}}
	for _, l := range t.Links {
		links.add(key(nil).ifname(l), "")
	}
	tunnels := Set{Name: "tunnels", Decl: "type ifname", Key: []Kind{KindIfname}}
	for _, l := range t.Tunnels {
		tunnels.add(key(nil).ifname(l), "")
	}
	internal := Set{Name: "internal", Decl: "type ifname", Key: []Kind{KindIfname}}
	switched := Set{Name: "switched", Decl: "type ifname . ifname", Key: []Kind{KindIfname, KindIfname}}
	for _, b := range t.Bridges {
		if b.Internal {
			internal.add(key(nil).ifname(b.Name), "")
			switched.add(key(nil).ifname(b.Name).ifname(b.Name), "")
		}
	}
	sets := append(publishSets(t.Publishes), l4, links, tunnels, internal, switched)
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
	external := Set{Name: v.name("external"), Decl: "type " + typ, Key: []Kind{kind}}
	for _, a := range t.External {
		if versionOf(a) == v {
			external.add(key(nil).addr(a), "")
		}
	}
	ids := Set{Name: v.name("ids"), Decl: "type " + typ + " . inet_proto . inet_service : classid", Key: targetKinds(v), Val: []Kind{KindClass}}
	for _, x := range t.Sticky {
		if versionOf(x.Addr) == v {
			ids.add(keyTarget(x), idOf(x))
		}
	}
	aff := Set{Name: v.name("aff"), Decl: "type " + typ + " . " + typ + " . inet_proto . inet_service : classid",
		Key: append([]Kind{kind}, targetKinds(v)...), Val: []Kind{KindClass}, Learned: maxLearned}
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
		vips, external, hairpin, remote, ids, aff,
		intervals(v, "masq", t.Masquerade), intervals(v, "cluster", t.Cluster), intervals(v, "local", t.Local),
		inside,
	}
}

// idOf is the value of a backend in map ids.
func idOf(x Target) string { return backendID(netip.AddrPortFrom(x.Addr, x.Port)).elem() }

// maxLearned is how many clients' backends the kernel remembers; what comes
// beyond is balanced as if there were no affinity. About 100 bytes each.
const maxLearned = 1 << 18

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

// readPublished reads back where ports are published: on any address, or on
// one that is in the key.
func readPublished(elems []Elem, v Version, anywhere bool) []Target {
	var out []Target
	for _, e := range elems {
		t, k := Target{Addr: anyOf(v)}, e.Key
		if n := addrKind(v).size(); !anywhere && len(k) > n {
			t.Addr, k = readAddr(k[:n]), k[n:]
		}
		if len(k) == 8 {
			t.Proto, t.Port = k[0], readPort(k[4:])
			out = append(out, t)
		}
	}
	return out
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
