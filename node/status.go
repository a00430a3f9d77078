package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/ipam"
	"nodenet/overlay"
	"nodenet/state"
)

func unix0(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// status answers the operator's questions in one go.
func (n *Node) status(context.Context) (*api.Status, error) {
	sn := n.store.Snapshot()
	v := sn.View()
	g := n.gossip.Status()
	s := &api.Status{
		Version: n.opts.Version, Node: n.cfg.Node.Name, NodeID: string(n.self), Zone: n.cfg.Node.Zone,
		Advertise: n.localNow().Advertise, Started: n.started.Unix(),
		Cluster: g.Cluster, ClusterID: g.ClusterID, Revision: v.Rev,
		Services: n.services(sn),
	}
	s.Synced = g.Synced
	if s.Stale = !g.Heard && g.Known > 0; s.Stale {
		s.StaleSince = n.started.Unix()
	}
	s.Peers = n.peers(v)
	for i := range v.Networks {
		s.Networks = append(s.Networks, n.networkStatus(sn, v, &v.Networks[i]))
	}
	s.Subsystems = n.subsystems(v)
	s.Conflicts = append(s.Conflicts, n.healthPorts.Faults()...)
	for _, c := range n.conflicts(sn, v) {
		s.Conflicts = append(s.Conflicts, fmt.Sprintf("%s: %s (%s is used, not %s)", c.What, c.Detail, c.Winner, c.Loser))
	}
	return s, nil
}

// ringConflicts finds ranges that several nodes claim, and rings of another
// cluster: neither can happen while everybody keeps to the rules.
func (n *Node) ringConflicts(sn *state.Snapshot, v *state.View) []state.Conflict {
	var out []state.Conflict
	for _, spec := range n.specs(sn) {
		ring := ipam.Resolve(sn, spec.Ring, n.ringID())
		if ring == nil {
			continue
		}
		for _, p := range ring.Contested() {
			var losers []string
			for _, id := range p.Contested {
				losers = append(losers, nodeName(v, id))
			}
			out = append(out, state.Conflict{
				What: fmt.Sprintf("range %s-%s of %s", p.From, p.To, spec.Ring), Winner: nodeName(v, p.Owner), Loser: strings.Join(losers, ", "),
				Detail: "claimed by more than one node: detach the loser's workloads in it",
			})
		}
		for _, id := range ring.Foreign {
			out = append(out, state.Conflict{
				What: "ring " + spec.Ring, Winner: n.ringID(), Loser: id,
				Detail: "a node brought a ring of its own: it must join with an empty state directory",
			})
		}
	}
	return out
}

func (n *Node) peers(v *state.View) []api.Peer {
	type seen struct {
		rtt  time.Duration
		sync time.Time
		skew time.Duration
		hold time.Duration
	}
	gossiped := map[state.NodeID]seen{}
	for _, p := range n.gossip.Peers() {
		gossiped[p.ID] = seen{p.RTT, p.LastSync, p.Skew, p.Hold}
	}
	var out []api.Peer
	for _, nv := range v.Nodes {
		if nv.Self {
			continue
		}
		g := gossiped[nv.ID]
		p := api.Peer{
			Name: nv.Name, ID: string(nv.ID), State: nv.State.String(), Since: unix0(nv.Since), Address: nv.Advertise,
			RTTMicro: g.rtt.Microseconds(), LastSync: -1, Version: nv.Version,
			Skew: g.skew.Microseconds(), Flapping: g.hold.Milliseconds(),
		}
		if !g.sync.IsZero() {
			p.LastSync = time.Since(g.sync).Milliseconds()
		}
		via, mtu := n.overlay.PeerVia(nv.ID)
		p.Via, p.MTU = strings.Join(via, ","), mtu
		out = append(out, p)
	}
	return out
}

func (n *Node) networkStatus(sn *state.Snapshot, v *state.View, nw *state.NetworkView) api.NetworkStatus {
	use, err := ipam.GroupUse(sn, n.self, n.ringID(), nw.Network, time.Now())
	if err != nil {
		n.log.Debug("address use not known", "network", nw.Name, "err", err)
	}
	out := api.NetworkStatus{
		Name: nw.Name, Prefix: nw.Prefix, Prefix6: nw.Prefix6, Blocks: nw.Own, Used: int(use.Used), Total: int(use.Total),
		Overlay: nw.Overlay, VNI: nw.VNI, MTU: n.overlay.MTU(nw.Name), Bridge: overlay.BridgeName(nw.Network), DHCP: nw.DHCP,
	}
	if ring := ipam.Resolve(sn, nw.Name, n.ringID()); ring != nil {
		for _, p := range ring.Owned(n.self) {
			out.Owned += ipam.Size(p)
		}
	}
	for e := range v.Endpoints() {
		if e.Lease && e.Network == nw.Name {
			out.Leases++
		}
	}
	return out
}

func (n *Node) subsystems(v *state.View) []api.SubsystemStatus {
	d, l, o, h, g := n.dns.Status(), n.lb.Status(), n.overlay.Status(), n.dhcp.Status(), n.gossip.Status()
	parts := []api.SubsystemStatus{
		{Name: "dns", OK: d.OK, Desired: v.Rev, Applied: d.Applied, Detail: d.Detail, Error: d.Error, Fix: d.Fix},
		{Name: "lb", OK: l.OK, Desired: v.Rev, Applied: l.Applied, Detail: l.Detail, Error: l.Error, Fix: l.Fix},
		{Name: "overlay", OK: o.OK, Desired: v.Rev, Applied: o.Applied, Detail: o.Detail, Error: o.Error, Fix: o.Fix},
		{Name: "dhcp", OK: h.OK, Desired: v.Rev, Applied: h.Applied, Detail: h.Detail, Error: h.Error, Fix: h.Fix},
		{Name: "gossip", OK: g.OK, Desired: v.Rev, Applied: v.Rev, Detail: g.Detail, Error: g.Error, Fix: g.Fix},
	}
	if s, ok := n.portStatus(v.Rev); ok {
		parts = append(parts, s)
	}
	if a := n.announce.Status(); len(a.Addrs) > 0 || !a.OK {
		parts = append(parts, api.SubsystemStatus{Name: "announce", OK: a.OK, Desired: v.Rev, Applied: a.Applied, Detail: a.Detail, Error: a.Error, Fix: a.Fix})
	}
	if err := n.store.SaveError(); err != nil {
		parts = append(parts, api.SubsystemStatus{
			Name: "state", Desired: v.Rev, Applied: v.Rev, Error: "the last write failed, nothing new can be accepted: " + err.Error(),
			Fix: "make room in " + n.dir + " and see that its disk is writable; the next change tries again",
		})
	}
	return parts
}

// freePart is how much of the opened blocks of a network is left, 0 to 1.
func (n *Node) freePart(network string) float64 {
	sn := n.store.Snapshot()
	nw, ok := n.network(sn, network)
	if !ok {
		return 0
	}
	use, err := ipam.GroupUse(sn, n.self, n.ringID(), *nw, time.Now())
	if err != nil || use.Total == 0 {
		return 0
	}
	return 1 - float64(use.Used)/float64(use.Total)
}

func (n *Node) endpointList(context.Context) ([]api.Endpoint, error) {
	v := n.store.Snapshot().View()
	out := []api.Endpoint{}
	for e := range v.Endpoints() {
		a := api.Endpoint{
			ID: e.ID, Node: nodeName(v, e.Owner), Network: e.Network, Namespace: e.Namespace, Name: e.Name, Addrs: e.Addrs,
			MAC: e.MAC, Kind: e.Kind, Ready: e.Ready, Serving: e.Serving, Labels: e.Labels, HostIf: e.HostIf, Created: e.Created,
		}
		for _, p := range e.Ports {
			text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
			if p.Name != "" {
				text = p.Name + "=" + text
			}
			a.Ports = append(a.Ports, text)
		}
		out = append(out, a)
	}
	return out, nil
}

func (n *Node) routeList(context.Context) ([]api.Route, error) {
	v := n.store.Snapshot().View()
	out := []api.Route{}
	for _, r := range n.overlay.Routes() {
		a := api.Route{
			Network: r.Network, Prefix: r.Prefix, Via: r.Via, NextHop: r.NextHop, Device: r.Device, MAC: r.MAC,
			Reason: r.Reason, InKernel: r.InKernel,
		}
		id := r.Node
		if id == "" {
			id = n.self
		}
		if nv := v.NodeByID(id); nv != nil {
			a.Node, a.State = nv.Name, nv.State.String()
		}
		out = append(out, a)
	}
	return out, nil
}

func (n *Node) leaseList(context.Context) ([]api.Lease, error) {
	sn := n.store.Snapshot()
	out := []api.Lease{}
	for _, l := range state.All[state.LeaseValue](sn) {
		if l.Declined {
			continue
		}
		out = append(out, api.Lease{
			Network: l.Network, Addr: l.Addr, MAC: l.MAC, ClientID: hex.EncodeToString(l.ClientID), Hostname: l.Hostname,
			Server: nodeName(sn.View(), l.Server), Granted: l.Granted, Expires: l.Expires,
		})
	}
	return out, nil
}

func (n *Node) networkList(context.Context) ([]api.NetworkInfo, error) {
	out := []api.NetworkInfo{}
	for _, nw := range n.store.Snapshot().View().Networks {
		out = append(out, api.NetworkInfo{Name: nw.Name, Prefix: nw.Prefix, Prefix6: nw.Prefix6, Overlay: nw.Overlay, Bridge: overlay.BridgeName(nw.Network)})
	}
	return out, nil
}

func (n *Node) publishList(context.Context) ([]api.Publish, error) {
	out := []api.Publish{}
	for _, p := range n.store.Snapshot().View().Publishes {
		out = append(out, publishOf(p))
	}
	return out, nil
}

func (n *Node) token(ctx context.Context, q api.TokenRequest) (*api.Token, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	ttl := time.Duration(q.TTLSeconds) * time.Second
	if ttl == 0 {
		ttl = time.Hour
	}
	if ttl < 0 || ttl > 30*24*time.Hour {
		return nil, invalid("token lifetime %s: want up to 30 days", ttl)
	}
	t, expires, err := n.gossip.IssueToken(ttl)
	if err != nil {
		return nil, err
	}
	return &api.Token{Token: t, Expires: expires.Unix()}, nil
}

// clientFor is the address that a question through the API comes from.
func (n *Node) clientFor(from netip.Addr) netip.AddrPort {
	return netip.AddrPortFrom(addrOr(from, n.localNow().Advertise), 0)
}
