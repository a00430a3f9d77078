package ipam

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"nodenet/state"
)

// The IP plan of these tests: pods 10.0.0.0/26 in blocks of /29 (8 blocks of 5
// workload addresses), a later network "late" 10.1.0.0/27 in /29, services
// 10.9.0.0/28, node ports 30000-30015.
var (
	podsNet  = state.Network{Name: "pods", Prefix: pfx("10.0.0.0/26"), Block: 29, Overlay: state.OverlayVXLAN}
	lateNet  = state.Network{Name: "late", Prefix: pfx("10.1.0.0/27"), Block: 29, Overlay: state.OverlayVXLAN}
	vipRange = pfx("10.9.0.0/28")
	simSpecs = []Spec{NetworkSpec(podsNet), ServicesSpec(vipRange, resolver), NodePortsSpec(30000, 30015)}
	resolver = netip.MustParseAddr("10.9.0.10")
)

const ringID = "ring-1"

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

// nodeID returns a stable ID; IDs are not in the order of their numbers.
func nodeID(n int) state.NodeID {
	seed := sha256.Sum256(fmt.Appendf(nil, "node %d", n))
	return state.NodeIDFromKey(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
}

// faultLog keeps what was committed, and crashes when told to: from then on
// nothing more becomes durable until its node is opened again.
type faultLog struct {
	mu      sync.Mutex
	records map[state.ID]state.Record
	next    fault // for the next Commit
	crashed bool
}

type fault int

const (
	noFault     fault = iota
	crashBefore       // the batch is lost
	crashAfter        // the batch is durable, but nobody hears of it
)

var errCrash = errors.New("crash")

func (l *faultLog) Commit(batch []state.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.crashed || l.next == crashBefore {
		l.crashed = true
		return errCrash
	}
	for _, r := range batch {
		l.records[r.ID] = r
	}
	if l.next == crashAfter {
		l.crashed = true
		return errCrash
	}
	return nil
}

// simNode is a node of a simulated cluster.
type simNode struct {
	id    state.NodeID
	log   *faultLog
	store *state.Store
	alloc *Allocator
	epoch uint64
	left  bool
	down  bool // dead, perhaps forgotten
}

func (n *simNode) open(tb fatal) {
	n.epoch++
	n.log.mu.Lock()
	n.log.next, n.log.crashed = noFault, false
	recs := slices.Collect(maps.Values(n.log.records))
	n.log.mu.Unlock()
	s, err := state.NewStore(state.Options{Self: n.id, Epoch: n.epoch, Log: n.log, Records: wire(recs)})
	if err != nil {
		tb.Fatalf("open store: %v", err)
	}
	n.store, n.alloc = s, NewAllocator(s)
}

func (n *simNode) close() {
	n.alloc.Close()
	n.store.Close()
}

type fatal interface {
	Helper()
	Fatalf(string, ...any)
}

// cluster is simulated nodes and an asker between them.
type cluster struct {
	nodes []*simNode
	byID  map[state.NodeID]*simNode
	loss  func() loss // nil: nothing is lost
}

type loss int

const (
	noLoss loss = iota
	requestLost
	replyLost
)

var errLost = errors.New("timeout")

func newCluster(tb fatal, n int) *cluster {
	c := &cluster{byID: map[state.NodeID]*simNode{}}
	for i := range n {
		node := &simNode{id: nodeID(i), log: &faultLog{records: map[state.ID]state.Record{}}}
		node.open(tb)
		self := state.Node{Name: fmt.Sprint("n", i), Advertise: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), VTEPMAC: node.id.VTEPMAC()}
		if err := write(node.store, func(*state.Snapshot) ([]state.Op, error) {
			return []state.Op{state.Put(state.Owner, state.KindNode, "self", self)}, nil
		}); err != nil {
			tb.Fatalf("write node: %v", err)
		}
		c.nodes = append(c.nodes, node)
		c.byID[node.id] = node
	}
	return c
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		n.close()
	}
}

// reopen brings up again what crashed.
func (c *cluster) reopen(tb fatal) {
	for _, n := range c.nodes {
		// What a merge told to memory may still be on its way to the log.
		if _, err := n.store.Merge(nil, false); err != nil {
			tb.Fatalf("merge nothing: %v", err)
		}
		n.log.mu.Lock()
		crashed := n.log.crashed
		n.log.mu.Unlock()
		if crashed {
			n.close()
			n.open(tb)
		}
	}
}

