package lb

import (
	"nodenet/state"
)

// nearness is where a backend is, seen from this node.
type nearness uint8

const (
	elsewhere nearness = iota
	sameZone
	sameNode
)

// candidate is a backend of one port that may get connections.
type candidate struct {
	weighted
	near     nearness
	draining bool // only when there is no other
}

// choose returns the backends that a policy gives connections to; none: the
// policy lets none have them. Draining ones are the last resort: a service that
// stops everywhere at once still answers while its processes last.
func choose(policy string, list []candidate) []weighted {
	floor := elsewhere
	switch policy {
	case state.PolicyLocal, state.PolicyPreferNode:
		floor = sameNode
	case state.PolicyPreferZone:
		floor = sameZone
	}
	for _, draining := range []bool{false, true} {
		for _, floor := range []nearness{floor, elsewhere} {
			var out []weighted
			for _, c := range list {
				if c.draining == draining && c.near >= floor {
					out = append(out, c.weighted)
				}
			}
			if len(out) > 0 {
				return out
			}
			if policy == state.PolicyLocal {
				break
			}
		}
	}
	return nil
}

// near says where a backend is. One without a node, given by its address, is
// on this node if its address is.
func (sc *scope) near(b *state.BackendOf) nearness {
	switch {
	case b.Node == sc.l.Self, b.Node == "" && sc.isLocal(b.Addr):
		return sameNode
	case sc.zone != "" && sc.zones[b.Node] == sc.zone:
		return sameZone
	}
	return elsewhere
}

// zonesOf returns the zones of nodes that are in one.
func zonesOf(v *state.View) map[state.NodeID]string {
	zones := make(map[state.NodeID]string)
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Zone != "" {
			zones[n.ID] = n.Zone
		}
	}
	return zones
}
