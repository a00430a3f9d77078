package node

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
	"nodenet/config"
)

// fakeSockets are the sockets of a host that is not there: "tcp 0.0.0.0:80
// nginx (pid 812)"; those of "nodectl" are the daemon's own.
type fakeSockets struct{ list []string }

func (f *fakeSockets) Bound() ([]boundSocket, error) {
	var out []boundSocket
	for i, s := range f.list {
		w := strings.SplitN(s, " ", 3)
		b := boundSocket{proto: w[0], at: netip.MustParseAddrPort(strings.TrimPrefix(w[1], "only")), inode: uint32(i)}
		b.v6 = strings.HasPrefix(w[1], "only")
		out = append(out, b)
	}
	return out, nil
}

func (f *fakeSockets) Owner(inode uint32) string { return strings.SplitN(f.list[inode], " ", 3)[2] }
func (f *fakeSockets) Own(inode uint32) bool     { return f.Owner(inode) == "nodectl" }

func TestPublishAndProcesses(t *testing.T) {
	target := netip.MustParseAddr("10.244.0.2")
	for name, c := range map[string]struct {
		socket  string
		publish api.Publish
		want    string // part of the error; empty: none
	}{
		"the same":                      {"tcp 0.0.0.0:8080 nginx (pid 812)", api.Publish{HostPort: 8080}, "nginx (pid 812) listens on 0.0.0.0:8080/tcp"},
		"both families":                 {"tcp [::]:8080 java (pid 3)", api.Publish{HostPort: 8080}, "java (pid 3) listens on [::]:8080/tcp"},
		"IPv6 only":                     {"tcp only[::]:8080 java (pid 3)", api.Publish{HostPort: 8080}, ""},
		"another IP version":            {"tcp [2001:db8::1]:8080 java (pid 3)", api.Publish{HostPort: 8080}, ""},
		"another port":                  {"tcp 0.0.0.0:8081 nginx (pid 812)", api.Publish{HostPort: 8080}, ""},
		"in the range":                  {"tcp 0.0.0.0:8081 nginx (pid 812)", api.Publish{HostPort: 8080, Last: 8090}, "port 8081/tcp of this host is in use"},
		"another protocol":              {"udp 0.0.0.0:8080 named (pid 9)", api.Publish{HostPort: 8080}, ""},
		"UDP":                           {"udp 192.0.2.1:53 named (pid 9)", api.Publish{HostPort: 53, Protocol: "udp"}, "named (pid 9) is bound to 192.0.2.1:53/udp"},
		"that address":                  {"tcp 192.0.2.1:80 nginx (pid 812)", api.Publish{HostPort: 80, HostAddr: netip.MustParseAddr("192.0.2.1")}, "in use"},
		"another address":               {"tcp 192.0.2.1:80 nginx (pid 812)", api.Publish{HostPort: 80, HostAddr: netip.MustParseAddr("192.0.2.2")}, ""},
		"on loopback":                   {"tcp 127.0.0.1:631 cupsd (pid 5)", api.Publish{HostPort: 631}, "cupsd (pid 5) listens on 127.0.0.1:631/tcp"},
		"elsewhere on lo":               {"udp 127.0.0.53:53 systemd-resolve (pid 5)", api.Publish{HostPort: 53, Protocol: "udp"}, ""},
		"loopback, not ours":            {"tcp 127.0.0.1:631 cupsd (pid 5)", api.Publish{HostPort: 631, HostAddr: netip.MustParseAddr("192.0.2.1")}, ""},
		"the resolver":                  {"udp 10.96.0.10:53 nodectl", api.Publish{HostPort: 53, Protocol: "udp"}, ""},
		"the daemon's own DNS":          {"udp 192.0.2.1:53 nodectl", api.Publish{HostPort: 53, Protocol: "udp"}, "nodectl is bound to 192.0.2.1:53/udp"},
		"IPv6, in use":                  {"tcp only[::]:8080 java (pid 3)", api.Publish{HostPort: 8080, Target: netip.MustParseAddr("2001:db8:1::2")}, "java (pid 3) listens on [::]:8080/tcp"},
		"IPv6, beside IPv4":             {"tcp 0.0.0.0:8080 java (pid 3)", api.Publish{HostPort: 8080, Target: netip.MustParseAddr("2001:db8:1::2")}, ""},
		"loopback of the other version": {"tcp 127.0.0.1:8080 java (pid 3)", api.Publish{HostPort: 8080, HostAddr: netip.MustParseAddr("127.0.0.1"), Target: netip.MustParseAddr("2001:db8:1::2")}, "in use"},
		"SCTP":                          {"sctp 192.0.2.1:3868 hss (pid 4)", api.Publish{HostPort: 3868, Protocol: "sctp"}, "hss (pid 4) listens on 192.0.2.1:3868/sctp"},
		"SCTP, beside TCP":              {"tcp 192.0.2.1:3868 hss (pid 4)", api.Publish{HostPort: 3868, Protocol: "sctp"}, ""},
		"SCTP on loopback":              {"sctp 127.0.0.1:3868 hss (pid 4)", api.Publish{HostPort: 3868, Protocol: "sctp"}, ""},
		"nobody knows who":              {"tcp 0.0.0.0:22 ", api.Publish{HostPort: 22}, "a process of this host listens on"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			n.sockets = &fakeSockets{[]string{c.socket}}
			c.publish.Port = 80
			if !c.publish.Target.IsValid() {
				c.publish.Target = target
			}
			_, err := n.addPublish(t.Context(), c.publish)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || code(err) != api.CodeExists) {
				t.Errorf("publish: %v, want %q", err, c.want)
			}
			_, err = n.attach(t.Context(), api.AttachRequest{ID: "x", Network: "pods", Mode: modeIPAM, Publish: []api.Publish{{
				HostAddr: c.publish.HostAddr, Protocol: "x" + c.publish.Protocol, HostPort: c.publish.HostPort, Port: 80}}})
			if code(err) != api.CodeInvalid {
				t.Errorf("attach with protocol %q: %v", "x", err)
			}
		})
	}
}

