package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nodenet/state"
)

// IP plan: 127.A.B.N, with A random for each run so that two runs on one
// machine do not meet, B counted up by test, N the node.

var (
	netA = byte(16 + rand.IntN(230))
	netB atomic.Uint32
	// timeout ends a wait that fails: none is so long on a machine that has time for it.
	timeout = time.Minute
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logBuf keeps a node's log, to look for messages.
type logBuf struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuf) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuf) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.b.Bytes()) {
		ok := true
		for _, p := range parts {
			ok = ok && bytes.Contains(line, []byte(p))
		}
		if ok {
			return true
		}
	}
	return false
}

func (l *logBuf) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// lab is a network of test nodes with cuts between addresses.
type lab struct {
	t    *testing.T
	b    byte
	next byte

	mu    sync.Mutex
	cuts  map[[2]netip.Addr]bool
	nodes []*testNode
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, b: byte(netB.Add(1)), cuts: map[[2]netip.Addr]bool{}}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("GOSSIP_LOG") != "" {
			for _, n := range l.nodes {
				t.Logf("log of %s:\n%s", n.name, n.log)
			}
		}
	})
	return l
}

func (l *lab) cut(a, b *testNode, yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cuts[[2]netip.Addr{a.addr, b.addr}] = yes
	l.cuts[[2]netip.Addr{b.addr, a.addr}] = yes
}

func (l *lab) isCut(a, b netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cuts[[2]netip.Addr{a, b}]
}

// holeConn loses what is written while its path is cut, and everything after.
type holeConn struct {
	net.Conn
	lost func() bool
	gone atomic.Bool
}

func (c *holeConn) Write(b []byte) (int, error) {
	if c.gone.Load() || c.lost() {
		c.gone.Store(true)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

type testNode struct {
	*Gossip
	lab    *lab
	name   string
	addr   netip.Addr
	dir    string
	id     *Identity
	store  *state.Store
	log    *logBuf
	opts   Options
	cancel context.CancelFunc
	done   chan error
}

type nodeOpts struct {
	cluster  *Cluster
	secret   []byte
	join     []string
	handlers map[string]Handler
	records  []state.Record
	edit     func(*Options)
}

// node makes a node and starts it.
func (l *lab) node(name string, o nodeOpts) *testNode {
	l.t.Helper()
	l.next++
	n := &testNode{lab: l, name: name, addr: netip.AddrFrom4([4]byte{127, netA, l.b, l.next}), dir: l.t.TempDir(), log: &logBuf{}}
	var err error
	if n.id, err = LoadIdentity(n.dir); err != nil {
		l.t.Fatal(err)
	}
	n.opts = Options{
		Identity: n.id, Cluster: o.cluster, Secret: o.secret, StateDir: n.dir, Name: name, Bind: n.addr, Join: o.join,
		Handlers: o.handlers,
		Logger:   slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),

		ProbeInterval: 100 * time.Millisecond, PingInterval: 150 * time.Millisecond, SyncInterval: 100 * time.Millisecond,
		RetryInterval: 500 * time.Millisecond, DeadHold: 300 * time.Millisecond, UnknownGrace: 2 * time.Second,
		net: network{
			allow: func(to netip.Addr) bool { return !l.isCut(n.addr, to) },
			wrap: func(c net.Conn) net.Conn {
				to := remoteIP(c)
				return &holeConn{Conn: c, lost: func() bool { return l.isCut(n.addr, to) }}
			},
		},
	}
	if o.edit != nil {
		o.edit(&n.opts)
	}
	n.start(o.records)
	l.nodes = append(l.nodes, n)
	l.t.Cleanup(n.stop)
	return n
}

func (n *testNode) start(recs []state.Record) {
	n.lab.t.Helper()
	var err error
	if n.store, err = state.NewStore(state.Options{Self: n.id.ID, Key: n.id.Key, Log: state.NoLog{}, Records: recs}); err != nil {
		n.lab.t.Fatal(err)
	}
	n.opts.Store = n.store
	if n.Gossip, err = New(n.opts); err != nil {
		n.lab.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	g, done := n.Gossip, n.done
	go func() { done <- g.Run(ctx) }()
}

func (n *testNode) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.done; err != nil {
		n.lab.t.Errorf("%s: Run: %v", n.name, err)
	}
	n.cancel = nil
	n.store.Close()
}

// sync is the address that others join by.
func (n *testNode) sync() string { return netip.AddrPortFrom(n.addr, DefaultSyncPort).String() }

func (n *testNode) write(ops ...state.Op) {
	n.lab.t.Helper()
	if _, err := n.store.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		n.lab.t.Fatalf("%s: write: %v", n.name, err)
	}
}

