package gossip

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"nodenet/state"
)

// The seam between a Gossip and a simNet. Options' network can forbid and wrap
// connections but cannot replace sockets, so the four places that open one
// (Run, dialLoop, connect, memberLoop with startMembers) are repeated here
// line by line over a simHost. All else is the real code: accept and answer,
// TLS, hellos, links, replication, the tracker, memberlist, rejoin.
//
// The real connect is switched off by Options.net: it would reach for
// addresses of the real network. Streams that are accepted come from an
// aliased source, which allow lets pass.

// simAlias is the address that an accepted stream seems to come from.
func simAlias(a netip.Addr) netip.Addr {
	b := a.As4()
	b[1] ^= 0x80
	return netip.AddrFrom4(b)
}

func simSeam(self netip.Addr) network {
	second := self.As4()[1] ^ 0x80
	return network{allow: func(a netip.Addr) bool { return a.Is4() && a.As4()[1] == second }}
}

// simRun is Gossip.Run over a simHost.
func simRun(ctx context.Context, g *Gossip, h *simHost) error {
	ln := h.listen(g.o.SyncPort)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.mu.Lock()
	g.ctx, g.syncPort = ctx, g.o.SyncPort
	g.mu.Unlock()
	if g.Cluster().Bootstrap {
		t := time.AfterFunc(g.t.firstWait, g.markSynced)
		defer t.Stop()
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { <-ctx.Done(); ln.Close(); return nil })
	eg.Go(func() error { return g.accept(ctx, ln) })
	eg.Go(func() error { return simDialLoop(ctx, g, h) })
	eg.Go(func() error { return simMemberLoop(ctx, g, h) })
	eg.Go(func() error { return g.liveLoop(ctx) })
	eg.Go(func() error { return g.pushLoop(ctx) })
	eg.Go(func() error { return g.syncLoop(ctx) })
	eg.Go(func() error { return g.saveLoop(ctx) })
	err := eg.Wait()
	g.mu.Lock()
	links := g.allLinks()
	g.mu.Unlock()
	for _, l := range links {
		l.close(nil)
	}
	g.wg.Wait()
	return err
}

// simDialLoop is Gossip.dialLoop over a simHost.
func simDialLoop(ctx context.Context, g *Gossip, h *simHost) error {
	slots := make(chan struct{}, maxDials)
	tick := time.NewTicker(min(retryMin, g.t.retry))
	defer tick.Stop()
	rotated := time.Now()
	for {
		g.refreshTargets()
		rotate := time.Since(rotated) > g.t.rotate
		if rotate {
			rotated = time.Now()
		}
		for _, addr := range g.due(rotate) {
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
				_, err := simConnect(ctx, g, h, addr)
				g.dialed(addr, err)
			}()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-g.wakeDial:
		}
	}
}

// simConnect is Gossip.connect over a simHost.
func simConnect(ctx context.Context, g *Gossip, h *simHost, addr string) (*link, error) {
	hctx, cancel := context.WithTimeout(ctx, g.t.handshake)
	defer cancel()
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	raw, err := h.dial(hctx, ap)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(hctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw.SetDeadline(time.Now().Add(g.t.handshake))
	conn := tls.Client(raw, tlsConfig(g.secrets.Load().cert, alpnSync))
	if err := conn.HandshakeContext(hctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake with %s: %w", addr, err)
	}
	id, err := g.secrets.Load().verify(conn.ConnectionState())
	if err != nil {
		r := g.secretRefusal(id, err)
		g.refuse(conn, addr, id, r)
		return nil, &RefusedError{r.Code, r.Reason}
	}
	if g.linked(id, addr) {
		conn.Close()
		return nil, &RefusedError{codeDuplicate, "there is a connection already"}
	}
	l, err := g.greet(conn, id, addr)
	if err != nil {
		conn.Close()
		return nil, err
	}
	stop()
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		g.serveLink(g.runCtx(ctx), l)
	}()
	return l, nil
}

// simMemberLoop is Gossip.memberLoop with startMembers over a simHost.
func simMemberLoop(ctx context.Context, g *Gossip, h *simHost) error {
	select {
	case <-ctx.Done():
		return nil
	case <-g.named:
	}
	if !g.alone() {
		wait := time.NewTimer(g.t.memberWait)
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-g.met1:
		case <-wait.C:
		}
	}
	ml, err := simStartMembers(g, h)
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
		ml.Shutdown()
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

func simStartMembers(g *Gossip, h *simHost) (*memberlistNode, error) {
	meta, err := frameEnc.Marshal(&metaOf{SyncPort: g.o.SyncPort, Name: strings.ToValidUTF8(g.o.Name, "")})
	if err != nil {
		return nil, err
	}
	ev := &events{g: g, meta: meta}
	c := memberlist.DefaultLANConfig()
	c.Name = memberName(g.self, g.store.Epoch())
	c.Transport = newSimTransport(h, g.o.GossipPort)
	c.BindAddr, c.BindPort = g.o.Bind.String(), int(g.o.GossipPort)
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
	c.EnableCompression = false // nothing but time: the bandwidth is free
	c.Logger = log.New(&lineLog{g.log}, "", 0)
	ml, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("start membership: %w", err)
	}
	return &memberlistNode{ml}, nil
}

// simCall is Gossip.Call, which connects over the simHost where the real one
// would over a socket.
func simCall(ctx context.Context, g *Gossip, h *simHost, to state.NodeID, method string, req []byte) ([]byte, error) {
	if to != g.self && g.link(to) == nil {
		var addr netip.Addr
		for r, n := range state.All[state.Node](g.store.Snapshot()) {
			if r.ID.Owner == to {
				addr = n.Advertise
			}
		}
		if addr.IsValid() {
			if _, err := simConnect(ctx, g, h, netip.AddrPortFrom(addr, DefaultSyncPort).String()); err != nil && g.link(to) == nil {
				return nil, fmt.Errorf("%w: %w", ErrNoPeer, err)
			}
		}
	}
	return g.Call(ctx, to, method, req)
}
