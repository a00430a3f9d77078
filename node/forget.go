package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"nodenet/api"
	"nodenet/dhcp"
	"nodenet/ipam"
	"nodenet/state"
)

// methodForget is the RPC by which a node asks whether another may be forgotten.
const methodForget = "node.forget"

const (
	forgetWait  = 15 * time.Second // for a majority to agree
	forgetForce = 3 * time.Second  // with force: for those that can be reached
	// promiseTime is how long nothing is taken from a node that somebody is
	// about to forget.
	promiseTime = time.Minute
)

// promises are the nodes of which this one said that they may be forgotten.
// The zero value is ready.
type promises struct {
	mu sync.Mutex
	m  map[state.NodeID]time.Time
}

func (p *promises) give(id state.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[state.NodeID]time.Time{}
	}
	p.m[id] = time.Now()
}

func (p *promises) bound(id state.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.m[id]) < promiseTime
}

type forgetAsk struct {
	Node state.NodeID `cbor:"1,keyasint"`
	Sum  []byte       `cbor:"2,keyasint"` // ipam.RingSum of who asks
}

type forgetAnswer struct {
	State state.Liveness `cbor:"1,keyasint"`
	Epoch uint64         `cbor:"2,keyasint,omitempty"`
	Same  bool           `cbor:"3,keyasint,omitempty"` // the rings are known alike
}

// serveForget says whether this node agrees that another be forgotten, and
// takes no address space from that one for a while if it does.
func (n *Node) serveForget(_ context.Context, from state.NodeID, req []byte) ([]byte, error) {
	var q forgetAsk
	if err := state.Decode(req, &q); err != nil {
		return nil, fmt.Errorf("request to forget: %w", err)
	}
	if q.Node == n.self {
		return nil, errors.New("the node that is to be forgotten is this one, and it runs")
	}
	if l := n.store.Snapshot().Live()[q.Node]; !living(l.State) {
		n.promised.give(q.Node)
	}
	sn := n.store.Snapshot()
	a := forgetAnswer{State: sn.Live()[q.Node].State, Epoch: sn.Head(q.Node).Mark.Epoch, Same: bytes.Equal(q.Sum, ipam.RingSum(sn, n.ringID()))}
	n.log.Info("asked whether a node may be forgotten", "node", nodeName(sn.View(), q.Node), "by", from.Short(), "state", a.State.String(), "same", a.Same)
	return state.Encode(a)
}

func living(l state.Liveness) bool { return l == state.Alive || l == state.Suspect }

// victim finds the node that a name or the start of an ID means. Of several
// with one name it is the one that is not alive: a replaced disk makes a new
// node of the same name.
func (n *Node) victim(sn *state.Snapshot, text string) (state.NodeID, string, error) {
	names := map[state.NodeID]string{}
	for rec, nd := range state.All[state.Node](sn) {
		names[rec.ID.Owner] = nd.Name
	}
	for _, r := range state.All[state.Range](sn) {
		if r.RingID == n.ringID() && names[r.Owner] == "" {
			names[r.Owner] = r.Owner.Short() // its records have vanished
		}
	}
	var found []state.NodeID
	for id, name := range names {
		if name == text || string(id) == text || len(text) >= 6 && strings.HasPrefix(string(id), text) {
			found = append(found, id)
		}
	}
	gone := sn.Gone()
	if len(found) > 1 {
		rest := slices.DeleteFunc(slices.Clone(found), func(id state.NodeID) bool {
			return id == n.self || living(sn.Live()[id].State) || gone.Node(id)
		})
		if len(rest) == 1 {
			found = rest
		}
	}
	slices.Sort(found)
	switch {
	case text == "" || len(found) == 0:
		return "", "", &api.Error{Message: fmt.Sprintf("no node %q is known: `nodectl peers -o json` lists names and IDs", text), Code: api.CodeNotFound}
	case len(found) > 1:
		return "", "", invalid("%q may be any of the nodes %v: say which by its ID", text, found)
	}
	return found[0], names[found[0]], nil
}

