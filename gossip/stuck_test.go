package gossip

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"nodenet/state"
)

// dialAs connects to a node as a member that it can verify, and returns the
// connection after the hellos: what comes then is up to the test.
func dialAs(t *testing.T, n *testNode, id *Identity, edit func(*hello)) (*tls.Conn, frame) {
	t.Helper()
	cert, err := certificate(id, n.keys().ca)
	if err != nil {
		t.Fatal(err)
	}
	// A small window: what a peer does not read must not vanish in the kernel's buffers.
	d := &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10) })
	}}
	var conn *tls.Conn
	eventually(t, "the sync port answers", func() bool {
		conn, err = tls.DialWithDialer(d, "tcp", n.sync(), tlsConfig(cert, alpnSync))
		return err == nil
	})
	t.Cleanup(func() { conn.NetConn().Close() })
	c := n.Cluster()
	h := &hello{Proto: protoVersion, ClusterID: c.ID, RingID: c.RingID, Node: id.ID, Name: "fake", Instance: []byte("fake"), Epoch: 1, Addr: "192.0.2.9"}
	if edit != nil {
		edit(h)
	}
	if err := writeFrame(conn, h); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(timeout))
	f, _, err := readFrame(conn, maxEarly)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Time{})
	return conn, f
}

func member1(t *testing.T) *Identity {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A peer that never reads, or reads a byte a second, while many changes are
// pushed: the others get every one by push alone, and what waits for the stuck
// one stays bounded.
func TestStuckPeerSlowsNobody(t *testing.T) {
	for name, reads := range map[string]func(net.Conn){
		"never reads": func(net.Conn) {},
		"reads a byte a second": func(c net.Conn) {
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			// Pushes alone: no comparison brings what a push has missed.
			edit := func(o *Options) { o.SyncInterval, o.PingInterval = time.Hour, time.Second }
			secret := NewSecret()
			a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret, edit: edit})
			b := l.node("node2", nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{a.sync()}, edit: edit})
			<-b.Synced()
			a.announce(false)
			b.announce(false)
			l.equal(a, b)
			id := member1(t)
			conn, f := dialAs(t, a, id, nil)
			if _, ok := f.(*hello); !ok {
				t.Fatalf("%T instead of a hello: %+v", f, f)
			}
			done := make(chan struct{})
			go func() { defer close(done); reads(conn.NetConn()) }()
			// It gives signs of life all the time: only its reading is at fault.
			stop := make(chan struct{})
			defer func() { close(stop); conn.NetConn().Close(); <-done }()
			go func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
						if writeFrame(conn, &pong{ID: 1 << 40}) != nil {
							return
						}
					}
				}
			}()
			eventually(t, "the stuck peer is connected", func() bool { return a.link(id.ID) != nil })
			stuck := a.link(id.ID)
			began := time.Now()
			most, waits := 0, false
			for i := range 400 {
				a.write(state.Put(state.Owner, state.KindName, fmt.Sprintf("n%d A", i), state.Name{Name: fmt.Sprint("n", i), Type: "A", Target: strings.Repeat("x", 60<<10)}))
				l.equal(a, b) // one by one: several at once might go as an exchange
				stuck.queue.mu.Lock()
				most = max(most, stuck.queue.bytes)
				stuck.queue.mu.Unlock()
				stuck.box.mu.Lock()
				waits = waits || len(stuck.box.owners) > 0
				most = max(most, len(stuck.box.owners)+len(stuck.box.ids))
				stuck.box.mu.Unlock()
			}
			t.Logf("24 MiB in 400 changes reached the other peer by push in %s; %d bytes or changes waited for the stuck one at most", time.Since(began).Round(time.Millisecond), most)
			// Not the changes wait but where they begin: 24 MiB cost one mark.
			if !waits || most > 4096 {
				t.Errorf("changes wait for the stuck peer: %v; bytes or changes at most: %d, want at most 4096", waits, most)
			}
			if got := a.link(b.id.ID); got == nil || got.heardAt().Before(began) {
				t.Error("the healthy peer's link suffered")
			}
			eventually(t, "the stuck peer is given up", func() bool { return a.link(id.ID) != stuck })
		})
	}
}

