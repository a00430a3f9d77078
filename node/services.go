package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodenet/api"
	"nodenet/ipam"
	"nodenet/state"
)

// addService stores a service made by command, with its explicit backends as
// records of their own and what it asks to have allocated, in one transaction.
func (n *Node) addService(ctx context.Context, r api.ServiceSpec) (*api.Service, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	s, backends, err := n.parseService(r)
	if err != nil {
		return nil, err
	}
	if err := n.checkNodePorts(s); err != nil {
		return nil, err
	}
	rev, err := n.writeWithSpace(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if err := n.checkService(sn, s); err != nil {
			return nil, err
		}
		ops, err := n.vipOps(sn, s)
		if err != nil {
			return nil, err
		}
		ops = append(ops, state.Put(state.Cluster, state.KindService, s.Key(), s))
		want := map[string]bool{}
		for _, b := range backends {
			key := backendKey(b)
			want[key] = true
			ops = append(ops, state.Put(state.Cluster, state.KindBackend, key, b))
		}
		return append(ops, dropBackends(sn, s.Key(), want)...), nil
	})
	if err != nil {
		return nil, err
	}
	n.settle(ctx, rev)
	for _, sv := range n.services(n.store.Snapshot()) {
		if sv.Name == s.Name && sv.Namespace == s.Namespace {
			return &sv, nil
		}
	}
	return nil, fmt.Errorf("service %s was removed while it was being added", s.FullName())
}

func backendKey(b state.Backend) string {
	return fmt.Sprintf("%s/%s/%s", b.Namespace, b.Service, netip.AddrPortFrom(b.Addr, b.Port))
}

func dropBackends(sn *state.Snapshot, service string, keep map[string]bool) []state.Op {
	var ops []state.Op
	for rec, b := range state.All[state.Backend](sn) {
		if b.Namespace+"/"+b.Service == service && !keep[rec.ID.Key] {
			ops = append(ops, state.Del(state.Cluster, state.KindBackend, rec.ID.Key))
		}
	}
	return ops
}

// declaredElsewhere says that a service is not a command's to change.
func declaredElsewhere(sn *state.Snapshot, rec *state.Record, s *state.Service, fix string) error {
	where := "in the Nodefile of "
	if s.Source == sourceLabel {
		where = "by labels of endpoints on "
	}
	return &api.Error{Message: fmt.Sprintf("service %s is declared %s%s: %s", s.FullName(), where, nodeName(sn.View(), rec.ID.Owner), fix), Code: api.CodeReadOnly}
}

// dropSaid removes what operators said of a service's backends, and what nodes
// found out about them for all.
func dropSaid(sn *state.Snapshot, service string) (ops []state.Op) {
	for rec := range state.All[state.Admin](sn) {
		if strings.HasPrefix(rec.ID.Key, service+"/") {
			ops = append(ops, state.Del(state.Cluster, state.KindAdmin, rec.ID.Key))
		}
	}
	for rec := range state.All[state.Health](sn) {
		if rec.ID.Class == state.Cluster && strings.HasPrefix(rec.ID.Key, service+"/") {
			ops = append(ops, state.Del(state.Cluster, state.KindHealth, rec.ID.Key))
		}
	}
	return ops
}

// addressesOf are the addresses that a service has by what it names itself.
func addressesOf(sn *state.Snapshot, s *state.Service) []netip.Addr {
	v4, v6 := sn.ServiceRanges()
	a, b := s.AddressesAt(v4, v6, s.Offset(v4, v6))
	return slices.DeleteFunc([]netip.Addr{a, b}, func(a netip.Addr) bool { return !a.IsValid() })
}

// checkService refuses what another service has.
func (n *Node) checkService(sn *state.Snapshot, s state.Service) error {
	v4, v6 := sn.ServiceRanges()
	mine := addressesOf(sn, &s)
	for rec, o := range state.All[state.Service](sn) {
		if o.Key() == s.Key() {
			if rec.ID.Class == state.Owner {
				return declaredElsewhere(sn, &rec, o, "change it there")
			}
			continue
		}
		for _, a := range addressesOf(sn, o) {
			if slices.Contains(mine, a) {
				return &api.Error{Message: fmt.Sprintf("VIP %s belongs to service %s: choose another", a, o.FullName()), Code: api.CodeExists}
			}
		}
		for _, p := range s.Ports {
			for _, q := range o.Ports {
				if p.NodePort != 0 && p.NodePort == q.NodePort && p.Protocol == q.Protocol {
					return &api.Error{Message: fmt.Sprintf("node port %d/%s belongs to service %s", p.NodePort, p.Protocol, o.FullName()), Code: api.CodeExists}
				}
				for _, a := range s.Addresses {
					if slices.Contains(o.Addresses, a) && p.Protocol == q.Protocol && p.Port <= max(q.Port, q.Last) && q.Port <= max(p.Port, p.Last) {
						return &api.Error{Message: fmt.Sprintf("port %d/%s of address %s belongs to service %s", max(p.Port, q.Port), p.Protocol, a, o.FullName()), Code: api.CodeExists}
					}
				}
			}
		}
		if s.HealthPort != 0 && s.HealthPort == o.HealthPort {
			return &api.Error{Message: fmt.Sprintf("health port %d belongs to service %s", s.HealthPort, o.FullName()), Code: api.CodeExists}
		}
	}
	if s.HealthPort != 0 && n.ownPort(sn, state.Publish{Protocol: "tcp", HostPort: s.HealthPort}) != 0 {
		return invalid("health port %d is the node's own, towards its peers: choose another", s.HealthPort)
	}
	for rec, a := range state.All[state.VIP](sn) {
		if rec.ID.Key == s.Key() {
			continue
		}
		if a.Addr.IsValid() && (a.Addr == s.VIP || a.Addr == state.Untwin(v4, v6, s.VIP6)) {
			return &api.Error{Message: fmt.Sprintf("VIP %s is allocated to service %s: choose another", a.Addr, rec.ID.Key), Code: api.CodeExists}
		}
		for _, p := range s.Ports {
			if p.NodePort != 0 && slices.Contains(portsOf(a.NodePorts), p.NodePort) {
				return &api.Error{Message: fmt.Sprintf("node port %d is allocated to service %s", p.NodePort, rec.ID.Key), Code: api.CodeExists}
			}
		}
	}
	return nil
}

