package ipam

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// takeover is how far the generation of taken-over space stands above what
// was known of it: above everything that the node which was forgotten may have
// written there unheard, so that its word no longer counts against the new owner.
const takeover = 1_000_000

// Forget returns the ops by which self takes over all that another node owns,
// the right to make rings included. Unlike every other change of a ring it is
// not the owner who writes it, so it is safe only when that owner does not
// run and when self knows all that any other node knows of the rings; seeing
// to that is the caller's task. What is taken of a ring rests until
// now + rest(ring), if that is positive.
//
// ErrGiveWay: self was forgotten before and has not obeyed yet. If it took its
// space back now, its old blocks there would count on some nodes and not on
// others, until all records had arrived.
func Forget(sn *state.Snapshot, self state.NodeID, ringID string, node state.NodeID, rest func(ring string) time.Duration, now time.Time) ([]state.Op, error) {
	if len(GiveWay(sn, self, ringID)) > 0 {
		return nil, ErrGiveWay
	}
	names := map[string]bool{}
	for _, r := range state.All[state.Range](sn) {
		if r.RingID == ringID {
			names[r.Ring] = true
		}
	}
	var ops []state.Op
	for name := range names {
		ring := Resolve(sn, name, ringID)
		if ring == nil {
			continue
		}
		for _, p := range ring.Owned(node) {
			r := state.Range{Ring: name, RingID: ringID, Prefix: p, Owner: self, From: node}
			if d := rest(name); d > 0 && name != ringSeat {
				r.Until = now.Add(d).Unix()
			}
			ops = append(ops, rangeOp(r, ring.gen(p)+takeover))
		}
	}
	slices.SortFunc(ops, func(a, b state.Op) int { return cmp.Compare(a.Key, b.Key) })
	return ops, nil
}

// RingSum is a hash of all that is known of the rings: equal on nodes that
// know the same.
func RingSum(sn *state.Snapshot, ringID string) []byte {
	h := sha256.New()
	for rec, r := range state.All[state.Range](sn) {
		if r.RingID == ringID {
			fmt.Fprintf(h, "%s %d %d %s\n", rec.ID.Key, rec.Version.Gen, rec.Version.HLC, rec.Version.Node)
		}
	}
	return h.Sum(nil)
}

// GiveWay returns the ops by which self obeys rings that changed without it:
// a part of them was taken over while self was away, or was claimed twice. It
// closes blocks that are no longer its own and marks the endpoints in them as
// not ready, so that they are drained; VIPs and node ports that it had given
// out and that another service has by now, it gives up. After self was
// forgotten it also writes anew what stays, which does not count otherwise.
// No ops: there is nothing to obey.
//
// Space that was given away in good order never matters here: nothing of
// one's own is in it.
func GiveWay(sn *state.Snapshot, self state.NodeID, ringID string) []state.Op {
	w := &yield{sn: sn, self: self, ringID: ringID, rings: map[string]*Ring{}}
	if f, ok := state.Lookup[state.Forgotten](sn, state.ID{Class: state.Cluster, Kind: state.KindForgotten, Key: string(self)}); ok {
		w.epoch = f.Epoch
	}
	if w.epoch == 0 && !w.disturbed() {
		return nil
	}
	own := state.ID{Class: state.Owner, Kind: state.KindNode, Owner: self, Key: "self"}
	if rec, ok := sn.Get(own); ok && !rec.Deleted && rec.Version.Epoch <= w.epoch {
		if node, ok := state.Lookup[state.Node](sn, own); ok {
			w.ops = append(w.ops, anew(state.KindNode, "self", *node))
		}
	}
	w.blocks()
	w.endpoints()
	w.services()
	return w.ops
}

type yield struct {
	sn     *state.Snapshot
	self   state.NodeID
	ringID string
	epoch  uint64 // what was written up to then does not count for others
	rings  map[string]*Ring
	ops    []state.Op
}

func (w *yield) ring(name string) *Ring {
	r, ok := w.rings[name]
	if !ok {
		r = Resolve(w.sn, name, w.ringID)
		w.rings[name] = r
	}
	return r
}

