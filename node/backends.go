package node

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/config"
	"nodenet/state"
)

// serviceKey is the key of a service that people call NAME[.NAMESPACE].
func serviceKey(name string) string {
	svc, ns, ok := strings.Cut(name, ".")
	if !ok {
		ns = config.DefaultNamespace
	}
	return ns + "/" + svc
}

func noService(name string) error {
	return &api.Error{Message: fmt.Sprintf("there is no service %s: `nodectl service ls` lists them", name), Code: api.CodeNotFound}
}

// portOfKey is the port in an explicit backend's key, 0 when it has none.
func portOfKey(key string) uint16 {
	ap, err := netip.ParseAddrPort(key)
	if err != nil {
		return 0
	}
	return ap.Port()
}

func adminID(s *state.ServiceView, b *state.BackendOf) state.ID {
	return state.ID{Class: state.Cluster, Kind: state.KindAdmin, Key: s.Key() + "/" + b.Key}
}

// changeBackend adds an explicit backend or removes one. Each is a record of
// its own: nodes that cannot hear one another lose none.
func (n *Node) changeBackend(ctx context.Context, q api.BackendChange) (*api.Service, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	addr, err := config.ParseBackend(q.Backend)
	if err != nil {
		return nil, invalid("backend %v", err)
	}
	if q.Weight < 0 || q.Weight > config.MaxWeight {
		return nil, invalid("backend %s: weight %d: want 1 to %d", q.Backend, q.Weight, config.MaxWeight)
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		s := sn.View().Service(serviceKey(q.Service))
		switch {
		case s == nil:
			return nil, noService(q.Service)
		case s.External != "":
			return nil, invalid("service %s is a name for %s, it has no backends", s.FullName(), s.External)
		case !q.Remove && !s.Serves(addr.Addr()):
			return nil, invalid("backend %s: service %s has %s alone: add a backend of that IP version, or make the service again with both families", q.Backend, s.FullName(), s.Families)
		}
		b := state.Backend{Namespace: s.Namespace, Service: s.Name, Addr: addr.Addr(), Port: addr.Port(), Weight: q.Weight}
		if !q.Remove {
			return []state.Op{state.Put(state.Cluster, state.KindBackend, backendKey(b), b)}, nil
		}
		id := state.ID{Class: state.Cluster, Kind: state.KindBackend, Key: backendKey(b)}
		if _, ok := state.Lookup[state.Backend](sn, id); ok {
			return []state.Op{
				state.Del(state.Cluster, state.KindBackend, id.Key),
				state.Del(state.Cluster, state.KindAdmin, s.Key()+"/"+state.BackendKey(b.Addr, b.Port)),
			}, nil
		}
		for _, x := range s.Service.Backends {
			if x.Addr == b.Addr && x.Port == b.Port {
				return nil, &api.Error{Message: fmt.Sprintf("backend %s of service %s is declared in a Nodefile: remove it there", q.Backend, s.FullName()), Code: api.CodeReadOnly}
			}
		}
		return nil, &api.Error{Message: fmt.Sprintf("service %s has no backend %s: `nodectl service show %s` lists them", s.FullName(), q.Backend, s.FullName()), Code: api.CodeNotFound}
	})
	if err != nil {
		return nil, err
	}
	return n.settledService(ctx, rev, q.Service)
}

func (n *Node) settledService(ctx context.Context, rev uint64, name string) (*api.Service, error) {
	n.settle(ctx, rev)
	sn := n.store.Snapshot()
	v := sn.View()
	s := v.Service(serviceKey(name))
	if s == nil {
		return nil, fmt.Errorf("service %s was removed meanwhile", name)
	}
	out := serviceOf(sn, v, s)
	return &out, nil
}

// administer sets the weight of a backend, drains it or takes it in again.
func (n *Node) administer(ctx context.Context, q api.AdminRequest) (*api.Service, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	switch {
	case q.Weight == nil && q.Drain == nil:
		return nil, invalid("backend %s: nothing asked for: want a weight or a drain", q.Backend)
	case q.Weight != nil && (*q.Weight < 0 || *q.Weight > config.MaxWeight):
		return nil, invalid("backend %s: weight %d: want 1 to %d, or 0 for the declared one", q.Backend, *q.Weight, config.MaxWeight)
	case q.DeadlineSeconds < 0 || q.DeadlineSeconds > 0 && (q.Drain == nil || !*q.Drain):
		return nil, invalid("backend %s: a deadline of %d s belongs to a drain and is not negative", q.Backend, q.DeadlineSeconds)
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		v := sn.View()
		s := v.Service(serviceKey(q.Service))
		if s == nil {
			return nil, noService(q.Service)
		}
		b, err := pickBackend(v, s, q.Backend)
		if err != nil {
			return nil, err
		}
		a := state.Admin{Namespace: s.Namespace, Service: s.Name, Backend: b.Key}
		if old, ok := state.Lookup[state.Admin](sn, adminID(s, b)); ok {
			a = *old
		}
		if q.Weight != nil {
			a.Weight = *q.Weight
		}
		if q.Drain != nil {
			a.Drain, a.Until, a.Ended = *q.Drain, 0, false
			if q.DeadlineSeconds > 0 {
				a.Until = n.clock.now().Unix() + q.DeadlineSeconds
			}
		}
		if a.Weight == 0 && !a.Drain {
			return []state.Op{state.Del(state.Cluster, state.KindAdmin, a.Key())}, nil
		}
		return []state.Op{state.Put(state.Cluster, state.KindAdmin, a.Key(), a)}, nil
	})
	if err != nil {
		return nil, err
	}
	return n.settledService(ctx, rev, q.Service)
}

