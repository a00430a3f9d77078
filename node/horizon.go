package node

import (
	"context"
	"time"

	"nodenet/state"
)

const (
	// extentStep is by how much this node's extent must have grown to be told anew.
	extentStep = time.Hour
	// horizonStep is by how much the horizon is raised at least.
	horizonStep = time.Hour
)

// collectShared does this node's part in collecting the tombstones of records
// that any node may write: it says how far it holds everything, and, when it is
// the lowest living node, raises the horizon to what all nodes have said. A
// node that has never held all of the tables knows too little for either.
func (n *Node) collectShared(ctx context.Context) error {
	select {
	case <-n.gossip.Synced():
	default:
		return nil
	}
	if err := n.store.Tick(); err != nil {
		return err
	}
	sn := n.store.Snapshot()
	if through := n.gossip.Extent(); through.Time().Sub(sn.Horizon().Extent.Time()) >= extentStep {
		// First on our own disk: what we tell must not go beyond what it knows.
		if err := n.store.Extend(through); err != nil {
			return err
		}
		if _, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) {
			return []state.Op{state.Put(state.Owner, state.KindSynced, "self", state.Synced{Through: through})}, nil
		}); err != nil {
			return err
		}
	}
	sn = n.store.Snapshot()
	for id, l := range sn.Live() {
		if l.State == state.Alive && id < n.self {
			return nil
		}
	}
	to := sn.NextHorizon(time.Now(), tombstoneAge)
	if to.Time().Sub(sn.Horizon().Before.Time()) < horizonStep {
		return nil
	}
	c, err := n.store.RaiseHorizon(to)
	if err == nil && c > 0 {
		n.log.Debug("collected tombstones of shared records", "records", c, "before", to.Time())
	}
	return err
}
