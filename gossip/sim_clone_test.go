package gossip

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"nodenet/state"
)

var simTwin = netip.MustParseAddr("10.0.0.99")

// separate cuts two addresses off from one another.
func (s *sim) separate(a, b netip.Addr) {
	s.net.edit(func(path func(from, to netip.Addr) *simPath) {
		for _, p := range []*simPath{path(a, b), path(b, a)} {
			p.noTCP, p.noPackets = true, true
		}
	})
}

// twin is a second machine on a copy of a node's disk, not started yet.
func (s *sim) twin(n *simNode) *simNode {
	c := n.g.Cluster()
	t := &simNode{
		sim: s, i: len(s.nodes), name: "twin", addr: simTwin, id: n.id, rng: rand.New(rand.NewPCG(s.seed, 99)),
		log: n.log.clone(), cluster: &c, text: &logBuf{}, restored: true, mayFail: true,
	}
	t.model.init()
	return t
}

// stopped waits until a node's Run has refused to go on.
func (s *sim) stopped(n *simNode) {
	if !s.eventually(20*time.Second, n.name+" stops", func() bool { return len(n.done) > 0 }) {
		return
	}
	n.kill(true)
	if !errors.Is(n.err, ErrClone) {
		s.violated("%s: Run: %v, want %v", n.name, n.err, ErrClone)
	}
	s.note("%s: %v", n.name, n.err)
}

// shows reports whether a node has a name.
func (n *simNode) shows(host string) bool {
	for r := range state.All[state.Name](n.store.Snapshot()) {
		if r.ID.Key == host+" A" {
			return true
		}
	}
	return false
}

// A disk is cloned and the copy started at another address while the holder
// of the identity runs. The copy must not write: it would give out the holder's
// addresses a second time. It stops and says why, whomever it meets first; the
// holder goes on and all agree with it.
func TestClonedDisk(t *testing.T) {
	for name, meets := range map[string]func(s *sim, n *simNode){
		"meets all":              func(*sim, *simNode) {},
		"meets third nodes only": func(s *sim, n *simNode) { s.separate(n.addr, simTwin) },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 40, 3, func(s *sim) {
				n := s.nodes[1]
				s.work(4 * time.Second)
				s.settle()
				twin := s.twin(n)
				meets(s, n)
				epoch := n.store.Epoch()
				s.working.Store(true)
				twin.start()
				s.stopped(twin)
				s.work(15 * time.Second)
				if k := len(twin.model.eps); k > 0 {
					s.violated("the twin was told that %d endpoints are there", k)
				}
				if got := n.store.Epoch(); got != epoch {
					s.violated("the holder went from epoch %d to %d", epoch, got)
				}
				s.settle()
			})
		})
	}
}

// The copy is started while the holder is cut off: the others must take it for
// the holder that moved. When all meet again the holder has run longer: the copy
// stops, and what it wrote meanwhile goes with it.
func TestClonedDiskInPartition(t *testing.T) {
	simulate(t, 41, 3, func(s *sim) {
		n := s.nodes[1]
		s.work(4 * time.Second)
		s.settle()
		twin := s.twin(n)
		s.cut(cutAll, func(i, j int) bool { return i == n.i || j == n.i })
		s.separate(n.addr, simTwin)
		twin.start()
		s.eventually(time.Minute, "the others take the copy for the holder", func() bool {
			l := s.nodes[0].g.link(n.id.ID)
			return l != nil && l.name == "twin"
		})
		write := func(by *simNode, host string) {
			if _, err := by.store.Write(context.Background(), func(*state.Snapshot) ([]state.Op, error) { return []state.Op{name(host)}, nil }); err != nil {
				s.violated("%s: write: %v", by.name, err)
			}
		}
		write(n, "by-holder")
		write(twin, "by-copy")
		s.eventually(time.Minute, "the copy's record is with the others", func() bool { return s.nodes[0].shows("by-copy") })
		s.heal()
		s.stopped(twin)
		s.settle()
		for _, p := range s.nodes {
			if p.shows("by-copy") || !p.shows("by-holder") {
				s.violated("%s shows the copy's record: %v, the holder's: %v", p.name, p.shows("by-copy"), p.shows("by-holder"))
			}
		}
		s.work(4 * time.Second)
		s.settle()
	})
}

// The copy is started while the holder does not run. From then on the copy has
// run longer, and the holder is the one that must not start.
func TestHolderReturnsAfterItsCopy(t *testing.T) {
	simulate(t, 42, 3, func(s *sim) {
		n := s.nodes[1]
		s.work(4 * time.Second)
		s.settle()
		twin := s.twin(n)
		twin.log = n.log
		n.kill(true)
		backup := n.log.clone()
		twin.start()
		s.eventually(time.Minute, "the others take the copy for the holder", func() bool {
			l := s.nodes[0].g.link(n.id.ID)
			return l != nil && l.name == "twin"
		})
		time.Sleep(2 * time.Second)
		n.log, n.mayFail, n.restored = backup, true, true
		n.start()
		s.stopped(n)
		if len(twin.done) > 0 {
			s.violated("the one that has run longer has stopped as well")
		}
		twin.kill(true)
		n.mayFail, n.restored = false, true
		n.start()
		s.settle()
	})
}

// A node comes back at another address: links, membership, routes' source (its
// record) and the addresses that are kept on disk follow, and nobody takes it
// for a copy.
func TestNodeMoves(t *testing.T) {
	simulate(t, 43, 4, func(s *sim) {
		n := s.nodes[1]
		s.work(3 * time.Second)
		s.settle()
		was := n.addr
		n.kill(false) // as when a cable is pulled: nobody is told
		n.addr = netip.MustParseAddr("10.0.0.77")
		n.start()
		s.settle()
		s.eventually(20*time.Second, "everybody knows the new address and nothing else", func() bool {
			for _, p := range s.nodes {
				if p == n {
					continue
				}
				c := p.g.Cluster()
				l := p.g.link(n.id.ID)
				p.g.mu.Lock()
				info, m, old := p.g.peers[n.id.ID], p.g.track.members[n.id.ID], p.g.targets[was.String()+":7947"]
				ok := info != nil && info.addr == n.addr && m != nil && m.up && m.addr == n.addr.String() && old == nil
				p.g.mu.Unlock()
				rec, _ := state.Lookup[state.Node](p.store.Snapshot(), state.ID{Class: state.Owner, Kind: state.KindNode, Owner: n.id.ID, Key: "self"})
				if !ok || l == nil || l.hello.Addr != n.addr.String() || rec == nil || rec.Advertise != n.addr || !moved(c.Peers, was, n.addr) {
					return false
				}
			}
			return true
		})
		s.work(3 * time.Second)
		s.settle()
	})
}

// moved reports whether a saved list holds the new address and not the old one.
func moved(peers []string, was, is netip.Addr) bool {
	has := map[string]bool{}
	for _, p := range peers {
		has[p] = true
	}
	return has[is.String()+":7947"] && !has[was.String()+":7947"]
}
