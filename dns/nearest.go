package dns

import (
	"cmp"
	"net/netip"
	"slices"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// Of a name with several addresses, those on this node come first, then those
// on nodes of its zone, then the others; among equals the order is what it
// was. A workload asks the node that it is on, so what is near to the node is
// near to it.

// orders reports whether a block's answers are put in order. It is not when
// loadbalance does more than to rotate, because it knows better then.
func (b *block) orders() bool {
	near := false
	for _, p := range b.plugins {
		switch p := p.Plugin.(type) {
		case *cluster:
			near = near || !p.anyOrder
		case interface{ Rotates() bool }:
			if !p.Rotates() {
				return false
			}
		}
	}
	return near
}

// fromCluster reports whether an answer is the cluster's own.
func fromCluster(q *plugin.Query) bool {
	return q.Own && (q.Source == "cluster" || q.Source == "search")
}

// nearestFirst puts address records in order, in place.
func (c *clientIndex) nearestFirst(rrs []wire.RR) {
	if c == nil || len(rrs) < 2 {
		return
	}
	slices.SortStableFunc(rrs, func(a, b wire.RR) int {
		x, y := addressOf(a), addressOf(b)
		if !x.IsValid() || !y.IsValid() { // aliases lead to the addresses, and come first
			return cmp.Compare(rankOf(x), rankOf(y))
		}
		return cmp.Compare(c.rank(x), c.rank(y))
	})
}

// rankOf puts what is no address before all addresses.
func rankOf(a netip.Addr) int {
	if a.IsValid() {
		return 1
	}
	return 0
}

// addressOf returns the address in a record, or the zero value.
func addressOf(rr wire.RR) netip.Addr {
	var a netip.Addr
	switch rr := rr.(type) {
	case *wire.A:
		a, _ = netip.AddrFromSlice(rr.A)
	case *wire.AAAA:
		a, _ = netip.AddrFromSlice(rr.AAAA)
	}
	return a.Unmap()
}

// maxOrdered is how many addresses an answer on the packed path has at most.
const maxOrdered = defaultBufsize / 16

// nearestFirst puts n packed address records of the same length in order. The
// address is at the end of each.
func (r *responder) nearestFirst(records []byte, n, size int) {
	if n < 2 || n > maxOrdered || !r.block.nearest || r.clients == nil {
		return
	}
	var ranks [maxOrdered]uint8
	each := len(records) / n
	least, most := uint8(far), uint8(nearNode)
	for i := range n {
		a, _ := netip.AddrFromSlice(records[(i+1)*each-size : (i+1)*each])
		ranks[i] = r.clients.rank(a.Unmap())
		least, most = min(least, ranks[i]), max(most, ranks[i])
	}
	if least >= most {
		return
	}
	at := copy(r.order[:], records)
	moved := r.order[:at]
	at = 0
	for rank := least; rank <= most; rank++ {
		for i := range n {
			if ranks[i] == rank {
				at += copy(records[at:], moved[i*each:(i+1)*each])
			}
		}
	}
}
