package dns

import (
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/state"
)

// schemaVersion of the Kubernetes DNS specification that the names follow.
const schemaVersion = "1.1.0"

// buildZone derives a zone from a view. It is a pure function.
func buildZone(v *state.View, opt zoneOptions) *Zone {
	b := &zoneBuilder{
		Zone: &Zone{
			rev:     v.Rev,
			opt:     opt,
			origins: append(append(zones{}, opt.forward...), opt.reverse...),
			soa:     make(map[string][]wire.RR),
			names:   make(map[string]*node, 4*(v.NumServices()+v.NumEndpoints())),
			outside: make(map[string]*node),
			given:   make(map[podKey]bool),
			spaces:  make(map[string]bool),
		},
		view:     v,
		pointers: make(map[netip.Addr][]string),
		local:    make(map[string]bool),
	}
	for i := range v.Networks {
		if v.Networks[i].Local() {
			b.local[v.Networks[i].Name] = true
		}
	}
	for _, origin := range b.origins {
		b.apex(origin)
	}
	b.services()
	b.endpoints()
	b.nodes()
	b.reverse()
	b.static()
	b.finish()
	return b.Zone
}

// zoneBuilder fills a Zone that nobody else sees yet.
type zoneBuilder struct {
	*Zone
	view     *state.View
	pointers map[netip.Addr][]string // PTR targets
	local    map[string]bool         // networks whose addresses mean something on their node only
}

// node returns the node of a name inside the zone, made if need be.
func (b *zoneBuilder) node(name string) *node {
	n := b.names[name]
	if n == nil {
		n = new(node)
		b.names[name] = n
	}
	return n
}

// add puts a record under a name, once. A CNAME stands alone (RFC 1034
// section 3.6.2): what came first wins.
func (n *node) add(rr wire.RR) {
	t := rr.Header().Rrtype
	if len(n.sets) > 0 && (t == wire.TypeCNAME || n.sets[0].qtype == wire.TypeCNAME) {
		return
	}
	s := n.set(t)
	if s == nil {
		n.sets = append(n.sets, rrset{qtype: t})
		s = &n.sets[len(n.sets)-1]
	}
	if !slices.ContainsFunc(s.rrs, func(o wire.RR) bool { return wire.IsDuplicate(o, rr) }) {
		s.rrs = append(s.rrs, rr)
	}
}

func (b *zoneBuilder) header(name string, t uint16) wire.RR_Header {
	return wire.RR_Header{Name: name, Rrtype: t, Class: wire.ClassINET, Ttl: b.opt.ttl}
}

func (b *zoneBuilder) address(name string, a netip.Addr) {
	if a.IsValid() {
		b.node(name).add(addressRR(name, a, b.opt.ttl))
	}
}

func (b *zoneBuilder) srv(name, target string, port uint16) {
	b.node(name).add(&wire.SRV{Hdr: b.header(name, wire.TypeSRV), Port: port, Target: target})
}

func (b *zoneBuilder) pointer(a netip.Addr, name string) {
	if a = a.Unmap(); !slices.Contains(b.pointers[a], name) {
		b.pointers[a] = append(b.pointers[a], name)
	}
}

// exposed reports whether a namespace is to be seen, and notes that it exists.
func (b *zoneBuilder) exposed(namespace string) bool {
	if len(b.opt.namespaces) > 0 && !slices.Contains(b.opt.namespaces, namespace) {
		return false
	}
	if !b.spaces[namespace] {
		b.spaces[namespace] = true
		for _, z := range b.opt.forward {
			b.node(under(namespace+".svc", z))
			b.node(under(namespace+".pod", z))
		}
	}
	return true
}

