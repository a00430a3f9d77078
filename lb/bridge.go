package lb

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// bridgeTable lifts into the IP stack what backends send to clients on the
// same bridge, which would be switched past it and miss the translation back:
//
//   - answers, by address, protocol and port (backends);
//   - ICMP errors, which have no port of their own, by address (senders). One
//     about something else is routed then instead of switched, which keeps its
//     source;
//   - all fragments of UDP datagrams, by address: the later ones carry no
//     ports, and connection tracking has to see all of a datagram or none.
func (t *Table) bridgeTable() TableSpec {
	lift := answerRules()
	for _, v := range versions {
		for _, e := range errorTypes[v] {
			lift = append(lift, Rule{MatchError{v, e[0], e[1]}, MatchUnicast{}, Lift{[]Field{v.saddr()}, v.name("senders")}})
		}
		lift = append(lift, Rule{MatchFragment{v}, MatchProto{UDP}, MatchUnicast{}, Lift{[]Field{v.saddr()}, v.name("senders")}})
	}
	return TableSpec{
		Family: "bridge", Name: TableName,
		Sets:   append(t.liftSets(), t.policy.of("bridge")...),
		Chains: []Chain{{Name: "lift", Type: "filter", Hook: "prerouting", Priority: 0, Rules: append(lift, policeRules()...)}},
	}
}

// answerRules lift answers.
func answerRules() []Rule {
	return []Rule{
		{MatchUnicast{}, Lift{[]Field{V4.saddr(), proto, sport}, "backends"}},
		{MatchIPv6{Bridged: true}, MatchUnicast{}, Lift{[]Field{V6.saddr(), proto, sport}, "backends6"}},
	}
}

// liftSets are the sets of table bridge that grow with this node's own
// backends.
func (t *Table) liftSets() []Set {
	var backends, senders []Set
	for _, v := range versions {
		b := Set{Name: v.name("backends"), Decl: "type " + addrType(v) + " . inet_proto . inet_service : ether_addr", Key: targetKinds(v), Val: []Kind{KindEther}}
		s := Set{Name: v.name("senders"), Decl: "type " + addrType(v) + " : ether_addr", Key: []Kind{addrKind(v)}, Val: []Kind{KindEther}}
		for _, x := range t.LocalBackends {
			if x.MAC != [6]byte{} && versionOf(x.Addr) == v {
				mac := string(key(nil).ether(x.MAC))
				b.add(keyTarget(x.Target), mac)
				s.add(key(nil).addr(x.Addr), mac)
			}
		}
		b.sort()
		s.sort()
		backends, senders = append(backends, b), append(senders, s)
	}
	return append(backends, senders...)
}

// errorTypes are those of the messages that a host sends about a packet it got
// (RFC 1122 section 3.2.2, RFC 4443 section 3), as ranges. A redirect is none
// of its own.
var errorTypes = [len(versions)][][2]uint8{V4: {{3, 3}, {11, 12}}, V6: {{1, 4}}}

// unreachable is the type of the one that is seen most.
func unreachable(v Version) uint8 { return errorTypes[v][0][0] }

type (
	// MatchError matches ICMP or ICMPv6 messages of a range of types.
	MatchError struct {
		V           Version
		First, Last uint8
	}
	// MatchFragment matches all fragments of a datagram, the first one too.
	MatchFragment struct{ V Version }
)

func (s MatchError) String() string {
	name := [...]string{V4: "icmp", V6: "icmpv6"}[s.V]
	if s.First == s.Last {
		return fmt.Sprintf("%s type %d", name, s.First)
	}
	return fmt.Sprintf("%s type %d-%d", name, s.First, s.Last)
}

func (s MatchFragment) String() string {
	if s.V == V6 {
		return "exthdr frag exists"
	}
	return "ip frag-off & 0x3fff != 0"
}

// bridgeStmt compiles the statements of this file.
func (c *compiler) bridgeStmt(s Stmt) {
	switch s := s.(type) {
	case MatchError: // [ cmp gte reg 1 0x0000000b ] [ cmp lte reg 1 0x0000000c ]
		c.need(s.V)
		c.icmpType(s.V)
		if s.First == s.Last {
			c.equal(false, s.First)
			return
		}
		c.add(&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{s.First}},
			&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{s.Last}})
	case MatchFragment:
		c.need(s.V)
		if s.V == V6 { // [ exthdr load ipv6 1b @ 44 + 0 present => reg 1 ]
			c.add(&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Op: expr.ExthdrOpIpv6, Flags: unix.NFT_EXTHDR_F_PRESENT})
			c.equal(false, 1)
			return
		}
		// More fragments, or an offset (RFC 791): [ payload load 2b @ network header + 6 => reg 1 ]
		c.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2})
		c.mask([]byte{0x3f, 0xff})
		c.equal(true, 0, 0)
	}
}
