package state

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
	"unsafe"
)

// A cluster of 1 000 nodes and 1 000 services. Ten endpoints stand behind each
// of the first services; what is beyond 10 000 stands behind none, so that
// clusters of all sizes have services of one size.
const (
	scaleNodes    = 1000
	scaleServices = 1000
	scaleBackends = 10
)

func scaleKey(i int) ed25519.PublicKey {
	sum := sha256.Sum256(fmt.Append(nil, "node ", i))
	return sum[:]
}

func scaleID(i int) NodeID { return NodeIDFromKey(scaleKey(i)) }

func scaleEndpoint(i int, ready bool) Endpoint {
	app, node := i/scaleBackends, i%scaleNodes
	return Endpoint{
		ID: fmt.Sprintf("%064x/eth0", i), Network: "pods", Namespace: "apps", Name: fmt.Sprintf("web-%d-7d4b9c6f5-%05d", app, i),
		Labels: map[string]string{"app": fmt.Sprintf("web-%d", app), "tier": "frontend", "pod-template-hash": fmt.Sprintf("7d4b9c6f5%d", app%7)},
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, byte(128 + node>>8), byte(node), byte(2 + i/scaleNodes)})},
		MAC:    fmt.Sprintf("02:00:00:%02x:%02x:%02x", byte(i>>16), byte(i>>8), byte(i)),
		Ports:  []Port{{Name: "http", Protocol: "tcp", Port: 8080}, {Name: "metrics", Protocol: "tcp", Port: 9090}},
		Kind:   EndpointCNI, Ready: ready, Created: 1760000000, HostIf: fmt.Sprintf("nn%08x", i),
		Netns: fmt.Sprintf("/var/run/netns/cni-%08x-0000-4000-8000-%012x", i, i), IfName: "eth0", Gateway: netip.AddrFrom4([4]byte{10, 128, 0, 1}), PrefixLen: 24,
	}
}

// scaleRecords returns the tables of a cluster with n endpoints, as a Log
// would hold them. scaleID(0) is self.
func scaleRecords(tb testing.TB, n int) []Record {
	tb.Helper()
	var out []Record
	seq := map[NodeID]uint64{}
	add := func(id ID, v any) {
		b, err := Encode(v)
		if err != nil {
			tb.Fatal(err)
		}
		r := Record{ID: id, Value: b, Time: 1760000000}
		if id.Class == Owner {
			seq[id.Owner]++
			r.Version = Version{Epoch: 1, Seq: seq[id.Owner]}
		} else {
			r.Version = Version{HLC: 1, Node: scaleID(0)}
		}
		// As from the disk or a peer: nothing is shared yet.
		if b, err = Encode(r); err != nil {
			tb.Fatal(err)
		}
		var got Record
		if err := Decode(b, &got); err != nil {
			tb.Fatal(err)
		}
		out = append(out, got)
	}
	for i := range scaleNodes {
		id := scaleID(i)
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i>>8), byte(i), 0}), 24)
		add(ID{Owner, KindNode, id, "self"}, Node{
			Name: fmt.Sprintf("node%04d", i), Advertise: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), PublicKey: scaleKey(i), VTEPMAC: id.VTEPMAC(),
			OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		})
		add(ID{Owner, KindNetwork, id, "pods"}, Network{Name: "pods", Prefix: netip.MustParsePrefix("10.128.0.0/9"), Block: 24, Overlay: OverlayVXLAN, VNI: 1})
		add(ID{Owner, KindBlock, id, "pods/" + block.String()}, Block{Network: "pods", Prefix: block})
	}
	for i := range scaleServices {
		s := Service{Namespace: "apps", Name: fmt.Sprintf("web-%d", i), Selector: map[string]string{"app": fmt.Sprintf("web-%d", i)}, Ports: []ServicePort{{Name: "http", Protocol: "tcp", Port: 80}}}
		add(ID{Class: Cluster, Kind: KindService, Key: s.Key()}, s)
		add(ID{Class: Cluster, Kind: KindVIP, Key: s.Key()}, VIP{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})})
	}
	for i := range n {
		e := scaleEndpoint(i, true)
		add(ID{Owner, KindEndpoint, scaleID(i % scaleNodes), e.ID}, e)
	}
	return out
}

