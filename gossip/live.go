package gossip

import (
	"maps"
	"time"

	"nodenet/state"
)

// member is what memberlist says about the newest epoch of a node.
type member struct {
	epoch      uint64
	up         bool
	name       string
	addr       string // of gossip, host without port
	gossipPort uint16
	syncPort   uint16
	acked      time.Time // last answer to a probe of ours
}

// tracker turns membership events, signs of life on the stream and node
// records into liveness. It is pure: time comes in as an argument. Not safe
// for concurrent use.
type tracker struct {
	self    state.NodeID
	started time.Time
	company time.Time // when the first other node was heard; zero: alone since start
	t       timings

	members map[state.NodeID]*member
	live    map[state.NodeID]state.Live
	freeze  *freeze
	flaps   map[state.NodeID]*flap
	copies  map[state.NodeID]map[uint64]bool // epochs of copies of a node's disk
}

// freeze holds back withdrawals while this node must believe that it is the
// one that is cut off.
type freeze struct {
	since time.Time
	base  int // live nodes before the loss, this one included
	lost  map[state.NodeID]bool
}

func newTracker(self state.NodeID, t timings, now time.Time) *tracker {
	return &tracker{self: self, started: now, t: t, members: map[state.NodeID]*member{},
		live: map[state.NodeID]state.Live{}, flaps: map[state.NodeID]*flap{}}
}

// join notes that memberlist has seen a node, and reports whether that counts:
// an older epoch than the one known is a leftover of a former life.
func (k *tracker) join(id state.NodeID, m member) bool {
	if k.copies[id][m.epoch] {
		return false
	}
	if old := k.members[id]; old != nil {
		if m.epoch < old.epoch {
			return false
		}
		if old.acked.After(m.acked) {
			m.acked = old.acked
		}
	}
	m.up = true
	k.members[id] = &m
	return true
}

// leave notes that memberlist gave a node up. The leave of an old epoch
// changes nothing: with the epoch in its name, a restarted node is seen to
// join before its former self is seen to leave.
func (k *tracker) leave(id state.NodeID, epoch uint64) bool {
	m := k.members[id]
	if m == nil || m.epoch != epoch || !m.up {
		return false
	}
	m.up = false
	return true
}

// disown puts back what was known of a node before a copy of its disk joined
// with a newer epoch, and ignores that epoch from now on.
func (k *tracker) disown(id state.NodeID, was member, epoch uint64) {
	if k.copies == nil {
		k.copies = map[state.NodeID]map[uint64]bool{}
	}
	if k.copies[id] == nil || len(k.copies[id]) >= 16 {
		k.copies[id] = map[uint64]bool{}
	}
	k.copies[id][epoch] = true
	if m := k.members[id]; m != nil && m.epoch == epoch {
		k.members[id] = &was
	}
}

func (k *tracker) ack(id state.NodeID, epoch uint64, now time.Time) {
	if m := k.members[id]; m != nil && m.epoch == epoch {
		m.acked = now
	}
}

// compute returns the liveness of every node that has a record, a membership
// or a stream, and when to look again at the latest. heard holds the last sign
// of life on a stream, left who has left by its own record.
func (k *tracker) compute(now time.Time, known []state.NodeID, left map[state.NodeID]bool, heard map[state.NodeID]time.Time) (map[state.NodeID]state.Live, time.Duration) {
	ids := make(map[state.NodeID]bool, len(known)+1)
	for _, id := range known {
		ids[id] = true
	}
	up := 1
	for id, m := range k.members {
		ids[id] = true
		if m.up {
			up++
		}
	}
	for id := range heard {
		ids[id] = true
	}
	ids[k.self] = true

	// memberlist does not publish its suspicions. A member that answers
	// neither on the stream nor to probes for this long is one.
	silence := max(k.t.life, 3*time.Duration(up)*k.t.probe)
	out := make(map[state.NodeID]state.Live, len(ids))
	for id := range ids {
		was, seen := k.live[id]
		m := k.members[id]
		h := heard[id]
		talking := !h.IsZero() && now.Sub(h) < k.t.life
		st := state.Unknown
		switch {
		case left[id]:
			st = state.Left
		case id == k.self || talking:
			st = state.Alive
		case m != nil && m.up:
			st = state.Alive
			if !m.acked.IsZero() && now.Sub(m.acked) > silence && now.Sub(h) > silence {
				st = state.Suspect
			}
		case m != nil || !h.IsZero() || seen && was.State != state.Unknown && was.State != state.Left:
			st = state.Dead
		}
		l := state.Live{State: st, Since: was.Since}
		if !seen || was.State != st {
			l.Since = now
			if !seen && st == state.Unknown {
				l.Since = k.started
			}
		}
		out[id] = l
	}
	if k.company.IsZero() {
		for id, l := range out {
			if id != k.self && (l.State == state.Alive || l.State == state.Suspect) {
				k.company = now
			}
		}
	}
	k.massDeath(now, out)
	k.countDeaths(now, out)
	for id, l := range out {
		switch l.State {
		case state.Alive, state.Suspect:
			l.Serving = true
			l.Flapping = k.hold(id, now) > 0
		case state.Dead:
			l.Serving = now.Sub(l.Since) < k.t.hold || k.freeze != nil && k.freeze.lost[id]
		case state.Unknown:
			// Who hears nobody goes on with what it saved: it cannot tell
			// whether the others are gone or itself is cut off.
			l.Serving = k.company.IsZero() || now.Sub(k.company) < k.t.grace
		}
		out[id] = l
	}
	k.live = out
	return maps.Clone(out), k.next(now, out)
}

