package lb

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/lb"
	"nodenet/state"
)

// The topology: a client and a server, joined by four nodes side by side. Each
// way has its own cables, so that what differs is the node between.
//
//	client 10.20.x.2 ── 10.20.x.1 node x 10.244.x.1 ── 10.244.x.2 server
//
//	1 plain   forwards with conntrack, no NAT
//	2 one     our rules, one service
//	3 many    our rules, 30 000 services
//	4 proxy   haproxy, nginx
const (
	plain = iota + 1
	one
	many
	proxy
)

const manyServices = 30000

var (
	theVIP   = netip.MustParseAddr("10.96.200.1")
	echoPort = uint16(8080) // answers one byte and closes
	sinkPort = uint16(8081) // reads all there is
)

type topology struct {
	client, server *space
	nodes          map[int]*space
}

func newTopology(t *testing.T) *topology {
	tp := &topology{client: newSpace(t, "client"), server: newSpace(t, "server"), nodes: map[int]*space{}}
	for x := plain; x <= proxy; x++ {
		n := newSpace(t, fmt.Sprintf("node %d", x))
		tp.nodes[x] = n
		wire(tp.client, fmt.Sprintf("c%d", x), fmt.Sprintf("10.20.%d.2/24", x), n, "out", fmt.Sprintf("10.20.%d.1/24", x))
		wire(tp.server, fmt.Sprintf("s%d", x), fmt.Sprintf("10.244.%d.2/24", x), n, "in", fmt.Sprintf("10.244.%d.1/24", x))
		n.sysctl("net.ipv4.ip_forward", "1")
		tp.server.route(fmt.Sprintf("10.20.%d.0/24", x), fmt.Sprintf("10.244.%d.1", x))
	}
	tp.client.route("10.244.1.0/24", "10.20.1.1")
	tp.client.sysctl("net.ipv4.tcp_timestamps", "1")
	return tp
}

// dst is where a way's client connects to.
func dst(way int, port uint16) netip.AddrPort {
	switch way {
	case plain:
		return netip.AddrPortFrom(netip.MustParseAddr("10.244.1.2"), port)
	case proxy:
		return netip.AddrPortFrom(netip.MustParseAddr("10.20.4.1"), port)
	}
	return netip.AddrPortFrom(wayVIP(way), port)
}

// wayVIP differs from node to node so that the client can route to each.
func wayVIP(way int) netip.Addr {
	a := theVIP.As4()
	a[3] = byte(way)
	return netip.AddrFrom4(a)
}

// balance loads our rules into a way's node: n services, of which one has the
// server as its backend.
func (tp *topology) balance(t *testing.T, way, n int) {
	t.Helper()
	addr := netip.AddrFrom4([4]byte{10, 244, byte(way), 2})
	s := &state.ServiceView{VIP: wayVIP(way)}
	s.Namespace, s.Name = "bench", "server"
	s.Ports = []state.ServicePort{{Protocol: "tcp", Port: echoPort}, {Protocol: "tcp", Port: sinkPort}}
	s.Backends = []state.BackendOf{{Addr: addr, Node: self, Ready: true, Targets: []uint16{echoPort, sinkPort}}}
	list := []*state.ServiceView{s}
	for i := range n - 1 {
		other := &state.ServiceView{VIP: vip(i)}
		other.Namespace, other.Name = "bench", fmt.Sprintf("s%05d", i)
		other.Ports = []state.ServicePort{{Protocol: "tcp", Port: 80}}
		for b := range backends {
			other.Backends = append(other.Backends, state.BackendOf{Addr: netip.AddrFrom4([4]byte{10, 245, byte(b), byte(i)}), Ready: true, Targets: []uint16{8080}})
		}
		list = append(list, other)
	}
	l := local()
	l.Bridges[0].Own = []netip.Prefix{netip.PrefixFrom(addr, 24).Masked()}
	rs := lb.Derive(state.NewView(state.View{Rev: 1}, nil, list), l).Ruleset()
	var k lb.Kernel
	var err error
	tp.nodes[way].do(func() { k, err = lb.OpenKernel() })
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Apply(lb.Ops{Replace: rs.Tables}); err != nil {
		t.Fatal(err)
	}
	tp.client.route(netip.PrefixFrom(wayVIP(way), 32).String(), fmt.Sprintf("10.20.%d.1", way))
}