func scaleStore(tb testing.TB, n int) *Store {
	tb.Helper()
	s, err := NewStore(Options{Self: scaleID(0), Epoch: 2, Records: scaleRecords(tb, n)})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// reportCPU reports what an operation costs of the processor, garbage
// collection included: it holds on a busy machine too.
func reportCPU(b *testing.B) func() {
	b.ReportAllocs()
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	begin := cpu()
	return func() { b.ReportMetric(float64((cpu()-begin).Microseconds())/float64(b.N), "cpu-µs/op") }
}

// BenchmarkEndpointChange writes one endpoint of this node, or merges one of
// another's, and derives the view and what changed.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range []int{1000, 10000, 100000} {
		s := scaleStore(b, n)
		old := s.Snapshot().View()
		look := func(b *testing.B) {
			v := s.Snapshot().View()
			if c := v.Since(old); len(c.Endpoints) != 1 || len(c.Services) != 1 || c.All {
				b.Fatalf("%d endpoints, %d services changed, all: %v", len(c.Endpoints), len(c.Services), c.All)
			}
			old = v
		}
		ready := true
		b.Run(fmt.Sprintf("write/%d", n), func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				ready = !ready
				e := scaleEndpoint(0, ready)
				if _, err := s.Write(context.Background(), func(*Snapshot) ([]Op, error) {
					return []Op{Put(Owner, KindEndpoint, e.ID, e)}, nil
				}); err != nil {
					b.Fatal(err)
				}
				look(b)
			}
		})
		owner := scaleID(1)
		b.Run(fmt.Sprintf("merge/%d", n), func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				ready = !ready
				e := scaleEndpoint(1, ready)
				value, err := Encode(e)
				if err != nil {
					b.Fatal(err)
				}
				at := s.Snapshot().Head(owner).Mark
				next := Mark{at.Epoch, at.Seq + 1}
				if _, err := s.MergeDelta(Delta{Owner: owner, From: at, To: next, Records: []Record{{
					ID: ID{Owner, KindEndpoint, owner, e.ID}, Version: Version{Epoch: next.Epoch, Seq: next.Seq}, Value: value,
				}}}); err != nil {
					b.Fatal(err)
				}
				look(b)
			}
		})
		b.Run(fmt.Sprintf("from-scratch/%d", n), func(b *testing.B) {
			sn := s.Snapshot()
			for b.Loop() {
				derive(sn)
			}
		})
		s.Close()
	}
}

// heap returns the bytes that are reachable.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestHeapOfALargeCluster measures what a store and its view hold of 1 000
// nodes with 100 endpoints each, and where that goes. With -v it prints the
// table.
func TestHeapOfALargeCluster(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("builds a cluster of 100 000 endpoints, and what it takes without the race detector is what counts")
	}
	const n, limit = 100_000, 150 << 20
	empty := heap()
	recs := scaleRecords(t, n)
	s, err := NewStore(Options{Self: scaleID(0), Epoch: 2, Records: recs})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	recs = nil
	stored := heap()
	v := s.Snapshot().View()
	total := heap()

	w := tabwriter.NewWriter(os.Stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(what string, bytes uint64) {
		fmt.Fprintf(w, "%s\t%.1f MiB\t%d B an endpoint\t\n", what, float64(bytes)/(1<<20), bytes/n)
	}
	sn := s.Snapshot()
	before := heap()
	again := newTables()
	var headers, values uint64
	for r := range sn.tables.ids.all() {
		headers += uint64(unsafe.Sizeof(*r))
		values += uint64(cap(r.Value))
		again.ids.put(r)
		again.order(r).put(r)
	}
	indexes := heap() - before
	runtime.KeepAlive(again)
	line("records", headers)
	line("their values, encoded", values)
	line("indexes", indexes)
	line("values decoded, keys, heads, strings", stored-empty-headers-values-indexes)
	line("store", stored-empty)
	line("view", total-stored)
	line("total", total-empty)
	if testing.Verbose() {
		w.Flush()
	}
	if v.NumEndpoints() != n {
		t.Fatalf("%d endpoints", v.NumEndpoints())
	}
	if total-empty > limit {
		t.Errorf("%d MiB, want at most %d", (total-empty)>>20, limit>>20)
	}
	runtime.KeepAlive(v)
}
