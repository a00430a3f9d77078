package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Neighbour discovery (RFC 4861 §4.3, §4.4): an IPv6 header, then
//
//	type, code 0, checksum | flags or reserved | target | options
const (
	ipv6Header = 40
	ndLen      = 24

	protoICMPv6       = 58
	typeSolicitation  = 135
	typeAdvertisement = 136

	flagSolicited uint32 = 1 << 30
	flagOverride  uint32 = 1 << 29

	optSource = 1 // link-layer address of the sender
	optTarget = 2 // link-layer address of the target
)

var allNodes = netip.MustParseAddr("ff02::1")

// solicitedNode is the group in which an address is asked for (RFC 4291 §2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	g := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(g[13:], b[13:])
	return netip.AddrFrom16(g)
}

// groupMAC is where a group's packets go (RFC 2464 §7).
func groupMAC(group netip.Addr) MAC {
	b := group.As16()
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// source is the address that an advertisement comes from: one that the
// interface has (RFC 4861 §4.4), or where there is none, the announced one.
func source(own, addr netip.Addr) netip.Addr {
	if own.IsValid() {
		return own
	}
	return addr
}

func unsolicited(addr netip.Addr, mac MAC, own netip.Addr) Frame {
	return nd(source(own, addr), allNodes, groupMAC(allNodes), typeAdvertisement, flagOverride, addr, optTarget, mac)
}

// nd makes a message; option 0 is none.
func nd(src, dst netip.Addr, to MAC, kind byte, flags uint32, target netip.Addr, option byte, mac MAC) Frame {
	size := ndLen
	if option != 0 {
		size += 8
	}
	b := make([]byte, ipv6Header, ipv6Header+size)
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(size))
	b[6], b[7] = protoICMPv6, 255
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	b = append(b, kind, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, flags)
	b = append(b, target.AsSlice()...)
	if option != 0 {
		b = append(append(b, option, 1), mac[:]...)
	}
	binary.BigEndian.PutUint16(b[ipv6Header+2:], ^checksum(b))
	return Frame{Proto: etherIPv6, To: to, Payload: b}
}

// checksum sums an ICMPv6 packet with its pseudo-header (RFC 8200 §8.1). Over
// one whose checksum is right it is 0xffff.
func checksum(packet []byte) uint16 {
	body := packet[ipv6Header:]
	sum := uint32(len(body)) + protoICMPv6
	for _, part := range [][]byte{packet[8:ipv6Header], body} {
		for len(part) >= 2 {
			sum += uint32(binary.BigEndian.Uint16(part))
			part = part[2:]
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// parseND checks what RFC 4861 §7.1 asks to be checked. The frame's sender
// stands in for the option that says where the sender is.
func parseND(b []byte, from MAC) (message, error) {
	if len(b) < ipv6Header+ndLen || b[0]>>4 != 6 || b[6] != protoICMPv6 {
		return message{}, errNotOurs
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size < ndLen || size > len(b)-ipv6Header {
		return message{}, fmt.Errorf("ICMPv6 packet of %d bytes, its header says %d", len(b)-ipv6Header, size)
	}
	b = b[:ipv6Header+size]
	body := b[ipv6Header:]
	kind := body[0]
	if kind != typeSolicitation && kind != typeAdvertisement {
		return message{}, errNotOurs
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	target := netip.AddrFrom16([16]byte(body[8:24]))
	switch {
	case b[7] != 255:
		return message{}, fmt.Errorf("neighbour discovery from %s with hop limit %d: not from this link", src, b[7])
	case body[1] != 0 || checksum(b) != 0xffff:
		return message{}, fmt.Errorf("neighbour discovery from %s: wrong code or checksum", src)
	case target.IsMulticast() || target.IsUnspecified() || target.Is4In6() || src.IsMulticast():
		return message{}, fmt.Errorf("neighbour discovery from %s about %s", src, target)
	}
	m := message{tell: kind == typeAdvertisement, addr: target, mac: from}
	want := byte(optTarget)
	if !m.tell {
		want = optSource
		if !src.IsUnspecified() && !src.Is4In6() {
			m.from = src
		}
	} else if dst.IsMulticast() && binary.BigEndian.Uint32(body[4:])&flagSolicited != 0 {
		return message{}, fmt.Errorf("advertisement from %s: solicited, and sent to all", src)
	}
	for opts := body[ndLen:]; len(opts) > 0; {
		if len(opts) < 2 {
			return message{}, errors.New("neighbour discovery option cut short")
		}
		n := int(opts[1]) * 8
		if n == 0 || n > len(opts) {
			return message{}, fmt.Errorf("neighbour discovery option of %d bytes", n)
		}
		if opts[0] == want && n == 8 {
			m.mac = MAC(opts[2:8])
		}
		opts = opts[n:]
	}
	if !m.mac.usable() {
		return message{}, fmt.Errorf("neighbour discovery from %s: not a station's address", m.mac)
	}
	return m, nil
}
