package disk

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nodenet/state"
)

var self = state.NodeIDFromKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))

func openStore(t *testing.T, path string) (*state.Store, func()) {
	t.Helper()
	db, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	recs, heads, err := db.Load()
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.NewStore(state.Options{Self: self, Epoch: 7, Log: db, Records: recs, Heads: heads})
	if err != nil {
		t.Fatal(err)
	}
	return s, func() { s.Close(); db.Close() }
}

func TestAcknowledgedRecordsSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, stop := openStore(t, path)
	b := state.Block{Network: "pods", Prefix: netip.MustParsePrefix("10.244.1.0/24")}
	if _, err := s.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) {
		return []state.Op{state.Put(state.Owner, state.KindBlock, "pods/10.244.1.0/24", b)}, nil
	}); err != nil {
		t.Fatal(err)
	}
	stop()
	s, stop = openStore(t, path)
	defer stop()
	got, ok := state.Lookup[state.Block](s.Snapshot(), state.ID{Class: state.Owner, Kind: state.KindBlock, Owner: self, Key: "pods/10.244.1.0/24"})
	if !ok || *got != b {
		t.Fatalf("after reopening: %v %v, want %v", got, ok, b)
	}
	if h := s.Snapshot().Head(self); h.Mark != (state.Mark{Epoch: 7, Seq: 1}) {
		t.Errorf("head %v after reopening", h.Mark)
	}
}

func TestFloorsSurviveCollection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, stop := openStore(t, path)
	for _, op := range []state.Op{
		state.Put(state.Owner, state.KindBlock, "a", state.Block{}),
		state.Del(state.Owner, state.KindBlock, "a"),
		state.Put(state.Owner, state.KindBlock, "b", state.Block{}),
	} {
		if _, err := s.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return []state.Op{op}, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Collect(time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Fatalf("collected %d, %v", n, err)
	}
	stop()
	s, stop = openStore(t, path)
	defer stop()
	if d := s.Snapshot().Delta(self, state.Mark{Epoch: 7, Seq: 1}, 0); !d.Replace {
		t.Error("the floor was forgotten: a replica that holds the deleted record would keep it")
	}
}

func TestCorruptFileIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	kept, _ := filepath.Glob(path + ".corrupt-*")
	if len(kept) != 1 {
		t.Errorf("set aside: %v, want one file", kept)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := Open(path, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

func TestAdoptedFloorSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	owner := state.NodeIDFromKey(ed25519.NewKeyFromSeed(append(make([]byte, 31), 9)).Public().(ed25519.PublicKey))
	floor := state.Mark{Epoch: 3, Seq: 4}
	s, stop := openStore(t, path)
	if _, err := s.MergeDelta(state.Delta{Owner: owner, To: state.Mark{Epoch: 3, Seq: 5}, Replace: true, Floor: floor}); err != nil {
		t.Fatal(err)
	}
	stop()
	s, stop = openStore(t, path)
	defer stop()
	if h := s.Snapshot().Head(owner); h.Floor != floor || h.Mark != (state.Mark{Epoch: 3, Seq: 5}) {
		t.Errorf("head %+v after reopening, want floor %v", h, floor)
	}
}

// TestDamageIsSurvived takes single pages away, and the end of the file.
func TestDamageIsSurvived(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, stop := openStore(t, path)
	if _, err := s.Write(context.Background(), func(*state.Snapshot) (ops []state.Op, _ error) {
		for i := range 300 {
			ops = append(ops, state.Put(state.Owner, state.KindBlock, fmt.Sprintf("pods/%d", i), state.Block{Network: "pods"}))
		}
		return ops, nil
	}); err != nil {
		t.Fatal(err)
	}
	stop()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for at := 0; at < len(whole); at += page {
		zeroed := slices.Clone(whole)
		clear(zeroed[at : at+page])
		for what, b := range map[string][]byte{"zeroed": zeroed, "cut": whole[:at]} {
			path := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := Open(path, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatalf("%s at %d: %v", what, at, err)
			}
			if _, _, err := db.Load(); err != nil {
				t.Errorf("%s at %d: load: %v", what, at, err)
			}
			if err := db.Commit([]state.Record{{ID: state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: "a/b"}}}); err != nil {
				t.Errorf("%s at %d: commit: %v", what, at, err)
			}
			db.Close()
		}
	}
}

func TestFileThatCannotBeOpenedStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	if err := os.Mkdir(path, 0o700); err != nil { // EISDIR, for root too
		t.Fatal(err)
	}
	if _, err := Open(path, slog.New(slog.DiscardHandler)); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("got %v, want EISDIR", err)
	}
	if kept, _ := filepath.Glob(path + ".corrupt-*"); len(kept) != 0 {
		t.Errorf("set aside: %v", kept)
	}
}

// TestSignedHeadsSurvive: a node that comes back can pass on what others
// signed, with the head that belongs to the records on disk.
func TestSignedHeadsSurvive(t *testing.T) {
	key := func(n byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(append(make([]byte, 31), n)) }
	open := func(n byte, path string) (*state.Store, func()) {
		t.Helper()
		db, err := Open(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		recs, heads, err := db.Load()
		if err != nil {
			t.Fatal(err)
		}
		id := state.NodeIDFromKey(key(n).Public().(ed25519.PublicKey))
		s, err := state.NewStore(state.Options{Self: id, Key: key(n), Epoch: 7, Log: db, Records: recs, Heads: heads})
		if err != nil {
			t.Fatal(err)
		}
		return s, func() { s.Close(); db.Close() }
	}
	dir := t.TempDir()
	owner, stop := open(1, filepath.Join(dir, "owner.db"))
	relay, stopRelay := open(2, filepath.Join(dir, "relay.db"))
	var signed []state.Head
	for i := range 3 {
		if _, err := owner.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) {
			return []state.Op{state.Put(state.Owner, state.KindBlock, fmt.Sprint(i), state.Block{Network: "pods"}), state.Del(state.Owner, state.KindBlock, fmt.Sprint(i-1))}, nil
		}); err != nil {
			t.Fatal(err)
		}
		sn := owner.Snapshot()
		if _, err := relay.MergeDelta(sn.Delta(owner.Self(), relay.Snapshot().Head(owner.Self()).Mark, 0)); err != nil {
			t.Fatal(err)
		}
		signed = []state.Head{sn.Head(owner.Self())}
		stop()
		stopRelay()
		owner, stop = open(1, filepath.Join(dir, "owner.db"))
		relay, stopRelay = open(2, filepath.Join(dir, "relay.db"))
		for _, s := range []*state.Store{owner, relay} {
			if diff := cmp.Diff(signed, []state.Head{s.Snapshot().Head(owner.Self())}, cmpopts.IgnoreFields(state.Head{}, "Floor")); diff != "" {
				t.Errorf("after reopening (-signed +got):\n%s", diff)
			}
		}
	}
	defer stop()
	defer stopRelay()
	third, stopThird := open(3, filepath.Join(dir, "third.db"))
	defer stopThird()
	if n, err := third.MergeDelta(relay.Snapshot().Delta(owner.Self(), state.Mark{}, 0)); n != 1 || err != nil {
		t.Errorf("a third node took %d records of the relay, %v", n, err)
	}
}
