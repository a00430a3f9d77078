package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/ipam"
	"nodenet/state"
)

// simModel is what a node was told about its own writes.
type simModel struct {
	next  int
	eps   map[string]*simWrite // endpoints
	svcs  map[string]*simWrite // services that only this node writes
	ports map[string]*simWrite // published ports
}

// simWrite is the last acknowledged write of a key. A write that was cut off by
// a crash leaves it open: either outcome is right then.
type simWrite struct {
	live bool
	open bool
	addr netip.Addr
	port uint16
}

func (m *simModel) init() {
	m.eps, m.svcs, m.ports = map[string]*simWrite{}, map[string]*simWrite{}, map[string]*simWrite{}
}

func (m *simModel) pick(n *simNode, of map[string]*simWrite) string {
	var keys []string
	for k, w := range of {
		if w.live && !w.open {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	return keys[n.rng.IntN(len(keys))]
}

// toil is a node's workload: declare itself, then random changes for as long
// as it lives.
func (n *simNode) toil(ctx context.Context) {
	s := n.sim
	var giveUp <-chan time.Time
	if (n.cluster.Synced || n.cluster.Bootstrap) && !n.mustSync {
		giveUp = time.After(5 * time.Second)
	}
	select {
	case <-n.g.Synced():
	case <-giveUp:
	case <-ctx.Done():
		return
	}
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		ops := []state.Op{state.Put(state.Owner, state.KindNode, "self", state.Node{
			Name: n.name, Advertise: n.addr, PublicKey: n.id.Public(), VTEPMAC: n.id.ID.VTEPMAC(), Started: time.Now().Unix(),
			BootID: fmt.Sprint(time.Since(s.began)), // another one in each life
		})}
		if n.cluster.Bootstrap {
			ops = append(ops, ipam.Bootstrap(sn, n.id.ID, s.ringID, simSpecs)...)
		}
		return ops, nil
	})
	if err != nil {
		if ctx.Err() == nil && !crashed(err) {
			s.violated("%s: own node record: %v", n.name, err)
		}
		return
	}
	for {
		n.obey(ctx)
		d := 20*time.Millisecond + time.Duration(n.rng.ExpFloat64()*float64(400*time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-time.After(d):
		}
		if !s.working.Load() {
			continue
		}
		s.busy.Add(1)
		n.act(ctx)
		s.busy.Add(-1)
	}
}

func (n *simNode) act(ctx context.Context) {
	switch k := n.rng.IntN(100); {
	case k < 45:
		n.attach(ctx)
	case k < 65:
		n.detach(ctx)
	case k < 74:
		n.share(ctx)
	case k < 80:
		n.publish(ctx)
	case k < 84:
		n.lease(ctx)
	case k < 92:
		n.expose(ctx)
	case k < 97:
		n.withdraw(ctx)
	default:
		// A retention of half a minute, so that a partition outlives it.
		if k, err := n.store.Collect(n.now().Add(-30 * time.Second)); err == nil && k > 0 {
			n.sim.count("collected")
		}
	}
}

// grow asks for space as the node's daemon does.
func (n *simNode) grow(ctx context.Context, ring string) error {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	i := slices.IndexFunc(simSpecs, func(s ipam.Spec) bool { return s.Ring == ring })
	err := ipam.Grow(ctx, n.store, n.id.ID, n.sim.ringID, simSpecs[i], netip.Prefix{}, n)
	if err == nil {
		n.sim.count("grown " + ring)
	} else {
		n.sim.count("not grown " + ring)
	}
	return err
}

// try runs a write, growing a ring once where that is what it lacks.
func (n *simNode) try(ctx context.Context, fn func(*state.Snapshot) ([]state.Op, error)) error {
	_, err := n.store.Write(ctx, fn)
	if e, ok := errors.AsType[*ipam.NeedSpaceError](err); ok {
		if err = n.grow(ctx, e.Ring); err == nil {
			_, err = n.store.Write(ctx, fn)
		}
	}
	return err
}

// crashed reports whether a write's error leaves open what became of it.
func crashed(err error) bool { return errors.Is(err, errSimCrash) || errors.Is(err, state.ErrClosed) }

// simTake notes that an address was acknowledged to somebody.
func simTake[K comparable](s *sim, held map[K]string, k K, who string) {
	s.mu.Lock()
	old := held[k]
	held[k] = who
	s.mu.Unlock()
	if old != "" && old != who {
		s.violated("%v was given to %s while %s has it", k, who, old)
	}
}

// simDrop notes that it gave it back.
func simDrop[K comparable](s *sim, held map[K]string, k K, who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held[k] == who {
		delete(held, k)
	}
}

func (n *simNode) attach(ctx context.Context) {
	n.model.next++
	id := fmt.Sprintf("%s-%d", n.name, n.model.next)
	var g ipam.Grant
	err := n.try(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		var ops []state.Op
		var err error
		g, ops, err = n.alloc.Allocate(sn, n.id.ID, ipam.Request{
			Network: simPods, RingID: n.sim.ringID, ID: id, Now: n.now(), Rest: 5 * time.Second,
		})
		if err != nil {
			return nil, err
		}
		return append(ops, state.Put(state.Owner, state.KindEndpoint, id, state.Endpoint{
			ID: id, Network: simPods.Name, Namespace: "default", Name: id, Addrs: []netip.Addr{g.Addr}, Kind: state.EndpointCNI, Ready: true,
		})), nil
	})
	switch {
	case err == nil:
		n.model.eps[id] = &simWrite{live: true, addr: g.Addr}
		simTake(n.sim, n.sim.held, g.Addr, id)
		n.sim.count("endpoints")
	case crashed(err):
		n.model.eps[id] = &simWrite{open: true, addr: g.Addr}
	}
}

