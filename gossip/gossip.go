// Package gossip finds out which nodes are there (hashicorp/memberlist) and
// keeps their tables equal over a TLS stream of its own.
//
//	            UDP+TCP 7946                    TCP 7947, TLS 1.3
//	        ┌─ memberlist ─┐                ┌───── links ──────┐
//	probes ─┤ join, leave  │        frames ─┤ hello, ping      │
//	        └──────┬───────┘                │ root, digest …   ├─► replica ─► state.Store
//	               ▼                        │ push             │◄─ Feed ────────┘
//	            tracker ◄── signs of life ──┤ request/response ├─► Handlers
//	               │                        └──────────────────┘
//	               ▼
//	    state.Store.SetLiveness
//
// Fresh changes are pushed at once to a few peers; about every second digests
// are compared with a random peer, so that nothing that a push missed stays
// missing. Membership decides whether a node's records are used, never
// whether they exist.
//
// Whoever holds the cluster secret is trusted: it can write any record. A
// certificate binds a connection to a node ID, which is the hash of the node's key.
package gossip

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"nodenet/state"
)

const (
	protoVersion = 1
	// maxMesh is up to how many other nodes a link is kept to each.
	maxMesh = 8
	// maxHandlers bounds calls of others that run at the same time,
	// peerHandlers those of one peer.
	maxHandlers  = 48
	peerHandlers = 32
)

// Gossip is one node's part in the cluster. Its methods are safe for
// concurrent use; those that need the network work while Run runs.
type Gossip struct {
	o        Options
	t        timings
	log      *slog.Logger
	now      func() time.Time
	self     state.NodeID
	store    *state.Store
	secrets  atomic.Pointer[secrets]
	instance []byte
	began    uint64 // epoch at the start; see clone.go
	started  int64
	clones   clones
	rep      replica
	encoded  encoded
	met      *metrics
	tokens   *tokens

	early    *gate
	handlers chan struct{}
	joinRate *rate.Limiter
	logRate  logLimiter

	synced     chan struct{}
	syncedOnce sync.Once
	met1       chan struct{} // closed at the first hello
	met1Once   sync.Once
	named      chan struct{} // closed when the cluster ID is known
	running    atomic.Bool
	wakeDial   chan struct{}
	wakeLive   chan struct{}
	wakeSave   chan struct{}
	wakeKeys   chan struct{}

	ringMu     sync.Mutex // one change of secrets at a time
	memberKeys *memberlist.Keyring
	fileStat   fileStat     // of the secret file when it was last read; with ringMu
	fileNote   atomic.Value // string: what is wrong with it
	rotating   atomic.Bool  // this node drives a rotation

	wg sync.WaitGroup // connections

	mu       sync.Mutex
	cluster  *Cluster
	ctx      context.Context // of Run; nil before
	links    map[state.NodeID]*link
	peers    map[state.NodeID]*peerInfo
	targets  map[string]*target
	known    map[netip.Addr]bool // addresses of nodes, and of whom we are to join
	refusals map[string]Refusal
	track    *tracker
	members  *memberlistNode
	held     uint64 // highest epoch that a peer holds of us
	heard    bool   // a peer was heard since start
	syncPort uint16 // that we really listen on
}

// peerInfo is what is remembered of a node beyond one connection.
type peerInfo struct {
	name      string
	addr      netip.Addr // advertised
	gossip    uint16
	sync      uint16
	heard     time.Time // monotonic: last frame
	lastSync  time.Time
	in, out   uint64
	lastError string
	joinAt    time.Time // not before: next try to bring it into memberlist
	joinWait  time.Duration
	vetted    []byte // instance that nobody contested, when asked last
	vettedAt  time.Time
}

