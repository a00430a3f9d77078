package gossip

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing/synctest"
	"time"

	"nodenet/ipam"
	"nodenet/state"
)

// simHealed bounds the virtual time from a heal to equal tables.
const simHealed = 30 * time.Second

// glance checks what must hold at every moment, faults or not. synctest.Wait
// makes it a consistent cut: nothing runs while it looks.
func (s *sim) glance() {
	synctest.Wait()
	type claim struct {
		n    *simNode
		part ipam.Part
	}
	for _, spec := range simSpecs {
		var claims []claim
		for _, n := range s.nodes {
			if !n.up {
				continue
			}
			sn := n.store.Snapshot()
			ring := ipam.Resolve(sn, spec.Ring, s.ringID)
			if ring == nil {
				continue
			}
			if n.mustSync && sn.WasForgotten() == 0 {
				continue // it has not heard yet, and gives out nothing before
			}
			for _, p := range ring.Parts {
				if p.Owner == n.id.ID {
					claims = append(claims, claim{n, p})
				}
				if len(p.Contested) > 0 {
					s.violated("%s: %s %s-%s is contested", n.name, spec.Ring, p.From, p.To)
				}
			}
		}
		for i, a := range claims {
			for _, b := range claims[:i] {
				if a.n != b.n && a.part.From.Compare(b.part.To) <= 0 && b.part.From.Compare(a.part.To) <= 0 {
					s.violated("%s: both %s and %s believe that they own %s-%s and %s-%s",
						spec.Ring, a.n.name, b.n.name, a.part.From, a.part.To, b.part.From, b.part.To)
				}
			}
		}
	}
}

