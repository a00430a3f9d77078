package state

import (
	"net/netip"
	"slices"
	"strings"
)

// RingPart is a run of addresses of a ring with one owner.
type RingPart struct {
	From, To netip.Addr // both included
	Owner    NodeID
	Gen      uint64
	// Contested lists other nodes that claim the same addresses with the same
	// generation, sorted. It is empty unless somebody forced a takeover twice.
	// Owner, the lowest node ID among the claimants, goes on; these must not
	// give out anything here.
	Contested []NodeID
	// Until is when a part that was taken over may be used, in Unix seconds;
	// zero: at once.
	Until int64
}

// RingClaim is what one Range record says.
type RingClaim struct {
	Prefix netip.Prefix // masked
	Owner  NodeID
	Gen    uint64
	From   NodeID // it was taken from; empty: given
	Until  int64  // see RingPart
}

// ResolveRing returns who owns what by the claims of one ring: of the claims
// over an address the one with the highest generation counts. The parts are
// disjoint and in address order. It sorts claims; its cost is O(n log n).
//
// It sweeps over them in preorder of nesting: aligned prefixes either nest or
// do not overlap, so the claims over an address are a path in a tree, and the
// walk keeps the strongest claim of the path down to here.
func ResolveRing(claims []RingClaim) []RingPart {
	slices.SortFunc(claims, func(a, b RingClaim) int {
		if d := a.Prefix.Addr().Compare(b.Prefix.Addr()); d != 0 {
			return d
		}
		if d := a.Prefix.Bits() - b.Prefix.Bits(); d != 0 {
			return d
		}
		return strings.Compare(string(a.Owner), string(b.Owner))
	})
	var parts []RingPart
	type level struct {
		end netip.Addr
		top RingPart // strongest claim so far; From, To unused
	}
	var path []level
	var at netip.Addr // next address to be written out; invalid: none
	emit := func(to netip.Addr) {
		if !at.IsValid() || len(path) == 0 || at.Compare(to) > 0 {
			return
		}
		p := path[len(path)-1].top
		p.From, p.To = at, to
		parts = appendPart(parts, p)
		at = to.Next()
	}
	for i := 0; i < len(claims); {
		p := claims[i].Prefix
		start, end := p.Addr(), lastOf(p)
		for len(path) > 0 && path[len(path)-1].end.Compare(start) < 0 {
			emit(path[len(path)-1].end)
			path = path[:len(path)-1]
		}
		if len(path) > 0 && start.Compare(at) > 0 {
			emit(start.Prev())
		}
		var top RingPart
		if len(path) > 0 {
			top = path[len(path)-1].top
		}
		for ; i < len(claims) && claims[i].Prefix == p; i++ {
			top = stronger(top, claims[i])
		}
		path = append(path, level{end, top})
		at = start
	}
	for len(path) > 0 {
		emit(path[len(path)-1].end)
		path = path[:len(path)-1]
	}
	return parts
}

// stronger returns the outcome of one more claim to the same addresses.
func stronger(p RingPart, c RingClaim) RingPart {
	switch {
	case p.Owner == "" || c.Gen > p.Gen:
		return RingPart{Owner: c.Owner, Gen: c.Gen, Until: c.Until}
	case c.Gen < p.Gen || c.Owner == p.Owner || slices.Contains(p.Contested, c.Owner):
		return p
	}
	all := append(slices.Clone(p.Contested), p.Owner, c.Owner)
	slices.Sort(all)
	return RingPart{Owner: all[0], Gen: p.Gen, Contested: all[1:], Until: max(p.Until, c.Until)}
}

// appendPart joins a part to the one before where nothing tells them apart.
func appendPart(parts []RingPart, p RingPart) []RingPart {
	if n := len(parts); n > 0 {
		q := &parts[n-1]
		if q.Owner == p.Owner && q.Gen == p.Gen && q.Until == p.Until && q.To.Next() == p.From && slices.Equal(q.Contested, p.Contested) {
			q.To = p.To
			return parts
		}
	}
	return append(parts, p)
}

// lastOf returns the last address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
