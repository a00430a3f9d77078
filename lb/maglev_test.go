package lb

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// genWeighted draws backends of 10.0.0.0/24 with weights up to most.
func genWeighted(t *rapid.T, n, most int) []weighted {
	var out []weighted
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(1, 250), 1, n, rapid.ID).Draw(t, "backends") {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 8080)
		out = append(out, weighted{to, rapid.IntRange(1, most).Draw(t, "weight")})
	}
	return out
}

func counts(slots []netip.AddrPort) map[netip.AddrPort]int {
	n := make(map[netip.AddrPort]int)
	for _, b := range slots {
		n[b]++
	}
	return n
}

// TestMaglev: the table is full, the same whatever the order of the list, each
// backend has its share but for two slots, and without one of ten backends or
// more the others keep all but few of their slots.
func TestMaglev(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, 1, 5}).Draw(t, "most")
		list := genWeighted(t, 40, most)
		sum := 0
		for _, b := range list {
			sum += b.weight
		}
		size := maglevSize(len(list), sum)
		table := maglev(list, size)
		if len(table) != size || slices.ContainsFunc(table, func(b netip.AddrPort) bool { return !b.IsValid() }) {
			t.Fatalf("%d slots, want %d and none empty", len(table), size)
		}
		if !slices.Equal(table, maglev(rapid.Permutation(list).Draw(t, "order"), size)) {
			t.Fatal("the order of backends matters")
		}
		n := counts(table)
		for _, b := range list {
			want := float64(b.weight) * float64(size) / float64(sum)
			if got := float64(n[b.to]); got < want-2 || got > want+2 {
				t.Fatalf("%s with weight %d of %d has %v of %d slots, want %.1f", b.to, b.weight, sum, got, size, want)
			}
		}
		if len(list) < 10 {
			return
		}
		gone := list[0].to
		moved := 0
		for i, b := range maglev(list[1:], size) {
			if table[i] != gone && table[i] != b {
				moved++
			}
		}
		if moved > size/4 {
			t.Fatalf("%d of %d slots moved between the %d backends that stay", moved, size, len(list)-1)
		}
	})
}

// TestMaglevIsFixed: what the table is may never change, or nodes of two
// versions would disagree.
func TestMaglevIsFixed(t *testing.T) {
	h := uint64(1)
	for _, b := range maglev([]weighted{{ap("10.0.0.1:80"), 1}, {ap("10.0.0.2:80"), 2}, {ap("[2001:db8::1]:80"), 1}}, maglevSmall) {
		h = mix(h ^ identity(b))
	}
	if want := uint64(0xeef3d663cdf1ddcc); h != want {
		t.Errorf("the table's hash is %#x, want %#x", h, want)
	}
}

// TestJhash: what lookup3.c by Bob Jenkins gives for hashword of nothing and
// that clients of one network are spread. That it is the kernel's function is
// shown by real packets.
func TestJhash(t *testing.T) {
	if got := jhash(nil, 0); got != 0xdeadbeef {
		t.Errorf("of nothing %#x, want 0xdeadbeef", got)
	}
	seen := make(map[uint32]bool)
	for i := range 256 {
		word := binary.NativeEndian.Uint32([]byte{10, 244, 0, byte(i)})
		seen[scale(jhash([]uint32{word}, maglevSeed), 1021)] = true
	}
	if len(seen) < 200 {
		t.Errorf("256 clients share %d slots", len(seen))
	}
}

// TestSpread: each backend has slots in proportion to its weight, exactly
// where MaxSlots allow it, and a change of one weight changes few.
func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := genWeighted(t, 30, rapid.SampledFrom([]int{1, 4, 256}).Draw(t, "most"))
		sum := 0
		for _, b := range list {
			sum += b.weight
		}
		slots, _ := spread(slices.Clone(list))
		if len(slots) > MaxSlots {
			t.Fatalf("%d slots", len(slots))
		}
		n := counts(slots)
		for _, b := range list {
			want := float64(b.weight) * float64(len(slots)) / float64(sum)
			got := float64(n[b.to])
			if got < 1 || sum <= MaxSlots && got != want || got > max(want+1, 1) || got < want-1-float64(len(list))/4 {
				t.Fatalf("%s with weight %d of %d has %v of %d slots, want %.2f", b.to, b.weight, sum, got, len(slots), want)
			}
		}
		if len(slots) < MaxSlots || len(list) < 2 {
			return
		}
		changed := slices.Clone(list)
		changed[0].weight = min(256, changed[0].weight+max(1, changed[0].weight/100))
		again, _ := spread(changed)
		now := counts(again)
		moved := 0
		for _, b := range list {
			moved += max(0, now[b.to]-n[b.to])
		}
		if len(again) == MaxSlots && moved > 1+len(list) {
			t.Fatalf("%d slots moved for one hundredth of a weight", moved)
		}
	})
}

func TestSpreadSays(t *testing.T) {
	a, b, c := ap("10.0.0.1:80"), ap("10.0.0.2:80"), ap("10.0.0.3:80")
	tests := map[string]struct {
		list    []weighted
		slots   []int
		rounded string
	}{
		"equal":             {[]weighted{{a, 256}, {b, 256}}, []int{1, 1}, ""},
		"canary":            {[]weighted{{a, 99}, {b, 1}}, []int{99, 1}, ""},
		"common divisor":    {[]weighted{{a, 20}, {b, 10}, {c, 30}}, []int{2, 1, 3}, ""},
		"near enough":       {[]weighted{{a, 250}, {b, 125}, {c, 101}}, []int{135, 67, 54}, ""},
		"too small a share": {[]weighted{{a, 256}, {b, 256}, {c, 1}}, []int{128, 127, 1}, "10.0.0.3:80 gets 1 of 256 slots instead of 0.5"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			slots, rounded := spread(slices.Clone(tt.list))
			n := counts(slots)
			for i, b := range tt.list {
				if n[b.to] != tt.slots[i] {
					t.Errorf("%s has %d slots, want %d", b.to, n[b.to], tt.slots[i])
				}
			}
			if rounded != tt.rounded {
				t.Errorf("rounded %q, want %q", rounded, tt.rounded)
			}
		})
	}
}
