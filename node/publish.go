package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"nodenet/api"
	"nodenet/state"
)

// publishRecord turns what somebody asks for into a record, and refuses what
// makes no sense by itself.
func publishRecord(r api.Publish) (state.Publish, error) {
	p := state.Publish{HostAddr: r.HostAddr, Protocol: cmp.Or(r.Protocol, "tcp"), HostPort: r.HostPort, Target: r.Target, Port: r.Port}
	if r.Last != r.HostPort {
		p.Last = r.Last
	}
	if p.HostAddr.IsUnspecified() {
		p.HostAddr = netip.Addr{} // every address, which is what the zero value says
	}
	switch {
	case p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp":
		return p, invalid("publish %s: protocol %q: want tcp, udp or sctp", p.Key(), p.Protocol)
	case p.Protocol == "sctp" && p.HostAddr.IsLoopback():
		return p, invalid("publish %s: SCTP is not served on loopback: give an address of the network, or none for all of the host's", p.Key())
	case p.HostPort == 0 || p.Port == 0:
		return p, invalid("publish %s: port 0: want 1 to 65535", p.Key())
	case p.Last != 0 && p.Last < p.HostPort:
		return p, invalid("publish %d-%d/%s: the range ends before it begins", p.HostPort, p.Last, p.Protocol)
	case int(p.Port)+int(p.LastPort()-p.HostPort) > 65535:
		return p, invalid("publish %s: the target has no %d ports from %d on", p.Key(), p.LastPort()-p.HostPort+1, p.Port)
	}
	return p, nil
}

// addPublish publishes a port of this node.
func (n *Node) addPublish(ctx context.Context, r api.Publish) (*api.Publish, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	p, err := publishRecord(r)
	if err != nil {
		return nil, err
	}
	if !p.Target.IsValid() {
		return nil, invalid("publish: no target address given")
	}
	p.Source = sourceCommand
	if err := n.checkFree(p); err != nil {
		return nil, err
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if err := n.checkPublish(sn, p); err != nil {
			return nil, err
		}
		return []state.Op{state.Put(state.Owner, state.KindPublish, p.Key(), p)}, nil
	})
	if err != nil {
		return nil, err
	}
	n.settle(ctx, rev)
	out := publishOf(p)
	return &out, nil
}

// checkPublish refuses a host port that is taken: by another published port,
// by a node port or by what the node itself needs to reach its peers.
func (n *Node) checkPublish(sn *state.Snapshot, p state.Publish) error {
	for rec, o := range state.All[state.Publish](sn) {
		if rec.ID.Owner == n.self && o.Overlaps(p) {
			return &api.Error{Message: fmt.Sprintf("port %s is published already: to %s:%d", o.Key(), o.Target, o.Port), Code: api.CodeExists}
		}
	}
	if !p.HostAddr.IsLoopback() {
		if port := n.ownPort(sn, p); port != 0 {
			return invalid("port %d/%s is the node's own, towards its peers: publish another", port, p.Protocol)
		}
	}
	if np := n.cfg.Services.NodePorts; p.HostPort <= np.Last && np.First <= p.LastPort() {
		return invalid("port %s lies in the node-port range %d-%d: publish another, or use a service with a node port", p.Key(), np.First, np.Last)
	}
	return nil
}

// ownPort returns a port of p on which peers speak to this node, 0: none.
// Published, it would cut the node off.
func (n *Node) ownPort(sn *state.Snapshot, p state.Publish) uint16 {
	own := []uint16{n.cfg.Cluster.GossipPort}
	switch p.Protocol {
	case "sctp":
		return 0 // peers do not speak it
	case "tcp":
		own = append(own, n.cfg.Cluster.SyncPort)
	default:
		for rec, nw := range state.All[state.Network](sn) {
			if rec.ID.Owner == n.self && nw.Port != 0 {
				own = append(own, nw.Port)
			}
		}
	}
	for _, port := range own {
		if p.HostPort <= port && port <= p.LastPort() {
			return port
		}
	}
	return 0
}

func (n *Node) removePublish(ctx context.Context, key string) error {
	if err := n.waitDeclared(ctx); err != nil {
		return err
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		p, ok := state.Lookup[state.Publish](sn, state.ID{Class: state.Owner, Kind: state.KindPublish, Owner: n.self, Key: key})
		switch {
		case !ok:
			return nil, &api.Error{Message: fmt.Sprintf("no published port %s on this node", key), Code: api.CodeNotFound}
		case p.Source == sourceNodefile:
			return nil, &api.Error{Message: fmt.Sprintf("published port %s is declared in the Nodefile: remove it there", key), Code: api.CodeReadOnly}
		}
		return []state.Op{state.Del(state.Owner, state.KindPublish, key)}, nil
	})
	if err != nil {
		return err
	}
	n.settle(ctx, rev)
	return nil
}

func publishOf(p state.Publish) api.Publish {
	return api.Publish{
		Key: p.Key(), HostAddr: p.HostAddr, Protocol: p.Protocol, HostPort: p.HostPort, Last: p.Last, Target: p.Target, Port: p.Port,
		Endpoint: p.Endpoint, Source: p.Source,
	}
}