// removeService deletes a service made by command. name is NAME or NAME.NAMESPACE.
func (n *Node) removeService(ctx context.Context, name string) error {
	if err := n.waitDeclared(ctx); err != nil {
		return err
	}
	svc, ns, ok := strings.Cut(name, ".")
	if !ok {
		ns = "default"
	}
	key := ns + "/" + svc
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if _, ok := state.Lookup[state.Service](sn, state.ID{Class: state.Cluster, Kind: state.KindService, Key: key}); !ok {
			for rec, o := range state.All[state.Service](sn) {
				if o.Key() == key {
					return nil, declaredElsewhere(sn, &rec, o, "remove it there")
				}
			}
			return nil, &api.Error{Message: fmt.Sprintf("no service %s", name), Code: api.CodeNotFound}
		}
		return append(append(dropBackends(sn, key, nil), dropSaid(sn, key)...),
			state.Del(state.Cluster, state.KindService, key), state.Del(state.Cluster, state.KindVIP, key)), nil
	})
	if err != nil {
		return err
	}
	n.settle(ctx, rev)
	return nil
}

// leaveCluster hands the node's address space over, says so to the peers and
// lets Run return. Workloads must be gone first.
func (n *Node) leaveCluster(ctx context.Context) (err error) {
	if err := n.waitDeclared(ctx); err != nil {
		return err
	}
	if !n.leaving.CompareAndSwap(false, true) {
		return &api.Error{Message: "the node is leaving already", Code: api.CodeNotReady}
	}
	defer func() {
		if err != nil {
			n.leaving.Store(false)
		}
	}()
	var heir state.NodeID
	for _, nv := range n.store.Snapshot().View().Nodes {
		if !nv.Self && nv.State == state.Alive && (heir == "" || nv.ID < heir) {
			heir = nv.ID
		}
	}
	if heir == "" {
		return &api.Error{Message: "no other node is alive to take over this node's address space: start one, or just stop this daemon", Code: api.CodeNotReady}
	}
	if err := n.checkNoWorkloads(n.store.Snapshot()); err != nil {
		return err
	}
	if err := ipam.HandOver(ctx, n.store, n.self, n.ringID(), heir, asker{n}); err != nil {
		return fmt.Errorf("hand the address space over: %w", err)
	}
	_, err = n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if err := n.checkNoWorkloads(sn); err != nil {
			return nil, err
		}
		// A donation that was asked for before may have come in meanwhile.
		for _, spec := range n.specs(sn) {
			if ring := ipam.Resolve(sn, spec.Ring, n.ringID()); ring != nil && len(ring.Owned(n.self)) > 0 {
				return nil, &api.Error{Message: "address space came in while it was handed over: try again", Code: api.CodeNotReady}
			}
		}
		var ops []state.Op
		drop := func(r state.Record) {
			if r.ID.Owner == n.self {
				ops = append(ops, state.Del(state.Owner, r.ID.Kind, r.ID.Key))
			}
		}
		for r := range state.All[state.Block](sn) {
			drop(r)
		}
		for r := range state.All[state.Service](sn) {
			drop(r)
		}
		for r := range state.All[state.Network](sn) {
			drop(r)
		}
		self, ok := state.Lookup[state.Node](sn, state.ID{Class: state.Owner, Kind: state.KindNode, Owner: n.self, Key: "self"})
		if !ok {
			return nil, fmt.Errorf("leave: own node record is missing")
		}
		gone := *self
		gone.Left = true
		return append(ops, state.Put(state.Owner, state.KindNode, "self", gone)), nil
	})
	if err != nil {
		return err
	}
	if err := n.gossip.Leave(ctx); err != nil {
		return fmt.Errorf("tell the peers: %w", err)
	}
	if err := n.noteLeaving(); err != nil {
		return err
	}
	n.log.Info("left the cluster", "cluster", n.gossip.Cluster().Name, "heir", heir.Short())
	return nil
}

// checkNoWorkloads refuses to leave addresses in use behind.
func (n *Node) checkNoWorkloads(sn *state.Snapshot) error {
	var left []string
	for rec, e := range state.All[state.Endpoint](sn) {
		if rec.ID.Owner == n.self && e.Kind != state.EndpointStatic {
			left = append(left, e.ID)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("%d workloads are attached (%s): detach them first",
		len(left), strings.Join(left[:min(3, len(left))], ", "))}
}
