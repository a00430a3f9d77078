package announce

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const network, link = expr.PayloadBaseNetworkHeader, expr.PayloadBaseLLHeader

func load(base expr.PayloadBase, offset, size, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}
}

func store(base expr.PayloadBase, offset, size, reg uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: base, Offset: offset, Len: size}
}

func equal(reg uint32, data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func immediate(reg uint32, data ...byte) expr.Any {
	return &expr.Immediate{Register: reg, Data: data}
}

// of is true of packets for this host with an Ethernet type.
func of(kind uint16) []expr.Any {
	ether := binary.BigEndian.AppendUint16(nil, kind)
	return []expr.Any{
		// meta protocol: one comparison for all other packets.
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		equal(1, ether...),
		// meta pkttype != other: what a promiscuous interface overhears is not for us.
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.PACKET_OTHERHOST}},
		// The Ethernet type as sent: one of another VLAN on this interface has a tag there.
		load(link, 12, 2, 1),
		equal(1, ether...),
	}
}

// back sends the packet out where it came in.
func back(l *Link) []expr.Any {
	return []expr.Any{
		&expr.Counter{},
		immediate(1, nativeWord(l.Index)...),
		&expr.Dup{RegDev: 1, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// reply turns an ask for an address of the set into its answer and sends it
// back. Offsets in the ARP packet: 6 operation, 8 sender MAC, 14 sender
// address, 18 target MAC, 24 target address.
func reply(set *nftables.Set, l *Link) []expr.Any {
	mac := append(l.MAC[:], 0, 0) // registers are filled in words
	rule := append(of(etherARP),
		load(network, 0, 8, 1),
		equal(1, append(arpHead[:], 0, 1)...),
		// arp saddr ip != @addrs: that is another's claim.
		load(network, 14, 4, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true},
		load(network, 24, 4, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		load(network, 14, 4, 2),
		load(network, 8, 6, 3),
		store(network, 14, 4, 1),
		store(network, 24, 4, 2),
		store(network, 18, 6, 3),
		store(link, 0, 6, 3),
		immediate(1, mac...),
		store(network, 8, 6, 1),
		store(link, 6, 6, 1),
		immediate(1, 0, 2),
		store(network, 6, 2, 1),
	)
	return append(rule, back(l)...)
}

// advertise does the same in IPv6 (RFC 4861 §4.3, §4.4). With one option, the
// sender's MAC, a solicitation is as long as the advertisement; so ask nearly
// all hosts. Offsets in the packet: 4 length, 6 next header and hop limit, 8
// source, 24 destination, 40 type and code, 42 checksum, 44 flags, 48 target, 64
// the option. What is written is summed anew with it, the addresses as well,
// for they are in the pseudo-header.
func advertise(set *nftables.Set, l *Link) []expr.Any {
	const checksumAt = ipv6Header + 2
	summed := func(offset, size, reg uint32) expr.Any {
		return &expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg, Base: network, Offset: offset, Len: size,
			CsumType: expr.CsumTypeInet, CsumOffset: checksumAt,
		}
	}
	const target, asker, mac = 1, 2, 3
	rule := append(of(etherIPv6),
		load(network, 6, 2, 1),
		equal(1, protoICMPv6, 255), // 255: sent on this link
		load(network, 4, 2, 1),
		equal(1, 0, ndLen+8),
		load(network, ipv6Header, 2, 1),
		equal(1, typeSolicitation, 0),
		load(network, ipv6Header+ndLen, 2, 1),
		equal(1, optSource, 1),
		// Not from ::, which is a probe, nor from @addrs: those are claims of others.
		load(network, 8, 16, asker),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: asker, Data: make([]byte, 16)},
		&expr.Lookup{SourceRegister: asker, SetName: set.Name, SetID: set.ID, Invert: true},
		load(network, 48, 16, target),
		&expr.Lookup{SourceRegister: target, SetName: set.Name, SetID: set.ID},
		load(link, 6, 6, mac),
		store(link, 0, 6, mac),
		summed(24, 16, asker),
	)
	if l.Local.IsValid() { // else the target stands for it: see source
		rule = append(rule, immediate(target, l.Local.AsSlice()...))
	}
	rule = append(rule,
		summed(8, 16, target),
		immediate(1, typeAdvertisement, 0),
		summed(ipv6Header, 2, 1),
		immediate(1, binary.BigEndian.AppendUint32(nil, flagSolicited|flagOverride)...),
		summed(44, 4, 1),
		immediate(1, append([]byte{optTarget, 1}, l.MAC[:]...)...),
		summed(ipv6Header+ndLen, 8, 1),
		immediate(1, append(l.MAC[:], 0, 0)...),
		store(link, 6, 6, 1),
	)
	return append(rule, back(l)...)
}
