package node

import (
	"context"
	"slices"

	"nodenet/api"
	"nodenet/config"
	"nodenet/ipam"
	"nodenet/state"
)

// define records a network that a CNI configuration brings with it. It is
// this node's alone.
func (n *Node) define(ctx context.Context, name string, d *api.NetworkDef) error {
	if !d.Prefix.IsValid() {
		return invalid("network %s: no subnet given", name)
	}
	nw := state.Network{
		Name: name, Prefix: d.Prefix.Masked(), Overlay: state.OverlayNone, MTU: d.MTU, Masquerade: d.Masquerade,
		Bridge: d.Bridge, Gateway: d.Gateway, NoGateway: d.NoGateway, Source: sourceCNI, Peers: d.Peers,
	}
	if err := n.checkPeersOf(name, d.Peers); err != nil {
		return err
	}
	nw.Exclude = ipam.Outside(nw.Prefix, d.RangeStart, d.RangeEnd)
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if old, ok := n.network(sn, name); ok {
			if old.Source != sourceCNI {
				return nil, invalid("network %s is declared in the Nodefile: a CNI configuration of that name must have `\"type\": \"nodenet\"`", name)
			}
			if old.Prefix != nw.Prefix && n.inUse(sn, name) {
				return nil, invalid("network %s has endpoints in %s: detach them before its subnet becomes %s", name, old.Prefix, nw.Prefix)
			}
		}
		for rec, o := range state.All[state.Network](sn) {
			if rec.ID.Owner == n.self && o.Name != name && o.Prefix.Overlaps(nw.Prefix) {
				return nil, invalid("subnet %s of network %s overlaps %s of network %s", nw.Prefix, name, o.Prefix, o.Name)
			}
		}
		if n.cfg.Services.Prefix.Overlaps(nw.Prefix) {
			return nil, invalid("subnet %s of network %s overlaps the service range %s", nw.Prefix, name, n.cfg.Services.Prefix)
		}
		return []state.Op{state.Put(state.Owner, state.KindNetwork, name, nw)}, nil
	})
	return err
}

func (n *Node) inUse(sn *state.Snapshot, network string) bool {
	for rec, e := range state.All[state.Endpoint](sn) {
		if rec.ID.Owner == n.self && e.Network == network {
			return true
		}
	}
	return false
}

// checkPeersOf wants the peers that a CNI configuration names to be networks
// of the Nodefile that may have some: those are there before any container is.
func (n *Node) checkPeersOf(name string, peers []string) error {
	for _, p := range peers {
		i := slices.IndexFunc(n.cfg.Networks, func(c config.Network) bool { return c.Name == p })
		switch {
		case i < 0:
			return invalid("network %s: peer %q is not a network of this node's Nodefile: add its block there, or remove it from peers", name, p)
		case n.cfg.Networks[i].Internal:
			return invalid("network %s: peer %s is internal, and has no peers: remove `internal` in the Nodefile or the peer", name, p)
		}
	}
	return nil
}