// announce writes the node's own record, as the daemon does.
func (n *testNode) announce(left bool) {
	n.lab.t.Helper()
	n.write(state.Put(state.Owner, state.KindNode, "self", state.Node{Name: n.name, Advertise: n.addr, PublicKey: n.id.Public(), Left: left}))
}

func name(s string) state.Op {
	return state.Put(state.Owner, state.KindName, s+" A", state.Name{Name: s, Type: "A", Target: "192.0.2.1"})
}

func clusterName(s string) state.Op {
	return state.Put(state.Cluster, state.KindName, s+" A", state.Name{Name: s, Type: "A", Target: "192.0.2.2"})
}

func ring(prefix string, owner state.NodeID) state.Op {
	return state.Put(state.Ring, state.KindRing, "pods/"+prefix,
		state.Range{Ring: "pods", RingID: "r", Prefix: netip.MustParsePrefix(prefix), Owner: owner})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %s: %s", timeout, what)
		}
		<-tick.C
	}
}

func (l *lab) equal(nodes ...*testNode) {
	l.t.Helper()
	eventually(l.t, "all tables are equal", func() bool {
		first := rootOf(nodes[0].store.Snapshot())
		return !slices.ContainsFunc(nodes, func(n *testNode) bool { return !bytes.Equal(first, rootOf(n.store.Snapshot())) })
	})
}

func (n *testNode) live(of *testNode) state.Live { return n.store.Snapshot().Live()[of.id.ID] }

func (l *lab) allAlive(nodes ...*testNode) {
	l.t.Helper()
	eventually(l.t, "all nodes see one another alive, in memberlist too", func() bool {
		for _, n := range nodes {
			for _, m := range nodes {
				n.mu.Lock()
				mm := n.track.members[m.id.ID]
				up := mm != nil && mm.up
				n.mu.Unlock()
				if !up || n.live(m).State != state.Alive || !n.live(m).Serving {
					return false
				}
			}
		}
		return true
	})
}

func all(edit []func(*Options)) func(*Options) {
	return func(o *Options) {
		for _, f := range edit {
			f(o)
		}
	}
}

// cluster starts a cluster of n nodes, the first of which made it.
func (l *lab) cluster(n int, edit ...func(*Options)) []*testNode {
	l.t.Helper()
	secret := NewSecret()
	out := []*testNode{l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret, edit: all(edit)})}
	for i := 2; i <= n; i++ {
		out = append(out, l.node(fmt.Sprintf("node%d", i), nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{out[0].sync()}, edit: all(edit)}))
	}
	for _, m := range out {
		select {
		case <-m.Synced():
		case <-time.After(timeout):
			l.t.Fatalf("%s: never synced", m.name)
		}
		m.announce(false)
	}
	return out
}

func TestThreeNodesConverge(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(3)
	for i, n := range ns {
		n.write(name(fmt.Sprintf("host%d", i)), clusterName(fmt.Sprintf("svc%d", i)), ring(fmt.Sprintf("10.244.%d.0/24", i), n.id.ID))
	}
	l.equal(ns...)
	l.allAlive(ns...)
	if got := len(ns[2].store.Snapshot().Heads()); got != 3 {
		t.Errorf("node3 knows %d owners, want 3", got)
	}

	// A fresh change travels by push, long before the next comparison.
	eventually(t, "full mesh", func() bool { return len(ns[0].someLinks()) == 2 && len(ns[1].someLinks()) == 2 })
	began := time.Now()
	ns[1].write(name("fresh"), clusterName("fresh"))
	l.equal(ns...)
	t.Logf("pushed in %s", time.Since(began))

	ns[0].write(state.Del(state.Owner, state.KindName, "host0 A"), state.Del(state.Cluster, state.KindName, "svc1 A"))
	l.equal(ns...)
	sn := ns[2].store.Snapshot()
	for _, id := range []state.ID{
		{Class: state.Owner, Kind: state.KindName, Owner: ns[0].id.ID, Key: "host0 A"},
		{Class: state.Cluster, Kind: state.KindName, Key: "svc1 A"},
	} {
		if _, ok := state.Lookup[state.Name](sn, id); ok {
			t.Errorf("%s is still there on node3", id)
		}
	}

	for _, n := range ns {
		ps := n.Peers()
		if len(ps) != 2 {
			t.Fatalf("%s: %d peers, want 2", n.name, len(ps))
		}
		eventually(t, "synced with each peer", func() bool {
			return !slices.ContainsFunc(n.Peers(), func(p Peer) bool { return p.LastSync.IsZero() })
		})
		for _, p := range n.Peers() {
			if p.State != state.Alive || p.LastSync.IsZero() || p.BytesIn == 0 || p.Name == "" || !p.Addr.IsValid() {
				t.Errorf("%s: peer %+v", n.name, p)
			}
		}
		if s := n.Status(); !s.OK || s.Error != "" || s.Connected != 2 || s.Cluster != "prod" {
			t.Errorf("%s: status %+v", n.name, s)
		}
	}
	eventually(t, "RTT measured", func() bool { return ns[0].Peers()[0].RTT > 0 })
}

