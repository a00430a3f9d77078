package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"nodenet/ipam"
	"nodenet/state"
)

const (
	// simRest is how long space that was taken over from a forgotten node rests.
	simRest = time.Hour
	// simTerm is the term of a lease. It is longer than clocks are put wrong: a
	// server that is a day ahead takes a lease of an hour for expired, and
	// gives its address to the next one.
	simTerm = 72 * time.Hour
)

// publish opens a port of the node, or closes it.
func (n *simNode) publish(ctx context.Context) {
	p := state.Publish{Protocol: "tcp", HostPort: uint16(8000 + n.rng.IntN(8)), Target: n.addr, Port: uint16(1 + n.rng.IntN(1000)), Source: "command"}
	op := state.Put(state.Owner, state.KindPublish, p.Key(), p)
	if n.rng.IntN(3) == 0 {
		op = state.Del(state.Owner, state.KindPublish, p.Key())
	}
	_, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) { return []state.Op{op}, nil })
	switch {
	case err == nil:
		n.model.ports[p.Key()] = &simWrite{live: !op.Delete, port: p.Port}
		n.sim.count("published")
	case crashed(err):
		n.model.ports[p.Key()] = &simWrite{open: true}
	}
}

// lease gives a DHCP client an address of this node's space, or renews or
// releases one that any node may have given.
func (n *simNode) lease(ctx context.Context) {
	sn := n.store.Snapshot()
	var held []state.LeaseValue
	for _, l := range state.All[state.LeaseValue](sn) {
		held = append(held, *l)
	}
	put := func(l state.LeaseValue) state.Op {
		return state.Put(state.Lease, state.KindLease, l.Network+"/"+l.Addr.String(), l)
	}
	now := n.now()
	if len(held) > 0 && n.rng.IntN(2) == 0 {
		l := held[n.rng.IntN(len(held))]
		l.Server, l.Granted, l.Expires = n.id.ID, now.Unix(), now.Add(simTerm).Unix()
		if _, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) { return []state.Op{put(l)}, nil }); err == nil {
			n.sim.count("leases renewed")
		}
		return
	}
	n.model.next++
	id := fmt.Sprintf("lease-%s-%d", n.name, n.model.next)
	var g ipam.Grant
	err := n.try(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		var ops []state.Op
		var err error
		if g, ops, err = n.alloc.Allocate(sn, n.id.ID, ipam.Request{Network: simPods, RingID: n.sim.ringID, ID: id, Now: n.now(), Rest: 5 * time.Second}); err != nil {
			return nil, err
		}
		return append(ops, put(state.LeaseValue{
			Network: simPods.Name, Addr: g.Addr, MAC: fmt.Sprintf("02:00:00:%02x:%02x:%02x", n.i, n.model.next>>8, n.model.next&255), Hostname: id,
			Server: n.id.ID, Granted: now.Unix(), Expires: now.Add(simTerm).Unix(),
		})), nil
	})
	if err == nil {
		simTake(n.sim, n.sim.held, g.Addr, id)
		n.sim.count("leases")
	}
}

// simForget is what a node answers when it is asked whether another may be
// forgotten: as node/forget.go does.
type simForget struct {
	Sum   []byte
	Epoch uint64
	Dead  bool
}

func (n *simNode) serveForget(req []byte) ([]byte, error) {
	sn, id := n.store.Snapshot(), state.NodeID(req)
	return state.Encode(simForget{Sum: ipam.RingSum(sn, n.sim.ringID), Epoch: sn.Head(id).Mark.Epoch, Dead: sn.Live()[id].State == state.Dead})
}

