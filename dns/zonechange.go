package dns

import (
	"cmp"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/state"
)

// buildZone derives a zone from a view. It is a pure function.
func buildZone(v *state.View, opt zoneOptions) *Zone {
	z := &Zone{
		rev: v.Rev, seq: 1, static: 1, opt: opt,
		origins: append(append(plugin.Zones{}, opt.forward...), opt.reverse...),
		names:   newNameTable(),
	}
	d := newDraft(z)
	b := newSources(d, z, v, 1)
	for _, origin := range z.origins {
		b.apex(origin)
	}
	seen := make(map[string]bool) // names that differ in letter case only are one, the first
	for s := range v.Services() {
		if !canonical(s) {
			z.odd = true
		}
		if key := label(s.Name) + "." + label(s.Namespace); !seen[key] {
			seen[key] = true
			b.service(s, nil)
		}
	}
	for e := range v.Endpoints() {
		b.endpoint(e)
	}
	for i := range v.Nodes {
		b.node(&v.Nodes[i])
	}
	for i := range v.Names {
		b.static(&v.Names[i])
	}
	z.names = d.apply()
	z.negs = z.negatives()
	return z
}

// change derives the zone of a view from that of an older one. It returns nil
// when only buildZone can. The cost depends on the difference, not on the
// size of the zone.
func (z *Zone) change(old, v *state.View) *Zone {
	diff := v.Since(old)
	if z.odd || z.rev != old.Rev || diff.All || diff.Networks {
		return nil
	}
	out := &Zone{
		rev: v.Rev, seq: z.seq + 1, static: z.static, opt: z.opt, origins: z.origins, names: z.names,
	}
	d := newDraft(out)
	minus, plus := newSources(d, out, old, -1), newSources(d, out, v, 1)
	for _, p := range diff.Services {
		was, is := p.Old, p.New
		switch {
		case was != nil && !canonical(was), is != nil && !canonical(is):
			return nil
		case was != nil && is != nil && sameService(was, is):
			minus.service(was, is)
			plus.service(is, was)
			continue
		}
		if was != nil {
			minus.service(was, nil)
		}
		if is != nil {
			plus.service(is, nil)
		}
	}
	for _, p := range diff.Endpoints {
		if p.Old != nil {
			minus.endpoint(p.Old)
		}
		if p.New != nil {
			plus.endpoint(p.New)
		}
	}
	if diff.Nodes {
		for i := range old.Nodes {
			minus.node(&old.Nodes[i])
		}
		for i := range v.Nodes {
			plus.node(&v.Nodes[i])
		}
	}
	if diff.Names {
		out.static = out.seq
		for i := range old.Names {
			minus.static(&old.Names[i])
		}
		for i := range v.Names {
			plus.static(&v.Names[i])
		}
	}
	out.names = d.apply()
	out.negs = out.negatives()
	return out
}

// draft collects changes of names.
type draft struct {
	zone  *Zone
	edits map[string]*edit
	only  string // the one name that counts; empty: all
}

// edit is what changes about one name.
type edit struct {
	ops  []op
	kids int32
}

// op adds a record n times; with qtype 0 a pin.
type op struct {
	qtype uint16
	layer layer
	n     int32
	data  string
}

func newDraft(z *Zone) *draft { return &draft{zone: z, edits: make(map[string]*edit)} }

func (d *draft) edit(name string) *edit {
	e := d.edits[name]
	if e == nil {
		e = new(edit)
		d.edits[name] = e
	}
	return e
}

func (d *draft) add(name string, o op) {
	if d.only != "" && name != d.only {
		return
	}
	e := d.edit(name)
	e.ops = append(e.ops, o)
}

// apply returns the name table with the changes. Names go from the longest to
// the shortest, so that those above exist as long as something is below them.
func (d *draft) apply() *nameTable {
	var byDepth [][]string
	put := func(name string) {
		depth := strings.Count(name, ".")
		if name == "." {
			depth = 0
		}
		for len(byDepth) <= depth {
			byDepth = append(byDepth, nil)
		}
		byDepth[depth] = append(byDepth[depth], name)
	}
	for name := range d.edits {
		put(name)
	}
	out := make(map[string]*node, len(d.edits))
	for depth := len(byDepth) - 1; depth >= 0; depth-- {
		for _, name := range byDepth[depth] {
			was := d.zone.names.get(name)
			is := d.edits[name].node(name, was)
			out[name] = is
			if (was == nil) == (is == nil) {
				continue
			}
			parent := d.zone.parent(name)
			if parent == "" {
				continue
			}
			if d.edits[parent] == nil {
				put(parent)
			}
			if is != nil {
				d.edit(parent).kids++
			} else {
				d.edit(parent).kids--
			}
		}
	}
	return d.zone.names.with(out)
}