func TestLearnedClusterIsSaved(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(2)
	made := ns[0].Cluster()
	eventually(t, "cluster saved with its peers", func() bool {
		c, err := LoadCluster(ns[1].dir)
		return err == nil && c.ID == made.ID && c.RingID == made.RingID && c.Name == "prod" && c.Synced && !c.Bootstrap &&
			slices.Contains(c.Peers, ns[0].sync()) && slices.Contains(c.Seeds, ns[0].sync())
	})
}

func TestLateJoinerGetsEverything(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(2, func(o *Options) { o.budget = 64 << 10 })
	// More than fits in one exchange, in both shapes.
	var ops []state.Op
	for i := range 3000 {
		ops = append(ops, name(fmt.Sprintf("host%04d", i)), clusterName(fmt.Sprintf("svc%04d", i)))
	}
	ns[0].write(ops...)
	l.equal(ns...)
	late := l.node("late", nodeOpts{cluster: &Cluster{}, secret: ns[0].opts.Secret, join: []string{ns[1].sync()}})
	select {
	case <-late.Synced():
	case <-time.After(timeout):
		t.Fatal("never synced")
	}
	n := 0
	for range state.All[state.Name](late.store.Snapshot()) {
		n++
	}
	if n != 6000 {
		t.Errorf("synced with %d names, want 6000", n)
	}
	late.announce(false)
	l.equal(append(ns, late)...)
}

func TestWrongSecret(t *testing.T) {
	l := newLab(t)
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: NewSecret()})
	a.announce(false)
	b := l.node("stranger", nodeOpts{cluster: &Cluster{}, secret: NewSecret(), join: []string{a.sync()}})
	for _, n := range []*testNode{a, b} {
		eventually(t, n.name+" says that the secret is wrong", func() bool {
			r := n.Status().Refused
			return len(r) == 1 && n.log.has("WARN", "do not hold the same cluster secret", "nodectl join")
		})
	}
	if r := b.Status().Refused[0]; r.Addr != a.sync() || r.Node != a.id.ID || r.When.IsZero() {
		t.Errorf("refusal %+v, want the address %s", r, a.sync())
	}
	if s := b.Status(); s.OK || s.ClusterID != "" || s.Fix == "" {
		t.Errorf("status of the stranger: %+v", s)
	}
	if n := len(b.store.Snapshot().Heads()); n != 0 {
		t.Errorf("the stranger holds %d owners' records", n)
	}
	select {
	case <-b.Synced():
		t.Error("the stranger counts as synced")
	default:
	}
}

func TestOtherCluster(t *testing.T) {
	l := newLab(t)
	secret := NewSecret()
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret})
	b := l.node("node9", nodeOpts{cluster: NewCluster("staging"), secret: secret, join: []string{a.sync()}})
	a.announce(false)
	b.announce(false)
	ca, cb := a.Cluster(), b.Cluster()
	for _, n := range []*testNode{a, b} {
		eventually(t, n.name+" names both clusters", func() bool {
			return n.log.has("WARN", ca.ID, cb.ID, "prod", "staging", "never merge") && len(n.Status().Refused) == 1
		})
	}
	if a.link(b.id.ID) != nil || len(a.store.Snapshot().Heads()) != 1 {
		t.Error("the clusters touched")
	}
}

