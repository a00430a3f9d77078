package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"nodenet/state"
)

// A check runs on the backend's own node: every healthEvery one connect,
// healthFall failures in a row take the backend out, one success takes it back.
const (
	healthEvery   = 2 * time.Second
	healthTimeout = time.Second
	healthFall    = 2
)

// healthTable remembers failures in a row, by record key. The zero value is ready.
type healthTable struct {
	mu    sync.Mutex
	fails map[string]int
}

func (t *healthTable) note(key string, ok bool) (fails int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fails == nil {
		t.fails = map[string]int{}
	}
	if ok {
		delete(t.fails, key)
		return 0
	}
	t.fails[key]++
	return t.fails[key]
}

// keep forgets the failures of all other keys.
func (t *healthTable) keep(keys map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.fails, func(k string, _ int) bool { return !keys[k] })
}

// probe is one connect to one port of one backend.
type probe struct {
	key  string
	addr netip.AddrPort
}

func (n *Node) runHealth(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.checkHealth(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// probes lists what this node has to check: the first TCP port of each
// endpoint of its own behind a service that asks for a check.
func (n *Node) probes(v *state.View) []probe {
	var out []probe
	for s := range v.Services() {
		if s.Check != "tcp" {
			continue
		}
		seen := map[string]bool{} // an endpoint of both IP versions is asked by its first address
		for _, b := range s.Backends {
			if b.Node != n.self || b.Endpoint == "" || seen[b.Endpoint] {
				continue
			}
			seen[b.Endpoint] = true
			for j, p := range s.Ports {
				if p.Protocol == "tcp" && b.Targets[j] != 0 {
					out = append(out, probe{s.Key() + "/" + b.Endpoint, netip.AddrPortFrom(b.Addr, b.Targets[j])})
					break
				}
			}
		}
	}
	return out
}

func (n *Node) checkHealth(ctx context.Context) {
	sn := n.store.Snapshot()
	probes := n.probes(sn.View())
	n.dropHealth(ctx, sn, probes)
	sem := make(chan struct{}, 32)
	var wg sync.WaitGroup
	for _, p := range probes {
		wg.Add(1)
		sem <- struct{}{}
		go func() {
			defer func() { <-sem; wg.Done() }()
			n.runProbe(ctx, p)
		}()
	}
	wg.Wait()
}

// dropHealth removes results that no check stands behind any more: the
// service, its check or the backend went, perhaps while it was being asked.
func (n *Node) dropHealth(ctx context.Context, sn *state.Snapshot, probes []probe) {
	live := make(map[string]bool, len(probes))
	for _, p := range probes {
		live[p.key] = true
	}
	n.checked.keep(live)
	var ops []state.Op
	for r := range state.All[state.Health](sn) {
		if r.ID.Owner == n.self && !live[r.ID.Key] {
			ops = append(ops, state.Del(state.Owner, state.KindHealth, r.ID.Key))
		}
	}
	if len(ops) == 0 {
		return
	}
	if _, err := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) { return ops, nil }); err != nil && ctx.Err() == nil {
		n.log.Error("old health results not removed", "err", err)
	}
}

func (n *Node) runProbe(ctx context.Context, p probe) {
	err := dialTCP(ctx, p.addr)
	if ctx.Err() != nil {
		return
	}
	fails := n.checked.note(p.key, err == nil)
	if err != nil && fails < healthFall {
		return
	}
	id := state.ID{Class: state.Owner, Kind: state.KindHealth, Owner: n.self, Key: p.key}
	old, known := state.Lookup[state.Health](n.store.Snapshot(), id)
	if known && old.OK == (err == nil) || !known && err == nil {
		return
	}
	h := state.Health{OK: err == nil, Since: time.Now().Unix()}
	if err != nil {
		h.Why = fmt.Sprintf("connect to %s: %s", p.addr, reason(err))
	}
	if _, werr := n.store.Write(ctx, func(*state.Snapshot) ([]state.Op, error) {
		return []state.Op{state.Put(state.Owner, state.KindHealth, p.key, h)}, nil
	}); werr != nil {
		n.log.Error("health result not written", "check", p.key, "err", werr)
		return
	}
	if h.OK {
		n.log.Info("backend healthy again", "check", p.key)
	} else {
		n.log.Warn("backend fails its check", "check", p.key, "err", h.Why)
	}
}

func dialTCP(ctx context.Context, a netip.AddrPort) error {
	d := net.Dialer{Timeout: healthTimeout}
	c, err := d.DialContext(ctx, "tcp", a.String())
	if err == nil {
		c.Close()
	}
	return err
}

// reason is the short form of a connect's failure.
func reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, os.ErrDeadlineExceeded) || os.IsTimeout(err):
		return "timeout"
	}
	return err.Error()
}
