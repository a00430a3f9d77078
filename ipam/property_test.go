package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nodenet/state"
)

// TestCluster runs nodes that join, allocate, release, donate, leave and
// crash at any write, over a network that loses requests and replies and
// spreads records in part and in any order. After each step it looks at what
// is durable anywhere.
func TestCluster(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t, rapid.IntRange(2, 4).Draw(t, "nodes"))
		defer c.close()
		found(t, c.nodes[0], simSpecs...)
		m := &sim{cluster: c, acked: map[state.ID]netip.Addr{}, vips: map[string]state.VIP{}}
		t.Repeat(map[string]func(*rapid.T){
			"":          m.check,
			"allocate":  m.allocate,
			"allocates": m.allocateTogether,
			"release":   m.release,
			"service":   m.service,
			"merge":     m.merge,
			"grow":      m.grow,
			"ahead":     m.ahead,
			"crash":     m.crash,
			"leave":     m.leave,
			"die":       m.die,
			"forget":    m.forget,
			"return":    m.comeBack,
			"give way":  m.giveWay,
		})
	})
}

type sim struct {
	*cluster
	serial int
	acked  map[state.ID]netip.Addr // endpoints whose attach was acknowledged
	vips   map[string]state.VIP    // services whose allocation was
}

// node picks a node; half of the time it will crash at its next commit.
func (m *sim) node(t *rapid.T) *simNode {
	n := m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")]
	if n.left || n.down {
		t.Skip("left or dead")
	}
	f := rapid.SampledFrom([]fault{noFault, noFault, noFault, noFault, crashBefore, crashAfter}).Draw(t, "fault")
	n.log.mu.Lock()
	n.log.next = f
	n.log.mu.Unlock()
	m.loss = func() loss {
		return rapid.SampledFrom([]loss{noLoss, noLoss, noLoss, requestLost, replyLost}).Draw(t, "loss")
	}
	return n
}

func (m *sim) request(t *rapid.T) Request {
	m.serial++
	r := Request{
		Network: podsNet, RingID: ringID, ID: fmt.Sprintf("ep%d", m.serial), Namespace: "default", Now: time.Now(),
		Rest: rapid.SampledFrom([]time.Duration{-1, time.Hour}).Draw(t, "rest"),
	}
	if rapid.IntRange(0, 3).Draw(t, "late") == 0 {
		r.Network = lateNet
	}
	if rapid.IntRange(0, 4).Draw(t, "wanted") == 0 {
		r.Want = addrIn(r.Network.Prefix, rapid.IntRange(0, 63).Draw(t, "want"))
	}
	return r
}

func addrIn(p netip.Prefix, i int) netip.Addr {
	a := p.Addr()
	for range i {
		a = a.Next()
	}
	return a
}

// expected lists the errors that may end a step; everything else is a fault.
func expected(err error) bool {
	for _, e := range []error{ErrNeedSpace, ErrExhausted, ErrInUse, ErrNotOurs, ErrNoRing, errCrash, errLost, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return err == nil
}

func (m *sim) try(t *rapid.T, n *simNode, r Request, indexed bool) {
	allocate := Allocate
	if indexed {
		allocate = n.alloc.Allocate
	}
	g, err := attach(n.store, n.id, allocate, r)
	if need := (*NeedSpaceError)(nil); errors.As(err, &need) {
		if err = Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(r.Network), need.Want, m); err == nil {
			g, err = attach(n.store, n.id, allocate, r)
		}
	}
	if !expected(err) {
		t.Fatalf("allocate: %v", err)
	}
	if err == nil {
		m.acked[state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: n.id, Key: r.ID}] = g.Addr
	}
}

func (m *sim) allocate(t *rapid.T) {
	n, r := m.node(t), m.request(t)
	m.try(t, n, r, rapid.Bool().Draw(t, "indexed"))
	m.reopen(t)
}

// allocateTogether makes writes that share a group commit.
func (m *sim) allocateTogether(t *rapid.T) {
	n := m.node(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range 4 {
		r := m.request(t)
		allocate := n.alloc.Allocate
		if rapid.IntRange(0, 3).Draw(t, "pure") == 0 {
			allocate = Allocate
		}
		wg.Go(func() {
			g, err := attach(n.store, n.id, allocate, r)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				m.acked[state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: n.id, Key: r.ID}] = g.Addr
			}
		})
	}
	wg.Go(func() {
		a := Ask{Ring: "pods", RingID: ringID, To: m.nodes[(len(m.nodes)+1)%len(m.nodes)].id, Block: 29}
		if a.To != n.id {
			_, _ = ServeAsk(context.Background(), n.store, n.id, ringID, a)
		}
	})
	wg.Wait()
	m.reopen(t)
}

