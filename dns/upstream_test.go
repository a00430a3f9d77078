package dns

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// certificate makes a certificate for names that is its own authority, and
// writes it and its key to files.
func certificate(t testing.TB, names ...string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// secureUpstream speaks DNS over TLS on loopback.
func secureUpstream(t *testing.T, cert, key, rdata string) (addr netip.AddrPort, conns *atomic.Int64) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns = new(atomic.Int64)
	counted := countingListener{ln, conns}
	srv := &wire.Server{Listener: tls.NewListener(counted, &tls.Config{Certificates: []tls.Certificate{pair}}), Handler: wire.HandlerFunc(func(w wire.ResponseWriter, q *wire.Msg) {
		r := new(wire.Msg)
		r.SetReply(q)
		r.Answer = []wire.RR{rr(q.Question[0].Name + " 300 IN " + rdata)}
		_ = w.WriteMsg(r)
	})}
	started, done := make(chan struct{}), make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { defer close(done); _ = srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.ShutdownContext(ctx)
		<-done
	})
	return ln.Addr().(*net.TCPAddr).AddrPort(), conns
}

type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// TestForwardTLS: upstreams over TLS are asked over a connection that stays,
// and only when their certificate is the right one.
func TestForwardTLS(t *testing.T) {
	cert, key := certificate(t, "dns.example")
	up, conns := secureUpstream(t, cert, key, "A 192.0.2.7")
	ask := func(t *testing.T, to, options string) string {
		s := running(t, Options{Servers: servers(t, fmt.Sprintf(". {\n forward . %s {\n %s\n }\n}", to, options))}, nil)
		var out []string
		for range 3 {
			out = append(out, answers(ask(t, s, "example.org", "A")))
		}
		return strings.Join(out, " ")
	}
	t.Run("tls_servername", func(t *testing.T) {
		before := conns.Load()
		if got := ask(t, "tls://"+up.String(), "tls "+cert+"\n tls_servername dns.example"); got != "192.0.2.7 192.0.2.7 192.0.2.7" {
			t.Errorf("answers %s", got)
		}
		if n := conns.Load() - before; n > 2 { // the health probe may have one of its own
			t.Errorf("%d connections for three queries", n)
		}
	})
	t.Run("name of the upstream", func(t *testing.T) {
		if got := ask(t, fmt.Sprintf("tls://127.0.0.1%%dns.example:%d", up.Port()), "tls "+cert); got != "192.0.2.7 192.0.2.7 192.0.2.7" {
			t.Errorf("answers %s", got)
		}
	})
	t.Run("another name", func(t *testing.T) {
		if got := ask(t, "tls://"+up.String(), "tls "+cert+"\n tls_servername other.example"); got != "SERVFAIL SERVFAIL SERVFAIL" {
			t.Errorf("answers %s", got)
		}
	})
	t.Run("unknown authority", func(t *testing.T) {
		if got := ask(t, "tls://"+up.String(), "tls_servername dns.example"); got != "SERVFAIL SERVFAIL SERVFAIL" {
			t.Errorf("answers %s", got)
		}
	})
	t.Run("no certificate file", func(t *testing.T) {
		s := running(t, Options{Servers: servers(t, ". {\n forward . tls://"+up.String()+" {\n tls /none.pem\n }\n}")}, nil)
		if e := s.Status().Error; !strings.Contains(e, "load CA certificates: open /none.pem") {
			t.Errorf("Status.Error %q", e)
		}
	})
}

// rawUpstream answers datagrams as a script says; nil: not at all.
func rawUpstream(t *testing.T, script func(query *wire.Msg, n int) [][]byte) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf, n := make([]byte, 4096), 0
		for {
			size, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(wire.Msg)
			if q.Unpack(buf[:size]) != nil || q.Question[0].Name == "." {
				continue
			}
			n++
			for _, b := range script(q, n) {
				_, _ = pc.WriteTo(b, from)
			}
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// reply packs an answer with one address.
func reply(q *wire.Msg, a string, change func(*wire.Msg)) []byte {
	r := new(wire.Msg)
	r.SetReply(q)
	r.Answer = []wire.RR{rr(q.Question[0].Name + " 60 IN A " + a)}
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(1232, false)
	}
	if change != nil {
		change(r)
	}
	b, err := r.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func cookieOf(m *wire.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if c, ok := o.(*wire.EDNS0_COOKIE); ok {
				return c.Cookie
			}
		}
	}
	return ""
}

