package state

import "net/netip"

// A network or a service range may have an IPv6 prefix beside its IPv4 one.
// Nothing is allocated there: an address of the one stands for the address of
// the other with the same offset, its twin. So what has an IPv4 address of its
// own has an IPv6 address of its own, without a second ring or a second claim.
//
//	10.244.0.0/16   10.244.3.7     block 10.244.3.0/24
//	fd00:10:244::/112  fd00:10:244::307  block fd00:10:244::300/120

// Twin returns the address of prefix in6 that has the offset of a in prefix
// in. It is invalid when a is not in there, or in6 has no room for the offset.
func Twin(in, in6 netip.Prefix, a netip.Addr) netip.Addr {
	if !in.IsValid() || !in6.IsValid() || !a.Is4() || !in.Contains(a) || !TwinFits(in, in6) {
		return netip.Addr{}
	}
	base, b, out := in.Masked().Addr().As4(), a.As4(), in6.Masked().Addr().As16()
	for i := range b {
		out[12+i] |= b[i] &^ base[i]
	}
	return netip.AddrFrom16(out)
}

// Untwin is the other way round: the address of prefix in whose twin in in6 is
// a. It is invalid when there is none.
func Untwin(in, in6 netip.Prefix, a netip.Addr) netip.Addr {
	if !in.IsValid() || !in6.IsValid() || !a.IsValid() || !in6.Contains(a) {
		return netip.Addr{}
	}
	base, low := in.Masked().Addr().As4(), a.As16()
	for i := range base {
		base[i] |= low[12+i]
	}
	if b := netip.AddrFrom4(base); Twin(in, in6, b) == a {
		return b
	}
	return netip.Addr{}
}

// TwinFits reports whether an IPv6 prefix has room for the twin of each
// address of an IPv4 one.
func TwinFits(in, in6 netip.Prefix) bool { return 128-in6.Bits() >= 32-in.Bits() }

// TwinPrefix returns the twins of the addresses of p, a part of in, as one
// prefix; it is invalid when there are none.
func TwinPrefix(in, in6, p netip.Prefix) netip.Prefix {
	a := Twin(in, in6, p.Masked().Addr())
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, 128-(32-p.Bits()))
}

// Twin returns the IPv6 address that belongs to an address of the network;
// invalid: none.
func (n *Network) Twin(a netip.Addr) netip.Addr { return Twin(n.Prefix, n.Prefix6, a) }

// TwinPrefix returns the IPv6 part of the network that belongs to one of its
// blocks; invalid: none.
func (n *Network) TwinPrefix(p netip.Prefix) netip.Prefix { return TwinPrefix(n.Prefix, n.Prefix6, p) }

// Dual returns prefixes with those of their twins that there are, IPv4 first.
func (n *Network) Dual(own []netip.Prefix) []netip.Prefix {
	out := append([]netip.Prefix(nil), own...)
	for _, p := range own {
		if p6 := n.TwinPrefix(p); p6.IsValid() {
			out = append(out, p6)
		}
	}
	return out
}
