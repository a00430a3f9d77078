package gossip

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"nodenet/state"
)

// TestGoldenFrames: every frame that version 1 sent is understood, and said
// again in the same bytes.
func TestGoldenFrames(t *testing.T) {
	files, err := filepath.Glob("testdata/v1/*.hex")
	if err != nil || len(files) != 19 {
		t.Fatalf("%d golden frames, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".hex"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			wire, err := hex.DecodeString(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			f, n, err := readFrame(bytes.NewReader(wire), MaxFrame)
			if err != nil || f == nil || n != len(wire) {
				t.Fatalf("read %v, %d of %d bytes, %v", f, n, len(wire), err)
			}
			if again, err := encodeFrame(f); err != nil || !bytes.Equal(again, wire) {
				t.Errorf("encoded again:\n%x, %v\nwant\n%x", again, err, wire)
			}
			old, err := v1Decode(wire)
			if err != nil {
				t.Fatal(err)
			}
			if old != nil && !bytes.Equal(v1Encode(old), wire) {
				t.Errorf("the frozen copy is no copy:\n%x\nwant\n%x", v1Encode(old), wire)
			}
		})
	}
}

// party is a node of either version that talks in bytes.
type party struct {
	id    state.NodeID
	store *state.Store
	rep   *replica
	sess  map[state.NodeID]*session
	old   *v1Node

	tamper func(frame) // with what it says
	forged int         // what it found out to be forged
}

func newParty(t *testing.T, o state.Options) *party {
	t.Helper()
	s := newStore(t, o)
	t.Cleanup(func() { s.Close() })
	return &party{id: s.Self(), store: s, rep: &replica{tables: s}, sess: map[state.NodeID]*session{}}
}

func oldParty(t *testing.T) *party {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return &party{id: id.ID, old: newV1(string(id.ID))}
}

func (p *party) start() []byte {
	if p.old != nil {
		return v1Encode(p.old.start())
	}
	b, err := encodeFrame(p.rep.start())
	if err != nil {
		panic(err)
	}
	return b
}

func (p *party) handle(from state.NodeID, wire []byte) (reply [][]byte, errs []error) {
	if p.old != nil {
		f, err := v1Decode(wire)
		if err != nil {
			return nil, []error{err}
		}
		for _, r := range p.old.handle(f) {
			reply = append(reply, v1Encode(r))
		}
		errs, p.old.errs = p.old.errs, nil
		return reply, errs
	}
	f, _, err := readFrame(bytes.NewReader(wire), MaxFrame)
	if err != nil {
		return nil, []error{err}
	}
	if f == nil {
		return nil, nil // as link.read does
	}
	if p.sess[from] == nil {
		p.sess[from] = &session{peer: from}
	}
	o := p.rep.handle(p.sess[from], f)
	p.forged += o.forged
	for _, r := range o.reply {
		if p.tamper != nil {
			p.tamper(r)
		}
		b, err := encodeFrame(r)
		if err != nil {
			panic(err)
		}
		reply = append(reply, b)
	}
	return reply, o.errs
}

// talk lets a open an exchange with b until neither has anything to say. It
// returns what was refused.
func talk(t *testing.T, a, b *party) (errs []error) {
	t.Helper()
	type post struct {
		to, from *party
		wire     []byte
	}
	queue := []post{{b, a, a.start()}}
	for n := 0; len(queue) > 0; n++ {
		if n > 10_000 {
			t.Fatal("the exchange does not end")
		}
		p := queue[0]
		queue = queue[1:]
		reply, es := p.to.handle(p.from.id, p.wire)
		errs = append(errs, es...)
		for _, w := range reply {
			queue = append(queue, post{p.from, p.to, w})
		}
	}
	return errs
}

// holds lists the live records of an owner ("": those of no owner).
func (p *party) holds(owner state.NodeID) []string {
	var out []string
	add := func(key string, value []byte) { out = append(out, fmt.Sprintf("%s=%x", key, value)) }
	if p.old != nil {
		for id, r := range p.old.recs {
			if id.Owner == string(owner) && !r.Deleted {
				add(id.Key, r.Value)
			}
		}
	} else {
		sn := p.store.Snapshot()
		recs := sn.Part(owner, state.Mark{}, 0, false).Records
		if owner == "" {
			for i := range state.NumBuckets {
				recs = append(recs, sn.Bucket(i)...)
			}
		}
		for _, r := range recs {
			if !r.Deleted {
				add(r.ID.Key, r.Value)
			}
		}
	}
	slices.Sort(out)
	return out
}