// track turns conntrack on in a node without changing a packet.
func (tp *topology) track(t *testing.T, way int) {
	t.Helper()
	var k lb.Kernel
	var err error
	tp.nodes[way].do(func() { k, err = lb.OpenKernel() })
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	spec := lb.TableSpec{Family: "inet", Name: lb.TableName, Chains: []lb.Chain{
		{Name: "forward", Type: "filter", Hook: "forward", Rules: []lb.Rule{{lb.MatchState{Related: true}, lb.Do{Verb: "accept"}}}},
	}}
	if err := k.Apply(lb.Ops{Replace: []lb.TableSpec{spec}}); err != nil {
		t.Fatal(err)
	}
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// serve accepts on a port with plain system calls: no runtime poller between.
func (tp *topology) serve(t *testing.T, port uint16, handle func(fd int)) {
	t.Helper()
	var fd int
	var err error
	tp.server.do(func() {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err == nil {
			err = unix.Listen(fd, 1024)
		}
	})
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err == unix.EINTR || err == unix.ECONNABORTED {
				continue
			}
			if err != nil {
				return
			}
			handle(c)
		}
	})
	t.Cleanup(func() {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		all.Wait()
		unix.Close(fd)
	})
}

func echo(fd int) {
	_, _ = unix.Write(fd, []byte{1})
	unix.Close(fd)
}

func sink(fd int) {
	go func() {
		buf := make([]byte, 256<<10)
		for {
			if n, err := unix.Read(fd, buf); n == 0 || err != nil && err != unix.EINTR {
				unix.Close(fd)
				return
			}
		}
	}()
}

// connects makes connections one after another for d: connect, one byte from
// the server, reset (so that no port waits). It returns how many a second and
// how long the handshake took in the middle.
func (tp *topology) connects(t *testing.T, to netip.AddrPort, d time.Duration) (rate float64, n int, first time.Duration) {
	t.Helper()
	var took []time.Duration
	var err error
	var spent time.Duration
	tp.client.do(func() {
		buf := make([]byte, 1)
		began := time.Now()
		for err == nil && time.Since(began) < d {
			var fd int
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return
			}
			at := time.Now()
			if err = unix.Connect(fd, sockaddr(to)); err == nil {
				took = append(took, time.Since(at))
				_, err = unix.Read(fd, buf)
			}
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			unix.Close(fd)
		}
		spent = time.Since(began)
	})
	if err != nil {
		t.Fatalf("connect to %s: %v", to, err)
	}
	return float64(len(took)) / spent.Seconds(), len(took), quantile(took, 0.5)
}

// stream sends as much as it can for d and returns bits a second.
func (tp *topology) stream(t *testing.T, to netip.AddrPort, d time.Duration) float64 {
	t.Helper()
	var sent int64
	var err error
	var spent time.Duration
	tp.client.do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		if err = unix.Connect(fd, sockaddr(to)); err != nil {
			return
		}
		buf := make([]byte, 256<<10)
		began := time.Now()
		for err == nil && time.Since(began) < d {
			var n int
			n, err = unix.Write(fd, buf)
			sent += int64(n)
		}
		spent = time.Since(began)
	})
	if err != nil {
		t.Fatalf("send to %s: %v", to, err)
	}
	return float64(sent) * 8 / spent.Seconds()
}

// compare measures two ways in turn, the first of a pair alternating.
func compare(a, b int, measure func(way int) []float64) []ratio {
	var out []ratio
	measure(a)
	measure(b)
	for i := range *figPairs {
		var x, y []float64
		if i%2 == 0 {
			x, y = measure(a), measure(b)
		} else {
			y, x = measure(b), measure(a)
		}
		if out == nil {
			out = make([]ratio, len(x))
		}
		for j := range x {
			out[j] = append(out[j], x[j]/y[j])
		}
	}
	return out
}

