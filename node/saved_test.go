package node

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nodenet/state"
)

// TestGossipBeginsAfterTheSavedState: what was saved is served first, unless
// that takes too long or there is nothing.
func TestGossipBeginsAfterTheSavedState(t *testing.T) {
	tests := map[string]struct {
		saved     bool
		appliesIn time.Duration // 0: never
		want      time.Duration
	}{
		"nothing saved":     {saved: false, want: 0},
		"served soon":       {saved: true, appliesIn: 40 * time.Millisecond, want: 40 * time.Millisecond},
		"kernel in trouble": {saved: true, want: bootWait},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newTestNode(t)
				op := state.Del(state.Owner, state.KindNode, "self")
				if tt.saved {
					op = state.Put(state.Owner, state.KindNode, "self", state.Node{Name: "node1"})
				}
				if _, err := n.store.Write(t.Context(), func(*state.Snapshot) ([]state.Op, error) { return []state.Op{op}, nil }); err != nil {
					t.Fatal(err)
				}
				var applied atomic.Uint64
				n.applied = applied.Load
				if tt.appliesIn > 0 {
					time.AfterFunc(tt.appliesIn, func() { applied.Store(n.store.Snapshot().Rev()) })
				}
				began := time.Now()
				var at time.Duration
				if err := n.afterSaved(func(context.Context) error { at = time.Since(began); return nil })(t.Context()); err != nil {
					t.Fatal(err)
				}
				// It looks every other millisecond.
				if at < tt.want || at > tt.want+2*time.Millisecond {
					t.Errorf("gossip begins after %v, want %v", at, tt.want)
				}
			})
		})
	}
}

// TestSavedStateHasARevision: afterSaved waits for one.
func TestSavedStateHasARevision(t *testing.T) {
	n := newTestNode(t)
	value, err := state.Encode(state.Node{Name: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	store, err := state.NewStore(state.Options{Self: n.self, Records: []state.Record{{
		ID: state.ID{Class: state.Owner, Kind: state.KindNode, Owner: n.self, Key: "self"}, Version: state.Version{Epoch: 1, Seq: 1}, Value: value,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	n.store = store
	if !n.saved() || store.Snapshot().Rev() == 0 {
		t.Errorf("saved %v, revision %d: want one above 0", n.saved(), store.Snapshot().Rev())
	}
}
