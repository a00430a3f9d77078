package gossip

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// syncLoop compares digests with a random peer.
func (g *Gossip) syncLoop(ctx context.Context) error {
	tick := time.NewTicker(g.t.sync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if ls := g.someLinks(); len(ls) > 0 {
				ls[0].startSync()
			}
		}
	}
}

// syncAll compares digests with every peer.
func (g *Gossip) syncAll() {
	for _, l := range g.someLinks() {
		l.startSync()
	}
}

// Leave makes sure that at least one peer holds everything that we hold, tells
// the peers, and leaves the membership. The node's record says Left by then:
// writing it is the caller's task, as is ending Run afterwards. With nobody
// connected there is nothing to do; an error means that nobody confirmed.
func (g *Gossip) Leave(ctx context.Context) error {
	links := g.someLinks()
	if len(links) == 0 {
		g.savePeers() // without those that left
		if known := max(len(g.peerAddrs()), len(g.Cluster().Peers)); known > 0 {
			return fmt.Errorf("leave cluster: no peer is connected (%d known): they will see this node as dead; "+
				"run `nodectl node forget` there", known)
		}
		return nil
	}
	err := g.handOver(ctx, links)
	for _, l := range links {
		l.send(&bye{})
	}
	g.mu.Lock()
	ml := g.members
	g.mu.Unlock()
	if ml != nil {
		if e := ml.Leave(4 * g.t.probe); e != nil && err == nil {
			g.log.Debug("membership leave", "err", e)
		}
	}
	return err
}

// handOver waits until every peer of the list that is still there holds what
// we hold now, or one at least when the time is up.
func (g *Gossip) handOver(ctx context.Context, links []*link) error {
	mark := g.store.Snapshot().Head(g.self).Mark
	target := make(map[*link]uint64, len(links))
	for _, l := range links {
		l.startSync()
		target[l] = l.given.last()
	}
	tick := time.NewTicker(max(g.t.sync/10, 5*time.Millisecond))
	defer tick.Stop()
	again := time.NewTicker(g.t.sync)
	defer again.Stop()
	for {
		holds, open := 0, 0
		for _, l := range links {
			has := l.given.has(target[l], mark)
			select {
			case <-l.closed:
				if has {
					holds, open = holds+1, open+1
				}
				continue
			default:
			}
			open++
			if has {
				holds++
			}
		}
		switch {
		case open == 0:
			return errors.New("leave cluster: all peers disconnected before they had everything")
		case holds == open:
			return nil
		}
		select {
		case <-ctx.Done():
			if holds > 0 {
				return nil
			}
			return fmt.Errorf("leave cluster: no peer confirmed that it has everything: %w", ctx.Err())
		case <-again.C:
			for _, l := range links {
				l.startSync()
			}
		case <-tick.C:
		}
	}
}