func figTraffic(t *testing.T, tab *figureTable) {
	tp := newTopology(t)
	tp.serve(t, echoPort, echo)
	tp.serve(t, sinkPort, sink)
	tp.track(t, plain)
	tp.balance(t, one, 1)
	tp.balance(t, many, manyServices)
	const each = 100 * time.Millisecond

	var seen [proxy + 1][]float64 // rates, for people
	open := func(way int) []float64 {
		before := cpuTime()
		rate, n, first := tp.connects(t, dst(way, echoPort), each)
		seen[way] = append(seen[way], rate)
		return []float64{rate, 1 / first.Seconds(), float64(n) / (cpuTime() - before).Seconds()}
	}
	line := func(name string, r ratio, goal float64, how string) {
		median, low, high := r.median()
		tab.add(figure{name: name, value: median, goal: goal, least: goal > 0, how: fmt.Sprintf("%d interleaved pairs of %v, their median; 95 %% interval %.3f to %.3f; %s", len(r), each, low, high, how)})
	}
	r := compare(many, one, open)
	line("connects/s, 30 000 services to 1", r[0], 0.95, fmt.Sprintf("one client, one after another, %.0f/s and %.0f/s", middle(seen[many]), middle(seen[one])))
	line("first packet (handshake p50), 1 service to 30 000", r[1], 0.95, "how much of the speed is left")
	line("connects a processor second, 30 000 services to 1", r[2], 0, "client, server and kernel")
	seen[one] = nil
	r = compare(one, plain, open)
	line("connects/s through a VIP to a route", r[0], 0.90, fmt.Sprintf("the route has conntrack, no NAT; %.0f/s and %.0f/s", middle(seen[one]), middle(seen[plain])))
	line("connects a processor second through a VIP to a route", r[2], 0, "client, server and kernel")
	var bits [proxy + 1][]float64
	send := func(way int) []float64 {
		x := tp.stream(t, dst(way, sinkPort), each)
		bits[way] = append(bits[way], x)
		return []float64{x}
	}
	r = compare(one, plain, send)
	line("throughput through a VIP to a route", r[0], 0.97, fmt.Sprintf("one TCP stream, %.1f and %.1f Gbit/s", middle(bits[one])/1e9, middle(bits[plain])/1e9))

	for _, p := range proxies {
		stop, err := tp.proxy(t, p)
		if err != nil {
			fmt.Printf("%s: left out: %v\n", p.name, err)
			continue
		}
		seen[one], seen[proxy], bits[one], bits[proxy] = nil, nil, nil, nil
		r := compare(proxy, one, open)
		line("connects/s, "+p.name+" to a VIP", r[0], 0, fmt.Sprintf("%.0f/s and %.0f/s", middle(seen[proxy]), middle(seen[one])))
		r = compare(proxy, one, send)
		line("throughput, "+p.name+" to a VIP", r[0], 0, fmt.Sprintf("%.1f and %.1f Gbit/s", middle(bits[proxy])/1e9, middle(bits[one])/1e9))
		stop()
	}
}

// middle returns the median.
func middle(x []float64) float64 {
	d := make([]time.Duration, len(x))
	for i := range x {
		d[i] = time.Duration(x[i])
	}
	return float64(quantile(d, 0.5))
}

type proxyOf struct {
	name, config string
	args         []string // %s: the configuration's file
}

var proxies = []proxyOf{
	{"haproxy", `
global
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen echo
  bind 10.20.4.1:8080
  server s 10.244.4.2:8080
listen sink
  bind 10.20.4.1:8081
  server s 10.244.4.2:8081
`, []string{"-db", "-f", "%s"}},
	{"nginx", `
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
stream {
  server { listen 10.20.4.1:8080; proxy_pass 10.244.4.2:8080; }
  server { listen 10.20.4.1:8081; proxy_pass 10.244.4.2:8081; }
}
`, []string{"-p", ".", "-e", "stderr", "-c", "%s"}},
}

// proxy starts a proxy in its node and returns what ends it.
func (tp *topology) proxy(t *testing.T, p proxyOf) (stop func(), err error) {
	t.Helper()
	path, err := exec.LookPath(p.name)
	if err != nil {
		return nil, fmt.Errorf("not installed: apt-get install %s", map[string]string{"haproxy": "haproxy", "nginx": "nginx libnginx-mod-stream"}[p.name])
	}
	dir := t.TempDir()
	file := filepath.Join(dir, p.name+".conf")
	if err := os.WriteFile(file, []byte(p.config), 0o644); err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, a := range p.args {
		args = append(args, strings.Replace(a, "%s", file, 1))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args...)
	var said strings.Builder
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &said, &said
	tp.nodes[proxy].do(func() { err = cmd.Start() })
	if err != nil {
		cancel()
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var once atomic.Bool
	stop = func() {
		if once.CompareAndSwap(false, true) {
			cancel()
			<-ended
		}
	}
	t.Cleanup(stop)
	deadline := time.Now().Add(5 * time.Second)
	for {
		select {
		case err := <-ended:
			cancel()
			ended <- err
			return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
		case <-time.After(20 * time.Millisecond):
		}
		if tp.reachable(dst(proxy, echoPort)) {
			return stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return nil, fmt.Errorf("does not listen: %s", said.String())
		}
	}
}

func (tp *topology) reachable(a netip.AddrPort) (ok bool) {
	tp.client.do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		ok = unix.Connect(fd, sockaddr(a)) == nil
	})
	return ok
}
