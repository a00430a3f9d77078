package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"nodenet/dns/plugin"
)

// defaultTLSPort is that of DNS over TLS (RFC 7858).
const defaultTLSPort = 853

// dialOptions say how upstreams are reached. Immutable after load.
type dialOptions struct {
	source        netip.Addr    // invalid: as the kernel chooses
	idle          int           // connections kept to one upstream; 0: maxIdle
	patience      time.Duration // wait for one upstream of several; 0: by its round trip time
	name          string        // of certificates; empty: the upstream's address
	cert, key, ca string        // files

	tls *tls.Config
	err error // why there is none
}

func (o *dialOptions) most() int {
	if o.idle == 0 {
		return maxIdle
	}
	return o.idle
}

// certificates reads the arguments of `tls [CERT KEY] [CA]`.
func (o *dialOptions) certificates(s *plugin.Setup, args []string) {
	switch len(args) {
	case 1:
		o.ca = s.Path(args[0])
	case 3:
		o.ca = s.Path(args[2])
		fallthrough
	case 2:
		o.cert, o.key = s.Path(args[0]), s.Path(args[1])
	}
}

// load reads the certificates.
func (o *dialOptions) load(note func(what string, err error, fix string), what string) {
	o.tls = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.name, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	if o.cert != "" {
		c, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			o.err = fmt.Errorf("load client certificate: %w", err)
		}
		o.tls.Certificates = []tls.Certificate{c}
	}
	if o.ca != "" {
		pool, err := loadCAs(o.ca)
		o.err = errors.Join(o.err, err)
		o.tls.RootCAs = pool
	}
	note(what+" tls", o.err, "correct the files in the directive `tls`; upstreams over TLS are not asked until then")
}

// loadCAs reads certificates in PEM.
func loadCAs(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load CA certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("load CA certificates: %s has none in PEM", file)
	}
	return pool, nil
}

func (o *dialOptions) dialer(network string) *net.Dialer {
	d := new(net.Dialer)
	if o.source.IsValid() {
		if d.LocalAddr = net.Addr(net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.source, 0))); network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.source, 0))
		}
	}
	return d
}

// connect opens a TCP connection, with TLS where the upstream wants it. The
// server's certificate must be valid for its name, or else its address.
func (u *upstream) connect(ctx context.Context) (net.Conn, error) {
	o := u.options()
	if u.secure && (o.err != nil || o.tls == nil) {
		return nil, fmt.Errorf("connect to %s: %w", u, o.err)
	}
	c, err := o.dialer("tcp").DialContext(ctx, "tcp", u.addr.String())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", u, err)
	}
	if !u.secure {
		return c, nil
	}
	cfg := o.tls.Clone()
	if u.name != "" {
		cfg.ServerName = u.name
	}
	if cfg.ServerName == "" {
		cfg.ServerName = u.addr.Addr().WithZone("").String()
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to %s: %w", u, err)
	}
	return tc, nil
}
