package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodenet/ipam"
	"nodenet/state"
)

// simulate runs a scenario on a cluster that has formed and is equal.
func simulate(t *testing.T, seed uint64, size int, fn func(s *sim)) {
	t.Helper()
	t.Parallel()
	oneThread(t)
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, size)
		defer s.report()
		defer s.close()
		for _, n := range s.nodes {
			n.start()
		}
		s.eventually(20*time.Second, "every node's record is everywhere", func() bool {
			for _, n := range s.nodes {
				if count(state.All[state.Node](n.store.Snapshot())) < size {
					return false
				}
			}
			return true
		})
		s.settle()
		fn(s)
	})
}

func count[K, V any](seq func(func(K, V) bool)) (n int) {
	for range seq {
		n++
	}
	return n
}

// eventually waits in virtual time for a condition.
func (s *sim) eventually(limit time.Duration, what string, cond func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if cond() {
			return true
		}
		if time.Now().After(end) {
			s.violated("not within %s: %s", limit, what)
			return false
		}
	}
}

// work lets the random workload run for a while and waits until it rests.
func (s *sim) work(d time.Duration) {
	s.working.Store(true)
	s.wait(d)
	s.working.Store(false)
	for s.busy.Load() > 0 {
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *simNode) sees(p *simNode) state.Live { return n.store.Snapshot().Live()[p.id.ID] }

// isolate cuts one node off from all others.
func (s *sim) isolate(n *simNode) {
	s.cut(cutAll, func(i, j int) bool { return i == n.i || j == n.i })
}

// Beyond a small cluster each node keeps links to some, and all is known to all.
func TestPartialMesh(t *testing.T) {
	simulate(t, 12, maxMesh+4, func(s *sim) {
		write := func(n *simNode, what string) {
			if _, err := n.store.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return []state.Op{name(what)}, nil }); err != nil {
				s.violated("%s: write: %v", n.name, err)
			}
		}
		for i, n := range s.nodes {
			write(n, fmt.Sprintf("host%d", i))
		}
		s.settle()
		all := len(s.nodes) * (len(s.nodes) - 1)
		s.eventually(5*time.Minute, "the links are fewer than those of a full mesh", func() bool {
			links := 0
			for _, n := range s.nodes {
				links += len(n.g.someLinks())
			}
			return links < all
		})
		write(s.nodes[3], "fresh")
		s.settle()
		for _, n := range s.nodes {
			if k := count(state.All[state.Name](n.store.Snapshot())); k != len(s.nodes)+1 {
				s.violated("%s has %d names, want %d", n.name, k, len(s.nodes)+1)
			}
		}
	})
}

// A node that restarts joins under its new epoch before memberlist gives its
// old epoch up. That late leave must change nothing; streams, which would
// hide it, are cut.
func TestOldEpochLeaveAfterNewJoin(t *testing.T) {
	simulate(t, 1, 5, func(s *sim) {
		a, b := s.nodes[0], s.nodes[1]
		listed := func(epoch uint64) bool {
			for _, m := range a.g.members.Members() {
				if m.Name == memberName(b.id.ID, epoch) {
					return true
				}
			}
			return false
		}
		old := b.store.Epoch()
		s.eventually(10*time.Second, "the old epoch is a member", func() bool { return listed(old) })
		time.Sleep(2 * time.Second) // or the clock would give the same epoch
		b.kill(false)
		b.start()
		s.eventually(10*time.Second, "the new epoch is a member", func() bool { return b.store.Epoch() > old && listed(b.store.Epoch()) })
		if !listed(old) {
			s.violated("the old epoch was given up before the new one came: this run shows nothing")
		}
		s.cut(cutStreams, func(i, j int) bool { return i == a.i && j == b.i || i == b.i && j == a.i })
		if !s.eventually(time.Minute, "the old epoch is given up", func() bool {
			if l := a.sees(b); l.State != state.Alive && l.State != state.Suspect || !l.Serving {
				s.violated("%s sees %s %s, serving %v", a.name, b.name, l.State, l.Serving)
				return true
			}
			return !listed(old)
		}) {
			return
		}
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if l := a.sees(b); l.State != state.Alive || !l.Serving {
				s.violated("after the leave of the old epoch %s sees %s %s, serving %v", a.name, b.name, l.State, l.Serving)
				return
			}
		}
		s.heal()
		s.settle()
	})
}

