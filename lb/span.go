package lb

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// overlaps finds the ranges of ports that cannot be programmed because another
// one, of the first service by name, has some of their ports on the same
// address: intervals of a map must be disjoint. It says so of each.
func overlaps(ranges []*Service) (lost map[*Service]bool, warnings []string) {
	list := slices.Clone(ranges)
	slices.SortFunc(list, func(a, b *Service) int {
		return cmp.Or(a.VIP.Compare(b.VIP), cmp.Compare(a.Proto, b.Proto), strings.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port))
	})
	lost = make(map[*Service]bool)
	first := 0 // of the same address and protocol
	for i, s := range list {
		if list[first].VIP != s.VIP || list[first].Proto != s.Proto {
			first = i
		}
		for _, o := range list[first:i] {
			if !lost[o] && o.Port <= s.Last && s.Port <= o.Last {
				lost[s] = true
				warnings = append(warnings, fmt.Sprintf("ports %d-%d/%s of service %s on %s overlap ports %d-%d of service %s",
					s.Port, s.Last, protoName(s.Proto), s.Name, s.VIP, o.Port, o.Last, o.Name))
				break
			}
		}
	}
	return lost, warnings
}

// spanKey is what ranges that may overlap share.
func (s *Service) spanKey() Target { return Target{Addr: s.VIP, Proto: s.Proto} }

// spanned notes that a range came or went: the others on its address may win or
// lose by that.
func (b *book) spanned(s *Service, e *edit) {
	if s.Last == 0 {
		return
	}
	for _, o := range b.spans[s.spanKey()] {
		e.touch(o.target())
	}
	b.warnings = nil
}

// lost reports whether a range is another one's.
func (b *book) lost(s *Service) bool {
	if s.Last == 0 {
		return false
	}
	lost, _ := overlaps(b.spansOf(s.spanKey()))
	return lost[s]
}

// spansOf are the ranges on an address that have their first port.
func (b *book) spansOf(k Target) []*Service {
	var out []*Service
	for _, s := range b.spans[k] {
		if b.claims[s.target()][0] == s {
			out = append(out, s)
		}
	}
	return out
}

// overlapping says which ranges are left out.
func (b *book) overlapping() []string {
	var all []*Service
	for k := range b.spans {
		all = append(all, b.spansOf(k)...)
	}
	_, warnings := overlaps(all)
	return warnings
}
