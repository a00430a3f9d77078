package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"nodenet/state"
)

// herd is a large cluster: every node runs the real Gossip (dialing, hellos,
// links, pings, pushes, comparisons, liveness) over a simNet and plainConns.
// Its nodes know one another from their disks, as after a power cut, and
// membership is scripted: memberlist's own joining is not what is measured, and
// a thousand of it would take most of the time. With real membership a herd of
// some tens is a whole cluster.
type herd struct {
	t     testing.TB
	net   *simNet
	rng   *rand.Rand
	nodes []*herdNode
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

type herdNode struct {
	id    *Identity
	addr  netip.Addr
	host  *simHost
	store *state.Store
	g     *Gossip
	seq   int
}

type herdOptions struct {
	nodes      int
	seed       uint64
	membership bool // real memberlist
	edit       func(*Options)
}

// newHerd starts a cluster of equal nodes. It must be called in a bubble.
func newHerd(t testing.TB, o herdOptions) *herd {
	h := &herd{t: t, net: newSimNet(o.seed), rng: rand.New(rand.NewPCG(o.seed, 1))}
	secret := sha256.Sum256(fmt.Appendf(nil, "herd %d", o.seed))
	first := NewCluster("herd")
	var recs []state.Record
	for i := range o.nodes {
		k := sha256.Sum256(fmt.Appendf(nil, "node %d of herd %d", i, o.seed))
		n := &herdNode{id: identity(ed25519.NewKeyFromSeed(k[:])), addr: netip.AddrFrom4([4]byte{10, byte((i + 1) >> 16), byte((i + 1) >> 8), byte(i + 1)})}
		s, err := state.NewStore(herdStore(n, nil))
		if err != nil {
			t.Fatal(err)
		}
		h.write(s, state.Put(state.Owner, state.KindNode, "self", state.Node{
			Name: fmt.Sprintf("node%d", i), Advertise: n.addr, PublicKey: n.id.Public(), VTEPMAC: n.id.ID.VTEPMAC(),
		}))
		recs = append(recs, s.Snapshot().Delta(n.id.ID, state.Mark{}, 0).Records...)
		s.Close()
		h.nodes = append(h.nodes, n)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	for _, n := range h.nodes {
		var err error
		if n.store, err = state.NewStore(herdStore(n, slices.Clone(recs))); err != nil {
			t.Fatal(err)
		}
		n.host = h.net.host(n.addr)
		sockets := n.host.network()
		sockets.secure, sockets.uncompressed = newPlainConn, true
		if !o.membership {
			sockets.scripted = h.script
		}
		c := first.clone()
		c.Synced, c.Bootstrap = true, false
		opts := Options{Identity: n.id, Cluster: c, Secret: secret[:], Store: n.store, Name: n.addr.String(), Bind: n.addr, net: sockets}
		if o.edit != nil {
			o.edit(&opts)
		}
		if n.g, err = New(opts); err != nil {
			t.Fatal(err)
		}
		h.wg.Add(1)
		go func() {
			defer h.wg.Done()
			// Not all within one tick: no cluster starts like that.
			time.Sleep(time.Duration(h.hash(n) % uint64(time.Second)))
			if err := n.g.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		}()
	}
	return h
}

// herdStore signs and verifies, but brings no signatures from disk: a thousand
// nodes verifying a thousand each would be what takes the time. The values of
// the records are decoded once for all nodes.
func herdStore(n *herdNode, recs []state.Record) state.Options {
	return state.Options{Self: n.id.ID, Key: n.id.Key, Records: recs}
}

// hash spreads the nodes' timers.
func (h *herd) hash(n *herdNode) uint64 {
	var v uint64
	for _, c := range []byte(n.id.ID) {
		v = v*1099511628211 + uint64(c)
	}
	return v
}

// script says once that every node is up.
func (h *herd) script(ctx context.Context, g *Gossip) error {
	for _, n := range h.nodes {
		if n.id.ID != g.self {
			g.memberUp(&memberlist.Node{Name: memberName(n.id.ID, 1), Addr: net.IP(n.addr.AsSlice()), Port: DefaultGossipPort})
		}
	}
	<-ctx.Done()
	return nil
}

func (h *herd) close() {
	h.stop()
	h.wg.Wait()
	for _, n := range h.nodes {
		n.store.Close()
	}
	time.Sleep(time.Minute) // what memberlist leaves behind
}

func (h *herd) write(s *state.Store, ops ...state.Op) {
	if _, err := s.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		h.t.Errorf("write: %v", err)
	}
}

// endpoint writes one endpoint on a node, as an attachment does.
func (h *herd) endpoint(n *herdNode) state.Mark {
	n.seq++
	id := fmt.Sprintf("%s-%d", n.addr, n.seq)
	h.write(n.store, state.Put(state.Owner, state.KindEndpoint, id, herdEndpoint(id, n.seq)))
	return n.store.Snapshot().Head(n.id.ID).Mark
}

func herdEndpoint(id string, i int) state.Endpoint {
	return state.Endpoint{
		ID: id, Network: "pods", Namespace: "default", Name: "web-" + id, Labels: map[string]string{"app": "web"}, Kind: state.EndpointCNI, Ready: true,
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})},
	}
}

// meshed waits until every node has links enough.
func (h *herd) meshed(limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if !slices.ContainsFunc(h.nodes, func(n *herdNode) bool { return len(n.g.someLinks()) < min(maxMesh, len(h.nodes)-1) }) {
			return true
		}
	}
	return false
}

// degree returns the mean number of links of a node.
func (h *herd) degree() float64 {
	k := 0
	for _, n := range h.nodes {
		k += len(n.g.someLinks())
	}
	return float64(k) / float64(len(h.nodes))
}

// spread writes one endpoint and returns after what time each node held it,
// sorted; those that do not within the limit are left out.
func (h *herd) spread(limit time.Duration) []time.Duration {
	owner := h.nodes[h.rng.IntN(len(h.nodes))]
	began := time.Now()
	mark := h.endpoint(owner)
	var out []time.Duration
	missing := slices.Clone(h.nodes)
	for time.Since(began) < limit && len(missing) > 0 {
		missing = slices.DeleteFunc(missing, func(n *herdNode) bool {
			if n.store.Snapshot().Head(owner.id.ID).Mark.Compare(mark) < 0 {
				return false
			}
			out = append(out, time.Since(began))
			return true
		})
		time.Sleep(time.Millisecond)
	}
	return out
}

// equal reports that all nodes hold the same.
func (h *herd) equal() bool {
	want := rootOf(h.nodes[0].store.Snapshot())
	return !slices.ContainsFunc(h.nodes[1:], func(n *herdNode) bool { return string(rootOf(n.store.Snapshot())) != string(want) })
}

// lossy loses packets, and delays a stream's segments as retransmissions do.
func (h *herd) lossy(p float64) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.net.loss = p
	for _, path := range h.net.paths {
		path.loss = p
	}
}

// split cuts the first half of the nodes off from the others, or heals that.
func (h *herd) split(yes bool) {
	half := len(h.nodes) / 2
	h.net.edit(func(path func(from, to netip.Addr) *simPath) {
		for _, a := range h.nodes[:half] {
			for _, b := range h.nodes[half:] {
				for _, p := range []*simPath{path(a.addr, b.addr), path(b.addr, a.addr)} {
					p.noPackets, p.noTCP = yes, yes
				}
			}
		}
	})
}
