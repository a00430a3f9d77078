package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

var testSeed = maphash.MakeSeed()

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lan is a node's bridge in one namespace and a client on a veth in another:
//
//	[node: br 192.0.2.1/24 ── v0] ── [client: eth0]
type lan struct {
	t            *testing.T
	node, client netns.NsHandle
	clientName   string
	br           netlink.Link
}

// newLAN builds the namespaces. The test's thread stays in the node's one; it
// is never given back, so that nobody else inherits the namespace.
func newLAN(t *testing.T) *lan {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	l := &lan{t: t, clientName: fmt.Sprintf("nnt-dhcp-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	if l.client, err = netns.NewNamed(l.clientName); err != nil {
		t.Skipf("needs root with network namespaces: %v", err)
	}
	t.Cleanup(func() { l.client.Close(); netns.DeleteNamed(l.clientName) })
	if l.node, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.node.Close(); netns.Set(home); home.Close() })
	l.addBridge()
	return l
}

func (l *lan) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// addBridge makes the bridge with its address and plugs the client in.
func (l *lan) addBridge() {
	l.t.Helper()
	l.br = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
	l.must(netlink.LinkAdd(l.br))
	l.must(netlink.AddrAdd(l.br, &netlink.Addr{IPNet: &net.IPNet{IP: gateway.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	l.must(netlink.LinkSetUp(l.br))
	l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0", MasterIndex: l.br.Attrs().Index},
		PeerName: "eth0", PeerHardwareAddr: macA, PeerNamespace: netlink.NsFd(l.client)}))
	v0, err := netlink.LinkByName("v0")
	l.must(err)
	l.must(netlink.LinkSetUp(v0))
	h, err := netlink.NewHandleAt(l.client)
	l.must(err)
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		ln, err := h.LinkByName(name)
		l.must(err)
		l.must(h.LinkSetUp(ln))
	}
}

// serve runs a server for the bed's scope in the node's namespace. Its sockets
// are opened by goroutines of other threads: each of them has to be there.
func (l *lan) serve(b *bed, reg prometheus.Registerer) *Server {
	l.t.Helper()
	s, err := New(Options{Leases: b.book, Registry: reg, Logger: slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	l.must(err)
	s.enter = func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the thread dies with the goroutine
			if err := netns.Set(l.node); err != nil {
				l.t.Error(err)
				return
			}
			f()
		}()
		<-done
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("run: %v", err)
		}
	})
	b.scope.Device = "br"
	s.Set(Scopes{Rev: 1, List: []Scope{*b.scope}})
	return s
}

// TestUDHCPC: busybox's client gets a lease, renews it by unicast, and gives
// it back.
func TestUDHCPC(t *testing.T) {
	client, err := exec.LookPath("udhcpc")
	if err != nil {
		t.Skip("needs udhcpc (package udhcpc)")
	}
	l := newLAN(t)
	b := newBed(t)
	b.book.Now = nil // real clients live in real time
	reg := prometheus.NewRegistry()
	s := l.serve(b, reg)
	waitStatus(t, s, func(st Status) bool { return st.OK && st.Applied == 1 })

	dir := t.TempDir()
	events := filepath.Join(dir, "events")
	script := writeScript(t, dir, `
echo "$1 ip=$ip mask=$mask router=$router dns=$dns lease=$lease hostname=$hostname mtu=$mtu serverid=$serverid" >> `+events+`
case "$1" in
bound) ip addr add $ip/$mask dev $interface ;;
deconfig) ip addr flush dev $interface ;;
esac`)
	cmd := exec.Command("ip", "netns", "exec", l.clientName, client, "-f", "-i", "eth0", "-s", script, "-x", "hostname:Box.lan", "-O", "mtu",
		"-p", filepath.Join(dir, "pid"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); t.Logf("udhcpc:\n%s", out.String()) })

	const want = "ip=192.0.2.10 mask=24 router=192.0.2.1 dns=192.0.2.53 lease=3600 hostname=box mtu=1450 serverid=192.0.2.1"
	waitFile(t, events, "bound "+want)
	// Renewal now, as at T1: by unicast to the server's address.
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	waitFile(t, events, "renew "+want)
	if v := b.record(ip("192.0.2.10")); v == nil || v.Hostname != "box" || v.MAC != macA.String() {
		t.Errorf("record %+v", v)
	}
	if st := s.Status(); st.Detail != "pods: 1 lease" {
		t.Errorf("detail %q", st.Detail)
	}
	if err := cmd.Process.Signal(syscall.SIGUSR2); err != nil { // release
		t.Fatal(err)
	}
	waitFor(t, "the release", func() bool { return b.record(ip("192.0.2.10")) == nil })
	if n := testutil.ToFloat64(s.metrics.replies.WithLabelValues("pods", "ack")); n < 2 {
		t.Errorf("%v ACKs counted", n)
	}
	if n := testutil.ToFloat64(s.metrics.dropped.WithLabelValues("pods", "malformed")); n != 0 {
		t.Errorf("%v of its packets were taken for malformed", n)
	}
}

