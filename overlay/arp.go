package overlay

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
)

// arpAnnouncement returns the Ethernet frame of an ARP request whose sender
// and target address are both addr (RFC 826, RFC 5227 section 2.3).
func arpAnnouncement(src net.HardwareAddr, addr netip.Addr) []byte {
	ip := addr.As4()
	f := make([]byte, 0, 42)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, src...)
	f = append(f, 0x08, 0x06) // EtherType ARP
	f = append(f, 0, 1)       // hardware: Ethernet
	f = append(f, 8, 0)       // protocol: IPv4
	f = append(f, 6, 4)       // lengths
	f = append(f, 0, 1)       // request
	f = append(f, src...)
	f = append(f, ip[:]...)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return append(f, ip[:]...)
}

// hash12 returns 12 hexadecimal digits that stand for a word.
func hash12(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}
