package ipam

import (
	"fmt"
	"net/netip"

	"nodenet/state"
)

// First returns the op that opens this node's first block of a network, so
// that its route is everywhere before the first workload starts, or nothing
// when a block is open. A pinned network's first block is Ahead's business.
//
// Errors: ErrNeedSpace, ErrNoRing.
func (a *Allocator) First(sn *state.Snapshot, self state.NodeID, ringID string, n state.Network) ([]state.Op, error) {
	if n.Local() || n.Pin.IsValid() {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.scope(sn, self, Request{Network: n, RingID: ringID})
	if err != nil {
		return nil, fmt.Errorf("open a block of %s: %w", title(n.Name), err)
	}
	if len(s.blocks) > 0 {
		return nil, nil
	}
	p, _, err := s.next()
	if err != nil {
		return nil, fmt.Errorf("open a block of %s: %w", title(n.Name), err)
	}
	return []state.Op{s.openOp(p)}, nil
}

// Outside returns the parts of a prefix before start and after end, as a
// network's Exclude wants them for a configuration that gives a range. An
// invalid start or end bounds nothing.
func Outside(p netip.Prefix, start, end netip.Addr) []netip.Prefix {
	whole := spanOf(p.Masked())
	in := whole
	if start.IsValid() && p.Contains(start) {
		in.from = start
	}
	if end.IsValid() && p.Contains(end) {
		in.to = end
	}
	return prefixes(subtract([]span{whole}, []span{in}))
}
