package lb

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Packet is the first packet of a flow, for Trace. Where it comes from is In;
// where it goes is found by its destination.
type Packet struct {
	In           string // device it arrives by; empty: sent by the node itself
	Src, Dst     netip.Addr
	Proto        uint8
	Sport, Dport uint16
	Echo         bool   // with Proto ICMP or ICMPv6: an echo request
	Error        bool   // the same: destination unreachable
	Fragment     bool   // it is one of several that make a datagram
	Rand         uint32 // what the random slot is taken from
	Uplink       string // device towards anything that is on no bridge; empty: "eth0"
}

// Verdict is what becomes of a packet.
type Verdict struct {
	Path       []string // chains in order, e.g. "pre", "dispatch", "vip", "lb-2"
	Action     string   // "accept", "drop", "reset", "unreachable"
	Target     netip.AddrPort
	DNAT       bool // Target is not where the packet was sent to
	Masquerade bool
	Notrack    bool
	Clamp      bool // its maximum segment size is lowered to what the way allows
	// Lift is the MAC that a bridged packet is sent to instead of its
	// neighbour's; empty: it is switched as usual.
	Lift string
	// Lookups are the sets and maps that were asked, in order.
	Lookups []Lookup
}

// Lookup is a question to a set or a map.
type Lookup struct {
	Chain, Set, Key string
	Found           bool
	Value           string // of a map, if found
}

func (l Lookup) String() string {
	s := l.Chain + ": " + l.Set + " { " + l.Key
	switch {
	case !l.Found:
		return s + " } no"
	case l.Value == "":
		return s + " } yes"
	}
	return s + " : " + l.Value + " }"
}

func (v Verdict) String() string {
	var b strings.Builder
	b.WriteString(v.Action)
	if v.DNAT {
		b.WriteString(" to " + v.Target.String())
	}
	if v.Masquerade {
		b.WriteString(" masquerade")
	}
	if v.Notrack {
		b.WriteString(" notrack")
	}
	if v.Clamp {
		b.WriteString(" clamp")
	}
	if v.Lift != "" {
		b.WriteString(" lift " + v.Lift)
	}
	return b.String()
}

// tracer walks rules with one packet.
type tracer struct {
	rs    Ruleset
	table *TableSpec
	p     Packet
	orig  netip.AddrPort // destination before translation
	prio  uint32
	out   string // device; known after routing
	in    string // chain whose rules are looked at
	v     Verdict
}

// Trace sends a virtual packet through a ruleset without touching a kernel:
// what Table.Ruleset means, not how it is spelled. Routing is simplified: the
// node's own addresses are local, a bridge's prefix is behind the bridge, all
// else is behind the uplink.
func Trace(rs Ruleset, p Packet) Verdict {
	t := &tracer{rs: rs, p: p, orig: netip.AddrPortFrom(p.Dst, p.Dport)}
	t.v.Action = "accept"
	if t.table = rs.table("bridge"); t.table != nil && p.In != "" {
		t.base("filter", "prerouting")
	}
	if t.table = rs.table("inet"); t.table == nil {
		return t.v
	}
	hook := "prerouting"
	if p.In == "" {
		hook = "output"
	}
	bases := slices.Clone(t.table.Chains)
	bases = slices.DeleteFunc(bases, func(c Chain) bool { return c.Type == "" || c.Hook != hook })
	slices.SortStableFunc(bases, func(a, b Chain) int { return a.Priority - b.Priority })
	for _, c := range bases {
		if t.run(c.Name); t.v.Action != "accept" {
			return t.finish()
		}
	}
	local := t.local(t.p.Dst)
	if !local {
		t.out = t.device(t.p.Dst)
		if p.In != "" {
			t.base("filter", "forward")
		}
	}
	if t.v.Action == "accept" && !local {
		t.base("nat", "postrouting")
	}
	return t.finish()
}

