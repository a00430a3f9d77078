package gossip

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nodenet/state"
)

// fleet is replicas with a common clock, each with a disk that can be copied.
type fleet struct {
	t   fataler
	now time.Time
	all []*fleetNode
}

type fataler interface {
	Fatal(...any)
	Fatalf(string, ...any)
}

type fleetNode struct {
	f   *fleet
	key ed25519.PrivateKey
	id  state.NodeID
	log *simLog
	rep *replica
	s   *state.Store
}

func newFleet(t fataler, n int) *fleet {
	f := &fleet{t: t, now: time.Unix(1_700_000_000, 0)}
	for range n {
		f.add()
	}
	return f
}

func (f *fleet) add() *fleetNode {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(len(f.all) + 1)}, ed25519.SeedSize))
	n := &fleetNode{f: f, key: key, id: identity(key).ID, log: newSimLog()}
	f.all = append(f.all, n)
	n.start()
	n.join()
	return n
}

// start begins a life from what the disk holds.
func (n *fleetNode) start() {
	if n.s != nil {
		n.s.Close()
	}
	recs := slices.Collect(maps.Values(n.log.recs))
	heads := slices.Collect(maps.Values(n.log.heads))
	n.s = newStore(n.f.t, state.Options{Self: n.id, Key: n.key, Log: n.log, Records: recs, Heads: heads,
		Clock: &state.Clock{Now: func() time.Time { return n.f.now }}})
	n.s.SetEpoch(uint64(n.f.now.UnixNano()))
	n.rep = &replica{tables: n.s}
}

func (n *fleetNode) join() {
	write(n.f.t, n.s, state.Put(state.Owner, state.KindNode, "self", state.Node{Name: n.id.Short(), BootID: n.f.now.String()}))
}

func (n *fleetNode) put(key, value string) {
	n.f.now = n.f.now.Add(time.Second)
	write(n.f.t, n.s, state.Put(state.Cluster, state.KindName, key, state.Name{Name: value, Type: "A"}))
}

func (n *fleetNode) del(key string) {
	n.f.now = n.f.now.Add(time.Second)
	write(n.f.t, n.s, state.Del(state.Cluster, state.KindName, key))
}

// stamp says how far this node holds everything, as upkeep does.
func (n *fleetNode) stamp() {
	if err := n.s.Tick(); err != nil {
		n.f.t.Fatal(err)
	}
	through := n.rep.extents.through(n.s.Snapshot())
	if err := n.s.Extend(through); err != nil {
		n.f.t.Fatal(err)
	}
	write(n.f.t, n.s, state.Put(state.Owner, state.KindSynced, "self", state.Synced{Through: through}))
}

// raise raises the horizon as far as all stamps allow, and returns how many
// tombstones went.
func (n *fleetNode) raise() int {
	k, err := n.s.RaiseHorizon(n.s.Snapshot().NextHorizon(n.f.now, 0))
	if err != nil {
		n.f.t.Fatal(err)
	}
	return k
}

func (n *fleetNode) forget(other *fleetNode) {
	write(n.f.t, n.s, state.Put(state.Cluster, state.KindForgotten, string(other.id),
		state.Forgotten{By: n.id, At: n.f.now.Unix(), Epoch: max(other.s.Epoch(), n.s.Snapshot().Head(other.id).Mark.Epoch)}))
}

// comeBack is how a forgotten node goes on.
func (n *fleetNode) comeBack() {
	if e := n.s.Snapshot().WasForgotten(); e >= n.s.Epoch() {
		n.s.RaiseEpoch(e + 1)
		n.join()
	}
}

// meet runs one exchange between nodes that know each other's identity.
func (f *fleet) meet(a, b *fleetNode, whole bool) {
	type post struct {
		to, from *fleetNode
		f        frame
	}
	sess := map[*fleetNode]*session{a: {peer: b.id}, b: {peer: a.id}}
	open := a.rep.start().(*root)
	open.Whole = whole
	queue := []post{{b, a, open}}
	for n := 0; len(queue) > 0; n++ {
		p := queue[0]
		queue = queue[1:]
		if n > 5000 {
			f.t.Fatal("the exchange does not end")
		}
		wire, err := encodeFrame(p.f)
		if err != nil {
			f.t.Fatal(err)
		}
		fr, _, err := readFrame(bytes.NewReader(wire), MaxFrame)
		if err != nil {
			f.t.Fatal(err)
		}
		o := p.to.rep.handle(sess[p.to], fr)
		for _, err := range o.errs {
			f.t.Fatalf("%s frame: %v", fr.kind(), err)
		}
		for _, r := range o.reply {
			queue = append(queue, post{p.from, p.to, r})
		}
	}
}