func (m *sim) release(t *rapid.T) {
	n := m.node(t)
	var ids []state.ID
	for rec := range state.All[state.Endpoint](n.store.Snapshot()) {
		if rec.ID.Owner == n.id {
			ids = append(ids, rec.ID)
		}
	}
	if len(ids) == 0 {
		t.Skip("no endpoints")
	}
	id := rapid.SampledFrom(ids).Draw(t, "endpoint")
	err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
		return n.alloc.Release(sn, n.id, id.Key, time.Now()), nil
	})
	if !expected(err) {
		t.Fatalf("release: %v", err)
	}
	delete(m.acked, id) // whether it was heard or not
	m.reopen(t)
}

func (m *sim) service(t *rapid.T) {
	n := m.node(t)
	m.serial++
	key := fmt.Sprintf("default/svc%d", m.serial)
	var v state.VIP
	once := func() error {
		return write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
			addr, err := AllocateVIP(sn, n.id, ringID, vipRange, []netip.Addr{resolver}, netip.Addr{})
			if err != nil {
				return nil, err
			}
			p1, err := AllocateNodePort(sn, n.id, ringID, 30000, 30015, 0)
			if err != nil {
				return nil, err
			}
			v = state.VIP{Addr: addr, NodePorts: map[string]uint16{"80/tcp": p1}}
			return []state.Op{state.Put(state.Cluster, state.KindVIP, key, v)}, nil
		})
	}
	err := once()
	for range 2 {
		if need := (*NeedSpaceError)(nil); errors.As(err, &need) {
			spec := simSpecs[1]
			if need.Ring == state.RingNodePorts {
				spec = simSpecs[2]
			}
			if err = Grow(context.Background(), n.store, n.id, ringID, spec, need.Want, m); err == nil {
				err = once()
			}
		}
	}
	if !expected(err) {
		t.Fatalf("service: %v", err)
	}
	if err == nil {
		m.vips[key] = v
	}
	m.reopen(t)
}

func (m *sim) merge(t *rapid.T) {
	from, to := m.node(t), m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "to")]
	if from == to || to.down {
		t.Skip("the same, or dead")
	}
	all := rapid.Bool().Draw(t, "all")
	mask := rapid.Uint64().Draw(t, "mask")
	keep := func(i int) bool { return all || mask>>(i%64)&1 == 1 }
	merge(t, from, to, keep, rapid.IntRange(0, 3).Draw(t, "limit"))
	m.reopen(t)
}

func (m *sim) grow(t *rapid.T) {
	n := m.node(t)
	var want netip.Prefix
	if rapid.Bool().Draw(t, "wanted") {
		want = netip.PrefixFrom(addrIn(podsNet.Prefix, 8*rapid.IntRange(0, 7).Draw(t, "block")), 29)
	}
	if err := Grow(context.Background(), n.store, n.id, ringID, NetworkSpec(podsNet), want, m); !expected(err) {
		t.Fatalf("grow: %v", err)
	}
	m.reopen(t)
}

func (m *sim) ahead(t *rapid.T) {
	n := m.node(t)
	err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
		return n.alloc.OpenAhead(sn, n.id, ringID, podsNet), nil
	})
	if !expected(err) {
		t.Fatalf("open ahead: %v", err)
	}
	m.reopen(t)
}

func (m *sim) crash(t *rapid.T) {
	n := m.node(t)
	n.close()
	n.open(t)
}

// leave hands everything of a node to another one. Its workloads are gone by then.
func (m *sim) leave(t *rapid.T) {
	n := m.node(t)
	if rapid.IntRange(0, 9).Draw(t, "really") != 0 {
		t.Skip("stays")
	}
	heir := m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "heir")]
	if heir == n || heir.left || heir.down {
		t.Skip("no heir")
	}
	err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
		var ops []state.Op
		for rec := range state.All[state.Endpoint](sn) {
			if rec.ID.Owner == n.id {
				ops = append(ops, state.Del(state.Owner, state.KindEndpoint, rec.ID.Key))
				delete(m.acked, rec.ID)
			}
		}
		return ops, nil
	})
	if err == nil {
		err = HandOver(context.Background(), n.store, n.id, ringID, heir.id, m)
	}
	if !expected(err) {
		t.Fatalf("leave: %v", err)
	}
	n.left = err == nil
	m.reopen(t)
}

// Take implements Heir.
func (m *sim) Take(_ context.Context, to state.NodeID, recs []state.Record) error {
	l := m.loss()
	if l == requestLost {
		return errLost
	}
	_, err := m.byID[to].store.Merge(wire(recs), true)
	if l == replyLost {
		return errLost
	}
	return err
}