func TestOtherRing(t *testing.T) {
	l := newLab(t)
	secret, c := NewSecret(), NewCluster("prod")
	forked := *c
	forked.RingID = NewCluster("").RingID
	a := l.node("node1", nodeOpts{cluster: c, secret: secret})
	b := l.node("node2", nodeOpts{cluster: &forked, secret: secret, join: []string{a.sync()}})
	for _, n := range []*testNode{a, b} {
		eventually(t, n.name+" names both rings", func() bool { return n.log.has("WARN", c.RingID, forked.RingID) })
	}
}

// The node that made the cluster starts alone, but hears first what others
// hold of it when they are there.
func TestFounderRestarts(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(2)
	l.equal(ns...)
	a, b := ns[0], ns[1]
	before := a.store.Epoch()
	eventually(t, "peers saved", func() bool { c, err := LoadCluster(a.dir); return err == nil && len(c.Peers) == 1 })
	a.stop()
	var err error
	if a.opts.Cluster, err = LoadCluster(a.dir); err != nil {
		t.Fatal(err)
	}
	a.opts.Now = func() time.Time { return time.Unix(1000, 0) }
	a.opts.SyncInterval = time.Second
	a.start(nil)
	<-a.Synced()
	if got := a.store.Epoch(); got <= before {
		t.Errorf("epoch %d after %d", got, before)
	}
	a.announce(false)
	l.equal(a, b)

	b.stop()
	a.stop()
	a.start(nil)
	select {
	case <-a.Synced():
	case <-time.After(timeout):
		t.Fatal("the founder does not start alone")
	}
	a.announce(false)
	eventually(t, "nobody to leave to, and it says so", func() bool {
		err := a.Leave(context.Background())
		return err != nil && strings.Contains(err.Error(), "node forget")
	})
}

func TestNeitherHasACluster(t *testing.T) {
	l := newLab(t)
	secret := NewSecret()
	a := l.node("node1", nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{fmt.Sprintf("127.%d.%d.2", netA, l.b)}})
	b := l.node("node2", nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{a.sync()}})
	for _, n := range []*testNode{a, b} {
		eventually(t, n.name+" says to init", func() bool { return n.log.has("neither", "nodectl init") })
	}
}

func TestCloneIsRefusedAndSelfIsQuiet(t *testing.T) {
	l := newLab(t)
	secret := NewSecret()
	// Its own address is among the seeds, by another spelling than it advertises.
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret, join: []string{fmt.Sprintf("127.%d.%d.1", netA, l.b)},
		edit: func(o *Options) { o.Advertise = netip.MustParseAddr("192.0.2.1") }})
	eventually(t, "node1 knows itself", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		tg := a.targets[a.sync()]
		return tg != nil && tg.self
	})
	if len(a.Status().Refused) != 0 {
		t.Errorf("refusals: %+v", a.Status().Refused)
	}
	l.next++
	b := &testNode{lab: l, name: "copy", addr: netip.AddrFrom4([4]byte{127, netA, l.b, l.next}), dir: t.TempDir(), log: &logBuf{}, id: a.id}
	b.opts = a.opts
	b.opts.Name, b.opts.Bind, b.opts.Advertise, b.opts.StateDir = "copy", b.addr, b.addr, b.dir
	b.opts.Logger = slog.New(slog.NewTextHandler(b.log, nil))
	b.opts.Join = []string{a.sync()}
	b.start(nil)
	t.Cleanup(func() { b.store.Close() })
	select {
	case err := <-b.done:
		// Both addresses, and what to do.
		for _, want := range []string{a.o.Advertise.String(), b.addr.String(), "state directory", "token"} {
			if !errors.Is(err, ErrClone) || !strings.Contains(err.Error(), want) {
				t.Errorf("the copy's Run: %v, want ErrClone with %q", err, want)
			}
		}
	case <-time.After(timeout):
		t.Fatal("the copy goes on")
	}
	eventually(t, "node1 names the copy", func() bool { return a.log.has("WARN", "copies of one disk", b.addr.String()) })
	select {
	case err := <-a.done:
		t.Errorf("the holder's Run: %v", err)
	default:
	}
}

