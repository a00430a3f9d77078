package lb

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Ruleset is everything of ours in nftables: what Table.Ruleset gives, what
// the kernel is compared with, and what Trace walks. It prints itself as nft
// text that `nft -f` accepts;
// chain learn asks for nft newer than 1.0.6, which lists it all the same.
type Ruleset struct {
	Tables []TableSpec
	// Addrs are the node's own addresses, for Trace; they are not programmed.
	Addrs []netip.Addr

	routes []Bridge // for Trace
}

// TableSpec is one nftables table.
type TableSpec struct {
	Family string // "inet" or "bridge"
	Name   string
	Sets   []Set
	Chains []Chain
}

// Set is a set or, when Val is not empty, a map.
type Set struct {
	Name     string
	Decl     string // its nft declaration: `type …` or `typeof …`
	Key, Val []Kind
	Interval bool
	// Learned is how many elements the rules may add by themselves, with a time
	// after which they go; 0: none. They are nobody's to compare or delete.
	Learned int
	Elems   []Elem // sorted by Key
}

// Chain is a chain; Type is empty unless it is a base chain.
type Chain struct {
	Name     string
	Type     string // "nat", "filter"
	Hook     string
	Priority int
	Rules    []Rule
}

// Elem is an element of a set in the layout of the kernel's registers: each
// part padded to four bytes, addresses and ports in network order, slots and
// classes in host order.
type Elem struct {
	Key string
	// End of an interval: for a single key the first key beyond (empty: none
	// beyond), for a concatenation the last key of the range.
	End string
	Val string // empty in a set; the chain's name in a verdict map
}

// Kind is the type of one part of a key or a value.
type Kind uint8

const (
	KindAddr Kind = iota + 1 // IPv4
	KindAddr6
	KindProto
	KindPort
	KindSlot
	KindClass
	KindIfname
	KindEther
	KindVerdict
)

// size is the part's length in registers, in bytes.
func (k Kind) size() int {
	switch k {
	case KindIfname, KindAddr6:
		return 16
	case KindEther:
		return 8
	}
	return 4
}

// addrKind is the kind of an address of a version.
func addrKind(v Version) Kind { return [...]Kind{V4: KindAddr, V6: KindAddr6}[v] }

// readAddr is the address in a part of kind KindAddr or KindAddr6.
func readAddr(part string) netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(part))
	return a
}

// readAddrPort is what keyAddrPort wrote; of something else it is invalid.
func readAddrPort(v string) netip.AddrPort {
	n := len(v) - KindPort.size()
	if n < 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(readAddr(v[:n]), readPort(v[n:]))
}

func readPort(part string) uint16 { return uint16(part[0])<<8 | uint16(part[1]) }

// key builds the register layout of a key or a value.
type key []byte

func (k key) addr(a netip.Addr) key {
	if a.Is6() {
		b := a.As16()
		return append(k, b[:]...)
	}
	b := a.As4()
	return append(k, b[:]...)
}
func (k key) proto(p uint8) key   { return append(k, p, 0, 0, 0) }
func (k key) port(p uint16) key   { return append(k, byte(p>>8), byte(p), 0, 0) }
func (k key) host(n uint32) key   { return binary.NativeEndian.AppendUint32(k, n) }
func (k key) ether(m [6]byte) key { return append(append(k, m[:]...), 0, 0) }
func (k key) ifname(n string) key {
	var b [16]byte
	copy(b[:15], n)
	return append(k, b[:]...)
}

func keyTarget(t Target) key { return key(nil).addr(t.Addr).proto(t.Proto).port(t.Port) }

func keyAddrPort(ap netip.AddrPort) string {
	return string(key(nil).addr(ap.Addr()).port(ap.Port()))
}

