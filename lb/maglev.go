package lb

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Sizes of consistent tables: primes, so that every step visits all slots. The
// small one serves few backends, at a quarter of the elements.
const (
	maglevSmall = 251
	maglevLarge = 1021
)

// maglevSize is how many slots a service's table has. It depends on what the
// cluster knows of the service only, so that all nodes choose alike: count is
// the number of its backends, ready or not, and weight the sum of their weights
// after reduction.
func maglevSize(count, weight int) int {
	if count > 20 || weight > maglevSmall {
		return maglevLarge
	}
	return maglevSmall
}

// maglev fills a table of size slots, a prime, with backends in proportion to
// their weights, so that every node with the same list has the same table, and
// that a backend which comes or goes moves few of the others' slots. (Eisenbud
// et al., Maglev, NSDI 2016, §3.4; weights as credit for a turn.) The order of
// the list does not matter.
func maglev(list []weighted, size int) []netip.AddrPort {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b weighted) int { return a.to.Compare(b.to) })
	most := slices.MaxFunc(list, func(a, b weighted) int { return cmp.Compare(a.weight, b.weight) }).weight
	type turn struct{ next, skip, credit int }
	turns := make([]turn, len(list))
	for i := range list {
		h := identity(list[i].to)
		turns[i] = turn{next: int(h % uint64(size)), skip: 1 + int(mix(h)%uint64(size-1))}
	}
	out := make([]netip.AddrPort, size)
	for filled := 0; ; {
		for i := range turns {
			t := &turns[i]
			if t.credit += list[i].weight; t.credit < most {
				continue
			}
			t.credit -= most
			for out[t.next].IsValid() {
				t.next = (t.next + t.skip) % size
			}
			out[t.next] = list[i].to
			if filled++; filled == size {
				return out
			}
		}
	}
}

// identity is a hash of a backend that is the same on every node and in every
// version: FNV-1a of its address and port, mixed.
func identity(b netip.AddrPort) uint64 {
	h := uint64(0xcbf29ce484222325)
	a := b.Addr().As16()
	for _, c := range append(a[:], byte(b.Port()>>8), byte(b.Port())) {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return mix(h)
}

// mix spreads the bits of a number (the finalizer of SplitMix64).
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// jhash is the kernel's hash of whole words (include/linux/jhash.h, jhash2; Bob
// Jenkins, lookup3), by which rules choose a slot for a client's address.
func jhash(words []uint32, seed uint32) uint32 {
	n := uint32(len(words))
	a := 0xdeadbeef + n<<2 + seed
	b, c := a, a
	for ; len(words) > 3; words = words[3:] {
		a, b, c = a+words[0], b+words[1], c+words[2]
		a = (a - c) ^ rol(c, 4)
		c += b
		b = (b - a) ^ rol(a, 6)
		a += c
		c = (c - b) ^ rol(b, 8)
		b += a
		a = (a - c) ^ rol(c, 16)
		c += b
		b = (b - a) ^ rol(a, 19)
		a += c
		c = (c - b) ^ rol(b, 4)
		b += a
	}
	switch len(words) {
	case 3:
		c += words[2]
		fallthrough
	case 2:
		b += words[1]
		fallthrough
	case 1:
		a += words[0]
		c = (c ^ b) - rol(b, 14)
		a = (a ^ c) - rol(c, 11)
		b = (b ^ a) - rol(a, 25)
		c = (c ^ b) - rol(b, 16)
		a = (a ^ c) - rol(c, 4)
		b = (b ^ a) - rol(a, 14)
		c = (c ^ b) - rol(b, 24)
	}
	return c
}

func rol(x uint32, n int) uint32 { return x<<n | x>>(32-n) }

// hashAddr is the hash that rules make of a client's address.
func hashAddr(a netip.Addr) uint32 {
	var words []uint32
	for b := a.AsSlice(); len(b) > 0; b = b[4:] {
		words = append(words, binary.NativeEndian.Uint32(b))
	}
	return jhash(words, maglevSeed)
}

// scale maps a hash to 0 … n−1 as the kernel does (reciprocal_scale).
func scale(h, n uint32) uint32 { return uint32(uint64(h) * uint64(n) >> 32) }

// maglevSeed is the seed of the rules' hash of a client's address. It is fixed:
// all nodes must find the same slot.
const maglevSeed = 0x6e6f6465
