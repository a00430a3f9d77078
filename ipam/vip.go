package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// portRing is the whole of the node-port ring: port p is 0.0.(p>>8).(p&255).
var portRing = netip.MustParsePrefix("0.0.0.0/16")

// PortAddr returns the address that stands for a node port in its ring.
func PortAddr(p uint16) netip.Addr { return netip.AddrFrom4([4]byte{0, 0, byte(p >> 8), byte(p)}) }

// AddrPort returns the node port that an address of the ring stands for.
func AddrPort(a netip.Addr) uint16 {
	b := a.As4()
	return uint16(b[2])<<8 | uint16(b[3])
}

// AllocateVIP picks an address for a service: want where it is valid, or else
// the first free one of our own part of the range, from the one after the
// highest reserved address on and then from the start. Reserved addresses
// (the resolver), the first and, in IPv4, the last one are never given out.
// The caller records the pick (a state.VIP) in the same Write.
//
// Errors: ErrInUse, ErrNotOurs, ErrNoRing, ErrNeedSpace (NeedSpaceError.Want
// names a wanted address that another node might still give us).
func AllocateVIP(sn *state.Snapshot, self state.NodeID, ringID string, prefix netip.Prefix, reserved []netip.Addr, want netip.Addr) (netip.Addr, error) {
	ring := Resolve(sn, state.RingServices, ringID)
	if ring == nil {
		return netip.Addr{}, fmt.Errorf("allocate VIP: %w", ErrNoRing)
	}
	used := usedVIPs(sn)
	prefix = prefix.Masked()
	why := func(a netip.Addr) string {
		switch {
		case slices.Contains(reserved, a):
			return "reserved"
		case hasNetworkAddr(prefix) && a == prefix.Addr():
			return "the range's first address"
		case hasNetworkAddr(prefix) && a.Is4() && a == lastAddr(prefix):
			return "the range's last address"
		case used[a] != "":
			return "service " + used[a]
		}
		return ""
	}
	if want.IsValid() {
		switch {
		case !prefix.Contains(want):
			return netip.Addr{}, fmt.Errorf("allocate VIP %s: outside of %s: %w", want, prefix, ErrNotOurs)
		case why(want) != "":
			return netip.Addr{}, fmt.Errorf("allocate VIP %s: held: %s: %w", want, why(want), ErrInUse)
		case ring.Owner(want) != self:
			return netip.Addr{}, fmt.Errorf("allocate VIP %s: %w", want, &NeedSpaceError{Ring: state.RingServices, Want: netip.PrefixFrom(want, want.BitLen())})
		}
		if until, ok := ring.resting(span{want, want}, time.Now()); ok {
			return netip.Addr{}, fmt.Errorf("allocate VIP %s: %w", want, restError(until))
		}
		return want, nil
	}
	start := prefix.Addr()
	for _, a := range reserved {
		if prefix.Contains(a) && a.Compare(start) >= 0 {
			start = a.Next()
		}
	}
	a, ok := pick(intersect(ring.usable(self, time.Now()), []span{spanOf(prefix)}), start, func(a netip.Addr) bool { return why(a) == "" })
	if !ok {
		return netip.Addr{}, fmt.Errorf("allocate VIP: %w", &NeedSpaceError{Ring: state.RingServices})
	}
	return a, nil
}

// AllocateNodePort picks a node port between first and last, both included:
// want unless it is zero, or else the lowest free one that is ours. taken
// names ports picked before in the same Write, whose records the snapshot
// does not hold yet. The caller records the pick. Errors as for AllocateVIP.
func AllocateNodePort(sn *state.Snapshot, self state.NodeID, ringID string, first, last, want uint16, taken ...uint16) (uint16, error) {
	ring := Resolve(sn, state.RingNodePorts, ringID)
	if ring == nil {
		return 0, fmt.Errorf("allocate node port: %w", ErrNoRing)
	}
	used := usedNodePorts(sn)
	for _, p := range taken {
		used[p] = "this request"
	}
	if want != 0 {
		switch {
		case want < first || want > last:
			return 0, fmt.Errorf("allocate node port %d: outside of %d-%d: %w", want, first, last, ErrNotOurs)
		case used[want] != "":
			return 0, fmt.Errorf("allocate node port %d: held: service %s: %w", want, used[want], ErrInUse)
		case ring.Owner(PortAddr(want)) != self:
			return 0, fmt.Errorf("allocate node port %d: %w", want, &NeedSpaceError{Ring: state.RingNodePorts, Want: netip.PrefixFrom(PortAddr(want), 32)})
		}
		if until, ok := ring.resting(span{PortAddr(want), PortAddr(want)}, time.Now()); ok {
			return 0, fmt.Errorf("allocate node port %d: %w", want, restError(until))
		}
		return want, nil
	}
	if first > last {
		return 0, fmt.Errorf("allocate node port: range %d-%d is empty: %w", first, last, ErrExhausted)
	}
	set := intersect(ring.usable(self, time.Now()), []span{{PortAddr(first), PortAddr(last)}})
	a, ok := pick(set, PortAddr(first), func(a netip.Addr) bool { return used[AddrPort(a)] == "" })
	if !ok {
		return 0, fmt.Errorf("allocate node port: %w", &NeedSpaceError{Ring: state.RingNodePorts})
	}
	return AddrPort(a), nil
}

// pick returns the first address of a set that is free, from start on and then
// from the beginning.
func pick(set []span, start netip.Addr, free func(netip.Addr) bool) (netip.Addr, bool) {
	for _, wrapped := range []bool{false, true} {
		for _, s := range set {
			from, to := s.from, s.to
			switch {
			case !wrapped && from.Compare(start) < 0:
				from = start
			case wrapped && from.Compare(start) >= 0:
				continue
			case wrapped && to.Compare(start) >= 0:
				to = start.Prev()
			}
			for a := from; a.IsValid() && a.Compare(to) <= 0; a = a.Next() {
				if free(a) {
					return a, true
				}
			}
		}
	}
	return netip.Addr{}, false
}

// usedVIPs returns who holds which VIP: given in a service or allocated. One
// whose IPv6 address a service names is held too: it has the same offset.
func usedVIPs(sn *state.Snapshot) map[netip.Addr]string {
	used := map[netip.Addr]string{}
	v4, v6 := sn.ServiceRanges()
	for _, s := range state.All[state.Service](sn) {
		for _, a := range []netip.Addr{s.VIP, state.Untwin(v4, v6, s.VIP6)} {
			if a.IsValid() {
				used[a] = s.Key()
			}
		}
	}
	for rec, v := range state.All[state.VIP](sn) {
		if v.Addr.IsValid() {
			used[v.Addr] = rec.ID.Key
		}
	}
	return used
}

// usedNodePorts returns who holds which node port, of either protocol.
func usedNodePorts(sn *state.Snapshot) map[uint16]string {
	used := map[uint16]string{}
	for _, s := range state.All[state.Service](sn) {
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				used[p.NodePort] = s.Key()
			}
		}
	}
	for rec, v := range state.All[state.VIP](sn) {
		for _, p := range v.NodePorts {
			used[p] = rec.ID.Key
		}
	}
	return used
}