func TestRangesOverlap(t *testing.T) {
	n := newTestNode(t)
	target := netip.MustParseAddr("10.244.0.2")
	for _, c := range []struct {
		host        string
		first, last uint16
		port        uint16
		want        string // code
	}{
		{"", 8000, 8010, 9000, ""},
		{"", 8010, 8020, 9000, api.CodeExists},
		{"192.0.2.1", 8005, 0, 80, api.CodeExists},
		{"", 7000, 6999, 80, api.CodeInvalid},
		{"", 9000, 9010, 65530, api.CodeInvalid},
		{"", 29990, 30000, 80, api.CodeInvalid}, // node ports
		{"", 7940, 7950, 80, api.CodeInvalid},   // gossip
		{"0.0.0.0", 8500, 8500, 80, ""},
	} {
		p := api.Publish{HostPort: c.first, Last: c.last, Target: target, Port: c.port}
		if c.host != "" {
			p.HostAddr = netip.MustParseAddr(c.host)
		}
		if _, err := n.addPublish(t.Context(), p); (err == nil) != (c.want == "") || err != nil && code(err) != c.want {
			t.Errorf("publish %s:%d-%d: %v, want code %q", c.host, c.first, c.last, err, c.want)
		}
	}
	for _, key := range []string{"*:8000-8010/tcp", "*:8500/tcp"} {
		if err := n.removePublish(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

// TestNodefileGivesWay: a port of a Nodefile that a process has is not taken
// from it, and comes into use when the process has gone. One that is in use
// stays so when somebody binds it later, which the status tells.
func TestNodefileGivesWay(t *testing.T) {
	n := newTestNode(t)
	host := &fakeSockets{[]string{"tcp 0.0.0.0:8080 nginx (pid 812)"}}
	n.sockets = host
	cfg := *n.cfg
	publish := func(port uint16) config.Publish {
		return config.Publish{Protocol: "tcp", HostPort: port, Target: netip.MustParseAddrPort("10.244.0.2:80")}
	}
	cfg.Publishes = []config.Publish{publish(8080), publish(8081)}
	state := func(wantKeys, wantStatus string) {
		t.Helper()
		if err := n.declare(t.Context(), &cfg); err != nil {
			t.Fatal(err)
		}
		n.lookAtPorts(t.Context())
		var keys []string
		for _, p := range n.store.Snapshot().View().Publishes {
			keys = append(keys, p.Key())
		}
		if got := strings.Join(keys, " "); got != wantKeys {
			t.Errorf("published %q, want %q", got, wantKeys)
		}
		s, red := n.portStatus(1)
		if red != (wantStatus != "") || !strings.Contains(s.Error, wantStatus) || red && s.Fix == "" {
			t.Errorf("status %+v, want %q", s, wantStatus)
		}
	}
	state("*:8081/tcp", "published port *:8080/tcp is not in use: nginx (pid 812) listens on 0.0.0.0:8080/tcp")
	host.list = nil
	state("*:8080/tcp *:8081/tcp", "")
	host.list = []string{"tcp 192.0.2.1:8080 nginx (pid 813)", "tcp 127.0.0.1:8081 nodectl"}
	state("*:8080/tcp *:8081/tcp", "published port *:8080/tcp takes the packets of a process: nginx (pid 813) listens on 192.0.2.1:8080/tcp")
	host.list = nil
	state("*:8080/tcp *:8081/tcp", "")
	// What a command published wins over a line that is written later.
	cfg.Publishes = cfg.Publishes[:1]
	state("*:8080/tcp", "")
	if _, err := n.addPublish(t.Context(), api.Publish{HostPort: 8081, Target: netip.MustParseAddr("10.244.0.9"), Port: 1}); err != nil {
		t.Fatal(err)
	}
	cfg.Publishes = append(cfg.Publishes, publish(8081))
	state("*:8080/tcp *:8081/tcp", "*:8081/tcp is published already, to 10.244.0.9:1")
	rev := n.store.Snapshot().Rev()
	if err := n.declare(t.Context(), &cfg); err != nil || n.store.Snapshot().Rev() != rev {
		t.Errorf("the same again made revision %d of %d, %v", n.store.Snapshot().Rev(), rev, err)
	}
}

func TestNodePortAndProcesses(t *testing.T) {
	n := newTestNode(t)
	n.sockets = &fakeSockets{[]string{"tcp [::]:30080 node (pid 7)"}}
	svc := api.ServiceSpec{Name: "web", VIP: netip.MustParseAddr("10.96.1.1"), Ports: []api.ServicePort{{Port: 80, NodePort: 30080}}, Backends: []string{"10.244.0.2"}}
	if _, err := n.addService(t.Context(), svc); code(err) != api.CodeExists || !strings.Contains(err.Error(), "node (pid 7) listens on [::]:30080/tcp") {
		t.Errorf("node port in use: %v", err)
	}
	n.sockets.(*fakeSockets).list = nil
	if _, err := n.addService(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	n.sockets.(*fakeSockets).list = []string{"tcp 192.0.2.1:30080 node (pid 8)"}
	n.lookAtPorts(t.Context())
	if s, _ := n.portStatus(1); !strings.Contains(s.Error, "node port 30080/tcp of service web.default takes the packets of a process: node (pid 8)") {
		t.Errorf("status %+v", s)
	}
}

// TestUntrackedSCTP: where the kernel cannot translate SCTP, a port of it is
// refused rather than published to no effect.
func TestUntrackedSCTP(t *testing.T) {
	n := newTestNode(t)
	n.noSCTP = func() bool { return true }
	p := api.Publish{HostPort: 3868, Port: 3868, Protocol: "sctp", Target: netip.MustParseAddr("10.244.0.2")}
	if _, err := n.addPublish(t.Context(), p); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "CONFIG_NF_CT_PROTO_SCTP") {
		t.Errorf("publish: %v", err)
	}
	r := api.AttachRequest{ID: "x", Network: "pods", Mode: modeIPAM, Namespace: "default", Publish: []api.Publish{{HostPort: 3868, Port: 3868, Protocol: "sctp"}}}
	if _, err := n.attach(t.Context(), r); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "CONFIG_NF_CT_PROTO_SCTP") {
		t.Errorf("attach: %v", err)
	}
}

// TestSCTPSockets reads what the kernel's sctp module lists.
func TestSCTPSockets(t *testing.T) {
	list, err := sctpSockets("testdata/sctp-eps")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s %s %d", s.proto, s.at, s.inode))
	}
	want := []string{"sctp 0.0.0.0:3868 24011", "sctp 192.0.2.1:36412 24013", "sctp 198.51.100.1:36412 24013", "sctp [::]:2905 24017"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sockets (-want +got):\n%s", diff)
	}
	if list, err := sctpSockets("testdata/not-there"); err != nil || list != nil {
		t.Errorf("without SCTP in the kernel: %v, %v", list, err)
	}
}

// TestKernelSockets finds sockets of this process, with its own name.
func TestKernelSockets(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dual, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dual.Close()
	only, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	defer only.Close()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	connected, err := net.Dial("udp4", u.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	list, err := kernelSockets{}.Bound()
	if err != nil {
		t.Fatal(err)
	}
	find := func(proto, at string) *boundSocket {
		for _, s := range list {
			if s.proto == proto && s.at.String() == at {
				return &s
			}
		}
		return nil
	}
	for _, c := range []struct {
		proto, at string
		there, v6 bool
	}{
		{"tcp", l.Addr().String(), true, false},
		{"tcp", dual.Addr().String(), true, false},
		{"tcp", only.Addr().String(), true, true},
		{"udp", u.LocalAddr().String(), true, false},
		{"udp", connected.LocalAddr().String(), false, false},
	} {
		s := find(c.proto, c.at)
		if (s != nil) != c.there || s != nil && s.v6 != c.v6 {
			t.Errorf("%s %s: found %+v, want %t, IPv6 only %t", c.proto, c.at, s, c.there, c.v6)
			continue
		}
		if s == nil {
			continue
		}
		if who := (kernelSockets{}).Owner(s.inode); !strings.HasPrefix(who, "node.test (pid ") || !(kernelSockets{}).Own(s.inode) {
			t.Errorf("%s %s: held by %q", c.proto, c.at, who)
		}
	}
	if who := (kernelSockets{}).Owner(0); who != "" || (kernelSockets{}).Own(0) {
		t.Errorf("nobody's socket is held by %q", who)
	}
}