// TestForwardForged: answers that may be forged are passed over, the real one
// counts.
func TestForwardForged(t *testing.T) {
	cookie := func(text string) func(*wire.Msg) {
		return func(r *wire.Msg) {
			r.IsEdns0().Option = []wire.EDNS0{&wire.EDNS0_COOKIE{Code: wire.EDNS0COOKIE, Cookie: text}}
		}
	}
	for name, forge := range map[string]func(q *wire.Msg) []byte{
		"wrong ID": func(q *wire.Msg) []byte { return reply(q, "203.0.113.6", func(r *wire.Msg) { r.Id++ }) },
		"wrong name": func(q *wire.Msg) []byte {
			return reply(q, "203.0.113.6", func(r *wire.Msg) { r.Question[0].Name = "x." })
		},
		"wrong type": func(q *wire.Msg) []byte {
			return reply(q, "203.0.113.6", func(r *wire.Msg) { r.Question[0].Qtype = 2 })
		},
		"a query":        func(q *wire.Msg) []byte { return reply(q, "203.0.113.6", func(r *wire.Msg) { r.Response = false }) },
		"no message":     func(*wire.Msg) []byte { return []byte("x") },
		"wrong cookie":   func(q *wire.Msg) []byte { return reply(q, "203.0.113.6", cookie("0011223344556677")) },
		"half a cookie":  func(q *wire.Msg) []byte { return reply(q, "203.0.113.6", cookie("00112233")) },
		"too long a one": func(q *wire.Msg) []byte { return reply(q, "203.0.113.6", cookie(cookieOf(q)+strings.Repeat("ab", 33))) },
	} {
		t.Run(name, func(t *testing.T) {
			up := rawUpstream(t, func(q *wire.Msg, _ int) [][]byte { return [][]byte{forge(q), reply(q, "192.0.2.1", nil)} })
			s := running(t, Options{Servers: servers(t, ". {\n forward . "+up.String()+"\n}")}, nil)
			if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.1" {
				t.Errorf("answer %s", got)
			}
		})
	}
	t.Run("another address answers", func(t *testing.T) {
		other, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		u := newUpstream(t, says("A 192.0.2.1"))
		// The socket is connected: the kernel drops what others send.
		s := running(t, Options{Servers: servers(t, ". {\n forward . "+u.addr.String()+"\n}")}, nil)
		if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.1" {
			t.Errorf("answer %s", got)
		}
	})
}

// TestForwardCookies: the server's part is learnt and sent back, BADCOOKIE
// asks again, and FORMERR asks without.
func TestForwardCookies(t *testing.T) {
	t.Run("learnt", func(t *testing.T) {
		seen := make(chan string, 10)
		up := rawUpstream(t, func(q *wire.Msg, n int) [][]byte {
			c := cookieOf(q)
			seen <- fmt.Sprint(len(c))
			return [][]byte{reply(q, "192.0.2.1", func(r *wire.Msg) {
				if n == 2 {
					r.Rcode, r.Answer = wire.RcodeBadCookie, nil
				}
				r.IsEdns0().Option = []wire.EDNS0{&wire.EDNS0_COOKIE{Code: wire.EDNS0COOKIE, Cookie: c[:16] + fmt.Sprintf("%016d", n)}}
			})}
		})
		s := running(t, Options{Servers: servers(t, ". {\n forward . "+up.String()+"\n}")}, nil)
		for range 2 {
			if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.1" {
				t.Errorf("answer %s", got)
			}
		}
		if got := <-seen + " " + <-seen + " " + <-seen; got != "16 32 32" {
			t.Errorf("cookies of %s digits, want 16 32 32", got)
		}
	})
	t.Run("not understood", func(t *testing.T) {
		up := rawUpstream(t, func(q *wire.Msg, _ int) [][]byte {
			return [][]byte{reply(q, "192.0.2.1", func(r *wire.Msg) {
				if cookieOf(q) != "" {
					r.Rcode, r.Answer = wire.RcodeFormatError, nil
				}
			})}
		})
		s := running(t, Options{Servers: servers(t, ". {\n forward . "+up.String()+"\n}")}, nil)
		if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.1" {
			t.Errorf("answer %s", got)
		}
	})
}

