package gossip

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// plainConn stands in for a *tls.Conn where thousands of connections are
// made: each side sends its certificate, nothing is encrypted and no key is
// proved. All else of a connection, verifyPeer included, is the real code.
type plainConn struct {
	net.Conn
	mine []byte
	done sync.Once
	err  error
	cs   tls.ConnectionState
}

func newPlainConn(raw net.Conn, c *tls.Config) secureConn {
	return &plainConn{Conn: raw, mine: c.Certificates[0].Certificate[0]}
}

// plainCerts are the certificates seen so far, parsed: decoding one for each
// connection would cost more than the rest of it.
var plainCerts sync.Map // string → *x509.Certificate

func (c *plainConn) HandshakeContext(context.Context) error {
	c.done.Do(func() { c.err = c.handshake() })
	return c.err
}

func (c *plainConn) handshake() error {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(c.mine)))
	if _, err := c.Conn.Write(append(b, c.mine...)); err != nil {
		return err
	}
	var n [2]byte
	if _, err := io.ReadFull(c.Conn, n[:]); err != nil {
		return err
	}
	der := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(c.Conn, der); err != nil {
		return err
	}
	cert, ok := plainCerts.Load(string(der))
	if !ok {
		x, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate of the peer: %w", err)
		}
		cert, _ = plainCerts.LoadOrStore(string(der), x)
	}
	c.cs = tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, NegotiatedProtocol: alpnSync,
		PeerCertificates: []*x509.Certificate{cert.(*x509.Certificate)}}
	return nil
}

func (c *plainConn) ConnectionState() tls.ConnectionState { return c.cs }
func (c *plainConn) NetConn() net.Conn                    { return c.Conn }

func (c *plainConn) Read(b []byte) (int, error) {
	if !c.cs.HandshakeComplete {
		return 0, errors.New("read before the handshake")
	}
	return c.Conn.Read(b)
}
