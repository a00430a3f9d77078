package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"nodenet/gossip"
	"nodenet/state"
	"nodenet/state/disk"
)

// A copy of the state directory that is put back gives nothing out before a
// peer was heard, where others share the space; a restart in place, and a node
// on its own, go on at once.
func TestCopiedStateIsNoticed(t *testing.T) {
	for _, others := range []bool{true, false} {
		dir := t.TempDir()
		id, err := gossip.LoadIdentity(dir)
		if err != nil {
			t.Fatal(err)
		}
		open := func(dir string) *Node {
			t.Helper()
			db, err := disk.Open(filepath.Join(dir, "state.db"), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			recs, heads, err := db.Load()
			if err != nil {
				t.Fatal(err)
			}
			s, err := state.NewStore(state.Options{Self: id.ID, Key: id.Key, Log: db, Records: recs, Heads: heads})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			n := &Node{self: id.ID, dir: dir, store: s, cluster: &gossip.Cluster{ID: "c", Bootstrap: true}, log: slog.New(slog.DiscardHandler)}
			if others && len(recs) == 0 {
				peer, err := gossip.NewIdentity()
				if err != nil {
					t.Fatal(err)
				}
				v, err := state.Encode(state.Node{Name: "peer"})
				if err != nil {
					t.Fatal(err)
				}
				m := state.Mark{Epoch: 1, Seq: 1}
				rec := state.Record{ID: state.ID{Class: state.Owner, Kind: state.KindNode, Owner: peer.ID, Key: "self"}, Version: state.Version{Epoch: 1, Seq: 1}, Value: v}
				if _, err := s.MergeFrom(peer.ID, state.Delta{Owner: peer.ID, To: m, Records: []state.Record{rec}}); err != nil {
					t.Fatal(err)
				}
			}
			n.openRestored()
			return n
		}
		for range 2 {
			if open(dir).restored.Load() {
				t.Errorf("others %v: a restart in place counts as restored", others)
			}
		}
		back := filepath.Join(t.TempDir(), "back")
		if err := os.CopyFS(back, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // it stays so until a peer was heard
			n := open(back)
			if got := n.restored.Load(); got != others {
				t.Errorf("others %v: a copy counts as restored: %v", others, got)
			}
		}
	}
}
