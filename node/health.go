package node

import (
	"context"
	"time"

	"nodenet/node/check"
	"nodenet/state"
)

// checkDir is where programs of exec checks have to lie on each node.
const checkDir = "/etc/nodenet/checks"

// staleTick is how often results are looked for that outlived their check in
// spite of all: one may be written while its check is being given up.
const staleTick = 10 * time.Second

// runHealth makes the checks that are this node's, and keeps their results as
// records. It works out anew what it has to check for the services that
// changed, and for all when a node came, went or is suspect.
func (n *Node) runHealth(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	feed := n.store.Subscribe()
	defer feed.Close()
	done := make(chan error, 1)
	go func() { done <- n.checks.Run(ctx) }()
	tick := time.NewTicker(staleTick)
	defer tick.Stop()
	d := newDuties(n.self)
	clean := true
	for {
		sn := n.store.Snapshot()
		if d.update(sn.View()) {
			n.checks.Set(d.all())
			clean = true
		}
		if clean {
			n.dropHealth(ctx, sn, d)
			clean = false
		}
		select {
		case <-feed.C():
			feed.Take()
		case <-tick.C:
			clean = true
		case <-ctx.Done():
			return <-done
		}
	}
}

// checkOptions is how checks are told of results and tell them.
func (n *Node) checkOptions() check.Options {
	return check.Options{
		Logger: n.log.With("part", "health"),
		Load: func(key string) (check.Result, bool) {
			h, ok := state.Lookup[state.Health](n.store.Snapshot(), n.healthID(key))
			if !ok {
				return check.Result{}, false
			}
			return check.Result{OK: h.OK, Why: h.Why, Since: time.Unix(h.Since, 0), Step: h.Step}, true
		},
		Store: func(ctx context.Context, key string, r check.Result) error {
			h := state.Health{OK: r.OK, Why: r.Why, Since: r.Since.Unix(), Step: r.Step}
			_, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) {
				if ctx.Err() != nil {
					return nil, ctx.Err() // it was given up meanwhile, and its record perhaps removed
				}
				id := n.healthID(key)
				return []state.Op{state.Put(id.Class, id.Kind, id.Key, h)}, nil
			})
			return err
		},
	}
}

// dropHealth removes this node's own results that no check stands behind any
// more: the service, its check or the backend went, perhaps while it was being
// asked. So too what was found out about backends in the stead of a node that
// speaks for itself again: by that node, and by the one that stood in.
func (n *Node) dropHealth(ctx context.Context, sn *state.Snapshot, d *duties) {
	stale := n.staleHealth(sn, d)
	if len(stale) == 0 {
		return
	}
	_, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) { return stale, nil })
	if err != nil && ctx.Err() == nil {
		n.log.Error("old health results not removed", "err", err)
	}
}

func (n *Node) staleHealth(sn *state.Snapshot, d *duties) (ops []state.Op) {
	v := sn.View()
	for rec := range state.All[state.Health](sn) {
		switch {
		case rec.ID.Owner == n.self && rec.ID.Class == state.Owner:
			if !d.has(ownHealth + rec.ID.Key) {
				ops = append(ops, state.Del(state.Owner, state.KindHealth, rec.ID.Key))
			}
		case rec.ID.Class == state.Cluster:
			b := backendAt(v, rec.ID.Key)
			if b == nil || b.Node == "" {
				continue // see strayOps; an explicit backend's is whoever's turn it is
			}
			nv := v.NodeByID(b.Node)
			if nv != nil && nv.State == state.Alive && (nv.Self || rec.Version.Node == n.self) {
				ops = append(ops, state.Del(state.Cluster, state.KindHealth, rec.ID.Key))
			}
		}
	}
	return ops
}
