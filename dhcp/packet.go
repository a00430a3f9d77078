package dhcp

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

const (
	ipHeaderLen  = 20
	udpHeaderLen = 8
	// maxPacket bounds what is sent: no link of ours is narrower than this
	// allows, and replies must not be fragmented.
	maxPacket = 1400
	// bootpLen is the fixed part of a message, up to and with the cookie.
	bootpLen = 240
)

var errPacket = errors.New("not a DHCP datagram")

// parsePacket takes the payload out of an IPv4 packet to UDP port 67. The UDP
// checksum is not looked at when checked is true: the kernel leaves it undone
// for packets that never leave the machine.
func parsePacket(b []byte, checked bool) (src, dst netip.Addr, payload []byte, err error) {
	if len(b) < ipHeaderLen || b[0]>>4 != 4 {
		return src, dst, nil, errPacket
	}
	ihl := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if ihl < ipHeaderLen || total > len(b) || total < ihl+udpHeaderLen || b[9] != 17 ||
		binary.BigEndian.Uint16(b[6:])&0x3fff != 0 || checksum(0, b[:ihl]) != 0 {
		return src, dst, nil, errPacket
	}
	src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	u := b[ihl:total]
	n := int(binary.BigEndian.Uint16(u[4:]))
	if n < udpHeaderLen || n > len(u) || binary.BigEndian.Uint16(u[2:]) != serverPort {
		return src, dst, nil, errPacket
	}
	u = u[:n]
	if !checked && binary.BigEndian.Uint16(u[6:]) != 0 && checksum(pseudo(src, dst, n), u) != 0 {
		return src, dst, nil, errPacket
	}
	return src, dst, u[udpHeaderLen:], nil
}

// buildPacket puts IPv4 and UDP headers before a payload.
func buildPacket(src, dst netip.AddrPort, payload []byte) []byte {
	n := udpHeaderLen + len(payload)
	b := make([]byte, ipHeaderLen+n)
	b[0] = 0x45
	b[1] = 0x10 // low delay, as BOOTP always had it
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[8], b[9] = 64, 17
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:ipHeaderLen]))

	u := b[ipHeaderLen:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(n))
	copy(u[udpHeaderLen:], payload)
	sum := checksum(pseudo(src.Addr(), dst.Addr(), n), u)
	if sum == 0 {
		sum = 0xffff // zero says that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(u[6:], sum)
	return b
}

// pseudo sums the UDP pseudo header.
func pseudo(src, dst netip.Addr, n int) uint32 {
	s, d := src.As4(), dst.As4()
	return sum16(sum16(uint32(n)+17, s[:]), d[:])
}

func sum16(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071).
func checksum(start uint32, b []byte) uint16 {
	sum := sum16(start, b)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