// The membership shows a newer life of a node at another address, and both
// are there: the older one stays a member, the copy is told to stop.
func TestCopyInMembership(t *testing.T) {
	l := newLab(t)
	ns := l.cluster(2)
	l.allAlive(ns...)
	a, b := ns[0], ns[1]
	c := b.Cluster()
	c.Peers, c.Seeds = nil, nil // it finds nobody by itself
	l.next++
	cp := &testNode{lab: l, name: "copy", addr: netip.AddrFrom4([4]byte{127, netA, l.b, l.next}), dir: t.TempDir(), log: &logBuf{}, id: b.id}
	cp.opts = b.opts
	cp.opts.Name, cp.opts.Bind, cp.opts.StateDir, cp.opts.Cluster, cp.opts.Join = "copy", cp.addr, cp.dir, &c, nil
	cp.start(nil)
	t.Cleanup(func() { cp.store.Close() })
	eventually(t, "the copy's sync port is open", func() bool {
		conn, err := net.Dial("tcp", cp.sync())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	a.mu.Lock()
	was := *a.track.members[b.id.ID]
	copied := was
	copied.epoch, copied.addr = was.epoch+1, cp.addr.String()
	a.doubtful(b.id.ID, copied)
	a.track.join(b.id.ID, copied)
	a.mu.Unlock()
	select {
	case err := <-cp.done:
		if !errors.Is(err, ErrClone) {
			t.Errorf("the copy's Run: %v, want ErrClone", err)
		}
	case <-time.After(timeout):
		t.Fatal("the copy goes on")
	}
	eventually(t, "the older life is the member again", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		m := a.track.members[b.id.ID]
		return m.epoch == was.epoch && m.addr == was.addr && !a.track.join(b.id.ID, copied)
	})
	l.allAlive(ns...)
}

func TestPartitionHeals(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(3)
	l.equal(ns...)
	l.allAlive(ns...)
	a, b, c := ns[0], ns[1], ns[2]

	l.cut(a, c, true)
	l.cut(b, c, true)
	eventually(t, "c is dead and withdrawn on a, both others on c", func() bool {
		return a.live(c).State == state.Dead && !a.live(c).Serving &&
			c.live(a).State == state.Dead && c.live(b).State == state.Dead && !c.live(a).Serving
	})
	if a.live(b).State != state.Alive {
		t.Errorf("b on a: %+v", a.live(b))
	}
	// The records stay: liveness decides use, not existence.
	if len(a.store.Snapshot().Heads()) != 3 {
		t.Error("a forgot c's records")
	}
	a.write(name("left-side"), clusterName("left-side"))
	c.write(name("right-side"), clusterName("right-side"))
	l.equal(a, b)
	if bytes.Equal(rootOf(a.store.Snapshot()), rootOf(c.store.Snapshot())) {
		t.Fatal("the cut leaks")
	}

	l.cut(a, c, false)
	l.cut(b, c, false)
	l.equal(ns...)
	l.allAlive(ns...)
}

func TestRestartHasHigherEpoch(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(3)
	l.equal(ns...)
	l.allAlive(ns...)
	b := ns[1]
	before := b.store.Epoch()
	eventually(t, "peers saved", func() bool { c, err := LoadCluster(b.dir); return err == nil && len(c.Peers) == 2 })

	// It comes back with an empty table and a clock far behind: the worst of
	// restored disks.
	b.stop()
	c, err := LoadCluster(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	b.opts.Cluster = c
	b.opts.Now = func() time.Time { return time.Unix(1000, 0) }
	b.start(nil)
	<-b.Synced()
	if got := b.store.Epoch(); got <= before {
		t.Fatalf("epoch %d after %d", got, before)
	}
	if b.HighestEpoch() < before {
		t.Errorf("highest epoch %d, peers hold %d", b.HighestEpoch(), before)
	}
	// Its own older records came back before it wrote.
	if _, ok := state.Lookup[state.Node](b.store.Snapshot(), state.ID{Class: state.Owner, Kind: state.KindNode, Owner: b.id.ID, Key: "self"}); !ok {
		t.Error("own records were not restored from peers")
	}
	b.write(name("after-restart"))
	l.equal(ns...)
	l.allAlive(ns...)
	// memberlist may still list the former life; its end must change nothing.
	eventually(t, "the former life is given up", func() bool {
		return ns[0].log.has(fmt.Sprintf("%s.%d", b.id.ID, before)) && !slices.ContainsFunc(ns[0].memberNames(), func(s string) bool {
			return s == memberName(b.id.ID, before)
		})
	})
	if got := ns[0].live(b); got.State != state.Alive || !got.Serving {
		t.Errorf("b on a: %+v", got)
	}
}

func (g *Gossip) memberNames() []string {
	g.mu.Lock()
	ml := g.members
	g.mu.Unlock()
	var out []string
	if ml != nil {
		for _, m := range ml.Members() {
			out = append(out, m.Name)
		}
	}
	return out
}

func TestDeathAndLeave(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(3)
	l.equal(ns...)
	l.allAlive(ns...)
	a, b, c := ns[0], ns[1], ns[2]

	c.stop()
	began := time.Now()
	eventually(t, "c is dead but still serving for the hold", func() bool { return a.live(c).State == state.Dead })
	t.Logf("death seen after %s", time.Since(began))
	eventually(t, "c is withdrawn", func() bool { return !a.live(c).Serving && !b.live(c).Serving })

	b.write(name("last-word"))
	b.announce(true)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := b.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	sn := a.store.Snapshot()
	if _, ok := state.Lookup[state.Name](sn, state.ID{Class: state.Owner, Kind: state.KindName, Owner: b.id.ID, Key: "last-word A"}); !ok {
		t.Error("Leave returned before everything was handed over")
	}
	eventually(t, "b left", func() bool { return a.live(b).State == state.Left && !a.live(b).Serving })
	b.stop()

	// With the others gone for good, the last one may go without a witness.
	c.start(nil)
	l.equal(a, c)
	c.announce(true)
	if err := c.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	c.stop()
	eventually(t, "no link is left", func() bool { return len(a.someLinks()) == 0 })
	if err := a.Leave(ctx); err != nil {
		t.Errorf("the last node leaves: %v", err)
	}
	if p := a.Cluster().Peers; len(p) != 0 {
		t.Errorf("addresses of nodes that left are kept: %v", p)
	}
}

// A node with a new disk comes back under its old address, and a seed list
// names it twice: one link stays and nobody dials in circles.
func TestReplacedNodeAtTheSameAddress(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(2)
	l.equal(ns...)
	a, b := ns[0], ns[1]
	old := b.id.ID
	b.stop()
	b.dir = t.TempDir()
	var err error
	if b.id, err = LoadIdentity(b.dir); err != nil {
		t.Fatal(err)
	}
	b.opts.Identity, b.opts.StateDir, b.opts.Cluster = b.id, b.dir, &Cluster{}
	b.start(nil)
	<-b.Synced()
	b.announce(false)
	l.equal(a, b)
	l.allAlive(a, b)
	first := a.link(b.id.ID)
	eventually(t, "the old node is dead", func() bool { x := a.store.Snapshot().Live()[old]; return x.State == state.Dead && !x.Serving })
	rounds := first.in.Load()
	eventually(t, "some time has passed on the link", func() bool { return first.in.Load() > rounds+2000 || a.link(b.id.ID) != first })
	if a.link(b.id.ID) != first {
		t.Error("the link was replaced")
	}
}

func TestUnknownNodesServeUntilOthersAreHeard(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ns := l.cluster(3)
	l.equal(ns...)
	a, b, c := ns[0], ns[1], ns[2]
	eventually(t, "peers saved", func() bool { c, err := LoadCluster(a.dir); return err == nil && len(c.Peers) == 2 })
	var recs []state.Record
	for _, h := range a.store.Snapshot().Heads() {
		recs = append(recs, a.store.Snapshot().Delta(h.Owner, state.Mark{}, 0).Records...)
	}
	b.stop()
	c.stop()
	a.stop()
	a.start(recs)
	alone := time.Now()
	eventually(t, "the grace of two seconds is over", func() bool { return time.Since(alone) > 3*time.Second })
	for _, x := range []*testNode{b, c} {
		if l := a.live(x); l.State != state.Unknown || !l.Serving {
			t.Errorf("alone: %+v, want unknown and serving", l)
		}
	}
	c.start(nil)
	l.allAlive(a, c)
	eventually(t, "b no longer serves", func() bool { x := a.live(b); return x.State == state.Unknown && !x.Serving })
	b.start(nil)
	l.allAlive(a, b, c)
}
