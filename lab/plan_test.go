package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nodenet/api"
)

func TestCheckPlan(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lab   string
		nodes int
		ok    bool
	}{
		{"usual", "demo", 3, true},
		{"one letter", "x", 1, true},
		{"longest", strings.Repeat("a", 20), maxNodes, true},
		{"too long", strings.Repeat("a", 21), 1, false},
		{"empty", "", 1, false},
		{"leads out of the directory", "../etc", 1, false},
		{"hyphen at the end", "a-", 1, false},
		{"no nodes", "demo", 0, false},
		{"too many", "demo", maxNodes + 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := checkPlan(tt.lab, tt.nodes); (err == nil) != tt.ok {
				t.Errorf("error %v, want ok %t", err, tt.ok)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	if got := nodeAddr(3).String(); got != "192.168.1.13" {
		t.Errorf("node3 has %s", got)
	}
	if got := netnsPath("demo", nodeName(2)); got != "/run/netns/demo-node2" {
		t.Errorf("namespace of node2 is %s", got)
	}
	for name, want := range map[string]bool{"web": false, "node": false, "nodes": false, "node1": true, "rtr": true, "outside": true} {
		if got := reserved(name); got != want {
			t.Errorf("reserved(%s) = %t", name, got)
		}
	}
	for text, want := range map[string]string{
		"":                             "10.96.0.0/12",
		"network a 10.1.0.0/16 {\n}\n": "10.96.0.0/12",
		"  services 10.200.0.0/16 {\n    dns x\n}": "10.200.0.0/16",
	} {
		if got := serviceRange(text).String(); got != want {
			t.Errorf("service range of %q: %s, want %s", text, got, want)
		}
	}
}

func TestNodefile(t *testing.T) {
	o := &Options{Nodes: 2}
	if err := o.setDefaults(); err != nil {
		t.Fatal(err)
	}
	const head = `node {
    name node2
    advertise 192.168.1.12
}
cluster demo {
    join 192.168.1.11 192.168.1.12
}
`
	want := head + `network pods 10.244.0.0/16 {
    block 24
    overlay vxlan
    masquerade
}
services 10.96.0.0/12 {
    dns 10.96.0.10
    nodeports 30000-32767
}
`
	if diff := cmp.Diff(want, nodefile(o, 2)); diff != "" {
		t.Errorf("default (-want +got):\n%s", diff)
	}
	o.Nodefile = "network a 10.1.0.0/16\n\n"
	if diff := cmp.Diff(head+"network a 10.1.0.0/16\n", nodefile(o, 2)); diff != "" {
		t.Errorf("given (-want +got):\n%s", diff)
	}
	o.Join = JoinToken
	if strings.Contains(nodefile(o, 2), "join") {
		t.Error("a node that joins by token has a join line")
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"overlay": {Overlay: "carrier pigeon"},
		"join":    {Join: "force"},
		"nodes":   {Nodes: -1},
	} {
		if err := o.setDefaults(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestHealed(t *testing.T) {
	ab, ba, ac, out := Cut{"a", "b"}, Cut{"b", "a"}, Cut{"a", "c"}, Cut{From: "a"}
	for _, tt := range []struct {
		a, b string
		want []Cut
	}{
		{"", "", []Cut{ab, ba, ac, out}},
		{"a", "b", []Cut{ab, ba}},
		{"b", "a", []Cut{ab, ba}},
		{"a", "", []Cut{ab, ba, ac, out}},
		{"c", "", []Cut{ac}},
	} {
		var got []Cut
		for _, c := range []Cut{ab, ba, ac, out} {
			if healed(c, tt.a, tt.b) {
				got = append(got, c)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("heal %q %q (-want +got):\n%s", tt.a, tt.b, diff)
		}
	}
}

func TestParseStat(t *testing.T) {
	const fields = " S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 9 0 8061 1 1"
	start, err := parseStat("42 (a) b (c)" + fields)
	if err != nil || start != 8061 {
		t.Errorf("got %d %v", start, err)
	}
	for _, bad := range []string{"", "42", "42 (x)", "42 (x) S 1 2"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestProcIdentity: a process ID that was given to another process since is
// not ours any more.
func TestProcIdentity(t *testing.T) {
	ticks, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !(Proc{PID: os.Getpid(), Start: ticks}).Alive() {
		t.Error("this process is not alive")
	}
	other := Proc{PID: os.Getpid(), Start: ticks + 1}
	if other.Alive() {
		t.Error("taken for a process of the same ID")
	}
	if err := other.signal(unix.SIGKILL); err != nil { // would end this test
		t.Error(err)
	}
	if err := (Proc{}).wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMissingCapabilities(t *testing.T) {
	all := ^uint64(0)
	if got := missingCapabilities(all); got != nil {
		t.Errorf("all: %v", got)
	}
	if diff := cmp.Diff([]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"}, missingCapabilities(0)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"CAP_SYS_ADMIN"}, missingCapabilities(all&^(1<<unix.CAP_SYS_ADMIN))); diff != "" {
		t.Error(diff)
	}
}

func TestProblems(t *testing.T) {
	a, b := &Node{Name: "a", Proc: Proc{PID: 1}}, &Node{Name: "b", Proc: Proc{PID: 2}}
	alive := func(names ...string) *api.Status {
		st := &api.Status{Synced: true}
		for _, n := range names {
			st.Peers = append(st.Peers, api.Peer{Name: n, State: "alive"})
		}
		return st
	}
	broken := alive("b")
	broken.Synced = false
	broken.Peers[0].State = "suspect"
	broken.Subsystems = []api.SubsystemStatus{{Name: "dns", OK: true}, {Name: "lb", Detail: "0 services", Error: "no nf_tables", Fix: "load it"}}
	stopped := &Node{Name: "b"}
	behind := alive("b")
	behind.Networks = []api.NetworkStatus{{Name: "pods", Overlay: "vxlan"}, {Name: "here", Overlay: "none"}}
	behind.Subsystems = []api.SubsystemStatus{{Name: "dns", OK: true, Desired: 7, Applied: 5}}
	for _, tt := range []struct {
		name   string
		states []NodeState
		want   []string
	}{
		{"converged", []NodeState{{Node: a, Running: true, Status: alive("b")}, {Node: b, Running: true, Status: alive("a")}}, nil},
		{"ended", []NodeState{{Node: a}, {Node: b, Running: true, Status: alive("a")}}, []string{"a: the daemon has ended"}},
		{"no answer", []NodeState{{Node: a, Running: true, Err: errors.New("no socket")}}, []string{"a: no socket"}},
		{"unknown", []NodeState{{Node: a, Running: true, Status: alive()}, {Node: b, Running: true, Status: alive("a")}}, []string{"a: does not know b"}},
		{"stopped on purpose", []NodeState{{Node: a, Running: true, Status: alive()}, {Node: stopped}}, nil},
		{"stopped, unnoticed", []NodeState{{Node: a, Running: true, Status: alive("b")}, {Node: stopped}}, []string{"a: still sees b as alive"}},
		{"behind", []NodeState{{Node: a, Running: true, Status: behind}, {Node: b, Running: true, Status: alive("a")}},
			[]string{"a: network pods has no pod CIDR yet", "a: dns has applied revision 5 of 7"}},
		{"broken", []NodeState{{Node: a, Running: true, Status: broken}, {Node: b, Running: true, Status: alive("a")}},
			[]string{"a: not synced yet", "a: sees b as suspect", "a: lb: 0 services: no nf_tables (load it)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Problems(tt.states)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWorkloadRef(t *testing.T) {
	r := &record{Name: "demo", Workloads: []*Workload{
		{Name: "web", Namespace: "apps"}, {Name: "web", Namespace: "default"}, {Name: "db", Namespace: "apps"},
	}}
	for ref, want := range map[string]string{"web.apps": "web.apps", "db": "db.apps", "web": "", "x": "", "db.default": ""} {
		w, err := r.workload(ref)
		switch {
		case want == "" && err == nil:
			t.Errorf("%s: found %s", ref, w.Ref())
		case want != "" && (err != nil || w.Ref() != want):
			t.Errorf("%s: %v, %v", ref, w, err)
		}
	}
}

func TestUpstreamAnswers(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skipf("TCP port beside %s is taken: %v", pc.LocalAddr(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Upstream(ctx, pc, l) }()
	for _, tt := range []struct {
		name  string
		qtype uint16
		net   string
		want  []string // rcode, then data of the answers
	}{
		{"example.com.", dns.TypeA, "udp", []string{"NOERROR", "203.0.113.10"}},
		{"EXAMPLE.com.", dns.TypeA, "tcp", []string{"NOERROR", "203.0.113.10"}},
		{"www.example.com.", dns.TypeAAAA, "udp", []string{"NOERROR", "example.com.", "2001:db8::10"}},
		{"example.com.", dns.TypeSRV, "udp", []string{"NOERROR"}},
		{"nothing.example.com.", dns.TypeA, "udp", []string{"NXDOMAIN"}},
	} {
		c := &dns.Client{Net: tt.net, Timeout: 5 * time.Second}
		m, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(tt.name, tt.qtype), pc.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		got := []string{dns.RcodeToString[m.Rcode]}
		for _, rr := range m.Answer {
			f := strings.Fields(rr.String())
			got = append(got, f[len(f)-1])
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.name, dns.TypeToString[tt.qtype], diff)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeAndGet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, "web1", l) }()
	url := "http://" + netip.MustParseAddrPort(l.Addr().String()).String()
	for n, want := range map[int]string{1: "web1 saw 127.0.0.1\n", 4: "   4 web1\n"} {
		var b strings.Builder
		if err := Get(ctx, &b, url, n, waitLimit); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%d times: %q, want %q", n, b.String(), want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEnvironment(t *testing.T) {
	got := mergeEnv([]string{"A=1", "PATH=/bin", "B=2"}, []string{"PATH=/x", "C=3"})
	if diff := cmp.Diff([]string{"A=1", "B=2", "PATH=/x", "C=3"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := lookPath("no-such-command", got); err == nil {
		t.Error("found what is not there")
	}
}
