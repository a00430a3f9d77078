package state

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// dump is what two replicas must agree on.
func dump(s *Store) map[string]string {
	out := map[string]string{}
	sn := s.Snapshot()
	for _, k := range []Kind{KindNode, KindBlock, KindService, KindLease, KindRing} {
		for r := range sn.tables.kind(k) {
			out[r.ID.String()] = fmt.Sprintf("%v %v %x", r.Version, r.Deleted, r.Value)
		}
	}
	return out
}

// TestReplicasConverge: whatever three replicas write and in whatever order
// they hear of one another, once each has heard all, they hold the same; and
// hearing it again changes nothing.
func TestReplicasConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stores []*Store
		for i := range 3 {
			s, err := NewStore(Options{Self: testID(byte(i + 1)), Epoch: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			stores = append(stores, s)
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			s := stores[rapid.IntRange(0, 2).Draw(t, "node")]
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				mustWrite(t, s, Put(Owner, KindBlock, key, Block{Network: fmt.Sprint(rapid.Int().Draw(t, "v"))}))
			case 1:
				mustWrite(t, s, Del(Owner, KindBlock, key))
			case 2:
				mustWrite(t, s, Put(Cluster, KindService, key, Service{Name: fmt.Sprint(rapid.Int().Draw(t, "v"))}))
			case 3:
				mustWrite(t, s, Del(Cluster, KindService, key))
			case 4:
				mustWrite(t, s, Put(Lease, KindLease, key, LeaseValue{MAC: fmt.Sprint(rapid.Int().Draw(t, "v"))}))
			case 5:
				exchange(t, s, stores[rapid.IntRange(0, 2).Draw(t, "peer")])
			}
		}
		for range 2 {
			for _, a := range stores {
				for _, b := range stores {
					exchange(t, a, b)
				}
			}
		}
		for _, s := range stores[1:] {
			if diff := cmp.Diff(dump(stores[0]), dump(s)); diff != "" {
				t.Fatalf("replicas differ:\n%s", diff)
			}
			if stores[0].Snapshot().Buckets() != s.Snapshot().Buckets() {
				t.Fatal("equal records, different bucket hashes")
			}
		}
		rev := stores[0].Snapshot().Rev()
		exchange(t, stores[0], stores[1])
		if got := stores[0].Snapshot().Rev(); got != rev {
			t.Fatalf("hearing it again made revision %d of %d", got, rev)
		}
	})
}

func mustWrite(t *rapid.T, s *Store, op Op) {
	if _, err := s.Write(t.Context(), func(*Snapshot) ([]Op, error) { return []Op{op}, nil }); err != nil {
		t.Fatal(err)
	}
}

func exchange(t *rapid.T, to, from *Store) {
	sn := from.Snapshot()
	for _, h := range sn.Heads() {
		if h.Owner == to.Self() {
			continue
		}
		if _, err := to.MergeDelta(sn.Delta(h.Owner, to.Snapshot().Head(h.Owner).Mark, 0)); err != nil {
			t.Fatal(err)
		}
	}
	a, b := sn.Buckets(), to.Snapshot().Buckets()
	for i := range a {
		if a[i] != b[i] {
			if _, err := to.Merge(sn.Bucket(i), false); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCompareIsATotalOrder: merge is commutative, associative and idempotent
// because it takes the maximum of a total order.
func TestCompareIsATotalOrder(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) Version {
		n := rapid.Uint64Range(0, 2)
		return Version{n.Draw(t, "e"), n.Draw(t, "s"), HLC(n.Draw(t, "h")), n.Draw(t, "g"), NodeID(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "n"))}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := gen.Draw(t, "a"), gen.Draw(t, "b"), gen.Draw(t, "c")
		for _, class := range []Class{Owner, Cluster, Lease, Ring} {
			if Compare(class, a, b) != -Compare(class, b, a) {
				t.Fatalf("%s: not antisymmetric", class)
			}
			if Compare(class, a, b) <= 0 && Compare(class, b, c) <= 0 && Compare(class, a, c) > 0 {
				t.Fatalf("%s: not transitive", class)
			}
			if Compare(class, a, a) != 0 {
				t.Fatalf("%s: not reflexive", class)
			}
		}
	})
}
