package gossip

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"nodenet/state"
	"nodenet/state/disk"
)

// onDisk is a store whose records are made durable as a daemon's are.
func onDisk(t testing.TB) *state.Store {
	t.Helper()
	db, err := disk.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, state.Options{Log: db})
	t.Cleanup(func() { s.Close(); db.Close() })
	return s
}

// endpoints makes ops for n endpoints such as a node has them.
func endpoints(n int) []state.Op {
	ops := make([]state.Op, n)
	for i := range ops {
		id := fmt.Sprintf("%08d", i)
		ops[i] = state.Put(state.Owner, state.KindEndpoint, id, state.Endpoint{
			ID: id, Network: "pods", Namespace: "default", Name: "web-" + id, Labels: map[string]string{"app": "web"},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, Kind: state.EndpointCNI, Ready: true,
		})
	}
	return ops
}

// TestColdJoin: a large history comes in many exchanges and is applied at once
// with its signed end.
func TestColdJoin(t *testing.T) {
	a, b, c := onDisk(t), onDisk(t), onDisk(t)
	write(t, a, endpoints(12_000)...)
	ra, rb, rc := &replica{tables: a}, &replica{tables: b}, &replica{tables: c, budget: 1}
	if n := exchange(t, rb, ra); n < 10 {
		t.Errorf("%d frames: the history came in one piece", n)
	}
	if h := b.Snapshot().Head(a.Self()); !h.Signed() || h.Mark != a.Snapshot().Head(a.Self()).Mark {
		t.Errorf("head %+v after the join", h)
	}
	exchange(t, rb, rc) // which is no part of the owner's own link, and slow
	for _, s := range []*state.Store{b, c} {
		if !bytes.Equal(rootOf(a.Snapshot()), rootOf(s.Snapshot())) {
			t.Error("not equal")
		}
	}
}

// BenchmarkColdJoin is the time from the first frame to a node holding 100 000
// records of another, on disk, signature and hash checked.
func BenchmarkColdJoin(b *testing.B) {
	from := onDisk(b)
	write(b, from, endpoints(100_000)...)
	var cpu time.Duration // which a busy machine changes less than the time
	frames := 0
	for b.Loop() {
		b.StopTimer()
		to := onDisk(b)
		b.StartTimer()
		began := cpuTime()
		frames = exchange(b, &replica{tables: to}, &replica{tables: from})
		cpu += cpuTime() - began
		if to.Snapshot().Head(from.Self()).Mark != from.Snapshot().Head(from.Self()).Mark {
			b.Fatal("not joined")
		}
	}
	b.ReportMetric(float64(frames), "frames")
	b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/op")
}
