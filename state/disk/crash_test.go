package disk

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nodenet/state"
)

const sector = 512 // bytes that a disk writes as a whole

// image is what a crash leaves of a commit. bbolt writes the changed pages,
// syncs, writes one of its two meta pages (the first two of the file), and
// syncs again: before the first sync any part of the changed sectors may be on
// the disk, in any order, and after it all of them and any part of the meta page.
func image(r *rand.Rand, before, after []byte, page int, meta bool) []byte {
	out := make([]byte, len(after))
	copy(out, before)
	for at := 0; at < len(after); at += sector {
		isMeta := at < 2*page
		if isMeta == meta && r.IntN(2) == 0 || meta && !isMeta {
			copy(out[at:at+sector], after[at:at+sector])
		}
	}
	if !meta && r.IntN(4) == 0 && len(before) < len(after) {
		out = out[:len(before)] // the file had not grown yet
	}
	return out
}

func contents(t *testing.T, path string) (recs map[string]string, set bool) {
	t.Helper()
	db, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	list, _, err := db.Load()
	if err != nil {
		t.Fatal(err)
	}
	recs = map[string]string{}
	for _, r := range list {
		recs[r.ID.String()] = fmt.Sprint(r.Version, r.Deleted, string(r.Value))
	}
	kept, _ := filepath.Glob(path + ".corrupt-*")
	return recs, len(kept) > 0
}

// TestCrashAtAnyWrite takes the power away within commits: whatever part of
// what was not yet synced is on the disk, the file opens to the state before
// the commit or after it, and to nothing else; before, only while the commit
// was not acknowledged.
func TestCrashAtAnyWrite(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "state.db")
	s, stop := openStore(t, path)
	defer func() { stop() }()
	page := os.Getpagesize()
	read := func() []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	old, oldSeen := 0, 0
	for commit := range 40 {
		before := read()
		prev := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(prev, before, 0o600); err != nil {
			t.Fatal(err)
		}
		was, _ := contents(t, prev)
		_, err := s.Write(context.Background(), func(sn *state.Snapshot) (ops []state.Op, _ error) {
			for range 1 + r.IntN(30) {
				key := fmt.Sprintf("pods/%d", r.IntN(200))
				if r.IntN(4) == 0 {
					ops = append(ops, state.Del(state.Owner, state.KindBlock, key))
				} else {
					ops = append(ops, state.Put(state.Owner, state.KindBlock, key, state.Block{Network: fmt.Sprint("net", commit)}))
				}
			}
			return ops, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		after := read()
		now := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(now, after, 0o600); err != nil {
			t.Fatal(err)
		}
		is, _ := contents(t, now)
		for i := range 12 {
			meta := i%3 == 2
			crashed := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(crashed, image(r, before, after, page, meta), 0o600); err != nil {
				t.Fatal(err)
			}
			got, aside := contents(t, crashed)
			switch {
			case aside:
				t.Fatalf("commit %d, image %d (meta %v): the file was taken for damaged", commit, i, meta)
			case !maps.Equal(got, was) && !maps.Equal(got, is):
				t.Fatalf("commit %d, image %d (meta %v): neither the state before nor the one after: %v", commit, i, meta, slices.Sorted(maps.Keys(got)))
			case !meta && !maps.Equal(got, was):
				t.Fatalf("commit %d, image %d: half a commit is used", commit, i)
			case maps.Equal(got, was):
				oldSeen++
			}
			old++
		}
	}
	t.Logf("%d images, %d of them the state before", old, oldSeen)
	if oldSeen == old || oldSeen == 0 {
		t.Errorf("%d of %d images show the state before: the test shows nothing", oldSeen, old)
	}
}
