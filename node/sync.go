package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"nodenet/dhcp"
	"nodenet/dns"
	"nodenet/lb"
	"nodenet/overlay"
	"nodenet/state"
)

// localTick is how often the host's own addresses are looked at again.
const localTick = 10 * time.Second

// checkTick is how often the view that is kept up to date is compared with one
// derived from scratch.
const checkTick = 10 * time.Minute

// runSync hands each new snapshot to the subsystems. It never waits for them:
// each applies the newest state that it was given.
func (n *Node) runSync(ctx context.Context) error {
	feed := n.store.Subscribe()
	defer feed.Close()
	tick := time.NewTicker(localTick)
	defer tick.Stop()
	check := time.NewTicker(checkTick)
	defer check.Stop()
	if !n.saved() {
		// Nothing of our own was saved: a first start, or the state was lost.
		// The kernel may still carry workloads that only the peers remember,
		// so it is left alone until they had their chance to tell.
		select {
		case <-n.declared:
		case <-ctx.Done():
			return nil
		}
	}
	n.hostAddrs = hostAddrs()
	n.apply(n.store.Snapshot())
	for {
		select {
		case <-feed.C():
			_, _, sn := feed.Take()
			n.apply(sn)
		case <-tick.C:
			l, err := n.lookLocal()
			if err != nil {
				n.log.Warn("own address not found", "err", err)
				continue
			}
			n.mu.Lock()
			n.local = l
			n.mu.Unlock()
			n.hostAddrs = hostAddrs()
			n.apply(n.store.Snapshot())
		case <-check.C:
			if err := n.store.CheckView(); err != nil {
				n.log.Error("derived state was wrong and is made anew", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) apply(sn *state.Snapshot) {
	v := sn.View()
	l := n.localNow()
	plan := overlay.Derive(v, l)
	n.overlay.Set(plan)
	n.lb.Set(v, n.lbLocal(v, l, plan))
	n.setAnnounced(v)
	n.dns.SetAddrs(n.dnsAddrs(v, l, plan))
	n.dns.Set(v)
	n.dhcp.Set(n.scopes(v))
}

// dnsAddrs are the addresses that a server block without `bind` listens on.
func (n *Node) dnsAddrs(v *state.View, l overlay.Local, plan overlay.Plan) []netip.Addr {
	addrs := []netip.Addr{l.Resolver, l.Advertise}
	for i := range v.Networks {
		addrs = append(addrs, gateways(&v.Networks[i])...)
	}
	if plan.Serves6(l.Resolver6) {
		addrs = append(addrs, l.Resolver6)
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
	// The order stays: the first is the name server's own address.
	seen := map[netip.Addr]bool{}
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		if seen[a] {
			return true
		}
		seen[a] = true
		return false
	})
}

// gateways are the addresses of the node's bridge on a network, one for each
// block that it has opened.
func gateways(nw *state.NetworkView) []netip.Addr {
	if nw.NoGateway {
		return nil
	}
	var out []netip.Addr
	for _, b := range nw.Own {
		out = append(out, overlay.Gateway(nw.Network, b))
	}
	return out
}

// lbLocal is what the load balancer needs to know of this host.
func (n *Node) lbLocal(v *state.View, l overlay.Local, plan overlay.Plan) lb.Local {
	out := lb.Local{
		Self: n.self, Range: l.ServiceRange, Resolver: l.Resolver,
		ClusterPrefixes: []netip.Prefix{l.ServiceRange}, NodeAddrs: n.hostAddrs,
		Range6:        l.ServiceRange6,
		NodePortFirst: n.cfg.Services.NodePorts.First, NodePortLast: n.cfg.Services.NodePorts.Last,
		NoSCTP: !lb.TracksSCTP(),
	}
	if l.ServiceRange6.IsValid() {
		out.ClusterPrefixes = append(out.ClusterPrefixes, l.ServiceRange6)
	}
	if plan.Serves6(l.Resolver6) {
		out.Resolver6 = l.Resolver6
	}
	macs := map[string]net.HardwareAddr{}
	for _, b := range plan.Bridges {
		if mac, err := net.ParseMAC(b.MAC); err == nil {
			macs[b.Name] = mac
		}
	}
	for _, x := range plan.VXLANs {
		out.Links = append(out.Links, x.Name)
	}
	for _, nw := range v.Networks {
		if !nw.Local() {
			out.ClusterPrefixes = append(out.ClusterPrefixes, nw.Prefix)
			if nw.Prefix6.IsValid() {
				out.ClusterPrefixes = append(out.ClusterPrefixes, nw.Prefix6)
			}
		}
		name := overlay.BridgeName(nw.Network)
		out.Bridges = append(out.Bridges, lb.BridgeInfo{
			Network: nw.Name, Name: name, MAC: macs[name], Prefix: nw.Prefix, Prefix6: nw.Prefix6, Own: nw.Dual(nw.Own),
			Masquerade: nw.Masquerade, Internal: nw.Internal,
		})
	}
	return out
}

// hostAddrs lists the addresses of the host's own interfaces.
func hostAddrs() []netip.Addr {
	var out []netip.Addr
	ifs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range ifs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// scopes are the DHCP scopes of this node: one a network that asks for DHCP,
// once a block is open.
func (n *Node) scopes(v *state.View) dhcp.Scopes {
	s := dhcp.Scopes{Rev: v.Rev}
	for i := range v.Networks {
		nw := &v.Networks[i]
		if !nw.DHCP || len(nw.Own) == 0 {
			continue
		}
		gws := gateways(nw)
		if len(gws) == 0 {
			continue
		}
		ns := nw.Namespace
		if ns == "" {
			ns = "default"
		}
		_, search, _ := dns.WorkloadConfig(n.zone(), ns, n.cfg.Services.DNS, nil)
		lease := time.Duration(nw.LeaseTime) * time.Second
		if lease == 0 {
			lease = dhcp.DefaultLeaseTime
		}
		var links []dhcp.Link
		for i, p := range nw.Own[1:] {
			links = append(links, dhcp.Link{Prefix: p, Router: gws[i+1]})
		}
		s.List = append(s.List, dhcp.Scope{
			Links:   links,
			Network: nw.Name, Device: overlay.BridgeName(nw.Network), ServerID: gws[0], Routers: gws[:1],
			DNS: []netip.Addr{n.cfg.Services.DNS}, Prefix: nw.Own[0], Domain: search[0], Search: search,
			MTU: n.overlay.MTU(nw.Name), LeaseTime: lease, Namespace: ns,
		})
	}
	return s
}

// settle waits until the parts that a workload depends on hold revision rev,
// so that when a verb returns its effect is there to be used. A part that is
// in trouble does not hold the verb up for longer than settleWait.
func (n *Node) settle(ctx context.Context, rev uint64) { n.settled(ctx, rev, settleWait) }

// settled waits as settle does, for limit at most, and reports whether they do.
func (n *Node) settled(ctx context.Context, rev uint64, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if n.applied() >= rev {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

const settleWait = 2 * time.Second

// appliedByAll is the revision that overlay, balancer and DNS all hold.
func (n *Node) appliedByAll() uint64 {
	return min(n.overlay.Status().Applied, n.lb.Status().Applied, n.dns.Status().Applied)
}

// ready reports whether the node serves: its own records are written and the
// kernel holds what they ask for.
func (n *Node) ready() bool {
	return n.isDeclared() && n.overlay.Status().OK && n.lb.Status().OK
}

func (n *Node) isDeclared() bool {
	select {
	case <-n.declared:
		return true
	default:
		return false
	}
}
