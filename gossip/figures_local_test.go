package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"nodenet/state"
	"nodenet/state/disk"
)

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for l := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// figTables fills a store with the records of a cluster: so many nodes, and
// endpoints spread over them, each history signed by its owner.
func figTables(t testing.TB, into *state.Store, nodes, endpoints int, endpoint func(key string, i int) state.Endpoint) {
	for i := range nodes {
		k := sha256.Sum256(fmt.Appendf(nil, "owner %d", i))
		id := identity(ed25519.NewKeyFromSeed(k[:]))
		s, err := state.NewStore(state.Options{Self: id.ID, Key: id.Key})
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		ops := []state.Op{state.Put(state.Owner, state.KindNode, "self", state.Node{
			Name: fmt.Sprintf("node%d", i), Advertise: addr, PublicKey: id.Public(), VTEPMAC: id.ID.VTEPMAC(),
		})}
		for j := i; j < endpoints; j += nodes {
			key := fmt.Sprintf("%032x", j)
			ops = append(ops, state.Put(state.Owner, state.KindEndpoint, key, endpoint(key, j)))
		}
		if _, err := s.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
			t.Fatal(err)
		}
		d := s.Snapshot().Delta(id.ID, state.Mark{}, 0)
		for j := range d.Records {
			d.Records[j] = simWire(d.Records[j])
		}
		if _, err := into.MergeFrom(id.ID, d); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
}

const (
	figEndpoints = 100_000
	figServices  = 10_000
)

// podEndpoint is an endpoint as a pod has it: one of the ten backends of a service.
func podEndpoint(key string, i int) state.Endpoint {
	n := i / (figEndpoints / figServices)
	app := fmt.Sprintf("web-%d", n)
	return state.Endpoint{
		ID: key, Network: "pods", Namespace: "apps", Name: fmt.Sprintf("%s-7d4b9c6f5-%05d", app, i),
		Labels: map[string]string{"app": app, "tier": "frontend", "pod-template-hash": fmt.Sprintf("7d4b9c6f5%d", n%7)},
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)})},
		MAC:    fmt.Sprintf("02:00:00:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i)),
		Ports:  []state.Port{{Name: "http", Protocol: "tcp", Port: 8080}, {Name: "metrics", Protocol: "tcp", Port: 9090}},
		Kind:   state.EndpointCNI, Ready: true, Created: 1760000000, HostIf: fmt.Sprintf("nn%08x", i),
		Netns: fmt.Sprintf("/var/run/netns/cni-%08x-0000-4000-8000-%012x", i, i), IfName: "eth0", Gateway: netip.AddrFrom4([4]byte{10, 128, 0, 1}), PrefixLen: 24,
	}
}

