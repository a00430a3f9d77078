package dns

import (
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	wire "github.com/miekg/dns"
)

// searches reports whether the search path of the client may lead further than
// name, which has no address here. Then the chain has to answer. What it says
// no to is most of what a resolver asks that walks its path by itself: the
// junk below other suffixes, and names that nobody has.
func (r *responder) searches(name string) bool {
	p := r.plan.search
	if p == nil || r.qtype != wire.TypeA && r.qtype != wire.TypeAAAA {
		return false
	}
	ns := r.clients.namespace(r.client)
	if ns == "" {
		return false
	}
	kind, base := p.kind(name, ns)
	switch kind {
	case askedFirst:
		// The last of its path is the name itself, which is anybody's.
		service := above(name, base)
		return !slices.ContainsFunc(r.plan.steps, func(s step) bool {
			z := s.cluster.zoneNow()
			return z != nil && z.names.get(service) != nil
		})
	case askedBare, askedWhole:
		return r.within(base, ns, ".svc."+p.zone) || r.within(base, "svc", "."+p.zone) || r.within(base, p.zone, "")
	}
	return false
}

// within reports whether base, with the suffix a+b, may be more than a name
// that does not exist.
func (r *responder) within(base, a, b string) bool {
	n := len(base) + len(a) + len(b)
	if n > maxName {
		return false
	}
	buf := append(append(append(r.other[:0], base...), a...), b...)
	name := unsafe.String(&buf[0], n)
	if r.table.match(name) != r.block {
		return true
	}
	for i := range r.plan.steps {
		s := &r.plan.steps[i]
		if s.cluster == nil {
			if !s.other.Skips(name, r.qtype) {
				return true
			}
			continue
		}
		z := s.cluster.zone.Load()
		if z == nil {
			return true
		}
		g := z.negativeOf(name)
		switch {
		case z.names.get(name) != nil, g.pods != "" && strings.HasSuffix(name, g.pods):
			return true
		case g.origin == "" || s.cluster.fall.Passes(name):
			continue
		}
		return false
	}
	return true
}

// asker is who sent the question in hand, and what is known of senders.
type asker struct {
	client  netip.Addr
	clients *clientIndex
	saved   bool // see saved.go
}
