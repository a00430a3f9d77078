package state

import (
	"net/netip"
	"testing"
)

func TestFlappingNodeIsLastChoice(t *testing.T) {
	nodes := map[NodeID]*NodeView{"a": {Node: Node{Name: "node1"}}, "b": {Node: Node{Name: "node2"}, Flapping: true}, "c": {Node: Node{Name: "node3"}, Flapping: true, Self: true}}
	on := func(n NodeID, ready bool) BackendOf {
		return BackendOf{Node: n, Ready: ready, Addr: netip.MustParseAddr("192.0.2.1")}
	}
	for name, tt := range map[string]struct {
		in   []BackendOf
		want []bool
	}{
		"others serve":                  {[]BackendOf{on("a", true), on("b", true)}, []bool{true, false}},
		"it is the only one":            {[]BackendOf{on("b", true)}, []bool{true}},
		"the others are not ready":      {[]BackendOf{on("a", false), on("b", true)}, []bool{false, true}},
		"outside the cluster":           {[]BackendOf{on("", true), on("b", true)}, []bool{true, false}},
		"this node never is":            {[]BackendOf{on("c", true), on("b", true)}, []bool{true, false}},
		"not ready for its own reasons": {[]BackendOf{on("a", true), on("b", false)}, []bool{true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			v, sv := &View{nodeByID: nodes}, &ServiceView{Backends: tt.in}
			before := append([]BackendOf(nil), tt.in...)
			v.damp(sv)
			for i, b := range sv.Backends {
				if b.Ready != tt.want[i] {
					t.Errorf("backend %d on %q: ready %v, want %v", i, b.Node, b.Ready, tt.want[i])
				}
				if b.Ready != before[i].Ready && b.Why != "node2 is flapping" {
					t.Errorf("backend %d: why %q", i, b.Why)
				}
			}
		})
	}
}