// mingle makes nodes hold the same, and say so.
func (f *fleet) mingle(nodes ...*fleetNode) {
	for range 3 {
		for i, a := range nodes {
			for _, b := range nodes[i+1:] {
				f.meet(a, b, true)
			}
		}
		f.now = f.now.Add(time.Second)
		for _, n := range nodes {
			n.stamp()
		}
	}
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			f.meet(a, b, false)
		}
	}
	for _, n := range nodes[1:] {
		if !bytes.Equal(rootOf(n.s.Snapshot()), rootOf(nodes[0].s.Snapshot())) {
			f.t.Fatalf("replicas differ: %s\nhorizons %+v and %+v\nheads %v\nand %v", diffTables(n.s.Snapshot(), nodes[0].s.Snapshot()),
				n.s.Snapshot().Horizon(), nodes[0].s.Snapshot().Horizon(), marks(n), marks(nodes[0]))
		}
	}
}

func marks(n *fleetNode) (out []state.Mark) {
	for _, h := range n.s.Snapshot().Heads() {
		out = append(out, h.Mark)
	}
	return out
}

func (f *fleet) close() {
	for _, n := range f.all {
		n.s.Close()
	}
}

// names is what a node shows, and how many tombstones it keeps.
func (n *fleetNode) names() (live map[string]string, tombstones int) {
	live = map[string]string{}
	for r, v := range state.All[state.Name](n.s.Snapshot()) {
		live[r.ID.Key] = v.Name
	}
	for range state.Tombstones(n.s.Snapshot(), state.KindName) {
		tombstones++
	}
	return live, tombstones
}

func (f *fleet) want(want map[string]string, nodes ...*fleetNode) {
	for i, n := range nodes {
		if got, dead := n.names(); !maps.Equal(got, want) || dead > 0 {
			f.t.Fatalf("node %d shows %v and keeps %d tombstones, want %v", i, got, dead, want)
		}
	}
}

func TestResurrectionAfterHorizon(t *testing.T) {
	setup := func(t *testing.T) (f *fleet, a, b, c *fleetNode) {
		f = newFleet(t, 3)
		t.Cleanup(f.close)
		a, b, c = f.all[0], f.all[1], f.all[2]
		a.put("kept", "1")
		a.put("doomed", "1")
		f.mingle(a, b, c)
		return f, a, b, c
	}
	t.Run("all present", func(t *testing.T) {
		f, a, b, c := setup(t)
		b.del("doomed")
		if n := b.raise(); n != 0 {
			t.Fatalf("%d tombstones collected before anybody else had them", n)
		}
		f.mingle(a, b, c)
		if n := a.raise(); n != 1 {
			t.Fatalf("%d tombstones collected, want 1", n)
		}
		f.mingle(a, b, c)
		f.want(map[string]string{"kept": "1"}, a, b, c)
	})
	t.Run("one is cut off, however long", func(t *testing.T) {
		f, a, b, c := setup(t)
		b.del("doomed")
		for range 5 {
			f.now = f.now.Add(100 * time.Hour)
			f.mingle(a, b)
			if n := a.raise(); n != 0 {
				t.Fatalf("%d tombstones collected that node c lacks", n)
			}
		}
		f.mingle(a, b, c)
		if live, _ := c.names(); live["doomed"] != "" {
			t.Error("the deletion was undone")
		}
		a.raise()
		f.mingle(a, b, c)
		f.want(map[string]string{"kept": "1"}, a, b, c)
	})
	t.Run("one is forgotten and comes back", func(t *testing.T) {
		f, a, b, c := setup(t)
		b.del("doomed")
		f.now = f.now.Add(100 * time.Hour)
		a.forget(c)
		f.now = f.now.Add(time.Hour)
		f.mingle(a, b)
		if n := a.raise(); n != 1 {
			t.Fatalf("%d tombstones collected, want 1", n)
		}
		f.mingle(a, b)
		c.put("new", "2") // in its own life, since
		c.start()
		f.meet(c, b, false)
		if live, _ := b.names(); live["doomed"] != "" {
			t.Fatal("the deletion was undone")
		}
		c.comeBack()
		f.mingle(a, b, c)
		f.want(map[string]string{"kept": "1", "new": "2"}, a, b, c)
	})
	t.Run("a disk is restored from a backup", func(t *testing.T) {
		f, a, b, c := setup(t)
		backup := c.log.clone()
		f.now = f.now.Add(time.Hour)
		b.del("doomed")
		b.put("late", "3")
		f.mingle(a, b, c)
		a.raise()
		f.mingle(a, b, c)
		c.log = backup
		c.start()
		if live, _ := c.names(); live["doomed"] == "" {
			t.Fatal("the backup lacks the record: this shows nothing")
		}
		f.mingle(c, a, b)
		f.want(map[string]string{"kept": "1", "late": "3"}, a, b, c)
	})
	t.Run("both sides of a partition forgot each other", func(t *testing.T) {
		f, a, b, c := setup(t)
		f.now = f.now.Add(30 * time.Hour)
		a.forget(c)
		c.forget(a)
		c.forget(b)
		b.del("doomed")
		c.del("kept")
		for range 3 {
			f.now = f.now.Add(30 * time.Hour)
			f.mingle(a, b)
			f.mingle(c)
			a.raise()
			c.raise()
		}
		f.meet(a, c, false)
		for _, n := range f.all {
			n.comeBack()
		}
		f.mingle(a, b, c)
		// Of what is older than both horizons one side's tables count: those of
		// the higher horizon.
		f.want(map[string]string{"doomed": "1"}, a, b, c)
	})
	t.Run("a new node gets everything", func(t *testing.T) {
		f, a, b, c := setup(t)
		b.del("doomed")
		f.mingle(a, b, c)
		a.raise()
		f.mingle(a, b, c)
		d := f.add()
		f.meet(a, d, false)
		f.meet(a, d, false)
		f.want(map[string]string{"kept": "1"}, a, b, c, d)
		if a.raise() != 0 || a.s.Snapshot().NextHorizon(f.now, 0) != 0 {
			t.Error("the horizon does not wait for the new node")
		}
		f.mingle(a, b, c, d)
	})
	t.Run("a crash between the horizon and what it collects", func(t *testing.T) {
		f, a, b, c := setup(t)
		b.del("doomed")
		f.mingle(a, b, c)
		kept := a.log.clone()
		a.raise()
		for id, r := range kept.recs { // the tombstone is still on the disk
			if r.Deleted {
				a.log.recs[id] = r
			}
		}
		a.start()
		f.mingle(a, b, c)
		f.want(map[string]string{"kept": "1"}, a, b, c)
	})
}

