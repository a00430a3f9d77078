package gossip

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// simNemesis makes trouble and returns what ends it. The names are Jepsen's
// where it has one.
type simNemesis struct {
	name string
	do   func(s *sim, r *rand.Rand) (heal func())
}

type simCut int

const (
	cutAll simCut = iota
	cutPackets
	cutStreams
)

// cut closes the paths for which closed says so.
func (s *sim) cut(kind simCut, closed func(from, to int) bool) {
	s.net.edit(func(path func(from, to netip.Addr) *simPath) {
		for i, a := range s.nodes {
			for j, b := range s.nodes {
				if i != j && closed(i, j) {
					p := path(a.addr, b.addr)
					p.noPackets = p.noPackets || kind != cutStreams
					p.noTCP = p.noTCP || kind != cutPackets
				}
			}
		}
	})
}

// heal opens all paths.
func (s *sim) heal() {
	s.net.edit(func(func(from, to netip.Addr) *simPath) {
		for _, p := range s.net.paths {
			p.noPackets, p.noTCP = false, false
		}
	})
}

// halves returns a random side for each node, neither of them empty.
func halves(s *sim, r *rand.Rand) []bool {
	side := make([]bool, len(s.nodes))
	for _, i := range r.Perm(len(s.nodes))[:len(s.nodes)/2] {
		side[i] = true
	}
	return side
}

func simNemeses() []simNemesis {
	partition := func(kind simCut) func(*sim, *rand.Rand) func() {
		return func(s *sim, r *rand.Rand) func() {
			side := halves(s, r)
			s.note("  sides %v", side)
			s.cut(kind, func(i, j int) bool { return side[i] != side[j] })
			return s.heal
		}
	}
	one := func(s *sim, r *rand.Rand) *simNode { return s.nodes[r.IntN(len(s.nodes))] }
	return []simNemesis{
		{"random halves", partition(cutAll)},
		{"packets only", partition(cutPackets)},
		{"streams only", partition(cutStreams)},
		{"bridge", func(s *sim, r *rand.Rand) func() {
			side, b := halves(s, r), r.IntN(len(s.nodes))
			s.note("  sides %v, bridge n%d", side, b)
			s.cut(cutAll, func(i, j int) bool { return side[i] != side[j] && i != b && j != b })
			return s.heal
		}},
		{"majorities ring", func(s *sim, r *rand.Rand) func() {
			n := len(s.nodes)
			pos := r.Perm(n)
			reach := max(1, n/4) // with oneself a majority of five or seven
			s.cut(cutAll, func(i, j int) bool {
				d := (pos[i] - pos[j] + n) % n
				return min(d, n-d) > reach
			})
			return s.heal
		}},
		{"isolate one", func(s *sim, r *rand.Rand) func() {
			n := one(s, r)
			s.note("  %s", n.name)
			s.cut(cutAll, func(i, j int) bool { return i == n.i || j == n.i })
			return s.heal
		}},
		{"one-way loss", func(s *sim, r *rand.Rand) func() {
			n, out := one(s, r), r.IntN(2) == 0
			s.note("  %s, outgoing %v", n.name, out)
			s.cut(cutAll, func(i, j int) bool { return out && i == n.i || !out && j == n.i })
			return s.heal
		}},
		{"kill", func(s *sim, r *rand.Rand) func() {
			perm := r.Perm(len(s.nodes))
			victims := perm[:1+r.IntN(len(perm))]
			var back []*simNode
			for _, i := range victims {
				n, rst := s.nodes[i], r.IntN(2) == 0
				if arm := r.IntN(3); arm > 0 {
					n.log.mu.Lock()
					n.log.arm = arm
					n.log.mu.Unlock()
					time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
				}
				s.note("  kill %s, reset %v", n.name, rst)
				n.kill(rst)
				back = append(back, n)
			}
			return func() {
				for _, n := range back {
					n.start()
				}
			}
		}},
		{"forget", func(s *sim, r *rand.Rand) func() {
			victim, heir := one(s, r), one(s, r)
			if victim == heir || len(s.nodes) < 3 {
				return func() {}
			}
			s.note("  %s by %s", victim.name, heir.name)
			victim.kill(r.IntN(2) == 0)
			for range 60 { // it may not come to it: there may be no majority
				s.wait(500 * time.Millisecond)
				if heir.forgetNode(context.Background(), victim) == nil {
					s.note("  forgotten")
					s.count("forgotten")
					victim.mustSync = true
					break
				}
			}
			return victim.start
		}},
		{"fast restart", func(s *sim, r *rand.Rand) func() {
			n := one(s, r)
			s.note("  %s", n.name)
			n.kill(true)
			n.start()
			return func() {}
		}},
		{"new address", func(s *sim, r *rand.Rand) func() {
			n := one(s, r)
			n.kill(r.IntN(2) == 0)
			a := n.addr.As4()
			a[2]++
			n.addr = netip.AddrFrom4(a)
			s.note("  %s is now %s", n.name, n.addr)
			return n.start
		}},
		{"bad network", func(s *sim, r *rand.Rand) func() {
			old := map[[2]netip.Addr]simPath{}
			s.net.edit(func(path func(from, to netip.Addr) *simPath) {
				for _, a := range s.nodes {
					for _, b := range s.nodes {
						p := path(a.addr, b.addr)
						old[[2]netip.Addr{a.addr, b.addr}] = *p
						p.loss, p.latency = 0.3, p.latency+time.Duration(r.IntN(150))*time.Millisecond
						p.jitter = p.latency
					}
				}
			})
			return func() {
				s.net.edit(func(path func(from, to netip.Addr) *simPath) {
					for k, o := range old {
						p := path(k[0], k[1])
						p.loss, p.latency, p.jitter = o.loss, o.latency, o.jitter
					}
				})
			}
		}},
		{"pause", func(s *sim, r *rand.Rand) func() {
			n := one(s, r)
			s.note("  %s", n.name)
			n.host.pause(true)
			return func() { n.host.pause(false) }
		}},
		{"clock scrambler", func(s *sim, r *rand.Rand) func() {
			n, d := one(s, r), 24*time.Hour
			if r.IntN(2) == 0 {
				d = -d
			}
			s.note("  %s by %s", n.name, d)
			n.skew.Store(int64(d))
			return func() { n.skew.Store(0) }
		}},
	}
}