// countDeaths adds to the penalties of those that died just now. Deaths that
// may be our own network's fault do not count: those of a freeze, and any while
// nobody else is there.
func (k *tracker) countDeaths(now time.Time, cur map[state.NodeID]state.Live) {
	company := false
	for id, l := range cur {
		company = company || id != k.self && (l.State == state.Alive || l.State == state.Suspect)
	}
	for id, l := range cur {
		was := k.live[id].State
		if l.State != state.Dead || was != state.Alive && was != state.Suspect || !company || k.freeze != nil {
			continue
		}
		f := k.flaps[id]
		if f == nil {
			f = &flap{}
			k.flaps[id] = f
		}
		f.add(flapDeath, now)
		f.counted = true
	}
	for id, l := range cur {
		f := k.flaps[id]
		if f == nil || !f.counted || l.State != state.Dead {
			continue
		}
		if k.freeze != nil || !company && now.Sub(l.Since) <= k.t.window {
			f.add(-flapDeath, now) // it was the first of many
			f.counted = false
		}
	}
	for id, f := range k.flaps {
		if f.hold(now) == 0 && f.now(now) < 1 || cur[id].State == state.Left {
			delete(k.flaps, id)
		}
	}
}

// hold returns how much longer services prefer other nodes to a flapping one.
func (k *tracker) hold(id state.NodeID, now time.Time) time.Duration {
	if f := k.flaps[id]; f != nil {
		return f.hold(now)
	}
	return 0
}

// massDeath begins and ends a freeze: when over half of at least five live
// nodes are lost within one window, it is more likely that this node is cut
// off than that all of them died. It ends when most are back, or after
// timings.thaw: a real mass outage must not be served for ever.
func (k *tracker) massDeath(now time.Time, cur map[state.NodeID]state.Live) {
	alive := 0
	lost := map[state.NodeID]bool{}
	for id, l := range cur {
		switch l.State {
		case state.Alive, state.Suspect:
			alive++
		case state.Dead:
			if now.Sub(l.Since) <= k.t.window {
				lost[id] = true
			}
		}
	}
	if f := k.freeze; f != nil {
		if 2*alive > f.base || now.Sub(f.since) > k.t.thaw {
			k.freeze = nil
			return
		}
		maps.Copy(f.lost, lost) // stragglers of the same event
		return
	}
	base := alive + len(lost)
	if base < 5 || 2*len(lost) <= base {
		return
	}
	k.freeze = &freeze{since: now, base: base, lost: lost}
}

// next is how long the result stays valid without a new event.
func (k *tracker) next(now time.Time, cur map[state.NodeID]state.Live) time.Duration {
	d := k.t.life / 2
	for id, l := range cur {
		if l.Flapping {
			d = min(d, k.hold(id, now))
		}
		if l.State == state.Dead && l.Serving {
			if rest := k.t.hold - now.Sub(l.Since); rest > 0 {
				d = min(d, rest)
			}
		}
	}
	return max(d, 10*time.Millisecond)
}

// epoch returns the highest epoch of a node that membership has shown.
func (k *tracker) epoch(id state.NodeID) uint64 {
	if m := k.members[id]; m != nil {
		return m.epoch
	}
	return 0
}
