// Package sctp is a small SCTP endpoint (RFC 9260) on raw IP sockets. It lets
// tests send real SCTP packets on kernels that have no SCTP sockets: one
// association at a time, one stream, nothing is sent again.
//
//	client                                   server
//	INIT          ─────────────────────────▶
//	              ◀───────────────────────── INIT ACK with a state cookie
//	COOKIE ECHO   ─────────────────────────▶ only now it remembers something
//	              ◀───────────────────────── COOKIE ACK
//	DATA          ─────────────────────────▶
//	              ◀───────────────────────── SACK, DATA
//	SACK, SHUTDOWN ────────────────────────▶
//	              ◀───────────────────────── SHUTDOWN ACK
//	SHUTDOWN COMPLETE ─────────────────────▶
//
// Both sides check the CRC32c of all that they get, so that a translator which
// does not write it anew is found out.
package sctp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Protocol is SCTP's number in the IP header (IANA).
const Protocol = 132

// Types of chunks (RFC 9260 §3.2).
const (
	typeData             = 0
	typeInit             = 1
	typeInitAck          = 2
	typeSack             = 3
	typeHeartbeat        = 4
	typeHeartbeatAck     = 5
	typeAbort            = 6
	typeShutdown         = 7
	typeShutdownAck      = 8
	typeCookieEcho       = 10
	typeCookieAck        = 11
	typeShutdownComplete = 14
)

const (
	paramCookie = 7    // State Cookie (RFC 9260 §3.3.3)
	whole       = 3    // flags of DATA: the first and the last fragment
	reflected   = 1    // flag T of ABORT: the tag is the receiver's own (§8.5.1)
	window      = 1e5  // advertised receiver window, bytes
	headerLen   = 12   // common header
	initLen     = 16   // INIT and INIT ACK without parameters
	maxPacket   = 2000 // what is read at most
)

// ErrChecksum says that a packet's CRC32c is not that of its content.
var ErrChecksum = errors.New("the CRC32c is wrong")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// packet is the common header with its chunks.
type packet struct {
	src, dst uint16
	tag      uint32
	chunks   []chunk
}

type chunk struct {
	typ, flags uint8
	value      []byte
}

// marshal writes a packet with its checksum (RFC 9260 §6.8 and appendix A).
func (p packet) marshal() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.src)
	b = binary.BigEndian.AppendUint16(b, p.dst)
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0)
	for _, c := range p.chunks {
		b = append(b, c.typ, c.flags)
		b = binary.BigEndian.AppendUint16(b, uint16(4+len(c.value)))
		b = append(b, c.value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parse reads a packet. b is changed, and the packet keeps parts of it.
func parse(b []byte) (packet, error) {
	if len(b) < headerLen {
		return packet{}, fmt.Errorf("SCTP packet of %d bytes", len(b))
	}
	p := packet{src: binary.BigEndian.Uint16(b), dst: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:])}
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:headerLen])
	if crc32.Checksum(b, castagnoli) != sum {
		return p, ErrChecksum
	}
	for b = b[headerLen:]; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return p, fmt.Errorf("chunk of %d bytes in %d", n, len(b))
		}
		p.chunks = append(p.chunks, chunk{b[0], b[1], b[4:n]})
		b = b[min(len(b), (n+3)&^3):]
	}
	return p, nil
}

// initiation is what INIT and INIT ACK say.
type initiation struct {
	tag, tsn uint32
	cookie   []byte // of INIT ACK
}

func (i initiation) chunk(typ uint8) chunk {
	b := binary.BigEndian.AppendUint32(nil, i.tag)
	b = binary.BigEndian.AppendUint32(b, window)
	b = append(b, 0, 1, 0, 1) // streams out and in
	b = binary.BigEndian.AppendUint32(b, i.tsn)
	if i.cookie != nil {
		b = append(b, 0, paramCookie)
		b = binary.BigEndian.AppendUint16(b, uint16(4+len(i.cookie)))
		b = append(b, i.cookie...)
	}
	return chunk{typ: typ, value: b}
}

func parseInitiation(b []byte) (initiation, error) {
	if len(b) < initLen {
		return initiation{}, fmt.Errorf("INIT of %d bytes", len(b))
	}
	i := initiation{tag: binary.BigEndian.Uint32(b), tsn: binary.BigEndian.Uint32(b[12:])}
	for b = b[initLen:]; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return i, fmt.Errorf("parameter of %d bytes in %d", n, len(b))
		}
		if binary.BigEndian.Uint16(b) == paramCookie {
			i.cookie = b[4:n]
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return i, nil
}

// data is a message that fits one chunk, on stream 0.
func data(tsn uint32, seq uint16, payload []byte) chunk {
	b := binary.BigEndian.AppendUint32(nil, tsn)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, seq)
	b = append(b, 0, 0, 0, 0)
	return chunk{typ: typeData, flags: whole, value: append(b, payload...)}
}

func sack(tsn uint32) chunk {
	b := binary.BigEndian.AppendUint32(nil, tsn)
	b = binary.BigEndian.AppendUint32(b, window)
	return chunk{typ: typeSack, value: append(b, 0, 0, 0, 0)}
}