// parent returns the name above, or "" at and outside the zone's origins.
func (z *Zone) parent(name string) string {
	if !strings.HasSuffix(name, ".") {
		return "" // see spaceKey
	}
	origin := z.origins.Match(name)
	if origin == "" || name == origin {
		return ""
	}
	off, end := wire.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[off:]
}

// node makes the new version of a node; nil: it does not exist any more.
func (e *edit) node(name string, was *node) *node {
	n := &node{name: name}
	var base []rrset
	if was != nil {
		n.name, n.kids, n.pins, base = was.name, was.kids, was.pins, was.sets
	}
	n.kids = uint32(int32(n.kids) + e.kids)
	if len(e.ops) == 0 { // something below came or went
		n.setAll(base)
		n.shown = was.seen()
		if !n.exists() {
			return nil
		}
		return n
	}
	slices.SortFunc(e.ops, func(a, b op) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.qtype, b.qtype), strings.Compare(a.data, b.data))
	})
	var touched []rrset
	for ops := e.ops; len(ops) > 0; {
		k := 1
		for k < len(ops) && ops[k].layer == ops[0].layer && ops[k].qtype == ops[0].qtype {
			k++
		}
		group := ops[:k]
		ops = ops[k:]
		if group[0].qtype == 0 {
			for _, o := range group {
				n.pins = uint32(int32(n.pins) + o.n)
			}
			continue
		}
		touched = append(touched, rrset{qtype: group[0].qtype, layer: group[0].layer})
		s := &touched[len(touched)-1]
		i := slices.IndexFunc(base, func(o rrset) bool { return o.qtype == s.qtype && o.layer == s.layer })
		old := ""
		if i >= 0 {
			old = base[i].data
		}
		s.merge(old, i >= 0, group)
	}
	for _, s := range base {
		if !slices.ContainsFunc(e.ops, func(o op) bool { return o.qtype == s.qtype && o.layer == s.layer }) {
			touched = append(touched, s)
		}
	}
	touched = slices.DeleteFunc(touched, func(s rrset) bool { return s.layer == gone })
	n.setAll(touched)
	n.order()
	if !n.exists() {
		return nil
	}
	return n
}

// setAll takes over a copy of sets.
func (n *node) setAll(sets []rrset) {
	if n.sets = n.one[:0:1]; len(sets) != 1 {
		n.sets = make([]rrset, 0, len(sets))
	}
	n.sets = append(n.sets, sets...)
	if len(sets) == 1 && len(sets[0].data) <= 64 {
		// Side by side, since who compares the name wants the data next.
		both := n.name + sets[0].data
		n.name, n.one[0].data = both[:len(n.name)], both[len(n.name):]
	}
}

// seen returns how many sets are shown; a node that is not there shows none.
func (n *node) seen() uint8 {
	if n == nil {
		return 0
	}
	return n.shown
}

// gone marks a set without records.
const gone = layer(255)

// merge sets the data to that of before with ops applied, which are sorted.
// An item is written as often as sources contribute it.
func (s *rrset) merge(before string, existed bool, ops []op) {
	if s.qtype == wire.TypeSOA { // without data: one apex, never taken away
		return
	}
	var b strings.Builder
	b.Grow(len(before) + len(ops)*len(ops[0].data))
	last, records := "", 0
	write := func(item string, n int) {
		for range n {
			s.dup = s.dup || records > 0 && item == last
			last = item
			records++
			b.WriteString(item)
		}
	}
	for before != "" || len(ops) > 0 {
		item := ""
		if before != "" {
			item = before[:itemLen(s.qtype, before)]
		}
		if len(ops) > 0 && (before == "" || ops[0].data < item) {
			item = ops[0].data
		}
		n := 0
		for before != "" && strings.HasPrefix(before, item) && itemLen(s.qtype, before) == len(item) {
			before = before[len(item):]
			n++
		}
		for len(ops) > 0 && ops[0].data == item {
			n += int(ops[0].n)
			ops = ops[1:]
		}
		write(item, n)
	}
	s.data = b.String()
	if records == 0 {
		s.layer = gone
	}
}

// order puts the visible sets first, each part in the order of layers and
// types.
func (n *node) order() {
	if len(n.sets) < 2 {
		n.shown = uint8(len(n.sets))
		return
	}
	var shown, hidden []rrset
	for i, s := range n.sets {
		if visible(n.sets, i) {
			shown = append(shown, s)
		} else {
			hidden = append(hidden, s)
		}
	}
	byType := func(a, b rrset) int { return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.qtype, b.qtype)) }
	slices.SortFunc(shown, byType)
	slices.SortFunc(hidden, byType)
	n.shown = uint8(len(shown))
	copy(n.sets, append(shown, hidden...))
}
