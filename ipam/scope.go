package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// scope is one network as one request sees it.
type scope struct {
	alloc  *Allocator
	sn     *state.Snapshot
	self   state.NodeID
	net    *state.Network
	req    *Request
	now    time.Time
	t      *netTable // nil: nothing known of the network
	opened []netip.Prefix
	blocks []netip.Prefix // opened and ours to give from
	fresh  map[netip.Addr]*state.Endpoint
	lookup bool // the table may lack leases that the snapshot has
}

// scope collects what a request needs. Callers hold a.mu.
func (a *Allocator) scope(sn *state.Snapshot, self state.NodeID, r Request) (*scope, error) {
	s := &scope{alloc: a, sn: sn, self: self, net: &r.Network, req: &r, now: r.Now}
	if s.now.IsZero() {
		s.now = time.Now()
	}
	if !r.Network.Prefix.IsValid() {
		return nil, fmt.Errorf("network %q has no prefix", r.Network.Name)
	}
	if a.feed != nil && self == a.store.Self() {
		a.follow()
		s.t = a.index.nets[r.Network.Name]
		s.lookup = true
	} else {
		t := newTable(self)
		t.load(sn, r.Network.Name)
		s.t = t.nets[r.Network.Name]
	}
	blocks := map[string]netip.Prefix{}
	if s.t != nil {
		for k, p := range s.t.blocks {
			blocks[k] = p
		}
	}
	if s.lookup {
		s.overlay(blocks)
	}
	if r.Network.Local() {
		s.blocks = []netip.Prefix{r.Network.Prefix.Masked()}
		return s, nil
	}
	ring := a.ring(sn, r.Network.Name, r.RingID)
	if ring == nil {
		return nil, ErrNoRing
	}
	s.opened = (&netTable{blocks: blocks}).opened()
	owned := ring.owned(self)
	for _, b := range s.opened {
		if covers(owned, spanOf(b)) {
			s.blocks = append(s.blocks, b)
		}
	}
	return s, nil
}

// overlay adds this node's own writes that are in the snapshot but not yet
// committed, or not yet told by the feed.
func (s *scope) overlay(blocks map[string]netip.Prefix) {
	d := s.sn.Delta(s.self, s.alloc.mark, 0)
	for i := range d.Records {
		rec := &d.Records[i]
		switch v := rec.Val().(type) {
		case *state.Endpoint:
			if v.Network == s.net.Name {
				if s.fresh == nil {
					s.fresh = map[netip.Addr]*state.Endpoint{}
				}
				for _, a := range v.Addrs {
					s.fresh[a] = v
				}
			}
		case *state.Block:
			if v.Network == s.net.Name {
				blocks[rec.ID.Key] = v.Prefix.Masked()
			}
		case nil:
			if rec.Deleted && rec.ID.Kind == state.KindBlock {
				delete(blocks, rec.ID.Key)
			}
		}
	}
}

// openOp opens a block. It says by which generation of the ring the block is
// ours, so that who has not heard of that does not take it for a false claim.
func (s *scope) openOp(p netip.Prefix) state.Op {
	b := state.Block{Network: s.net.Name, Prefix: p}
	ring := Resolve(s.sn, s.net.Name, s.req.RingID) // what is remembered may be older
	for _, q := range ring.Parts {
		if in := spanOf(p); q.From.Compare(in.to) <= 0 && q.To.Compare(in.from) >= 0 {
			b.Gen = max(b.Gen, q.Gen)
		}
	}
	return state.Put(state.Owner, state.KindBlock, blockKey(b.Network, p), b)
}