// agree fails unless both hold the same of each owner and of nobody.
func agree(t *testing.T, a, b *party, owners ...*party) {
	t.Helper()
	for _, o := range append(owners, &party{}) {
		x, y := a.holds(o.id), b.holds(o.id)
		if !slices.Equal(x, y) {
			t.Errorf("of %q one holds %d records, the other %d", o.id.Short(), len(x), len(y))
		}
	}
}

var oldValue = []byte{0xa2, 0x01, 0x64, 'p', 'o', 'd', 's', 0x18, 0x63, 0x01} // a Block with a field that nobody knows

// fill gives a party some history with deletions.
func (p *party) fill(t *testing.T, n int) {
	for i := range n {
		key := fmt.Sprintf("k%04d", i)
		if p.old != nil {
			p.old.own("block", key, oldValue)
			if i%7 == 0 {
				p.old.own("block", key, nil)
			}
			continue
		}
		write(t, p.store, state.Put(state.Owner, state.KindBlock, key, state.Block{Network: key}))
		if i%7 == 0 {
			write(t, p.store, state.Del(state.Owner, state.KindBlock, key))
		}
	}
	if p.old != nil {
		p.old.merge([]v1Record{{ID: v1ID{2, "name", "", "of " + string(p.id)}, Version: v1Version{HLC: 1 << 40, Node: string(p.id)}, Value: []byte{0xa0}}})
	} else {
		write(t, p.store, clusterName("of-"+string(p.id.Short())))
	}
}

func clean(t *testing.T, errs []error) {
	t.Helper()
	for _, err := range errs {
		t.Error(err)
	}
}

// TestOldAndNew: either may begin, whatever the size, with and without floors.
func TestOldAndNew(t *testing.T) {
	for _, n := range []int{1, 40, 1500} {
		for _, budget := range []int{0, 5000} {
			if n == 1500 && budget > 0 {
				continue
			}
			for _, oldBegins := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d records, budget %d, old begins %v", n, budget, oldBegins), func(t *testing.T) {
					o, p := oldParty(t), newParty(t, state.Options{})
					p.rep.budget = budget
					if budget > 0 {
						o.old.budget = budget
					}
					meet := func() {
						t.Helper()
						a, b := p, o
						if oldBegins {
							a, b = o, p
						}
						clean(t, talk(t, a, b))
						if !bytes.Equal(o.old.root(), rootOf(p.store.Snapshot())) {
							t.Fatal("the roots differ after an exchange")
						}
						agree(t, o, p, o, p)
					}
					o.fill(t, n)
					p.fill(t, n)
					meet()
					o.fill(t, n/2)
					p.fill(t, n/2)
					meet()
					// What was deleted is collected before the other hears of it.
					o.old.own("block", "k0001", nil)
					write(t, p.store, state.Del(state.Owner, state.KindBlock, "k0001"))
					o.old.collect()
					if _, err := p.store.Collect(time.Now().Add(time.Hour)); err != nil {
						t.Fatal(err)
					}
					o.fill(t, 1)
					p.fill(t, 1)
					meet()
				})
			}
		}
	}
}

// TestOldRelayBetweenNew: an old relay takes signatures off. Its neighbours
// take its own history from it, and each other's only from one another.
func TestOldRelayBetweenNew(t *testing.T) {
	a, o, b := newParty(t, state.Options{}), oldParty(t), newParty(t, state.Options{})
	for _, p := range []*party{a, o, b} {
		p.fill(t, 20)
	}
	clean(t, talk(t, a, o))
	errs := talk(t, o, b)
	if len(errs) == 0 {
		t.Error("nothing was refused")
	}
	for _, err := range errs {
		if !errors.Is(err, state.ErrUnsigned) {
			t.Error(err)
		}
	}
	if got := b.holds(a.id); len(got) != 0 {
		t.Errorf("%d records by way of a relay that could have changed them", len(got))
	}
	agree(t, o, b, o, b)
	clean(t, talk(t, b, a)) // a hears b, b hears a; what the old one said passes between them by no other way
	clean(t, talk(t, o, a))
	for _, p := range []*party{a, b} {
		agree(t, o, p, a, o, b)
		if !bytes.Equal(o.old.root(), rootOf(p.store.Snapshot())) {
			t.Error("the roots differ")
		}
	}
}

// TestNewRelayBetweenOld: nothing of an upgrade is seen.
func TestNewRelayBetweenOld(t *testing.T) {
	a, p, b := oldParty(t), newParty(t, state.Options{}), oldParty(t)
	for _, n := range []*party{a, p, b} {
		n.fill(t, 30)
	}
	for range 2 {
		clean(t, talk(t, a, p))
		clean(t, talk(t, b, p))
		clean(t, talk(t, p, a))
		agree(t, a, b, a, p, b)
		if !bytes.Equal(a.old.root(), b.old.root()) || !bytes.Equal(a.old.root(), rootOf(p.store.Snapshot())) {
			t.Error("the roots differ")
		}
		for _, n := range []*party{a, p, b} {
			n.fill(t, 3)
		}
	}
}

