package dns

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/goleak"

	"nodenet/config"
	"nodenet/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Addresses: nodes 192.168.1.11-13, pods 10.244.0.0/16, VIPs 10.96.0.0/12,
// a local network 172.30.0.0/24, IPv6 2001:db8::/32.
func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// servers parses server blocks with the real configuration parser.
func servers(t testing.TB, text string) []config.Server {
	t.Helper()
	env := config.Env{Hostname: "node1", LookupEnv: func(string) (string, bool) { return "", false }}
	c, err := config.Parse("Nodefile", strings.NewReader(text), env)
	if err != nil {
		t.Fatalf("parse Nodefile: %v", err)
	}
	return c.Servers
}

// testView is a small cluster with one of everything.
func testView() *state.View {
	const n1, n2 = state.NodeID("n1"), state.NodeID("n2")
	port := func(name, proto string, p uint16) state.ServicePort {
		return state.ServicePort{Name: name, Protocol: proto, Port: p}
	}
	backend := func(a string, ready bool, host string, targets ...uint16) state.BackendOf {
		return state.BackendOf{Addr: addr(a), Targets: targets, Hostname: host, Ready: ready}
	}
	endpoint := func(ns, name, network string, owner state.NodeID, serving bool, addrs ...string) *state.EndpointView {
		e := &state.EndpointView{Endpoint: new(state.Endpoint), Owner: owner, Serving: serving}
		e.ID, e.Namespace, e.Name, e.Network = ns+"."+name+"."+addrs[0], ns, name, network
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, addr(a))
		}
		return e
	}
	aliased := endpoint("apps", "Cache-1", "pods", n1, true, "10.244.1.9", "2001:db8:1::9")
	aliased.Aliases = []string{"redis"}
	lease := endpoint("default", "printer.lan", "pods", n2, true, "10.244.2.77")
	lease.Lease = true
	return state.NewView(state.View{
		Rev: 7, Self: n1,
		Nodes: []state.NodeView{
			{ID: n1, Node: state.Node{Name: "node1", Advertise: addr("192.168.1.11")}, State: state.Alive, Self: true, Serving: true},
			{ID: n2, Node: state.Node{Name: "Node2", Advertise: addr("192.168.1.12")}, State: state.Alive, Serving: true},
			{ID: "n3", Node: state.Node{Name: "node3", Advertise: addr("192.168.1.13")}, State: state.Dead},
		},
		Networks: []state.NetworkView{
			{Network: state.Network{Name: "local", Prefix: netip.MustParsePrefix("172.30.0.0/24"), Overlay: state.OverlayNone}},
			{Network: state.Network{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Overlay: state.OverlayVXLAN}},
		},
		Names: []state.Name{
			{Name: "eat.web-server", Type: "CNAME", Target: "food.web-server"},
			{Name: "food.web-server", Type: "A", Target: "192.168.1.10"},
			{Name: "food.web-server", Type: "AAAA", Target: "2001:db8::10"},
			{Name: "hungry.web-server", Type: "CNAME", Target: "food.web-server"},
			{Name: "shop.cluster.local", Type: "CNAME", Target: "web-service.apps.svc.cluster.local"},
			{Name: "web-service.apps.svc.cluster.local", Type: "A", Target: "192.0.2.1"},
			{Name: "web-service.apps.svc.cluster.local", Type: "CNAME", Target: "evil.example"},
		},
	}, []*state.EndpointView{
		endpoint("default", "here", "local", n1, true, "172.30.0.2"),
		endpoint("default", "there", "local", n2, true, "172.30.0.2"),
		endpoint("default", "", "pods", n1, true, "10.244.1.5"),
		aliased,
		endpoint("apps", "sick", "pods", n1, false, "10.244.1.10"),
		endpoint("apps", "", "pods", n2, true, "10.244.2.5"),
		lease,
	}, []*state.ServiceView{
		{
			Service: state.Service{Namespace: "apps", Name: "web-service", Ports: []state.ServicePort{port("http", "tcp", 80), port("", "udp", 443)}},
			VIP:     addr("10.107.37.188"),
			Backends: []state.BackendOf{
				backend("10.244.1.9", true, "", 8080, 8443), backend("10.244.1.10", false, "", 8080, 8443), backend("10.244.2.5", true, "", 8080, 0),
			},
		},
		{Service: state.Service{Namespace: "apps", Name: "outside", External: "Target.Example.Org"}},
		{Service: state.Service{Namespace: "apps", Name: "inside", External: "web-service.apps.svc.cluster.local"}},
		{Service: state.Service{Namespace: "apps", Name: "lost", External: "nothing.apps.svc.cluster.local"}},
		{Service: state.Service{Namespace: "apps", Name: "selfish", External: "selfish.apps.svc.cluster.local"}},
		{Service: state.Service{Namespace: "apps", Name: "waiting", Ports: []state.ServicePort{port("http", "tcp", 80)}}},
		{
			Service:  state.Service{Namespace: "apps", Name: "asleep", Headless: true, Ports: []state.ServicePort{port("http", "tcp", 80)}},
			Backends: []state.BackendOf{backend("10.244.1.10", false, "", 80)},
		},
		{
			Service: state.Service{Namespace: "data", Name: "db", Headless: true, Ports: []state.ServicePort{port("mysql", "tcp", 3306), port("metrics", "tcp", 9104)}},
			Backends: []state.BackendOf{
				backend("10.244.1.20", true, "db-0", 3306, 9104), backend("10.244.2.20", true, "DB-1", 3307, 0),
				backend("2001:db8:1::20", true, "", 3306, 9104), backend("10.244.2.21", false, "db-2", 3306, 9104),
			},
		},
		{
			Service: state.Service{Namespace: "default", Name: "six", Ports: []state.ServicePort{port("dns", "udp", 53)}},
			VIP6:    addr("2001:db8:96::1"),
		},
	})
}

