package gossip

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// runCtx is the context of Run: a link outlives the call that asked for it.
func (g *Gossip) runCtx(def context.Context) context.Context {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx != nil {
		return g.ctx
	}
	return def
}

// allLinks returns the links; g.mu is held.
func (g *Gossip) allLinks() []*link {
	out := make([]*link, 0, len(g.links))
	for _, l := range g.links {
		out = append(out, l)
	}
	return out
}

// info returns what is remembered of a node; g.mu is held.
func (g *Gossip) info(id state.NodeID) *peerInfo {
	p := g.peers[id]
	if p == nil {
		p = &peerInfo{}
		g.peers[id] = p
	}
	return p
}

// addLink makes l the connection to its peer, or reports that it is not
// needed. Both ends decide alike: of two connections made at the same moment
// the one dialed by the lower ID stays; later than that, a second connection
// means that the caller has lost the first.
func (g *Gossip) addLink(l *link) bool {
	g.mu.Lock()
	if g.ctx == nil || g.ctx.Err() != nil {
		g.mu.Unlock()
		return false
	}
	old := g.links[l.peer]
	if old != nil {
		lower := l.outbound == (g.self < l.peer) // l was dialed by the lower ID
		if old.outbound != l.outbound && !lower && time.Since(old.opened) < g.t.life {
			g.mu.Unlock()
			return false
		}
	}
	g.links[l.peer] = l
	p := g.info(l.peer)
	p.name, p.gossip, p.sync = l.name, or(l.hello.GossipPort, DefaultGossipPort), or(l.hello.SyncPort, DefaultSyncPort)
	if a, err := netip.ParseAddr(l.hello.Addr); err == nil && !a.IsUnspecified() {
		p.addr = a.Unmap()
	}
	p.heard, p.lastError = l.opened, ""
	p.joinAt, p.joinWait = time.Time{}, 0
	delete(g.refusals, l.addr)
	delete(g.refusals, p.addr.String())
	delete(g.refusals, netip.AddrPortFrom(p.addr, p.sync).String())
	for _, addr := range []string{l.addr, netip.AddrPortFrom(p.addr, p.sync).String()} {
		if t := g.targets[addr]; t != nil {
			t.answered, t.err = l.peer, ""
		}
	}
	g.mu.Unlock()
	if old != nil {
		old.close(errReplaced)
	}
	return true
}

// serveLink runs a link to its end.
func (g *Gossip) serveLink(ctx context.Context, l *link) {
	l.conn.SetDeadline(time.Time{})
	g.log.Info("peer connected", "peer", l.name, "node", l.peer, "addr", l.addr)
	wake(g.wakeLive)
	l.startSync()
	g.dropLink(l, l.run(ctx))
}

// dropLink forgets a link that ended.
func (g *Gossip) dropLink(l *link, err error) {
	l.close(err)
	g.mu.Lock()
	current := g.links[l.peer] == l
	p := g.info(l.peer)
	p.in, p.out = p.in+l.in.Load(), p.out+l.sent.Load()
	if h := l.heardAt(); h.After(p.heard) {
		p.heard = h
	}
	if current {
		delete(g.links, l.peer)
		if err != nil {
			p.lastError = err.Error()
		}
	}
	stopping := g.ctx == nil || g.ctx.Err() != nil
	g.mu.Unlock()
	if re, ok := errors.AsType[*RefusedError](err); ok {
		g.noteRefusal(l.addr, l.peer, re)
	}
	if current && !stopping {
		if errors.Is(err, io.EOF) {
			err = nil // the peer closed in good order
		}
		g.log.Info("peer disconnected", "peer", l.name, "node", l.peer, "err", err)
		wake(g.wakeDial)
	}
	wake(g.wakeLive)
}

// link returns the connection to a node, or nil.
func (g *Gossip) link(id state.NodeID) *link {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.links[id]
}

// linked reports whether there is a link to the node that answered at addr,
// and remembers that it did.
func (g *Gossip) linked(id state.NodeID, addr string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.targets[addr]; t != nil {
		t.answered = id
	}
	return g.links[id] != nil
}

// someLinks returns the links in random order.
func (g *Gossip) someLinks() []*link {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.allLinks() // map order is random enough to spread load
}

// remote is the address that the peer speaks from; invalid: not an IP address.
func (l *link) remote() netip.Addr {
	a, err := netip.ParseAddrPort(l.conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

// noteSync records that we hold all that a peer had; proven says that the
// peer once held all that there was.
func (g *Gossip) noteSync(l *link, proven bool) {
	g.mu.Lock()
	g.info(l.peer).lastSync = g.now()
	g.mu.Unlock()
	if proven {
		g.markSynced()
	}
}

// heardOf returns the last sign of life of each node on a stream.
func (g *Gossip) heardOf() map[state.NodeID]time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[state.NodeID]time.Time, len(g.peers))
	for id, p := range g.peers {
		h := p.heard
		if l := g.links[id]; l != nil {
			if t := l.heardAt(); t.After(h) {
				h = t
			}
		}
		if !h.IsZero() {
			out[id] = h
		}
	}
	return out
}

// leftAddrs returns the sync addresses of nodes that left.
func (g *Gossip) leftAddrs() map[string]bool {
	out := map[string]bool{}
	for _, n := range state.All[state.Node](g.store.Snapshot()) {
		if n.Left && n.Advertise.IsValid() {
			out[netip.AddrPortFrom(n.Advertise, or(n.SyncPort, DefaultSyncPort)).String()] = true
		}
	}
	return out
}

// peerAddrs returns the sync addresses of all nodes that have not left,
// sorted: what to try after a restart.
func (g *Gossip) peerAddrs() []string {
	seen := map[string]bool{}
	left := map[state.NodeID]bool{}
	for r, n := range state.All[state.Node](g.store.Snapshot()) {
		if n.Left {
			left[r.ID.Owner] = true
			continue
		}
		if r.ID.Owner != g.self && n.Advertise.IsValid() {
			seen[netip.AddrPortFrom(n.Advertise, or(n.SyncPort, DefaultSyncPort)).String()] = true
		}
	}
	g.mu.Lock()
	for id, p := range g.peers {
		if !left[id] && p.addr.IsValid() {
			seen[netip.AddrPortFrom(p.addr, p.sync).String()] = true
		}
	}
	g.mu.Unlock()
	out := make([]string, 0, len(seen))
	for a := range seen {
		out = append(out, a)
	}
	slices.Sort(out)
	return out
}
