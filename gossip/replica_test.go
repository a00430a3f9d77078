package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nodenet/state"
)

func newStore(t interface{ Fatal(...any) }, o state.Options) *state.Store {
	if o.Self == "" {
		id, err := NewIdentity()
		if err != nil {
			t.Fatal(err)
		}
		o.Self, o.Key = id.ID, id.Key
	}
	s, err := state.NewStore(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// exchange carries frames between two replicas through their wire form until
// neither has anything to say. It returns how many frames passed.
func exchange(t interface {
	Fatal(...any)
	Fatalf(string, ...any)
}, a, b *replica) int {
	type post struct {
		to, from *replica
		f        frame
	}
	sess := map[*replica]*session{a: {}, b: {}}
	queue := []post{{b, a, a.start()}}
	n := 0
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		if n++; n > 5000 {
			t.Fatal("the exchange does not end")
		}
		wire, err := encodeFrame(p.f)
		if err != nil {
			t.Fatal(err)
		}
		f, _, err := readFrame(bytes.NewReader(wire), MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		o := p.to.handle(sess[p.to], f)
		for _, err := range o.errs {
			t.Fatalf("%s frame: %v", f.kind(), err)
		}
		for _, r := range o.reply {
			queue = append(queue, post{p.from, p.to, r})
		}
	}
	return n
}

func write(t interface{ Fatal(...any) }, s *state.Store, ops ...state.Op) {
	if _, err := s.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

// Random writes, lossy pushes, collected tombstones and exchanges between
// three replicas, in any order: at the end, two rounds of exchanges make them
// hold the same.
func TestConvergence(t *testing.T) {
	collect := passesFloorsOn(t)
	if !collect {
		t.Log("the store does not pass floors on with a replacement: convergence is tested without collected tombstones")
	}
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_700_000_000, 0)
		var rs []*replica
		for i := range 3 {
			// The same IDs each time, or rapid could not shrink a failure.
			key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i)}, ed25519.SeedSize))
			s := newStore(t, state.Options{Self: identity(key).ID, Key: key, Clock: &state.Clock{Now: func() time.Time { return now }}})
			defer s.Close()
			rs = append(rs, &replica{tables: s, budget: rapid.SampledFrom([]int{0, 1, 2000}).Draw(t, "budget")})
		}
		store := func(i int) *state.Store { return rs[i].tables.(*state.Store) }
		who := rapid.IntRange(0, 2)
		key := rapid.IntRange(0, 5)
		pushed := map[int]state.Mark{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			i, k := who.Draw(t, "node"), key.Draw(t, "key")
			now = now.Add(time.Second)
			switch rapid.IntRange(0, 8).Draw(t, "step") {
			case 0, 1:
				v := rapid.IntRange(0, 99).Draw(t, "value")
				write(t, store(i), state.Put(state.Owner, state.KindName, fmt.Sprint(k), state.Name{Name: fmt.Sprint(v), Type: "A"}))
			case 2, 3:
				v := rapid.IntRange(0, 99).Draw(t, "value")
				write(t, store(i), state.Put(state.Cluster, state.KindName, fmt.Sprint(k), state.Name{Name: fmt.Sprint(v), Type: "A"}))
			case 4:
				write(t, store(i), state.Del(state.Owner, state.KindName, fmt.Sprint(k)), state.Del(state.Cluster, state.KindName, fmt.Sprint(k)))
			case 5:
				write(t, store(i), ring(fmt.Sprintf("10.0.%d.0/24", k), store(i).Self()))
			case 6: // a push of which some copies are lost
				sn := store(i).Snapshot()
				p := &push{Deltas: []state.Delta{sn.Delta(sn.Self(), pushed[i], 0)}}
				pushed[i] = sn.Head(sn.Self()).Mark
				for j := range rs {
					if j != i && rapid.Bool().Draw(t, "arrives") {
						rs[j].handle(&session{}, p)
					}
				}
			case 7:
				if !collect {
					continue
				}
				if _, err := store(i).Collect(now); err != nil {
					t.Fatal(err)
				}
			case 8:
				exchange(t, rs[i], rs[(i+1)%3])
			}
		}
		for range 2 {
			exchange(t, rs[0], rs[1])
			exchange(t, rs[1], rs[2])
			exchange(t, rs[2], rs[0])
		}
		for i := 1; i < 3; i++ {
			if !bytes.Equal(rootOf(store(0).Snapshot()), rootOf(store(i).Snapshot())) {
				t.Fatalf("replicas 0 and %d differ: %v %v", i, store(0).Snapshot().Heads(), store(i).Snapshot().Heads())
			}
			if d := diffTables(store(0).Snapshot(), store(i).Snapshot()); d != "" {
				t.Fatalf("replicas 0 and %d: %s", i, d)
			}
		}
	})
}

