package state

import (
	"context"
	"testing"
	"time"
)

// Two nodes write one record without hearing of each other; who merges shows
// the loser, whichever comes first, until somebody writes who saw the winner.
func TestOverwrittenUnseen(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	clock := func() *Clock { return &Clock{Now: func() time.Time { return now }} }
	open := func(i byte) *Store {
		s, err := NewStore(Options{Self: newClaimant(i).id, Clock: clock()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, b := open(1), open(2)
	id := ID{Class: Cluster, Kind: KindName, Key: "www A"}
	put := func(s *Store, target string) Record {
		now = now.Add(time.Second)
		if _, err := s.Write(context.Background(), func(*Snapshot) ([]Op, error) {
			return []Op{Put(Cluster, KindName, id.Key, Name{Name: "www", Type: "A", Target: target})}, nil
		}); err != nil {
			t.Fatal(err)
		}
		r, _ := s.Snapshot().Get(id)
		return r
	}
	merge := func(s *Store, recs ...Record) {
		for _, r := range recs {
			if _, err := s.Merge([]Record{r}, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(s *Store, losers ...string) {
		t.Helper()
		got := s.Snapshot().Losses(now)
		if len(got) != len(losers) {
			t.Fatalf("losses %+v, want %v", got, losers)
		}
		for i, l := range got {
			if v := l.Loser.Val().(*Name); v.Target != losers[i] {
				t.Errorf("lost %s, want %s", v.Target, losers[i])
			}
		}
	}
	first := put(a, "192.0.2.1")
	merge(b, first)
	want(b)
	one := put(a, "192.0.2.2") // both saw the first
	two := put(b, "192.0.2.3")
	merge(a, two)
	merge(b, one)
	want(a, "192.0.2.2")
	want(b, "192.0.2.2")
	merge(a, two, one)
	want(a, "192.0.2.2") // once
	// In order, and with a version left out, nothing is lost.
	c := open(3)
	merge(c, first, two)
	want(c)
	merge(open(4), two, first)
	three := put(a, "192.0.2.4") // saw the winner
	want(a)
	merge(b, three)
	want(b)
	// Equal values are no loss, and old ones are forgotten.
	put(a, "192.0.2.5")
	same := put(b, "192.0.2.5")
	merge(a, same)
	want(a)
	put(a, "192.0.2.6")
	merge(a, put(b, "192.0.2.7"))
	want(a, "192.0.2.6")
	now = now.Add(25 * time.Hour)
	want(a)
}
