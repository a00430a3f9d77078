package state

import (
	"errors"
	"testing"
)

// TestRestoredBackupBeginsAnew: the disk went back in time, the node wrote
// before it heard anybody, and a peer knows more of its past.
func TestRestoredBackupBeginsAnew(t *testing.T) {
	for name, epoch := range map[string]uint64{"clock is right": 9, "clock is behind": 2} {
		t.Run(name, func(t *testing.T) {
			old := newStore(t, 1, nil)
			put(t, old, Put(Owner, KindBlock, "kept", Block{Network: "kept"}))
			put(t, old, Put(Owner, KindBlock, "gone", Block{Network: "gone"}))
			var backup []Record
			for r := range old.Snapshot().tables.kind(KindBlock) {
				backup = append(backup, *r)
			}
			old.RaiseEpoch(5)
			put(t, old, Put(Owner, KindBlock, "later", Block{Network: "later"}))
			put(t, old, Del(Owner, KindBlock, "gone"))
			peer := newStore(t, 2, nil)
			pull(t, peer, old)

			back, err := NewStore(Options{Self: old.Self(), Epoch: epoch, Records: backup})
			if err != nil {
				t.Fatal(err)
			}
			defer back.Close()
			held := peer.Snapshot().Head(old.Self()).Mark
			if n, err := back.Reissue(held); n != 0 || err != nil {
				t.Fatalf("before the first write: %d, %v; the peer's records are to be merged", n, err)
			}
			put(t, back, Put(Owner, KindBlock, "new", Block{Network: "new"}))
			if n, err := back.Reissue(held); n != 3 || err != nil {
				t.Fatalf("wrote %d anew, %v; want kept, gone and new", n, err)
			}
			if n, err := back.Reissue(held); n != 0 || err != nil {
				t.Errorf("the same again: %d, %v", n, err)
			}
			pull(t, peer, back)
			want := map[string]bool{}
			for r := range All[Block](back.Snapshot()) {
				want[r.ID.Key] = true
			}
			for r := range All[Block](peer.Snapshot()) {
				if !want[r.ID.Key] {
					t.Errorf("%s stays with the peer for ever", r.ID.Key)
				}
				delete(want, r.ID.Key)
			}
			if len(want) > 0 {
				t.Errorf("the peer lacks %v", want)
			}
		})
	}
}

func TestReissueEndsAgainstAClone(t *testing.T) {
	s := newStore(t, 1, nil)
	put(t, s, Put(Owner, KindBlock, "a", Block{}))
	var err error
	for range maxReissues + 1 {
		_, err = s.Reissue(Mark{Epoch: s.Epoch() + 1, Seq: 1})
	}
	if !errors.Is(err, ErrForeignWriter) {
		t.Errorf("got %v, want ErrForeignWriter", err)
	}
}
