package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"slices"
)

// span is a run of addresses of one family, both ends included. Sets of
// addresses are sorted, disjoint []span.
type span struct{ from, to netip.Addr }

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	return span{p.Addr(), lastAddr(p)}
}

// num is an address as a number.
type num struct{ hi, lo uint64 }

func toNum(a netip.Addr) num {
	if a.Is4() {
		b := a.As4()
		return num{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return num{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n num) addr(is4 bool) netip.Addr {
	if is4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

// hostMask has the low n bits set.
func hostMask(n int) num {
	switch {
	case n >= 128:
		return num{math.MaxUint64, math.MaxUint64}
	case n > 64:
		return num{1<<(n-64) - 1, math.MaxUint64}
	case n == 64:
		return num{0, math.MaxUint64}
	}
	return num{0, 1<<n - 1}
}

func (n num) trailingZeros() int {
	if n.lo != 0 {
		return bits.TrailingZeros64(n.lo)
	}
	return 64 + bits.TrailingZeros64(n.hi)
}

// lastAddr returns the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr()
	n, m := toNum(a), hostMask(a.BitLen()-p.Bits())
	return num{n.hi | m.hi, n.lo | m.lo}.addr(a.Is4())
}

// count returns how many addresses a span has, at most MaxUint64.
func (s span) count() uint64 {
	f, t := toNum(s.from), toNum(s.to)
	lo, borrow := bits.Sub64(t.lo, f.lo, 0)
	hi, _ := bits.Sub64(t.hi, f.hi, borrow)
	if hi != 0 || lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return lo + 1
}

// count returns how many addresses a set has, at most MaxUint64.
func count(set []span) uint64 {
	var n uint64
	for _, s := range set {
		n = satAdd(n, s.count())
	}
	return n
}

func satAdd(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return math.MaxUint64
}

// Size returns how many addresses a prefix has, at most MaxUint64.
func Size(p netip.Prefix) uint64 { return spanOf(p).count() }

// Hosts returns how many addresses of a prefix a host may have: all but the
// network and the broadcast address (IPv4 shorter than /31, RFC 3021), or but
// the subnet-router anycast address (IPv6 shorter than /127, RFC 4291 §2.6.1).
func Hosts(p netip.Prefix) uint64 {
	n := Size(p)
	if !hasNetworkAddr(p) {
		return n
	}
	if p.Addr().Is4() {
		return n - 2
	}
	return n - 1
}

// hasNetworkAddr reports whether the first address of p is not a host's.
func hasNetworkAddr(p netip.Prefix) bool { return p.Bits() < p.Addr().BitLen()-1 }

// normal returns the set that holds what any of the spans holds.
func normal(set []span) []span {
	if len(set) < 2 {
		return set
	}
	slices.SortFunc(set, func(a, b span) int { return a.from.Compare(b.from) })
	out := set[:1]
	for _, s := range set[1:] {
		last := &out[len(out)-1]
		next := last.to.Next()
		if next.IsValid() && s.from.Compare(next) <= 0 && s.from.Is4() == last.to.Is4() {
			if s.to.Compare(last.to) > 0 {
				last.to = s.to
			}
			continue
		}
		if !next.IsValid() && s.from.Is4() == last.to.Is4() {
			continue // last.to is the end of the address space
		}
		out = append(out, s)
	}
	return out
}

// subtract returns a without b. Both are sets.
func subtract(a, b []span) []span {
	var out []span
	j := 0
	for _, s := range a {
		for j > 0 && b[j-1].to.Compare(s.from) >= 0 {
			j--
		}
		for j < len(b) && b[j].to.Compare(s.from) < 0 {
			j++
		}
		whole := true
		for k := j; k < len(b) && b[k].from.Compare(s.to) <= 0; k++ {
			if b[k].from.Compare(s.from) > 0 {
				out = append(out, span{s.from, b[k].from.Prev()})
			}
			if b[k].to.Compare(s.to) >= 0 {
				whole = false
				break
			}
			s.from = b[k].to.Next()
		}
		if whole {
			out = append(out, s)
		}
	}
	return out
}

// intersect returns what both sets hold.
func intersect(a, b []span) []span { return subtract(a, subtract(a, b)) }

// covers reports whether a set holds all of s.
func covers(set []span, s span) bool {
	i, found := slices.BinarySearchFunc(set, s.from, func(e span, a netip.Addr) int { return e.from.Compare(a) })
	if !found {
		i--
	}
	return i >= 0 && set[i].from.Compare(s.from) <= 0 && set[i].to.Compare(s.to) >= 0
}

// prefixes returns the fewest aligned prefixes that make up a set, in order.
// Every aligned prefix that lies within the set lies within one of them.
func prefixes(set []span) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range set {
		for from := s.from; from.IsValid() && from.Compare(s.to) <= 0; {
			host := min(toNum(from).trailingZeros(), from.BitLen())
			p := netip.PrefixFrom(from, from.BitLen()-host)
			for lastAddr(p).Compare(s.to) > 0 {
				p = netip.PrefixFrom(from, p.Bits()+1)
			}
			out = append(out, p)
			from = lastAddr(p).Next()
		}
	}
	return out
}

// units returns how many prefixes of the given length p holds.
func units(p netip.Prefix, bits int) uint64 {
	switch d := bits - p.Bits(); {
	case d < 0:
		return 0
	case d >= 64:
		return math.MaxUint64
	default:
		return 1 << d
	}
}

// halves returns the two halves of a prefix.
func halves(p netip.Prefix) (lower, upper netip.Prefix) {
	lower = netip.PrefixFrom(p.Masked().Addr(), p.Bits()+1)
	return lower, netip.PrefixFrom(lastAddr(lower).Next(), p.Bits()+1)
}

// SpanText writes a run of addresses, both ends included, as a prefix where it
// is one.
func SpanText(from, to netip.Addr) string { return span{from, to}.String() }

// Last returns the highest address of a prefix.
func Last(p netip.Prefix) netip.Addr { return lastAddr(p) }
