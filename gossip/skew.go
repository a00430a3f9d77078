package gossip

import (
	"slices"
	"time"
)

const (
	// ShowSkew is from where on a difference between two clocks is worth
	// showing; below, it may be the measurement's.
	ShowSkew = time.Second
	// badSkew is from where on something is wrong with this node's clock: last
	// writer wins by clock among the changes that any node can make.
	badSkew = time.Minute
)

// skewOf returns the middle one of the peers' differences: one peer's wrong
// clock does not make ours look wrong. Of two it is the smaller one.
func skewOf(skews []time.Duration) time.Duration {
	if len(skews) == 0 {
		return 0
	}
	skews = slices.Clone(skews)
	slices.Sort(skews)
	lo, hi := skews[(len(skews)-1)/2], skews[len(skews)/2]
	if lo.Abs() < hi.Abs() {
		return lo
	}
	return hi
}

// skewText says where a clock is that is so far ahead, as in "2m0s ahead of".
func skewText(d time.Duration) string {
	r := d.Abs().Round(100 * time.Millisecond).String()
	if d < 0 {
		return r + " behind"
	}
	return r + " ahead of"
}