// forgetNode takes over the space of a node once a majority agrees.
func (n *simNode) forgetNode(ctx context.Context, victim *simNode) error {
	sum, epoch, agree := ipam.RingSum(n.store.Snapshot(), n.sim.ringID), n.store.Snapshot().Head(victim.id.ID).Mark.Epoch, 1
	if n.sees(victim).State != state.Dead {
		return errors.New("it is not dead")
	}
	for _, p := range n.sim.nodes {
		if p == n || p == victim {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		b, err := n.g.Call(ctx, p.id.ID, "sim.forget", []byte(victim.id.ID))
		cancel()
		var a simForget
		if err != nil || state.Decode(b, &a) != nil {
			continue
		}
		epoch = max(epoch, a.Epoch)
		if a.Dead && bytes.Equal(a.Sum, sum) {
			agree++
		}
	}
	if 2*agree <= len(n.sim.nodes) {
		return fmt.Errorf("%d of %d agree", agree, len(n.sim.nodes))
	}
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if n.sees(victim).State != state.Dead || !bytes.Equal(ipam.RingSum(sn, n.sim.ringID), sum) {
			return nil, errors.New("things changed meanwhile")
		}
		ops, err := ipam.Forget(sn, n.id.ID, n.sim.ringID, victim.id.ID, func(string) time.Duration { return simRest }, n.now())
		return append(ops, state.Put(state.Cluster, state.KindForgotten, string(victim.id.ID), state.Forgotten{By: n.id.ID, At: n.now().Unix(), Epoch: epoch, Name: victim.name})), err
	})
	return err
}

// obey gives up what was taken over while this node was away, as node/obey.go does.
func (n *simNode) obey(ctx context.Context) {
	sn := n.store.Snapshot()
	if e := sn.WasForgotten(); e >= n.store.Epoch() {
		n.store.RaiseEpoch(max(e+1, uint64(max(0, n.now().Unix()))))
	}
	if len(ipam.GiveWay(sn, n.id.ID, n.sim.ringID)) == 0 {
		return
	}
	var ops []state.Op
	if _, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		ops = ipam.GiveWay(sn, n.id.ID, n.sim.ringID)
		return ops, nil
	}); err != nil {
		return
	}
	n.sim.count("gave way")
	for _, op := range ops {
		if w := n.model.svcs[op.Key]; w != nil && op.Kind == state.KindVIP && op.Delete {
			w.live = false
			simDrop(n.sim, n.sim.vips, w.addr, op.Key)
			simDrop(n.sim, n.sim.ports, w.port, op.Key)
		}
	}
}

// A node dies and is forgotten by a majority; its space is another's by then.
// It comes back with all that its disk holds.
func TestForgottenNodeComesBack(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			simulate(t, 50+seed, 3+int(seed), func(s *sim) {
				victim, heir := s.nodes[len(s.nodes)-1], s.nodes[0]
				s.work(8 * time.Second)
				s.settle()
				had := len(ipam.Resolve(heir.store.Snapshot(), simPods.Name, s.ringID).Owned(victim.id.ID))
				victim.kill(seed%2 == 0)
				s.eventually(time.Minute, "all see it dead", func() bool {
					return !slices.ContainsFunc(s.nodes, func(n *simNode) bool { return n.up && n.sees(victim).State != state.Dead })
				})
				var err error
				if !s.eventually(time.Minute, "it is forgotten", func() bool { err = heir.forgetNode(context.Background(), victim); return err == nil }) {
					s.violated("forget: %v", err)
					return
				}
				s.work(5 * time.Second)
				if k := len(ipam.Resolve(heir.store.Snapshot(), simPods.Name, s.ringID).Owned(victim.id.ID)); k > 0 || had == 0 {
					s.violated("the forgotten node owns %d ranges of %d", k, had)
				}
				victim.mustSync = true // it must not give out anything before it has heard
				victim.start()
				s.eventually(30*time.Second, "it has heard and obeyed", func() bool {
					sn := victim.store.Snapshot()
					return sn.WasForgotten() > 0 && len(ipam.GiveWay(sn, victim.id.ID, s.ringID)) == 0
				})
				s.work(5 * time.Second)
				s.settle()
			})
		})
	}
}