// episodes runs a schedule of faults with the workload going on, and settles
// after each.
func (s *sim) episodes(count int) {
	all := simNemeses()
	for range count {
		e := all[s.rng.IntN(len(all))]
		length := 2*time.Second + time.Duration(s.rng.ExpFloat64()*float64(12*time.Second))
		length = min(length, time.Minute)
		s.working.Store(true)
		s.wait(time.Second + time.Duration(s.rng.IntN(2000))*time.Millisecond)
		s.note("%s for %s", e.name, length)
		s.count("nemesis " + e.name)
		heal := e.do(s, s.rng)
		// Now and then two at a time.
		if s.rng.IntN(4) == 0 && !slices.Contains([]string{"kill", "forget", "fast restart", "new address"}, e.name) {
			f := all[s.rng.IntN(len(all))]
			if !slices.Contains([]string{"kill", "forget", "pause", "fast restart", "new address"}, f.name) && f.name != e.name {
				s.note("with %s", f.name)
				s.count("nemesis " + f.name)
				first, second := heal, f.do(s, s.rng)
				heal = func() { second(); first() }
			}
		}
		s.wait(length)
		heal()
		s.note("healed")
		s.wait(time.Duration(s.rng.IntN(1500)) * time.Millisecond)
		s.settle()
		if s.failed() {
			return
		}
	}
}

// wait lets virtual time pass and looks at what must always hold.
func (s *sim) wait(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(time.Until(end), 500*time.Millisecond))
		s.glance()
	}
}
