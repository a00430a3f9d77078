package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"nodenet/state"
)

const (
	fanout    = 6   // copies of a change that one node sends
	maxSent   = 16  // node IDs named in a push
	pushLimit = 512 // changes that wait for one link; more are left to a comparison
	// pushGap is how many push delays lie between two pushes on one link: with
	// many changes a second they travel together, a lone one leaves at once.
	pushGap = 5
	// maxGap is how many times longer that gap becomes under load.
	maxGap = 4
	// gapEvery bounds the exchanges that pushes with something missing before
	// them lead to on one link, in push delays.
	gapEvery = 50
)

// outbox is what is to be pushed on one link: not the changes but where they
// are, so that what is written again meanwhile travels once, and a slow peer
// costs a bounded amount of memory, whatever happens in the cluster. The
// link's writer empties it when it has nothing else to write. The zero value
// is empty; safe for concurrent use.
type outbox struct {
	mu     sync.Mutex
	owners map[state.NodeID]state.Mark // from here on, to the head
	ids    map[state.ID]bool
	sent   []state.NodeID // who has all of it already
	all    bool           // too much: compare tables instead
}

// put adds what a push carries. sent names who gets it from others.
func (o *outbox) put(p *push, sent []state.NodeID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all {
		return
	}
	if len(o.owners)+len(o.ids) == 0 {
		o.sent = sent
	} else {
		o.sent = slices.DeleteFunc(slices.Clone(o.sent), func(id state.NodeID) bool { return !slices.Contains(sent, id) })
	}
	if o.owners == nil {
		o.owners, o.ids = map[state.NodeID]state.Mark{}, map[state.ID]bool{}
	}
	for i := range p.Deltas {
		d := &p.Deltas[i]
		if from, ok := o.owners[d.Owner]; !ok || d.From.Compare(from) < 0 {
			o.owners[d.Owner] = d.From
		}
	}
	for i := range p.Records {
		o.ids[p.Records[i].ID] = true
	}
	if len(o.owners)+len(o.ids) > pushLimit {
		o.owners, o.ids, o.sent, o.all = nil, nil, nil, true
	}
}

// seen takes out what the peer has just sent itself.
func (o *outbox) seen(places []place, recs []state.Record, sn *state.Snapshot) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range places {
		if _, ok := o.owners[d.Owner]; ok && d.To.Compare(sn.Head(d.Owner).Mark) >= 0 {
			delete(o.owners, d.Owner)
		}
	}
	for i := range recs {
		r := &recs[i]
		if o.ids[r.ID] {
			if have, ok := sn.Get(r.ID); ok && state.Compare(r.ID.Class, r.Version, have.Version) >= 0 {
				delete(o.ids, r.ID)
			}
		}
	}
}

// take empties the outbox. It returns nil when there is nothing to push; all
// says that there is more than a push may carry.
func (o *outbox) take(sn *state.Snapshot, enc *encoded) (p *wirePush, all bool) {
	o.mu.Lock()
	owners, ids, sent, all := o.owners, o.ids, o.sent, o.all
	o.owners, o.ids, o.sent, o.all = nil, nil, nil, false
	o.mu.Unlock()
	if all || len(owners)+len(ids) == 0 {
		return nil, all
	}
	p = &wirePush{Sent: sent}
	count, size := 0, 0
	for id, from := range owners {
		d, ok := enc.delta(sn, id, from)
		if !ok {
			return nil, true
		}
		count, size = count+d.records, size+len(d.raw)
		p.Deltas = append(p.Deltas, d.raw)
	}
	for id := range ids {
		if r, ok := sn.Get(id); ok {
			count, size = count+1, size+sizeOf([]state.Record{r})
			p.Records = append(p.Records, r)
		}
	}
	if count > chunkRecords || size > chunkBytes {
		return nil, true
	}
	return p, false
}

