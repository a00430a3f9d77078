package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Paths of what concerns the cluster's secret.
const (
	PathSecret = "/v1/secret"        // GET: Rotation, as it is now
	PathRotate = "/v1/secret/rotate" // POST RotateRequest → a stream of Rotation, one a line
)

// RotateRequest asks to replace the cluster's secret, or to go on with that.
type RotateRequest struct {
	Force          bool  `json:"force,omitempty"` // go on without nodes that do not answer
	Abort          bool  `json:"abort,omitempty"` // drop a new secret that is not used yet
	TimeoutSeconds int64 `json:"timeoutSeconds,omitempty"`
}

// Rotation is how far a rotation has come. Secrets are named by fingerprints,
// which give nothing away.
type Rotation struct {
	Step    string        `json:"step"` // none, add, use, retire, done, abort
	From    string        `json:"from,omitempty"`
	To      string        `json:"to,omitempty"`
	Nodes   []NodeSecrets `json:"nodes"`
	Waiting []string      `json:"waiting,omitempty"` // what has to happen before it goes on
	Skipped []string      `json:"skipped,omitempty"` // nodes that force went on without
	Done    bool          `json:"done,omitempty"`
	Error   string        `json:"error,omitempty"`
}

// NodeSecrets is what one node holds.
type NodeSecrets struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	State    string `json:"state"`
	Answered bool   `json:"answered"`
	Primary  string `json:"primary,omitempty"`  // in use
	Next     string `json:"next,omitempty"`     // accepted, to be used next
	Previous string `json:"previous,omitempty"` // accepted until all use Primary
	Note     string `json:"note,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Secret asks all nodes which secrets they hold.
func (c *Client) Secret(ctx context.Context) (Rotation, error) {
	return get[Rotation](ctx, c, PathSecret)
}

// Rotate replaces the cluster's secret, or goes on with that, and calls
// progress, which may be nil, at each look at the nodes. Ending ctx stops the
// rotation where it is; another call, on any node, goes on.
func (c *Client) Rotate(ctx context.Context, r RotateRequest, progress func(Rotation)) (Rotation, error) {
	var last Rotation
	body, err := json.Marshal(r)
	if err != nil {
		return last, fmt.Errorf("encode request %s: %w", PathRotate, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://nodenet"+PathRotate, bytes.NewReader(body))
	if err != nil {
		return last, fmt.Errorf("make request %s: %w", PathRotate, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" && ctx.Err() == nil {
			return last, &UnreachableError{Socket: c.socket, Err: op.Err}
		}
		return last, fmt.Errorf("rotate the cluster secret: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return last, answerError(resp, resp.Body, http.MethodPost, PathRotate)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var p Rotation
		if err := dec.Decode(&p); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return last, errors.New("rotate the cluster secret: the daemon stopped; nothing is lost, run it again here or on another node")
		} else if err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("%w; nothing is lost, run it again here or on another node", ctx.Err())
			}
			return last, fmt.Errorf("rotate the cluster secret: %w", err)
		}
		last = p
		if progress != nil {
			progress(p)
		}
		switch {
		case p.Error != "":
			return last, &Error{Message: p.Error, Code: CodeNotReady}
		case p.Done:
			return last, nil
		}
	}
}