// block returns the block of ours that an address lies in.
func (s *scope) block(a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(s.blocks, func(b netip.Prefix) bool { return b.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return s.blocks[i], true
}

// never says why an address of a block is nobody's to have, or "".
func (s *scope) never(a netip.Addr, b netip.Prefix) string {
	if hasNetworkAddr(b) {
		if a == b.Addr() {
			return "network address of " + b.String()
		}
		if a.Is4() && a == lastAddr(b) {
			return "broadcast address of " + b.String()
		}
	}
	if a == Gateway(*s.net, b) {
		return "gateway of " + b.String()
	}
	for _, x := range s.net.Exclude {
		if x.Contains(a) {
			return "excluded by " + x.String()
		}
	}
	return ""
}

// why says why an address of a block cannot be had, or "". An address that is
// wanted need not have rested.
func (s *scope) why(a netip.Addr, b netip.Prefix, wanted bool) string {
	if w := s.never(a, b); w != "" {
		return w
	}
	if ep := s.fresh[a]; ep != nil && ep.ID != s.req.ID {
		return "held by endpoint " + who(ep)
	}
	if s.t != nil {
		if h, ok := s.t.own[a]; ok && (h.n > 1 || s.req.ID == "" || h.ep.ID != s.req.ID) {
			return "held by endpoint " + who(h.ep)
		}
		if h, ok := s.t.others[a]; ok && !s.net.Local() {
			return "held by endpoint " + who(h.ep) + " of another node"
		}
		if w := s.leased(s.t.leases[a]); w != "" {
			return w
		}
		if rs := s.t.reservations[a]; len(rs) > 0 {
			mine, forWhom := false, ""
			for _, r := range rs {
				mine = mine || s.mine(r)
				if w := r.Name + r.MAC; forWhom == "" || w < forWhom {
					forWhom = w
				}
			}
			if !mine {
				return "reserved for " + forWhom
			}
		}
	}
	if s.req.Held != nil && s.req.Held(a) {
		return "promised to somebody else"
	}
	if !wanted && s.alloc.resting(s.net.Name, a, s.now, s.rest()) {
		return "released a moment ago"
	}
	if s.lookup {
		id := state.ID{Class: state.Lease, Kind: state.KindLease, Key: s.net.Name + "/" + a.String()}
		if l, ok := state.Lookup[state.LeaseValue](s.sn, id); ok {
			return s.leased(l)
		}
	}
	return ""
}

// leased says who holds a lease, unless it ran out or is the client's own.
func (s *scope) leased(l *state.LeaseValue) string {
	switch {
	case l == nil || l.Expires <= s.now.Unix() || s.net.Local() && l.Server != s.self:
		return ""
	case l.Declined:
		return "declined: somebody else was seen to use it"
	case s.req.MAC != "" && l.MAC == s.req.MAC:
		return ""
	case l.Hostname != "":
		return "leased to " + l.Hostname + " (" + l.MAC + ")"
	}
	return "leased to " + l.MAC
}

// usable returns how many addresses of a block workloads could have.
func (s *scope) usable(b netip.Prefix) uint64 {
	n := Hosts(b)
	if gw := Gateway(*s.net, b); gw.IsValid() && b.Contains(gw) && n > 0 {
		n--
	}
	return n
}

// countEach is the largest block that is counted address by address.
const countEach = 1024

// free returns how many addresses of a block could be given out. What rests
// counts as free in large blocks only.
func (s *scope) free(b netip.Prefix) uint64 {
	if Size(b) <= countEach {
		var n uint64
		sp := spanOf(b)
		for a := sp.from; a.IsValid() && a.Compare(sp.to) <= 0; a = a.Next() {
			if s.why(a, b, false) == "" {
				n++
			}
		}
		return n
	}
	taken := map[netip.Addr]bool{}
	note := func(a netip.Addr) {
		if b.Contains(a) && s.never(a, b) == "" && s.why(a, b, true) != "" {
			taken[a] = true
		}
	}
	for a := range s.fresh {
		note(a)
	}
	if s.t != nil {
		for a := range s.t.own {
			note(a)
		}
		for a := range s.t.others {
			note(a)
		}
		for a := range s.t.leases {
			note(a)
		}
		for a := range s.t.reservations {
			note(a)
		}
	}
	n, used := s.usable(b), uint64(len(taken))
	var excluded []span
	for _, x := range s.net.Exclude {
		if x.IsValid() {
			excluded = append(excluded, spanOf(x))
		}
	}
	used = satAdd(used, count(intersect(normal(excluded), []span{spanOf(b)})))
	if used > n {
		return 0
	}
	return n - used
}
