package gossip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nodenet/state"
)

const (
	fanout  = 6  // copies of a push that one node sends
	maxSent = 64 // node IDs named in a push
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

// pushLoop sends our own changes as soon as they are visible. What comes from
// peers is forwarded where it is merged, see link.replicate.
func (g *Gossip) pushLoop(ctx context.Context) error {
	feed := g.store.Subscribe()
	defer feed.Close()
	mark := g.store.Snapshot().Head(g.self).Mark
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-feed.C():
		}
		// A moment for what comes with it: one frame instead of ten.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(g.t.push):
		}
		changed, all, sn := feed.Take()
		var p push
		if head := sn.Head(g.self).Mark; head.Compare(mark) > 0 {
			d := sn.Delta(g.self, mark, chunkRecords)
			if d.Replace || d.To != head || sizeOf(d.Records) > chunkBytes {
				all = true
			} else {
				p.Deltas = []state.Delta{d}
			}
			mark = head
		}
		for _, r := range changed {
			if r.ID.Class != state.Owner && r.Version.Node == g.self {
				p.Records = append(p.Records, r)
			}
		}
		if len(p.Records) > chunkRecords || sizeOf(p.Records) > chunkBytes {
			all = true
		}
		switch {
		case all:
			g.syncAll()
		case len(p.Deltas)+len(p.Records) > 0:
			g.forward(&p, "")
		}
	}
}

// forward sends a push to a few peers that do not have it yet.
func (g *Gossip) forward(p *push, from state.NodeID) {
	var to []*link
	sent := append(slices.Clone(p.Sent), g.self)
	for _, l := range g.someLinks() {
		if l.peer != from && !slices.Contains(p.Sent, l.peer) && len(to) < fanout {
			to = append(to, l)
			sent = append(sent, l.peer)
		}
	}
	if len(to) == 0 {
		return
	}
	if len(sent) > maxSent {
		sent = sent[len(sent)-maxSent:]
	}
	f := &push{Deltas: p.Deltas, Records: p.Records, Sent: sent}
	for _, l := range to {
		l.send(f)
	}
	g.met.pushes.Inc()
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

// handOver waits until every peer of the list that is still there was seen
// equal to us, or one at least when the time is up.
func (g *Gossip) handOver(ctx context.Context, links []*link) error {
	began := make(map[*link]int64, len(links))
	for _, l := range links {
		began[l] = int64(time.Since(l.opened))
		l.startSync()
	}
	tick := time.NewTicker(max(g.t.sync/10, 5*time.Millisecond))
	defer tick.Stop()
	again := time.NewTicker(g.t.sync)
	defer again.Stop()
	for {
		equal, open := 0, 0
		for _, l := range links {
			select {
			case <-l.closed:
				continue
			default:
			}
			open++
			if l.equal.Load() > began[l] {
				equal++
			}
		}
		switch {
		case open == 0 && equal == 0:
			return errors.New("leave cluster: all peers disconnected before they had everything")
		case equal == open:
			return nil
		}
		select {
		case <-ctx.Done():
			if equal > 0 {
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