// figService writes the services that select podEndpoints.
func figService(t testing.TB, into *state.Store) {
	var ops []state.Op
	for i := range figServices {
		s := state.Service{Namespace: "apps", Name: fmt.Sprintf("web-%d", i), Selector: map[string]string{"app": fmt.Sprintf("web-%d", i)},
			Ports: []state.ServicePort{{Name: "http", Protocol: "tcp", Port: 80}}}
		ops = append(ops, state.Put(state.Cluster, state.KindService, s.Key(), s),
			state.Put(state.Cluster, state.KindVIP, s.Key(), state.VIP{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}))
	}
	if _, err := into.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

// figJoin lets an empty node with a disk join one that holds everything, over
// real sockets and TLS on the loopback interface.
func figJoin(t *testing.T, tab *figureTable) {
	secret := sha256.Sum256([]byte("figures"))
	run := func(addr string, c *Cluster, s *state.Store, id *Identity) (*Gossip, func()) {
		g, err := New(Options{Identity: id, Cluster: c, Secret: secret[:], Store: s, Name: addr, Bind: netip.MustParseAddr(addr)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		return g, func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", addr, err)
			}
			s.Close()
		}
	}
	open := func(log state.Log) (*state.Store, *Identity) {
		id, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		s, err := state.NewStore(state.Options{Self: id.ID, Key: id.Key, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		return s, id
	}
	a, aid := open(nil)
	figTables(t, a, *figNodes, figEndpoints, herdEndpoint)
	first := NewCluster("figures")
	ga, stop := run("127.78.0.1", first, a, aid)
	defer stop()
	<-ga.Synced()
	db, err := disk.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b, bid := open(db)
	cpu, began := cpuTime(), time.Now()
	gb, stopB := run("127.78.0.2", &Cluster{Seeds: []string{"127.78.0.1"}}, b, bid)
	defer stopB()
	select {
	case <-gb.Synced():
	case <-time.After(2 * time.Minute):
		t.Fatal("not joined within two minutes")
	}
	took := time.Since(began)
	if got := countEndpoints(b); got != figEndpoints {
		t.Fatalf("%d endpoints after the join, want %d", got, figEndpoints)
	}
	tab.add(figure{"cold join to 100 000 endpoints", seconds(took), "s", 3, false,
		fmt.Sprintf("wall time; real sockets and TLS on loopback, %d owners, signatures and sums checked, written to disk; both sides computed %.1f s", *figNodes, (cpuTime() - cpu).Seconds())})
}

func countEndpoints(s *state.Store) (n int) {
	for range state.All[state.Endpoint](s.Snapshot()) {
		n++
	}
	return n
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// figHeap loads 100 000 endpoints of the cluster's nodes and says where the memory goes.
func figHeap(t *testing.T, tab *figureTable) {
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	base := heap()
	s, err := state.NewStore(state.Options{Self: id.ID, Key: id.Key})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	figTables(t, s, *figNodes, figEndpoints, podEndpoint)
	figService(t, s)
	tables := heap() - base
	sn := s.Snapshot()
	view := sn.View()
	views := heap() - base - tables
	secret := sha256.Sum256([]byte("figures"))
	g, err := New(Options{Identity: id, Cluster: NewCluster("figures"), Secret: secret[:], Store: s, Name: "figures", Bind: netip.MustParseAddr("127.78.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	for r, n := range state.All[state.Node](sn) {
		g.memberUp(&memberlist.Node{Name: memberName(r.ID.Owner, 1), Addr: n.Advertise.AsSlice(), Port: DefaultGossipPort})
	}
	g.refreshTargets()
	var live map[state.NodeID]state.Live
	g.updateLive(nodesOf(sn), &live)
	rest := heap() - base - tables - views
	runtime.KeepAlive(view)
	runtime.KeepAlive(g)
	tab.add(figure{"heap with 100 000 endpoints", tables + views + rest, "MiB", 150, false,
		fmt.Sprintf("%d nodes, %d services of 10 endpoints each; tables %.0f, view %.0f, gossip's peers %.0f MiB", *figNodes, figServices, tables, views, rest)})
}

// figChange measures what one endpoint change costs of the processor beside
// the network: write, signature, change feed and view, garbage collection included.
func figChange(t *testing.T, tab *figureTable) {
	var first float64
	for _, size := range []int{1000, 10_000, figEndpoints} {
		id, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		s, err := state.NewStore(state.Options{Self: id.ID, Key: id.Key})
		if err != nil {
			t.Fatal(err)
		}
		figTables(t, s, 100, size, herdEndpoint)
		feed := s.Subscribe()
		s.Snapshot().View()
		i := 0
		var us float64
		runtime.GC()
		testing.Benchmark(func(b *testing.B) {
			began := cpuTime()
			defer func() { us = float64((cpuTime() - began).Microseconds()) / float64(b.N) }()
			for b.Loop() {
				i++
				key := fmt.Sprintf("own-%d", i%100)
				if _, err := s.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) {
					return []state.Op{state.Put(state.Owner, state.KindEndpoint, key, herdEndpoint(key, i))}, nil
				}); err != nil {
					b.Fatal(err)
				}
				if changed, all, _ := feed.Take(); all || len(changed) != 1 {
					b.Fatalf("feed: %d changes, all %v", len(changed), all)
				}
				s.Snapshot().View()
			}
		})
		feed.Close()
		s.Close()
		f := figure{name: fmt.Sprintf("one endpoint change, %d endpoints", size), value: us, unit: "µs", how: "CPU time; write, signature, feed and view; no disk"}
		if size == 1000 {
			first = us
		} else {
			f.goal = 2 * first // flat, with the noise of a shared machine
			f.how += "; flat means about as with 1000"
		}
		tab.add(f)
	}
}

// figBroadcasts measures what spreading changes by memberlist's own broadcasts
// would carry: its real queue, on as many nodes, with the gossip interval,
// fan-out and packet size that it has by default on a LAN.
func figBroadcasts(t *testing.T, tab *figureTable) {
	best := 0
	for _, rate := range []int{5, 10, 20, 40} {
		if !broadcasts(*figNodes, rate, 12*time.Second) {
			break
		}
		best = rate
	}
	tab.add(figure{"… by plain memberlist broadcasts", float64(best), "/s", 0, false,
		fmt.Sprintf("its TransmitLimitedQueue simulated on %d nodes, 3 peers every 200 ms, packets of 1400 bytes, changes of 350: highest of 5, 10, 20, 40 of which 99 %% are at 99 %% of the nodes within 10 s", *figNodes)})
}

type broadcastItem struct {
	id  int
	msg []byte
}

func (b *broadcastItem) Invalidates(memberlist.Broadcast) bool { return false }
func (b *broadcastItem) Message() []byte                       { return b.msg }
func (b *broadcastItem) Finished()                             {}
func (b *broadcastItem) UniqueBroadcast()                      {}

// broadcasts reports whether a rate of changes a second gets through.
func broadcasts(nodes, rate int, load time.Duration) bool {
	rng := rand.New(rand.NewPCG(1, uint64(rate)))
	queues := make([]memberlist.TransmitLimitedQueue, nodes)
	have := make([]map[int]bool, nodes)
	for i := range queues {
		queues[i] = memberlist.TransmitLimitedQueue{NumNodes: func() int { return nodes }, RetransmitMult: 4}
		have[i] = map[int]bool{}
	}
	const tick = 200 * time.Millisecond
	var at []time.Duration // of each change
	var count []int        // nodes that had it in time
	hear := func(i, id int, now time.Duration, msg []byte) {
		if have[i][id] {
			return
		}
		have[i][id] = true
		if now-at[id] <= 10*time.Second {
			count[id]++
		}
		queues[i].QueueBroadcast(&broadcastItem{id, msg})
	}
	for now := time.Duration(0); now < load+10*time.Second; now += tick {
		if now < load {
			for range int(float64(rate)*tick.Seconds() + 0.5) {
				id := len(at)
				msg := make([]byte, 350)
				msg[0], msg[1], msg[2] = byte(id>>16), byte(id>>8), byte(id)
				at, count = append(at, now), append(count, 0)
				hear(rng.IntN(nodes), id, now, msg)
			}
		}
		type packet struct {
			to   int
			msgs [][]byte
		}
		var sent []packet
		for i := range queues {
			for range 3 {
				if msgs := queues[i].GetBroadcasts(3, 1400-60); len(msgs) > 0 {
					sent = append(sent, packet{rng.IntN(nodes), msgs})
				}
			}
		}
		for _, p := range sent {
			for _, m := range p.msgs {
				hear(p.to, int(m[0])<<16|int(m[1])<<8|int(m[2]), now+tick, m)
			}
		}
	}
	good := 0
	for _, c := range count {
		if c >= nodes*99/100 {
			good++
		}
	}
	return good >= len(count)*99/100
}