// New checks the options and prepares a Gossip. It opens no socket.
func New(o Options) (*Gossip, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("set up gossip: %w", err)
	}
	o.GossipPort, o.SyncPort = or(o.GossipPort, DefaultGossipPort), or(o.SyncPort, DefaultSyncPort)
	if !o.Advertise.IsValid() {
		o.Advertise = o.Bind
	}
	g := &Gossip{
		o: o, t: o.timings(), log: o.Logger, now: o.Now, self: o.Identity.ID, store: o.Store,
		instance: make([]byte, 16),
		handlers: make(chan struct{}, maxHandlers),
		joinRate: rate.NewLimiter(2, 10),
		synced:   make(chan struct{}), met1: make(chan struct{}), named: make(chan struct{}),
		wakeDial: make(chan struct{}, 1), wakeLive: make(chan struct{}, 1), wakeSave: make(chan struct{}, 1), wakeKeys: make(chan struct{}, 1),
		cluster: o.Cluster.clone(), links: map[state.NodeID]*link{}, peers: map[state.NodeID]*peerInfo{},
		targets: map[string]*target{}, refusals: map[string]Refusal{}, clones: newClones(),
	}
	rand.Read(g.instance) // never fails, see crypto/rand
	g.early = newGate(earlyConns, g.isKnown)
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.now == nil {
		g.now = time.Now
	}
	if err := g.openSecrets(); err != nil {
		return nil, fmt.Errorf("set up gossip: %w", err)
	}
	g.track = newTracker(g.self, g.t, time.Now())
	g.rep.tables, g.rep.budget, g.rep.fresh = o.Store, o.budget, g.fresh
	var err error
	if g.tokens, err = loadTokens(o.StateDir); err != nil {
		// Losing them costs a new token, not starting costs the node.
		g.log.Error("join tokens issued so far are void", "err", err)
	}
	g.met = newMetrics(g)
	if o.Registry != nil {
		if err := o.Registry.Register(g.met); err != nil {
			return nil, fmt.Errorf("set up gossip: register metrics: %w", err)
		}
	}
	// Learned so far: what we wrote before, and the clock. Hellos raise it.
	stored := o.Store.Snapshot().Head(g.self).Mark.Epoch
	o.Store.SetEpoch(max(stored+1, uint64(max(0, g.now().Unix()))))
	g.began, g.started = o.Store.Epoch(), g.now().UnixMicro()
	if g.cluster.ID != "" {
		close(g.named)
	}
	if g.alone() {
		g.markSynced()
	}
	return g, nil
}

// alone reports whether there is nobody to sync with by design. Join lists
// do not count for the node that made the cluster: it may be the first one up.
func (g *Gossip) alone() bool {
	c := g.Cluster()
	if len(c.Peers) > 0 || !c.Bootstrap && len(g.o.Join)+len(c.Seeds) > 0 {
		return false
	}
	for r, n := range state.All[state.Node](g.store.Snapshot()) {
		if r.ID.Owner != g.self && !n.Left {
			return false
		}
	}
	return true
}

