package lb

import (
	"fmt"
	"net/netip"
	"strings"
)

// Rule is a list of statements; the first that does not match ends it.
type Rule []Stmt

// Stmt is one statement of a rule. Every type below is printed here, compiled
// for the kernel in kernel_expr.go and executed on virtual packets in
// trace.go; the type switches there name them all.
type Stmt interface{ String() string }

// Version is a version of the Internet Protocol.
type Version uint8

const (
	V4 Version = iota
	V6
)

// versions lists both, to make everything twice.
var versions = [...]Version{V4, V6}

// versionOf returns the version of an address; the invalid one stands for
// every IPv4 address of the host.
func versionOf(a netip.Addr) Version {
	if a.Is6() {
		return V6
	}
	return V4
}

// header is how nft names the version's header.
func (v Version) header() string {
	if v == V6 {
		return "ip6"
	}
	return "ip"
}

// name is that of a set or a chain which exists for each version.
func (v Version) name(base string) string {
	if v == V6 {
		return base + "6"
	}
	return base
}

// Field is a part of a packet, or of what the kernel knows about it.
type Field struct {
	ID  FieldID
	Mod uint32  // of FieldSlot and FieldHash: a number below Mod
	V   Version // of an address
}

// FieldID names a field.
type FieldID uint8

const (
	FieldSaddr FieldID = iota + 1
	FieldDaddr
	FieldProto
	FieldSport
	FieldDport
	FieldIif
	FieldOif
	FieldOrigDaddr // destination before translation
	FieldOrigDport
	FieldSlot
	FieldHash     // of the client's address, below Mod; the same on every node
	FieldPriority // the packet's
)

var (
	proto = Field{ID: FieldProto}
	sport = Field{ID: FieldSport}
	dport = Field{ID: FieldDport}
	iif   = Field{ID: FieldIif}
	oif   = Field{ID: FieldOif}

	origDport = Field{ID: FieldOrigDport}
	priority  = Field{ID: FieldPriority}
)

func (v Version) saddr() Field     { return Field{ID: FieldSaddr, V: v} }
func (v Version) daddr() Field     { return Field{ID: FieldDaddr, V: v} }
func (v Version) origDaddr() Field { return Field{ID: FieldOrigDaddr, V: v} }

func (f Field) String() string {
	switch f.ID {
	case FieldSaddr:
		return f.V.header() + " saddr"
	case FieldDaddr:
		return f.V.header() + " daddr"
	case FieldProto:
		return "meta l4proto"
	case FieldSport:
		return "th sport"
	case FieldDport:
		return "th dport"
	case FieldIif:
		return "iifname"
	case FieldOif:
		return "oifname"
	case FieldOrigDaddr:
		return "ct original " + f.V.header() + " daddr"
	case FieldOrigDport:
		return "ct original proto-dst"
	case FieldSlot:
		return fmt.Sprintf("numgen random mod %d", f.Mod)
	case FieldHash:
		return fmt.Sprintf("jhash %s saddr mod %d seed 0x%x", f.V.header(), f.Mod, uint32(maglevSeed))
	case FieldPriority:
		return "meta priority"
	}
	return "?"
}

func (f Field) size() int {
	if f.ID == FieldIif || f.ID == FieldOif || f.isAddr() && f.V == V6 {
		return 16
	}
	return 4
}

func (f Field) isAddr() bool {
	return f.ID == FieldSaddr || f.ID == FieldDaddr || f.ID == FieldOrigDaddr
}

// versioned reports whether it can be had of packets of one version only.
func (f Field) versioned() bool {
	return f.isAddr() || f.ID == FieldHash
}

func concat(fs []Field) string {
	s := make([]string, len(fs))
	for i, f := range fs {
		s[i] = f.String()
	}
	return strings.Join(s, " . ")
}

func not(b bool) string {
	if b {
		return "!= "
	}
	return ""
}

