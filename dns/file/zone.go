package file

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// zone is the content of one zone file. Immutable.
type zone struct {
	origin string
	soa    *wire.SOA
	names  map[string]*node // lower-case; every parent up to the origin exists
	count  int              // records
}

// node is one name. One without records is an empty non-terminal.
type node struct {
	sets map[uint16][]wire.RR
	sigs map[uint16][]wire.RR // RRSIGs by the type that they cover
}

// load reads a zone file (RFC 1035 section 5). The file name is for messages
// and $INCLUDE. All faults of the zone are returned at once.
func load(r io.Reader, origin, file string) (*zone, error) {
	z := &zone{origin: origin, names: make(map[string]*node)}
	p := wire.NewZoneParser(r, origin, file)
	p.SetIncludeAllowed(true)
	p.SetDefaultTTL(3600)
	var errs []error
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if err := z.insert(rr); err != nil {
			errs = append(errs, err)
		}
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	if z.soa == nil {
		errs = append(errs, fmt.Errorf("%s has no SOA record of its own", origin))
	}
	errs = append(errs, z.check()...)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	z.fill()
	return z, nil
}

func (z *zone) insert(rr wire.RR) error {
	h := rr.Header()
	name := wire.CanonicalName(h.Name)
	h.Name = name
	switch {
	case !plugin.InZone(z.origin, name):
		return fmt.Errorf("%s is outside of %s", name, z.origin)
	case h.Class != wire.ClassINET:
		return fmt.Errorf("%s: class %s is not served", name, wire.Class(h.Class))
	}
	if soa, ok := rr.(*wire.SOA); ok {
		if name != z.origin {
			return fmt.Errorf("the SOA of %s is in the file of %s", name, z.origin)
		}
		if z.soa != nil && !wire.IsDuplicate(z.soa, soa) {
			return fmt.Errorf("%s has two SOA records", name)
		}
		z.soa = soa
	}
	n := z.names[name]
	if n == nil {
		n = &node{sets: make(map[uint16][]wire.RR), sigs: make(map[uint16][]wire.RR)}
		z.names[name] = n
	}
	sets, t := n.sets, h.Rrtype
	if sig, ok := rr.(*wire.RRSIG); ok {
		sets, t = n.sigs, sig.TypeCovered
	}
	if !slices.ContainsFunc(sets[t], func(o wire.RR) bool { return wire.IsDuplicate(o, rr) }) {
		sets[t] = append(sets[t], rr)
		z.count++
	}
	return nil
}

// check finds what must not be together.
func (z *zone) check() (errs []error) {
	for name, n := range z.names {
		alone := 0
		for t := range n.sets {
			if t != wire.TypeNSEC && t != wire.TypeNSEC3 {
				alone++
			}
		}
		if c := len(n.sets[wire.TypeCNAME]); c > 1 || c == 1 && alone > 1 {
			errs = append(errs, fmt.Errorf("%s: a CNAME stands alone (RFC 1034 section 3.6.2), remove it or the rest", name))
		}
		if len(n.sets[wire.TypeDNAME]) > 1 {
			errs = append(errs, fmt.Errorf("%s: two DNAME records (RFC 6672 section 2.4), remove one", name))
		}
		for _, set := range n.sets { // one TTL a set, RFC 2181 section 5.2
			least := set[0].Header().Ttl
			for _, rr := range set {
				least = min(least, rr.Header().Ttl)
			}
			for _, rr := range set {
				rr.Header().Ttl = least
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

// fill makes the empty non-terminals (RFC 8020, RFC 4592 section 2.2.2).
func (z *zone) fill() {
	var names []string
	for n := range z.names {
		names = append(names, n)
	}
	for _, name := range names {
		for name != z.origin {
			name = parent(name)
			if z.names[name] != nil {
				break
			}
			z.names[name] = new(node)
		}
	}
}

// parent cuts the first label off.
func parent(name string) string {
	off, end := wire.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[off:]
}

// records returns the whole zone, the SOA first.
func (z *zone) records() []wire.RR {
	out := make([]wire.RR, 0, z.count)
	out = append(out, z.soa)
	var names []string
	for n := range z.names {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, name := range names {
		n := z.names[name]
		for _, sets := range []map[uint16][]wire.RR{n.sets, n.sigs} {
			var types []uint16
			for t := range sets {
				types = append(types, t)
			}
			slices.Sort(types)
			for _, t := range types {
				for _, rr := range sets[t] {
					if rr != wire.RR(z.soa) {
						out = append(out, rr)
					}
				}
			}
		}
	}
	return out
}
