package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// DefaultQuarantine is how long taken-over space rests before anything in it
// is given out: time for a node that was only cut off to come back and hear of
// it, and for what still speaks to its workloads to notice.
const DefaultQuarantine = 10 * time.Minute

// quarantine returns what of the ring rests at a time. It is not sorted.
func (r *Ring) quarantine(now time.Time) []span {
	var out []span
	for _, p := range r.Parts {
		if p.Until > now.Unix() {
			out = append(out, span{p.From, p.To})
		}
	}
	return out
}

// resting returns until when some of s rests.
func (r *Ring) resting(s span, now time.Time) (time.Time, bool) {
	var until int64
	for _, p := range r.Parts {
		if p.Until > now.Unix() && p.From.Compare(s.to) <= 0 && p.To.Compare(s.from) >= 0 {
			until = max(until, p.Until)
		}
	}
	return time.Unix(until, 0), until != 0
}

// usable returns what a node owns but for what rests.
func (r *Ring) usable(node state.NodeID, now time.Time) []span {
	rest := r.quarantine(now)
	if len(rest) == 0 {
		return r.owned(node)
	}
	return subtract(r.owned(node), normal(rest))
}

// restingUnits counts what a node owns that rests, in prefixes of a length.
func (r *Ring) restingUnits(node state.NodeID, bits int) uint64 {
	var n uint64
	for _, p := range prefixes(intersect(r.owned(node), normal(r.quarantine(time.Now())))) {
		n = satAdd(n, units(p, bits))
	}
	return n
}

func restError(until time.Time) error {
	return fmt.Errorf("taken over from a forgotten node, rests until %s: %w", until.Format(time.TimeOnly), ErrInUse)
}

// takenOver returns the node that some of a prefix was taken from without its
// consent, whoever has it now, or "".
func (r *Ring) takenOver(p netip.Prefix) state.NodeID {
	i := slices.IndexFunc(r.ranges, func(c claim) bool { return c.From != "" && c.Prefix.Overlaps(p) })
	if i < 0 {
		return ""
	}
	return r.ranges[i].From
}
