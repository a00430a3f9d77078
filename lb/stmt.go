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

// Field is a part of a packet, or of what the kernel knows about it.
type Field struct {
	ID  FieldID
	Mod uint32 // of FieldSlot: a random number below Mod
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
	FieldSlot
	FieldPriority // of the packet: what SetPriority stored
)

var (
	saddr     = Field{ID: FieldSaddr}
	daddr     = Field{ID: FieldDaddr}
	proto     = Field{ID: FieldProto}
	sport     = Field{ID: FieldSport}
	dport     = Field{ID: FieldDport}
	iif       = Field{ID: FieldIif}
	oif       = Field{ID: FieldOif}
	origDaddr = Field{ID: FieldOrigDaddr}
	priority  = Field{ID: FieldPriority}
)

func slot(n int) Field { return Field{ID: FieldSlot, Mod: uint32(n)} }

func (f Field) String() string {
	switch f.ID {
	case FieldSaddr:
		return "ip saddr"
	case FieldDaddr:
		return "ip daddr"
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
		return "ct original ip daddr"
	case FieldPriority:
		return "meta priority"
	case FieldSlot:
		return fmt.Sprintf("numgen random mod %d", f.Mod)
	}
	return "?"
}

func (f Field) size() int {
	if f.ID == FieldIif || f.ID == FieldOif {
		return 16
	}
	return 4
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
	// MatchEcho matches an ICMP echo request.
	MatchEcho struct{}
	// MatchIPv6 matches IPv6 packets.
	MatchIPv6 struct{}
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
	// PriorityVmap continues in the chain that a map gives for the priority.
	PriorityVmap struct{ Map string }
	// DNATMap rewrites the destination to what a map gives.
	DNATMap struct {
		Fields []Field
		Map    string
	}
	// DNATAddr rewrites the destination address.
	DNATAddr struct{ Addr netip.Addr }
	// Masquerade rewrites the source to the outgoing device's address and a
	// random port.
	Masquerade struct{}
	// Reject refuses: with a TCP reset or as ICMP port unreachable.
	Reject struct{ Reset bool }
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
func (MatchEcho) String() string    { return "icmp type echo-request" }
func (MatchIPv6) String() string    { return "meta nfproto ipv6" }
func (s MatchLocal) String() string {
	return "fib " + strings.TrimPrefix(s.F.String(), "ip ") + " type local"
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
func (ClearPriority) String() string  { return "meta priority set none" }
func (s PriorityVmap) String() string { return "meta priority vmap @" + s.Map }
func (s DNATMap) String() string      { return "dnat ip to " + concat(s.Fields) + " map @" + s.Map }
func (s DNATAddr) String() string     { return "dnat ip to " + s.Addr.String() }
func (Masquerade) String() string     { return "masquerade fully-random" }
func (s Reject) String() string {
	if s.Reset {
		return "reject with tcp reset"
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
