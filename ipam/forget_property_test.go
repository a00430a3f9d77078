package ipam

import (
	"errors"
	"time"

	"pgregory.net/rapid"

	"nodenet/state"
)

// lags reports that a node is forgotten and dead, or back but has yet to obey.
func (m *sim) lags(all *state.Snapshot, id state.NodeID) bool {
	n := m.byID[id]
	if n == nil {
		return false
	}
	for rec := range state.All[state.Forgotten](all) {
		if state.NodeID(rec.ID.Key) == id {
			return n.down || len(GiveWay(all, id, ringID)) > 0
		}
	}
	return false
}

// die stops a node; what it has written stays with it.
func (m *sim) die(t *rapid.T) {
	n := m.node(t)
	if rapid.IntRange(0, 3).Draw(t, "really") != 0 {
		t.Skip("lives on")
	}
	n.down = true
	m.reopen(t)
}

// forget is what `nodectl node forget` does: a majority of the known nodes
// agrees, whoever forgets learns all that they know of the rings, and then
// takes over. Half of the time the quarantine is over at once; before that
// those who agreed have heard of it.
func (m *sim) forget(t *rapid.T) {
	n, dead := m.node(t), m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "dead")]
	if !dead.down || dead.left {
		t.Skip("not dead")
	}
	known, agree := 0, 0
	for _, o := range m.nodes {
		if o.left || o != dead && o.down && n.store.Snapshot().Gone().Node(o.id) {
			continue
		}
		known++
		if !o.down {
			agree++
			if o != n {
				merge(t, o, n, nil, 0)
			}
		}
	}
	if 2*agree <= known {
		t.Skip("no majority")
	}
	rest := rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "quarantine")
	if rest == 0 {
		m.calm() // a crash does not make time pass
	}
	err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) {
		f := state.Forgotten{By: n.id, At: time.Now().Unix(), Epoch: max(dead.epoch, sn.Head(dead.id).Mark.Epoch)}
		ops, err := Forget(sn, n.id, ringID, dead.id, func(string) time.Duration { return rest }, time.Now())
		return append(ops, state.Put(state.Cluster, state.KindForgotten, string(dead.id), f)), err
	})
	if err != nil && !errors.Is(err, errCrash) && !errors.Is(err, ErrGiveWay) {
		t.Fatalf("forget: %v", err)
	}
	if err == nil && (rest == 0 || rapid.Bool().Draw(t, "told")) {
		for _, o := range m.nodes {
			if o != n && !o.down {
				merge(t, n, o, nil, 0)
			}
		}
	}
	m.reopen(t)
}

// calm takes back the crashes that are to come.
func (m *sim) calm() {
	for _, o := range m.nodes {
		o.log.mu.Lock()
		o.log.next = noFault
		o.log.mu.Unlock()
	}
}

// comeBack starts a dead node with its old disk. It hears the others before it
// serves anybody, since one that is alone cannot know better, and they hear it:
// whoever holds the right to make rings learns of one that nobody else knew.
func (m *sim) comeBack(t *rapid.T) {
	n := m.nodes[rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")]
	alone := true
	for _, o := range m.nodes {
		alone = alone && (o == n || o.down || o.left)
	}
	if !n.down || alone {
		t.Skip("not dead, or alone")
	}
	n.close()
	n.open(t)
	n.down = false
	m.calm() // it would be told again
	for _, o := range m.nodes {
		if o != n && !o.down {
			merge(t, o, n, nil, 0)
			merge(t, n, o, nil, 0)
		}
	}
}

// giveWay is what each node does when the rings change.
func (m *sim) giveWay(t *rapid.T) {
	n := m.node(t)
	err := write(n.store, func(sn *state.Snapshot) ([]state.Op, error) { return GiveWay(sn, n.id, ringID), nil })
	if err != nil && !errors.Is(err, errCrash) {
		t.Fatalf("give way: %v", err)
	}
	m.reopen(t) // whether it crashed before or after the write
	for key := range m.vips {
		rec, ok := n.store.Snapshot().Get(state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: key})
		if ok && rec.Deleted {
			delete(m.vips, key) // its service is given another one
		}
	}
}
