package node

import (
	"context"
	"time"

	"nodenet/state"
)

// bootWait bounds how long a start keeps from the network until the saved
// state is served. It takes a few tens of milliseconds where nothing is wrong;
// a kernel or a port that is in trouble must not keep the node out of its cluster.
const bootWait = 500 * time.Millisecond

// saved reports whether the tables hold what this node last said of itself:
// they are then what it served when it was last up.
func (n *Node) saved() bool {
	_, ok := state.Lookup[state.Node](n.store.Snapshot(), state.ID{Class: state.Owner, Kind: state.KindNode, Owner: n.self, Key: "self"})
	return ok
}

// afterSaved lets run begin once overlay, balancer and DNS hold the state that
// was saved. After a power cut every node of a cluster starts at once: names,
// routes and VIPs come first, handshakes and tables of others after them.
func (n *Node) afterSaved(run func(context.Context) error) func(context.Context) error {
	if !n.saved() {
		return run
	}
	rev := n.store.Snapshot().Rev()
	return func(ctx context.Context) error {
		if n.settled(ctx, rev, bootWait) {
			n.log.Info("the saved state is served", "rev", rev, "took", time.Since(n.started).Round(time.Millisecond))
		}
		return run(ctx)
	}
}
