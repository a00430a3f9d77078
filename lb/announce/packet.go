package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// MAC is an Ethernet address. The zero MAC is no address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// usable reports whether a station can have the address: it is neither zero
// nor a group's.
func (m MAC) usable() bool { return m != MAC{} && m[0]&1 == 0 }

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Ethernet types (IEEE 802).
const (
	etherARP  uint16 = 0x0806
	etherIPv6 uint16 = 0x86dd
)

// Frame is what goes over an interface: an ARP packet, or an IPv6 packet with
// a neighbour discovery message, without its Ethernet header.
type Frame struct {
	Proto   uint16 // Ethernet type
	From    MAC    // of one received; one sent gets the interface's
	To      MAC    // of one sent
	Payload []byte
}

// message is an ARP packet or a neighbour discovery message, as far as both
// say the same.
//
//	ask   who has addr? — from is the asker's address; of a probe (RFC 5227
//	      §2.1.1, RFC 4862 §5.4.2) it is invalid
//	tell  addr is at mac
//
// An ask is a claim too: that from is at mac.
type message struct {
	tell bool
	addr netip.Addr
	from netip.Addr
	mac  MAC
}

// claimed is the address that the sender says to have; invalid: none.
func (m *message) claimed() netip.Addr {
	if m.tell {
		return m.addr
	}
	return m.from
}

var errNotOurs = errors.New("neither ARP for IPv4 nor neighbour discovery")

// parse reads a frame. What is none of ours, and what is not as the RFCs want
// it, is an error: nobody acts on it.
func parse(f *Frame) (message, error) {
	switch f.Proto {
	case etherARP:
		return parseARP(f.Payload)
	case etherIPv6:
		return parseND(f.Payload, f.From)
	}
	return message{}, errNotOurs
}

// ARP for IPv4 over Ethernet (RFC 826): eight bytes that say so with the
// operation, then sender MAC and address, target MAC and address. Ethernet pads
// it to 46 bytes.
const arpLen = 28

var arpHead = [6]byte{0, 1, 8, 0, 6, 4}

func parseARP(b []byte) (message, error) {
	if len(b) < arpLen || [6]byte(b[:6]) != arpHead {
		return message{}, errNotOurs
	}
	m := message{mac: MAC(b[8:14])}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if !m.mac.usable() {
		return message{}, fmt.Errorf("ARP packet from %s: not a station's address", m.mac)
	}
	switch op := binary.BigEndian.Uint16(b[6:]); op {
	case 1:
		m.addr = target
		if !sender.IsUnspecified() {
			m.from = sender
		}
	case 2:
		m.tell, m.addr = true, sender
	default:
		return message{}, fmt.Errorf("ARP operation %d: neither request nor reply", op)
	}
	if m.addr.IsUnspecified() {
		return message{}, errors.New("ARP packet about 0.0.0.0")
	}
	return m, nil
}

func arp(op uint16, senderMAC MAC, sender netip.Addr, targetMAC MAC, target netip.Addr, to MAC) Frame {
	b := make([]byte, 0, arpLen)
	b = append(b, arpHead[:]...)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, senderMAC[:]...), sender.AsSlice()...)
	b = append(append(b, targetMAC[:]...), target.AsSlice()...)
	return Frame{Proto: etherARP, To: to, Payload: b}
}

// probe asks who has an address, without claiming one.
func probe(addr netip.Addr, mac MAC) Frame {
	if addr.Is4() {
		return arp(1, mac, netip.IPv4Unspecified(), MAC{}, addr, broadcast)
	}
	group := solicitedNode(addr)
	return nd(netip.IPv6Unspecified(), group, groupMAC(group), typeSolicitation, 0, addr, 0, MAC{})
}

// answer tells the one who asked. Who probes has no address yet and is told by
// way of all: that is the form for IPv6 (RFC 4861 §7.2.4), and for IPv4 the
// way to the prober's switch port.
func answer(ask *message, mac MAC, own netip.Addr) Frame {
	if ask.addr.Is4() {
		target := ask.from
		if !target.IsValid() {
			target = netip.IPv4Unspecified()
		}
		return arp(2, mac, ask.addr, ask.mac, target, ask.mac)
	}
	if !ask.from.IsValid() {
		return unsolicited(ask.addr, mac, own)
	}
	return nd(source(own, ask.addr), ask.from, ask.mac, typeAdvertisement, flagSolicited|flagOverride, ask.addr, optTarget, mac)
}

// announcement tells all. For IPv4 both forms are sent: some hosts take only
// gratuitous requests for a reason to change what they know, some only
// replies (RFC 5227 §3).
func announcement(addr netip.Addr, mac MAC, own netip.Addr) []Frame {
	if addr.Is4() {
		return []Frame{
			arp(1, mac, addr, MAC{}, addr, broadcast),
			arp(2, mac, addr, broadcast, addr, broadcast),
		}
	}
	return []Frame{unsolicited(addr, mac, own)}
}
