package ipam

import (
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// Part is a run of addresses of a ring with one owner.
type Part struct {
	From, To netip.Addr // both included
	Owner    state.NodeID
	Gen      uint64
	// Contested lists other nodes that claim the same addresses with the same
	// generation, sorted. It is empty unless somebody forced a takeover twice.
	// Owner, the lowest node ID among the claimants, goes on; these must not
	// give out anything here.
	Contested []state.NodeID
	// Until is when a part that was taken over may be used, in Unix seconds;
	// zero: at once.
	Until int64
}

// Ring is a ring at one snapshot: disjoint parts in address order. It is
// immutable and safe for concurrent use.
type Ring struct {
	Name  string
	ID    string
	Parts []Part
	// Foreign lists the IDs of other rings whose ranges have this ring's name,
	// sorted: two clusters were founded apart. Their ranges are ignored.
	Foreign []string

	ranges []claim // of this ring ID, in preorder of nesting
}

// claim is one Range record.
type claim struct {
	prefix netip.Prefix
	owner  state.NodeID
	gen    uint64
	from   state.NodeID // it was taken from; empty: given
	until  int64
}

// Resolve returns the ring of that name and ID, or nil when the snapshot holds
// no range of it. Its cost is O(n log n) in the number of ring records.
func Resolve(sn *state.Snapshot, ring, ringID string) *Ring {
	var claims []claim
	var foreign []string
	for rec, r := range state.All[state.Range](sn) {
		switch {
		case r.Ring != ring || !r.Prefix.IsValid() || r.Owner == "":
		case r.RingID != ringID:
			foreign = append(foreign, r.RingID)
		default:
			claims = append(claims, claim{r.Prefix.Masked(), r.Owner, rec.Version.Gen, r.From, r.Until})
		}
	}
	if len(claims) == 0 {
		return nil
	}
	slices.Sort(foreign)
	r := resolve(claims)
	r.Name, r.ID, r.Foreign = ring, ringID, slices.Compact(foreign)
	return r
}

// resolve sweeps over claims in preorder of nesting: aligned prefixes either
// nest or do not overlap, so the claims over an address are a path in a tree,
// and the walk keeps the strongest claim of the path down to here.
func resolve(claims []claim) *Ring {
	slices.SortFunc(claims, func(a, b claim) int {
		if d := a.prefix.Addr().Compare(b.prefix.Addr()); d != 0 {
			return d
		}
		if d := a.prefix.Bits() - b.prefix.Bits(); d != 0 {
			return d
		}
		return strings.Compare(string(a.owner), string(b.owner))
	})
	r := &Ring{ranges: claims}
	type level struct {
		end netip.Addr
		top Part // strongest claim so far; From, To unused
	}
	var path []level
	var at netip.Addr // next address to be written out; invalid: none
	emit := func(to netip.Addr) {
		if !at.IsValid() || len(path) == 0 || at.Compare(to) > 0 {
			return
		}
		p := path[len(path)-1].top
		p.From, p.To = at, to
		r.add(p)
		at = to.Next()
	}
	for i := 0; i < len(claims); {
		p := claims[i].prefix
		start, end := p.Addr(), lastAddr(p)
		for len(path) > 0 && path[len(path)-1].end.Compare(start) < 0 {
			emit(path[len(path)-1].end)
			path = path[:len(path)-1]
		}
		if len(path) > 0 && start.Compare(at) > 0 {
			emit(start.Prev())
		}
		var top Part
		if len(path) > 0 {
			top = path[len(path)-1].top
		}
		for ; i < len(claims) && claims[i].prefix == p; i++ {
			top = stronger(top, claims[i])
		}
		path = append(path, level{end, top})
		at = start
	}
	for len(path) > 0 {
		emit(path[len(path)-1].end)
		path = path[:len(path)-1]
	}
	return r
}

// stronger returns the outcome of one more claim to the same addresses.
func stronger(p Part, c claim) Part {
	switch {
	case p.Owner == "" || c.gen > p.Gen:
		return Part{Owner: c.owner, Gen: c.gen, Until: c.until}
	case c.gen < p.Gen || c.owner == p.Owner || slices.Contains(p.Contested, c.owner):
		return p
	}
	all := append(slices.Clone(p.Contested), p.Owner, c.owner)
	slices.Sort(all)
	return Part{Owner: all[0], Gen: p.Gen, Contested: all[1:], Until: max(p.Until, c.until)}
}

// add appends a part, joined to the one before where nothing tells them apart.
func (r *Ring) add(p Part) {
	if n := len(r.Parts); n > 0 {
		q := &r.Parts[n-1]
		if q.Owner == p.Owner && q.Gen == p.Gen && q.Until == p.Until && q.To.Next() == p.From && slices.Equal(q.Contested, p.Contested) {
			q.To = p.To
			return
		}
	}
	r.Parts = append(r.Parts, p)
}

// Part returns the part that holds an address.
func (r *Ring) Part(a netip.Addr) (Part, bool) {
	i, found := slices.BinarySearchFunc(r.Parts, a, func(p Part, a netip.Addr) int { return p.From.Compare(a) })
	if !found {
		i--
	}
	if i < 0 || r.Parts[i].To.Compare(a) < 0 {
		return Part{}, false
	}
	return r.Parts[i], true
}

// Owner returns the owner of an address, or "" when the ring does not reach it.
func (r *Ring) Owner(a netip.Addr) state.NodeID {
	p, _ := r.Part(a)
	return p.Owner
}

// Owners returns every node that owns something, sorted.
func (r *Ring) Owners() []state.NodeID {
	var out []state.NodeID
	for _, p := range r.Parts {
		out = append(out, p.Owner)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Owned returns what a node may give out, in the fewest aligned prefixes.
func (r *Ring) Owned(node state.NodeID) []netip.Prefix { return prefixes(r.owned(node)) }

// Owns reports whether a node owns all of a prefix.
func (r *Ring) Owns(node state.NodeID, p netip.Prefix) bool { return covers(r.owned(node), spanOf(p)) }

// Contested returns the parts that more than one node claims.
func (r *Ring) Contested() []Part {
	var out []Part
	for _, p := range r.Parts {
		if len(p.Contested) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// Size returns how many addresses the ring has, at most MaxUint64.
func (r *Ring) Size() uint64 {
	var n uint64
	for _, p := range r.Parts {
		n = satAdd(n, span{p.From, p.To}.count())
	}
	return n
}

func (r *Ring) owned(node state.NodeID) []span {
	var out []span
	for _, p := range r.Parts {
		if p.Owner == node {
			out = append(out, span{p.From, p.To})
		}
	}
	return normal(out)
}

// gen returns the highest generation of all ranges that overlap a prefix,
// those included that lost: a new record must stand above them all.
func (r *Ring) gen(p netip.Prefix) uint64 {
	var g uint64
	for _, c := range r.ranges {
		if c.prefix.Overlaps(p) {
			g = max(g, c.gen)
		}
	}
	return g
}
