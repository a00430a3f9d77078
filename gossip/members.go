package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"nodenet/state"
)

// metaOf is what a node says in memberlist's metadata, at most 512 bytes.
type metaOf struct {
	SyncPort uint16 `cbor:"1,keyasint"`
	Name     string `cbor:"2,keyasint,omitempty"`
}

// memberlistNode is our membership: the only user of memberlist.
type memberlistNode struct {
	*memberlist.Memberlist
}

// memberName is the memberlist name of one life of a node. With the epoch in
// it, a fast restart is a join and never clashes with memberlist's own
// incarnation numbers, which start at zero again.
func memberName(id state.NodeID, epoch uint64) string {
	return string(id) + "." + strconv.FormatUint(epoch, 10)
}

func parseMember(name string) (state.NodeID, uint64, bool) {
	id, e, ok := strings.Cut(name, ".")
	epoch, err := strconv.ParseUint(e, 10, 64)
	return state.NodeID(id), epoch, ok && err == nil && state.NodeID(id).Valid()
}

// events is memberlist's view of us: it must not block.
type events struct {
	g    *Gossip
	meta []byte
}

func (e *events) NodeMeta(limit int) []byte {
	if len(e.meta) > limit {
		return nil
	}
	return e.meta
}
func (e *events) NotifyMsg([]byte)                {}
func (e *events) GetBroadcasts(int, int) [][]byte { return nil }
func (e *events) LocalState(bool) []byte          { return nil }
func (e *events) MergeRemoteState([]byte, bool)   {}
func (e *events) NotifyUpdate(n *memberlist.Node) { e.NotifyJoin(n) }
func (e *events) AckPayload() []byte              { return nil }
func (e *events) NotifyJoin(n *memberlist.Node)   { e.g.memberUp(n) }
func (e *events) NotifyLeave(n *memberlist.Node)  { e.g.memberDown(n) }
func (e *events) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	if id, epoch, ok := parseMember(n.Name); ok {
		e.g.mu.Lock()
		e.g.track.ack(id, epoch, time.Now())
		e.g.mu.Unlock()
	}
}

func (g *Gossip) memberUp(n *memberlist.Node) {
	id, epoch, ok := parseMember(n.Name)
	if !ok {
		return
	}
	m := member{epoch: epoch, addr: n.Addr.String(), gossipPort: n.Port, syncPort: DefaultSyncPort, acked: time.Now()}
	var meta metaOf
	if len(n.Meta) > 0 && frameDec.Unmarshal(n.Meta, &meta) == nil {
		m.syncPort, m.name = or(meta.SyncPort, DefaultSyncPort), printable(meta.Name)
	}
	if a, err := netip.ParseAddr(m.addr); err == nil {
		m.addr = a.Unmap().String()
	}
	g.mu.Lock()
	g.doubtful(id, m)
	counts := g.track.join(id, m)
	if counts && m.name != "" && id != g.self {
		g.info(id).name = m.name
	}
	g.mu.Unlock()
	if counts {
		g.log.Debug("member up", "node", id, "epoch", epoch, "addr", m.addr)
		wake(g.wakeLive)
		wake(g.wakeDial)
	}
}

func (g *Gossip) memberDown(n *memberlist.Node) {
	id, epoch, ok := parseMember(n.Name)
	if !ok {
		return
	}
	g.mu.Lock()
	counts := g.track.leave(id, epoch)
	g.mu.Unlock()
	if counts {
		g.log.Debug("member down", "node", id, "epoch", epoch)
		wake(g.wakeLive)
	}
}

