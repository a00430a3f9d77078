package gossip

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// earlyConns bounds connections to the sync port that have not proved
	// anything yet; so many again are for addresses of known nodes alone.
	earlyConns = 256
	// memberConns bounds streams to the membership's port likewise.
	memberConns = 64
	// perSource bounds those of one source: an address, of IPv6 a /64.
	perSource = 16
	// minStay is how long a connection may take before it can be given up
	// for another: a TLS handshake over any sane path.
	minStay = 250 * time.Millisecond

	// What memberlist may be sent on one stream. A push/pull of 1000 nodes has
	// about 200 kB; who is not known can cost no more memory than that of a large cluster.
	memberBytes      = 16 << 20
	memberBytesEarly = 1 << 20
)

// gate bounds what connections cost before their other side has proved to be
// of the cluster. Addresses of known nodes have room of their own, so that no
// flood of strangers keeps a peer out. Among strangers, when the room is full,
// a newcomer takes the place of the oldest connection of the source that has
// most, or of one that has stood long enough: a flood gets its share and not
// more. It is safe for concurrent use.
type gate struct {
	limit int
	known func(netip.Addr) bool // nil: nobody is

	mu        sync.Mutex
	strangers room
	peers     room
}

// room is one half of a gate's places.
type room struct {
	passes   map[*pass]struct{}
	bySource map[netip.Addr]int
}

// pass is a place in a gate, held by one connection.
type pass struct {
	gate    *gate
	room    *room
	source  netip.Addr
	conn    net.Conn
	since   time.Time
	trusted bool // by its address
	gone    atomic.Bool
}

func newGate(limit int, known func(netip.Addr) bool) *gate {
	return &gate{limit: limit, known: known, strangers: newRoom(), peers: newRoom()}
}

func newRoom() room { return room{map[*pass]struct{}{}, map[netip.Addr]int{}} }

// sourceOf is what counts as one source.
func sourceOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// admit gives a connection a place, or nil: there is none for it.
func (g *gate) admit(c net.Conn, remote netip.Addr) *pass {
	p := &pass{gate: g, source: sourceOf(remote), conn: c, since: time.Now()}
	p.trusted = g.known != nil && g.known(remote)
	g.mu.Lock()
	defer g.mu.Unlock()
	p.room = &g.strangers
	if p.trusted {
		p.room = &g.peers
	}
	r := p.room
	if r.bySource[p.source] >= perSource {
		return nil
	}
	if len(r.passes) >= g.limit {
		out := r.victim(p)
		if p.trusted || out == nil {
			return nil
		}
		r.drop(out)
		out.conn.Close()
	}
	r.passes[p] = struct{}{}
	r.bySource[p.source]++
	return p
}

// victim picks the connection that makes place for a newcomer, or nil.
func (r *room) victim(p *pass) (out *pass) {
	most := r.bySource[p.source] + 1
	for o := range r.passes {
		n := r.bySource[o.source]
		switch {
		case n > most, n == most && out == nil, n == most && o.since.Before(out.since):
			most, out = n, o
		}
	}
	if out != nil && most > 1 {
		return out
	}
	out = nil
	for o := range r.passes {
		if p.since.Sub(o.since) >= minStay && (out == nil || o.since.Before(out.since)) {
			out = o
		}
	}
	return out
}

func (r *room) drop(p *pass) {
	if p.gone.Swap(true) {
		return
	}
	delete(r.passes, p)
	if r.bySource[p.source]--; r.bySource[p.source] <= 0 {
		delete(r.bySource, p.source)
	}
}

// done gives the place back; it may be called again.
func (p *pass) done() {
	p.gate.mu.Lock()
	p.room.drop(p)
	p.gate.mu.Unlock()
}

// held returns how many places are taken.
func (g *gate) held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.strangers.passes) + len(g.peers.passes)
}

var errTooMuch = errors.New("more than one stream may carry")

// gatedConn is a connection that gives its place back when it is closed, and
// that may carry so many bytes in.
type gatedConn struct {
	net.Conn
	pass *pass
	left int
}

func (c *gatedConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooMuch
	}
	if len(b) > c.left {
		b = b[:c.left]
	}
	n, err := c.Conn.Read(b)
	c.left -= n
	return n, err
}

func (c *gatedConn) Close() error {
	c.pass.done()
	return c.Conn.Close()
}

// isKnown reports whether an address is that of a node that we know of, or
// would dial.
func (g *Gossip) isKnown(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known[a.Unmap()]
}
