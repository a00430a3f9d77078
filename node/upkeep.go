package node

import (
	"context"
	"time"

	"nodenet/state"
)

// leakTick is how often endpoints whose link has gone are looked for.
const leakTick = 30 * time.Second

// runUpkeep does what time brings: tombstones grow old, and workloads end
// without telling anybody.
func (n *Node) runUpkeep(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	leaks := time.NewTicker(leakTick)
	defer leaks.Stop()
	collect := time.NewTicker(time.Hour)
	defer collect.Stop()
	shared := time.NewTicker(10 * time.Minute)
	defer shared.Stop()
	missing := n.reclaim(ctx, nil)
	for {
		select {
		case <-leaks.C:
			missing = n.reclaim(ctx, missing)
		case <-collect.C:
			if c, err := n.store.Collect(time.Now().Add(-tombstoneAge)); err != nil {
				n.log.Warn("old tombstones not collected", "err", err)
			} else if c > 0 {
				n.log.Debug("collected tombstones", "records", c)
			}
		case <-shared.C:
			if err := n.collectShared(ctx); err != nil && ctx.Err() == nil {
				n.log.Warn("tombstones of shared records not collected", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// reclaim releases endpoints whose host link was missing both now and at the
// look before. A namespace that we cannot see proves nothing; the host side
// of a veth pair goes with the other end, and we can always see that one.
func (n *Node) reclaim(ctx context.Context, before map[string]bool) map[string]bool {
	missing := map[string]bool{}
	for rec, e := range state.All[state.Endpoint](n.store.Snapshot()) {
		if rec.ID.Owner != n.self || e.HostIf == "" || n.attaching.has(e.ID) || n.overlay.Exists(e.HostIf) {
			continue
		}
		if !before[e.ID] {
			missing[e.ID] = true
			continue
		}
		if !n.reclaimOne(ctx, e.ID) {
			missing[e.ID] = true
		}
	}
	return missing
}

// reclaimOne releases an endpoint whose link is gone. It looks again with the
// ID held: the same ID may have been detached and attached anew since the
// table was read. False: to be tried again.
func (n *Node) reclaimOne(ctx context.Context, id string) bool {
	if n.attaching.begin(id) != nil {
		return true
	}
	defer n.attaching.end(id)
	ep, ok := state.Lookup[state.Endpoint](n.store.Snapshot(), n.endpointID(id))
	if !ok || n.overlay.Exists(ep.HostIf) {
		return true
	}
	if _, err := n.release(ctx, *ep); err != nil {
		return false
	}
	n.log.Info("reclaimed an endpoint whose link is gone", "endpoint", ep.ID, "addr", ep.Addrs)
	return true
}
