package dns

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// TestPipelining: over TCP a slow question does not hold up the quick ones
// behind it, and every answer belongs to its question.
func TestPipelining(t *testing.T) {
	release := make(chan struct{})
	u := newUpstream(t, func(r *wire.Msg, tcp bool) bool {
		if r.Question[0].Name == "slow.example." {
			<-release
		}
		return says("A 192.0.2.7")(r, tcp)
	})
	port := freePort(t)
	running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n forward . %s\n}\n", port, u.addr))}, testView(), addr("127.0.0.1"))
	c, err := wire.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	names := []string{"slow.example.", "web-service.apps.svc.cluster.local.", "quick.example."}
	for i, n := range names {
		m := new(wire.Msg)
		m.SetQuestion(n, wire.TypeA)
		m.Id = uint16(i)
		if err := c.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for i := range names {
		if i == 2 {
			close(release)
		}
		r, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if got := names[r.Id]; got != r.Question[0].Name || i < 2 && r.Id == 0 || i == 2 && r.Id != 0 {
			t.Errorf("answer %d is %d, about %s", i, r.Id, r.Question[0].Name)
		}
	}
}

// TestStreamGarbage: what is no DNS ends the connection, and faulty messages
// are answered.
func TestStreamGarbage(t *testing.T) {
	port := freePort(t)
	running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\n", port))}, testView(), addr("127.0.0.1"))
	exchange := func(b []byte) []byte {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_ = c.(*net.TCPConn).CloseWrite()
		out, _ := io.ReadAll(c)
		return out
	}
	if got := exchange([]byte("hello")); len(got) != 0 {
		t.Errorf("answer to no message: %x", got)
	}
	m := new(wire.Msg)
	m.SetQuestion("cluster.local.", wire.TypeSOA)
	good, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(good[:len(good)-3]); len(got) < 2+headerLen || got[5]&0xF != wire.RcodeFormatError {
		t.Errorf("answer to half a question: %x", got)
	}
	m.Opcode = 15
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(b); len(got) < 2+headerLen || got[5]&0xF != wire.RcodeNotImplemented {
		t.Errorf("answer to opcode 15: %x", got)
	}
	if got := exchange(good); len(got) < 2+headerLen || got[5]&0xF != wire.RcodeSuccess {
		t.Errorf("answer to a question whose client writes no more: %x", got)
	}
}

// TestPerClient: one client has its share of the connections, and gets it
// back when it lets go.
func TestPerClient(t *testing.T) {
	port := freePort(t)
	running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\n", port))}, testView(), addr("127.0.0.1"))
	to := fmt.Sprintf("127.0.0.1:%d", port)
	m := new(wire.Msg)
	m.SetQuestion("cluster.local.", wire.TypeSOA)
	works := func(c *wire.Conn) bool {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if c.WriteMsg(m) != nil {
			return false
		}
		_, err := c.ReadMsg()
		return err == nil
	}
	dial := func(from string) *wire.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return &wire.Conn{Conn: c}
	}
	var first *wire.Conn
	for i := range maxTCPPerClient {
		c := dial("127.0.0.1")
		if !works(c) {
			t.Fatalf("connection %d does not work", i)
		}
		if first == nil {
			first = c
		}
	}
	if works(dial("127.0.0.1")) {
		t.Error("one connection too many works")
	}
	if !works(dial("127.0.0.5")) {
		t.Error("another client is kept out")
	}
	first.Close()
	waitFor(t, "a place", func() bool { return works(dial("127.0.0.1")) })
}