// forgetNode takes over the space of a node that is gone for good, once a
// majority of the known nodes agrees that it is not there and knows the rings
// as this node does.
func (n *Node) forgetNode(ctx context.Context, q api.ForgetRequest) (*api.Forgotten, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	if err := n.mayAllocate(); err != nil {
		return nil, err
	}
	if q.QuarantineSeconds < 0 {
		return nil, invalid("quarantine of %d s: want at least 1", q.QuarantineSeconds)
	}
	id, name, err := n.victim(n.store.Snapshot(), q.Node)
	if err != nil {
		return nil, err
	}
	if id == n.self {
		return nil, invalid("%s is this node: `nodectl leave` hands its space over in good order", name)
	}
	limit := forgetWait
	if q.Force {
		limit = forgetForce
	}
	f := &api.Forgotten{Node: name, ID: string(id), Forced: q.Force, Ranges: []string{}}
	v, err := n.poll(ctx, id, limit)
	if err != nil {
		return nil, err
	}
	f.Known, f.Agreed = v.known, v.names
	if 2*len(v.agree) <= v.known {
		why := fmt.Sprintf("forget %s: %d of %d nodes agree (%s), more than half are needed", name, len(v.agree), v.known, strings.Join(v.names, ", "))
		if len(v.against) > 0 {
			why += ": " + strings.Join(v.against, "; ")
		}
		if !q.Force {
			return nil, &api.Error{Code: api.CodeNotReady, Message: why +
				": start other nodes, or, if you are certain that it runs nowhere any more, say --force"}
		}
		f.Warnings = append(f.Warnings, why+"; done all the same, because of --force: if it or any node that cannot be reached still gives out addresses, some will be given twice")
	}
	written, err := n.takeOver(ctx, id, name, q, v)
	if err != nil {
		return nil, err
	}
	n.describeTakeover(f, written)
	f.Warnings = append(f.Warnings, n.tellTakeover(ctx, v.agree, written)...)
	n.log.Warn("forgot a node", "node", name, "id", string(id), "agreed", f.Agreed, "known", f.Known, "forced", q.Force, "ranges", f.Ranges)
	n.settle(ctx, n.store.Snapshot().Rev())
	return f, nil
}

// votes is what the others say about a node that is to be forgotten.
type votes struct {
	known   int // nodes that count, the one to be forgotten included
	agree   []state.NodeID
	names   []string // of agree
	against []string // why the others do not
	again   bool     // some may yet change their mind
	epoch   uint64   // the highest that anybody knows of it
	sum     []byte   // of the rings, agreed on
}

// poll asks all nodes until a majority agrees, or the time is up.
func (n *Node) poll(ctx context.Context, id state.NodeID, limit time.Duration) (*votes, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		sn := n.store.Snapshot()
		if l := sn.Live()[id]; living(l.State) {
			return nil, &api.Error{Message: fmt.Sprintf("%s is %s: only a node that is gone can be forgotten; stop it, or run `nodectl leave` there", nodeName(sn.View(), id), l.State), Code: api.CodeInvalid}
		}
		n.promised.give(id)
		v := n.pollOnce(ctx, sn, id)
		if !v.again || ctx.Err() != nil {
			return v, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return v, nil
		}
	}
}

func (n *Node) pollOnce(ctx context.Context, sn *state.Snapshot, id state.NodeID) *votes {
	view, gone := sn.View(), sn.Gone()
	v := &votes{agree: []state.NodeID{n.self}, epoch: sn.Head(id).Mark.Epoch, sum: ipam.RingSum(sn, n.ringID())}
	var ask []state.NodeID
	counted := map[state.NodeID]bool{id: true}
	for rec, nd := range state.All[state.Node](sn) {
		if o := rec.ID.Owner; o == id || !nd.Left && !gone.Node(o) {
			counted[o] = true
			if o != id && o != n.self {
				ask = append(ask, o)
			}
		}
	}
	v.known = len(counted)
	req, err := state.Encode(forgetAsk{Node: id, Sum: v.sum})
	if err != nil {
		v.against = append(v.against, err.Error())
		return v
	}
	var mu sync.Mutex
	eachNode(ctx, ask, func(ctx context.Context, o state.NodeID) {
		ctx, cancel := context.WithTimeout(ctx, holdsTimeout)
		defer cancel()
		var a forgetAnswer
		resp, err := n.gossip.Call(ctx, o, methodForget, req)
		if err == nil {
			err = state.Decode(resp, &a)
		}
		mu.Lock()
		defer mu.Unlock()
		name := nodeName(view, o)
		v.epoch = max(v.epoch, a.Epoch)
		switch {
		case err != nil && sn.Live()[o].State == state.Dead:
			v.against = append(v.against, name+" is dead too")
		case err != nil:
			v.again = true
			v.against = append(v.against, fmt.Sprintf("%s: %v", name, err))
		case living(a.State):
			v.again = true
			v.against = append(v.against, fmt.Sprintf("%s sees it %s", name, a.State))
		case !a.Same:
			v.again = true
			v.against = append(v.against, name+" knows other ranges than this node, they are being compared")
		default:
			v.agree = append(v.agree, o)
		}
	})
	slices.Sort(v.against)
	slices.SortFunc(v.agree[1:], func(a, b state.NodeID) int { return cmp.Compare(nodeName(view, a), nodeName(view, b)) })
	for _, o := range v.agree {
		v.names = append(v.names, nodeName(view, o))
	}
	return v
}