// A node leaves: what it wrote last is everywhere, and nobody takes it for dead.
func TestLeave(t *testing.T) {
	simulate(t, 60, 5, func(s *sim) {
		n := s.nodes[4]
		s.work(6 * time.Second)
		s.settle()
		ctx := context.Background()
		for n.model.pick(n, n.model.eps) != "" {
			n.detach(ctx)
		}
		self := state.ID{Class: state.Owner, Kind: state.KindNode, Owner: n.id.ID, Key: "self"}
		if _, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
			v, _ := state.Lookup[state.Node](sn, self)
			left := *v
			left.Left = true
			return []state.Op{state.Put(state.Owner, state.KindNode, "self", left)}, nil
		}); err != nil {
			s.violated("leave: %v", err)
		}
		lctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := n.g.Leave(lctx); err != nil {
			s.violated("leave: %v", err)
		}
		cancel()
		n.kill(true)
		s.eventually(10*time.Second, "all see that it left", func() bool {
			return !slices.ContainsFunc(s.nodes[:4], func(p *simNode) bool { return p.sees(n).State != state.Left })
		})
		for range 20 {
			s.wait(time.Second)
			for _, p := range s.nodes[:4] {
				if l := p.sees(n); l.State != state.Left {
					s.violated("%s sees the node that left %s", p.name, l.State)
				}
				for r := range state.All[state.Endpoint](p.store.Snapshot()) {
					if r.ID.Owner == n.id.ID {
						s.violated("%s shows %s of the node that left", p.name, r.ID)
					}
				}
			}
		}
		s.nodes = s.nodes[:4]
		s.settle()
	})
}

// A member that holds the secret alters what it passes on: it takes the
// records of other nodes, with their signed heads, changes them and pushes
// them to everybody. Whoever verifies refuses all of it.
func TestForgingRelay(t *testing.T) {
	simulate(t, 70, 4, func(s *sim) {
		s.work(4 * time.Second)
		s.settle()
		if h := s.nodes[0].store.Snapshot().Head(s.nodes[1].id.ID); !h.Signed() {
			s.violated("heads are not signed: this run shows nothing")
			return
		}
		liar, rng := s.nodes[3], rand.New(rand.NewPCG(s.seed, 99))
		forged := 0
		for round := range 40 {
			owner := s.nodes[rng.IntN(3)]
			sn := liar.store.Snapshot()
			d := sn.Delta(owner.id.ID, state.Mark{}, 0)
			d.Records = slices.DeleteFunc(d.Records, func(r state.Record) bool { return r.Deleted })
			if len(d.Records) == 0 {
				continue
			}
			for i := range d.Records {
				d.Records[i] = simWire(d.Records[i])
			}
			switch i := rng.IntN(len(d.Records)); round % 4 {
			case 0: // another value
				d.Records[i].Value = slices.Clone(d.Records[i].Value)
				d.Records[i].Value[len(d.Records[i].Value)/2] ^= 1
				d.To.Seq++
				d.Records[i].Version.Seq = d.To.Seq
			case 1: // a record left out, as a later history
				d.Records = slices.Delete(slices.Clone(d.Records), i, i+1)
				d.To.Seq++
			case 2: // one deleted, in a whole set
				d.Replace, d.Floor = true, d.To
				d.To.Seq++
				d.Records = d.Records[:i]
			case 3: // one more, unsigned, from the future
				d.To = state.Mark{Epoch: d.To.Epoch + 1, Seq: 1}
				r := d.Records[i]
				r.ID.Key, r.Version.Epoch, r.Version.Seq = "forged", d.To.Epoch, 1
				d.Records, d.From = []state.Record{r}, sn.Head(owner.id.ID).Mark
				d.Hash, d.Key, d.Sig = nil, nil, nil
			}
			for _, l := range liar.g.someLinks() {
				if l.peer != owner.id.ID {
					if err := l.send(&push{Deltas: []state.Delta{d}}); err == nil {
						forged++
					}
				}
			}
			s.working.Store(round%2 == 0)
			time.Sleep(200 * time.Millisecond)
			synctest.Wait()
			for _, n := range s.nodes[:3] {
				for _, o := range s.nodes[:3] {
					if got, own := n.store.Snapshot().Head(o.id.ID).Mark, o.store.Snapshot().Head(o.id.ID).Mark; got.Compare(own) > 0 {
						s.violated("%s holds %s up to %v, which %s never wrote: it is at %v", n.name, o.name, got, o.name, own)
					}
				}
			}
		}
		if forged < 50 {
			s.violated("%d forgeries sent: this run shows little", forged)
		}
		s.settle()
	})
}

// simTaken are the addresses of leases, which count as endpoints' do.
func simTaken(sn *state.Snapshot, users map[netip.Addr]state.ID, clash func(a netip.Addr, x, y state.ID)) {
	for r, l := range state.All[state.LeaseValue](sn) {
		if u, ok := users[l.Addr]; ok {
			clash(l.Addr, u, r.ID)
		}
		users[l.Addr] = r.ID
	}
}