func (t *tracer) finish() Verdict {
	t.v.Target = netip.AddrPortFrom(t.p.Dst, t.p.Dport)
	return t.v
}

func (t *tracer) local(a netip.Addr) bool { return slices.Contains(t.rs.Addrs, a) }

func (t *tracer) device(a netip.Addr) string {
	for _, b := range t.rs.routes {
		if b.Prefix.Contains(a) {
			return b.Name
		}
	}
	if t.p.Uplink != "" {
		return t.p.Uplink
	}
	return "eth0"
}

// base runs the base chains of one type and hook.
func (t *tracer) base(typ, hook string) {
	for _, c := range t.table.Chains {
		if c.Type == typ && c.Hook == hook && t.v.Action == "accept" {
			t.run(c.Name)
		}
	}
}

// run executes a chain; true: a verdict ended the base chain.
func (t *tracer) run(name string) bool {
	c := t.table.chain(name)
	if c == nil {
		t.v.Action = "no chain " + name
		return true
	}
	t.v.Path = append(t.v.Path, name)
	caller := t.in
	t.in = name
	defer func() { t.in = caller }()
	for _, r := range c.Rules {
		switch end, next := t.rule(r); {
		case end == "jump":
			if t.run(next) {
				return true
			}
		case end == "goto":
			return t.run(next)
		case end == "return":
			return false
		case end != "":
			return true
		}
	}
	return false
}

// rule executes one rule. It returns the verb that ended it, or "" when it
// did not match or has no verdict.
func (t *tracer) rule(r Rule) (verb, chain string) {
	for _, s := range r {
		switch s := s.(type) {
		case MatchAddr:
			if !t.is(s.F.V) || s.Prefix.Contains(t.addr(s.F)) == s.Not {
				return "", ""
			}
		case MatchProto:
			if t.p.Proto != s.Proto {
				return "", ""
			}
		case MatchPort:
			if (s.F.ID == FieldDport && t.p.Dport != s.Port) || (s.F.ID == FieldSport && t.p.Sport != s.Port) {
				return "", ""
			}
		case MatchEcho:
			if !t.is(s.V) || t.p.Proto != icmp(s.V) || !t.p.Echo {
				return "", ""
			}
		case MatchError:
			if !t.is(s.V) || t.p.Proto != icmp(s.V) || !t.p.Error || s.First > unreachable(s.V) || s.Last < unreachable(s.V) {
				return "", ""
			}
		case MatchFragment:
			if !t.is(s.V) || !t.p.Fragment {
				return "", ""
			}
		case MatchIPv6:
			if !t.is(V6) {
				return "", ""
			}
		case MatchSyn:
			if t.p.Proto != TCP {
				return "", ""
			}
		case ClampMSS:
			t.v.Clamp = true
		case MatchState, MatchNeighbour: // packets are the first of a flow
			return "", ""
		case MatchUnicast: // so are all packets here
		case MatchLocal:
			if !t.local(t.addr(s.F)) {
				return "", ""
			}
		case MatchDNAT:
			if !t.v.DNAT {
				return "", ""
			}
		case MatchSet:
			if !t.has(s.Fields) {
				return "", ""
			}
			if _, in := t.lookup(s.Set, s.Fields); in == s.Not {
				return "", ""
			}
		case SetPriority:
			if !t.has(s.Fields) {
				return "", ""
			}
			e, ok := t.lookup(s.Map, s.Fields)
			if !ok {
				return "", ""
			}
			t.prio = binary.NativeEndian.Uint32([]byte(e.Val))
		case PutPriority:
			t.prio = uint32(s.Class)
		case MatchPriority:
			if class(t.prio)&s.Mask != s.Value {
				return "", ""
			}
		case Learn, Unlearn: // what they remember is of no use to this packet
		case ClearPriority:
			t.prio = 0
		case MatchKnown: // packets are the first of a flow
			return "", ""
		case Count:
		case PriorityVmap:
			e, ok := t.ask(s.Map, key(nil).host(t.prio))
			if !ok {
				return "", ""
			}
			return "goto", e.Val
		case ProtoVmap:
			e, ok := t.ask(s.Map, key(nil).proto(t.p.Proto))
			if !ok {
				return "", ""
			}
			return "goto", e.Val
		case DNATMap:
			if !t.is(s.V) || t.v.Notrack {
				return "", ""
			}
			e, ok := t.lookup(s.Map, s.Fields)
			if !ok {
				return "", ""
			}
			to := netip.AddrPortFrom(t.p.Dst, t.p.Dport)
			if s.KeepPort {
				to = netip.AddrPortFrom(readAddr(e.Val), to.Port())
			} else {
				to = readAddrPort(e.Val)
			}
			t.p.Dst, t.p.Dport, t.v.DNAT = to.Addr(), to.Port(), true
			return "accept", ""
		case DNATAddr:
			t.p.Dst, t.v.DNAT = s.Addr, true
			return "accept", ""
		case Masquerade:
			t.v.Masquerade = true
			return "accept", ""
		case Reject:
			if !s.Reset && !t.is(s.V) {
				return "", ""
			}
			t.v.Action = "unreachable"
			if s.Reset {
				t.v.Action = "reset"
			}
			return t.v.Action, ""
		case Notrack:
			t.v.Notrack = true
		case Lift:
			if !t.has(s.Fields) {
				return "", ""
			}
			e, ok := t.lookup(s.Map, s.Fields)
			if !ok {
				return "", ""
			}
			t.v.Lift = format([]Kind{KindEther}, e.Val)
		case Do:
			if s.Verb == "drop" {
				t.v.Action = "drop"
			}
			return s.Verb, s.Chain
		default:
			panic(fmt.Sprintf("lb: no tracing of %T", s)) // a statement type was added without its case
		}
	}
	return "", ""
}

