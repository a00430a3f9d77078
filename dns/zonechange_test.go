package dns

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"
	"pgregory.net/rapid"

	"nodenet/state"
)

// dump writes all that a zone holds, hidden sets and counters too.
func (z *Zone) dump() string {
	var lines []string
	for n := range z.names.all() {
		line := fmt.Sprintf("%q kids %d pins %d shown %d", n.name, n.kids, n.pins, n.shown)
		for _, s := range n.sets {
			line += fmt.Sprintf(" | %s layer %d dup %t %x", wire.TypeToString[s.qtype], s.layer, s.dup, s.data)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestChange: a zone changed step by step is the zone built anew.
func TestChange(t *testing.T) {
	changed := 0
	rapid.Check(t, func(t *rapid.T) {
		opt := testZoneOptions()
		opt.noEndpoints = rapid.IntRange(0, 5).Draw(t, "noendpoints") == 0
		if rapid.Bool().Draw(t, "two zones") {
			opt.forward = append(opt.forward, "pod.cluster.local.")
		}
		draw := func() *state.View {
			if rapid.IntRange(0, 9).Draw(t, "clash") == 0 {
				return drawView(t)
			}
			return drawViewOf(t, "web", "db", "svc", "pod", "_tcp", "10-0-0-1", "node")
		}
		v := draw()
		z := buildZone(v, opt)
		for range 4 {
			next := draw()
			for n := range z.names.all() { // packed answers of before must not stay
				for _, s := range n.sets[:n.shown] {
					z.memo(n, &s, s.qtype)
				}
			}
			was := z.dump()
			c := z.change(v, next)
			if z.dump() != was {
				t.Fatal("the old zone changed")
			}
			fresh := buildZone(next, opt)
			if c == nil {
				c = fresh
			} else {
				changed++
			}
			if diff := gocmp.Diff(fresh.dump(), c.dump()); diff != "" {
				t.Fatalf("changed zone (-anew +changed):\n%s", diff)
			}
			for n := range c.names.all() {
				for _, s := range n.sets[:n.shown] {
					f := fresh.names.get(n.name)
					if a, b := fresh.memo(f, f.set(s.qtype), s.qtype), c.memo(n, &s, s.qtype); string(a.body) != string(b.body) {
						t.Fatalf("%s %s: packed %x, anew %x", n.name, wire.TypeToString[s.qtype], b.body, a.body)
					}
				}
			}
			v, z = next, c
		}
	})
	if changed == 0 {
		t.Error("no zone was changed in place: nothing was tested")
	}
}

// TestChangeOfLargeService: of a service with many backends, one that comes
// touches its own names only.
func TestChangeOfLargeService(t *testing.T) {
	view := func(n int) *state.View {
		s := &state.ServiceView{Service: state.Service{Namespace: "apps", Name: "web", Headless: true, Ports: []state.ServicePort{{Name: "http", Port: 80}}}}
		for i := range n {
			s.Backends = append(s.Backends, state.BackendOf{Addr: addr(fmt.Sprintf("10.0.%d.%d", i/250, i%250)), Targets: []uint16{80}, Ready: true})
		}
		return state.NewView(state.View{Rev: uint64(n)}, nil, []*state.ServiceView{s})
	}
	old, v := view(2000), view(2001)
	z := buildZone(old, testZoneOptions())
	d := newDraft(z)
	was := old.Service("apps/web")
	is := v.Service("apps/web")
	newSources(d, z, old, -1).service(was, is)
	newSources(d, z, v, 1).service(is, was)
	if len(d.edits) > 12 {
		t.Errorf("one backend touches %d names", len(d.edits))
	}
	if got, want := z.change(old, v).dump(), buildZone(v, testZoneOptions()).dump(); got != want {
		t.Error("the zone differs from one built anew")
	}
}

// TestNameTable: the table is a map, and versions do not touch one another.
func TestNameTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-c]{1,4}\.`)
		tab, model := newNameTable(), map[string]*node{}
		for range 5 {
			changes := map[string]*node{}
			for range rapid.IntRange(1, 60).Draw(t, "changes") {
				n := name.Draw(t, "name")
				changes[n] = nil
				if rapid.IntRange(0, 2).Draw(t, "keep") > 0 {
					changes[n] = &node{name: n}
				}
			}
			before, old := listed(tab), tab
			tab = tab.with(changes)
			if diff := gocmp.Diff(before, listed(old)); diff != "" {
				t.Fatalf("the old version changed:\n%s", diff)
			}
			for n, x := range changes {
				if model[n] = x; x == nil {
					delete(model, n)
				}
			}
			if tab.n != len(model) || len(listed(tab)) != len(model) {
				t.Fatalf("%d names, %d listed, want %d", tab.n, len(listed(tab)), len(model))
			}
			for n, x := range model {
				if tab.get(n) != x {
					t.Fatalf("%s is not found", n)
				}
			}
		}
	})
}

func listed(tab *nameTable) (out []string) {
	for n := range tab.all() {
		out = append(out, fmt.Sprintf("%s %p", n.name, n))
	}
	slices.SortFunc(out, cmp.Compare)
	return out
}