// apex makes SOA, NS and, in a zone of names, the fixed names.
func (b *zoneBuilder) apex(origin string) {
	soa := soaOf(origin, b.opt.ttl, uint32(b.rev))
	b.soa[origin] = []wire.RR{soa}
	n := b.node(origin)
	n.add(soa)
	ns := under("ns.dns", origin)
	if isReverse(origin) && len(b.opt.forward) > 0 {
		ns = under("ns.dns", b.opt.forward[0])
		soa.Ns, soa.Mbox = ns, under("hostmaster", b.opt.forward[0])
	}
	n.add(&wire.NS{Hdr: b.header(origin, wire.TypeNS), Ns: ns})
	if isReverse(origin) {
		return
	}
	for _, a := range b.opt.ns {
		b.address(ns, a)
	}
	b.node(ns)
	version := under("dns-version", origin)
	b.node(version).add(&wire.TXT{Hdr: b.header(version, wire.TypeTXT), Txt: []string{schemaVersion}})
	for _, name := range []string{"svc", "pod", "node"} {
		b.node(under(name, origin))
	}
}

// services makes the names of services and of their endpoints.
func (b *zoneBuilder) services() {
	seen := make(map[string]bool) // names that differ in letter case only are one
	for s := range b.view.Services() {
		name, namespace := label(s.Name), label(s.Namespace)
		if name == "" || namespace == "" || seen[name+"."+namespace] || !b.exposed(namespace) {
			continue
		}
		seen[name+"."+namespace] = true
		for _, z := range b.opt.forward {
			b.service(s, under(name+"."+namespace+".svc", z), z == b.opt.forward[0])
		}
	}
}

// service makes the names of one service in one zone; in the first zone also
// the targets of its PTR records.
func (b *zoneBuilder) service(s *state.ServiceView, name string, first bool) {
	switch {
	case s.External != "":
		target := wire.CanonicalName(s.External)
		if _, ok := wire.IsDomainName(target); ok {
			b.node(name).add(&wire.CNAME{Hdr: b.header(name, wire.TypeCNAME), Target: target})
		}
		return
	case !s.Headless && s.VIP.IsValid():
		b.address(name, s.VIP)
		for _, p := range s.Ports {
			b.srv(name, name, p.Port)
			if pn := portName(p.Name, p.Protocol); pn != "" {
				b.srv(pn+"."+name, name, p.Port)
			}
		}
		if first {
			b.pointer(s.VIP, name)
		}
	case !s.Headless:
		b.node(name) // waits for its address: it exists, without data
	}
	if b.opt.noEndpoints {
		return
	}
	for i := range s.Backends {
		be := &s.Backends[i]
		if !be.Ready || !be.Addr.IsValid() {
			continue
		}
		host := label(be.Hostname)
		if host == "" {
			host = dashed(be.Addr.Unmap())
		}
		target := host + "." + name
		b.address(target, be.Addr)
		if first {
			b.pointer(be.Addr, target)
		}
		if s.Headless {
			b.address(name, be.Addr)
		}
		for j, p := range s.Ports {
			if j >= len(be.Targets) || be.Targets[j] == 0 {
				continue
			}
			pn := portName(p.Name, p.Protocol)
			if s.Headless {
				b.srv(name, target, be.Targets[j])
				if pn != "" {
					b.srv(pn+"."+name, target, be.Targets[j])
				}
			}
			b.srv(target, target, be.Targets[j])
			if pn != "" {
				b.srv(pn+"."+target, target, be.Targets[j])
			}
		}
	}
}

// portName returns the labels of a named port, or "".
func portName(name, protocol string) string {
	if name = label(name); name == "" {
		return ""
	}
	if protocol == "" {
		protocol = "tcp"
	}
	return "_" + name + "._" + strings.ToLower(protocol)
}

// endpoints makes <endpoint>.<namespace>.pod and the same for aliases and
// DHCP host names, and remembers which addresses are given out.
func (b *zoneBuilder) endpoints() {
	for e := range b.view.Endpoints() {
		namespace := label(e.Namespace)
		if namespace == "" || b.local[e.Network] && e.Owner != b.view.Self || !b.exposed(namespace) || !e.Serving {
			continue
		}
		names := append([]string{e.Name}, e.Aliases...)
		for _, a := range e.Addrs {
			if !a.IsValid() {
				continue
			}
			b.given[podKey{namespace, a.Unmap()}] = true
			for j, n := range names {
				host := label(n)
				if host == "" {
					continue
				}
				for _, z := range b.opt.forward {
					b.address(under(host+"."+namespace+".pod", z), a)
				}
				// A service's endpoint name is the better answer.
				if j == 0 && len(b.opt.forward) > 0 && len(b.pointers[a.Unmap()]) == 0 {
					b.pointer(a, under(host+"."+namespace+".pod", b.opt.forward[0]))
				}
			}
		}
	}
}

