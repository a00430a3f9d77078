package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"nodenet/api"
	"nodenet/state"
)

const (
	askAtOnce   = 16 // nodes asked at the same time
	convergeAsk = 200 * time.Millisecond
	maxWait     = time.Hour
)

// eachNode calls fn for every node of a list, several at a time.
func eachNode(ctx context.Context, ids []state.NodeID, fn func(context.Context, state.NodeID)) {
	var g errgroup.Group
	g.SetLimit(askAtOnce)
	for _, id := range ids {
		g.Go(func() error { fn(ctx, id); return nil })
	}
	_ = g.Wait() // fn has no errors to return
}

// converge waits until each node that is alive holds what this node holds
// now, and until this node's kernel holds revision. It calls tell at each step.
func (n *Node) converge(ctx context.Context, converged bool, revision uint64, tell func(api.Progress)) error {
	target := n.store.Snapshot()
	holding := map[state.NodeID]bool{}
	tick := time.NewTicker(convergeAsk)
	defer tick.Stop()
	for {
		p := n.progress(ctx, target, converged, holding)
		if revision > 0 {
			p.Applied = n.applied()
			if p.Applied < revision {
				p.Done = false
				p.Waiting = append(p.Waiting, fmt.Sprintf("%s (kernel has revision %d of %d)", n.cfg.Node.Name, p.Applied, revision))
			}
		}
		if ctx.Err() == nil || p.Done {
			tell(p)
		}
		if p.Done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// progress asks those that are not known to hold the target yet.
func (n *Node) progress(ctx context.Context, target *state.Snapshot, converged bool, holding map[state.NodeID]bool) api.Progress {
	p := api.Progress{Done: true, Revision: target.Rev(), Nodes: 1, Holding: 1}
	if !converged {
		return p
	}
	var ask []state.NodeID
	v := n.store.Snapshot().View()
	for _, nv := range v.Nodes {
		switch {
		case nv.Self:
		case nv.State == state.Dead || nv.State == state.Unknown:
			p.Dead = append(p.Dead, nv.Name)
		default:
			p.Nodes++
			if holding[nv.ID] {
				p.Holding++
			} else {
				ask = append(ask, nv.ID)
			}
		}
	}
	var mu sync.Mutex
	eachNode(ctx, ask, func(ctx context.Context, id state.NodeID) {
		lacks, err := n.lacks(ctx, id, target)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			p.Waiting = append(p.Waiting, fmt.Sprintf("%s (%v)", nodeName(v, id), err))
		case lacks > 0:
			p.Waiting = append(p.Waiting, fmt.Sprintf("%s (lacks %d)", nodeName(v, id), lacks))
		default:
			holding[id] = true
			p.Holding++
		}
	})
	slices.Sort(p.Waiting)
	p.Done = len(p.Waiting) == 0
	return p
}

// wait streams how far the cluster has come, one JSON object a line.
func (n *Node) wait(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	timeout, err := time.ParseDuration(q.Get("timeout"))
	if err != nil || timeout <= 0 || timeout > maxWait {
		fail(w, invalid("wait: timeout %q: want more than 0 and up to %s", q.Get("timeout"), maxWait))
		return
	}
	revision, err := strconv.ParseUint(q.Get("revision"), 10, 64)
	if err != nil && q.Get("revision") != "" {
		fail(w, invalid("wait: revision %q: want a number", q.Get("revision")))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if err := n.waitDeclared(ctx); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	enc, out := json.NewEncoder(w), http.NewResponseController(w)
	var last api.Progress
	tell := func(p api.Progress) {
		last = p
		_ = enc.Encode(p) // the caller hung up: nobody to tell
		_ = out.Flush()
	}
	if err := n.converge(ctx, q.Get("converged") == "true", revision, tell); err != nil {
		last.Done = false
		last.Error = fmt.Sprintf("not within %s: %s", timeout, progressText(last))
		tell(last)
	}
}

// progressText says in words what is missing.
func progressText(p api.Progress) string {
	text := fmt.Sprintf("%d of %d nodes hold revision %d", p.Holding, p.Nodes, p.Revision)
	if len(p.Waiting) > 0 {
		text += "; waiting for " + p.Waiting[0]
		if more := len(p.Waiting) - 1; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	return text
}
