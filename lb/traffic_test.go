package lb

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// calls tries one thing until every wanted answer was seen and fails on any
// other one: balancing is random.
func calls(t *testing.T, s *space, network, address string, want ...string) {
	t.Helper()
	callsOf(t, s.call, network, address, want...)
}

func callsOf(t *testing.T, call func(network, address string) string, network, address string, want ...string) {
	t.Helper()
	seen := make(map[string]int)
	for range 60 {
		got := call(network, address)
		seen[got]++
		if !slices.Contains(want, got) {
			break
		}
		if len(seen) == len(want) {
			return
		}
	}
	t.Errorf("%s %s: got %v, want %q", network, address, seen, want)
}

func TestTraffic(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			tp := newTopology(t, testView())
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				tp.node.sysctl("net/bridge/bridge-nf-call-iptables", nf)
				tp.node.sysctl("net/bridge/bridge-nf-call-ip6tables", nf)
			} else if nf == "1" {
				t.Skip("needs br_netfilter")
			}
			traffic(t, tp)
			traffic6(t, tp)
		})
	}
}

func traffic(t *testing.T, tp *topology) {
	const vip, one, empty, both, far = "10.96.0.20:80", "10.96.0.21:80", "10.96.0.22:80", "10.96.0.23:80", "10.96.0.24:80"
	tests := map[string]struct {
		from    *space
		network string
		to      string
		want    []string
	}{
		"workload to itself and its sibling":   {tp.w1, "tcp", vip, []string{"w1 10.244.0.1", "w2 10.244.0.2"}},
		"sibling on the same bridge":           {tp.w2, "tcp", one, []string{"w1 10.244.0.3"}},
		"workload to itself":                   {tp.w1, "tcp", one, []string{"w1 10.244.0.1"}},
		"workload to both nodes":               {tp.w2, "tcp", both, []string{"w1 10.244.0.3", "far 10.244.0.3"}},
		"workload to the other node":           {tp.w1, "tcp", far, []string{"far 10.244.0.2"}},
		"sibling by UDP":                       {tp.w2, "udp", "10.96.0.25:53", []string{"w1 10.244.0.3"}},
		"itself by UDP":                        {tp.w1, "udp", "10.96.0.25:53", []string{"w1 10.244.0.1"}},
		"node to VIP":                          {tp.node, "tcp", vip, []string{"w1 192.0.2.11", "w2 192.0.2.11"}},
		"node to the other node":               {tp.node, "tcp", far, []string{"far 192.0.2.11"}},
		"node by UDP":                          {tp.node, "udp", "10.96.0.25:53", []string{"w1 192.0.2.11"}},
		"outside to VIP":                       {tp.outer, "tcp", vip, []string{"w1 192.0.2.1", "w2 192.0.2.1"}},
		"outside to both nodes":                {tp.outer, "tcp", both, []string{"w1 192.0.2.1", "far 192.0.2.11"}},
		"outside by UDP":                       {tp.outer, "udp", "10.96.0.25:53", []string{"w1 192.0.2.1"}},
		"sibling directly":                     {tp.w2, "tcp", "10.244.0.2:8080", []string{"w1 10.244.0.3"}},
		"node port from outside":               {tp.outer, "tcp", "192.0.2.11:30080", []string{"w1 192.0.2.1", "w2 192.0.2.1"}},
		"node port from outside to both":       {tp.outer, "tcp", "192.0.2.11:30090", []string{"w1 192.0.2.1", "far 192.0.2.11"}},
		"node port from the node":              {tp.node, "tcp", "192.0.2.11:30080", []string{"w1 192.0.2.11", "w2 192.0.2.11"}},
		"node port from a workload":            {tp.w1, "tcp", "192.0.2.11:30080", []string{"w1 10.244.0.1", "w2 10.244.0.2"}},
		"node port on the bridge's address":    {tp.w2, "tcp", "10.244.0.1:30080", []string{"w1 10.244.0.3", "w2 10.244.0.1"}},
		"node port on the resolver":            {tp.w1, "tcp", "10.96.0.10:30080", []string{"refused"}},
		"node port without backends":           {tp.outer, "tcp", "192.0.2.11:30081", []string{"refused"}},
		"published port from outside":          {tp.outer, "tcp", "192.0.2.11:8080", []string{"w1 192.0.2.1"}},
		"published UDP port from outside":      {tp.outer, "udp", "192.0.2.11:5300", []string{"w1 192.0.2.1"}},
		"published port from the node":         {tp.node, "tcp", "192.0.2.11:8080", []string{"w1 192.0.2.11"}},
		"published port from itself":           {tp.w1, "tcp", "192.0.2.11:8080", []string{"w1 10.244.0.1"}},
		"published port from its sibling":      {tp.w2, "tcp", "192.0.2.11:8080", []string{"w1 10.244.0.3"}},
		"published UDP port from its sibling":  {tp.w2, "udp", "192.0.2.11:5300", []string{"w1 10.244.0.3"}},
		"published port on loopback":           {tp.node, "tcp", "127.0.0.1:8080", []string{"w1 10.244.0.1"}},
		"published UDP port on loopback":       {tp.node, "udp", "127.0.0.1:5300", []string{"w1 10.244.0.1"}},
		"published on loopback only":           {tp.node, "tcp", "127.0.0.1:9000", []string{"w2 10.244.0.1"}},
		"published on loopback, from outside":  {tp.outer, "tcp", "192.0.2.11:9000", []string{"refused"}},
		"published on a named address":         {tp.outer, "tcp", "192.0.2.11:8443", []string{"w2 192.0.2.1"}},
		"published on another address":         {tp.outer, "tcp", "192.0.2.13:8443", []string{"refused"}},
		"no backends from outside":             {tp.outer, "tcp", empty, []string{"refused"}},
		"no backends from a workload":          {tp.w1, "tcp", empty, []string{"refused"}},
		"no backends from the node":            {tp.node, "tcp", empty, []string{"refused"}},
		"unknown port from outside":            {tp.outer, "tcp", "10.96.0.20:81", []string{"refused"}},
		"unknown port from a workload":         {tp.w1, "udp", "10.96.0.20:81", []string{"refused"}},
		"unknown port from the node":           {tp.node, "udp", "10.96.0.20:81", []string{"denied"}},
		"other port of the resolver":           {tp.w1, "tcp", "10.96.0.10:22", []string{"refused"}},
		"other port of the resolver, the node": {tp.node, "tcp", "10.96.0.10:22", []string{"refused"}},
		"masquerade to the outside":            {tp.w1, "tcp", "192.0.2.1:7000", []string{"internet 192.0.2.11"}},
		"masquerade UDP to the outside":        {tp.w2, "udp", "192.0.2.1:7001", []string{"internet 192.0.2.11"}},
		"no masquerade inside the cluster":     {tp.w1, "tcp", "10.244.1.2:8080", []string{"far 10.244.0.2"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			calls(t, tt.from, tt.network, tt.to, tt.want...)
		})
	}
	t.Run("refusals are never late", func(t *testing.T) {
		for range 40 {
			start := time.Now()
			if got := tp.outer.call("tcp", empty); got != "refused" || time.Since(start) > 900*time.Millisecond {
				t.Fatalf("%s after %v", got, time.Since(start))
			}
		}
	})
	t.Run("unallocated address is dropped", func(t *testing.T) {
		for _, s := range []*space{tp.outer, tp.w1} {
			if got := s.call("udp", "10.96.9.9:80"); got != "timeout" {
				t.Errorf("got %s, want no answer", got)
			}
		}
		if tp.outer.ping(addr("10.96.9.9")) {
			t.Error("it answers echo requests")
		}
	})
	t.Run("ping", func(t *testing.T) {
		for _, s := range []*space{tp.w1, tp.outer, tp.node} {
			for _, a := range []string{"10.96.0.20", "10.96.0.22", "10.96.0.10"} {
				if !s.ping(addr(a)) {
					t.Errorf("%s does not answer", a)
				}
			}
		}
	})
	t.Run("resolver without conntrack", func(t *testing.T) {
		tp.node.serve("dns", "10.96.0.10:53", "10.96.0.10:53")
		calls(t, tp.w1, "udp", "10.96.0.10:53", "dns 10.244.0.2")
		calls(t, tp.w1, "tcp", "10.96.0.10:53", "dns 10.244.0.2")
		calls(t, tp.outer, "udp", "10.96.0.10:53", "dns 192.0.2.1")
		calls(t, tp.node, "udp", "10.96.0.10:53", "dns 10.96.0.10")
		calls(t, tp.node, "tcp", "10.96.0.10:53", "dns 10.96.0.10")
	})
	t.Run("transit is untouched", func(t *testing.T) {
		tp.outer.serve("transit", "192.0.2.1:8080", "192.0.2.1:30080")
		calls(t, tp.w1, "tcp", "192.0.2.1:8080", "transit 192.0.2.11")
		calls(t, tp.w1, "udp", "192.0.2.1:30080", "transit 192.0.2.11")
	})
}