// running starts a server and waits until it has taken over the view (nil:
// none). It stops with the test.
func running(t testing.TB, o Options, v *state.View, addrs ...netip.Addr) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return start(t, s, v, addrs...)
}

// start is running for a server that the test has made itself.
func start(t testing.TB, s *Server, v *state.View, addrs ...netip.Addr) *Server {
	t.Helper()
	s.tick = 10 * time.Millisecond
	if v != nil {
		s.Set(v)
	}
	s.SetAddrs(addrs)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	waitFor(t, "the server to run", func() bool {
		st := s.Status()
		return s.running.Load() && (v == nil || st.Applied == v.Rev) && len(st.Listening) >= len(addrs)
	})
	return s
}

// waitFor waits for a condition.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("timeout waiting for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

var client = netip.MustParseAddrPort("10.244.1.5:40000")

// ask sends a question through the chain.
func ask(t testing.TB, s *Server, name, qtype string) *wire.Msg {
	t.Helper()
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(name), wire.StringToType[qtype])
	return send(t, s, m)
}

func send(t testing.TB, s *Server, m *wire.Msg) *wire.Msg {
	t.Helper()
	r, err := s.Query(context.Background(), m, client, false)
	if err != nil {
		t.Fatalf("query %v: %v", m.Question, err)
	}
	return r
}

// render writes a reply as text: rcode and flags, then the records of each
// section, sorted.
func render(r *wire.Msg) string {
	var b strings.Builder
	b.WriteString(wire.RcodeToString[r.Rcode])
	for _, f := range []struct {
		set  bool
		name string
	}{{r.Authoritative, "aa"}, {r.Truncated, "tc"}, {r.RecursionAvailable, "ra"}, {r.AuthenticatedData, "ad"}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	b.WriteByte('\n')
	for _, sec := range []struct {
		name string
		rrs  []wire.RR
	}{{"", r.Answer}, {"authority ", r.Ns}, {"additional ", r.Extra}} {
		var lines []string
		for _, rr := range sec.rrs {
			lines = append(lines, sec.name+strings.Join(strings.Fields(rr.String()), " ")+"\n")
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

// answers lists the data of a reply's answer section, sorted.
func answers(r *wire.Msg) string {
	var out []string
	for _, rr := range r.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(out)
	return cmp.Or(strings.Join(out, " "), wire.RcodeToString[r.Rcode])
}

// freePort returns a port that is free for UDP and TCP on 127.0.0.1.
func freePort(t testing.TB) int {
	t.Helper()
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port
		pc, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		ln.Close()
		if err == nil {
			pc.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