func (n *simNode) detach(ctx context.Context) {
	id := n.model.pick(n, n.model.eps)
	if id == "" {
		return
	}
	w := n.model.eps[id]
	simDrop(n.sim, n.sim.held, w.addr, id)
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		return n.alloc.Release(sn, n.id.ID, id, n.now()), nil
	})
	switch {
	case err == nil:
		w.live = false
		n.sim.count("deleted")
	case crashed(err):
		w.open = true
	default:
		simTake(n.sim, n.sim.held, w.addr, id)
	}
}

// share writes or deletes a service that every node writes.
func (n *simNode) share(ctx context.Context) {
	svc := state.Service{Namespace: "shared", Name: fmt.Sprintf("s%d", n.rng.IntN(6)), Source: fmt.Sprintf("%s-%d", n.name, n.rng.IntN(1000))}
	op := state.Put(state.Cluster, state.KindService, svc.Key(), svc)
	if n.rng.IntN(4) == 0 {
		op = state.Del(state.Cluster, state.KindService, svc.Key())
	}
	if _, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) { return []state.Op{op}, nil }); err == nil {
		n.sim.count("shared")
	}
}

// expose makes a service of this node with a VIP and a node port.
func (n *simNode) expose(ctx context.Context) {
	n.model.next++
	svc := state.Service{Namespace: "own", Name: fmt.Sprintf("%s-%d", n.name, n.model.next)}
	var v state.VIP
	err := n.try(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		a, err := ipam.AllocateVIP(sn, n.id.ID, n.sim.ringID, simVIPs, []netip.Addr{simDNS}, netip.Addr{})
		if err != nil {
			return nil, err
		}
		p, err := ipam.AllocateNodePort(sn, n.id.ID, n.sim.ringID, 30000, 30127, 0)
		if err != nil {
			return nil, err
		}
		v = state.VIP{Addr: a, NodePorts: map[string]uint16{"80/tcp": p}}
		return []state.Op{state.Put(state.Cluster, state.KindService, svc.Key(), svc), state.Put(state.Cluster, state.KindVIP, svc.Key(), v)}, nil
	})
	port := v.NodePorts["80/tcp"]
	switch {
	case err == nil:
		n.model.svcs[svc.Key()] = &simWrite{live: true, addr: v.Addr, port: port}
		simTake(n.sim, n.sim.vips, v.Addr, svc.Key())
		simTake(n.sim, n.sim.ports, port, svc.Key())
		n.sim.count("VIPs")
	case crashed(err):
		n.model.svcs[svc.Key()] = &simWrite{open: true, addr: v.Addr, port: port}
	}
}

func (n *simNode) withdraw(ctx context.Context) {
	key := n.model.pick(n, n.model.svcs)
	if key == "" {
		return
	}
	w := n.model.svcs[key]
	simDrop(n.sim, n.sim.vips, w.addr, key)
	simDrop(n.sim, n.sim.ports, w.port, key)
	_, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) {
		return []state.Op{state.Del(state.Cluster, state.KindService, key), state.Del(state.Cluster, state.KindVIP, key)}, nil
	})
	switch {
	case err == nil:
		w.live = false
	case crashed(err):
		w.open = true
	default:
		simTake(n.sim, n.sim.vips, w.addr, key)
		simTake(n.sim, n.sim.ports, w.port, key)
	}
}

// reopened compares a store that was just opened with what its node was told
// before it crashed, and settles what the crash left open.
func (n *simNode) reopened() {
	sn, s := n.store.Snapshot(), n.sim
	for id, w := range n.model.eps {
		ep, ok := state.Lookup[state.Endpoint](sn, state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: n.id.ID, Key: id})
		switch {
		case w.open:
			if w.open, w.live = false, ok; ok {
				w.addr = ep.Addrs[0]
				simTake(s, s.held, w.addr, id)
			}
		case ok != w.live:
			s.violated("%s restarted: endpoint %s there: %v, acknowledged: %v", n.name, id, ok, w.live)
		case ok && ep.Addrs[0] != w.addr:
			s.violated("%s restarted: endpoint %s has %s, acknowledged %s", n.name, id, ep.Addrs[0], w.addr)
		}
	}
	for key, w := range n.model.ports {
		p, ok := state.Lookup[state.Publish](sn, state.ID{Class: state.Owner, Kind: state.KindPublish, Owner: n.id.ID, Key: key})
		switch {
		case w.open:
			if w.open, w.live = false, ok; ok {
				w.port = p.Port
			}
		case ok != w.live || ok && p.Port != w.port:
			s.violated("%s restarted: published port %s there: %v, acknowledged: %v", n.name, key, ok, w.live)
		}
	}
	for key, w := range n.model.svcs {
		v, ok := state.Lookup[state.VIP](sn, state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: key})
		switch {
		case w.open:
			if w.open, w.live = false, ok; ok {
				w.addr, w.port = v.Addr, v.NodePorts["80/tcp"]
				simTake(s, s.vips, w.addr, key)
				simTake(s, s.ports, w.port, key)
			}
		case ok != w.live:
			s.violated("%s restarted: VIP of %s there: %v, acknowledged: %v", n.name, key, ok, w.live)
		}
	}
}

// forget gives up what the node was told: its disk was put back to an earlier day.
func (n *simNode) forget() {
	n.sim.mu.Lock()
	defer n.sim.mu.Unlock()
	for id, w := range n.model.eps {
		if n.sim.held[w.addr] == id {
			delete(n.sim.held, w.addr)
		}
	}
	for key, w := range n.model.svcs {
		if n.sim.vips[w.addr] == key {
			delete(n.sim.vips, w.addr)
			delete(n.sim.ports, w.port)
		}
	}
	n.model.init()
}
