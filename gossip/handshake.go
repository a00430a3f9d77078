package gossip

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"nodenet/state"
)

// Codes of a refusal.
const (
	codeSecret    = "secret"    // another cluster secret
	codeCluster   = "cluster"   // another cluster ID
	codeRing      = "ring"      // another ring ID
	codeNone      = "none"      // neither side has a cluster
	codeProto     = "protocol"  // no common protocol version
	codeClone     = "clone"     // two machines with one node key: the receiver is the copy
	codeCopy      = "copy"      // likewise: the sender is the copy
	codeSelf      = "self"      // called itself
	codeDuplicate = "duplicate" // there is a connection already
	codeBusy      = "busy"
	codeToken     = "token"   // join token not accepted
	codeRetired   = "retired" // a cluster secret that was rotated away
)

// errBlocked: the network seam of a test lets nothing pass.
var errBlocked = errors.New("blocked")

// quiet refusals are part of normal operation.
func quiet(code string) bool { return code == codeSelf || code == codeDuplicate }

// RefusedError is a refusal by either side of a connection.
type RefusedError struct {
	Code   string
	Reason string
}

func (e *RefusedError) Error() string { return "refused: " + e.Reason }

// Refusal is the last refusal between this node and an address: `status`
// shows it, because it is nearly always a mistake in somebody's set-up.
type Refusal struct {
	Addr   string // host:port dialed, or the host that called us
	Node   state.NodeID
	Reason string
	When   time.Time
}

// printable bounds and cleans text that an unverified peer chose.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > 512 {
		s = s[:512]
	}
	return strings.ToValidUTF8(s, "")
}

// accept takes connections on the sync port.
func (g *Gossip) accept(ctx context.Context, ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors, most likely: others need the time more.
			if g.logRate.allow("accept", g.now()) {
				g.log.Error("accept on the sync port", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		remote := remoteIP(c)
		if g.o.net.allow != nil && !g.o.net.allow(remote) {
			c.Close()
			continue
		}
		slot := g.early.admit(c, remote)
		if slot == nil {
			g.met.refused.WithLabelValues(codeBusy).Inc()
			c.Close()
			continue
		}
		if g.o.net.wrap != nil {
			c = g.o.net.wrap(c)
		}
		g.wg.Add(1)
		go func() {
			defer g.wg.Done()
			g.answer(ctx, c, remote, slot)
		}()
	}
}

func remoteIP(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// answer handles a connection that somebody opened to us. It gives its early
// slot back when the peer is verified or gone.
func (g *Gossip) answer(ctx context.Context, raw net.Conn, remote netip.Addr, slot *pass) {
	defer slot.done()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(g.t.handshake))
	conn := g.o.net.server(raw, tlsConfig(g.secrets.Load().cert, alpnSync, alpnJoin))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		g.met.refused.WithLabelValues("tls").Inc()
		g.log.Debug("TLS handshake on the sync port", "remote", remote, "err", err)
		return
	}
	if tc, ok := conn.(*tls.Conn); ok && conn.ConnectionState().NegotiatedProtocol == alpnJoin {
		g.answerJoin(tc, remote)
		return
	}
	id, err := g.secrets.Load().verify(conn.ConnectionState())
	if err != nil {
		g.refuse(conn, remote.String(), id, g.secretRefusal(id, err))
		return
	}
	f, _, err := readFrame(conn, maxEarly)
	if err != nil {
		conn.Close()
		g.log.Debug("no hello", "remote", remote, "err", err)
		return
	}
	h, ok := f.(*hello)
	if r, isRefusal := f.(*refuse); isRefusal {
		conn.Close()
		g.noteRefusal(remote.String(), id, g.heed(&RefusedError{r.Code, printable(r.Reason)}))
		return
	}
	if !ok {
		conn.Close()
		return
	}
	if r := g.check(id, h); r != nil {
		g.refuse(conn, remote.String(), id, r)
		return
	}
	if h.Probe {
		g.answerProbe(conn, id)
		return
	}
	if r := g.contest(ctx, id, h); r != nil {
		g.refuse(conn, remote.String(), id, r)
		return
	}
	mine := g.hello(id)
	l := g.newLink(conn, id, h, remote.String(), false)
	if !g.addLink(l) {
		g.refuse(conn, remote.String(), id, &refuse{codeDuplicate, "there is a connection already"})
		return
	}
	slot.done()
	if err := l.first(mine); err != nil {
		g.dropLink(l, fmt.Errorf("send hello: %w", err))
		return
	}
	stop()
	g.serveLink(ctx, l)
}