func TestRepair(t *testing.T) {
	tp := newTopology(t, testView())
	for _, cmd := range []string{"flush ruleset", "delete table bridge nodenet", "delete table inet nodenet", "flush chain inet nodenet dispatch", "flush table inet nodenet"} {
		t.Run(cmd, func(t *testing.T) {
			tp.node.nft("", strings.Fields(cmd)...)
			start := time.Now()
			eventually(t, "VIP works again", func() bool {
				listed := tp.node.nft("", "list", "ruleset")
				return strings.Contains(listed, "table bridge nodenet") && strings.Contains(listed, "goto vip") &&
					strings.HasPrefix(tp.outer.call("tcp", "10.96.0.21:80"), "w1 ")
			})
			t.Logf("%s: repaired after %v", cmd, time.Since(start).Round(time.Millisecond))
		})
	}
	t.Run("foreign changes are none of ours", func(t *testing.T) {
		tp.node.nft("", "add", "table", "inet", "other")
		eventually(t, "noticed", func() bool { return tp.lb.Status().OK })
		if !strings.Contains(tp.node.nft("", "list", "tables"), "inet other") {
			t.Error("a foreign table is gone")
		}
	})
}

// TestRestart replaces the LB while a connection is open: nothing changes.
func TestRestart(t *testing.T) {
	tp := newTopology(t, testView())
	k := tp.node.kernel()
	before, err := k.Generation()
	if err != nil {
		t.Fatal(err)
	}
	tables := func() string { // with handles, which a rule made anew does not keep
		return tp.node.nft("", "-a", "list", "table", "inet", TableName) + tp.node.nft("", "-a", "list", "table", "bridge", TableName)
	}
	was := tables()
	tp.halt()
	calls(t, tp.outer, "tcp", "10.96.0.21:80", "w1 192.0.2.1")
	tp.start(testView())
	after, err := k.Generation()
	if err != nil {
		t.Fatal(err)
	}
	// The tables that are held make two: to be there, and to be filled.
	if n := after - before; n > 2 {
		t.Errorf("%d transactions for the same table", n)
	}
	if diff := cmp.Diff(was, tables()); diff != "" {
		t.Errorf("the restart touched our tables (-before +after):\n%s", diff)
	}
	calls(t, tp.node, "tcp", "127.0.0.1:8080", "w1 10.244.0.1")
}

