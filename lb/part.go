package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// scope is what the meaning of one service depends on besides the service.
type scope struct {
	l   Local
	own []netip.Prefix
	// far reports networks that each node has for itself: a backend there on
	// another node cannot be reached from here, even where the same address
	// exists on this node too.
	far map[string]bool
	// zones are those of the nodes that are in one, zone is this node's.
	zones map[state.NodeID]string
	zone  string

	networks []NetworkInfo
}

func newScope(v *state.View, l Local) *scope {
	s := &scope{l: l, far: make(map[string]bool), zones: zonesOf(v)}
	s.zone = s.zones[l.Self]
	s.networks = networksOf(v, l)
	for i := range v.Networks {
		if v.Networks[i].Local() {
			s.far[v.Networks[i].Name] = true
		}
	}
	for _, b := range l.Bridges {
		if b.usable() {
			s.own = append(s.own, b.Own...)
		}
	}
	return s
}

func (b *BridgeInfo) usable() bool {
	return b.Name != "" && b.Prefix.IsValid()
}

// part is what one service, or all published ports together, ask of the
// kernel. It depends on nothing else, so that a service can be taken out of a
// table and put back without a look at the others.
type part struct {
	vips      []netip.Addr // that are programmed here
	externals []netip.Addr // the same of external addresses
	services  []Service
	nodePorts []Service
	publishes []Publish // loopback ones excluded
	loopback  []Publish
	targets   []hosted
	sticky    []Target // backends that clients keep
	backends  int      // different addresses of one version, for people
	warnings  []string
}

// hosted is a target; host is set when it can be reached by an address of the
// node, not only by a VIP.
type hosted struct {
	Target
	host bool
}

func (p *part) warn(format string, args ...any) {
	p.warnings = append(p.warnings, sprint(format, args...))
}

