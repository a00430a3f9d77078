package ipam

import (
	"fmt"
	"net/netip"
	"testing"

	"nodenet/state"
)

// BenchmarkAllocate allocates on a node of a cluster with 100 000 endpoints.
func BenchmarkAllocate(b *testing.B) {
	const others, each = 100, 1000
	c := newCluster(b, 1)
	defer c.close()
	n := c.nodes[0]
	found(b, n, NetworkSpec(pods))
	for o := range others {
		id := nodeID(o + 1)
		var recs []state.Record
		for i := range each {
			ep := state.Endpoint{ID: fmt.Sprint("ep", i), Network: "pods", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(o), byte(i >> 8), byte(i)})}, Kind: state.EndpointCNI}
			v, err := state.Encode(ep)
			if err != nil {
				b.Fatal(err)
			}
			recs = append(recs, state.Record{
				ID:      state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: id, Key: ep.ID},
				Version: state.Version{Epoch: 1, Seq: uint64(i + 1)}, Value: v,
			})
		}
		d := state.Delta{Owner: id, To: state.Mark{Epoch: 1, Seq: each}, Records: recs}
		if _, err := n.store.MergeDelta(d); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := attach(n.store, n.id, n.alloc.Allocate, req(pods, "first")); err != nil {
		b.Fatal(err)
	}
	sn := n.store.Snapshot()
	b.Run("indexed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := n.alloc.Allocate(sn, n.id, req(pods, "x")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := Allocate(sn, n.id, req(pods, "x")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("write", func(b *testing.B) { // attach and release, through the store
		i := 0
		for b.Loop() {
			i++
			id := fmt.Sprint("w", i)
			r := req(pods, id)
			r.Rest = -1
			if _, err := attach(n.store, n.id, n.alloc.Allocate, r); err != nil {
				b.Fatal(err)
			}
			put2(b, n, state.Del(state.Owner, state.KindEndpoint, id))
		}
	})
}

func put2(b *testing.B, n *simNode, ops ...state.Op) {
	b.Helper()
	if err := write(n.store, func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		b.Fatal(err)
	}
}