// One node of two, three and five is cut off. It can tell that it is the
// isolated side only where it loses over half of at least five.
func TestMassDeathFreeze(t *testing.T) {
	for _, size := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			simulate(t, uint64(size), size, func(s *sim) {
				lonely, rest := s.nodes[0], s.nodes[1:]
				s.isolate(lonely)
				s.eventually(time.Minute, "the others withdraw the lost node", func() bool {
					return !slices.ContainsFunc(rest, func(n *simNode) bool { l := n.sees(lonely); return l.State != state.Dead || l.Serving })
				})
				s.eventually(time.Minute, "the lonely node sees the others dead", func() bool {
					return !slices.ContainsFunc(rest, func(n *simNode) bool { return lonely.sees(n).State != state.Dead })
				})
				s.wait(20 * time.Second)
				for _, n := range rest {
					if got, want := lonely.sees(n).Serving, size >= 5; got != want {
						s.violated("lonely node of %d: %s serves: %v, want %v", size, n.name, got, want)
					}
				}
				s.heal()
				s.settle()
			})
		})
	}
}

// Over half of five nodes really die: the survivors withdraw nothing at first,
// and not for ever.
func TestMassDeathThaw(t *testing.T) {
	simulate(t, 6, 5, func(s *sim) {
		for _, n := range s.nodes[2:] {
			n.kill(true)
		}
		a := s.nodes[0]
		serving := func() (k int) {
			for _, n := range s.nodes[2:] {
				if a.sees(n).Serving {
					k++
				}
			}
			return k
		}
		s.wait(time.Minute)
		if k := serving(); k != 3 {
			s.violated("after a minute %d of the 3 lost nodes serve, want all: withdrawals are frozen", k)
		}
		s.eventually(11*time.Minute, "the freeze ends", func() bool { return serving() == 0 })
		for _, n := range s.nodes[2:] {
			n.start()
		}
		s.settle()
	})
}

// A state directory is restored from a backup after the node has written more.
// Its next life must neither reuse versions that others hold, nor lose what
// they hold of it, with a clock that is right or a day behind.
func TestEpochRollbackFromBackup(t *testing.T) {
	for _, skew := range []time.Duration{0, -24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			simulate(t, 7, 3, func(s *sim) {
				n := s.nodes[1]
				s.work(5 * time.Second)
				s.settle()
				backup := n.log.clone()
				for range 3 { // lives that the backup knows nothing of
					s.work(4 * time.Second)
					s.settle()
					n.kill(true)
					n.start()
					s.settle()
				}
				n.kill(true)
				held := s.nodes[0].store.Snapshot().Head(n.id.ID).Mark
				n.log, n.restored = backup, true
				n.skew.Store(int64(skew))
				n.start()
				s.eventually(10*time.Second, "the restored node has written", func() bool {
					return s.nodes[0].store.Snapshot().Head(n.id.ID).Mark.Compare(held) > 0
				})
				if got := n.store.Epoch(); got <= held.Epoch {
					s.violated("restored node writes in epoch %d, others hold %d", got, held.Epoch)
				}
				s.settle()
				s.work(5 * time.Second)
				s.settle()
			})
		})
	}
}

