package lb

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"nodenet/state"
)

// allowed is what a rule lets through: nothing (empty), anything, or ranges
// of ports, five bytes each (protocol, first, last), sorted and apart from one
// another. Equal ones are equal strings.
type allowed string

const anything allowed = "*"

type portRange struct {
	proto       uint8
	first, last uint16
}

func (a allowed) ranges() []portRange {
	if a == anything {
		return nil
	}
	out := make([]portRange, 0, len(a)/5)
	for b := []byte(a); len(b) >= 5; b = b[5:] {
		out = append(out, portRange{b[0], binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint16(b[3:])})
	}
	return out
}

// allow makes an allowed of ranges in any order; ranges that touch become one.
func allow(rs []portRange) allowed {
	slices.SortFunc(rs, func(a, b portRange) int {
		return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.first, b.first))
	})
	var out []portRange
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].proto == r.proto && int(r.first) <= int(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	var b []byte
	for _, r := range out {
		b = append(b, r.proto)
		b = binary.BigEndian.AppendUint16(b, r.first)
		b = binary.BigEndian.AppendUint16(b, r.last)
	}
	return allowed(b)
}

// allowPorts is what the ports of a rule let through; none: anything.
func allowPorts(ports []state.PolicyPort) allowed {
	if len(ports) == 0 {
		return anything
	}
	var rs []portRange
	for _, p := range ports {
		if n := protoNumber(p.Protocol); n != 0 && p.First <= p.Last {
			rs = append(rs, portRange{n, p.First, p.Last})
		}
	}
	return allow(rs)
}

// and is what either lets through.
func (a allowed) and(b allowed) allowed {
	switch {
	case a == b || b == "":
		return a
	case a == "":
		return b
	case a == anything || b == anything:
		return anything
	}
	return allow(append(a.ranges(), b.ranges()...))
}

// allPorts is the number that anything has in the kernel.
const allPorts = 1

// peerNet is a prefix without some parts, and what comes from it or goes there.
type peerNet struct {
	prefix netip.Prefix
	except []netip.Prefix
	allowed
}

func (n *peerNet) contains(a netip.Addr) bool {
	return n.prefix.Contains(a) && !slices.ContainsFunc(n.except, func(p netip.Prefix) bool { return p.Contains(a) })
}

// stretch is a range of addresses, both ends included.
type stretch struct {
	first, last netip.Addr
	allowed
}

// stretches turns networks that may overlap into ranges that do not, since the
// kernel's sets hold no overlapping ones. Addresses are of one family.
func stretches(nets []peerNet) []stretch {
	var cuts []netip.Addr
	cut := func(p netip.Prefix) {
		cuts = append(cuts, p.Masked().Addr())
		if next := lastAddr(p).Next(); next.IsValid() {
			cuts = append(cuts, next)
		}
	}
	for i := range nets {
		cut(nets[i].prefix)
		for _, x := range nets[i].except {
			cut(x)
		}
	}
	slices.SortFunc(cuts, netip.Addr.Compare)
	cuts = slices.Compact(cuts)
	var out []stretch
	for i, first := range cuts {
		var a allowed
		for j := range nets {
			if nets[j].contains(first) {
				a = a.and(nets[j].allowed)
			}
		}
		if a == "" {
			continue
		}
		last := highest(first)
		if i+1 < len(cuts) {
			last = cuts[i+1].Prev()
		}
		if n := len(out); n > 0 && out[n-1].allowed == a && out[n-1].last.Next() == first {
			out[n-1].last = last
			continue
		}
		out = append(out, stretch{first, last, a})
	}
	return out
}

// highest is the last address of a's family.
func highest(a netip.Addr) netip.Addr { return lastAddr(netip.PrefixFrom(a, 0)) }

// at returns what a list of stretches allows for an address.
func at(ss []stretch, a netip.Addr) allowed {
	i, found := slices.BinarySearchFunc(ss, a, func(s stretch, a netip.Addr) int { return s.first.Compare(a) })
	if !found {
		if i--; i < 0 || ss[i].last.Less(a) {
			return ""
		}
	}
	return ss[i].allowed
}
