package dns

import (
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/state"
)

// schemaVersion of the Kubernetes DNS specification that the names follow.
const schemaVersion = "1.1.0"

// A zone is the sum of what its sources — services, endpoints, nodes, static
// names — contribute, and no source's contribution depends on another source.
// So a zone is changed by taking away what the old version of a source
// contributed and adding what the new one does, in any order.

// sources writes the contributions of sources to draft, each counted sign
// times.
type sources struct {
	*draft
	opt     *zoneOptions
	origins plugin.Zones
	view    *state.View
	local   map[string]bool // networks whose addresses mean something on their node only
	sign    int32
}

func newSources(d *draft, z *Zone, v *state.View, sign int32) *sources {
	s := &sources{draft: d, opt: &z.opt, origins: z.origins, view: v, local: make(map[string]bool), sign: sign}
	for i := range v.Networks {
		if v.Networks[i].Local() {
			s.local[v.Networks[i].Name] = true
		}
	}
	return s
}

// record adds one record. Names that are too long for DNS are left out.
func (b *sources) record(name string, l layer, qtype uint16, data string) {
	if len(name) <= maxName {
		b.draft.add(name, op{qtype: qtype, layer: l, data: data, n: b.sign})
	}
}

// maxName is how long a name without escapes may be in text (RFC 1035 section
// 3.1: 255 bytes on the wire).
const maxName = 254

// pin makes a name exist without data.
func (b *sources) pin(name string) { b.record(name, 0, 0, "") }

func (b *sources) address(name string, l layer, a netip.Addr) {
	if a.IsValid() {
		qtype, data := addressData(a)
		b.record(name, l, qtype, data)
	}
}

func (b *sources) named(name string, l layer, qtype uint16, target string) {
	if len(target) <= maxName {
		b.record(name, l, qtype, nameData(target))
	}
}

func (b *sources) srv(name, target string, port, weight uint16) {
	if len(target) <= maxName {
		b.record(name, layerDerived, wire.TypeSRV, srvData(port, weight, target))
	}
}

// pointer makes the PTR record of an address if a reverse zone has it.
func (b *sources) pointer(a netip.Addr, l layer, target string) {
	if name := plugin.ReverseName(a.Unmap()); b.opt.reverse.Match(name) != "" {
		b.named(name, l, wire.TypePTR, target)
	}
}

// exposed reports whether a namespace is to be seen, and notes that it exists.
func (b *sources) exposed(namespace string) bool {
	if len(b.opt.namespaces) > 0 && !slices.Contains(b.opt.namespaces, namespace) {
		return false
	}
	b.pin(spaceKey(namespace))
	for _, z := range b.opt.forward {
		b.pin(plugin.Under(namespace+".svc", z))
		b.pin(plugin.Under(namespace+".pod", z))
	}
	return true
}

// apex makes SOA, NS and, in a zone of names, the fixed names.
func (b *sources) apex(origin string) {
	b.record(origin, layerDerived, wire.TypeSOA, "")
	ns := plugin.Under("ns.dns", origin)
	if plugin.IsReverse(origin) && len(b.opt.forward) > 0 {
		ns = plugin.Under("ns.dns", b.opt.forward[0])
	}
	b.named(origin, layerDerived, wire.TypeNS, ns)
	if plugin.IsReverse(origin) {
		return
	}
	for _, a := range b.opt.ns {
		b.address(ns, layerDerived, a)
	}
	b.pin(ns)
	b.record(plugin.Under("dns-version", origin), layerDerived, wire.TypeTXT, string(rune(len(schemaVersion)))+schemaVersion)
	for _, name := range []string{"svc", "pod", "node"} {
		b.pin(plugin.Under(name, origin))
	}
}

// canonical reports whether a service's labels are its very names: two such
// services never share a name.
func canonical(s *state.ServiceView) bool {
	return label(s.Name) == s.Name && label(s.Namespace) == s.Namespace
}