func TestCleanup(t *testing.T) {
	s := newSpace(t)
	syncKernel(t, s.kernel(), nil, Derive(testView(), testLocal()))
	s.nft("", "add", "table", "inet", "other")
	s.nft("", "add", "table", "ip", "nodenet")
	var gone []string
	var err error
	for _, want := range []int{2, 0} {
		s.do(func() { gone, err = Cleanup(t.Context()) })
		if err != nil || len(gone) != want {
			t.Errorf("deleted %v, %v; want %d tables", gone, err, want)
		}
	}
	left := s.nft("", "list", "tables")
	if want := "table inet other\ntable ip nodenet\n"; left != want && left != "table ip nodenet\ntable inet other\n" {
		t.Errorf("left: %q, want %q", left, want)
	}
}

// TestOlderVersion: what another version left is replaced, in one transaction.
func TestOlderVersion(t *testing.T) {
	left := map[string]string{
		"another rule":    "add rule inet nodenet dispatch ip daddr 198.51.100.1 drop",
		"a rule less":     "flush chain inet nodenet translated",
		"another chain":   "add chain inet nodenet old",
		"another set":     "add set inet nodenet old { type ipv4_addr; }",
		"another policy":  "add chain inet nodenet forward { policy drop; }",
		"a dormant table": "add table inet nodenet { flags dormant; }",
		"other tables":    "delete table inet nodenet; delete table bridge nodenet; add table inet nodenet; add chain bridge nodenet x",
	}
	for name, cmd := range left {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			k := s.kernel()
			tab := Derive(testView(), testLocal())
			syncKernel(t, k, nil, tab)
			if strings.Contains(cmd, "bridge") {
				cmd = strings.Replace(cmd, "add chain bridge", "add table bridge nodenet; add chain bridge", 1)
			}
			s.nft(strings.ReplaceAll(cmd, "; ", "\n")+"\n", "-f", "-")
			before, err := k.Generation()
			if err != nil {
				t.Fatal(err)
			}
			next, ops := syncKernel(t, k, nil, tab)
			if ops.Empty() {
				t.Error("not noticed")
			}
			wantKernel(t, k, next)
			if after, _ := k.Generation(); after != before+1 {
				t.Errorf("%d transactions, want 1", after-before)
			}
		})
	}
}

// TestElementsChangedFromOutside: a restart puts single elements right.
func TestElementsChangedFromOutside(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	tab := Derive(testView(), testLocal())
	syncKernel(t, k, nil, tab)
	s.nft("", "delete", "element", "inet", "nodenet", "vips", "{ 10.96.0.20 }")
	s.nft("", "add", "element", "inet", "nodenet", "vips", "{ 10.96.77.1 }")
	s.nft("", "flush", "set", "inet", "nodenet", "masq")
	next, ops := syncKernel(t, k, nil, tab)
	if ops.Count() != 4 || len(ops.Replace) != 0 {
		t.Errorf("%d operations, want 4:\n%s", ops.Count(), ops)
	}
	wantKernel(t, k, next)
}
