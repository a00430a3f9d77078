package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"nodenet/config"
	"nodenet/state"
)

// over asks a real socket.
func over(network string, to netip.AddrPort, name string, qtype uint16) (*wire.Msg, error) {
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(name), qtype)
	c := wire.Client{Net: network, Timeout: 2 * time.Second}
	r, _, err := c.Exchange(m, to.String())
	return r, err
}

// TestSetAddrs: exactly the sockets that differ are opened and closed.
func TestSetAddrs(t *testing.T) {
	port := freePort(t)
	var mu sync.Mutex
	opened := make(map[string]int)
	freebind := freebindConfig()
	s := running(t, Options{
		Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\n", port)),
		ListenPacket: func(ctx context.Context, network, address string) (net.PacketConn, error) {
			mu.Lock()
			opened[address]++
			mu.Unlock()
			return freebind.ListenPacket(ctx, network, address)
		},
	}, testView(), addr("127.0.0.1"), addr("127.0.0.2"))
	at := func(a string) netip.AddrPort { return netip.AddrPortFrom(addr(a), uint16(port)) }
	answering := func(a string) bool {
		for _, network := range []string{"udp", "tcp"} {
			r, err := over(network, at(a), "web-service.apps.svc.cluster.local", wire.TypeA)
			if err != nil || answers(r) != "10.107.37.188" {
				return false
			}
		}
		return true
	}
	if !answering("127.0.0.1") || !answering("127.0.0.2") {
		t.Fatal("no answer on the first addresses")
	}
	if r, err := over("udp", at("127.0.0.1"), "ns.dns.cluster.local", wire.TypeA); err != nil || answers(r) != "127.0.0.1" {
		t.Errorf("the name server's own address: %v, %v", r, err)
	}
	// 192.0.2.1 is on no interface: it is bound all the same.
	s.SetAddrs([]netip.Addr{addr("127.0.0.2"), addr("127.0.0.3"), addr("192.0.2.1"), addr("127.0.0.3")})
	waitFor(t, "the new addresses", func() bool { return len(s.Status().Listening) == 3 && s.Status().Listening[0] == at("127.0.0.2") })
	if !answering("127.0.0.2") || !answering("127.0.0.3") {
		t.Error("no answer on the new addresses")
	}
	if pc, err := net.ListenPacket("udp", at("127.0.0.1").String()); err != nil {
		t.Errorf("the old address is still taken: %v", err)
	} else {
		pc.Close()
	}
	s.SetAddrs([]netip.Addr{addr("127.0.0.2"), addr("127.0.0.3"), addr("192.0.2.1")})
	s.Set(testView())
	waitFor(t, "the same again", func() bool { return len(s.wake) == 0 })
	mu.Lock()
	defer mu.Unlock()
	for a, n := range opened {
		if n != 1 {
			t.Errorf("%s was opened %d times", a, n)
		}
	}
}

// TestAddressInUse: a taken address is reported and tried again; the others
// serve meanwhile.
func TestAddressInUse(t *testing.T) {
	port := freePort(t)
	taken := netip.AddrPortFrom(addr("127.0.0.2"), uint16(port))
	pc, err := net.ListenPacket("udp", taken.String())
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\n", port))}, testView(), addr("127.0.0.1"))
	s.SetAddrs([]netip.Addr{addr("127.0.0.1"), taken.Addr()})
	waitFor(t, "the problem to show", func() bool {
		st := s.Status()
		return !st.OK && strings.Contains(st.Error, taken.String()) && strings.Contains(st.Error, "address already in use") && st.Fix != ""
	})
	if _, err := over("udp", netip.AddrPortFrom(addr("127.0.0.1"), uint16(port)), "cluster.local", wire.TypeSOA); err != nil {
		t.Errorf("the other address: %v", err)
	}
	pc.Close()
	waitFor(t, "the address to be taken over", func() bool { return s.Status().OK && len(s.Status().Listening) == 2 })
}