// disturbed is the cheap question first: did anything of this kind happen at all?
func (w *yield) disturbed() bool {
	for _, r := range state.All[state.Range](w.sn) {
		if _, ok := w.rings[r.Ring]; ok || r.RingID != w.ringID {
			continue
		}
		if ring := w.ring(r.Ring); ring != nil && ring.disturbed() {
			return true
		}
	}
	return false
}

// lost reports that a prefix was ours and is another's without our consent.
func (w *yield) lost(ring *Ring, p netip.Prefix, old bool) bool {
	if ring == nil || ring.Owns(w.self, p) {
		return false
	}
	return old || ring.unwilling(w.self, p)
}

// unwilling reports that a node which does not own a prefix has not given it
// away: it was taken from it, or from whom it had it.
func (r *Ring) unwilling(node state.NodeID, p netip.Prefix) bool {
	return r.takenOver(p) != "" || r.disputes(node, p)
}

// disturbed reports that some of the ring was taken over or is contested.
func (r *Ring) disturbed() bool {
	return len(r.Contested()) > 0 || slices.ContainsFunc(r.ranges, func(c claim) bool { return c.From != "" })
}

// disputes reports that a node claims some of a prefix and lost to another
// claim of the same generation.
func (r *Ring) disputes(node state.NodeID, p netip.Prefix) bool {
	s := spanOf(p)
	return slices.ContainsFunc(r.Parts, func(q Part) bool {
		return q.From.Compare(s.to) <= 0 && q.To.Compare(s.from) >= 0 && slices.Contains(q.Contested, node)
	})
}

// anew is an Op that writes a record again also when its value is the same.
func anew(k state.Kind, key string, v any) state.Op {
	op := state.Put(state.Owner, k, key, v)
	op.Gen = 1
	return op
}

func (w *yield) blocks() {
	for rec, b := range state.All[state.Block](w.sn) {
		if rec.ID.Owner != w.self || !b.Prefix.IsValid() {
			continue
		}
		old := rec.Version.Epoch <= w.epoch
		switch {
		case w.lost(w.ring(b.Network), b.Prefix.Masked(), old):
			w.ops = append(w.ops, state.Del(state.Owner, state.KindBlock, rec.ID.Key))
		case old:
			w.ops = append(w.ops, anew(state.KindBlock, rec.ID.Key, *b))
		}
	}
}

func (w *yield) endpoints() {
	local := map[string]bool{}
	for rec, n := range state.All[state.Network](w.sn) {
		if rec.ID.Owner == w.self && n.Local() {
			local[n.Name] = true
		}
	}
	for rec, ep := range state.All[state.Endpoint](w.sn) {
		if rec.ID.Owner != w.self {
			continue
		}
		old, next := rec.Version.Epoch <= w.epoch, *ep
		for _, a := range ep.Addrs {
			ring := w.ring(ep.Network)
			if local[ep.Network] || !w.lost(ring, netip.PrefixFrom(a, a.BitLen()), old) {
				continue
			}
			owner, ok := ring.Part(a)
			if !ok {
				continue
			}
			next.Ready = false
			next.Why = fmt.Sprintf("its address %s belongs to %s now: attach it again", a, nodeName(w.sn, owner.Owner))
			break
		}
		if old || next.Ready != ep.Ready || next.Why != ep.Why {
			w.ops = append(w.ops, anew(state.KindEndpoint, rec.ID.Key, next))
		}
	}
}

