package ipam

import (
	"net/netip"
	"slices"

	"nodenet/state"
)

// Part is a run of addresses of a ring with one owner.
type Part = state.RingPart

// Ring is a ring at one snapshot: disjoint parts in address order. It is
// immutable and safe for concurrent use.
type Ring struct {
	Name  string
	ID    string
	Parts []Part
	// Foreign lists the IDs of other rings whose ranges have this ring's name,
	// sorted: two clusters were founded apart. Their ranges are ignored.
	Foreign []string

	ranges []claim // of this ring ID, sorted by prefix
}

// claim is one Range record.
type claim = state.RingClaim

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
			claims = append(claims, claim{Prefix: r.Prefix.Masked(), Owner: r.Owner, Gen: rec.Version.Gen, From: r.From, Until: r.Until})
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

// resolve makes a ring of claims, by the rule of state.ResolveRing.
func resolve(claims []claim) *Ring {
	return &Ring{Parts: state.ResolveRing(claims), ranges: claims}
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
		if c.Prefix.Overlaps(p) {
			g = max(g, c.Gen)
		}
	}
	return g
}
