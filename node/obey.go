package node

import (
	"context"
	"time"

	"nodenet/ipam"
	"nodenet/state"
)

// obeyKinds are the kinds of records whose change may mean that something of
// this node's is another's now.
var obeyKinds = map[state.Kind]bool{
	state.KindRing: true, state.KindForgotten: true, state.KindBlock: true, state.KindVIP: true,
}

// runObey makes this node give way where its space was taken over while it
// was away; see ipam.GiveWay.
func (n *Node) runObey(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	feed := n.store.Subscribe()
	defer feed.Close()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-retry.C:
		case <-feed.C():
			changed, all, _ := feed.Take()
			for i := 0; !all && i < len(changed); i++ {
				all = obeyKinds[changed[i].ID.Kind]
			}
			if !all {
				continue
			}
		case <-ctx.Done():
			return nil
		}
		if err := n.obey(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("space that is another node's not given up, will try again", "err", err)
			retry.Reset(time.Second)
		}
	}
}

// obey gives up what is another node's by now. A node that was forgotten goes
// on under a new epoch: what it wrote before counts for nobody.
func (n *Node) obey(ctx context.Context) error {
	sn := n.store.Snapshot()
	if e := sn.WasForgotten(); e >= n.store.Epoch() {
		n.store.RaiseEpoch(max(e+1, uint64(time.Now().Unix())))
		n.log.Warn("this node was forgotten by the others while it was away: it gives up the address space that is theirs now and joins again",
			"epoch", n.store.Epoch())
	}
	if len(ipam.GiveWay(sn, n.self, n.ringID())) == 0 {
		return nil
	}
	var done []state.Op
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		done = ipam.GiveWay(sn, n.self, n.ringID())
		return done, nil
	})
	if err != nil {
		return err
	}
	for _, op := range done {
		switch v := op.Value.(type) {
		case nil:
			n.log.Warn("gave up what is another node's now", "kind", string(op.Kind), "key", op.Key)
		case state.Endpoint:
			if v.Why != "" {
				n.log.Warn("endpoint is drained", "endpoint", v.ID, "addr", v.Addrs, "why", v.Why)
			}
		}
	}
	return nil
}