// format prints the parts of a key or value.
func format(kinds []Kind, b string) string {
	var parts []string
	for _, k := range kinds {
		if k == KindVerdict {
			parts = append(parts, "goto "+b)
			break
		}
		if len(b) < k.size() {
			parts = append(parts, "?")
			break
		}
		p := b[:k.size()]
		b = b[k.size():]
		switch k {
		case KindAddr, KindAddr6:
			parts = append(parts, readAddr(p).String())
		case KindProto:
			parts = append(parts, protoName(p[0]))
		case KindPort:
			parts = append(parts, fmt.Sprint(readPort(p)))
		case KindSlot:
			parts = append(parts, fmt.Sprint(binary.NativeEndian.Uint32([]byte(p))))
		case KindClass:
			n := binary.NativeEndian.Uint32([]byte(p))
			parts = append(parts, fmt.Sprintf("%x:%x", n>>16, n&0xffff))
		case KindIfname:
			parts = append(parts, fmt.Sprintf("%q", strings.TrimRight(p, "\x00")))
		case KindEther:
			parts = append(parts, fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", p[0], p[1], p[2], p[3], p[4], p[5]))
		}
	}
	return strings.Join(parts, " . ")
}

// text prints an element as nft does, with ranges written out.
func (s *Set) text(e Elem) string {
	var b strings.Builder
	if !s.Interval {
		b.WriteString(format(s.Key, e.Key))
	} else if len(s.Key) == 1 {
		first := readAddr(e.Key)
		last := readAddr(strings.Repeat("\xff", len(e.Key)))
		if e.End != "" {
			last = readAddr(e.End).Prev()
		}
		fmt.Fprintf(&b, "%s-%s", first, last)
	} else {
		k, end := e.Key, e.End
		for i, kind := range s.Key {
			if i > 0 {
				b.WriteString(" . ")
			}
			n := kind.size()
			b.WriteString(format(s.Key[i:i+1], k[:n]))
			if k[:n] != end[:n] {
				b.WriteString("-" + format(s.Key[i:i+1], end[:n]))
			}
			k, end = k[n:], end[n:]
		}
	}
	if len(s.Val) > 0 {
		b.WriteString(" : " + format(s.Val, e.Val))
	}
	return b.String()
}

// String prints the ruleset as nft text.
func (r Ruleset) String() string {
	var b strings.Builder
	for i := range r.Tables {
		t := &r.Tables[i]
		fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
		for j := range t.Sets {
			s := &t.Sets[j]
			what := "set"
			if len(s.Val) > 0 {
				what = "map"
			}
			fmt.Fprintf(&b, "\t%s %s {\n\t\t%s\n", what, s.Name, s.Decl)
			if s.Interval {
				b.WriteString("\t\tflags interval\n")
			}
			if s.Learned > 0 {
				fmt.Fprintf(&b, "\t\tsize %d\n\t\tflags dynamic,timeout\n", s.Learned)
			}
			for k, e := range s.Elems {
				if k == 0 {
					b.WriteString("\t\telements = {\n")
				}
				fmt.Fprintf(&b, "\t\t\t%s,\n", s.text(e))
			}
			if len(s.Elems) > 0 {
				b.WriteString("\t\t}\n")
			}
			b.WriteString("\t}\n")
		}
		for _, c := range t.Chains {
			fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
			if c.Type != "" {
				fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.Hook, c.Priority)
			}
			for _, rule := range c.Rules {
				fmt.Fprintf(&b, "\t\t%s\n", rule)
			}
			b.WriteString("\t}\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// table returns the table of a family, or nil.
func (r *Ruleset) table(family string) *TableSpec {
	for i := range r.Tables {
		if r.Tables[i].Family == family {
			return &r.Tables[i]
		}
	}
	return nil
}

// set returns a set by name, or nil.
func (t *TableSpec) set(name string) *Set {
	if i := slices.IndexFunc(t.Sets, func(s Set) bool { return s.Name == name }); i >= 0 {
		return &t.Sets[i]
	}
	return nil
}

// chain returns a chain by name, or nil.
func (t *TableSpec) chain(name string) *Chain {
	if i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == name }); i >= 0 {
		return &t.Chains[i]
	}
	return nil
}

// find returns the element that holds a key.
func (s *Set) find(k string) (Elem, bool) {
	if !s.Interval {
		i, ok := slices.BinarySearchFunc(s.Elems, k, func(e Elem, k string) int { return strings.Compare(e.Key, k) })
		if !ok {
			return Elem{}, false
		}
		return s.Elems[i], true
	}
	for _, e := range s.Elems {
		if len(s.Key) == 1 {
			if e.Key <= k && (e.End == "" || k < e.End) {
				return e, true
			}
			continue
		}
		in, off := true, 0
		for _, kind := range s.Key {
			n := off + kind.size()
			in = in && e.Key[off:n] <= k[off:n] && k[off:n] <= e.End[off:n]
			off = n
		}
		if in {
			return e, true
		}
	}
	return Elem{}, false
}
