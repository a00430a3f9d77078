package state

// damp takes the backends on flapping nodes out of a service that has others.
// One that has no others keeps them: a backend that may go away again is better
// than none.
func (v *View) damp(sv *ServiceView) {
	flapping := func(b *BackendOf) *NodeView {
		if n := v.nodeByID[b.Node]; n != nil && n.Flapping && !n.Self {
			return n
		}
		return nil
	}
	steady := false
	for i := range sv.Backends {
		steady = steady || sv.Backends[i].Ready && flapping(&sv.Backends[i]) == nil
	}
	for i := range sv.Backends {
		b := &sv.Backends[i]
		if n := flapping(b); steady && n != nil && b.Ready {
			b.Ready, b.Why = false, n.Name+" is flapping"
		}
	}
}