// Run takes part in the cluster until ctx ends. It does not leave it: a
// restart is no leave. Only a port that cannot be opened makes it fail, and
// another machine with this node's key: then the error is ErrClone.
func (g *Gossip) Run(ctx context.Context) error {
	if !g.running.CompareAndSwap(false, true) {
		return errors.New("run gossip: it ran already")
	}
	ln, err := g.o.net.listenOn(ctx, g.o.Bind, g.o.SyncPort)
	if err != nil {
		return fmt.Errorf("listen on sync port %d: %w: is another nodenet running, or is the address not up yet?", g.o.SyncPort, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.mu.Lock()
	g.ctx = ctx
	g.syncPort = uint16(ln.Addr().(*net.TCPAddr).Port)
	g.mu.Unlock()

	if g.Cluster().Bootstrap {
		t := time.AfterFunc(g.t.firstWait, g.markSynced)
		defer t.Stop()
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { <-ctx.Done(); ln.Close(); return nil })
	eg.Go(func() error { return g.accept(ctx, ln) })
	eg.Go(func() error { return g.dialLoop(ctx) })
	eg.Go(func() error { return g.memberLoop(ctx) })
	eg.Go(func() error { return g.liveLoop(ctx) })
	eg.Go(func() error { return g.pushLoop(ctx) })
	eg.Go(func() error { return g.syncLoop(ctx) })
	eg.Go(func() error { return g.saveLoop(ctx) })
	eg.Go(func() error { return g.keyLoop(ctx) })
	eg.Go(func() error { return g.cloneLoop(ctx) })
	err = eg.Wait()
	g.mu.Lock()
	links := g.allLinks()
	g.mu.Unlock()
	for _, l := range links {
		l.close(nil)
	}
	g.wg.Wait()
	return err
}

// Synced is closed after the first full sync with any peer, or at once when
// there is nobody to sync with by design: no other node is known. The node that
// made the cluster waits for those it knows of for two SyncIntervals only: it
// must be able to start alone, but should hear first what they hold of it.
func (g *Gossip) Synced() <-chan struct{} { return g.synced }

func (g *Gossip) markSynced() {
	g.syncedOnce.Do(func() {
		// Who once was synced never waits for peers again: not before the
		// disk holds what they told.
		if err := g.store.Flush(); err != nil {
			g.log.Error("tables not saved", "err", err)
		}
		g.mu.Lock()
		if !g.cluster.Synced && !g.cluster.Bootstrap && g.cluster.ID != "" {
			c := g.cluster.clone()
			c.Synced = true
			if err := g.save(c); err != nil {
				g.log.Error("cluster not saved", "err", err)
			}
			g.cluster = c
		}
		g.mu.Unlock()
		close(g.synced)
		g.log.Info("tables synced")
	})
}

// fresh reports that this node has never held the cluster's tables: being
// equal to it proves nothing.
func (g *Gossip) fresh() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.cluster.Bootstrap && !g.cluster.Synced
}

// save writes the cluster file; g.mu is held.
func (g *Gossip) save(c *Cluster) error {
	if g.o.StateDir == "" {
		return nil
	}
	return c.Save(g.o.StateDir)
}

// Cluster returns what is known of the cluster now; the ID is empty until a
// peer told it.
func (g *Gossip) Cluster() Cluster {
	g.mu.Lock()
	defer g.mu.Unlock()
	return *g.cluster.clone()
}

// HighestEpoch returns the highest epoch of this node that a peer is known to
// hold, 0 when none said so. Gossip itself raises the store's epoch above it
// until the first own write; wait for Synced, or a second or two, before writing.
func (g *Gossip) HighestEpoch() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held
}

// learned takes in what a peer's hello says about us and about the cluster.
// It refuses a peer of another cluster.
func (g *Gossip) learned(h *hello) *refuse {
	g.mu.Lock()
	c := g.cluster.clone()
	switch {
	case c.ID == "" && h.ClusterID == "":
		g.mu.Unlock()
		return &refuse{codeNone, fmt.Sprintf("neither %s nor %s belongs to a cluster yet: run `nodectl init` on one node, the others join it", g.o.Name, h.Name)}
	case c.ID != "" && h.ClusterID != "" && c.ID != h.ClusterID:
		g.mu.Unlock()
		return &refuse{codeCluster, fmt.Sprintf("%s belongs to %s, %s to %s: they never merge; "+
			"remove cluster.json and the tables in the state directory of the node that should move, then join it with a token",
			g.o.Name, label(c.Name, c.ID), h.Name, label(h.Cluster, h.ClusterID))}
	case c.RingID != "" && h.RingID != "" && c.RingID != h.RingID:
		g.mu.Unlock()
		return &refuse{codeRing, fmt.Sprintf("%s gives out addresses from ring %s, %s from ring %s: one of them was restored or set up apart; "+
			"remove cluster.json and the tables in the state directory of one, then join it with a token", g.o.Name, c.RingID, h.Name, h.RingID)}
	}
	adopt := c.ID == "" || c.RingID == "" && h.RingID != ""
	if adopt {
		if c.Name != "" && h.Cluster != "" && c.Name != h.Cluster && c.ID == "" {
			g.log.Warn("the cluster has another name than the Nodefile gives", "configured", c.Name, "cluster", h.Cluster)
		}
		first := c.ID == ""
		c.ID, c.RingID = or(c.ID, h.ClusterID), or(c.RingID, h.RingID)
		c.Name = or(h.Cluster, c.Name)
		for _, s := range g.o.Join {
			if !slices.Contains(c.Seeds, s) {
				c.Seeds = append(c.Seeds, s)
			}
		}
		if err := g.save(c); err != nil {
			g.mu.Unlock()
			g.log.Error("cluster not saved", "err", err)
			return &refuse{codeBusy, g.o.Name + " cannot save what it learned of the cluster: see its log"}
		}
		g.cluster = c
		if first {
			close(g.named)
			g.log.Info("joined cluster", "cluster", c.Name, "id", c.ID, "ring", c.RingID, "peer", h.Name)
		}
	}
	g.held = max(g.held, h.Held)
	g.heard = true
	g.mu.Unlock()

	if h.Held >= g.store.Epoch() && h.Held < 1<<62 {
		g.store.SetEpoch(h.Held + 1)
	}
	g.met1Once.Do(func() { close(g.met1) })
	return nil
}