// pickBackend finds the backend that people call by an endpoint's name, ID or
// address, or by an address with a port.
func pickBackend(v *state.View, s *state.ServiceView, text string) (*state.BackendOf, error) {
	var found []*state.BackendOf
	for i := range s.Backends {
		b := &s.Backends[i]
		name := backendName(v, b)
		if text != "" && (b.Endpoint == text || name == text || b.Addr.String() == text || b.Key == text) {
			found = append(found, b)
		}
	}
	// ADDR means the one without a port, if there is one.
	for _, b := range found {
		if len(found) > 1 && b.Endpoint == "" && b.Key == text {
			return b, nil
		}
	}
	switch len(found) {
	case 0:
		return nil, &api.Error{Message: fmt.Sprintf("service %s has no backend %q: `nodectl service show %s` lists them", s.FullName(), text, s.FullName()), Code: api.CodeNotFound}
	case 1:
		return found[0], nil
	}
	var which []string
	for _, b := range found {
		addr := b.Addr.String()
		if b.Endpoint == "" {
			addr = b.Key
		}
		which = append(which, addr)
	}
	return nil, invalid("%q may be any of the backends %s of service %s: say which by its address", text, strings.Join(which, ", "), s.FullName())
}

const (
	// drainTick is how late a drain's deadline may be noticed.
	drainTick = time.Second
	// drainGrace is how much longer other nodes wait for the one whose turn it
	// is to end a drain.
	drainGrace = 3 * time.Second
	// strayTime is how long what was said of a backend outlives it: one that is
	// only being attached anew keeps its weight.
	strayTime = time.Minute
)

// runDrains ends the drains whose deadline is over and removes what was said of
// backends that are gone. Each is one record that one node writes; the node
// with the lowest ID of those alive does, and the others when it does not.
func (n *Node) runDrains(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	strays := map[string]time.Time{} // since when, by key
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		sn := n.store.Snapshot()
		ops := n.endDrains(sn, n.clock.now())
		if n.isSynced() {
			ops = append(ops, n.strayOps(sn, strays, time.Now())...)
		}
		if len(ops) == 0 {
			continue
		}
		_, err := n.store.Write(ctx, func(now *state.Snapshot) ([]state.Op, error) { return stillMeant(sn, now, ops), nil })
		if err != nil && ctx.Err() == nil {
			n.log.Error("what operators said of backends not brought up to date", "err", err)
		}
	}
}

func (n *Node) isSynced() bool {
	select {
	case <-n.gossip.Synced():
		return true
	default:
		return false
	}
}

// first reports whether this node has the lowest ID of those alive.
func (n *Node) first(sn *state.Snapshot) bool {
	for id, l := range sn.Live() {
		if l.State == state.Alive && id < n.self {
			return false
		}
	}
	return true
}

// stillMeant drops the ops on records that are no longer what they were.
func stillMeant(was, now *state.Snapshot, ops []state.Op) []state.Op {
	var out []state.Op
	for _, op := range ops {
		id := state.ID{Class: op.Class, Kind: op.Kind, Key: op.Key}
		a, ok1 := was.Get(id)
		b, ok2 := now.Get(id)
		if ok1 && ok2 && a.Version == b.Version {
			out = append(out, op)
		}
	}
	return out
}

// endDrains says of which drains the deadline is over.
func (n *Node) endDrains(sn *state.Snapshot, now time.Time) (ops []state.Op) {
	if !n.first(sn) {
		now = now.Add(-drainGrace)
	}
	for rec, a := range state.All[state.Admin](sn) {
		if a.Drain && !a.Ended && a.Until != 0 && a.Until <= now.Unix() {
			over := *a
			over.Ended = true
			ops = append(ops, state.Put(state.Cluster, state.KindAdmin, rec.ID.Key, over))
			n.log.Info("drain is over, what is left is reset", "service", a.Service+"."+a.Namespace, "backend", a.Backend)
		}
	}
	return ops
}

// strayOps removes what was said of backends that have been gone for a while:
// by operators, and by checks for the whole cluster. since remembers the
// strays that were seen.
func (n *Node) strayOps(sn *state.Snapshot, since map[string]time.Time, now time.Time) (ops []state.Op) {
	v := sn.View()
	limit := strayTime
	if !n.first(sn) {
		limit *= 3
	}
	seen := map[string]bool{}
	look := func(kind state.Kind, key string) {
		if backendAt(v, key) != nil {
			return
		}
		at := string(kind) + " " + key
		seen[at] = true
		if _, ok := since[at]; !ok {
			since[at] = now
		}
		if now.Sub(since[at]) >= limit {
			ops = append(ops, state.Del(state.Cluster, kind, key))
		}
	}
	for rec := range state.All[state.Admin](sn) {
		look(state.KindAdmin, rec.ID.Key)
	}
	for rec := range state.All[state.Health](sn) {
		if rec.ID.Class == state.Cluster {
			look(state.KindHealth, rec.ID.Key)
		}
	}
	for at := range since {
		if !seen[at] {
			delete(since, at)
		}
	}
	return ops
}

// backendAt finds the backend of a key "<namespace>/<service>/<backend>".
func backendAt(v *state.View, key string) *state.BackendOf {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) != 3 {
		return nil
	}
	s := v.Service(parts[0] + "/" + parts[1])
	if s == nil {
		return nil
	}
	for i := range s.Backends {
		if s.Backends[i].Key == parts[2] {
			return &s.Backends[i]
		}
	}
	return nil
}