func sprint(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// elsewhere reports whether a backend is on a network that another node has
// for itself.
func (sc *scope) elsewhere(v *state.View, b *state.BackendOf) bool {
	if len(sc.far) == 0 || b.Endpoint == "" || b.Node == sc.l.Self {
		return false
	}
	e := v.Endpoint(b.Node, b.Endpoint)
	return e != nil && sc.far[e.Network]
}

// vip reports whether an address of a service can be programmed here.
func (sc *scope) vip(p *part, s *state.ServiceView, a netip.Addr) bool {
	in, resolver := sc.l.Range, sc.l.Resolver
	if versionOf(a) == V6 {
		in, resolver = sc.l.Range6, sc.l.Resolver6
	}
	switch {
	case !a.IsValid():
		return false
	case a == resolver:
		return false // the resolver answers there itself
	case !in.IsValid():
		p.warn("service %s: vip %s: the services have no range of that version: name one after `services`", s.Key(), a)
		return false
	case !in.Contains(a):
		p.warn("service %s: vip %s is outside the service range %s", s.Key(), a, in.Masked())
		return false
	}
	return true
}

// published derives the part of the node's published ports.
func (sc *scope) published(v *state.View) *part {
	out := new(part)
	for _, p := range v.Publishes {
		sc.publish(v, out, p)
	}
	out.publishes, out.loopback = uniquePublishes(out.publishes), uniquePublishes(out.loopback)
	return out
}

// twin is the IPv6 address that the target of a published port has too;
// invalid: none.
func (sc *scope) twin(v *state.View, p *state.Publish) netip.Addr {
	for i := range sc.l.Bridges {
		b := &sc.l.Bridges[i]
		a := state.Twin(b.Prefix, b.Prefix6, p.Target)
		if !a.IsValid() {
			continue
		}
		if e := v.Endpoint(sc.l.Self, p.Endpoint); p.Endpoint != "" && (e == nil || !slices.Contains(e.Addrs, a)) {
			return netip.Addr{} // attached before the network had IPv6
		}
		return a
	}
	return netip.Addr{}
}

func (sc *scope) publish(v *state.View, out *part, p state.Publish) {
	q := Publish{HostAddr: p.HostAddr, Proto: protoNumber(p.Protocol), HostPort: p.HostPort, Target: netip.AddrPortFrom(p.Target, p.Port)}
	all := anyAddr(q.HostAddr)
	switch {
	case q.Proto == 0:
		out.warn("publish %s: protocol %q: use tcp, udp or sctp", p.Key(), p.Protocol)
		return
	case q.Proto == SCTP && sc.l.NoSCTP:
		out.warn("publish %s: %s", p.Key(), untracked)
		return
	case q.Proto == SCTP && q.HostAddr.IsLoopback():
		out.warn("publish %s: SCTP is not served on loopback: publish an address of the network, or none for all", p.Key())
		return
	case !p.Target.IsValid():
		out.warn("publish %s: no target address", p.Key())
		return
	case q.HostPort == 0 || p.Port == 0:
		out.warn("publish %s: port 0", p.Key())
		return
	case !all && !q.HostAddr.IsLoopback() && versionOf(q.HostAddr) != versionOf(p.Target):
		out.warn("publish %s: %s and the target %s are of different IP versions: only a loopback address can be published to the other one", p.Key(), q.HostAddr, p.Target)
		return
	}
	if len(sc.l.NodeAddrs) > 0 && !all && !q.HostAddr.IsLoopback() && !slices.Contains(sc.l.NodeAddrs, q.HostAddr) {
		out.warn("publish %s: %s is not an address of this node now", p.Key(), q.HostAddr)
	}
	out.publish(q, p.LastPort())
	if a := sc.twin(v, &p); !p.HostAddr.IsValid() && a.IsValid() {
		// Every address of the host: its IPv6 ones too. On loopback the first
		// target stays.
		q.HostAddr, q.Target = anyOf(V6), netip.AddrPortFrom(a, p.Port)
		out.publish(q, p.LastPort())
	}
}

// uniquePublishes sorts; of two that claim one port the first stays.
func uniquePublishes(p []Publish) []Publish {
	slices.SortStableFunc(p, comparePublish)
	return slices.CompactFunc(p, func(a, b Publish) bool { return comparePublish(a, b) == 0 })
}

// isLocal reports whether an address belongs to a workload of this node.
func (sc *scope) isLocal(a netip.Addr) bool {
	for i := range sc.own {
		if sc.own[i].Contains(a) {
			return true
		}
	}
	return false
}

// localBackend is a target on this node with the address of its bridge.
func (sc *scope) localBackend(x Target) LocalBackend {
	return LocalBackend{Target: x, MAC: sc.bridgeOf(x.Addr)}
}

// bridgeOf is the MAC of the bridge behind which an address of this node is;
// zero: none of ours, or not there yet.
func (sc *scope) bridgeOf(a netip.Addr) (mac [6]byte) {
	for _, br := range sc.l.Bridges {
		if len(br.MAC) == 6 && slices.ContainsFunc(br.Own, func(p netip.Prefix) bool { return p.Contains(a) }) {
			copy(mac[:], br.MAC)
			break
		}
	}
	return mac
}

// frame returns a table with all that does not come from services and
// published ports.
func (sc *scope) frame(rev uint64) Table {
	l := &sc.l
	t := Table{Rev: rev, Range: l.Range.Masked(), Range6: l.Range6.Masked(), Resolver: l.Resolver, Resolver6: l.Resolver6,
		Addrs: slices.Clone(l.NodeAddrs), Networks: sc.networks}
	for _, b := range l.Bridges {
		if !b.usable() {
			continue
		}
		t.Bridges = append(t.Bridges, Bridge{Name: b.Name, Prefix: b.Prefix.Masked(), Prefix6: b.Prefix6.Masked(), Internal: b.Internal})
		t.Links = append(t.Links, b.Name)
		if b.Masquerade && !b.Internal {
			t.Masquerade = append(t.Masquerade, b.Prefix.Masked(), b.Prefix6.Masked())
		}
		for _, own := range b.Own {
			t.routes = append(t.routes, Bridge{Name: b.Name, Prefix: own})
		}
	}
	t.Links = append(t.Links, l.Links...)
	t.Tunnels = slices.Clone(l.Links)
	t.Masquerade, t.Cluster, t.Local = maximal(t.Masquerade), maximal(l.ClusterPrefixes), maximal(sc.own)
	slices.SortStableFunc(t.Bridges, func(a, b Bridge) int { return strings.Compare(a.Name, b.Name) })
	t.Bridges = slices.CompactFunc(t.Bridges, func(a, b Bridge) bool { return a.Name == b.Name })
	slices.Sort(t.Links)
	t.Links = slices.Compact(t.Links)
	slices.Sort(t.Tunnels)
	t.Tunnels = slices.Compact(t.Tunnels)
	slices.SortFunc(t.Addrs, netip.Addr.Compare)
	return t
}