// passesFloorsOn reports whether a replica that took over a whole set knows
// from where on its tombstones are complete. Without that it brings up to date
// others by deltas that lack deletions.
func passesFloorsOn(t *testing.T) bool {
	a, b := newStore(t, state.Options{}), newStore(t, state.Options{})
	defer a.Close()
	defer b.Close()
	write(t, a, name("x"))
	write(t, a, state.Del(state.Owner, state.KindName, "x A"))
	if _, err := a.Collect(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	exchange(t, &replica{tables: a}, &replica{tables: b})
	return b.Snapshot().Head(a.Self()).Floor == a.Snapshot().Head(a.Self()).Floor
}

// diffTables compares what the tables mean: tombstones may be collected here
// and not there.
func diffTables(a, b *state.Snapshot) string {
	list := func(sn *state.Snapshot) string {
		var out strings.Builder
		for r, v := range state.All[state.Name](sn) {
			fmt.Fprintln(&out, r.ID, r.Version, *v)
		}
		for r, v := range state.All[state.Range](sn) {
			fmt.Fprintln(&out, r.ID, r.Version, *v)
		}
		return out.String()
	}
	if x, y := list(a), list(b); x != y {
		return fmt.Sprintf("tables differ\n%s---\n%s", x, y)
	}
	return ""
}

func TestEqualReplicasSayTwoFrames(t *testing.T) {
	a, b := newStore(t, state.Options{}), newStore(t, state.Options{})
	defer a.Close()
	defer b.Close()
	write(t, a, name("x"), clusterName("y"))
	ra, rb := &replica{tables: a}, &replica{tables: b}
	exchange(t, ra, rb)
	if n := exchange(t, rb, ra); n != 2 {
		t.Errorf("%d frames between equal replicas, want root and same", n)
	}
}

// A set that must be replaced as a whole and is larger than one frame.
func TestLargeReplacement(t *testing.T) {
	a, b := newStore(t, state.Options{}), newStore(t, state.Options{})
	defer a.Close()
	defer b.Close()
	ra, rb := &replica{tables: a}, &replica{tables: b}
	write(t, a, name("doomed"), name("gone"))
	exchange(t, ra, rb)
	write(t, a, state.Del(state.Owner, state.KindName, "gone A"))
	if _, err := a.Collect(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	var ops []state.Op
	for i := range 600 {
		ops = append(ops, state.Put(state.Owner, state.KindName, fmt.Sprint(i), state.Name{Name: strings.Repeat("x", 10000), Type: "A"}))
	}
	write(t, a, ops...)
	if f := a.Snapshot().Head(a.Self()).Floor; f == (state.Mark{}) {
		t.Fatal("no floor: the test does not test what it should")
	}
	if n := exchange(t, rb, ra); n < 10 {
		t.Errorf("%d frames for 6 MB", n)
	}
	if !bytes.Equal(rootOf(a.Snapshot()), rootOf(b.Snapshot())) {
		t.Fatal("not equal")
	}
	if d := diffTables(a.Snapshot(), b.Snapshot()); d != "" {
		t.Fatal(d)
	}
}

func TestPartsThatDoNotBelongTogether(t *testing.T) {
	s := newStore(t, state.Options{})
	defer s.Close()
	r := &replica{tables: s}
	id1, _ := NewIdentity()
	id2, _ := NewIdentity()
	var sess session
	r.handle(&sess, &deltas{Deltas: []state.Delta{{Owner: id1.ID, Replace: true}}, Partial: true})
	if o := r.handle(&sess, &deltas{Deltas: []state.Delta{{Owner: id2.ID, Replace: true}}}); len(o.errs) != 1 {
		t.Errorf("errors %v, want one", o.errs)
	}
	if sess.pending != nil {
		t.Error("the broken replacement is kept")
	}
}

// What follows a replacement that broke off is taken for what it is.
func TestDeltaAfterABrokenReplacement(t *testing.T) {
	a, b := newStore(t, state.Options{}), newStore(t, state.Options{})
	defer a.Close()
	defer b.Close()
	write(t, a, name("one"), name("two"))
	r := &replica{tables: b}
	old := a.Snapshot().Delta(a.Self(), state.Mark{}, 0)
	r.handle(&session{}, &deltas{Deltas: []state.Delta{old}})

	var sess session
	part := old
	part.Replace, part.Records = true, old.Records[:1]
	write(t, a, name("three"))
	part.To = a.Snapshot().Head(a.Self()).Mark
	r.handle(&sess, &deltas{Deltas: []state.Delta{part}, Partial: true})
	r.handle(&sess, &deltas{Deltas: []state.Delta{a.Snapshot().Delta(a.Self(), old.To, 0)}})
	if d := diffTables(a.Snapshot(), b.Snapshot()); d != "" {
		t.Error(d)
	}
}

// badTables refuses one record, as a store does with a value that it cannot decode.
type badTables struct{ *state.Store }

func (b badTables) Merge(recs []state.Record, durable bool) (int, error) {
	for _, r := range recs {
		if r.ID.Key == "bad A" {
			return 0, errors.New("cannot decode")
		}
	}
	return b.Store.Merge(recs, durable)
}

func TestOneBadRecordDoesNotStopTheOthers(t *testing.T) {
	a, b := newStore(t, state.Options{}), newStore(t, state.Options{})
	defer a.Close()
	defer b.Close()
	write(t, a, clusterName("bad"), clusterName("good"))
	var recs []state.Record
	for i := range state.NumBuckets {
		recs = append(recs, a.Snapshot().Bucket(i)...)
	}
	o := (&replica{tables: badTables{b}}).handle(&session{}, &records{Records: recs})
	if o.applied != 1 || len(o.errs) != 1 || o.fresh == nil || len(o.fresh.Records) != 1 {
		t.Errorf("outcome %+v, want one record applied and forwarded, one error", o)
	}
}

func TestGapAsksForAnExchange(t *testing.T) {
	a, b := newStore(t, state.Options{}), newStore(t, state.Options{})
	defer a.Close()
	defer b.Close()
	write(t, a, name("one"))
	mark := a.Snapshot().Head(a.Self()).Mark
	write(t, a, name("two"))
	o := (&replica{tables: b}).handle(&session{}, &push{Deltas: []state.Delta{a.Snapshot().Delta(a.Self(), mark, 0)}})
	if len(o.reply) != 1 || o.reply[0].kind() != kindRoot || o.applied != 0 || len(o.errs) != 0 {
		t.Errorf("outcome %+v, want a root in reply", o)
	}
}