func TestForwardOptions(t *testing.T) {
	nodata := func(r *wire.Msg, _ bool) bool { return true }
	t.Run("failover NXDOMAIN", func(t *testing.T) {
		s := forwarding(t, "failover NXDOMAIN", newUpstream(t, fails(wire.RcodeNameError)), newUpstream(t, says("A 192.0.2.7")))
		if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.7" {
			t.Errorf("answer %s", got)
		}
	})
	for option, first := range map[string]func(*wire.Msg, bool) bool{"next NXDOMAIN": fails(wire.RcodeNameError), "next_on_nodata": nodata} {
		t.Run(option, func(t *testing.T) {
			a, b := newUpstream(t, first), newUpstream(t, says("A 192.0.2.7"))
			text := fmt.Sprintf(". {\n forward . %s {\n %s\n }\n forward . %s\n}", a.addr, option, b.addr)
			if got := answers(ask(t, running(t, Options{Servers: servers(t, text)}, nil), "example.org", "A")); got != "192.0.2.7" {
				t.Errorf("answer %s", got)
			}
			text = fmt.Sprintf(". {\n forward . %s {\n %s\n }\n}", a.addr, option)
			if got := answers(ask(t, running(t, Options{Servers: servers(t, text)}, nil), "example.org", "A")); got == "192.0.2.7" || got == "REFUSED" {
				t.Errorf("answer %s without a next one", got)
			}
		})
	}
	t.Run("failfast", func(t *testing.T) {
		u := newUpstream(t, silent)
		s := forwarding(t, "failfast_all_unhealthy_upstreams\n max_fails 1\n read_timeout 50ms", u)
		waitFor(t, "the upstream to be out", func() bool { return !s.Status().Upstreams[0].Healthy })
		before := u.udp.Load()
		if got := answers(ask(t, s, "example.org", "A")); got != "SERVFAIL" || u.udp.Load() != before {
			t.Errorf("answer %s, %d queries", got, u.udp.Load()-before)
		}
	})
	t.Run("max_connect_attempts", func(t *testing.T) {
		bad := fails(wire.RcodeServerFailure)
		third := newUpstream(t, says("A 192.0.2.7"))
		s := forwarding(t, "max_connect_attempts 2", newUpstream(t, bad), newUpstream(t, bad), third)
		if got := answers(ask(t, s, "example.org", "A")); got != "SERVFAIL" || third.udp.Load() != 0 {
			t.Errorf("answer %s, third upstream asked %d times", got, third.udp.Load())
		}
	})
	t.Run("source_address", func(t *testing.T) {
		from := make(chan string, 10)
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 512)
			for {
				if _, a, err := pc.ReadFrom(buf); err != nil {
					return
				} else if len(from) < cap(from) {
					from <- a.(*net.UDPAddr).AddrPort().Addr().Unmap().String()
				}
			}
		}()
		t.Cleanup(func() { pc.Close(); <-done })
		running(t, Options{Servers: servers(t, ". {\n forward . "+pc.LocalAddr().String()+" {\n source_address 127.0.0.9\n }\n}")}, nil)
		if got := <-from; got != "127.0.0.9" {
			t.Errorf("the probe comes from %s", got)
		}
	})
	t.Run("health_check domain", func(t *testing.T) {
		probe := make(chan string, 10)
		u := newUpstream(t, func(r *wire.Msg, _ bool) bool {
			if len(probe) < cap(probe) {
				probe <- fmt.Sprintf("%s %v", r.Question[0].Name, r.RecursionDesired)
			}
			return true
		})
		forwarding(t, "health_check 20ms no_rec domain probe.example", u)
		if got := <-probe; got != "probe.example. false" {
			t.Errorf("probe %s", got)
		}
	})
}

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]target{
		"192.0.2.1":                         {addr: netip.MustParseAddrPort("192.0.2.1:53")},
		"dns://192.0.2.1:5353":              {addr: netip.MustParseAddrPort("192.0.2.1:5353")},
		"2001:db8::1":                       {addr: netip.MustParseAddrPort("[2001:db8::1]:53")},
		"tls://9.9.9.9":                     {addr: netip.MustParseAddrPort("9.9.9.9:853"), secure: true},
		"tls://9.9.9.9%dns.quad9.net":       {addr: netip.MustParseAddrPort("9.9.9.9:853"), secure: true, name: "dns.quad9.net"},
		"tls://9.9.9.9%dns.quad9.net:10853": {addr: netip.MustParseAddrPort("9.9.9.9:10853"), secure: true, name: "dns.quad9.net"},
		"tls://2620:fe::fe%dns.quad9.net:8": {addr: netip.MustParseAddrPort("[2620:fe::fe]:8"), secure: true, name: "dns.quad9.net"},
		"/etc/resolv.conf":                  {file: "/etc/resolv.conf"},
	} {
		if got, err := parseTarget(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// TestTrace: a trace tells the way of a question, the upstreams asked and the
// age of a cached answer.
func TestTrace(t *testing.T) {
	bad, good := newUpstream(t, fails(wire.RcodeRefused)), newUpstream(t, says("A 192.0.2.7"))
	text := fmt.Sprintf(". {\n errors\n cache\n rewrite name exact red.example blue.example\n forward . %s %s {\n policy sequential\n }\n}", bad.addr, good.addr)
	s := running(t, Options{Servers: servers(t, text)}, nil)
	want := []string{
		"errors passed on red.example.", "rewrite passed on red.example.", "rewrite rewritten blue.example.", "cache passed on blue.example.", "cache miss blue.example.",
		"forward answered blue.example.", "forward asked blue.example. " + bad.addr.String() + " REFUSED", "forward asked blue.example. " + good.addr.String() + " NOERROR",
		"errors passed on red.example.", "rewrite passed on red.example.", "rewrite rewritten blue.example.", "cache answered blue.example.", "cache hit blue.example.",
	}
	var got []string
	for range 2 {
		q := &plugin.Query{Msg: new(wire.Msg), Name: "red.example.", Type: wire.TypeA, Class: wire.ClassINET, Client: client, Trace: new(plugin.Trace), Block: "."}
		q.Msg.SetQuestion("red.example.", wire.TypeA)
		if _, err := s.live.Load().blocks[0].chain(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		for _, st := range q.Trace.Steps() {
			line := st.Plugin + " " + st.Decision + " " + st.Name
			if st.Upstream != "" {
				line += " " + st.Upstream + " " + st.Rcode
			}
			if st.Block != "." || st.Took == 0 && (st.Decision == "answered" || st.Decision == "asked") {
				t.Errorf("step %+v", st)
			}
			got = append(got, line)
		}
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("steps:\n%s\nwant:\n%s", g, w)
	}
}
