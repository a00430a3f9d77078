package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"nodenet/state"
)

const (
	callTimeout = 10 * time.Second // without a deadline in the caller's context
	callMax     = time.Minute
)

// ErrNoPeer: the node is not connected and cannot be reached now.
var ErrNoPeer = errors.New("node cannot be reached")

// RemoteError is an error that the other node's handler returned.
type RemoteError struct {
	Node    state.NodeID
	Method  string
	Message string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("%s on node %s: %s", e.Method, e.Node.Short(), e.Message)
}

// Call asks another node and waits for its answer. It connects first when
// there is no link. The error is a *RemoteError when the other side's handler
// failed, wraps ErrNoPeer when it cannot be reached; after any other error the
// request may or may not have been carried out.
func (g *Gossip) Call(ctx context.Context, to state.NodeID, method string, req []byte) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	if to == g.self {
		b, err := g.dispatch(ctx, to, method, req)
		if err != nil {
			return nil, &RemoteError{to, method, err.Error()}
		}
		return b, nil
	}
	l := g.link(to)
	if l == nil {
		var err error
		if l, err = g.reach(ctx, to); err != nil {
			return nil, fmt.Errorf("call %s on node %s: %w", method, to.Short(), err)
		}
	}
	resp, err := l.call(ctx, method, req)
	g.met.calls.WithLabelValues(callResult(resp, err)).Inc()
	if err != nil {
		return nil, fmt.Errorf("call %s on node %s: %w", method, to.Short(), err)
	}
	if resp.Error != "" {
		return nil, &RemoteError{to, method, printable(resp.Error)}
	}
	return resp.Body, nil
}

func callResult(r *response, err error) string {
	switch {
	case err != nil:
		return "failed"
	case r.Error != "":
		return "error"
	}
	return "ok"
}

// reach connects to a node by what is known of its address.
func (g *Gossip) reach(ctx context.Context, to state.NodeID) (*link, error) {
	var addr netip.AddrPort
	g.mu.Lock()
	if p := g.peers[to]; p != nil && p.addr.IsValid() {
		addr = netip.AddrPortFrom(p.addr, p.sync)
	}
	running := g.ctx != nil && g.ctx.Err() == nil
	g.mu.Unlock()
	id := state.ID{Class: state.Owner, Kind: state.KindNode, Owner: to, Key: "self"}
	if n, ok := state.Lookup[state.Node](g.store.Snapshot(), id); ok && n.Advertise.IsValid() {
		addr = netip.AddrPortFrom(n.Advertise, or(n.SyncPort, DefaultSyncPort))
	}
	if !running || !addr.IsValid() {
		return nil, ErrNoPeer
	}
	l, err := g.connect(ctx, addr.String())
	switch {
	case err == nil && l.peer == to:
		return l, nil
	case err == nil:
		return nil, fmt.Errorf("%w: node %s answers at %s", ErrNoPeer, l.peer.Short(), addr)
	}
	if l := g.link(to); l != nil {
		return l, nil // it came the other way meanwhile
	}
	return nil, fmt.Errorf("%w: %w", ErrNoPeer, err)
}

// call sends a request and waits.
func (l *link) call(ctx context.Context, method string, req []byte) (*response, error) {
	c := make(chan *response, 1)
	l.callMu.Lock()
	l.callID++
	id := l.callID
	l.calls[id] = c
	l.callMu.Unlock()
	defer func() {
		l.callMu.Lock()
		delete(l.calls, id)
		l.callMu.Unlock()
	}()
	deadline, _ := ctx.Deadline()
	if err := l.send(&request{ID: id, Method: method, Body: req, Timeout: time.Until(deadline).Milliseconds()}); err != nil {
		return nil, err
	}
	select {
	case r, ok := <-c:
		if !ok {
			return nil, fmt.Errorf("connection lost: %w", or(l.err, ErrNoPeer))
		}
		return r, nil
	case <-l.closed:
		return nil, fmt.Errorf("connection lost: %w", or(l.err, ErrNoPeer))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *link) answered(r *response) {
	l.callMu.Lock()
	defer l.callMu.Unlock()
	if c := l.calls[r.ID]; c != nil {
		c <- r // has room for the one answer
		delete(l.calls, r.ID)
	}
}

// serve runs a peer's request on a slot of the pool, of which one peer can
// have two thirds; with none free it says so at once instead of letting
// requests pile up.
func (l *link) serve(ctx context.Context, r *request) {
	g := l.g
	free := l.serving.Add(1) <= peerHandlers
	if free {
		select {
		case g.handlers <- struct{}{}:
		default:
			free = false
		}
	}
	if !free {
		l.serving.Add(-1)
		l.send(&response{ID: r.ID, Error: "node is busy with other requests: try again"})
		return
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() { <-g.handlers; l.serving.Add(-1) }()
		d := time.Duration(r.Timeout) * time.Millisecond
		if d <= 0 || d > callMax {
			d = callTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		resp := &response{ID: r.ID}
		b, err := g.dispatch(ctx, l.peer, r.Method, r.Body)
		if err != nil {
			resp.Error = or(err.Error(), "unknown error")
		} else {
			resp.Body = b
		}
		if err := l.send(resp); err != nil {
			l.send(&response{ID: r.ID, Error: fmt.Sprintf("answer of %d bytes: %v", len(b), err)})
		}
	}()
}

func (g *Gossip) dispatch(ctx context.Context, from state.NodeID, method string, req []byte) ([]byte, error) {
	h := g.o.Handlers[method]
	if method == methodSecret {
		h = g.serveSecret
	}
	if h == nil {
		return nil, fmt.Errorf("no such method %q: the node may run another version", printable(method))
	}
	return h(ctx, from, req)
}