// A peer that sends without end is read slowly, stays connected, and delays
// nobody else.
func TestFloodingPeerIsSlowed(t *testing.T) {
	l := newLab(t)
	ns := l.cluster(2, func(o *Options) { o.SyncInterval = time.Hour })
	a, b := ns[0], ns[1]
	l.equal(a, b)
	id := member1(t)
	conn, _ := dialAs(t, a, id, nil)
	go io.Copy(io.Discard, conn)
	p, err := encodeFrame(&ping{ID: 1})
	if err != nil {
		t.Fatal(err)
	}
	var many []byte
	for range 1000 {
		many = append(many, p...)
	}
	began := time.Now()
	flood := make(chan int)
	conn.SetWriteDeadline(began.Add(3 * time.Second))
	go func() {
		n := 0
		for time.Since(began) < 3*time.Second {
			if _, err := conn.Write(many); err != nil {
				break
			}
			n += 1000
		}
		flood <- n
	}()
	for i := range 50 {
		a.write(name(fmt.Sprintf("during-%d", i)))
	}
	l.equal(a, b)
	sent := <-flood
	lk := a.link(id.ID)
	if lk == nil {
		t.Fatal("the flooding peer was disconnected")
	}
	handled := int(lk.in.Load()) / len(p)
	t.Logf("%d frames written, %d read in %s", sent, handled, time.Since(began).Round(time.Millisecond))
	if limit := frameBurst + int(time.Since(began).Seconds()+1)*frameRate; handled > limit {
		t.Errorf("%d frames were taken, want at most %d", handled, limit)
	}
	if testutil.ToFloat64(a.met.throttled) == 0 {
		t.Error("nothing was slowed down: this run shows nothing")
	}
}