// pushLoop offers our own changes to peers as soon as they are visible. What
// comes from peers is forwarded where it is merged, see link.replicate.
func (g *Gossip) pushLoop(ctx context.Context) error {
	feed := g.store.Subscribe()
	defer feed.Close()
	mark := g.store.Snapshot().Head(g.self).Mark
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-feed.C():
		}
		// A moment for what comes with it: one frame instead of ten.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(g.t.push):
		}
		changed, all, sn := feed.Take()
		var p push
		if head := sn.Head(g.self).Mark; head.Compare(mark) > 0 {
			p.Deltas = []state.Delta{{Owner: g.self, From: mark, To: head}}
			mark = head
		}
		for _, r := range changed {
			if r.ID.Class != state.Owner && r.Version.Node == g.self {
				p.Records = append(p.Records, r)
			}
		}
		switch {
		case all:
			g.syncAll()
		case len(p.Deltas)+len(p.Records) > 0:
			g.forward(&p, "")
		}
	}
}

// forward offers changes to a few peers that do not have them yet. Each node
// does so once for a change, when it is new to it: that bounds the copies.
func (g *Gossip) forward(p *push, from state.NodeID) {
	links := g.someLinks()
	rand.Shuffle(len(links), func(i, j int) { links[i], links[j] = links[j], links[i] })
	var to []*link
	sent := append(slices.Clone(p.Sent), g.self)
	for _, l := range links {
		if l.peer != from && !slices.Contains(p.Sent, l.peer) && len(to) < fanout {
			to = append(to, l)
			sent = append(sent, l.peer)
		}
	}
	if len(to) == 0 {
		return
	}
	if len(sent) > maxSent {
		sent = sent[len(sent)-maxSent:]
	}
	for _, l := range to {
		l.box.put(p, sent)
		wake(l.offered)
	}
	g.met.pushes.Inc()
}

// novel returns what of a push is not held yet, nil for nothing. Most copies of
// a change come second: they are not even decoded.
func (l *link) novel(body []byte) (frame, error) {
	var w wirePush
	if err := frameDec.Unmarshal(body, &w); err != nil {
		return nil, fmt.Errorf("decode push frame: %w", err)
	}
	places := make([]place, len(w.Deltas))
	for i, raw := range w.Deltas {
		if err := frameDec.Unmarshal(raw, &places[i]); err != nil {
			return nil, fmt.Errorf("decode push frame: %w", err)
		}
	}
	sn := l.g.rep.tables.Snapshot()
	l.box.seen(places, w.Records, sn)
	out := &push{Sent: w.Sent}
	for i, d := range places {
		if !d.Replace && d.To.Compare(sn.Head(d.Owner).Mark) <= 0 {
			continue
		}
		var full state.Delta
		if err := frameDec.Unmarshal(w.Deltas[i], &full); err != nil {
			return nil, fmt.Errorf("decode push frame: %w", err)
		}
		out.Deltas = append(out.Deltas, full)
	}
	for i := range w.Records {
		if have, ok := sn.Get(w.Records[i].ID); !ok || have.Version != w.Records[i].Version {
			out.Records = append(out.Records, w.Records[i])
		}
	}
	fresh := len(out.Deltas) + len(out.Records)
	l.g.met.copies.Add(float64(len(w.Deltas) + len(w.Records) - fresh))
	if fresh == 0 {
		return nil, nil
	}
	return out, nil
}

// pushing returns when the outbox may be emptied next: the more there was in
// it the last time, the later. A busy cluster's changes then travel in fewer
// frames, and more of them are taken out by seen before they do.
func (l *link) pushing(last time.Time) time.Duration {
	gap := time.Duration(pushGap*min(maxGap, 1+l.load)) * l.g.t.push
	return max(0, time.Until(last.Add(gap)))
}

// pushed returns the encoded content of the outbox, nil for nothing.
func (l *link) pushed() []byte {
	p, all := l.box.take(l.g.rep.tables.Snapshot(), &l.g.encoded)
	l.load = 0
	if all {
		l.load = pushLimit
		l.startSync()
		return nil
	}
	if p == nil {
		return nil
	}
	l.load = len(p.Deltas) + len(p.Records)
	b, err := encodeFrame(p)
	if err != nil {
		l.startSync() // too large for a frame
		return nil
	}
	l.g.met.out[kindPush].Inc()
	return b
}

// mayAsk reports whether a push that does not join on to what is held may
// open an exchange now: one that is under way brings what is missing.
func (l *link) mayAsk() bool {
	now := time.Now()
	if now.Sub(l.asked) < gapEvery*l.g.t.push {
		return false
	}
	l.asked = now
	return true
}
