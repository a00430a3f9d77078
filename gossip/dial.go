package gossip

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

const (
	retryMin = 200 * time.Millisecond
	maxDials = 8 // at the same time
	// refreshPart: for so many targets they are looked through one tick later.
	refreshPart = 50
)

// target is an address that a peer may answer at. It is tried for ever.
type target struct {
	id       state.NodeID // who says in its record that it is there; empty: unknown
	answered state.NodeID // who really was there the last time; a replaced node keeps its address
	self     bool         // we answered ourselves there
	dialing  bool
	next     time.Time
	wait     time.Duration
	err      string
}

// dialLoop keeps links to every node of a small cluster, to a random few of a
// large one, and never gives up on those that are lost: memberlist does.
func (g *Gossip) dialLoop(ctx context.Context) error {
	slots := make(chan struct{}, maxDials)
	tick := time.NewTicker(min(retryMin, g.t.retry))
	defer tick.Stop()
	rotated := time.Now()
	idle := 0 // ticks until the targets are looked through again
	for {
		if idle--; idle > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				continue
			case <-g.wakeDial:
			}
		}
		targets := g.refreshTargets()
		rotate := time.Since(rotated) > g.t.rotate
		if rotate {
			rotated = time.Now()
		}
		addrs, full := g.due(rotate)
		idle = 0
		if full {
			// It takes the longer the more there are.
			idle = targets / refreshPart
		}
		for _, addr := range addrs {
			select {
			case slots <- struct{}{}:
			default:
				g.undial(addr)
				continue
			}
			g.wg.Add(1)
			go func() {
				defer g.wg.Done()
				defer func() { <-slots }()
				_, err := g.connect(ctx, addr)
				g.dialed(addr, err)
			}()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-g.wakeDial:
			idle = 0
		}
	}
}

// refreshTargets brings in the addresses of seeds, of the last run, of node
// records and of memberlist, and returns how many there are.
func (g *Gossip) refreshTargets() int {
	want := map[string]state.NodeID{}
	recs := map[state.NodeID]netip.AddrPort{}
	left := map[string]bool{}
	for r, n := range state.All[state.Node](g.store.Snapshot()) {
		if r.ID.Owner == g.self || !n.Advertise.IsValid() {
			continue
		}
		addr := netip.AddrPortFrom(n.Advertise, or(n.SyncPort, DefaultSyncPort)).String()
		if n.Left {
			left[addr] = true
			continue
		}
		want[addr] = r.ID.Owner
		recs[r.ID.Owner] = netip.AddrPortFrom(n.Advertise, or(n.SyncPort, DefaultSyncPort))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	add := func(addr string, id state.NodeID) {
		if _, ok := want[addr]; !ok && !left[addr] {
			want[addr] = id
		}
	}
	for id, p := range g.peers {
		// A node that moved while it had no link with us: others told us.
		if r, ok := recs[id]; ok && g.links[id] == nil && time.Since(p.heard) > g.t.persist {
			p.addr, p.sync = r.Addr(), r.Port()
		}
		if p.addr.IsValid() {
			add(netip.AddrPortFrom(p.addr, p.sync).String(), id)
		}
	}
	for id, m := range g.track.members {
		if a, err := netip.ParseAddr(m.addr); err == nil && m.up && id != g.self {
			add(netip.AddrPortFrom(a, m.syncPort).String(), id)
		}
	}
	for _, list := range [][]string{g.o.Join, g.cluster.Seeds, g.cluster.Peers} {
		for _, s := range list {
			add(hostPort(s, DefaultSyncPort), "")
		}
	}
	delete(want, netip.AddrPortFrom(g.o.Advertise, g.syncPort).String())
	g.known = make(map[netip.Addr]bool, len(want))
	for addr := range want {
		if ap, err := netip.ParseAddrPort(addr); err == nil {
			g.known[ap.Addr().Unmap()] = true
		}
	}
	for addr, id := range want {
		t := g.targets[addr]
		if t == nil {
			t = &target{}
			g.targets[addr] = t
		}
		if id != "" {
			t.id = id
		}
	}
	for addr, t := range g.targets {
		if _, ok := want[addr]; !ok && !t.dialing {
			delete(g.targets, addr)
		}
	}
	return len(g.targets)
}

// due picks the addresses to dial now and marks them; full says that there are
// links enough.
func (g *Gossip) due(rotate bool) (out []string, full bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	others := 0
	for id := range g.track.live {
		if id != g.self {
			others++
		}
	}
	full = others > maxMesh && len(g.links) >= maxMesh
	var lost, spare []string
	dialing := 0
	for addr, t := range g.targets {
		if t.dialing {
			dialing++
		}
		switch {
		case t.self || t.dialing || now.Before(t.next):
		case g.links[t.id] != nil || g.links[t.answered] != nil:
		case !full:
			out = append(out, addr)
		case t.id != "" && g.track.live[t.id].State != state.Alive && g.track.live[t.id].State != state.Suspect:
			lost = append(lost, addr)
		default:
			spare = append(spare, addr)
		}
	}
	if others > maxMesh && !full {
		// As many as are missing: what is dialed beyond that is soon closed again.
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		out = out[:min(len(out), max(0, maxMesh-len(g.links)-dialing))]
	}
	if len(lost) > 0 {
		// In a large cluster too, whoever seems lost is tried: the other side of
		// a partition is found again this way. One at a time, or a node that
		// starts would dial all that it has not heard of yet.
		out = append(out, lost[rand.IntN(len(lost))])
	}
	if full && rotate {
		// One new partner from time to time, and old ones less, so that no
		// clique keeps to itself.
		if len(spare) > 0 {
			out = append(out, spare[rand.IntN(len(spare))])
		}
		g.prune()
	}
	for _, addr := range out {
		g.targets[addr].dialing = true
	}
	return out, full
}

// prune closes as many of the longest-lived links that we dialed as there are
// links beyond a mesh: each one costs both sides its keepalive. g.mu is held.
func (g *Gossip) prune() {
	var ours []*link
	for _, l := range g.links {
		if l.outbound {
			ours = append(ours, l)
		}
	}
	slices.SortFunc(ours, func(a, b *link) int { return a.opened.Compare(b.opened) })
	for _, l := range ours[:min(len(ours), len(g.links)-maxMesh)] {
		go l.close(nil)
	}
}

func (g *Gossip) undial(addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.targets[addr]; t != nil {
		t.dialing = false
	}
}

// dialed notes the result and sets the next try: soon at first, then up to
// the cap, with some spread so that a healed network is not stormed.
func (g *Gossip) dialed(addr string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.targets[addr]
	if t == nil {
		return
	}
	t.dialing = false
	t.err = ""
	if err == nil {
		t.wait = 0
		t.next = time.Now().Add(retryMin)
		return
	}
	re, refused := errors.AsType[*RefusedError](err)
	if refused && re.Code == codeSelf {
		t.self = true
		return
	}
	t.wait = min(max(2*t.wait, retryMin), g.t.retry)
	t.next = time.Now().Add(t.wait/2 + rand.N(t.wait/2+1))
	if refused && quiet(re.Code) {
		return
	}
	t.err = err.Error()
	if t.id != "" && g.links[t.id] == nil {
		g.info(t.id).lastError = t.err
	}
	g.met.dialErrors.Inc()
}
