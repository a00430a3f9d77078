package gossip

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// network is where sockets come from: every one that gossip opens passes
// here. The zero value is the host's network; tests put another in its place.
type network struct {
	// allow is asked before each connection and packet, with the other
	// side's address; nil: everything passes.
	allow func(remote netip.Addr) bool
	// wrap sees each stream connection before TLS; nil: none.
	wrap func(net.Conn) net.Conn
	// dial opens a stream to host:port; nil: TCP.
	dial func(ctx context.Context, addr string) (net.Conn, error)
	// listen takes streams on a port; nil: TCP. Its address is a *net.TCPAddr.
	listen func(port uint16) (net.Listener, error)
	// secure stands in for TLS; nil: TLS 1.3.
	secure func(raw net.Conn, c *tls.Config) secureConn
	// transport carries memberlist; nil: UDP and TCP.
	transport func(port uint16) (memberlist.NodeAwareTransport, error)
	// uncompressed membership saves a simulation a sixth of its time.
	uncompressed bool
	// scripted stands in for memberlist altogether; nil: memberlist.
	scripted func(ctx context.Context, g *Gossip) error
}

// secureConn is what gossip needs of a *tls.Conn.
type secureConn interface {
	net.Conn
	HandshakeContext(context.Context) error
	ConnectionState() tls.ConnectionState
	NetConn() net.Conn
}

// listenOn opens the sync port on one address, or on all where bind names none.
func (n *network) listenOn(ctx context.Context, bind netip.Addr, port uint16) (net.Listener, error) {
	if n.listen != nil {
		return n.listen(port)
	}
	addr := fmt.Sprintf(":%d", port) // both families, where there are two
	if bind.IsValid() && !bind.IsUnspecified() {
		addr = netip.AddrPortFrom(bind, port).String()
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

// dialFrom opens a stream to host:port, from bind where that names an address.
func (n *network) dialFrom(ctx context.Context, bind netip.Addr, addr string) (net.Conn, error) {
	if n.dial != nil {
		return n.dial(ctx, addr)
	}
	var d net.Dialer
	if bind.IsValid() && !bind.IsUnspecified() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(bind, 0))
	}
	return d.DialContext(ctx, "tcp", addr)
}

func (n *network) server(raw net.Conn, c *tls.Config) secureConn {
	if n.secure != nil {
		return n.secure(raw, c)
	}
	return tls.Server(raw, c)
}

func (n *network) client(raw net.Conn, c *tls.Config) secureConn {
	if n.secure != nil {
		return n.secure(raw, c)
	}
	return tls.Client(raw, c)
}

// members opens the gossip port, with a gate before its streams.
func (n *network) members(bind netip.Addr, port uint16, logger *log.Logger, g *gate) (memberlist.NodeAwareTransport, error) {
	if n.transport != nil {
		return n.transport(port)
	}
	nt, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{bind.String()}, BindPort: int(port), Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	return newTransport(nt, n.allow, g), nil
}
