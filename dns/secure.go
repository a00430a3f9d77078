package dns

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// tlsFiles are the arguments of `tls`.
type tlsFiles struct {
	cert, key, ca string
	auth          tls.ClientAuthType
}

// portOf is the port of a scheme of keys; 0: it is not served.
func portOf(scheme string) int {
	switch scheme {
	case "dns":
		return defaultPort
	case "tls":
		return defaultTLSPort
	case "https":
		return 443
	}
	return 0
}

// parseTLS reads `tls CERT KEY [CA] { client_auth MODE }`.
func parseTLS(p *parser, d config.Directive) plugin.Plugin {
	if !p.Args(d, 2, 3, "tls CERT KEY [CA]") {
		return nil
	}
	f := &tlsFiles{cert: p.Path(d.Args[0]), key: p.Path(d.Args[1])}
	if len(d.Args) == 3 {
		f.ca = p.Path(d.Args[2])
	}
	modes := map[string]tls.ClientAuthType{
		"nocert": tls.NoClientCert, "request": tls.RequestClientCert, "require": tls.RequireAnyClientCert,
		"verify_if_given": tls.VerifyClientCertIfGiven, "require_and_verify": tls.RequireAndVerifyClientCert,
	}
	for _, o := range d.Block {
		switch o.Name {
		case "client_auth":
			if p.Args(o, 1, 1, "client_auth MODE") {
				mode, ok := modes[o.Args[0]]
				if !ok {
					p.Errorf(o.Pos, "tls: client_auth %q is not known, write nocert, request, require, verify_if_given or require_and_verify", o.Args[0])
				}
				f.auth = mode
			}
		case "keylog":
			p.Errorf(o.Pos, "tls: keylog is not supported, it gives the connections away: remove it")
		default:
			p.Unknown(d, o, "client_auth")
		}
	}
	p.block.tls = f
	return nil
}

// site is a socket with TLS.
type site struct {
	addr   netip.AddrPort
	scheme string
}

func (s site) String() string { return s.scheme + " " + s.addr.String() }

// sites returns the sockets with TLS that the block wants, with their zones.
func (b *block) sites(addrs []netip.Addr) map[site][]string {
	addrs = b.bind.addrs(addrs)
	out := make(map[site][]string)
	for _, k := range b.keys {
		if k.scheme == "" {
			continue
		}
		for _, a := range addrs {
			s := site{netip.AddrPortFrom(a, k.port), k.scheme}
			out[s] = append(out[s], k.zone)
		}
	}
	return out
}

// secureTable is the table of a site with its certificates.
type secureTable struct {
	*table
	files *tlsFiles
}

// secureListener serves a site.
type secureListener struct {
	stream *streamServer // tls
	web    *http.Server  // https
	files  tlsFiles
	kept   []string      // as in listener
	done   chan struct{} // of web
}

func (l *secureListener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if l.stream != nil {
		l.stream.close(ctx)
		l.stream.wait()
		return
	}
	if l.web.Shutdown(ctx) != nil {
		_ = l.web.Close()
	}
	<-l.done
}

// listenSecure opens and closes the sockets with TLS that differ from what
// the blocks ask for.
func (s *Server) listenSecure(now time.Time) {
	want := s.live.Load().sites
	for st, l := range s.secured {
		if w := want[st]; w == nil || *w.files != l.files {
			s.unkeep(l.kept)
			s.closing.Go(l.close)
			delete(s.secured, st)
			s.log.Info("dns socket closed", "addr", st.addr, "over", st.scheme)
		}
	}
	for st, w := range want {
		key := "listen " + st.String()
		if s.secured[st] != nil || now.Before(s.backoff[key].at) {
			continue
		}
		l, err := s.openSecure(st, *w.files)
		if err != nil {
			s.postpone(key, now)
			s.note(key, err, "correct the directive `tls`, or find what else uses the port with `ss -lntp`")
			continue
		}
		s.secured[st] = l
		s.settle(key)
		s.log.Info("dns socket open", "addr", st.addr, "over", st.scheme)
	}
	for _, scheme := range []string{"tls", "https"} {
		s.forget("listen "+scheme+" ", func(key string) bool {
			ap, err := netip.ParseAddrPort(key[len("listen "+scheme+" "):])
			return err == nil && want[site{ap, scheme}] != nil
		})
	}
}

