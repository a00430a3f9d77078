package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nodenet/ipam"
	"nodenet/state"
)

// IP plan of the simulator: nodes 10.0.0.1 …, pods 10.244.0.0/20 in blocks of
// /27, services 10.96.0.0/24, node ports 30000-30127.
var (
	simPods  = state.Network{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/20"), Block: 27, Overlay: state.OverlayVXLAN}
	simVIPs  = netip.MustParsePrefix("10.96.0.0/24")
	simDNS   = netip.MustParseAddr("10.96.0.10")
	simSpecs = []ipam.Spec{ipam.NetworkSpec(simPods), ipam.ServicesSpec(simVIPs, simDNS), ipam.NodePortsSpec(30000, 30127)}
)

var errSimCrash = errors.New("crash")

// simLog is a disk: what was committed survives its node. A crash can be
// armed: the next commit is then lost, or kept without anybody hearing so.
type simLog struct {
	mu    sync.Mutex
	recs  map[state.ID]state.Record
	heads map[state.NodeID]state.Head
	dead  bool
	arm   int // 0 nothing, 1 crash before the next commit, 2 after it
}

func newSimLog() *simLog {
	return &simLog{recs: map[state.ID]state.Record{}, heads: map[state.NodeID]state.Head{}}
}

func (l *simLog) Commit(batch []state.Record) error { return l.CommitHeads(batch, nil) }

func (l *simLog) CommitHeads(batch []state.Record, heads []state.Head) error {
	return l.do(func() {
		for _, r := range batch {
			l.recs[r.ID] = simWire(r)
		}
		for _, h := range heads {
			l.heads[h.Owner] = h
		}
	})
}

func (l *simLog) Drop(ids []state.ID, heads []state.Head) error {
	return l.do(func() {
		for _, id := range ids {
			delete(l.recs, id)
		}
		for _, h := range heads {
			l.heads[h.Owner] = h
		}
	})
}

func (l *simLog) do(fn func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead || l.arm == 1 {
		l.dead = true
		return errSimCrash
	}
	fn()
	if l.arm == 2 {
		l.dead = true
		return errSimCrash
	}
	return nil
}

func (l *simLog) crash() {
	l.mu.Lock()
	l.dead = true
	l.mu.Unlock()
}

// clone is a backup of the disk.
func (l *simLog) clone() *simLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &simLog{recs: maps.Clone(l.recs), heads: maps.Clone(l.heads)}
}

// simWire is a record as it comes from disk: bytes only.
func simWire(r state.Record) state.Record {
	return state.Record{ID: r.ID, Version: r.Version, Deleted: r.Deleted, Time: r.Time, Value: r.Value}
}

// simNode is a node and what remains of it between its lives.
type simNode struct {
	sim     *sim
	i       int
	name    string
	addr    netip.Addr
	id      *Identity
	rng     *rand.Rand // the workload's
	skew    atomic.Int64
	log     *simLog
	cluster *Cluster
	text    *logBuf

	host   *simHost
	store  *state.Store
	g      *Gossip
	alloc  *ipam.Allocator
	cancel context.CancelFunc
	done   chan error
	work   sync.WaitGroup
	up     bool

	mustSync bool  // it waits for others, whatever it was
	mayFail  bool  // its Run may refuse to run
	err      error // what Run said at the end of its last life
	restored bool  // the disk was put back to an earlier day: it knows less than was acknowledged
	model    simModel
}

func (n *simNode) now() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) }

// sim is a cluster of simulated nodes inside one synctest bubble.
type sim struct {
	rolledBack bool // see doubled
	plain      bool // no TLS, see plainConn
	t          *testing.T
	seed       uint64
	net        *simNet
	rng        *rand.Rand // of the schedule
	secret     []byte
	ringID     string
	nodes      []*simNode
	began      time.Time
	working    atomic.Bool
	busy       atomic.Int64

	mu      sync.Mutex
	held    map[netip.Addr]string // who was told that it has the address
	vips    map[netip.Addr]string
	ports   map[uint16]string
	story   []string
	faults  []string
	counts  map[string]int
	healing time.Duration // longest time from heal to equal
}

func newSim(t *testing.T, seed uint64, size int) *sim {
	secret := sha256.Sum256(fmt.Appendf(nil, "secret %d", seed))
	s := &sim{
		t: t, seed: seed, net: newSimNet(seed), rng: rand.New(rand.NewPCG(seed, 0)), secret: secret[:], began: time.Now(),
		held: map[netip.Addr]string{}, vips: map[netip.Addr]string{}, ports: map[uint16]string{}, counts: map[string]int{},
	}
	first := NewCluster("sim")
	s.ringID = first.RingID
	for i := range size {
		k := sha256.Sum256(fmt.Appendf(nil, "node %d of %d", i, seed))
		n := &simNode{
			sim: s, i: i, name: fmt.Sprintf("n%d", i), addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}),
			id: identity(ed25519.NewKeyFromSeed(k[:])), rng: rand.New(rand.NewPCG(seed, uint64(i)+1)),
			log: newSimLog(), cluster: first, text: &logBuf{},
		}
		if i > 0 {
			n.cluster = &Cluster{Seeds: []string{"10.0.0.1"}}
		}
		n.model.init()
		s.nodes = append(s.nodes, n)
	}
	return s
}