// service makes the names of one service and of its endpoints. With another
// version of the same service, backends that both have are left out.
func (b *sources) service(s, other *state.ServiceView) {
	name, namespace := label(s.Name), label(s.Namespace)
	if name == "" || namespace == "" || !b.exposed(namespace) {
		return
	}
	var backends []*state.BackendOf
	c := choose(s)
	if !b.opt.noEndpoints && s.External == "" {
		backends = changed(s, other, c)
	}
	for i, z := range b.opt.forward {
		svc := plugin.Under(name+"."+namespace+".svc", z)
		b.serviceName(s, svc, i == 0)
		for _, be := range backends {
			b.backend(s, be, svc, i == 0, c.weight(be))
		}
	}
}

// choice is which backends of a service are in the answers, as the balancer
// chooses them: those that are ready, and while there are none, those that
// drain.
type choice struct {
	last     bool // those that drain
	weighted bool // by weight; where all have the same, it is left to the set
}

func choose(s *state.ServiceView) choice {
	c := choice{last: s.Ready() == 0}
	var first *state.BackendOf
	for i := range s.Backends {
		be := &s.Backends[i]
		switch {
		case !s.Headless || !c.uses(be):
		case first == nil:
			first = be
		case be.Weight != first.Weight:
			c.weighted = true
		}
	}
	return c
}

func (c choice) uses(be *state.BackendOf) bool { return be.Ready || c.last && be.Draining }

// weight is that of the SRV record of a backend among the others; 0: follows
// from the set.
func (c choice) weight(be *state.BackendOf) uint16 {
	if !c.weighted {
		return 0
	}
	return max(1, be.Weight)
}

// changed returns the backends of a service that are in the answers, at
// addresses where another version of it has not the very same ones. Both are
// sorted by address.
func changed(s, other *state.ServiceView, c choice) (out []*state.BackendOf) {
	var theirs []state.BackendOf
	var was choice
	if other != nil {
		theirs, was = other.Backends, choose(other)
	}
	same := func(a, b state.BackendOf) bool {
		return sameNames(a, b) && c.uses(&a) == was.uses(&b) && c.weight(&a) == was.weight(&b)
	}
	for ours := s.Backends; len(ours) > 0; {
		a := ours[0].Addr
		n := 1
		for n < len(ours) && ours[n].Addr == a {
			n++
		}
		for len(theirs) > 0 && theirs[0].Addr.Less(a) {
			theirs = theirs[1:]
		}
		m := 0
		for m < len(theirs) && theirs[m].Addr == a {
			m++
		}
		if !slices.EqualFunc(ours[:n], theirs[:m], same) {
			for i := range ours[:n] {
				if be := &ours[i]; c.uses(be) && a.IsValid() {
					out = append(out, be)
				}
			}
		}
		ours, theirs = ours[n:], theirs[m:]
	}
	return out
}

// sameService reports whether two versions of a service differ in their
// backends only.
func sameService(a, b *state.ServiceView) bool {
	return a.Name == b.Name && a.Namespace == b.Namespace && a.External == b.External &&
		a.Headless == b.Headless && a.VIP == b.VIP && a.VIP6 == b.VIP6 && slices.Equal(a.Ports, b.Ports)
}

// sameNames reports whether two backends make the same names.
func sameNames(a, b state.BackendOf) bool {
	return a.Addr == b.Addr && a.Hostname == b.Hostname && slices.Equal(a.Targets, b.Targets)
}

// serviceName makes the records of a service's own name in one zone; in the
// first zone also those that point back.
func (b *sources) serviceName(s *state.ServiceView, name string, first bool) {
	switch {
	case s.External != "":
		target := wire.CanonicalName(s.External)
		if _, ok := wire.IsDomainName(target); ok {
			b.record(name, layerDerived, wire.TypeCNAME, nameData(target))
		}
	case !s.Headless && (s.VIP.IsValid() || s.VIP6.IsValid()):
		b.address(name, layerDerived, s.VIP)
		b.address(name, layerDerived, s.VIP6)
		for _, p := range s.Ports {
			b.srv(name, name, p.Port, 0)
			if pn := portName(p.Name, p.Protocol); pn != "" {
				b.srv(pn+"."+name, name, p.Port, 0)
			}
		}
		if first {
			for _, a := range []netip.Addr{s.VIP, s.VIP6} {
				if a.IsValid() {
					b.pointer(a, layerDerived, name)
				}
			}
		}
	case !s.Headless:
		b.pin(name) // waits for its address: it exists, without data
	}
}

