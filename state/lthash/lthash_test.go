package lthash

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// lanes is the plain form of a sum.
func lanes(s *Sum) (out [Size / 2]uint16) {
	for i, w := range s.w {
		for k := range 4 {
			out[4*i+k] = uint16(w >> (16 * k))
		}
	}
	return out
}

// TestLanesAreIndependent compares four lanes at a time with one at a time.
func TestLanesAreIndependent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	edge := []uint16{0, 1, 0x7fff, 0x8000, 0x8001, 0xffff}
	word := func() uint64 {
		var b [8]byte
		for k := range 4 {
			v := uint16(r.Uint32())
			if r.IntN(2) == 0 {
				v = edge[r.IntN(len(edge))]
			}
			binary.LittleEndian.PutUint16(b[2*k:], v)
		}
		return binary.LittleEndian.Uint64(b[:])
	}
	for range 200 {
		var a, b Sum
		for i := range a.w {
			a.w[i], b.w[i] = word(), word()
		}
		sum, diff := a, a
		sum.AddSum(&b)
		diff.SubSum(&b)
		la, lb, ls, ld := lanes(&a), lanes(&b), lanes(&sum), lanes(&diff)
		for i := range la {
			if ls[i] != la[i]+lb[i] || ld[i] != la[i]-lb[i] {
				t.Fatalf("lane %d: %04x and %04x: sum %04x, difference %04x", i, la[i], lb[i], ls[i], ld[i])
			}
		}
	}
}

// TestOrderDoesNotCount: whatever was added and taken away, in whatever order,
// the sum is that of what is left.
func TestOrderDoesNotCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		left := map[string]bool{}
		var s, want Sum
		var h Hasher
		for _, k := range rapid.SliceOf(rapid.StringMatching("[a-e]{1,2}")).Draw(t, "toggled") {
			if left[k] {
				h.Remove(&s, []byte(k))
			} else {
				h.Add(&s, []byte(k))
			}
			left[k] = !left[k]
		}
		for k, in := range left {
			if in {
				h.Add(&want, []byte(k))
			}
		}
		if s != want || !bytes.Equal(s.Digest(), want.Digest()) {
			t.Fatalf("the sum of %v depends on how it came about", left)
		}
	})
}

// TestDigestIsPinned: nodes of different versions must compute the same. The
// values come from another implementation (Python's hashlib, lane by lane).
func TestDigestIsPinned(t *testing.T) {
	var s Sum
	var h Hasher
	for i, want := range []string{
		"e5a00aa9991ac8a5ee3109844d84a55583bd20572ad3ffcd42792f3c36b183ad",
		"982722ef67c17b9a864a74da457a3c3498ce0f8b7d200952e47f9621e8bf725b",
		"67e23dc6d1c9711de10f48ef85b95640175eda7e848f3d802b104fd843ec1b39",
	} {
		if got := hex.EncodeToString(s.Digest()); got != want {
			t.Errorf("digest of %d elements: %s, want %s", i, got, want)
		}
		h.Add(&s, fmt.Appendf(nil, "element %d", i))
	}
}

func BenchmarkAdd(b *testing.B) {
	var s Sum
	var h Hasher
	el := make([]byte, 300)
	for b.Loop() {
		h.Add(&s, el)
	}
}