// hello makes our hello for a peer.
func (g *Gossip) hello(to state.NodeID) *hello {
	held := g.store.Snapshot().Head(to).Mark.Epoch
	g.mu.Lock()
	defer g.mu.Unlock()
	return &hello{
		Proto: protoVersion, ClusterID: g.cluster.ID, Cluster: g.cluster.Name, RingID: g.cluster.RingID,
		Node: g.self, Name: g.o.Name, Instance: g.instance, Epoch: g.store.Epoch(), Held: max(held, g.track.epoch(to)),
		Addr: g.o.Advertise.String(), GossipPort: g.o.GossipPort, SyncPort: g.syncPort, Bootstrap: g.cluster.Bootstrap,
		Began: g.began, Started: g.started,
	}
}

// hostPort completes an address with a default port.
func hostPort(s string, port uint16) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	if _, _, err := net.SplitHostPort(s); err == nil {
		return s
	}
	return net.JoinHostPort(s, strconv.Itoa(int(port)))
}

// saveLoop keeps the peers' addresses on disk, so that a node that starts
// finds the others even when its seeds are gone.
func (g *Gossip) saveLoop(ctx context.Context) error {
	tick := time.NewTicker(g.t.persist)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			g.savePeers()
			return nil
		case <-tick.C:
			g.savePeers()
		case <-g.wakeSave:
			g.savePeers()
		}
	}
}

func (g *Gossip) savePeers() {
	addrs, gone := g.peerAddrs(), g.leftAddrs()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(addrs) == 0 {
		// Nobody heard of yet is no reason to forget; that they left is.
		addrs = slices.DeleteFunc(slices.Clone(g.cluster.Peers), func(a string) bool { return gone[a] })
	}
	if g.cluster.ID == "" || slices.Equal(addrs, g.cluster.Peers) {
		return
	}
	c := g.cluster.clone()
	c.Peers = addrs
	if err := g.save(c); err != nil {
		if g.logRate.allow("save", g.now()) {
			g.log.Error("peer addresses not saved", "err", err)
		}
		return
	}
	g.cluster = c
}

// wake signals a channel of capacity 1.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// drain reads and forgets a bounded amount, so that our last frame is not
// lost to a reset.
func drain(c net.Conn, d time.Duration) {
	if t, ok := c.(*tls.Conn); ok {
		t.CloseWrite()
	}
	c.SetDeadline(time.Now().Add(d))
	io.CopyN(io.Discard, c, 2*maxEarly)
	c.Close()
}

// logLimiter lets one message of each key pass a minute. The zero value is
// ready; it is safe for concurrent use.
type logLimiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (l *logLimiter) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.last[key]; ok && now.Sub(t) < time.Minute && !now.Before(t) {
		return false
	}
	if l.last == nil || len(l.last) > 1024 {
		l.last = map[string]time.Time{}
	}
	l.last[key] = now
	return true
}
