package node

import (
	"context"
	"fmt"
	"time"

	"nodenet/state"
)

// methodHolds is the RPC by which a node asks another how much of its tables
// that one lacks. It has two steps, so that equal nodes exchange hashes only:
//
//	A ── marks, bucket hashes ──► B
//	A ◄─ marks that are behind, buckets that differ ── B
//	A ── versions of the records in those buckets ───► B     in parts
//	A ◄─ how many of them it lacks ─────────────────── B
const methodHolds = "state.holds"

// holdsPart bounds what is listed in one message; state.Decode takes 4096.
const holdsPart = 2000

// holdsTimeout bounds one call.
const holdsTimeout = 3 * time.Second

type holdsAsk struct {
	Heads   []state.Head `cbor:"1,keyasint,omitempty"`
	Buckets []uint64     `cbor:"2,keyasint,omitempty"`
	Items   []holdsItem  `cbor:"3,keyasint,omitempty"`
}

type holdsItem struct {
	ID      state.ID      `cbor:"1,keyasint"`
	Version state.Version `cbor:"2,keyasint"`
}

type holdsAnswer struct {
	Behind []state.Head `cbor:"1,keyasint,omitempty"` // Mark: what the answerer holds
	Differ []int        `cbor:"2,keyasint,omitempty"`
	Lacks  int          `cbor:"3,keyasint,omitempty"` // of Items
}

func (n *Node) serveHolds(_ context.Context, _ state.NodeID, req []byte) ([]byte, error) {
	var q holdsAsk
	if err := state.Decode(req, &q); err != nil {
		return nil, fmt.Errorf("request for what is held: %w", err)
	}
	sn := n.store.Snapshot()
	var a holdsAnswer
	for _, h := range q.Heads {
		if own := sn.Head(h.Owner); own.Mark.Compare(h.Mark) < 0 {
			a.Behind = append(a.Behind, state.Head{Owner: h.Owner, Mark: own.Mark})
		}
	}
	if ours := sn.Buckets(); len(q.Buckets) == len(ours) {
		for i := range ours {
			if ours[i] != q.Buckets[i] {
				a.Differ = append(a.Differ, i)
			}
		}
	}
	for _, it := range q.Items {
		if rec, ok := sn.Get(it.ID); !ok || state.Compare(it.ID.Class, rec.Version, it.Version) < 0 {
			a.Lacks++
		}
	}
	return state.Encode(a)
}

// lacks asks a node how many records of a snapshot it does not hold yet.
func (n *Node) lacks(ctx context.Context, to state.NodeID, sn *state.Snapshot) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, holdsTimeout)
	defer cancel()
	var all holdsAnswer
	heads, buckets := sn.Heads(), sn.Buckets()
	for i := range heads {
		heads[i] = heads[i].Bare()
	}
	first := true
	for len(heads) > 0 || first {
		part := heads[:min(len(heads), holdsPart)]
		heads = heads[len(part):]
		q := holdsAsk{Heads: part}
		if first {
			q.Buckets = buckets[:]
		}
		first = false
		a, err := n.askHolds(ctx, to, q)
		if err != nil {
			return 0, err
		}
		all.Behind, all.Differ = append(all.Behind, a.Behind...), append(all.Differ, a.Differ...)
	}
	missing := 0
	for _, h := range all.Behind {
		// The floor of ours does not count here: what is left is what it lacks.
		missing += max(1, len(sn.Delta(h.Owner, h.Mark, 0).Records))
	}
	var items []holdsItem
	for _, i := range all.Differ {
		if i < 0 || i >= state.NumBuckets {
			return 0, fmt.Errorf("%s names bucket %d of %d", to.Short(), i, state.NumBuckets)
		}
		for _, r := range sn.Bucket(i) {
			items = append(items, holdsItem{r.ID, r.Version})
		}
	}
	for len(items) > 0 {
		part := items[:min(len(items), holdsPart)]
		items = items[len(part):]
		a, err := n.askHolds(ctx, to, holdsAsk{Items: part})
		if err != nil {
			return 0, err
		}
		missing += a.Lacks
	}
	return missing, nil
}

func (n *Node) askHolds(ctx context.Context, to state.NodeID, q holdsAsk) (holdsAnswer, error) {
	var a holdsAnswer
	req, err := state.Encode(q)
	if err != nil {
		return a, err
	}
	resp, err := n.gossip.Call(ctx, to, methodHolds, req)
	if err != nil {
		return a, err
	}
	if err := state.Decode(resp, &a); err != nil {
		return a, fmt.Errorf("answer of %s: %w", to.Short(), err)
	}
	return a, nil
}
