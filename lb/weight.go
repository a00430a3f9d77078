package lb

import (
	"fmt"
	"net/netip"
	"strings"
)

// weighted is a backend of a port with its share, 1 or more.
type weighted struct {
	to     netip.AddrPort
	weight int
}

// reduce divides the weights by what all of them are multiples of, and
// returns their sum.
func reduce(list []weighted) (sum int) {
	d := 0
	for _, b := range list {
		for x := b.weight; x != 0; {
			d, x = x, d%x
		}
	}
	for i := range list {
		list[i].weight /= d
		sum += list[i].weight
	}
	return sum
}

// spread gives each backend as many slots as its share asks for, MaxSlots in
// all at most and one at least. The list has at most MaxSlots backends. It
// returns the slots in the order of the list and, if the shares had to be
// changed by more than a tenth, what became of them.
func spread(list []weighted) (slots []netip.AddrPort, rounded string) {
	sum := reduce(list)
	n := make([]int, len(list))
	if sum <= MaxSlots {
		for i, b := range list {
			n[i] = b.weight
		}
	} else {
		rounded = share(list, n, sum)
	}
	for i, b := range list {
		for range n[i] {
			slots = append(slots, b.to)
		}
	}
	return slots, rounded
}

// share distributes MaxSlots slots by largest remainder; a backend that would
// get none gets one, from those that have most for their weight. A weight that
// changes a little so changes few slots.
func share(list []weighted, n []int, sum int) (rounded string) {
	left := MaxSlots
	for i, b := range list {
		n[i] = max(1, b.weight*MaxSlots/sum)
		left -= n[i]
	}
	for ; left != 0; left -= sign(left) {
		best := -1
		for i := range list {
			if left < 0 && n[i] == 1 {
				continue
			}
			if best < 0 || float64(sign(left))*(due(list[i], sum)-float64(n[i])) > float64(sign(left))*(due(list[best], sum)-float64(n[best])) {
				best = i
			}
		}
		n[best] += sign(left)
	}
	var off []string
	for i, b := range list {
		if d := due(b, sum); float64(n[i]) > d*1.1 || float64(n[i]) < d*0.9 {
			off = append(off, fmt.Sprintf("%s gets %d of %d slots instead of %.1f", b.to, n[i], MaxSlots, d))
		}
	}
	if len(off) > 3 {
		off = append(off[:3], fmt.Sprintf("and %d more", len(off)-3))
	}
	return strings.Join(off, ", ")
}

// due is how many slots a backend's weight asks for.
func due(b weighted, sum int) float64 { return float64(b.weight) * MaxSlots / float64(sum) }

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}
