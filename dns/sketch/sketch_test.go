package sketch

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestBounds: no count is too low, none is too high by more than it says, and
// whatever is more frequent than 1/k is there; of one sketch and of several.
func TestBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 20).Draw(t, "k")
		parts := rapid.IntRange(1, 4).Draw(t, "parts")
		stream := rapid.SliceOf(rapid.IntRange(0, 40)).Draw(t, "stream")
		real := map[string]uint64{}
		sketches := make([]*Sketch, parts)
		for i := range sketches {
			sketches[i] = New(k)
		}
		for i, v := range stream {
			what := fmt.Sprint(v * v / 40) // some are more frequent
			real[what]++
			sketches[i%parts].Add(what, 1)
		}
		for i, s := range sketches {
			if i > 0 {
				sketches[0].Merge(s)
			}
		}
		top := sketches[0].Top(k)
		if len(top) > k {
			t.Fatalf("%d items of %d counters", len(top), k)
		}
		held := map[string]bool{}
		for _, it := range top {
			held[it.What] = true
			if it.Count-it.Error > real[it.What] {
				t.Errorf("%s: %d, at most %d too high, is %d", it.What, it.Count, it.Error, real[it.What])
			}
			if parts == 1 && it.Count < real[it.What] {
				t.Errorf("%s: %d, is %d", it.What, it.Count, real[it.What])
			}
		}
		for what, n := range real {
			if parts == 1 && n > uint64(len(stream))/uint64(k) && !held[what] {
				t.Errorf("%s is missing: %d of %d with %d counters", what, n, len(stream), k)
			}
		}
		if got := sketches[0].Total(); got != uint64(len(stream)) {
			t.Errorf("total %d, want %d", got, len(stream))
		}
	})
}

// TestOrder: the most frequent first, what is equal by name.
func TestOrder(t *testing.T) {
	s := New(8)
	for what, n := range map[string]uint64{"b": 3, "a": 3, "c": 9, "d": 1} {
		s.Add(what, n)
	}
	var got string
	for _, it := range s.Top(3) {
		got += it.What
	}
	if got != "cab" {
		t.Errorf("order %s", got)
	}
	if s.Add("x", 1); len(New(0).Top(3)) != 0 {
		t.Error("a sketch without counters holds something")
	}
}

// BenchmarkAdd: a stream of many names, of which few are frequent.
func BenchmarkAdd(b *testing.B) {
	names := make([]string, 1<<14)
	for i := range names {
		names[i] = fmt.Sprintf("svc%d.apps.svc.cluster.local.", int(float64(i)*rand.Float64()*rand.Float64()*rand.Float64()))
	}
	s := New(256)
	for i := 0; b.Loop(); i++ {
		s.Add(names[i%len(names)], 1)
	}
}