// check is the invariant over all that is durable anywhere.
func (m *sim) check(t *rapid.T) {
	all, done := m.union(t)
	defer done()
	for _, spec := range append(simSpecs, NetworkSpec(lateNet)) {
		r := Resolve(all, spec.Ring, ringID)
		if r == nil {
			if spec.Ring == lateNet.Name {
				continue
			}
			t.Fatalf("ring %s is gone", spec.Ring)
		}
		at := spec.Prefix.Addr()
		for _, p := range r.Parts {
			if p.From != at || p.To.Compare(p.From) < 0 || p.Owner == "" || len(p.Contested) > 0 {
				t.Fatalf("ring %s: part %+v after %s", spec.Ring, p, at)
			}
			at = p.To.Next()
		}
		if at != lastAddr(spec.Prefix).Next() {
			t.Fatalf("ring %s ends at %s", spec.Ring, at)
		}
		for _, n := range m.nodes {
			if n.down {
				continue // what it believes counts when it is back
			}
			mine := Resolve(n.store.Snapshot(), spec.Ring, ringID)
			if mine == nil {
				continue
			}
			// Nothing is given out yet of what rests, so that it does no harm
			// not to have heard of it.
			rests := normal(r.quarantine(time.Now()))
			if extra := subtract(subtract(mine.owned(n.id), r.owned(n.id)), rests); len(extra) > 0 {
				t.Fatalf("ring %s: %s believes it owns %v", spec.Ring, n.id.Short(), extra)
			}
		}
	}
	m.checkAddresses(t, all)
	m.checkServices(t, all)
	m.checkClaims(t, all)
}

func (m *sim) checkAddresses(t *rapid.T, all *state.Snapshot) {
	type key struct {
		network string
		addr    netip.Addr
	}
	blocks := map[string][]state.Block{}
	owner := map[netip.Prefix]state.NodeID{}
	gone := all.Gone()
	for rec, b := range state.All[state.Block](all) {
		if gone.Record(&rec) || m.lags(all, rec.ID.Owner) {
			continue
		}
		for _, o := range blocks[b.Network] {
			if o.Prefix.Overlaps(b.Prefix) {
				t.Fatalf("blocks %s and %s overlap", o.Prefix, b.Prefix)
			}
		}
		blocks[b.Network] = append(blocks[b.Network], *b)
		owner[b.Prefix] = rec.ID.Owner
		r := Resolve(all, b.Network, ringID)
		if _, rests := r.resting(spanOf(b.Prefix), time.Now()); !rests && !r.Owns(rec.ID.Owner, b.Prefix) {
			t.Fatalf("block %s is open at %s, who does not own it", b.Prefix, rec.ID.Owner.Short())
		}
	}
	held := map[key]state.ID{}
	for rec, ep := range state.All[state.Endpoint](all) {
		if gone.Record(&rec) || m.lags(all, rec.ID.Owner) || !ep.Ready {
			continue
		}
		for _, a := range ep.Addrs {
			k := key{ep.Network, a}
			if other, ok := held[k]; ok {
				t.Fatalf("%s given to %s and %s", a, other, rec.ID)
			}
			held[k] = rec.ID
			if p := netip.PrefixFrom(a, 29).Masked(); owner[p] != rec.ID.Owner {
				t.Fatalf("%s of %s lies in no block of its node", a, rec.ID)
			}
		}
	}
	for id, a := range m.acked {
		ep, ok := state.Lookup[state.Endpoint](all, id)
		if !ok || ep.Addrs[0] != a {
			t.Fatalf("acknowledged endpoint %s with %s is lost", id, a)
		}
	}
}

func (m *sim) checkServices(t *rapid.T, all *state.Snapshot) {
	addrs, ports := map[netip.Addr]string{}, map[uint16]string{}
	for rec, v := range state.All[state.VIP](all) {
		if m.lags(all, rec.Version.Node) {
			continue
		}
		if o, ok := addrs[v.Addr]; ok {
			t.Fatalf("VIP %s given to %s and %s", v.Addr, o, rec.ID.Key)
		}
		addrs[v.Addr] = rec.ID.Key
		for _, p := range v.NodePorts {
			if o, ok := ports[p]; ok {
				t.Fatalf("node port %d given to %s and %s", p, o, rec.ID.Key)
			}
			ports[p] = rec.ID.Key
		}
	}
	for key, v := range m.vips {
		if rec, ok := all.Get(state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: key}); ok && m.lags(all, rec.Version.Node) {
			continue
		}
		if addrs[v.Addr] != key {
			t.Fatalf("acknowledged VIP %s of %s is lost", v.Addr, key)
		}
	}
}
