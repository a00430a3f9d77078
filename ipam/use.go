package ipam

import (
	"net/netip"
	"time"

	"nodenet/state"
)

// Use is how full one node's part of a network is.
type Use struct {
	Blocks []netip.Prefix // opened, in address order; on a Local network the whole prefix
	Used   uint64         // addresses in Blocks with an endpoint or a live lease
	Total  uint64         // addresses in Blocks that workloads can have
	// Of the ring, in blocks. All zero on a Local network.
	Owned, Spare, Ring uint64
	Contested          []Part // parts of the ring that several nodes claim
	Foreign            []string
}

// GroupUse counts what a node has and uses of a network.
func GroupUse(sn *state.Snapshot, node state.NodeID, ringID string, n state.Network, now time.Time) (Use, error) {
	a := new(Allocator)
	s, err := a.scope(sn, node, Request{Network: n, RingID: ringID, Now: now})
	if err != nil {
		return Use{}, err
	}
	u := Use{Blocks: s.blocks}
	for _, b := range s.blocks {
		u.Total = satAdd(u.Total, s.usable(b))
	}
	if s.t != nil {
		seen := map[netip.Addr]bool{}
		note := func(a netip.Addr) {
			if _, ok := s.block(a); ok {
				seen[a] = true
			}
		}
		for a := range s.t.own {
			note(a)
		}
		if !n.Local() {
			for a := range s.t.others {
				note(a)
			}
		}
		for a, l := range s.t.leases {
			if s.leased(l) != "" {
				note(a)
			}
		}
		u.Used = uint64(len(seen))
	}
	if n.Local() {
		return u, nil
	}
	ring := Resolve(sn, n.Name, ringID)
	bits := BlockBits(n)
	for _, p := range ring.Owned(node) {
		u.Owned = satAdd(u.Owned, units(p, bits))
	}
	for _, p := range Spare(sn, ring, node, NetworkSpec(n)) {
		u.Spare = satAdd(u.Spare, units(p, bits))
	}
	u.Ring = units(n.Prefix, bits)
	u.Contested, u.Foreign = ring.Contested(), ring.Foreign
	return u, nil
}