// TestSocketFails: a socket that fails is opened again.
func TestSocketFails(t *testing.T) {
	port := freePort(t)
	sockets := make(chan net.PacketConn, 10)
	freebind := freebindConfig()
	running(t, Options{
		Servers: servers(t, fmt.Sprintf(".:%d {\n whoami\n}\n", port)),
		ListenPacket: func(ctx context.Context, network, address string) (net.PacketConn, error) {
			pc, err := freebind.ListenPacket(ctx, network, address)
			if err == nil {
				sockets <- pc
			}
			return pc, err
		},
	}, nil, addr("127.0.0.1"))
	(<-sockets).Close()
	<-sockets
	waitFor(t, "answers", func() bool {
		_, err := over("udp", netip.AddrPortFrom(addr("127.0.0.1"), uint16(port)), "x", wire.TypeA)
		return err == nil
	})
}

// TestReload: changed blocks are taken over, sockets and caches that stay
// are kept, a faulty file changes nothing.
func TestReload(t *testing.T) {
	p1, p2 := freePort(t), freePort(t)
	text := func(a string, ports ...int) string {
		out := fmt.Sprintf("stays.example:%d {\n reload 2s\n cache\n whoami\n}\n", p1)
		for _, p := range ports {
			out += fmt.Sprintf("changes.example:%d {\n hosts testdata/none {\n %s a.changes.example\n }\n}\n", p, a)
		}
		return out
	}
	var file atomic.Pointer[[]config.Server]
	var broken atomic.Bool
	set := func(text string) { srv := servers(t, text); file.Store(&srv) }
	set(text("192.0.2.1", p1))
	freebind := freebindConfig()
	var opened atomic.Int64
	s, err := New(Options{
		Servers: *file.Load(),
		Load: func() ([]config.Server, error) {
			if broken.Load() {
				return nil, errors.New("Nodefile:1: broken")
			}
			return *file.Load(), nil
		},
		ListenPacket: func(ctx context.Context, network, address string) (net.PacketConn, error) {
			opened.Add(1)
			return freebind.ListenPacket(ctx, network, address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.live.Load().blocks[0].reload.every = 20 * time.Millisecond
	start(t, s, nil, addr("127.0.0.1"))
	at := func(p int) netip.AddrPort { return netip.AddrPortFrom(addr("127.0.0.1"), uint16(p)) }
	get := func(p int) string {
		r, err := over("udp", at(p), "a.changes.example", wire.TypeA)
		if err != nil {
			return err.Error()
		}
		return answers(r)
	}
	if got := get(p1); got != "192.0.2.1" {
		t.Fatal(got)
	}
	kept := s.live.Load().blocks[0]
	set(text("192.0.2.2", p1, p2))
	waitFor(t, "the new blocks", func() bool { return get(p1) == "192.0.2.2" })
	waitFor(t, "the new port", func() bool { return len(s.Status().Listening) == 2 && get(p2) == "192.0.2.2" })
	if s.live.Load().blocks[0] != kept {
		t.Error("a block that did not change was replaced")
	}
	if n := opened.Load(); n != 2 {
		t.Errorf("%d sockets were opened, want 2", n)
	}
	broken.Store(true)
	waitFor(t, "the error to show", func() bool { return strings.Contains(s.Status().Error, "broken") })
	if got := get(p1); got != "192.0.2.2" {
		t.Errorf("after a faulty file: %s", got)
	}
	broken.Store(false)
	set(text("192.0.2.3", p1))
	waitFor(t, "recovery", func() bool { return s.Status().OK && get(p1) == "192.0.2.3" && len(s.Status().Listening) == 1 })
}

// TestHTTP: health, ready and metrics; two of them share an address.
func TestHTTP(t *testing.T) {
	p1, p2 := freePort(t), freePort(t)
	text := fmt.Sprintf(". {\n health 127.0.0.1:%d\n ready 127.0.0.1:%d\n prometheus 127.0.0.1:%d\n cluster\n}\n", p1, p1, p2)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(port int, path string) (int, string) {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	var nodeReady atomic.Bool
	s := running(t, Options{Servers: servers(t, text), Registry: prometheus.NewRegistry(), Ready: nodeReady.Load}, nil)
	waitFor(t, "health", func() bool { code, _ := get(p1, "/health"); return code == 200 })
	if code, body := get(p1, "/ready"); code != 503 || !strings.Contains(body, "cluster data, node") {
		t.Errorf("ready: %d %s", code, body)
	}
	nodeReady.Store(true)
	s.Set(testView())
	waitFor(t, "ready", func() bool { code, _ := get(p1, "/ready"); return code == 200 })
	ask(t, s, "cluster.local", "SOA")
	var body string
	waitFor(t, "metrics", func() bool { var code int; code, body = get(p2, "/metrics"); return code == 200 })
	for _, want := range []string{
		`nodenet_dns_queries_total{proto="udp",rcode="NOERROR",source="cluster",type="SOA"} 1`,
		`nodenet_dns_query_seconds_count{source="cluster"} 1`,
		"nodenet_dns_cache_hits_total 0", "nodenet_dns_cache_misses_total 0", "nodenet_dns_panics_total 0",
		"nodenet_dns_forward_shed_total 0", "nodenet_dns_reloads_total 0",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// TestLameduck: after the end the server still answers, as unhealthy.
func TestLameduck(t *testing.T) {
	port, web := freePort(t), freePort(t)
	text := fmt.Sprintf(".:%d {\n health 127.0.0.1:%d {\n lameduck 300ms\n }\n whoami\n}\n", port, web)
	s, err := New(Options{Servers: servers(t, text)})
	if err != nil {
		t.Fatal(err)
	}
	s.SetAddrs([]netip.Addr{addr("127.0.0.1")})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	waitFor(t, "the socket", func() bool { return len(s.Status().Listening) == 1 })
	cancel()
	waitFor(t, "the lameduck period", s.draining.Load)
	if r, err := over("udp", netip.AddrPortFrom(addr("127.0.0.1"), uint16(port)), "x", wire.TypeA); err != nil || answers(r) != "127.0.0.1" {
		t.Errorf("answer in the lameduck period: %v, %v", r, err)
	}
	if msg := s.unready(); msg != "shutting down" {
		t.Errorf("ready says %q", msg)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := s.Query(context.Background(), new(wire.Msg), client, false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Query after the end: %v", err)
	}
}

// TestDig lets an independent client judge.
func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("needs dig (package bind9-dnsutils)")
	}
	port := freePort(t)
	v, base := bigView(150), testView()
	v = state.NewView(state.View{Rev: v.Rev, Names: base.Names}, nil, slices.AppendSeq(slices.Collect(v.Services()), base.Services()))
	text := fmt.Sprintf(".:%d {\n cluster\n}\n", port)
	running(t, Options{Servers: servers(t, text)}, v, addr("127.0.0.1"))
	run := func(args ...string) string {
		args = append([]string{"-r", "@127.0.0.1", "-p", fmt.Sprint(port), "+time=2", "+tries=1"}, args...)
		out, err := exec.Command(dig, args...).CombinedOutput()
		if err != nil {
			t.Errorf("dig %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	tests := []struct {
		args string
		want []string
		not  []string
	}{
		{"+short web-service.apps.svc.cluster.local", []string{"10.107.37.188\n"}, nil},
		{"+short +tcp web-service.apps.svc.cluster.local", []string{"10.107.37.188\n"}, nil},
		{"+short eat.web-server", []string{"food.web-server.\n192.168.1.10\n"}, nil},
		{"+short -x 10.107.37.188", []string{"web-service.apps.svc.cluster.local.\n"}, nil},
		{"nothing.apps.svc.cluster.local", []string{"status: NXDOMAIN", "AUTHORITY: 1", "SOA"}, []string{"WARNING: Message"}},
		{"+ignore +noedns big.a.svc.cluster.local", []string{"flags: qr aa tc rd"}, nil},
		{"+noedns big.a.svc.cluster.local", []string{"Truncated, retrying in TCP mode", "ANSWER: 150"}, nil},
		{"+noedns +noad +norec cluster.local SOA", []string{"status: NOERROR", "flags: qr aa;", "ANSWER: 1"}, []string{"EDNS"}},
		{"+noedns +noad +norec cluster.local TYPE1000", []string{"status: NOERROR", "ANSWER: 0"}, nil},
		{"+noedns +noad +norec +opcode=15 +header-only", []string{"status: NOTIMP", "opcode: RESERVED15"}, nil},
		{"+nocookie +edns=0 +noad +norec cluster.local SOA", []string{"status: NOERROR", "EDNS: version: 0, flags:; udp: 1232"}, nil},
		{"+nocookie +edns=1 +noednsneg +noad +norec cluster.local SOA", []string{"status: BADVERS", "EDNS: version: 0", "ANSWER: 0"}, nil},
		{"+nocookie +edns=0 +noad +norec +ednsopt=100 cluster.local SOA", []string{"status: NOERROR"}, []string{"OPT=100"}},
		{"+nocookie +edns=0 +noad +norec +ednsflags=0x40 cluster.local SOA", []string{"status: NOERROR", "flags:; udp"}, []string{"MBZ"}},
		{"+tcp +nocookie +edns=1 +noednsneg +noad +norec cluster.local SOA", []string{"status: BADVERS"}, nil},
	}
	for _, tt := range tests {
		out := run(strings.Fields(tt.args)...)
		for _, w := range tt.want {
			if !strings.Contains(out, w) {
				t.Errorf("dig %s: no %q in\n%s", tt.args, w, out)
			}
		}
		for _, w := range tt.not {
			if strings.Contains(out, w) {
				t.Errorf("dig %s: %q in\n%s", tt.args, w, out)
			}
		}
	}
}

// TestLab22 runs the classic Corefile word for word; hooks move its ports to
// free ones on loopback.
func TestLab22(t *testing.T) {
	var mu sync.Mutex
	moved := make(map[string]string) // port in the file → address
	move := func(address string) string {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if moved[port] == "" {
			moved[port] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		}
		return moved[port]
	}
	at := func(port string) string { mu.Lock(); defer mu.Unlock(); return moved[port] }
	var lc net.ListenConfig
	s := running(t, Options{
		Servers:    servers(t, lab22),
		ResolvConf: "testdata/none",
		ListenPacket: func(ctx context.Context, network, address string) (net.PacketConn, error) {
			return lc.ListenPacket(ctx, network, move(address))
		},
		Listen: func(ctx context.Context, network, address string) (net.Listener, error) {
			return lc.Listen(ctx, network, move(address))
		},
	}, testView(), addr("10.96.0.10"))
	waitFor(t, "health and metrics", func() bool { return at("8080") != "" && at("9153") != "" })
	to := netip.MustParseAddrPort(at("53"))
	for name, want := range map[string]string{
		"web-service.apps.svc.cluster.local": "10.107.37.188",
		"10-244-2-5.apps.pod.cluster.local":  "10.244.2.5",
		"nothing.apps.svc.cluster.local":     "NXDOMAIN",
		"example.org":                        "SERVFAIL", // no upstream in this test
	} {
		if r, err := over("udp", to, name, wire.TypeA); err != nil || answers(r) != want || !r.RecursionAvailable {
			t.Errorf("%s: %v, %v, want %s", name, r, err, want)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, url := range []string{"http://" + at("8080") + "/health", "http://" + at("9153") + "/metrics"} {
		waitFor(t, url, func() bool {
			resp, err := client.Get(url)
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == 200
		})
	}
	if d := s.Status().Detail; !strings.HasPrefix(d, "10.96.0.10:53, 0 q/s") {
		t.Errorf("Detail %q", d)
	}
}
