package state

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nodenet/state/lthash"
)

func testKey(n byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(append(make([]byte, 31), n)) }

func newSigner(t interface {
	Fatal(...any)
	Cleanup(func())
}, n byte, o Options) *Store {
	o.Self, o.Key, o.Epoch = testID(n), testKey(n), max(1, o.Epoch)
	s, err := NewStore(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func ownBlock(key, network string) Op { return Put(Owner, KindBlock, key, Block{Network: network}) }

// liveSet is what an owner's signature speaks of.
func liveSet(sn *Snapshot, owner NodeID) map[string]string {
	out := map[string]string{}
	for _, r := range sn.tables.liveOf(owner) {
		out[r.ID.Key] = fmt.Sprintf("%d.%d %d %x", r.Version.Epoch, r.Version.Seq, r.Time, r.Value)
	}
	return out
}

// copyDelta returns a delta whose records can be changed.
func copyDelta(d Delta) Delta {
	d.Records = slices.Clone(d.Records)
	for i := range d.Records {
		d.Records[i].Value = bytes.Clone(d.Records[i].Value)
	}
	d.Hash, d.Key, d.Sig = bytes.Clone(d.Hash), bytes.Clone(d.Key), bytes.Clone(d.Sig)
	return d
}

// find returns the place of a record in a delta.
func find(t interface{ Fatalf(string, ...any) }, d *Delta, key string) int {
	i := slices.IndexFunc(d.Records, func(r Record) bool { return r.ID.Key == key })
	if i < 0 {
		t.Fatalf("the delta has no record %s", key)
	}
	return i
}

// TestForgery: what a relay may do to another node's history is refused as a
// whole, and the honest delta is taken afterwards all the same.
func TestForgery(t *testing.T) {
	owner := newSigner(t, 1, Options{})
	put(t, owner, ownBlock("kept", "1"), ownBlock("doomed", "1"), ownBlock("changed", "1"))
	first := owner.Snapshot().Delta(owner.Self(), Mark{}, 0)
	put(t, owner, ownBlock("changed", "2"))
	put(t, owner, ownBlock("changed", "3"), Del(Owner, KindBlock, "doomed"), ownBlock("new", "1"))
	next := owner.Snapshot().Delta(owner.Self(), first.To, 0)
	free := Version{Epoch: 1, Seq: 4} // "2" was overwritten
	other := newSigner(t, 2, Options{})
	put(t, other, ownBlock("theirs", "1"))

	cases := map[string]struct {
		edit func(d *Delta)
		want error
	}{
		"value changed":       {func(d *Delta) { d.Records[find(t, d, "new")].Value[1] ^= 1 }, ErrDiffers},
		"time changed":        {func(d *Delta) { d.Records[find(t, d, "new")].Time++ }, ErrDiffers},
		"key changed":         {func(d *Delta) { d.Records[find(t, d, "new")].ID.Key = "newer" }, ErrDiffers},
		"kind changed":        {func(d *Delta) { d.Records[find(t, d, "new")].ID.Kind = "blocks" }, ErrDiffers},
		"version changed":     {func(d *Delta) { d.Records[find(t, d, "new")].Version = free }, ErrDiffers},
		"record dropped":      {func(d *Delta) { i := find(t, d, "new"); d.Records = slices.Delete(d.Records, i, i+1) }, ErrDiffers},
		"deletion dropped":    {func(d *Delta) { i := find(t, d, "doomed"); d.Records = slices.Delete(d.Records, i, i+1) }, ErrDiffers},
		"all dropped":         {func(d *Delta) { d.Records = nil }, ErrDiffers},
		"whole set but empty": {func(d *Delta) { d.Records, d.Replace = nil, true }, ErrDiffers},
		"taken for all":       {func(d *Delta) { d.From = Mark{} }, ErrDiffers},
		"record added": {func(d *Delta) {
			r := d.Records[find(t, d, "new")]
			r.ID.Key, r.Version = "false", free
			d.Records = append(d.Records, r)
		}, ErrDiffers},
		"deletion forged": {func(d *Delta) {
			r := d.Records[find(t, d, "doomed")]
			r.ID.Key, r.Version = "kept", free
			d.Records = append(d.Records, r)
		}, ErrDiffers},
		"deleted what is new": {func(d *Delta) { r := &d.Records[find(t, d, "new")]; r.Deleted, r.Value = true, nil }, ErrDiffers},
		"one version twice": {func(d *Delta) {
			r := d.Records[find(t, d, "new")]
			r.ID.Key = "false"
			d.Records = append(d.Records, r)
		}, ErrForged},
		"one record twice": {func(d *Delta) {
			r := d.Records[find(t, d, "new")]
			r.Version = free
			d.Records = append(d.Records, r)
		}, ErrForged},
		"record of another owner": {func(d *Delta) {
			r := other.Snapshot().Delta(other.Self(), Mark{}, 0).Records[0]
			d.Records = append(d.Records, r)
		}, ErrForged},
		"later than the head":   {func(d *Delta) { d.Records[find(t, d, "new")].Version.Seq = 99 }, ErrForged},
		"before the beginning":  {func(d *Delta) { d.Records[find(t, d, "new")].Version.Seq = 1 }, ErrForged},
		"head moved on":         {func(d *Delta) { d.To.Seq++ }, ErrForged},
		"epoch moved on":        {func(d *Delta) { d.To.Epoch++ }, ErrForged},
		"old head, new records": {func(d *Delta) { d.Hash, d.Sig = first.Hash, first.Sig }, ErrForged},
		"hash changed":          {func(d *Delta) { d.Hash[0] ^= 1 }, ErrForged},
		"hash cut off":          {func(d *Delta) { d.Hash = d.Hash[:8] }, ErrForged},
		"signature changed":     {func(d *Delta) { d.Sig[0] ^= 1 }, ErrForged},
		"no key":                {func(d *Delta) { d.Key = nil }, ErrForged},
		"key swapped": {func(d *Delta) {
			h := Head{Owner: d.Owner, Mark: d.To}
			h.sign(testKey(2), &lthash.Sum{})
			d.Hash, d.Key, d.Sig = h.Hash, h.Key, h.Sig
		}, ErrForged},
		"signed by another for itself": {func(d *Delta) {
			h := other.Snapshot().Head(other.Self())
			d.Hash, d.Key, d.Sig = h.Hash, h.Key, h.Sig
		}, ErrForged},
		"signature taken off": {func(d *Delta) { d.Hash, d.Key, d.Sig = nil, nil, nil }, ErrUnsigned},
		"a part as all":       {func(d *Delta) { d.More = true }, ErrForged},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			victim := newSigner(t, 3, Options{})
			if _, err := victim.MergeFrom(testID(9), copyDelta(first)); err != nil {
				t.Fatal(err)
			}
			before, was := victim.Snapshot().Rev(), dump(victim)
			d := copyDelta(next)
			c.edit(&d)
			if n, err := victim.MergeFrom(testID(9), d); !errors.Is(err, c.want) || n != 0 {
				t.Errorf("got %d records, %v; want %v", n, err, c.want)
			}
			if rev := victim.Snapshot().Rev(); rev != before {
				t.Errorf("revision %d after %d: something was applied", rev, before)
			}
			if diff := cmp.Diff(was, dump(victim)); diff != "" {
				t.Error(diff)
			}
			if _, err := victim.MergeFrom(testID(9), copyDelta(next)); err != nil {
				t.Errorf("the honest delta: %v", err)
			}
			if diff := cmp.Diff(liveSet(owner.Snapshot(), owner.Self()), liveSet(victim.Snapshot(), owner.Self())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestOwnHistoryIsNotForged: somebody claims to be us.
func TestOwnHistoryIsNotForged(t *testing.T) {
	for _, wrote := range []bool{false, true} {
		s := newSigner(t, 1, Options{})
		if wrote {
			put(t, s, ownBlock("a", "1"))
		}
		liar := newSigner(t, 2, Options{Epoch: 9})
		put(t, liar, ownBlock("a", "false"))
		d := liar.Snapshot().Delta(liar.Self(), Mark{}, 0)
		d.Owner = s.Self()
		for i := range d.Records {
			d.Records[i].ID.Owner = s.Self()
		}
		rev := s.Snapshot().Rev()
		if _, err := s.MergeFrom(liar.Self(), copyDelta(d)); !errors.Is(err, ErrForged) {
			t.Errorf("signed with another key: %v", err)
		}
		d.Hash, d.Key, d.Sig = nil, nil, nil
		if _, err := s.MergeFrom(liar.Self(), copyDelta(d)); !errors.Is(err, ErrUnsigned) {
			t.Errorf("not signed: %v", err)
		}
		if s.Snapshot().Rev() != rev {
			t.Error("something was applied")
		}
	}
}

// TestTombstonesAreHarmless: the hash says nothing of deletions, so that a
// relay can invent them where nothing is. They must not live for ever.
func TestTombstonesAreHarmless(t *testing.T) {
	owner, victim := newSigner(t, 1, Options{}), newSigner(t, 2, Options{})
	put(t, owner, ownBlock("a", "1"))
	if _, err := victim.MergeDelta(owner.Snapshot().Delta(owner.Self(), Mark{}, 0)); err != nil {
		t.Fatal(err)
	}
	put(t, owner, ownBlock("a", "2"))
	put(t, owner, ownBlock("a", "3"))
	d := copyDelta(owner.Snapshot().Delta(owner.Self(), Mark{1, 1}, 0))
	never := ID{Class: Owner, Kind: KindBlock, Owner: owner.Self(), Key: "never"}
	d.Records = append(d.Records, Record{ID: never, Version: Version{Epoch: 1, Seq: 2, Gen: 7}, Deleted: true, Time: 1 << 40, Value: []byte("ballast")})
	if _, err := victim.MergeDelta(d); err != nil {
		t.Fatal(err)
	}
	if r, ok := victim.Snapshot().Get(never); !ok || r.Time > time.Now().Unix() || len(r.Value) > 0 || r.Version.Gen != 0 {
		t.Errorf("tombstone %+v, %v", r, ok)
	}
	if n, err := victim.Collect(time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("collected %d, %v", n, err)
	}
	put(t, owner, ownBlock("never", "1"))
	if _, err := victim.MergeDelta(owner.Snapshot().Delta(owner.Self(), Mark{1, 3}, 0)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(liveSet(owner.Snapshot(), owner.Self()), liveSet(victim.Snapshot(), owner.Self())); diff != "" {
		t.Error(diff)
	}
}

// TestWholeSetRaisesTheFloor: who got a whole set cannot tell others what was deleted.
func TestWholeSetRaisesTheFloor(t *testing.T) {
	owner, relay, old := newSigner(t, 1, Options{}), newSigner(t, 2, Options{}), newSigner(t, 3, Options{})
	put(t, owner, ownBlock("a", "1"), ownBlock("b", "1"))
	pull(t, old, owner)
	put(t, owner, Del(Owner, KindBlock, "a"))
	pull(t, relay, owner)
	h := relay.Snapshot().Head(owner.Self())
	if h.Floor != h.Mark || !h.Signed() {
		t.Errorf("head %+v, want its floor at its mark", h)
	}
	if _, there := relay.Snapshot().Get(ID{Class: Owner, Kind: KindBlock, Owner: owner.Self(), Key: "a"}); there {
		t.Error("a tombstone came with a whole set")
	}
	if _, err := old.MergeDelta(relay.Snapshot().Delta(owner.Self(), old.Snapshot().Head(owner.Self()).Mark, 0)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(liveSet(owner.Snapshot(), owner.Self()), liveSet(old.Snapshot(), owner.Self())); diff != "" {
		t.Error(diff)
	}
}

// TestMergedDeltaCanBePassedOn: gossip forwards what it has merged.
func TestMergedDeltaCanBePassedOn(t *testing.T) {
	owner := newSigner(t, 1, Options{})
	put(t, owner, ownBlock("a", "1"), ownBlock("b", "1"), ownBlock("c", "1"))
	put(t, owner, Del(Owner, KindBlock, "b"), ownBlock("c", "2"))
	d := owner.Snapshot().Delta(owner.Self(), Mark{}, 0)
	for i := range byte(3) {
		s := newSigner(t, 2+i, Options{})
		if n, err := s.MergeDelta(d); n != 2 || err != nil {
			t.Errorf("replica %d: %d records, %v", i, n, err)
		}
	}
}

// TestPastComesBack: a node that lost its disk gets its own signed past from a
// peer, and what it writes then follows on to it.
func TestPastComesBack(t *testing.T) {
	first, peer := newSigner(t, 1, Options{}), newSigner(t, 2, Options{})
	put(t, first, ownBlock("a", "1"), ownBlock("b", "1"))
	pull(t, peer, first)
	first.Close()
	second := newSigner(t, 1, Options{Epoch: 2})
	pull(t, second, peer)
	if h := second.Snapshot().Head(second.Self()); h.Mark != (Mark{1, 2}) || !h.Signed() {
		t.Errorf("head %+v, want the past", h)
	}
	put(t, second, ownBlock("c", "1"), Del(Owner, KindBlock, "a"))
	mark := peer.Snapshot().Head(second.Self()).Mark
	if n, err := peer.MergeDelta(second.Snapshot().Delta(second.Self(), mark, 0)); n != 2 || err != nil {
		t.Errorf("what followed: %d records, %v", n, err)
	}
	if diff := cmp.Diff(liveSet(second.Snapshot(), second.Self()), liveSet(peer.Snapshot(), second.Self())); diff != "" {
		t.Error(diff)
	}
	// From now on it is the only one who writes them.
	third := newSigner(t, 1, Options{Epoch: 9})
	put(t, third, ownBlock("x", "1"))
	if _, err := second.MergeDelta(third.Snapshot().Delta(third.Self(), Mark{}, 0)); !errors.Is(err, ErrForeignWriter) {
		t.Errorf("got %v, want ErrForeignWriter", err)
	}
}

// TestUnsignedHistory: a version that does not sign speaks for itself only.
func TestUnsignedHistory(t *testing.T) {
	old, s := newStore(t, 1, nil), newSigner(t, 2, Options{})
	put(t, old, ownBlock("a", "1"))
	d := old.Snapshot().Delta(old.Self(), Mark{}, 0)
	if _, err := s.MergeFrom(testID(3), copyDelta(d)); !errors.Is(err, ErrUnsigned) {
		t.Errorf("from a relay: %v", err)
	}
	if n, err := s.MergeFrom(old.Self(), copyDelta(d)); n != 1 || err != nil {
		t.Errorf("from itself: %d, %v", n, err)
	}
	// It is upgraded, and signs what it had.
	var recs []Record
	for _, r := range old.Snapshot().tables.liveOf(old.Self()) {
		recs = append(recs, *r)
	}
	old.Close()
	upgraded := newSigner(t, 1, Options{Records: recs, Epoch: 2})
	if h := upgraded.Snapshot().Head(upgraded.Self()); !h.Signed() || h.verify() != nil {
		t.Fatalf("head %+v is not signed at the start", h)
	}
	put(t, upgraded, ownBlock("b", "1"))
	mark := s.Snapshot().Head(old.Self()).Mark
	if n, err := s.MergeFrom(testID(3), upgraded.Snapshot().Delta(upgraded.Self(), mark, 0)); n != 1 || err != nil {
		t.Errorf("signed, from a relay: %d, %v", n, err)
	}
}

// headLog notes the heads that it was given.
type headLog struct {
	NoLog
	commits [][]Head
}

func (l *headLog) CommitHeads(_ []Record, hs []Head) error {
	l.commits = append(l.commits, hs)
	return nil
}

// TestOneSignatureCoversABatch, which is what the disk holds with the records.
func TestOneSignatureCoversABatch(t *testing.T) {
	log := &headLog{}
	s := newSigner(t, 1, Options{Log: log})
	var ops []Op
	for i := range 100 {
		ops = append(ops, ownBlock(fmt.Sprint(i), "1"))
	}
	put(t, s, ops...)
	put(t, s, Put(Cluster, KindService, "a/b", Service{Name: "b"}))
	s.Close()
	if len(log.commits) != 1 || len(log.commits[0]) != 1 {
		t.Fatalf("heads %v, want one", log.commits)
	}
	h := log.commits[0][0]
	if want := (Mark{1, 100}); h.Mark != want || h.verify() != nil {
		t.Errorf("head %+v, want it signed at %v", h, want)
	}
}

// saved is what a disk would hold of a store.
func saved(sn *Snapshot) (recs []Record, hs []Head) {
	for o := range sn.tables.ids.all() {
		r := *o
		r.val = nil
		recs = append(recs, r)
	}
	return recs, sn.Heads()
}

// await waits until a store's snapshot is as wanted.
func await(t *testing.T, s *Store, what string, ok func(*Snapshot) bool) {
	t.Helper()
	feed := s.Subscribe()
	defer feed.Close()
	late := time.After(10 * time.Second)
	for !ok(s.Snapshot()) {
		select {
		case <-feed.C():
		case <-late:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestRestartedRelay: signatures survive, and what is damaged on disk is
// found out, not passed on, and replaced.
func TestRestartedRelay(t *testing.T) {
	owner, relay := newSigner(t, 1, Options{}), newSigner(t, 2, Options{})
	put(t, owner, ownBlock("a", "1"), ownBlock("b", "1"))
	put(t, relay, ownBlock("mine", "1"))
	pull(t, relay, owner)
	recs, hs := saved(relay.Snapshot())

	whole := newSigner(t, 2, Options{Records: slices.Clone(recs), Heads: hs})
	third := newSigner(t, 3, Options{})
	pull(t, third, whole)
	if diff := cmp.Diff(liveSet(owner.Snapshot(), owner.Self()), liveSet(third.Snapshot(), owner.Self())); diff != "" {
		t.Error(diff)
	}

	for name, damage := range map[string]func([]Record) []Record{
		"value changed": func(rs []Record) []Record {
			i := slices.IndexFunc(rs, func(r Record) bool { return r.ID.Key == "a" })
			rs[i].Value, _ = Encode(Block{Network: "false"})
			return rs
		},
		"record lost": func(rs []Record) []Record {
			return slices.DeleteFunc(rs, func(r Record) bool { return r.ID.Key == "a" })
		},
		"record too many": func(rs []Record) []Record {
			i := slices.IndexFunc(rs, func(r Record) bool { return r.ID.Key == "a" })
			r := rs[i]
			r.ID.Key, r.Version.Epoch = "c", 0
			return append(rs, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, 2, Options{Records: damage(slices.Clone(recs)), Heads: hs})
			await(t, s, "the damage is found", func(sn *Snapshot) bool { return sn.Head(owner.Self()).Mark == Mark{} })
			pull(t, s, owner)
			if diff := cmp.Diff(liveSet(owner.Snapshot(), owner.Self()), liveSet(s.Snapshot(), owner.Self())); diff != "" {
				t.Error(diff)
			}
			if h := s.Snapshot().Head(owner.Self()); h.Mark != owner.Snapshot().Head(owner.Self()).Mark || !h.Signed() {
				t.Errorf("head %+v", h)
			}
		})
	}
	t.Run("own record lost", func(t *testing.T) {
		was := relay.Snapshot().Head(relay.Self())
		lost := slices.DeleteFunc(slices.Clone(recs), func(r Record) bool { return r.ID.Key == "mine" })
		s := newSigner(t, 2, Options{Records: lost, Heads: hs})
		await(t, s, "the set is signed anew", func(sn *Snapshot) bool { return sn.Head(s.Self()).Mark.Compare(was.Mark) > 0 })
		// Peers that hold the record hear that it is gone: by the whole set.
		sn := s.Snapshot()
		if _, err := third.MergeDelta(relay.Snapshot().Delta(s.Self(), Mark{}, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := third.MergeDelta(sn.Delta(s.Self(), was.Mark, 0)); !errors.Is(err, ErrDiffers) {
			t.Errorf("got %v, want ErrDiffers", err)
		}
		if _, err := third.MergeDelta(sn.Part(s.Self(), Mark{}, 0, true)); err != nil {
			t.Error(err)
		}
		if n := len(liveSet(third.Snapshot(), s.Self())); n != 0 {
			t.Errorf("%d records with a peer, none with their owner", n)
		}
	})
}

// TestStatementIsPinned: what is signed must be the same in every version. The
// values come from another implementation (Python: hashlib and cryptography).
func TestStatementIsPinned(t *testing.T) {
	s := newSigner(t, 1, Options{Clock: &Clock{Now: func() time.Time { return time.Unix(1_700_000_000, 0) }}})
	put(t, s, ownBlock("pods/10.244.1.0/24", "pods"))
	h := s.Snapshot().Head(s.Self())
	got := map[string]string{"hash": hex.EncodeToString(h.Hash), "sig": hex.EncodeToString(h.Sig)}
	want := map[string]string{
		"hash": "a5d97ed76e15ec2f7f391ac4be82f983addcabb88fd05b234f479cc4c8e7f5c7",
		"sig": "8ec649c522b682f2f597e144303ed3c78f6478fb99033fbec74495e4707fe5d1" +
			"a4b08c0866902570d9ff3640dbac0e9836a2997f9358de93b5d86ba08ea0d70a",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestHonestReplicasAgree: owners write, honest replicas pass on, an adversary
// passes on what it likes. At every moment what an honest replica holds at a
// mark is what the owner had there, and in the end all agree.
func TestHonestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stores []*Store
		for i := range 3 {
			stores = append(stores, newSigner(t, byte(i+1), Options{}))
		}
		said := map[NodeID]map[Mark]map[string]string{} // what the owners had at each mark
		seen := []Delta{}
		check := func(s *Store) {
			for _, o := range stores {
				m := s.Snapshot().Head(o.Self()).Mark
				if m == (Mark{}) {
					continue
				}
				if diff := cmp.Diff(said[o.Self()][m], liveSet(s.Snapshot(), o.Self())); diff != "" {
					t.Fatalf("%s at %v of %s:\n%s", s.Self().Short(), m, o.Self().Short(), diff)
				}
			}
		}
		who, key := rapid.IntRange(0, 2), rapid.SampledFrom([]string{"a", "b", "c", "d"})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			s := stores[who.Draw(t, "node")]
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				mustWrite(t, s, ownBlock(key.Draw(t, "key"), fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "v"))))
			case 2:
				mustWrite(t, s, Del(Owner, KindBlock, key.Draw(t, "key")))
			case 3:
				exchange(t, s, stores[who.Draw(t, "peer")])
			case 4:
				if _, err := s.Collect(time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			case 5:
				from := stores[who.Draw(t, "source")].Snapshot()
				hs := from.Heads()
				if len(hs) == 0 {
					continue
				}
				h := rapid.SampledFrom(hs).Draw(t, "head")
				d := copyDelta(from.Delta(h.Owner, Mark{h.Mark.Epoch, rapid.Uint64Range(0, h.Mark.Seq).Draw(t, "from")}, 0))
				forge(t, &d, seen)
				seen = append(seen, copyDelta(d))
				_, _ = s.MergeFrom(testID(9), d)
			}
			for _, o := range stores {
				sn := o.Snapshot()
				if said[o.Self()] == nil {
					said[o.Self()] = map[Mark]map[string]string{}
				}
				if m := sn.Head(o.Self()).Mark; said[o.Self()][m] == nil {
					said[o.Self()][m] = liveSet(sn, o.Self())
				}
			}
			check(s)
		}
		for range 2 {
			for _, a := range stores {
				for _, b := range stores {
					exchange(t, a, b)
				}
			}
		}
		for _, s := range stores {
			check(s)
			for _, o := range stores {
				if a, b := s.Snapshot().Head(o.Self()).Mark, o.Snapshot().Head(o.Self()).Mark; a != b {
					t.Fatalf("%s holds %s up to %v of %v", s.Self().Short(), o.Self().Short(), a, b)
				}
			}
		}
	})
}

// forge changes a delta in some ways.
func forge(t *rapid.T, d *Delta, seen []Delta) {
	for range rapid.IntRange(0, 3).Draw(t, "changes") {
		i := -1
		if len(d.Records) > 0 {
			i = rapid.IntRange(0, len(d.Records)-1).Draw(t, "record")
		}
		switch k := rapid.IntRange(0, 9).Draw(t, "change"); {
		case k == 0:
			d.Replace = !d.Replace
		case k == 1:
			d.To.Seq += rapid.Uint64Range(0, 2).Draw(t, "seq")
		case k == 2:
			d.From.Seq = rapid.Uint64Range(0, d.To.Seq).Draw(t, "seq")
		case k == 3 && len(seen) > 0:
			o := rapid.SampledFrom(seen).Draw(t, "older")
			d.Hash, d.Key, d.Sig, d.To = o.Hash, o.Key, o.Sig, o.To
		case k == 4 && len(seen) > 0:
			o := copyDelta(rapid.SampledFrom(seen).Draw(t, "older"))
			d.Records = append(d.Records, o.Records...)
		case i < 0:
		case k == 5:
			d.Records = slices.Delete(d.Records, i, i+1)
		case k == 6:
			d.Records[i].Deleted = !d.Records[i].Deleted
		case k == 7:
			d.Records[i].ID.Key = rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "key")
		case k == 8:
			d.Records[i].Version.Seq = rapid.Uint64Range(0, d.To.Seq).Draw(t, "seq")
		case k == 9:
			d.Records[i].Value, _ = Encode(Block{Network: "false"})
		}
	}
}

// TestSumsFollow: the sums that are kept along are those that one gets from
// the records.
func TestSumsFollow(t *testing.T) {
	s, peer := newSigner(t, 1, Options{}), newSigner(t, 2, Options{})
	same := func(s *Store) {
		t.Helper()
		sn := s.Snapshot()
		for e := range sn.heads.all() {
			kept, anew := e.sum.Load(), sumRecords(lthash.Sum{}, sn.tables.liveOf(e.head.Owner), nil)
			if kept == nil || *kept != *anew || !bytes.Equal(anew.Digest(), e.head.Hash) {
				t.Errorf("%s on %s: sum kept %v, hash %x, want %x", e.head.Owner.Short(), s.Self().Short(), kept != nil, e.head.Hash, anew.Digest())
			}
		}
	}
	for i := range 600 {
		put(t, s, ownBlock(fmt.Sprint(i%50), fmt.Sprint(i)), Del(Owner, KindBlock, fmt.Sprint(i*7%50)))
		if i%100 == 0 {
			same(s)
			pull(t, peer, s)
			same(peer)
		}
	}
	if n, err := s.Reissue(Mark{Epoch: 7, Seq: 1}); n == 0 || err != nil {
		t.Fatal(n, err)
	}
	same(s)
	pull(t, peer, s)
	same(peer)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(liveSet(s.Snapshot(), s.Self()))), slices.Sorted(maps.Keys(liveSet(peer.Snapshot(), s.Self())))); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkSumRecord(b *testing.B) {
	s := newSigner(b, 1, Options{})
	if _, err := s.Write(b.Context(), func(*Snapshot) ([]Op, error) { return []Op{ownBlock("pods/10.244.1.0/24", "pods")}, nil }); err != nil {
		b.Fatal(err)
	}
	r := s.Snapshot().tables.liveOf(s.Self())[0]
	var m summer
	var sum lthash.Sum
	for b.Loop() {
		m.add(&sum, r)
	}
}

// BenchmarkMergeSigned is one delta from the frame to the tables, in memory.
func BenchmarkMergeSigned(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			s, peer := newSigner(b, 1, Options{}), newSigner(b, 2, Options{})
			ops := make([]Op, n)
			mark := Mark{}
			i := 0
			for b.Loop() {
				b.StopTimer()
				i++
				for k := range ops {
					ops[k] = ownBlock(fmt.Sprint(k), fmt.Sprint(i))
				}
				if _, err := s.Write(b.Context(), func(*Snapshot) ([]Op, error) { return ops, nil }); err != nil {
					b.Fatal(err)
				}
				d := s.Snapshot().Delta(s.Self(), mark, 0)
				mark = d.To
				b.StartTimer()
				if k, err := peer.MergeDelta(d); k != n || err != nil {
					b.Fatal(k, err)
				}
			}
		})
	}
}