type (
	// MatchAddr compares an address with a prefix.
	MatchAddr struct {
		F      Field
		Not    bool
		Prefix netip.Prefix
	}
	// MatchProto compares the transport protocol.
	MatchProto struct{ Proto uint8 }
	// MatchPort compares a port; a match of the protocol comes before it.
	MatchPort struct {
		F    Field
		Port uint16
	}
	// MatchEcho matches an ICMP or ICMPv6 echo request.
	MatchEcho struct{ V Version }
	// MatchNeighbour matches the messages of neighbour discovery (RFC 4861 §4).
	MatchNeighbour struct{}
	// MatchIPv6 matches IPv6 packets; Bridged: frames of them, in table bridge.
	MatchIPv6 struct{ Bridged bool }
	// MatchLocal matches when the address is one of the host's own.
	MatchLocal struct{ F Field }
	// MatchDNAT matches packets of flows with a translated destination.
	MatchDNAT struct{}
	// MatchState matches packets that conntrack cannot place or, with Related,
	// those that answer a packet without belonging to its flow, such as resets
	// and ICMP errors.
	MatchState struct{ Related bool }
	// MatchUnicast matches Ethernet frames that are for one receiver.
	MatchUnicast struct{}
	// MatchSet matches when the fields are in a set.
	MatchSet struct {
		Fields []Field
		Not    bool
		Set    string
	}
	// SetPriority stores what a map gives in the packet's priority; it does
	// not match when the map has no such key.
	SetPriority struct {
		Fields []Field
		Map    string
	}
	// ClearPriority sets the packet's priority to zero.
	ClearPriority struct{}
	// PutPriority sets the packet's priority to a class.
	PutPriority struct{ Class class }
	// MatchPriority compares bits of the packet's priority.
	MatchPriority struct{ Mask, Value class }
	// Unlearn deletes what Learn added.
	Unlearn struct {
		V      Version
		Fields []Field
		Map    string
	}
	// Learn adds an element with the packet's priority as value to a map. One
	// that is there keeps its value, and has its time again.
	Learn struct {
		V       Version
		Fields  []Field
		Map     string
		Seconds uint32
	}
	// PriorityVmap continues in the chain that a map gives for the priority.
	PriorityVmap struct{ Map string }
	// ProtoVmap continues in the chain that a map gives for the transport
	// protocol.
	ProtoVmap struct{ Map string }
	// DNATMap rewrites the destination to what a map gives: address and port or,
	// with KeepPort, the address.
	DNATMap struct {
		V        Version
		Fields   []Field
		Map      string
		KeepPort bool
	}
	// DNATAddr rewrites the destination address.
	DNATAddr struct{ Addr netip.Addr }
	// Masquerade rewrites the source to the outgoing device's address and a
	// random port.
	Masquerade struct{}
	// Reject refuses: with a TCP reset or, for packets of one version, as port
	// unreachable; with Protocol, of IPv4 only, as protocol unreachable.
	Reject struct {
		Reset    bool
		V        Version
		Protocol bool
	}
	// Notrack keeps the packet out of conntrack and so out of NAT.
	Notrack struct{}
	// Lift sends a bridged packet to the MAC that a map gives, as if it had
	// been sent to this host.
	Lift struct {
		Fields []Field
		Map    string
	}
	// Do ends the rule: accept, drop, return, or jump or goto a chain.
	Do struct {
		Verb  string
		Chain string
	}
)

func (s MatchAddr) String() string {
	p := s.Prefix.String()
	if s.Prefix.IsSingleIP() {
		p = s.Prefix.Addr().String()
	}
	return fmt.Sprintf("%s %s%s", s.F, not(s.Not), p)
}
func (s MatchProto) String() string { return "meta l4proto " + protoName(s.Proto) }
func (s MatchPort) String() string  { return fmt.Sprintf("%s %d", s.F, s.Port) }
func (s MatchEcho) String() string {
	if s.V == V6 {
		return "icmpv6 type echo-request"
	}
	return "icmp type echo-request"
}
func (MatchNeighbour) String() string { return "icmpv6 type 133-137" }
func (s MatchIPv6) String() string {
	if s.Bridged {
		return "meta protocol ip6"
	}
	return "meta nfproto ipv6"
}
func (s MatchLocal) String() string {
	return "fib " + strings.TrimPrefix(s.F.String(), s.F.V.header()+" ") + " type local"
}
func (MatchDNAT) String() string { return "ct status dnat" }
func (s MatchState) String() string {
	if s.Related {
		return "ct state related"
	}
	return "ct state invalid"
}
func (MatchUnicast) String() string {
	return "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"
}
func (s MatchSet) String() string { return concat(s.Fields) + " " + not(s.Not) + "@" + s.Set }
func (s SetPriority) String() string {
	return "meta priority set " + concat(s.Fields) + " map @" + s.Map
}
func (s PutPriority) String() string {
	return "meta priority set " + format([]Kind{KindClass}, s.Class.elem())
}
func (s MatchPriority) String() string {
	is := format([]Kind{KindClass}, s.Value.elem())
	if s.Mask == ^class(0) {
		return "meta priority " + is
	}
	return "meta priority & " + format([]Kind{KindClass}, s.Mask.elem()) + " == " + is
}
func (s Unlearn) String() string {
	return fmt.Sprintf("delete @%s { %s : meta priority }", s.Map, concat(s.Fields))
}
func (s Learn) String() string {
	return fmt.Sprintf("update @%s { %s timeout %ds : meta priority }", s.Map, concat(s.Fields), s.Seconds)
}
func (ClearPriority) String() string  { return "meta priority set none" }
func (s ProtoVmap) String() string    { return "meta l4proto vmap @" + s.Map }
func (s PriorityVmap) String() string { return "meta priority vmap @" + s.Map }
func (s DNATMap) String() string {
	return "dnat " + s.V.header() + " to " + concat(s.Fields) + " map @" + s.Map
}
func (s DNATAddr) String() string {
	return "dnat " + versionOf(s.Addr).header() + " to " + s.Addr.String()
}
func (Masquerade) String() string { return "masquerade fully-random" }
func (s Reject) String() string {
	if s.Reset {
		return "reject with tcp reset"
	}
	switch {
	case s.V == V6:
		return "reject with icmpv6 port-unreachable"
	case s.Protocol:
		return "reject with icmp prot-unreachable"
	}
	return "reject with icmp port-unreachable"
}
func (Notrack) String() string { return "notrack" }
func (s Lift) String() string {
	return "ether daddr set " + concat(s.Fields) + " map @" + s.Map + " meta pkttype set host"
}
func (s Do) String() string {
	if s.Chain != "" {
		return s.Verb + " " + s.Chain
	}
	return s.Verb
}

func (r Rule) String() string {
	s := make([]string, len(r))
	for i, st := range r {
		s[i] = st.String()
	}
	return strings.Join(s, " ")
}