// TestTLS: DNS over TLS and over HTTPS, with a certificate that is renewed.
func TestTLS(t *testing.T) {
	cert, key := certificate(t, "dns.example")
	tlsPort, webPort := freePort(t), freePort(t)
	text := fmt.Sprintf("tls://.:%d https://.:%d {\n tls %s %s\n cluster\n template ANY ANY example {\n expr proto() in ['tls', 'https']\n answer \"{{ .Name }} 60 IN A 192.0.2.7\"\n }\n}\n", tlsPort, webPort, cert, key)
	s := running(t, Options{Servers: servers(t, text)}, testView())
	s.SetAddrs([]netip.Addr{addr("127.0.0.1")})
	trust := func() *tls.Config {
		pem, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		return &tls.Config{RootCAs: pool, ServerName: "dns.example"}
	}
	over := func() string {
		c := wire.Client{Net: "tcp-tls", TLSConfig: trust(), Timeout: 5 * time.Second}
		m := new(wire.Msg)
		m.SetQuestion("WWW.example.", wire.TypeA)
		r, _, err := c.Exchange(m, fmt.Sprintf("127.0.0.1:%d", tlsPort))
		if err != nil {
			return err.Error()
		}
		return r.Question[0].Name + " " + answers(r)
	}
	waitFor(t, "the sockets", func() bool { return over() == "WWW.example. 192.0.2.7" })

	web := &http.Client{Transport: &http.Transport{TLSClientConfig: trust(), DisableKeepAlives: true, ForceAttemptHTTP2: true}}
	m := new(wire.Msg)
	m.SetQuestion("www.example.", wire.TypeA)
	m.Id = 0
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	base := fmt.Sprintf("https://127.0.0.1:%d", webPort)
	get := base + "/dns-query?dns=" + base64.RawURLEncoding.EncodeToString(b)
	for _, tt := range []struct {
		name, method, url, kind, body, want string
	}{
		{"POST", "POST", base + "/dns-query", dohType, string(b), "200 max-age=60 192.0.2.7"},
		{"GET", "GET", get, "", "", "200 max-age=60 192.0.2.7"},
		{"another type", "POST", base + "/dns-query", "text/plain", string(b), "415"},
		{"no message", "POST", base + "/dns-query", dohType, "x", "400"},
		{"no base64", "GET", base + "/dns-query?dns=!", "", "", "400"},
		{"another path", "GET", base + "/", "", "", "404"},
		{"PUT", "PUT", base + "/dns-query", dohType, string(b), "405"},
	} {
		req, err := http.NewRequest(tt.method, tt.url, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", tt.kind)
		resp, err := web.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(resp.StatusCode)
		if resp.StatusCode == http.StatusOK {
			r := new(wire.Msg)
			if err := r.Unpack(body); err != nil {
				t.Fatal(err)
			}
			got += " " + resp.Header.Get("Cache-Control") + " " + answers(r)
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}

	newCert, newKey := certificate(t, "dns.example")
	for from, to := range map[string]string{newKey: key, newCert: cert} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(time.Minute) // files of one size and one tick of the clock
	if err := os.Chtimes(cert, later, later); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the renewed certificate", func() bool { return over() == "WWW.example. 192.0.2.7" })
}

// TestTransfer: a zone that takes many messages arrives whole, and only at
// whom it may.
func TestTransfer(t *testing.T) {
	dir := t.TempDir()
	var zone bytes.Buffer
	zone.WriteString("@ 3600 SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n")
	const n = 5000
	for i := range n {
		fmt.Fprintf(&zone, "host%d TXT \"%s\"\n", i, strings.Repeat("x", 50))
	}
	if err := os.WriteFile(filepath.Join(dir, "db"), zone.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	running(t, Options{Servers: servers(t, fmt.Sprintf("example:%d {\n root %s\n file db\n transfer {\n to 127.0.0.1\n }\n}\nexample.org:%[1]d {\n root %[2]s\n file db\n}\n", port, dir))}, nil, addr("127.0.0.1"))
	transfer := func(zone, from string) (records, messages int, err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return 0, 0, err
		}
		tr := &wire.Transfer{Conn: &wire.Conn{Conn: c}}
		in, err := tr.In(new(wire.Msg).SetAxfr(zone), "")
		if err != nil {
			return 0, 0, err
		}
		for e := range in {
			if e.Error != nil {
				return records, messages, e.Error
			}
			records += len(e.RR)
			messages++
		}
		return records, messages, nil
	}
	if r, m, err := transfer("example.", "127.0.0.1"); err != nil || r != n+4 || m < 10 {
		t.Errorf("%d records in %d messages, %v", r, m, err)
	}
	if _, _, err := transfer("example.", "127.0.0.9"); err == nil || !strings.Contains(err.Error(), "bad xfr rcode: 5") {
		t.Errorf("another client: %v", err)
	}
	if _, _, err := transfer("example.org.", "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "bad xfr rcode: 5") {
		t.Errorf("a zone that is not to be copied: %v", err)
	}
}

// TestRatelimit: a client that asks too much gets no answer over UDP and
// loses its connection over TCP; others are not concerned.
func TestRatelimit(t *testing.T) {
	port := freePort(t)
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n ratelimit 1 3 {\n except 198.51.100.0/24\n}\n cluster\n}\n", port))}, testView(), addr("127.0.0.1"))
	tab := s.live.Load().tables[netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))]
	for client, want := range map[string]bool{"192.0.2.1": true, "127.0.0.1": false, "198.51.100.7": false} {
		for range 3 {
			if tab.overLimit(addr(client)) {
				t.Errorf("%s is limited within its burst", client)
			}
		}
		if got := tab.overLimit(addr(client)); got != want {
			t.Errorf("%s: limited %v, want %v", client, got, want)
		}
	}
	if running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n ratelimit off\n cluster\n}\n", freePort(t)))}, testView(), addr("127.0.0.1")).live.Load().main.limit != nil {
		t.Error("off is not off")
	}
	if s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\n", freePort(t)))}, testView(), addr("127.0.0.1")); s.limiter == nil {
		t.Error("no limit by default")
	} else {
		for ap, tab := range s.live.Load().tables {
			if tab.limit != s.limiter {
				t.Errorf("%s has no limit by default", ap)
			}
		}
	}
}
