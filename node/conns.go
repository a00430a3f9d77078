package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"nodenet/api"
	"nodenet/lb"
	"nodenet/overlay"
	"nodenet/state"
)

// methodConns is the RPC by which a node asks another for its connections
// through a service. Destinations are translated where the client or its
// packet enters the cluster, so that every node tracks a part of them.
const methodConns = "service.conns"

// connsTimeout bounds the question to one node.
const connsTimeout = 2 * time.Second

// connsFresh is how long one listing of the kernel's table is good for: a
// table may have a million entries, and several may watch a drain.
const connsFresh = 500 * time.Millisecond

type connsAsk struct {
	Service string `cbor:"1,keyasint"` // key
}

// connsAnswer has the counts by the backend's key.
type connsAnswer struct {
	Count map[string]int `cbor:"1,keyasint,omitempty"`
}

// flowTable lists the tracked connections of this host. The zero value is
// ready; it is safe for concurrent use.
type flowTable struct {
	mu    sync.Mutex
	at    time.Time
	flows []overlay.Connection
}

func (t *flowTable) list() ([]overlay.Connection, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.at) < connsFresh {
		return t.flows, nil
	}
	flows, err := overlay.Conntrack{}.Translated()
	if err == nil {
		t.at, t.flows = time.Now(), flows
	}
	return flows, err
}

// connsHere counts this host's connections through a service, by backend.
func (n *Node) connsHere(v *state.View, key string) (map[string]int, error) {
	s := v.Service(key)
	if s == nil {
		return nil, fmt.Errorf("no service %s here yet", key)
	}
	flows, err := n.flows.list()
	if err != nil {
		return nil, err
	}
	return countFlows(s, flows), nil
}

// countFlows counts the flows that a service had translated, by backend.
func countFlows(s *state.ServiceView, flows []overlay.Connection) map[string]int {
	count := map[string]int{}
	for _, f := range flows {
		for i := range s.Ports {
			p := &s.Ports[i]
			shift, ok := serves(s, p, f)
			if !ok {
				continue
			}
			for j := range s.Backends {
				b := &s.Backends[j]
				if b.Addr == f.Target.Addr() && b.Targets[i] != 0 && b.Targets[i]+shift == f.Target.Port() {
					count[b.Key]++
					break
				}
			}
		}
	}
	return count
}

// serves reports whether a flow went to a port of a service, and how far into
// a range.
func serves(s *state.ServiceView, p *state.ServicePort, f overlay.Connection) (shift uint16, ok bool) {
	if f.Proto != protoNumber(p.Protocol) {
		return 0, false
	}
	d := f.Dest
	if p.NodePort != 0 && d.Port() == p.NodePort && !s.IsVIP(d.Addr()) {
		return 0, true
	}
	if d.Port() < p.Port || d.Port() > cmp.Or(p.Last, p.Port) {
		return 0, false
	}
	return d.Port() - p.Port, s.IsVIP(d.Addr()) || slices.Contains(s.Addresses, d.Addr())
}

// protoNumber is the number of tcp, udp or sctp; 0: another name.
func protoNumber(name string) uint8 {
	switch name {
	case "tcp":
		return lb.TCP
	case "udp":
		return lb.UDP
	case "sctp":
		return lb.SCTP
	}
	return 0
}

func (n *Node) serveConns(_ context.Context, _ state.NodeID, req []byte) ([]byte, error) {
	var q connsAsk
	if err := state.Decode(req, &q); err != nil {
		return nil, fmt.Errorf("request for connections: %w", err)
	}
	count, err := n.connsHere(n.store.Snapshot().View(), q.Service)
	if err != nil {
		return nil, err
	}
	return state.Encode(connsAnswer{count})
}

// countConns asks every node that can be reached for its connections through
// a service and adds them up. Where no node could count, Conns stays nil.
func (n *Node) countConns(ctx context.Context, v *state.View, s *state.ServiceView, out *api.Service) {
	req, err := state.Encode(connsAsk{s.Key()})
	if err != nil {
		return
	}
	var ask []state.NodeID
	for _, nv := range v.Nodes {
		if nv.Self || living(nv.State) {
			ask = append(ask, nv.ID)
		}
	}
	var mu sync.Mutex
	total := map[string]int{}
	var from []string
	eachNode(ctx, ask, func(ctx context.Context, id state.NodeID) {
		var count map[string]int
		var err error
		if id == n.self {
			count, err = n.connsHere(v, s.Key())
		} else {
			count, err = n.askConns(ctx, id, req)
		}
		if err != nil {
			n.log.Debug("connections not counted", "node", nodeName(v, id), "err", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		from = append(from, nodeName(v, id))
		for key, c := range count {
			total[key] += c
		}
	})
	if len(from) == 0 {
		return
	}
	slices.Sort(from)
	for i := range out.Backends {
		c := total[s.Backends[i].Key]
		out.Backends[i].Conns, out.Backends[i].ConnsFrom = &c, from
	}
}

func (n *Node) askConns(ctx context.Context, to state.NodeID, req []byte) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, connsTimeout)
	defer cancel()
	resp, err := n.gossip.Call(ctx, to, methodConns, req)
	if err != nil {
		return nil, err
	}
	var a connsAnswer
	if err := state.Decode(resp, &a); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", to.Short(), err)
	}
	return a.Count, nil
}