// note adds a line to the story that a failure tells.
func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.story = append(s.story, fmt.Sprintf("%9.3fs  ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

// violated records a broken invariant. The run goes on: what follows may explain it.
func (s *sim) violated(format string, args ...any) {
	s.note("VIOLATED: "+format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) < 20 {
		s.faults = append(s.faults, fmt.Sprintf(format, args...))
	}
}

func (s *sim) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.faults) > 0
}

func (s *sim) count(what string) {
	s.mu.Lock()
	s.counts[what]++
	s.mu.Unlock()
}

// start begins a life of a node from what its disk holds.
func (n *simNode) start() {
	s := n.sim
	n.log.mu.Lock()
	n.log.dead, n.log.arm = false, 0
	recs, heads := slices.Collect(maps.Values(n.log.recs)), slices.Collect(maps.Values(n.log.heads))
	n.log.mu.Unlock()
	// A map's order would be another one at each replay.
	slices.SortFunc(recs, func(a, b state.Record) int { return bytes.Compare([]byte(a.ID.String()), []byte(b.ID.String())) })
	n.host = s.net.host(n.addr)
	var err error
	n.store, err = state.NewStore(state.Options{Self: n.id.ID, Key: n.id.Key, Log: n.log, Records: recs, Heads: heads, Clock: &state.Clock{Now: n.now}})
	if err != nil {
		s.t.Fatal(err)
	}
	if !n.restored {
		n.reopened()
	}
	n.restored = false
	n.alloc = ipam.NewAllocator(n.store)
	store, sockets := n.store, n.host.network()
	if s.plain {
		sockets.secure, sockets.uncompressed = newPlainConn, true
	}
	logger := slog.New(slog.DiscardHandler)
	if *simVerbose {
		logger = slog.New(slog.NewTextHandler(n.text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	n.g, err = New(Options{
		Identity: n.id, Cluster: n.cluster, Secret: s.secret, Store: n.store, Name: n.name, Bind: n.addr, Now: n.now,
		Logger: logger,
		Handlers: map[string]Handler{"ipam.ask": func(ctx context.Context, from state.NodeID, req []byte) ([]byte, error) {
			var q ipam.Ask
			if err := state.Decode(req, &q); err != nil {
				return nil, err
			}
			q.To = from
			out, err := ipam.ServeAsk(ctx, store, n.id.ID, s.ringID, q)
			if err != nil {
				return nil, err
			}
			s.count("asks served")
			return state.Encode(out)
		}, "sim.forget": func(_ context.Context, _ state.NodeID, req []byte) ([]byte, error) { return n.serveForget(req) }},
		net: sockets,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done, n.up = cancel, make(chan error, 1), true
	g, done := n.g, n.done
	go func() {
		err := g.Run(ctx)
		cancel() // as in the daemon: when one part ends, all do
		done <- err
	}()
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		n.toil(ctx)
	}()
}

// kill ends a node's life as a crash does: what the disk does not hold is lost.
func (n *simNode) kill(rst bool) {
	if !n.up {
		return
	}
	n.log.crash()
	n.host.kill(rst)
	n.end()
}

func (n *simNode) end() {
	n.cancel()
	if n.err = <-n.done; n.err != nil && !n.mayFail {
		n.sim.violated("%s: Run: %v", n.name, n.err)
	}
	n.work.Wait()
	c := n.g.Cluster()
	n.cluster = &c
	n.alloc.Close()
	n.store.Close()
	n.up = false
}

// close ends everything, and gives what memberlist leaves behind time to go.
func (s *sim) close() {
	for _, n := range s.nodes {
		if n.up {
			n.host.kill(false)
			n.end()
		}
	}
	time.Sleep(time.Minute)
}

// report fails the test with everything that explains the failure.
func (s *sim) report() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) == 0 {
		return
	}
	if name, ok := strings.CutPrefix(s.t.Name(), "TestSim/"); ok {
		flags := ""
		if *simRounds != simDefaultRounds {
			flags += fmt.Sprintf(" -sim.rounds=%d", *simRounds)
		}
		if *simTLS {
			flags += " -sim.tls"
		}
		s.t.Errorf("replay with: go test ./gossip/ -run '^TestSim$' -sim.seed=%s%s", name, flags)
	}
	for _, f := range s.faults {
		s.t.Error(f)
	}
	for _, l := range s.story {
		s.t.Log(l)
	}
	if *simVerbose {
		for _, n := range s.nodes {
			s.t.Logf("log of %s:\n%s", n.name, n.text)
		}
	}
}

// Ask implements ipam.Asker over gossip's stream.
func (n *simNode) Ask(ctx context.Context, to state.NodeID, q ipam.Ask) ([]state.Record, error) {
	req, err := state.Encode(q)
	if err != nil {
		return nil, err
	}
	resp, err := n.g.Call(ctx, to, "ipam.ask", req)
	if err != nil {
		return nil, err
	}
	var recs []state.Record
	return recs, state.Decode(resp, &recs)
}