func (s *Server) openSecure(st site, files tlsFiles) (*secureListener, error) {
	cfg, err := files.config(s.log)
	if err != nil {
		return nil, err
	}
	ln, kept, err := s.listenTCP(s.background, st.addr)
	if err != nil {
		return nil, err
	}
	table := func() *table {
		if w := s.live.Load().sites[st]; w != nil {
			return w.table
		}
		return nil
	}
	l := &secureListener{files: files, kept: kept}
	if st.scheme == "tls" {
		cfg.NextProtos = []string{"dot"}
		l.stream = s.serveStream(s.background, tls.NewListener(ln, cfg), "tls", table, s.poke)
		return l, nil
	}
	l.done = make(chan struct{})
	l.web = &http.Server{
		Handler: s.dohHandler(table), TLSConfig: cfg, ReadTimeout: tcpIdleTimeout, WriteTimeout: tcpWriteTimeout, IdleTimeout: tcpIdleTimeout,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(l.done)
		_ = l.web.ServeTLS(ln, "", "") // ends with ErrServerClosed only
	}()
	return l, nil
}

// config reads the certificates. A certificate that is renewed is taken up
// with the next connection.
func (f *tlsFiles) config(log *slog.Logger) (*tls.Config, error) {
	c := &certificateFile{files: *f, log: log}
	if _, err := c.get(); err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12, ClientAuth: f.auth,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get() },
	}
	if f.ca != "" {
		pool, err := loadCAs(f.ca)
		if err != nil {
			return nil, err
		}
		cfg.ClientCAs = pool
	}
	return cfg, nil
}

// certificateFile is a certificate that is read again when its file changes.
type certificateFile struct {
	files tlsFiles
	log   *slog.Logger

	mu    sync.Mutex
	stamp plugin.Stamp
	cert  *tls.Certificate
}

func (c *certificateFile) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := plugin.StampOf(c.files.cert)
	if c.cert != nil && now == c.stamp {
		return c.cert, nil
	}
	pair, err := tls.LoadX509KeyPair(c.files.cert, c.files.key)
	switch {
	case err == nil:
		c.cert = &pair
	case c.cert == nil:
		return nil, err
	default:
		c.log.Warn("certificate cannot be read, the old one stays", "file", c.files.cert, "err", err)
	}
	c.stamp = now
	return c.cert, nil
}

// dohPath is where queries over HTTPS go (RFC 8484).
const (
	dohPath = "/dns-query"
	dohType = "application/dns-message"
)

func (s *Server) dohHandler(t func() *table) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != dohPath {
			http.NotFound(w, r)
			return
		}
		var (
			query []byte
			err   error
		)
		switch r.Method {
		case http.MethodGet:
			query, err = base64.RawURLEncoding.DecodeString(r.URL.Query().Get("dns"))
		case http.MethodPost:
			if r.Header.Get("Content-Type") != dohType {
				http.Error(w, "the body must be "+dohType, http.StatusUnsupportedMediaType)
				return
			}
			query, err = io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxMsgSize))
		default:
			http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
			return
		}
		from, perr := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || perr != nil {
			http.Error(w, "no DNS message", http.StatusBadRequest)
			return
		}
		packed := s.answerPacket(r.Context(), t(), query, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), "https")
		if packed == nil {
			http.Error(w, "no DNS message, or no answer to it", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", dohType)
		if age, ok := freshness(packed); ok {
			w.Header().Set("Cache-Control", "max-age="+strconv.FormatUint(uint64(age), 10))
		}
		_, _ = io.Copy(w, bytes.NewReader(packed)) // a client that is gone is no failure
	})
}

// freshness is the least TTL of a reply's answer (RFC 8484 section 5.1).
func freshness(packed []byte) (ttl uint32, ok bool) {
	m := new(wire.Msg)
	if m.Unpack(packed) != nil || m.Rcode != wire.RcodeSuccess && m.Rcode != wire.RcodeNameError {
		return 0, false
	}
	rrs := m.Answer
	if len(rrs) == 0 {
		rrs = m.Ns
	}
	for i, rr := range rrs {
		if h := rr.Header(); i == 0 || h.Ttl < ttl {
			ttl = h.Ttl
		}
	}
	return ttl, len(rrs) > 0
}