// Random writes, deletions, exchanges, stamps and horizons, with nodes that
// are forgotten, come back, or get an old disk: what was deleted and
// collected anywhere never shows again unless somebody wrote it anew, and
// all who are left hold the same.
func TestHorizonProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFleet(t, 4)
		defer f.close()
		f.mingle(f.all...) // who knows nobody yet says nothing of how far it holds what all wrote
		away := map[*fleetNode]bool{}
		collected := map[string]state.HLC{} // by key: the newest tombstone that is gone
		backups := map[*fleetNode]*simLog{}
		node := func(label string) *fleetNode {
			n := f.all[rapid.IntRange(0, len(f.all)-1).Draw(t, label)]
			if away[n] {
				return f.all[0] // which is always there
			}
			return n
		}
		note := func(n *fleetNode, h state.HLC) {
			for r := range state.Tombstones(n.s.Snapshot(), state.KindName) {
				if r.ID.Class == state.Cluster && r.Version.HLC <= h {
					collected[r.ID.Key] = max(collected[r.ID.Key], r.Version.HLC)
				}
			}
		}
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			n := node("node")
			f.now = f.now.Add(time.Minute)
			key := fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "key"))
			switch rapid.IntRange(0, 11).Draw(t, "step") {
			case 0, 1:
				n.put(key, fmt.Sprint(f.now.Unix()))
			case 2, 3:
				n.del(key)
			case 4, 5, 6:
				if o := node("other"); o != n {
					f.meet(n, o, rapid.Bool().Draw(t, "whole"))
				}
			case 7:
				n.stamp()
			case 8:
				h := n.s.Snapshot().NextHorizon(f.now, 0)
				note(n, h)
				n.raise()
			case 9:
				if n == f.all[0] || rapid.IntRange(0, 2).Draw(t, "really") != 0 {
					continue
				}
				f.all[0].forget(n)
				away[n] = true
				if rapid.Bool().Draw(t, "works on") {
					n.put(key, "away")
				}
			case 10:
				for _, n := range f.all {
					if away[n] {
						delete(away, n)
						n.start()
						f.meet(n, f.all[0], false)
						n.comeBack()
						break
					}
				}
			case 11:
				if b := backups[n]; b != nil && n != f.all[0] {
					n.log = b
					n.start()
					delete(backups, n)
				} else {
					backups[n] = n.log.clone()
				}
			}
		}
		for _, n := range f.all {
			if away[n] {
				n.start()
				f.meet(n, f.all[0], false)
				n.comeBack()
			}
		}
		f.mingle(f.all...)
		for i, n := range f.all {
			for r := range state.All[state.Name](n.s.Snapshot()) {
				if h := collected[r.ID.Key]; r.Version.HLC < h {
					t.Fatalf("node %d shows %s again: written at %s, deleted at %s", i, r.ID, r.Version.HLC, h)
				}
			}
		}
	})
}
