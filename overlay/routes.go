package overlay

import (
	"net/netip"
	"slices"

	"nodenet/state"
)

// RouteStatus is a block and how this node reaches it.
type RouteStatus struct {
	Network  string
	Prefix   netip.Prefix
	Node     state.NodeID
	NodeName string
	Via      string     // ViaVXLAN, ViaRoutes or ViaLocal
	NextHop  netip.Addr // zero for ViaLocal
	Device   string
	MAC      string // of the next hop's VTEP, for ViaVXLAN
	Reason   string
	InKernel bool // at the last pass, with its neighbour and FDB entry
}

// Routes returns the plan's blocks, own ones first within a network, sorted
// by network and prefix. Node and NodeName are empty for own blocks.
func (o *Overlay) Routes() []RouteStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.plan == nil {
		return nil
	}
	p, obs := o.plan, &o.observed
	neigh, fdb := setOf(obs.Neighbors), setOf(obs.FDB)
	have := map[Route]bool{}
	for _, r := range obs.Routes {
		have[r.inKernel()] = true
	}
	mac := map[hop]string{}
	for _, n := range p.Neighbors {
		mac[hop{n.Dev, n.Addr}] = n.MAC
	}
	place := map[[2]string]FDBEntry{}
	for _, f := range p.FDB {
		place[[2]string{f.Dev, f.MAC}] = f
	}
	var out []RouteStatus
	for _, b := range p.Bridges {
		l := obs.Links[b.Name]
		for i, block := range b.Blocks {
			in := l.Kind == KindBridge && l.Up
			if i < len(b.Addrs) {
				in = in && slices.Contains(l.Addrs, b.Addrs[i])
			}
			out = append(out, RouteStatus{Network: b.Network, Prefix: block, Via: ViaLocal, Device: b.Name,
				Reason: "own block", InKernel: in})
		}
	}
	for _, r := range p.Routes {
		if r.Node == "" {
			continue
		}
		s := RouteStatus{Network: r.Network, Prefix: r.Prefix, Node: r.Node, NodeName: r.Name, Via: r.How,
			NextHop: r.Via, Device: r.Dev, Reason: r.Reason, InKernel: have[r.inKernel()]}
		if r.How == ViaVXLAN {
			s.MAC = mac[hop{r.Dev, r.Via}]
			s.InKernel = s.InKernel && neigh[Neighbor{r.Dev, r.Via, s.MAC}] && fdb[place[[2]string{r.Dev, s.MAC}]]
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b RouteStatus) int {
		switch {
		case a.Network != b.Network:
			if a.Network < b.Network {
				return -1
			}
			return 1
		case (a.Via == ViaLocal) != (b.Via == ViaLocal):
			if a.Via == ViaLocal {
				return -1
			}
			return 1
		}
		return compareRouteKeys(routeKey{prefix: a.Prefix}, routeKey{prefix: b.Prefix})
	})
	return out
}

// PeerVia returns the ways that the plan uses towards a node, sorted, and the
// least MTU in bytes of the networks that use them; nothing and 0 when the
// node has no routed block.
func (o *Overlay) PeerVia(node state.NodeID) (via []string, mtu int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.plan == nil {
		return nil, 0
	}
	for _, r := range o.plan.Routes {
		if r.Node != node || node == "" {
			continue
		}
		if !slices.Contains(via, r.How) {
			via = append(via, r.How)
		}
		if m := o.plan.mtu(r.Network); mtu == 0 || m < mtu {
			mtu = m
		}
	}
	slices.Sort(via)
	return via, mtu
}

// MTU returns the MTU of a network in bytes, or 0 for a network that the plan
// does not know.
func (o *Overlay) MTU(network string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.plan == nil {
		return 0
	}
	return o.plan.mtu(network)
}

func (p *Plan) mtu(network string) int {
	for _, n := range p.Networks {
		if n.Name == network {
			return n.MTU
		}
	}
	return 0
}
