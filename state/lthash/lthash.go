// Package lthash hashes a set so that an element can be added or taken away
// without looking at the others.
//
//	{a, b}  ──►  X(a) + X(b)          1024 lanes of 16 bits, each modulo 2^16
//	 + c    ──►  X(a) + X(b) + X(c)   X = SHAKE128 to 2048 bytes
//	 - a    ──►         X(b) + X(c)
//
// This is LtHash16: Bellare and Micciancio, "A new paradigm for collision-free
// hashing" (1997), with the parameters of Lewi, Kim, Maykov and Weis, "Securing
// update propagation with homomorphic hashing" (2019), who put finding two sets
// of one sum above 2^200 operations. The XOR of ordinary hashes would not do:
// linear algebra finds a collision at once.
package lthash

import (
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"
)

const (
	// Size is the length of a Sum in bytes.
	Size  = 2048
	words = Size / 8
	high  = 0x8000_8000_8000_8000 // the top bit of each lane
)

// Sum is the hash of a multiset. The zero Sum is that of the empty one. It is
// not safe for concurrent use while it changes.
type Sum struct {
	w [words]uint64 // four lanes each
}

// AddSum adds the elements of o.
func (s *Sum) AddSum(o *Sum) {
	for i, b := range o.w {
		a := s.w[i]
		// Lanes are added without their top bits, which take no carry along.
		s.w[i] = ((a &^ high) + (b &^ high)) ^ ((a ^ b) & high)
	}
}

// SubSum takes the elements of o away.
func (s *Sum) SubSum(o *Sum) {
	for i, b := range o.w {
		a := s.w[i]
		// The top bit is set so that a lane never borrows from the next.
		s.w[i] = ((a | high) - (b &^ high)) ^ ((a ^ ^b) & high)
	}
}

// Digest returns 32 bytes that stand for the set.
func (s *Sum) Digest() []byte {
	var b [Size]byte
	for i, w := range s.w {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
	d := sha256.Sum256(b[:])
	return d[:]
}

// Hasher turns elements into sums; it holds what is worth using again. The
// zero Hasher is ready. It is not safe for concurrent use.
type Hasher struct {
	shake *sha3.SHAKE
	buf   [Size]byte
	el    Sum
}

// Add adds one element to s.
func (h *Hasher) Add(s *Sum, element []byte) { s.AddSum(h.element(element)) }

// Remove takes one element away from s.
func (h *Hasher) Remove(s *Sum, element []byte) { s.SubSum(h.element(element)) }

func (h *Hasher) element(b []byte) *Sum {
	if h.shake == nil {
		h.shake = sha3.NewSHAKE128()
	}
	h.shake.Reset()
	h.shake.Write(b) // neither fails, see crypto/sha3
	h.shake.Read(h.buf[:])
	for i := range h.el.w {
		h.el.w[i] = binary.LittleEndian.Uint64(h.buf[8*i:])
	}
	return &h.el
}
