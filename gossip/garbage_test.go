package gossip

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

// closeConn is a connection that only knows whether it was closed.
type closeConn struct {
	net.Conn
	closed bool
}

func (c *closeConn) Close() error {
	c.closed = true
	return nil
}

// garbage makes bytes that look like something for a while: headers of TLS,
// of memberlist's label, encryption and compression, of frames.
type garbage struct{ rng *rand.Rand }

func newGarbage() garbage { return garbage{rand.New(rand.NewPCG(1, 2))} }

func (g garbage) some(most int) []byte {
	b := make([]byte, 1+g.rng.IntN(most))
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	heads := [][]byte{nil, {0x16, 3, 1, 0xff, 0xff, 1}, {244, 16}, {10, 0xff, 0xff, 0xff, 0xff}, {6}, {9}, {0x7f, 0xff, 0xff, 0xff, 1, 1}, bytes.Repeat([]byte{0}, 8)}
	copy(b, heads[g.rng.IntN(len(heads))])
	return b
}

func throw(t *testing.T, network string, to netip.AddrPort, b []byte) {
	t.Helper()
	c, err := net.DialTimeout(network, to.String(), timeout)
	if err != nil {
		t.Fatalf("dial %s %s: %v", network, to, err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	c.Write(b) // it may be closed already, that is fine
}