// startMembers opens memberlist. The cluster ID is known by now.
func (g *Gossip) startMembers() (*memberlistNode, error) {
	meta, err := frameEnc.Marshal(&metaOf{SyncPort: g.o.SyncPort, Name: strings.ToValidUTF8(g.o.Name[:min(len(g.o.Name), 255)], "")})
	if err != nil {
		return nil, err
	}
	ev := &events{g: g, meta: meta}
	logger := log.New(&lineLog{g.log}, "", 0)
	bind := g.o.Bind
	if !bind.IsValid() {
		// memberlist wants an address; IPv6 may be switched off on the host.
		bind = netip.IPv4Unspecified()
		if g.o.Advertise.Is6() {
			bind = netip.IPv6Unspecified()
		}
	}
	nt, err := g.o.net.members(bind, g.o.GossipPort, logger, newGate(memberConns, g.isKnown))
	if err != nil {
		return nil, fmt.Errorf("listen on gossip port %d: %w", g.o.GossipPort, err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name = memberName(g.self, g.store.Epoch())
	c.Transport = nt
	c.BindAddr, c.BindPort = bind.String(), int(g.o.GossipPort)
	c.AdvertiseAddr, c.AdvertisePort = g.o.Advertise.String(), int(g.o.GossipPort)
	c.Label = g.Cluster().ID
	c.Keyring = g.memberKeys
	c.ProbeInterval, c.ProbeTimeout = g.t.probe, g.t.probe/2
	c.SuspicionMult = g.t.suspicion
	c.SuspicionMaxTimeoutMult = 3
	c.AwarenessMaxMultiplier = 4
	c.GossipInterval = min(200*time.Millisecond, g.t.probe)
	c.TCPTimeout = 4 * g.t.probe
	c.Delegate, c.Events, c.Ping = ev, ev, ev
	c.EnableCompression = !g.o.net.uncompressed
	c.Logger = logger
	ml, err := memberlist.Create(c)
	if err != nil {
		nt.Shutdown()
		return nil, fmt.Errorf("start membership: %w", err)
	}
	return &memberlistNode{ml}, nil
}

// memberLoop starts memberlist when there is a cluster, and brings back
// whoever it has forgotten, for ever.
func (g *Gossip) memberLoop(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-g.named:
	}
	if g.o.net.scripted != nil {
		return g.o.net.scripted(ctx, g)
	}
	if !g.alone() {
		// The first hello may raise the epoch, which goes into the name.
		wait := time.NewTimer(g.t.memberWait)
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-g.met1:
		case <-wait.C:
		}
	}
	ml, err := g.startMembers()
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.members = ml
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.members = nil
		g.mu.Unlock()
		ml.Shutdown() // no Leave: a restart is no leave
	}()
	tick := time.NewTicker(g.t.probe)
	defer tick.Stop()
	for {
		g.rejoin(ctx, ml)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// rejoin introduces us to nodes that memberlist does not list. Those with a
// stream come first: they are there for certain.
func (g *Gossip) rejoin(ctx context.Context, ml *memberlistNode) {
	type cand struct {
		id   state.NodeID
		addr string
	}
	var list []cand
	now := time.Now()
	recs := map[state.NodeID]*state.Node{}
	for r, n := range state.All[state.Node](g.store.Snapshot()) {
		recs[r.ID.Owner] = n
	}
	g.mu.Lock()
	consider := func(id state.NodeID, addr netip.Addr, port uint16, linked bool) {
		if m := g.track.members[id]; id == g.self || m != nil && m.up || !addr.IsValid() {
			return
		}
		p := g.info(id)
		if now.Before(p.joinAt) {
			return
		}
		p.joinWait = min(max(2*p.joinWait, g.t.probe), g.t.retry)
		p.joinAt = now.Add(p.joinWait)
		c := cand{id, net.JoinHostPort(addr.String(), strconv.Itoa(int(port)))}
		if linked {
			list = append([]cand{c}, list...)
		} else {
			list = append(list, c)
		}
	}
	for id, p := range g.peers {
		if n := recs[id]; n == nil || !n.Left {
			consider(id, p.addr, or(p.gossip, DefaultGossipPort), g.links[id] != nil)
		}
	}
	for id, m := range g.track.members {
		if n := recs[id]; n == nil && g.peers[id] != nil && !g.peers[id].addr.IsValid() {
			if a, err := netip.ParseAddr(m.addr); err == nil {
				consider(id, a, m.gossipPort, false)
			}
		}
	}
	for id, n := range recs {
		if !n.Left && (g.peers[id] == nil || !g.peers[id].addr.IsValid()) {
			consider(id, n.Advertise, or(n.GossipPort, DefaultGossipPort), false)
		}
	}
	g.mu.Unlock()
	for i, c := range list {
		if ctx.Err() != nil || i >= 4 {
			return
		}
		if _, err := ml.Join([]string{c.addr}); err != nil {
			g.log.Debug("membership not joined", "node", c.id, "addr", c.addr, "err", err)
		}
	}
}

// liveLoop keeps the store's liveness table true.
func (g *Gossip) liveLoop(ctx context.Context) error {
	feed := g.store.Subscribe()
	defer feed.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last map[state.NodeID]state.Live
	nodes := nodesOf(g.store.Snapshot())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-g.wakeLive:
		case <-feed.C():
			changed, all, sn := feed.Take()
			for i := 0; !all && i < len(changed); i++ {
				all = changed[i].ID.Kind == state.KindNode
			}
			if !all {
				continue
			}
			nodes = nodesOf(sn)
		}
		next := g.updateLive(nodes, &last)
		timer.Reset(next)
	}
}

// nodeList is what liveLoop wants of the node records.
type nodeList struct {
	known []state.NodeID
	left  map[state.NodeID]bool
	names map[state.NodeID]string
}

func nodesOf(sn *state.Snapshot) *nodeList {
	l := &nodeList{left: map[state.NodeID]bool{}, names: map[state.NodeID]string{}}
	for r, n := range state.All[state.Node](sn) {
		l.known = append(l.known, r.ID.Owner)
		if n.Left {
			l.left[r.ID.Owner] = true
		}
		l.names[r.ID.Owner] = n.Name
	}
	return l
}

func (g *Gossip) updateLive(nodes *nodeList, last *map[state.NodeID]state.Live) time.Duration {
	heard := g.heardOf()
	g.mu.Lock()
	wasFrozen := g.track.freeze != nil
	live, next := g.track.compute(time.Now(), nodes.known, nodes.left, heard)
	frozen := g.track.freeze != nil
	for id, l := range g.links {
		if x, ok := live[id]; ok {
			x.Addr = l.remote()
			live[id] = x
		}
	}
	g.mu.Unlock()
	changed := len(live) != len(*last)
	for id, l := range live {
		old, ok := (*last)[id]
		if ok && old == l {
			continue
		}
		changed = true
		if id != g.self && old.State != l.State {
			g.log.Info("node "+l.State.String(), "peer", or(nodes.names[id], id.Short()), "node", id)
		} else if ok && old.Serving && !l.Serving {
			g.log.Warn("node withdrawn from answers and backends", "peer", or(nodes.names[id], id.Short()), "node", id, "state", l.State.String())
		}
	}
	if frozen != wasFrozen {
		if frozen {
			g.log.Warn("over half of the nodes were lost at once: assuming that this node is cut off, withdrawals are frozen")
		} else {
			g.log.Info("withdrawals are no longer frozen")
		}
	}
	if changed {
		g.store.SetLiveness(live)
		*last = live
	}
	return next
}

// lineLog turns memberlist's log lines into debug records.
type lineLog struct{ log *slog.Logger }

func (l *lineLog) Write(b []byte) (int, error) {
	l.log.Debug(string(bytes.TrimSpace(b)), "from", "memberlist")
	return len(b), nil
}