// One peer's requests cannot take all the slots.
func TestRequestsOfOnePeerAreBounded(t *testing.T) {
	l := newLab(t)
	release := make(chan struct{})
	handlers := map[string]Handler{
		"wait": func(ctx context.Context, _ state.NodeID, _ []byte) ([]byte, error) { <-release; return nil, nil },
		"echo": func(_ context.Context, _ state.NodeID, req []byte) ([]byte, error) { return req, nil },
	}
	secret := NewSecret()
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret, handlers: handlers})
	b := l.node("node2", nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{a.sync()}})
	<-b.Synced()
	a.announce(false)
	b.announce(false)
	l.equal(a, b)
	id := member1(t)
	conn, _ := dialAs(t, a, id, nil)
	for i := range 4 * maxHandlers {
		if err := writeFrame(conn, &request{ID: uint64(i), Method: "wait"}); err != nil {
			t.Fatal(err)
		}
	}
	busy := 0
	for busy < 4*maxHandlers-peerHandlers {
		f, _, err := readFrame(conn, MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.(*response); ok && strings.Contains(r.Error, "busy") {
			busy++
		}
	}
	if n := len(a.handlers); n != peerHandlers {
		t.Errorf("one peer has %d slots, want %d", n, peerHandlers)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if got, err := b.Call(ctx, a.id.ID, "echo", []byte("x")); err != nil || string(got) != "x" {
		t.Errorf("another peer's call: %q, %v", got, err)
	}
	close(release)
}

// A replacement larger than the send queue gets through whole.
func TestReplacementLargerThanQueue(t *testing.T) {
	l := newLab(t)
	secret := NewSecret()
	a := l.node("node1", nodeOpts{cluster: NewCluster("prod"), secret: secret})
	const n, size = 300, 60 << 10 // 18 MB
	for i := range n {
		a.write(state.Put(state.Owner, state.KindName, fmt.Sprintf("n%d A", i), state.Name{Name: fmt.Sprint("n", i), Type: "A", Target: strings.Repeat("x", size)}))
	}
	a.write(state.Del(state.Owner, state.KindName, "n0 A"))
	if k, err := a.store.Collect(time.Now().Add(time.Hour)); k == 0 || err != nil {
		t.Fatalf("%d tombstones collected, %v: want a floor", k, err)
	}
	if d := a.store.Snapshot().Delta(a.id.ID, state.Mark{}, chunkRecords); !d.Replace || sizeOf(d.Records) < queueBytes {
		t.Fatalf("replacement %v of %d bytes: want one of more than %d", d.Replace, sizeOf(d.Records), queueBytes)
	}
	b := l.node("node2", nodeOpts{cluster: &Cluster{}, secret: secret, join: []string{a.sync()}})
	l.equal(a, b)
	if got := count(state.All[state.Name](b.store.Snapshot())); got != n-1 {
		t.Errorf("%d names arrived, want %d", got, n-1)
	}
}

// Signs of life go before data: what is queued for a peer does not hide that
// the peer, or we, are there.
func TestPingOvertakesData(t *testing.T) {
	l := &link{queue: newSendQueue(), g: &Gossip{met: newMetrics(nil)}}
	q := &l.queue
	for range 3 {
		if err := q.put([]byte("data"), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.putBulk([]frame{&root{}, &done{}}); err != nil {
		t.Fatal(err)
	}
	if err := q.put([]byte("ping"), true); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		busy, err := l.writeSome(func(b []byte) error {
			if b[0] == 'p' || b[0] == 'd' {
				got = append(got, string(b))
			} else {
				got = append(got, kind(b[5]).String())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !busy {
			break
		}
	}
	if want := "ping data data data root done"; strings.Join(got, " ") != want {
		t.Errorf("written: %q, want %q", got, want)
	}
	if l.queue.bytes != 0 {
		t.Errorf("%d bytes are still accounted", l.queue.bytes)
	}
	// All or none of an exchange, and a bound on how many wait.
	n := 0
	for ; n < 2*queueBulk && l.queue.putBulk([]frame{&root{}}) == nil; n++ {
	}
	if n != queueBulk {
		t.Errorf("%d frames of exchanges wait, want at most %d", n, queueBulk)
	}
}

// Leaving under constant writes of others: tables are never seen equal, and a
// peer holds all that the leaving node had.
func TestLeaveUnderConstantWrites(t *testing.T) {
	l := newLab(t)
	ns := l.cluster(3)
	l.equal(ns...)
	a, b, c := ns[0], ns[1], ns[2]
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := []*testNode{b, c}[i%2]
			n.store.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) {
				return []state.Op{clusterName(fmt.Sprintf("busy-%d", i%500)), name("busy")}, nil
			})
			time.Sleep(time.Millisecond)
		}
	}()
	a.write(clusterName("last-words"), ring("10.244.9.0/24", b.id.ID))
	a.announce(true)
	mark := a.store.Snapshot().Head(a.id.ID).Mark
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	began := time.Now()
	if err := a.Leave(ctx); err != nil {
		t.Errorf("leave: %v", err)
	}
	t.Logf("left after %s", time.Since(began).Round(time.Millisecond))
	for _, n := range []*testNode{b, c} {
		sn := n.store.Snapshot()
		if got := sn.Head(a.id.ID).Mark; got.Compare(mark) < 0 {
			t.Errorf("%s holds the node that left up to %v, want %v", n.name, got, mark)
		}
		if _, ok := state.Lookup[state.Name](sn, state.ID{Class: state.Cluster, Kind: state.KindName, Key: "last-words A"}); !ok {
			t.Errorf("%s lacks what was written just before", n.name)
		}
	}
	close(stop)
	<-done
}

// A forgotten node is not one of the peers that status counts.
func TestStatusCountsNoForgotten(t *testing.T) {
	l := newLab(t)
	ns := l.cluster(2)
	l.equal(ns...)
	a := ns[0]
	gone := member1(t)
	other, err := state.NewStore(state.Options{Self: gone.ID, Key: gone.Key, Log: state.NoLog{}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) {
		return []state.Op{state.Put(state.Owner, state.KindNode, "self", state.Node{Name: "old", Advertise: netip.MustParseAddr("192.0.2.7"), PublicKey: gone.Public()})}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.MergeDelta(other.Snapshot().Delta(gone.ID, state.Mark{}, 0)); err != nil {
		t.Fatal(err)
	}
	if got := a.Status().Known; got != 2 {
		t.Errorf("%d peers known, want 2", got)
	}
	a.write(state.Put(state.Cluster, state.KindForgotten, string(gone.ID), state.Forgotten{By: a.id.ID, Epoch: 1 << 40, Name: "old"}))
	if got := a.Status().Known; got != 1 {
		t.Errorf("%d peers known after one was forgotten, want 1", got)
	}
}