// first writes a frame before the link's writer runs.
func (l *link) first(f frame) error {
	b, err := encodeFrame(f)
	if err != nil {
		return err
	}
	_, err = l.conn.Write(b)
	return err
}

// dialRaw opens a stream connection to an address, before TLS.
func (g *Gossip) dialRaw(ctx context.Context, addr string) (net.Conn, error) {
	if g.o.net.allow != nil {
		if ap, err := netip.ParseAddrPort(addr); err == nil && !g.o.net.allow(ap.Addr()) {
			return nil, fmt.Errorf("dial %s: %w", addr, errBlocked)
		}
	}
	raw, err := g.o.net.dialFrom(ctx, g.o.Bind, addr)
	if err != nil {
		return nil, err
	}
	if g.o.net.wrap != nil {
		raw = g.o.net.wrap(raw)
	}
	return raw, nil
}

// connect opens a connection to an address and returns the link that came of
// it, which serves in a goroutine of its own.
func (g *Gossip) connect(ctx context.Context, addr string) (*link, error) {
	hctx, cancel := context.WithTimeout(ctx, g.t.handshake)
	defer cancel()
	raw, err := g.dialRaw(hctx, addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(hctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw.SetDeadline(time.Now().Add(g.t.handshake))
	conn := g.o.net.client(raw, tlsConfig(g.secrets.Load().cert, alpnSync))
	if err := conn.HandshakeContext(hctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake with %s: %w: is that nodenet's sync port?", addr, err)
	}
	id, err := g.secrets.Load().verify(conn.ConnectionState())
	if err != nil {
		r := g.secretRefusal(id, err)
		if g.toldRetired(conn, err) {
			r = g.ownRetired(id)
		}
		g.refuse(conn, addr, id, r)
		return nil, &RefusedError{r.Code, r.Reason}
	}
	if g.linked(id, addr) {
		// Two names of one node: the connection that is there stays.
		conn.Close()
		return nil, &RefusedError{codeDuplicate, "there is a connection already"}
	}
	l, err := g.greet(hctx, conn, id, addr)
	if err != nil {
		conn.Close()
		if re, ok := errors.AsType[*RefusedError](err); ok {
			g.noteRefusal(addr, id, re)
		}
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

// greet exchanges hellos as the caller.
func (g *Gossip) greet(ctx context.Context, conn secureConn, id state.NodeID, addr string) (*link, error) {
	b, err := encodeFrame(g.hello(id))
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(b); err != nil {
		return nil, fmt.Errorf("send hello to %s: %w", addr, err)
	}
	f, _, err := readFrame(conn, maxEarly)
	if err != nil {
		return nil, fmt.Errorf("read hello of %s: %w", addr, err)
	}
	switch f := f.(type) {
	case *refuse:
		return nil, g.heed(&RefusedError{f.Code, printable(f.Reason)})
	case *hello:
		r := g.check(id, f)
		if r == nil {
			r = g.contest(ctx, id, f)
		}
		if r != nil {
			if b, err := encodeFrame(r); err == nil {
				conn.Write(b)
			}
			return nil, &RefusedError{r.Code, r.Reason}
		}
		l := g.newLink(conn, id, f, addr, true)
		if !g.addLink(l) {
			return nil, &RefusedError{codeDuplicate, "there is a connection already"}
		}
		return l, nil
	}
	return nil, fmt.Errorf("read hello of %s: another frame came first", addr)
}

// check decides whether a verified peer belongs to us, and learns from its hello.
func (g *Gossip) check(id state.NodeID, h *hello) *refuse {
	h.Name, h.Cluster = printable(h.Name), printable(h.Cluster)
	h.ClusterID, h.RingID = printable(h.ClusterID), printable(h.RingID)
	h.Addr = printable(h.Addr)
	switch {
	case h.Proto != protoVersion:
		return &refuse{codeProto, fmt.Sprintf("%s speaks version %d of the sync protocol, %s version %d: upgrade the older one",
			g.o.Name, protoVersion, h.Name, h.Proto)}
	case h.Node != id:
		return &refuse{codeSecret, "the hello names another node than the certificate"}
	case id == g.self && bytes.Equal(h.Instance, g.instance):
		return &refuse{codeSelf, "that is this node itself"}
	case id == g.self:
		return g.twin(h)
	}
	return g.learned(h)
}

func (g *Gossip) secretRefusal(id state.NodeID, err error) *refuse {
	if errors.Is(err, errNotSigned) {
		return &refuse{codeSecret, fmt.Sprintf("%s (%s) and node %s do not hold the same cluster secret: "+
			"copy the secret file of the right cluster, or join with `nodectl join TOKEN`", g.o.Name, g.self.Short(), id.Short())}
	}
	if re, ok := errors.AsType[*retiredError](err); ok {
		return &refuse{codeRetired, fmt.Sprintf("node %s holds the cluster secret that was retired at %s: on that node, copy the secret file of a member, "+
			"or run `nodectl join TOKEN` and start the daemon again", id.Short(), re.at.UTC().Format(time.RFC3339))}
	}
	return &refuse{codeSecret, "peer not verified: " + err.Error()}
}

// toldRetired asks a peer that does not hold our secret whether it knows why.
// Nothing proves who it is: only the code of its refusal is used, never its words.
func (g *Gossip) toldRetired(conn net.Conn, err error) bool {
	if !errors.Is(err, errNotSigned) {
		return false
	}
	conn.SetReadDeadline(time.Now().Add(min(time.Second, g.t.handshake)))
	f, _, err := readFrame(conn, maxEarly)
	r, ok := f.(*refuse)
	return err == nil && ok && r.Code == codeRetired
}

// ownRetired is what a node says that was away while the secret was rotated.
func (g *Gossip) ownRetired(id state.NodeID) *refuse {
	return &refuse{codeRetired, fmt.Sprintf("node %s says that the cluster secret of %s was retired while it was away (rotated with `nodectl secret rotate`): "+
		"copy the secret file of a member to this node, or stop the daemon, run `nodectl join TOKEN` and start it again", id.Short(), g.o.Name)}
}

// refuse tells the peer why, keeps the reason for status, and closes.
func (g *Gossip) refuse(conn net.Conn, addr string, id state.NodeID, r *refuse) {
	g.met.refused.WithLabelValues(r.Code).Inc()
	g.noteRefusal(addr, id, &RefusedError{r.Code, r.Reason})
	if b, err := encodeFrame(r); err == nil {
		conn.Write(b)
	}
	drain(conn, min(time.Second, g.t.handshake))
}

// noteRefusal keeps and, once a minute, logs a refusal by either side.
func (g *Gossip) noteRefusal(addr string, id state.NodeID, r *RefusedError) {
	if quiet(r.Code) {
		return
	}
	now := g.now()
	g.mu.Lock()
	if len(g.refusals) >= 256 {
		for k, v := range g.refusals {
			if now.Sub(v.When) > time.Minute || len(g.refusals) >= 512 {
				delete(g.refusals, k)
			}
		}
	}
	if len(g.refusals) < 512 {
		g.refusals[addr] = Refusal{Addr: addr, Node: id, Reason: r.Reason, When: now}
	}
	g.mu.Unlock()
	if g.logRate.allow("refuse "+addr+r.Code, now) {
		g.log.Warn("peer refused", "addr", addr, "node", id, "reason", r.Reason)
	}
}
