package node

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/gossip"
)

// secretStatus asks all nodes which secrets they hold.
func (n *Node) secretStatus(ctx context.Context) (*api.Rotation, error) {
	r := rotation(n.gossip.Secrets(ctx))
	return &r, nil
}

// rotate streams a rotation of the cluster's secret, one JSON object a line.
// It ends with the request: what was done stays, and the next one goes on.
func (n *Node) rotate(w http.ResponseWriter, r *http.Request) {
	if !allowed(r.Context()) {
		fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may change things", Code: api.CodeForbidden})
		return
	}
	var q api.RotateRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		fail(w, invalid("request to %s: %v", r.URL.Path, err))
		return
	}
	if q.TimeoutSeconds < 0 || q.TimeoutSeconds > int64(maxWait/time.Second) {
		fail(w, invalid("rotate: timeout of %d s: want up to %s, or 0 for none", q.TimeoutSeconds, maxWait))
		return
	}
	ctx := r.Context()
	if q.TimeoutSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.TimeoutSeconds)*time.Second)
		defer cancel()
	}
	if err := n.waitDeclared(ctx); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	enc, out := json.NewEncoder(w), http.NewResponseController(w)
	tell := func(p api.Rotation) {
		_ = enc.Encode(p) // the caller hung up: nobody to tell
		_ = out.Flush()
	}
	n.log.Warn("cluster secret is rotated", "force", q.Force, "abort", q.Abort)
	last, err := n.gossip.Rotate(ctx, gossip.RotateOptions{
		Force: q.Force, Abort: q.Abort, Progress: func(p gossip.Rotation) { tell(rotation(p)) },
	})
	end := rotation(last)
	switch {
	case err == nil:
		end.Done = true
		n.log.Warn("cluster secret rotated", "step", end.Step)
	case errors.Is(err, context.DeadlineExceeded):
		end.Error = "not finished in time"
		if len(end.Waiting) > 0 {
			end.Error += ": " + strings.Join(end.Waiting, "; ")
		}
		end.Error += "; nothing is lost, `nodectl secret rotate` goes on"
	default:
		end.Error = err.Error()
	}
	tell(end)
}

func rotation(r gossip.Rotation) api.Rotation {
	out := api.Rotation{Step: r.Step, From: r.From, To: r.To, Nodes: []api.NodeSecrets{}, Waiting: r.Waiting, Skipped: r.Skipped}
	for _, n := range r.Nodes {
		out.Nodes = append(out.Nodes, api.NodeSecrets{
			Name: n.Name, ID: string(n.ID), State: n.State.String(), Answered: n.Answered,
			Primary: n.Primary, Next: n.Next, Previous: n.Previous, Note: n.Note, Error: n.Err,
		})
	}
	return out
}
