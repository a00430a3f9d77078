package check

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func at(t *testing.T, a net.Addr) netip.AddrPort {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

// ask runs a probe with a limit; "" when it is well.
func ask(t *testing.T, p Probe, limit time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	begun := time.Now()
	err := p.Run(ctx)
	if took := time.Since(begun); took > limit+2*time.Second {
		t.Errorf("%s: took %s, limit %s", p.Type, took, limit)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

// unused is a TCP and UDP port that nobody listens on.
func unused(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := at(t, l.Addr())
	l.Close()
	return a
}

// silent accepts connections and says nothing.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return at(t, l.Addr())
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if want == "" && got != "" || !strings.Contains(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestTCP(t *testing.T) {
	want(t, "listener", ask(t, Probe{Type: "tcp", Addr: silent(t)}, time.Second), "")
	gone := unused(t)
	want(t, "nobody", ask(t, Probe{Type: "tcp", Addr: gone}, time.Second), "connect to "+gone.String()+": connection refused")
}

func TestHTTP(t *testing.T) {
	var host, agent string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, agent = r.Host, r.UserAgent()
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		case "/query":
			if r.URL.RawQuery != "deep=1" {
				w.WriteHeader(http.StatusBadRequest)
			}
		default:
			if code, err := strconv.Atoi(r.URL.Path[1:]); err == nil {
				w.WriteHeader(code)
			}
		}
	})
	plain, tls := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer tls.Close()
	p, s := at(t, plain.Listener.Addr()), at(t, tls.Listener.Addr())
	for name, c := range map[string]struct {
		probe Probe
		want  string
	}{
		"root":                {Probe{Type: "http", Addr: p}, ""},
		"no content":          {Probe{Type: "http", Addr: p, Path: "/204"}, ""},
		"redirect":            {Probe{Type: "http", Addr: p, Path: "/redirect"}, ""},
		"query":               {Probe{Type: "http", Addr: p, Path: "/query?deep=1"}, ""},
		"not found":           {Probe{Type: "http", Addr: p, Path: "/404"}, fmt.Sprintf("GET http://%s/404: status 404", p)},
		"broken":              {Probe{Type: "http", Addr: p, Path: "/500"}, "status 500"},
		"slow":                {Probe{Type: "http", Addr: p, Path: "/slow"}, "timeout"},
		"says nothing":        {Probe{Type: "http", Addr: silent(t)}, "timeout"},
		"nobody":              {Probe{Type: "http", Addr: unused(t)}, "connection refused"},
		"own certificate":     {Probe{Type: "https", Addr: s}, ""},
		"https, a name":       {Probe{Type: "https", Addr: s, Host: "www.example.org"}, ""},
		"https, broken":       {Probe{Type: "https", Addr: s, Path: "/503"}, "status 503"},
		"https to plain http": {Probe{Type: "https", Addr: p}, "GET https://"},
	} {
		want(t, name, ask(t, c.probe, 300*time.Millisecond), c.want)
	}
	if ask(t, Probe{Type: "http", Addr: p, Host: "www.example.org"}, time.Second); host != "www.example.org" || agent != "nodenet-check" {
		t.Errorf("asked host %q as %q", host, agent)
	}
}

func TestUDP(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want(t, "a listener that says nothing", ask(t, Probe{Type: "udp", Addr: at(t, c.LocalAddr())}, 100*time.Millisecond), "")
	gone := unused(t)
	want(t, "nobody", ask(t, Probe{Type: "udp", Addr: gone}, time.Second), "send to "+gone.String()+": connection refused")
}

func TestDNS(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &mdns.Server{PacketConn: c, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(q)
		switch q.Question[0].Name {
		case "www.example.org.":
			rr, _ := mdns.NewRR("www.example.org. 5 A 192.0.2.1")
			m.Answer = append(m.Answer, rr)
		case "gone.example.org.":
			m.Rcode = mdns.RcodeNameError
		case ".":
			m.Rcode = mdns.RcodeRefused
		}
		w.WriteMsg(m)
	})}
	go srv.ActivateAndServe()
	defer srv.Shutdown()
	server := at(t, c.LocalAddr())
	for name, c := range map[string]struct{ host, want string }{
		"an answer":     {"www.example.org", ""},
		"no such name":  {"gone.example.org", "for gone.example.org.: NXDOMAIN"},
		"nothing in it": {"empty.example.org", "no answer in it"},
		"any answer":    {"", ""},
	} {
		want(t, name, ask(t, Probe{Type: "dns", Addr: server, Host: c.host}, time.Second), c.want)
	}
	want(t, "nobody", ask(t, Probe{Type: "dns", Addr: unused(t)}, time.Second), "connection refused")
}

// program writes a script into a directory of checks.
func program(t *testing.T, dir, name, text string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestExec(t *testing.T) {
	dir := t.TempDir()
	probe := func(command ...string) Probe {
		return Probe{Type: "exec", Dir: dir, Command: command, Service: "web.apps", Endpoint: "apps.web-1", Addr: netip.MustParseAddrPort("10.244.0.2:80")}
	}
	for name, c := range map[string]struct {
		text string
		args []string
		want string
	}{
		"well":           {"exit 0", nil, ""},
		"status":         {"exit 3", nil, "exit status 3"},
		"says why":       {"echo replication is 40 s behind; echo more >&2; exit 2", nil, "exit status 2: replication is 40 s behind"},
		"told whom":      {`[ "$NODENET_SERVICE $NODENET_ENDPOINT $NODENET_ADDR" = "web.apps apps.web-1 10.244.0.2" ]`, nil, ""},
		"arguments":      {`[ "$1" = "a; b" ]`, []string{"a; b"}, ""},
		"no environment": {`[ -z "$HOME$NODENET_TEST_SECRET" ]`, nil, ""},
		"talkative":      {"head -c 10000000 /dev/zero", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NODENET_TEST_SECRET", "x")
			file := program(t, dir, strings.ReplaceAll(name, " ", "-"), c.text)
			want(t, name, ask(t, probe(append([]string{file}, c.args...)...), 10*time.Second), c.want)
		})
	}
	want(t, "elsewhere", ask(t, probe("/bin/true"), time.Second), "this node runs checks from "+dir+" alone")
	want(t, "a way out", ask(t, probe(dir+"/../../bin/true"), time.Second), "this node runs checks from")
	want(t, "not there", ask(t, probe(dir+"/none"), time.Second), "no such file")
}

// A program that hangs is killed with all that it started; so is what one that
// ended left in the background, and neither holds the check up.
func TestExecKillsTheGroup(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"hangs":      {"sleep 600 & echo $! >$1; wait", "timeout"},
		"background": {"sleep 600 & echo $! >$1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file, pid := program(t, dir, "check", c.text), filepath.Join(dir, "pid")
			want(t, name, ask(t, Probe{Type: "exec", Dir: dir, Command: []string{file, pid}}, 3*time.Second), c.want)
			data, err := os.ReadFile(pid)
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				t.Fatal(err)
			}
			for range 100 { // init reaps it
				if err := syscall.Kill(child, 0); err != nil {
					return
				}
				if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child)); strings.Contains(string(stat), ") Z ") {
					return // dead, and nobody here reaps
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("process %d still runs", child)
		})
	}
}

func TestUnknownType(t *testing.T) {
	want(t, "of a later version", ask(t, Probe{Type: "grpc"}, time.Second), "this version does not know it")
}
