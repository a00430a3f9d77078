package sctp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	// ErrAborted says that the peer sent an ABORT.
	ErrAborted = errors.New("aborted")
	// ErrRefused says that an ICMP error came which ends an association like an
	// ABORT (RFC 9260 §10, ICMP8): protocol unreachable or, of IPv6, an
	// unrecognized next header.
	ErrRefused = errors.New("refused")
	// ErrUnreachable says that an ICMP error came after which an association is
	// tried again until its time is over (ICMP9): port unreachable.
	ErrUnreachable = errors.New("unreachable")
	// ErrDenied says that a packet was rejected on its way out of the host, and
	// that no ICMP error told of it.
	ErrDenied = errors.New("denied")
)

// timeout is how long a client waits for an answer.
const timeout = 500 * time.Millisecond

var lastPort atomic.Uint32

func init() { lastPort.Store(rand.Uint32()) }

// FreePort returns a port of 10000 to 29999 that this process has not used for
// a while: conntrack remembers an association for some seconds after its end.
func FreePort() uint16 { return uint16(10000 + lastPort.Add(1)%20000) }

// Assoc is the client's end of an association. It is not safe for concurrent use.
type Assoc struct {
	conn          *net.IPConn
	src, dst      uint16
	local, remote uint32 // verification tags
	tsn, next     uint32
	seq           uint16
}

// Dial opens an association from a port of this host to one of the peer. conn
// is a raw socket of Protocol that is connected to the peer's address, so that
// the kernel tells it of ICMP errors; it stays the caller's.
func Dial(conn *net.IPConn, from, to uint16) (*Assoc, error) {
	a := &Assoc{conn: conn, src: from, dst: to, local: rand.Uint32() | 1, tsn: rand.Uint32()}
	i := initiation{tag: a.local, tsn: a.tsn}
	ack, err := a.ask(0, i.chunk(typeInit), typeInitAck)
	if err != nil {
		return nil, err
	}
	if i, err = parseInitiation(ack.value); err != nil {
		return nil, err
	}
	a.remote, a.next = i.tag, i.tsn
	_, err = a.ask(a.remote, chunk{typ: typeCookieEcho, value: i.cookie}, typeCookieAck)
	return a, err
}

// Ask sends a message and returns the peer's next one.
func (a *Assoc) Ask(msg []byte) ([]byte, error) {
	c := data(a.tsn, a.seq, msg)
	a.tsn, a.seq = a.tsn+1, a.seq+1
	got, err := a.ask(a.remote, c, typeData)
	if err != nil {
		return nil, err
	}
	if len(got.value) < 12 || binary.BigEndian.Uint32(got.value) != a.next {
		return nil, fmt.Errorf("DATA of %d bytes, or not the next", len(got.value))
	}
	a.next++
	return got.value[12:], a.send(a.remote, sack(a.next-1))
}

// Heartbeat asks whether the peer is there.
func (a *Assoc) Heartbeat() error {
	_, err := a.ask(a.remote, chunk{typ: typeHeartbeat, value: []byte{0, 1, 0, 8, 1, 2, 3, 4}}, typeHeartbeatAck)
	return err
}

// Close ends the association.
func (a *Assoc) Close() error {
	last := binary.BigEndian.AppendUint32(nil, a.next-1)
	if _, err := a.ask(a.remote, chunk{typ: typeShutdown, value: last}, typeShutdownAck); err != nil {
		return err
	}
	return a.send(a.remote, chunk{typ: typeShutdownComplete})
}

func (a *Assoc) send(tag uint32, c chunk) error {
	_, err := a.conn.Write(packet{src: a.src, dst: a.dst, tag: tag, chunks: []chunk{c}}.marshal())
	return fault(err)
}

// ask sends a chunk and waits for one of the type that answers it. What comes
// besides, such as SACK, says nothing that is needed here.
func (a *Assoc) ask(tag uint32, c chunk, want uint8) (chunk, error) {
	wait := timeout
	err := a.send(tag, c)
	denied := errors.Is(err, ErrDenied)
	if denied { // for a kernel's SCTP that is a packet lost: what counts is the ICMP error
		wait, err = timeout/5, nil
	}
	if err == nil {
		err = a.conn.SetReadDeadline(time.Now().Add(wait))
	}
	if err != nil {
		return chunk{}, err
	}
	buf := make([]byte, maxPacket)
	for {
		n, _, err := a.conn.ReadFrom(buf) // Read would give the IPv4 header too
		if denied && os.IsTimeout(err) {
			return chunk{}, ErrDenied
		}
		if err != nil {
			return chunk{}, fault(err)
		}
		p, err := parse(buf[:n])
		if p.src != a.dst || p.dst != a.src {
			continue // another association's
		}
		if err != nil {
			return chunk{}, err
		}
		for _, c := range p.chunks {
			switch ours := p.tag == a.local; {
			case c.typ == typeAbort && (ours && c.flags&reflected == 0 || p.tag == a.remote && c.flags&reflected != 0):
				return c, ErrAborted
			case ours && c.typ == want:
				return c, nil
			}
		}
	}
}

// fault says what an error of a connected raw socket means.
func fault(err error) error {
	switch {
	case errors.Is(err, syscall.ENOPROTOOPT), errors.Is(err, syscall.EPROTO):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return err
}