// backend makes the names of one backend of the service of that name.
func (b *sources) backend(s *state.ServiceView, be *state.BackendOf, name string, first bool, weight uint16) {
	host := label(be.Hostname)
	if host == "" {
		host = dashed(be.Addr.Unmap())
	}
	target := host + "." + name
	b.address(target, layerDerived, be.Addr)
	if first {
		b.pointer(be.Addr, layerDerived, target)
	}
	if s.Headless {
		b.address(name, layerDerived, be.Addr)
	}
	for j, p := range s.Ports {
		if j >= len(be.Targets) || be.Targets[j] == 0 {
			continue
		}
		pn := portName(p.Name, p.Protocol)
		if s.Headless {
			b.srv(name, target, be.Targets[j], weight)
			if pn != "" {
				b.srv(pn+"."+name, target, be.Targets[j], weight)
			}
		}
		b.srv(target, target, be.Targets[j], 0)
		if pn != "" {
			b.srv(pn+"."+target, target, be.Targets[j], 0)
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

// endpoint makes <endpoint>.<namespace>.pod and the same for aliases and DHCP
// host names, and remembers which addresses are given out.
func (b *sources) endpoint(e *state.EndpointView) {
	namespace := label(e.Namespace)
	if namespace == "" || b.local[e.Network] && e.Owner != b.view.Self || !b.exposed(namespace) || !e.Serving {
		return
	}
	for _, a := range e.Addrs {
		if !a.IsValid() {
			continue
		}
		if b.opt.pods == podsVerified {
			b.pin(givenKey(namespace, a.Unmap()))
		}
		for j := range 1 + len(e.Aliases) {
			host := e.Name
			if j > 0 {
				host = e.Aliases[j-1]
			}
			if host = label(host); host == "" {
				continue
			}
			for i, z := range b.opt.forward {
				name := plugin.Under(host+"."+namespace+".pod", z)
				b.address(name, layerDerived, a)
				if i == 0 && j == 0 {
					b.pointer(a, layerEndpoint, name)
				}
			}
		}
	}
}

func (b *sources) node(n *state.NodeView) {
	if name := label(n.Name); name != "" && n.Serving && n.Refused == "" {
		for _, z := range b.opt.forward {
			b.address(plugin.Under(name+".node", z), layerDerived, n.Advertise)
		}
	}
}

// static makes a declared record.
func (b *sources) static(rec *state.Name) {
	name := wire.CanonicalName(rec.Name)
	if _, ok := wire.IsDomainName(name); !ok || name == "." {
		return
	}
	o := op{layer: layerStatic, n: b.sign}
	switch rec.Type {
	case "A", "AAAA":
		a, err := netip.ParseAddr(rec.Target)
		if err != nil || (rec.Type == "A") != a.Unmap().Is4() {
			return
		}
		o.qtype, o.data = addressData(a)
	case "CNAME":
		target := wire.CanonicalName(rec.Target)
		if _, ok := wire.IsDomainName(target); !ok {
			return
		}
		o.qtype, o.data = wire.TypeCNAME, nameData(target)
	default:
		return
	}
	b.draft.add(name, o)
}

// label makes a DNS label of a name: lower-case, up to the first dot. It is
// empty when the name is no host name label (RFC 1123, and _ as people use it).
func label(s string) string {
	s, _, _ = strings.Cut(s, ".")
	if len(s) > 63 {
		return ""
	}
	upper := false
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			upper = true
			continue
		}
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return ""
		}
	}
	if upper {
		return strings.ToLower(s)
	}
	return s
}