// services gives up what self had allocated and another service has as well.
func (w *yield) services() {
	type claim struct {
		addr netip.Addr
		port uint16
	}
	holders := map[claim]map[string]bool{}
	note := func(c claim, key string) {
		if holders[c] == nil {
			holders[c] = map[string]bool{}
		}
		holders[c][key] = true
	}
	v4, v6 := w.sn.ServiceRanges()
	for _, s := range state.All[state.Service](w.sn) {
		for _, a := range []netip.Addr{s.VIP, state.Untwin(v4, v6, s.VIP6)} {
			if a.IsValid() {
				note(claim{addr: a}, s.Key())
			}
		}
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				note(claim{port: p.NodePort}, s.Key())
			}
		}
	}
	for rec, v := range state.All[state.VIP](w.sn) {
		if v.Addr.IsValid() {
			note(claim{addr: v.Addr}, rec.ID.Key)
		}
		for _, p := range v.NodePorts {
			note(claim{port: p}, rec.ID.Key)
		}
	}
	for rec, v := range state.All[state.VIP](w.sn) {
		if rec.Version.Node != w.self {
			continue
		}
		twice := v.Addr.IsValid() && len(holders[claim{addr: v.Addr}]) > 1 &&
			w.lost(w.ring(state.RingServices), netip.PrefixFrom(v.Addr, v.Addr.BitLen()), false)
		for _, p := range v.NodePorts {
			twice = twice || len(holders[claim{port: p}]) > 1 &&
				w.lost(w.ring(state.RingNodePorts), netip.PrefixFrom(PortAddr(p), 32), false)
		}
		if twice {
			w.ops = append(w.ops, state.Del(state.Cluster, state.KindVIP, rec.ID.Key))
		}
	}
}

// Stray is something of a node that lies in another node's range.
type Stray struct {
	Node     state.NodeID // whose it is
	Network  string
	Block    netip.Prefix    // an opened block; or
	Endpoint *state.Endpoint // an endpoint, with Addr
	Addr     netip.Addr
	Owner    state.NodeID // of the range
	Also     string       // another endpoint that has the same address, or ""
}

// Strays finds what lies in ranges of others. While everybody keeps to the
// rules there is nothing; it takes a forgotten node that comes back, or two
// sides that forgot one another.
func Strays(sn *state.Snapshot, ringID string) []Stray {
	gone := sn.Gone()
	rings := map[string]*Ring{} // those where it can happen
	for _, r := range state.All[state.Range](sn) {
		if _, ok := rings[r.Ring]; !ok {
			rings[r.Ring] = nil
			if ring := Resolve(sn, r.Ring, ringID); ring != nil && ring.disturbed() {
				rings[r.Ring] = ring
			}
		}
	}
	ring := func(name string) *Ring { return rings[name] }
	var out []Stray
	for rec, b := range state.All[state.Block](sn) {
		r := ring(b.Network)
		if r == nil || !b.Prefix.IsValid() || gone.Record(&rec) || r.Owns(rec.ID.Owner, b.Prefix) || !r.unwilling(rec.ID.Owner, b.Prefix) {
			continue
		}
		out = append(out, Stray{Node: rec.ID.Owner, Network: b.Network, Block: b.Prefix, Owner: r.Owner(b.Prefix.Masked().Addr())})
	}
	type place struct {
		network string
		addr    netip.Addr
	}
	has := map[place][]state.Record{}
	for rec, ep := range state.All[state.Endpoint](sn) {
		if gone.Record(&rec) || ring(ep.Network) == nil {
			continue
		}
		for _, a := range ep.Addrs {
			has[place{ep.Network, a}] = append(has[place{ep.Network, a}], rec)
		}
	}
	for p, recs := range has {
		for i := range recs {
			ep := recs[i].Val().(*state.Endpoint)
			part, ok := ring(p.network).Part(p.addr)
			if !ok || part.Owner == recs[i].ID.Owner || !ring(p.network).unwilling(recs[i].ID.Owner, netip.PrefixFrom(p.addr, p.addr.BitLen())) {
				continue
			}
			s := Stray{Node: recs[i].ID.Owner, Network: p.network, Endpoint: ep, Addr: p.addr, Owner: part.Owner}
			if len(recs) > 1 {
				s.Also = who(recs[(i+1)%len(recs)].Val().(*state.Endpoint))
			}
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Stray) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), a.Block.Addr().Compare(b.Block.Addr()), a.Addr.Compare(b.Addr), cmp.Compare(a.Node, b.Node))
	})
	return out
}