func (b *zoneBuilder) nodes() {
	for i := range b.view.Nodes {
		n := &b.view.Nodes[i]
		if name := label(n.Name); name != "" && n.Serving {
			for _, z := range b.opt.forward {
				b.address(under(name+".node", z), n.Advertise)
			}
		}
	}
}

func (b *zoneBuilder) reverse() {
	for a, targets := range b.pointers {
		name := reverseName(a)
		if b.opt.reverse.match(name) == "" {
			continue
		}
		slices.Sort(targets)
		for _, t := range targets {
			b.node(name).add(&wire.PTR{Hdr: b.header(name, wire.TypePTR), Ptr: t})
		}
	}
}

// static adds declared records. A derived record of the same name and type
// wins.
func (b *zoneBuilder) static() {
	derived := make(map[string]int) // names that exist already, with their sets
	for _, rec := range b.view.Names {
		name := wire.CanonicalName(rec.Name)
		if _, ok := wire.IsDomainName(name); !ok || name == "." {
			continue
		}
		names := b.names
		if b.origins.match(name) == "" {
			names = b.outside
		}
		n := names[name]
		if n == nil {
			n = new(node)
			names[name] = n
		}
		if _, seen := derived[name]; !seen {
			derived[name] = len(n.sets)
		}
		var rr wire.RR
		switch rec.Type {
		case "A", "AAAA":
			a, err := netip.ParseAddr(rec.Target)
			if err != nil || (rec.Type == "A") != a.Unmap().Is4() {
				continue
			}
			rr = addressRR(name, a, b.opt.ttl)
		case "CNAME":
			target := wire.CanonicalName(rec.Target)
			if _, ok := wire.IsDomainName(target); !ok {
				continue
			}
			rr = &wire.CNAME{Hdr: b.header(name, wire.TypeCNAME), Target: target}
		default:
			continue
		}
		if i := slices.IndexFunc(n.sets, func(s rrset) bool { return s.qtype == rr.Header().Rrtype }); i >= 0 && i < derived[name] {
			continue
		}
		n.add(rr)
	}
}

// finish makes the empty non-terminals, weights the SRV records and attaches
// the addresses of their targets.
func (b *zoneBuilder) finish() {
	missing := make(map[string]bool)
	for name, n := range b.names {
		origin := b.origins.match(name)
		for p := name; p != origin; {
			off, end := wire.NextLabel(p, 0)
			if end {
				break
			}
			p = p[off:]
			if b.names[p] != nil || missing[p] {
				break
			}
			missing[p] = true
		}
		if s := n.set(wire.TypeSRV); s != nil {
			b.weigh(s)
		}
	}
	for p := range missing {
		b.node(p)
	}
}

func (b *zoneBuilder) weigh(s *rrset) {
	weight := uint16(max(1, 100/len(s.rrs)))
	var seen []string
	for _, rr := range s.rrs {
		srv := rr.(*wire.SRV)
		srv.Weight = weight
		if slices.Contains(seen, srv.Target) {
			continue
		}
		seen = append(seen, srv.Target)
		if t := b.names[srv.Target]; t != nil {
			for _, set := range t.sets {
				if set.qtype == wire.TypeA || set.qtype == wire.TypeAAAA {
					s.extra = append(s.extra, set.rrs...)
				}
			}
		}
	}
}

// label makes a DNS label of a name: lower-case, up to the first dot. It is
// empty when the name is no host name label (RFC 1123, and _ as people use it).
func label(s string) string {
	s, _, _ = strings.Cut(strings.ToLower(s), ".")
	if len(s) > 63 {
		return ""
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return ""
		}
	}
	return s
}
