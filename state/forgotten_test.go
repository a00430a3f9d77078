package state

import (
	"context"
	"net/netip"
	"testing"
)

// A forgotten node's blocks and endpoints leave the view of the others; what
// it writes after it came back counts, what it wrote before still does not.
func TestForgottenNode(t *testing.T) {
	a, b := testID(1), testID(2)
	open := func(self NodeID, epoch uint64) *Store {
		s, err := NewStore(Options{Self: self, Epoch: epoch})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	sa, sb := open(a, 1), open(b, 5)
	put := func(s *Store, ops ...Op) {
		t.Helper()
		if _, err := s.Write(context.Background(), func(*Snapshot) ([]Op, error) { return ops, nil }); err != nil {
			t.Fatal(err)
		}
	}
	tell := func() {
		t.Helper()
		d := sb.Snapshot().Delta(b, sa.Snapshot().Head(b).Mark, 0)
		if _, err := sa.MergeDelta(d); err != nil {
			t.Fatal(err)
		}
	}
	node := Node{Name: "node2", BootID: "one"}
	block := Block{Network: "pods", Prefix: netip.MustParsePrefix("10.244.1.0/24")}
	ep := Endpoint{ID: "e", Network: "pods", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Ready: true}
	put(sa, Put(Owner, KindNode, "self", Node{Name: "node1"}))
	put(sb, Put(Owner, KindNode, "self", node), Put(Owner, KindBlock, "pods/10.244.1.0/24", block), Put(Owner, KindEndpoint, "e", ep))
	tell()
	sees := func(nodes, blocks, endpoints int) {
		t.Helper()
		v := sa.Snapshot().View()
		got := 0
		for _, n := range v.Nodes {
			got += len(n.Blocks)
		}
		if len(v.Nodes) != nodes || got != blocks || v.NumEndpoints() != endpoints {
			t.Errorf("sees %d nodes, %d blocks, %d endpoints, want %d, %d, %d", len(v.Nodes), got, v.NumEndpoints(), nodes, blocks, endpoints)
		}
	}
	sees(2, 1, 1)
	put(sa, Put(Cluster, KindForgotten, string(b), Forgotten{By: a, Epoch: 5, Name: "node2"}))
	sees(1, 0, 0)
	if g := sa.Snapshot().Gone(); !g.Node(b) || g.Node(a) {
		t.Error("not the right node is gone")
	}

	sb.SetEpoch(6)
	if sb.Epoch() != 5 {
		t.Fatal("an epoch changed after the first write")
	}
	sb.RaiseEpoch(7)
	sb.RaiseEpoch(6) // never back
	node.BootID = "two"
	put(sb, Put(Owner, KindNode, "self", node))
	tell()
	sees(2, 0, 0)
	again := Put(Owner, KindEndpoint, "e", ep)
	again.Gen = 1 // the same value, written anew
	put(sb, again)
	tell()
	sees(2, 0, 1)
	if g := sb.Snapshot().Gone(); g.Node(b) {
		t.Error("a node holds its own records for gone")
	}
}