// takeOver writes what makes the node's space this one's, in one transaction.
func (n *Node) takeOver(ctx context.Context, id state.NodeID, name string, q api.ForgetRequest, v *votes) ([]state.Op, error) {
	if err := n.obey(ctx); err != nil { // see ipam.ErrGiveWay
		return nil, err
	}
	var done []state.Op
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if living(sn.Live()[id].State) {
			return nil, &api.Error{Message: fmt.Sprintf("forget %s: it came back meanwhile", name), Code: api.CodeInvalid}
		}
		if !q.Force && !bytes.Equal(ipam.RingSum(sn, n.ringID()), v.sum) {
			return nil, &api.Error{Message: fmt.Sprintf("forget %s: address space changed hands meanwhile: try again", name), Code: api.CodeNotReady}
		}
		now := time.Now()
		f := state.Forgotten{By: n.self, At: now.Unix(), Epoch: max(v.epoch, sn.Head(id).Mark.Epoch), Name: name, Forced: q.Force && 2*len(v.agree) <= v.known}
		ops, err := ipam.Forget(sn, n.self, n.ringID(), id, func(ring string) time.Duration { return n.quarantine(sn, id, ring, q) }, now)
		if err != nil {
			return nil, &api.Error{Message: fmt.Sprintf("forget %s: %v: try again", name, err), Code: api.CodeNotReady}
		}
		done = append(ops, state.Put(state.Cluster, state.KindForgotten, string(id), f))
		return done, nil
	})
	return done, err
}

// quarantine is how long the node's part of a ring rests: a client of its
// DHCP server may have a lease that nobody else has heard of.
func (n *Node) quarantine(sn *state.Snapshot, id state.NodeID, ring string, q api.ForgetRequest) time.Duration {
	if q.QuarantineSeconds > 0 {
		return time.Duration(q.QuarantineSeconds) * time.Second
	}
	rest := ipam.DefaultQuarantine
	if nw, ok := state.Lookup[state.Network](sn, state.ID{Class: state.Owner, Kind: state.KindNetwork, Owner: id, Key: ring}); ok && nw.DHCP {
		lease := time.Duration(nw.LeaseTime) * time.Second
		if lease == 0 {
			lease = dhcp.DefaultLeaseTime
		}
		rest = max(rest, lease)
	}
	return rest
}

func (n *Node) describeTakeover(f *api.Forgotten, ops []state.Op) {
	for _, op := range ops {
		r, ok := op.Value.(state.Range)
		if !ok {
			continue
		}
		f.Quarantine = max(f.Quarantine, r.Until)
		if text := rangeText(r.Ring, r.Prefix); text != "" {
			f.Ranges = append(f.Ranges, text)
		}
	}
}

// tellTakeover makes those who agreed hold the takeover before anybody is
// told that it is done: a node that comes back meets one of them.
func (n *Node) tellTakeover(ctx context.Context, agreed []state.NodeID, ops []state.Op) (warnings []string) {
	sn := n.store.Snapshot()
	var recs []state.Record
	for _, op := range ops {
		if rec, ok := sn.Get(state.ID{Class: op.Class, Kind: op.Kind, Key: op.Key}); ok {
			recs = append(recs, rec)
		}
	}
	var mu sync.Mutex
	eachNode(ctx, agreed[1:], func(ctx context.Context, to state.NodeID) {
		for part := range slices.Chunk(recs, holdsPart) {
			if err := (asker{n}).Take(ctx, to, part); err != nil {
				mu.Lock()
				warnings = append(warnings, fmt.Sprintf("%s has not confirmed that it knows: %v", nodeName(sn.View(), to), err))
				mu.Unlock()
				return
			}
		}
	})
	slices.Sort(warnings)
	return warnings
}
