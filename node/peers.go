package node

import (
	"context"
	"sync"
	"time"

	"nodenet/api"
	"nodenet/state"
)

// peerList shows the other nodes as replication sees them. Those that are
// connected are asked what they lack.
func (n *Node) peerList(ctx context.Context) ([]api.PeerDetail, error) {
	sn := n.store.Snapshot()
	gone := sn.Gone()
	out := []api.PeerDetail{}
	at := map[state.NodeID]int{}
	var ask []state.NodeID
	for _, p := range n.gossip.Peers() {
		d := api.PeerDetail{
			Name: p.Name, ID: string(p.ID), State: p.State.String(), Since: unix0(p.Since), Address: p.Addr, Connected: p.Connected,
			RTTMicro: p.RTT.Microseconds(), LastSync: -1, Lag: -1, BytesIn: p.BytesIn, BytesOut: p.BytesOut,
			Version: p.Version, LastError: p.LastError, SkewMicro: p.Skew.Microseconds(), Flapping: p.Hold.Milliseconds(),
		}
		if gone.Node(p.ID) {
			d.State = "forgotten"
		}
		if !p.LastSync.IsZero() {
			d.LastSync = time.Since(p.LastSync).Milliseconds()
		}
		if p.Connected || p.State == state.Alive {
			ask = append(ask, p.ID)
		}
		at[p.ID] = len(out)
		out = append(out, d)
	}
	var mu sync.Mutex
	eachNode(ctx, ask, func(ctx context.Context, id state.NodeID) {
		lacks, err := n.lacks(ctx, id, sn)
		mu.Lock()
		defer mu.Unlock()
		if d := &out[at[id]]; err == nil {
			d.Lag = lacks
		} else if d.LastError == "" {
			d.LastError = err.Error()
		}
	})
	return out, nil
}