// Ask implements Asker.
func (c *cluster) Ask(ctx context.Context, to state.NodeID, a Ask) ([]state.Record, error) {
	l := noLoss
	if c.loss != nil {
		l = c.loss()
	}
	if l == requestLost {
		return nil, errLost
	}
	b, err := state.Encode(a)
	if err != nil {
		return nil, err
	}
	var got Ask
	if err := state.Decode(b, &got); err != nil {
		return nil, err
	}
	n := c.byID[to]
	if n.down {
		return nil, errLost
	}
	recs, err := ServeAsk(ctx, n.store, n.id, ringID, got)
	if l == replyLost {
		return nil, errLost
	}
	return wire(recs), err
}

// wire returns records as they come from disk or a peer: bytes only.
func wire(recs []state.Record) []state.Record {
	out := make([]state.Record, len(recs))
	for i, r := range recs {
		out[i] = state.Record{ID: r.ID, Version: r.Version, Deleted: r.Deleted, Time: r.Time, Value: r.Value}
	}
	return out
}

// merge copies what from knows to to: of the shared records those that keep
// says, of each owner's at most limit (0: all).
func merge(tb fatal, from, to *simNode, keep func(int) bool, limit int) {
	tb.Helper()
	sn := from.store.Snapshot()
	var shared []state.Record
	for i := range state.NumBuckets {
		shared = append(shared, sn.Bucket(i)...)
	}
	picked := shared[:0]
	for i, r := range shared {
		if keep == nil || keep(i) {
			picked = append(picked, r)
		}
	}
	if _, err := to.store.Merge(picked, false); err != nil {
		tb.Fatalf("merge: %v", err)
	}
	for _, h := range sn.Heads() {
		if h.Owner == to.id {
			continue
		}
		d := sn.Delta(h.Owner, to.store.Snapshot().Head(h.Owner).Mark, limit)
		if _, err := to.store.MergeDelta(d); err != nil {
			tb.Fatalf("merge delta: %v", err)
		}
	}
}

// sync makes all nodes know everything.
func (c *cluster) sync(tb fatal) {
	tb.Helper()
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b {
				merge(tb, a, b, nil, 0)
			}
		}
	}
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b {
				merge(tb, a, b, nil, 0)
			}
		}
	}
}

// union returns the newest of everything that is durable anywhere, as one
// snapshot, and a function to close it.
func (c *cluster) union(tb fatal) (*state.Snapshot, func()) {
	tb.Helper()
	all := map[state.ID]state.Record{}
	for _, n := range c.nodes {
		n.log.mu.Lock()
		for id, r := range n.log.records {
			if old, ok := all[id]; !ok || state.Compare(id.Class, old.Version, r.Version) < 0 {
				all[id] = r
			}
		}
		n.log.mu.Unlock()
	}
	s, err := state.NewStore(state.Options{Self: nodeID(999), Records: slices.Collect(maps.Values(all))})
	if err != nil {
		tb.Fatalf("open union: %v", err)
	}
	return s.Snapshot(), func() { s.Close() }
}

func write(s *state.Store, fn func(*state.Snapshot) ([]state.Op, error)) error {
	_, err := s.Write(context.Background(), fn)
	return err
}

func found(tb fatal, n *simNode, specs ...Spec) {
	tb.Helper()
	if err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
		return Bootstrap(sn, n.id, ringID, specs), nil
	}); err != nil {
		tb.Fatalf("bootstrap: %v", err)
	}
}

// attach allocates an address for an endpoint and records it.
func attach(s *state.Store, id state.NodeID, allocate func(*state.Snapshot, state.NodeID, Request) (Grant, []state.Op, error), r Request) (Grant, error) {
	var g Grant
	err := write(s, func(sn *state.Snapshot) ([]state.Op, error) {
		var ops []state.Op
		var err error
		if g, ops, err = allocate(sn, id, r); err != nil {
			return nil, err
		}
		ep := state.Endpoint{ID: r.ID, Network: r.Network.Name, Namespace: r.Namespace, Name: r.Name, Addrs: []netip.Addr{g.Addr}, Kind: state.EndpointCNI, Ready: true, Created: r.Now.Unix()}
		return append(ops, state.Put(state.Owner, state.KindEndpoint, r.ID, ep)), nil
	})
	return g, err
}

// one is a cluster of one node that owns everything.
func one(t *testing.T, specs ...Spec) (*cluster, *simNode) {
	t.Helper()
	c := newCluster(t, 1)
	t.Cleanup(c.close)
	found(t, c.nodes[0], specs...)
	return c, c.nodes[0]
}
