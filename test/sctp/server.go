package sctp

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	mrand "math/rand/v2"
	"net"
	"net/netip"
)

// peer is where an association comes from, and to which port.
type peer struct {
	from netip.AddrPort
	port uint16
}

// association is the server's end of one.
type association struct {
	local, remote uint32 // verification tags
	tsn, next     uint32 // of what is sent next, of what is awaited
	seq           uint16
}

// server answers on the ports of one address.
type server struct {
	conn   net.PacketConn
	name   string
	ports  map[uint16]bool
	key    [32]byte // of the cookies
	assocs map[peer]*association
}

// Serve answers each message with "<name> <address of the client>", a line
// feed and the message, until conn is closed. conn is a raw socket of Protocol
// that is bound to an address. An INIT to another port of that address is
// aborted; whatever else goes to other ports is left to clients on the same
// host. The error is nil after Close, else the first fault, such as ErrChecksum.
func Serve(conn net.PacketConn, name string, ports ...uint16) error {
	s := &server{conn: conn, name: name, ports: make(map[uint16]bool), assocs: make(map[peer]*association)}
	for _, p := range ports {
		s.ports[p] = true
	}
	if _, err := rand.Read(s.key[:]); err != nil {
		return err
	}
	var fault error
	buf := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return fault
		}
		if err != nil {
			continue // ICMP errors of earlier answers
		}
		p, err := parse(bytes.Clone(buf[:n]))
		if err != nil {
			fault = errors.Join(fault, err)
			continue
		}
		a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		at := peer{netip.AddrPortFrom(a.Unmap(), p.src), p.dst}
		for _, c := range p.chunks {
			if !s.ports[p.dst] && c.typ != typeInit {
				continue
			}
			s.send(at, s.answer(at, p.tag, c))
		}
	}
}

// send sends a packet, unless it has no chunks.
func (s *server) send(to peer, p packet) {
	if len(p.chunks) == 0 {
		return
	}
	p.src, p.dst = to.port, to.from.Port()
	_, _ = s.conn.WriteTo(p.marshal(), &net.IPAddr{IP: to.from.Addr().AsSlice()}) // lost like any packet
}

// answer handles one chunk.
func (s *server) answer(at peer, tag uint32, c chunk) packet {
	a := s.assocs[at]
	switch {
	case c.typ == typeInit:
		return s.open(at, c)
	case c.typ == typeCookieEcho:
		return s.cookie(at, tag, c.value)
	case a == nil || tag != a.local:
		return stranger(a != nil, tag, c)
	}
	switch c.typ {
	case typeData:
		if len(c.value) < 12 || binary.BigEndian.Uint32(c.value) != a.next {
			return packet{tag: a.remote, chunks: []chunk{sack(a.next - 1)}}
		}
		a.next++
		out := append([]byte(s.name+" "+at.from.Addr().String()+"\n"), c.value[12:]...)
		p := packet{tag: a.remote, chunks: []chunk{sack(a.next - 1), data(a.tsn, a.seq, out)}}
		a.tsn, a.seq = a.tsn+1, a.seq+1
		return p
	case typeHeartbeat:
		return packet{tag: a.remote, chunks: []chunk{{typ: typeHeartbeatAck, value: c.value}}}
	case typeShutdown:
		return packet{tag: a.remote, chunks: []chunk{{typ: typeShutdownAck}}}
	case typeShutdownComplete, typeAbort:
		delete(s.assocs, at)
	}
	return packet{}
}

// open answers an INIT. All that is to be known later is in the cookie
// (RFC 9260 §5.1.3).
func (s *server) open(at peer, c chunk) packet {
	i, err := parseInitiation(c.value)
	if err != nil {
		return packet{}
	}
	if !s.ports[at.port] {
		return packet{tag: i.tag, chunks: []chunk{{typ: typeAbort}}}
	}
	mine := initiation{tag: mrand.Uint32() | 1, tsn: mrand.Uint32()}
	mine.cookie = binary.BigEndian.AppendUint32(nil, i.tag)
	mine.cookie = binary.BigEndian.AppendUint32(mine.cookie, i.tsn)
	mine.cookie = binary.BigEndian.AppendUint32(mine.cookie, mine.tag)
	mine.cookie = binary.BigEndian.AppendUint32(mine.cookie, mine.tsn)
	mine.cookie = append(mine.cookie, s.mac(at, mine.cookie)...)
	return packet{tag: i.tag, chunks: []chunk{mine.chunk(typeInitAck)}}
}

func (s *server) mac(at peer, cookie []byte) []byte {
	h := hmac.New(sha256.New, s.key[:])
	h.Write([]byte(at.from.String()))
	h.Write([]byte{byte(at.port >> 8), byte(at.port)})
	h.Write(cookie)
	return h.Sum(nil)
}

// cookie makes the association that a cookie is about.
func (s *server) cookie(at peer, tag uint32, b []byte) packet {
	if len(b) < 16 || !hmac.Equal(b[16:], s.mac(at, b[:16])) {
		return packet{}
	}
	a := &association{
		remote: binary.BigEndian.Uint32(b), next: binary.BigEndian.Uint32(b[4:]),
		local: binary.BigEndian.Uint32(b[8:]), tsn: binary.BigEndian.Uint32(b[12:]),
	}
	if tag != a.local {
		return packet{}
	}
	s.assocs[at] = a
	return packet{tag: a.remote, chunks: []chunk{{typ: typeCookieAck}}}
}

// stranger answers what belongs to no association (RFC 9260 §8.4); known: there
// is one of another tag, for which a wrong one is nothing (§8.5).
func stranger(known bool, tag uint32, c chunk) packet {
	if known || c.typ == typeAbort || c.typ == typeShutdownComplete {
		return packet{}
	}
	return packet{tag: tag, chunks: []chunk{{typ: typeAbort, flags: reflected}}}
}