// TestUpgradeAndBack: a node begins to sign, and goes back to the version that
// does not: its own link speaks for it either way.
func TestUpgradeAndBack(t *testing.T) {
	a, b := newParty(t, state.Options{}), newParty(t, state.Options{})
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	o := &party{id: id.ID, old: newV1(string(id.ID))}
	o.fill(t, 10)
	clean(t, talk(t, o, a))

	var recs []state.Record
	for _, r := range o.old.delta(o.old.self, v1Mark{}, 0).Records {
		recs = append(recs, state.Record{ID: state.ID{Class: state.Owner, Kind: state.Kind(r.ID.Kind), Owner: o.id, Key: r.ID.Key},
			Version: state.Version{Epoch: r.Version.Epoch, Seq: r.Version.Seq}, Deleted: r.Deleted, Time: r.Time, Value: r.Value})
	}
	up := newParty(t, state.Options{Self: id.ID, Key: id.Key, Records: recs, Epoch: 2})
	write(t, up.store, state.Put(state.Owner, state.KindBlock, "signed", state.Block{}))
	clean(t, talk(t, up, a))
	clean(t, talk(t, a, b)) // by a relay, as it is signed
	agree(t, up, b, up)

	o.old.mark = v1Mark{Epoch: 3}
	o.old.own("block", "back", oldValue)
	for _, p := range []*party{a, b} {
		errs := talk(t, o, p)
		if !slices.ContainsFunc(p.holds(o.id), func(s string) bool { return strings.HasPrefix(s, "back=") }) {
			t.Errorf("what a node says after its downgrade is not heard: %v", errs)
		}
	}
}

// TestFuture: frames and fields that nobody knows yet are skipped, and values
// pass through us in the bytes that their owner signed.
func TestFuture(t *testing.T) {
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	rec := func(kind state.Kind, key string, seq uint64, value []byte) state.Record {
		return state.Record{ID: state.ID{Class: state.Owner, Kind: kind, Owner: id.ID, Key: key},
			Version: state.Version{Epoch: 5, Seq: seq}, Time: 1_700_000_000, Value: value}
	}
	exotic := []byte{0xbf, 0x61, 'x', 0x01, 0xff} // an indefinite map: not even ours to decode
	future := newParty(t, state.Options{Self: id.ID, Key: id.Key, Records: []state.Record{
		rec(state.KindBlock, "known", 1, oldValue), rec("hologram", "unknown", 2, exotic),
	}})
	us, third := newParty(t, state.Options{}), newParty(t, state.Options{})
	us.fill(t, 5)

	// Everything that the future says has fields and frames in it that we do not know.
	decorate := func(wire []byte) []byte {
		var m map[uint64]any
		if err := cbor.Unmarshal(wire[frameHeader:], &m); err != nil {
			t.Fatal(err)
		}
		m[99] = map[string]any{"new": []int{1, 2, 3}}
		for _, k := range []uint64{1} { // inside of heads and deltas as well
			if list, ok := m[k].([]any); ok {
				for _, e := range list {
					if em, ok := e.(map[any]any); ok {
						em[uint64(98)] = "new"
					}
				}
			}
		}
		body, err := frameEnc.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out := binary.BigEndian.AppendUint32(nil, uint32(len(body)+2))
		return append(append(out, wire[4:6]...), body...)
	}
	unknown := append(binary.BigEndian.AppendUint32(nil, 6), frameVersion, 201, 0xa1, 0x01, 0x18, 0x2a)
	queue := [][]byte{unknown, decorate(future.start())}
	for n := 0; len(queue) > 0; n++ {
		if n > 100 {
			t.Fatal("the exchange does not end")
		}
		reply, errs := us.handle(future.id, queue[0])
		clean(t, errs)
		queue = queue[1:]
		for _, w := range reply {
			back, errs := future.handle(us.id, w)
			clean(t, errs)
			for _, b := range back {
				queue = append(queue, unknown, decorate(b))
			}
		}
	}
	agree(t, future, us, future, us)
	clean(t, talk(t, third, us))
	for _, p := range []*party{us, third} {
		got := p.holds(id.ID)
		want := []string{fmt.Sprintf("known=%x", oldValue), fmt.Sprintf("unknown=%x", exotic)}
		if !slices.Equal(got, want) {
			t.Errorf("held %q, want %q", got, want)
		}
	}
}