func (t *tracer) addr(f Field) netip.Addr {
	switch f.ID {
	case FieldSaddr:
		return t.p.Src
	case FieldOrigDaddr:
		return t.orig.Addr()
	}
	return t.p.Dst
}

// is reports whether the packet is of a version.
func (t *tracer) is(v Version) bool { return versionOf(t.p.Src) == v }

// has reports whether the packet has the fields: those of the other version's
// header do not match.
func (t *tracer) has(fields []Field) bool {
	return !slices.ContainsFunc(fields, func(f Field) bool { return f.versioned() && !t.is(f.V) })
}

// lookup finds the packet's fields in a set.
func (t *tracer) lookup(name string, fields []Field) (Elem, bool) {
	var k key
	for _, f := range fields {
		switch f.ID {
		case FieldSaddr, FieldDaddr, FieldOrigDaddr:
			k = k.addr(t.addr(f))
		case FieldProto:
			k = k.proto(t.p.Proto)
		case FieldSport:
			k = k.port(t.p.Sport)
		case FieldDport:
			k = k.port(t.p.Dport)
		case FieldIif:
			k = k.ifname(t.p.In)
		case FieldOif:
			k = k.ifname(t.out)
		case FieldOrigDport:
			k = k.port(t.orig.Port())
		case FieldSlot:
			k = k.host(t.p.Rand % f.Mod)
		case FieldHash:
			k = k.host(scale(hashAddr(t.p.Src), f.Mod))
		case FieldPriority:
			k = k.host(t.prio)
		}
	}
	return t.ask(name, k)
}

// ask finds a key in a set and notes that it was asked for.
func (t *tracer) ask(name string, k key) (Elem, bool) {
	s := t.table.set(name)
	e, ok := s.find(string(k))
	l := Lookup{Chain: t.in, Set: name, Key: format(s.Key, string(k)), Found: ok}
	if ok && len(s.Val) > 0 {
		l.Value = format(s.Val, e.Val)
	}
	t.v.Lookups = append(t.v.Lookups, l)
	return e, ok
}