// settle heals nothing itself: it stops the workload, waits until all nodes
// hold the same and see one another, and checks what must hold then.
func (s *sim) settle() {
	s.working.Store(false)
	began := time.Now()
	for s.busy.Load() > 0 && time.Since(began) < 20*time.Second {
		time.Sleep(50 * time.Millisecond)
	}
	began = time.Now()
	for {
		synctest.Wait()
		why := s.unequal()
		if why == "" {
			break
		}
		if time.Since(began) > simHealed {
			s.violated("not converged %s after the heal: %s", simHealed, why)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.mu.Lock()
	s.healing = max(s.healing, time.Since(began))
	s.mu.Unlock()
	s.note("converged after %s", time.Since(began))
	s.glance()
	s.inspect()
}

// unequal says in what way the nodes do not agree, or "".
func (s *sim) unequal() string {
	first := s.nodes[0]
	for _, n := range s.nodes {
		sn := n.store.Snapshot()
		for _, p := range s.nodes {
			if l := sn.Live()[p.id.ID]; l.State != state.Alive || !l.Serving {
				return fmt.Sprintf("%s sees %s %s, serving %v", n.name, p.name, l.State, l.Serving)
			}
			if a, b := sn.Head(p.id.ID).Mark, p.store.Snapshot().Head(p.id.ID).Mark; a != b {
				return fmt.Sprintf("%s holds %s up to %v, %s itself up to %v", n.name, p.name, a, p.name, b)
			}
		}
		if n != first && string(rootOf(sn)) != string(rootOf(first.store.Snapshot())) {
			a, b := sn.Buckets(), first.store.Snapshot().Buckets()
			for i := range a {
				if a[i] != b[i] {
					return fmt.Sprintf("%s and %s differ in bucket %d: %v and %v", n.name, first.name, i, sn.Bucket(i), first.store.Snapshot().Bucket(i))
				}
			}
			return fmt.Sprintf("%s and %s differ in their heads", n.name, first.name)
		}
	}
	return ""
}

// inspect checks equal tables against one another record by record, which
// hashes alone would not prove, and against the model.
func (s *sim) inspect() {
	live := func(n *simNode) map[state.ID]string {
		out := map[state.ID]string{}
		sn := n.store.Snapshot()
		for _, h := range sn.Heads() {
			for _, r := range sn.Delta(h.Owner, state.Mark{}, 0).Records {
				if !r.Deleted { // tombstones are collected by each in its own time
					out[r.ID] = fmt.Sprint(r.Version) + string(r.Value)
				}
			}
		}
		for i := range state.NumBuckets {
			for _, r := range sn.Bucket(i) {
				out[r.ID] = fmt.Sprint(r.Version, r.Deleted) + string(r.Value)
			}
		}
		return out
	}
	want := live(s.nodes[0])
	for _, n := range s.nodes[1:] {
		got := live(n)
		for id, v := range want {
			if got[id] != v {
				s.violated("equal hashes, but %s holds %s as %q, %s as %q", n.name, id, got[id], s.nodes[0].name, v)
			}
		}
		for id := range got {
			if _, ok := want[id]; !ok {
				s.violated("equal hashes, but only %s holds %s", n.name, id)
			}
		}
	}
	for _, n := range s.nodes {
		sn := n.store.Snapshot()
		if c := sn.Conflicts(); len(c) > 0 {
			s.violated("%s: conflicts %v", n.name, c)
		}
		users := map[netip.Addr]state.ID{}
		for r, ep := range state.All[state.Endpoint](sn) {
			for _, a := range ep.Addrs {
				if u, ok := users[a]; ok {
					s.violated("%s: %s and %s both have %s", n.name, u, r.ID, a)
				}
				users[a] = r.ID
			}
		}
		simTaken(sn, users, func(a netip.Addr, x, y state.ID) { s.doubled("%s: %s and %s both have %s", n.name, x, y, a) })
		vips, ports := map[netip.Addr]string{}, map[uint16]string{}
		for r, v := range state.All[state.VIP](sn) {
			if u, ok := vips[v.Addr]; ok {
				s.doubled("%s: services %s and %s both have VIP %s", n.name, u, r.ID.Key, v.Addr)
			}
			vips[v.Addr] = r.ID.Key
			for p := range maps.Values(v.NodePorts) {
				if u, ok := ports[p]; ok {
					s.doubled("%s: services %s and %s both have node port %d", n.name, u, r.ID.Key, p)
				}
				ports[p] = r.ID.Key
			}
		}
		// Every node must show each owner what it was told, and nothing that it deleted.
		for _, o := range s.nodes {
			for _, id := range slices.Sorted(maps.Keys(o.model.eps)) {
				w := o.model.eps[id]
				ep, ok := state.Lookup[state.Endpoint](sn, state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: o.id.ID, Key: id})
				switch {
				case w.open:
				case ok && !w.live:
					s.violated("%s: endpoint %s was deleted and is back", n.name, id)
				case !ok && w.live:
					s.violated("%s: endpoint %s is missing", n.name, id)
				case ok && ep.Addrs[0] != w.addr:
					s.violated("%s: endpoint %s has %s, acknowledged %s", n.name, id, ep.Addrs[0], w.addr)
				}
			}
			for _, key := range slices.Sorted(maps.Keys(o.model.ports)) {
				w := o.model.ports[key]
				p, ok := state.Lookup[state.Publish](sn, state.ID{Class: state.Owner, Kind: state.KindPublish, Owner: o.id.ID, Key: key})
				if !w.open && (ok != w.live || ok && p.Port != w.port) {
					s.violated("%s: port %s of %s published: %v, acknowledged: %v", n.name, key, o.name, ok, w.live)
				}
			}
			for _, key := range slices.Sorted(maps.Keys(o.model.svcs)) {
				w := o.model.svcs[key]
				_, ok := state.Lookup[state.VIP](sn, state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: key})
				if !w.open && ok != w.live {
					s.violated("%s: VIP of %s there: %v, acknowledged: %v", n.name, key, ok, w.live)
				}
			}
		}
	}
}

// doubled is a violation, unless a disk was put back and its node went on
// alone: then nobody could know what it had given out in its later days, and
// all that can be asked for is that every node sees the same.
func (s *sim) doubled(format string, args ...any) {
	if !s.rolledBack {
		s.violated(format, args...)
	}
}