// Views of a ring that hold any part of its donations, in any order: nobody
// may believe that it owns what another one does, nor get space twice.
func TestHalfSeenDonation(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			simulate(t, 20+seed, 5, func(s *sim) {
				rng, late := rand.New(rand.NewPCG(seed, 99)), s.nodes[4]
				s.isolate(late)
				grow := func(n *simNode) {
					// Opening the blocks makes the next Grow need more.
					for range 1 + rng.IntN(3) {
						s.open(n, 1+rng.IntN(4))
						if err := n.grow(context.Background(), simPods.Name); err != nil {
							s.note("%s does not grow: %v", n.name, err)
						}
					}
					s.glance()
				}
				for range 6 {
					grow(s.nodes[rng.IntN(4)])
				}
				ring := ipam.RingRecords(s.nodes[0].store.Snapshot(), simPods.Name, s.ringID)
				for i := range ring {
					ring[i] = simWire(ring[i])
				}
				rng.Shuffle(len(ring), func(i, j int) { ring[i], ring[j] = ring[j], ring[i] })
				s.note("%d ranges", len(ring))
				for i, r := range ring {
					if rng.IntN(2) == 0 {
						continue
					}
					if _, err := late.store.Merge([]state.Record{r}, false); err != nil {
						s.violated("merge: %v", err)
					}
					s.glance()
					if i == len(ring)/2 {
						// With half a view it meets one node only, and asks.
						s.heal()
						friend := 1 + rng.IntN(3)
						s.cut(cutAll, func(i, j int) bool { return i == 4 && j != friend || j == 4 && i != friend })
						grow(late)
						grow(s.nodes[rng.IntN(4)])
					}
				}
				s.heal()
				grow(late)
				s.work(4 * time.Second)
				s.settle()
			})
		})
	}
}

// open opens blocks of a node's own part of the pods' ring.
func (s *sim) open(n *simNode, k int) {
	if _, err := n.store.Write(context.Background(), func(sn *state.Snapshot) ([]state.Op, error) {
		ring := ipam.Resolve(sn, simPods.Name, s.ringID)
		if ring == nil {
			return nil, nil
		}
		var ops []state.Op
		for _, p := range ipam.Spare(sn, ring, n.id.ID, simSpecs[0]) {
			// A whole piece as one block: the ring does not mind its length.
			if len(ops) < k {
				ops = append(ops, state.Put(state.Owner, state.KindBlock, simPods.Name+"/"+p.String(), state.Block{Network: simPods.Name, Prefix: p}))
			}
		}
		return ops, nil
	}); err != nil {
		s.violated("%s: open blocks: %v", n.name, err)
	}
}

// Records are deleted, and their tombstones collected by everybody who saw
// them, while one node is away: cut off, or dead with the records on its disk.
func TestResurrectionAfterCollect(t *testing.T) {
	for name, dead := range map[string]bool{"cut off": false, "dead": true} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 30, 4, func(s *sim) {
				away := s.nodes[3]
				s.work(8 * time.Second)
				s.settle()
				if dead {
					away.kill(true)
				} else {
					s.isolate(away)
				}
				ctx := context.Background()
				deleted := 0
				for _, n := range s.nodes[:3] {
					for n.model.pick(n, n.model.eps) != "" {
						n.detach(ctx)
						deleted++
					}
					n.withdraw(ctx)
				}
				if deleted == 0 {
					s.violated("nothing was deleted: this run shows nothing")
				}
				s.wait(time.Minute)
				collected := 0
				for _, n := range s.nodes[:3] {
					k, err := n.store.Collect(n.now().Add(-30 * time.Second))
					if err != nil {
						s.violated("%s: collect: %v", n.name, err)
					}
					collected += k
				}
				s.note("%d deleted, %d tombstones collected", deleted, collected)
				if collected < 3*deleted {
					s.violated("%d tombstones collected of %d on three nodes", collected, deleted)
				}
				// One owner restarts as well: it knows its floor from disk only.
				s.nodes[1].kill(true)
				s.nodes[1].start()
				if dead {
					away.start()
				} else {
					s.heal()
				}
				s.settle()
				for i := range s.nodes {
					for r := range state.All[state.Endpoint](s.nodes[i].store.Snapshot()) {
						if !strings.HasPrefix(r.ID.Key, away.name) {
							s.violated("%s shows %s again", s.nodes[i].name, r.ID)
						}
					}
				}
				s.work(3 * time.Second)
				s.settle()
			})
		})
	}
}
