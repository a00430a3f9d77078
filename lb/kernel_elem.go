package lb

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// toKernel encodes elements. A single-key interval is two elements: its start
// and, marked, the first key beyond; a concatenated one carries both ends.
func toKernel(s *Set, elems []Elem) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(elems))
	for _, e := range elems {
		ne := nftables.SetElement{Key: []byte(e.Key)}
		if len(s.Key) == 1 && s.Key[0] == KindProto {
			ne.Key = ne.Key[:1] // padded in concatenations only
		}
		switch {
		case s.Interval && len(s.Key) > 1:
			ne.KeyEnd = []byte(e.End)
			if len(s.Val) > 0 {
				ne.Val = []byte(e.Val)
			}
		case s.Interval && e.End == "":
			ne.IntervalOpen = true
		case s.Interval:
			out = append(out, ne, nftables.SetElement{Key: []byte(e.End), IntervalEnd: true})
			continue
		case len(s.Val) == 1 && s.Val[0] == KindVerdict:
			ne.VerdictData = gotoChain(e.Val)
		case len(s.Val) > 0:
			ne.Val = []byte(e.Val)
			if s.Val[0] == KindEther {
				ne.Val = ne.Val[:6]
			}
		}
		out = append(out, ne)
	}
	return out
}

// fromKernel is the inverse of toKernel; what it cannot express comes out as
// an element that no desired set has, and so gets deleted.
func fromKernel(s *nftables.Set, els []nftables.SetElement) []Elem {
	out := make([]Elem, 0, len(els))
	single := s.Interval && (s.KeyType.GetNFTMagic() == nftables.TypeIPAddr.GetNFTMagic() || s.KeyType.GetNFTMagic() == nftables.TypeIP6Addr.GetNFTMagic())
	if single {
		slices.SortFunc(els, func(a, b nftables.SetElement) int {
			if c := strings.Compare(string(a.Key), string(b.Key)); c != 0 {
				return c
			}
			if a.IntervalEnd == b.IntervalEnd {
				return 0
			}
			if a.IntervalEnd { // the end of one range before the start of the next
				return -1
			}
			return 1
		})
	}
	for _, e := range els {
		if single {
			if !e.IntervalEnd {
				out = append(out, Elem{Key: string(e.Key)})
			} else if n := len(out); n > 0 && out[n-1].End == "" {
				out[n-1].End = string(e.Key)
			}
			continue
		}
		o := Elem{Key: pad(e.Key), End: string(e.KeyEnd), Val: pad(e.Val)}
		if s.DataType.GetNFTMagic() == nftables.TypeVerdict.GetNFTMagic() {
			o.Val = chainOf(e.Val)
		}
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b Elem) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func pad(b []byte) string {
	return string(b) + "\x00\x00\x00"[:(4-len(b)%4)%4]
}

// chainOf finds the chain's name in the netlink attributes of a verdict.
func chainOf(b []byte) string {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED == unix.NFTA_VERDICT_CHAIN {
			return strings.TrimRight(string(b[4:n]), "\x00")
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return ""
}