// TestDHClient: ISC's client from INIT, then from INIT-REBOOT after the bridge
// was made anew, then after its lease was lost.
func TestDHClient(t *testing.T) {
	client, err := exec.LookPath("dhclient")
	if err != nil {
		t.Skip("needs dhclient (package isc-dhcp-client)")
	}
	l := newLAN(t)
	b := newBed(t)
	b.book.Now = nil
	s := l.serve(b, nil)
	waitStatus(t, s, func(st Status) bool { return st.OK && st.Applied == 1 })

	dir := t.TempDir()
	events := filepath.Join(dir, "events")
	script := writeScript(t, dir, `
echo "$reason ip=$new_ip_address mask=$new_subnet_mask router=$new_routers dns=$new_domain_name_servers domain=$new_domain_name search=$new_domain_search routes=$new_rfc3442 lease=$new_dhcp_lease_time" >> `+events)
	conf := filepath.Join(dir, "conf")
	writeFile(t, conf, `option rfc3442 code 121 = array of unsigned integer 8;
send host-name "isc";
request subnet-mask, routers, domain-name-servers, domain-name, domain-search, rfc3442;
timeout 8;
initial-interval 1;
`)
	once := func(want string) {
		t.Helper()
		cmd := exec.Command("ip", "netns", "exec", l.clientName, client, "-4", "-1", "-d", "-sf", script, "-cf", conf,
			"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cmd.Process.Kill(); cmd.Wait(); t.Logf("dhclient:\n%s", out.String()) }()
		waitFile(t, events, want)
		// It saves its lease after the script has agreed to it.
		addr, _, _ := strings.Cut(want[strings.Index(want, "ip=")+len("ip="):], " ")
		waitFile(t, filepath.Join(dir, "leases"), "  fixed-address "+addr+";")
	}
	const params = " ip=192.0.2.10 mask=255.255.255.0 router=192.0.2.1 dns=192.0.2.53 domain=default.svc.cluster.local " +
		"search=default.svc.cluster.local. cluster.local. routes=0 192 0 2 1 lease=3600"
	once("BOUND" + params)
	if v := b.record(ip("192.0.2.10")); v == nil || v.Hostname != "isc" {
		t.Errorf("record %+v", v)
	}

	// The bridge is made anew, as the overlay does when somebody removed it.
	l.must(netlink.LinkDel(l.br))
	v0, err := netlink.LinkByName("v0")
	l.must(err)
	l.must(netlink.LinkDel(v0))
	waitStatus(t, s, func(st Status) bool { return !st.OK })
	l.addBridge()
	waitStatus(t, s, func(st Status) bool { return st.OK })
	once("REBOOT" + params)

	// The tables know nothing of the lease: the client is told and starts anew.
	if err := b.book.Release(t.Context(), "pods", Client{MAC: macA}, ip("192.0.2.10")); err != nil {
		t.Fatal(err)
	}
	b.cni[ip("192.0.2.10")] = struct{}{}
	once("BOUND" + strings.Replace(params, "192.0.2.10", "192.0.2.11", 1))
}

func writeScript(t *testing.T, dir, body string) string {
	t.Helper()
	name := filepath.Join(dir, "script")
	writeFile(t, name, "#!/bin/sh"+body+"\n")
	if err := os.Chmod(name, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func writeFile(t *testing.T, name, s string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

// waitFile waits until a file has a line.
func waitFile(t *testing.T, name, want string) {
	t.Helper()
	var got []byte
	defer func() {
		if t.Failed() {
			t.Logf("%s:\n%s", name, got)
		}
	}()
	waitFor(t, fmt.Sprintf("line %q", want), func() bool {
		got, _ = os.ReadFile(name)
		return strings.Contains("\n"+string(got), "\n"+want+"\n")
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
