package lb

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"nodenet/overlay"
	"nodenet/state"
)

// conntrack deletes flows in a space's namespace.
type conntrack struct{ *space }

func (c conntrack) Delete(proto uint8, ipv6 bool, stale func(dst, backend netip.AddrPort) bool) (n int, err error) {
	c.do(func() { n, err = overlay.Conntrack{}.Delete(proto, ipv6, stale) })
	return n, err
}

// optionTopology is a topology whose outside host also routes external
// addresses by the node, and has a second address.
func optionTopology(t *testing.T, services ...*state.ServiceView) *topology {
	tp := newTopology(t, optionView(services...))
	tp.outer.route("203.0.113.0/24", "192.0.2.11", "", "192.0.2.1")
	tp.outer.route("2001:db8:113::/64", "2001:db8::11", "", "2001:db8::1")
	tp.outer.up("eth0", "192.0.2.2/24", "2001:db8::2/64 deprecated")
	tp.node.sysctl("net/ipv4/icmp_ratelimit", "0") // these tests ask more often than once a second
	tp.node.sysctl("net/ipv6/icmp/ratelimit", "0")
	tp.node.route("203.0.113.0/24", "192.0.2.1", "", "")
	tp.node.route("2001:db8:113::/64", "2001:db8::1", "", "")
	return tp
}

func TestTrafficOptions(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			tp := optionTopology(t, optionServices()...)
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				tp.node.sysctl("net/bridge/bridge-nf-call-iptables", nf)
			} else if nf == "1" {
				t.Skip("needs br_netfilter")
			}
			optionTraffic(t, tp)
		})
	}
}

func optionTraffic(t *testing.T, tp *topology) {
	tp.w1.serve("w1", "0.0.0.0:8042", "0.0.0.0:8042")
	tp.w2.serve("w2", "0.0.0.0:8042", "0.0.0.0:8042")
	tp.node.serve("node", "192.0.2.13:7777", "192.0.2.13:7777")
	stranger, stranger6 := &caller{tp.outer, "192.0.2.2"}, &caller{tp.outer, "2001:db8::2"}
	tests := map[string]struct {
		from interface {
			call(network, address string) string
		}
		network, to string
		want        []string
	}{
		"local, inside":                     {tp.w2, "tcp", "10.96.1.1:80", []string{"w1 10.244.0.3"}},
		"local, from the node":              {tp.node, "tcp", "10.96.1.1:80", []string{"w1 192.0.2.11"}},
		"local, outside":                    {tp.outer, "tcp", "203.0.113.1:80", []string{"w1 192.0.2.1"}},
		"local, node port":                  {tp.outer, "tcp", "192.0.2.11:30101", []string{"w1 192.0.2.1"}},
		"nobody local, inside":              {tp.w2, "tcp", "10.96.1.2:80", []string{"refused"}},
		"nobody local, outside":             {tp.outer, "tcp", "203.0.113.2:80", []string{"timeout"}},
		"nobody local, node port":           {tp.outer, "tcp", "192.0.2.11:30102", []string{"timeout"}},
		"prefer node, inside":               {tp.w1, "tcp", "10.96.1.3:80", []string{"w2 10.244.0.2"}},
		"prefer node is not for outside":    {tp.outer, "tcp", "203.0.113.3:80", []string{"w2 192.0.2.1", "far 192.0.2.11"}},
		"prefer node is not for node ports": {tp.outer, "tcp", "192.0.2.11:30103", []string{"w2 192.0.2.1", "far 192.0.2.11"}},
		"workload to an external address":   {tp.w1, "tcp", "203.0.113.3:80", []string{"w2 10.244.0.2", "far 10.244.0.2"}},
		"workload to itself, external":      {tp.w1, "tcp", "203.0.113.1:80", []string{"w1 10.244.0.1"}},
		"node to an external address":       {tp.node, "tcp", "203.0.113.3:80", []string{"w2 192.0.2.11", "far 192.0.2.11"}},
		"prefer zone":                       {tp.w1, "tcp", "10.96.1.4:80", []string{"far 10.244.0.2"}},
		"source that may":                   {tp.outer, "tcp", "203.0.113.5:80", []string{"w1 192.0.2.1"}},
		"source that may not":               {stranger, "tcp", "203.0.113.5:80", []string{"timeout"}},
		"source that may not, node port":    {stranger, "tcp", "192.0.2.11:30105", []string{"timeout"}},
		"source that may, node port":        {tp.outer, "tcp", "192.0.2.11:30105", []string{"w1 192.0.2.1"}},
		"sources are not asked inside":      {tp.w2, "tcp", "10.96.1.5:80", []string{"w1 10.244.0.3"}},
		"node port on its address":          {tp.outer, "tcp", "192.0.2.13:30106", []string{"w1 192.0.2.1"}},
		"node port on another address":      {tp.outer, "tcp", "192.0.2.11:30106", []string{"refused"}},
		"local, outside, IPv6":              {tp.outer, "tcp", "[2001:db8:113::1]:80", []string{"w1 2001:db8::1"}},
		"workload to external, IPv6":        {tp.w2, "tcp", "[2001:db8:113::1]:80", []string{"w1 fd00:10:244::3"}},
		"workload to itself, IPv6":          {tp.w1, "tcp", "[2001:db8:113::1]:80", []string{"w1 fd00:10:244::1"}},
		"node to external, IPv6":            {tp.node, "tcp", "[2001:db8:113::1]:80", []string{"w1 2001:db8::11"}},
		"source that may, IPv6":             {tp.outer, "tcp", "[2001:db8:113::5]:80", []string{"w1 2001:db8::1"}},
		"source that may not, IPv6":         {stranger6, "tcp", "[2001:db8:113::5]:80", []string{"timeout"}},
		"source, node port, IPv6":           {tp.outer, "tcp", "[2001:db8::11]:30105", []string{"w1 2001:db8::1"}},
		"source not, node port, IPv6":       {stranger6, "tcp", "[2001:db8::11]:30105", []string{"timeout"}},
		"node port on its address, IPv6":    {tp.outer, "tcp", "[2001:db8::13]:30106", []string{"w1 2001:db8::1"}},
		"node port on another, IPv6":        {tp.outer, "tcp", "[2001:db8::11]:30106", []string{"refused"}},
		"no backends, external, IPv6":       {tp.outer, "tcp", "[2001:db8:113::7]:80", []string{"refused"}},
		"unknown port, external, IPv6":      {tp.outer, "udp", "[2001:db8:113::7]:81", []string{"refused"}},
		"no backends, external":             {tp.outer, "tcp", "203.0.113.7:80", []string{"refused"}},
		"no backends, external, workload":   {tp.w1, "tcp", "203.0.113.7:80", []string{"refused"}},
		"no backends, external, node":       {tp.node, "tcp", "203.0.113.7:80", []string{"refused"}},
		"unknown port, external":            {tp.outer, "tcp", "203.0.113.7:81", []string{"refused"}},
		"unknown port, external, UDP":       {tp.outer, "udp", "203.0.113.7:81", []string{"refused"}},
		"external address of the host":      {tp.outer, "tcp", "192.0.2.13:80", []string{"w1 192.0.2.1"}},
		"its other ports":                   {tp.outer, "tcp", "192.0.2.13:7777", []string{"node 192.0.2.1"}},
		"its other ports, UDP":              {tp.outer, "udp", "192.0.2.13:7777", []string{"node 192.0.2.1"}},
		"its other ports, nobody there":     {tp.outer, "tcp", "192.0.2.13:7778", []string{"refused"}},
		"its node ports":                    {tp.outer, "tcp", "192.0.2.13:30101", []string{"w1 192.0.2.1"}},
		"range":                             {tp.outer, "tcp", "10.96.1.13:8042", []string{"w1 192.0.2.1", "w2 192.0.2.1"}},
		"range, siblings":                   {tp.w1, "tcp", "10.96.1.13:8042", []string{"w1 10.244.0.1", "w2 10.244.0.2"}},
		"range, external":                   {tp.outer, "tcp", "203.0.113.13:8042", []string{"w1 192.0.2.1", "w2 192.0.2.1"}},
		"beyond a range":                    {tp.outer, "tcp", "10.96.1.13:8100", []string{"refused"}},
		"range with other targets":          {tp.outer, "tcp", "10.96.1.14:81", []string{"w1 192.0.2.1"}},
		"last resort":                       {tp.outer, "tcp", "10.96.1.15:80", []string{"w2 192.0.2.1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if len(tt.want) == 1 && tt.want[0] == "timeout" {
				if got := tt.from.call(tt.network, tt.to); got != "timeout" {
					t.Errorf("got %q, want no answer", got)
				}
				return
			}
			callsOf(t, tt.from.call, tt.network, tt.to, tt.want...)
		})
	}
	t.Run("echo of an external address", func(t *testing.T) {
		for _, a := range []string{"203.0.113.7", "2001:db8:113::7"} {
			if !tp.outer.ping(addr(a)) {
				t.Errorf("no answer from %s", a)
			}
		}
	})
	t.Run("weights", func(t *testing.T) {
		seen := make(map[string]int)
		for range 200 {
			seen[tp.outer.call("tcp", "10.96.1.9:80")]++
		}
		// 3 of 4, six standard deviations of 6.1 away at most.
		if n := seen["w1 192.0.2.1"]; n < 114 || n > 186 || n+seen["w2 192.0.2.1"] != 200 {
			t.Errorf("got %v, want about 150 and 50", seen)
		}
	})
	// What user space says of the hash is what the kernel does with it.
	t.Run("hash", func(t *testing.T) {
		rs := Derive(optionView(optionServices()...), testLocal()).Ruleset()
		names := map[netip.Addr]string{addr("10.244.0.2"): "w1 ", addr("10.244.0.3"): "w2 "}
		seen := make(map[string]bool)
		for i := range 12 {
			src := netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
			tp.outer.up("eth0", src.String()+"/24")
			for _, to := range []string{"10.96.1.10:80", "10.96.1.11:80", "203.0.113.11:80", "192.0.2.11:30111"} {
				v := Trace(rs, Packet{In: "eth0", Src: src, Dst: ap(to).Addr(), Proto: TCP, Dport: ap(to).Port()})
				want := names[v.Target.Addr()] + src.String()
				for range 2 {
					if got := (&caller{tp.outer, src.String()}).call("tcp", to); got != want {
						t.Errorf("%s to %s: %q, want %q", src, to, got, want)
					}
				}
				seen[to+names[v.Target.Addr()]] = true
			}
		}
		if len(seen) != 8 {
			t.Errorf("not every backend was chosen: %v", seen)
		}
	})
}

// caller calls from one of its host's addresses.
type caller struct {
	*space
	src string
}

func (c *caller) call(network, address string) string {
	return c.callFrom(&net.TCPAddr{IP: net.ParseIP(c.src)}, network, address)
}

// stream is a TCP connection whose server answers each line with its name.
func (s *space) echo(name, address string) {
	s.t.Helper()
	l, err := s.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.t.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 100)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					fmt.Fprintf(c, "%s\n", name)
				}
			}()
		}
	}()
}

// talk sends a line and returns the answer, "reset" or "timeout".
func talk(c net.Conn) string {
	_ = c.SetDeadline(time.Now().Add(time.Second))
	b := make([]byte, 100)
	_, err := c.Write([]byte("?\n"))
	n := 0
	if err == nil {
		n, err = c.Read(b)
	}
	switch {
	case err == nil:
		return strings.TrimSpace(string(b[:n]))
	case strings.Contains(err.Error(), "reset"):
		return "reset"
	case os.IsTimeout(err):
		return "timeout"
	}
	return err.Error()
}

// TestFlowsOfBackends: flows go on to a backend that is drained or whose node
// fell silent, and are reset when its check failed, with and without another
// backend to be had.
func TestFlowsOfBackends(t *testing.T) {
	view := func(rev uint64, w1 func(*state.BackendOf), others ...string) *state.View {
		s := svc("flows", "10.96.1.20", "tcp", 80, 30120, append([]string{"10.244.0.2:9090"}, others...)...)
		externals("203.0.113.20")(s)
		if w1 != nil {
			s.Backends[0].Ready = false
			w1(&s.Backends[0])
		}
		v := optionView(s)
		v.Rev = rev
		return v
	}
	const w2 = "10.244.0.3:9090"
	draining, silent, failed := func(b *state.BackendOf) { b.Draining = true }, func(*state.BackendOf) {}, func(b *state.BackendOf) { b.Failed = true }
	tests := map[string]struct {
		steps  []func(*state.BackendOf)
		others []string
		want   string
	}{
		"draining":                {[]func(*state.BackendOf){draining}, []string{w2}, "w1"},
		"draining, alone":         {[]func(*state.BackendOf){draining}, nil, "w1"},
		"silent":                  {[]func(*state.BackendOf){silent}, []string{w2}, "w1"},
		"silent, alone":           {[]func(*state.BackendOf){silent}, nil, "w1"},
		"failed":                  {[]func(*state.BackendOf){failed}, []string{w2}, "reset"},
		"failed, alone":           {[]func(*state.BackendOf){failed}, nil, "reset"},
		"drained to the deadline": {[]func(*state.BackendOf){draining, failed}, []string{w2}, "reset"},
	}
	tp := optionTopology(t)
	tp.w1.echo("w1", "0.0.0.0:9090")
	tp.w2.echo("w2", "0.0.0.0:9090")
	rev := uint64(100)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rev++
			tp.set(view(rev, nil))
			conns := make(map[string]net.Conn)
			for from, x := range map[string]struct {
				s  *space
				to string
			}{
				"outside": {tp.outer, "10.96.1.20:80"}, "workload": {tp.w2, "10.96.1.20:80"}, "node": {tp.node, "10.96.1.20:80"},
				"node port": {tp.outer, "192.0.2.11:30120"}, "external": {tp.outer, "203.0.113.20:80"}, "itself": {tp.w1, "10.96.1.20:80"},
			} {
				c, err := x.s.Dial(t.Context(), "tcp", x.to)
				if err != nil {
					t.Fatalf("%s: %v", from, err)
				}
				defer c.Close()
				if got := talk(c); got != "w1" {
					t.Fatalf("%s: %q before anything happened", from, got)
				}
				conns[from] = c
			}
			for _, w1 := range tt.steps {
				rev++
				tp.set(view(rev, w1, tt.others...))
			}
			for from, c := range conns {
				if got := talk(c); got != tt.want {
					t.Errorf("%s: got %q, want %q", from, got, tt.want)
				}
			}
		})
	}
}

// TestAffinity: a client keeps its backend, whatever happens to others, over a
// restart, and gets another one when it goes.
func TestAffinity(t *testing.T) {
	const w1, w2, far = "10.244.0.2:8080", "10.244.0.3:8080", "10.244.1.2:8080@other"
	tp := optionTopology(t, stickyService(60, w1, w2, far))
	rev := uint64(100)
	set := func(backends ...string) {
		rev++
		v := optionView(stickyService(60, backends...))
		v.Rev = rev
		tp.set(v)
	}
	whole := map[string]string{"w1": w1, "w2": w2, "far": far}
	keeps := func(s *space, to, want string) {
		t.Helper()
		for range 12 {
			if got, _, _ := strings.Cut(s.call("tcp", to), " "); got != want {
				t.Fatalf("%s: got %q, want %q", to, got, want)
			}
		}
	}
	for from, x := range map[string]struct {
		s  *space
		to string
	}{
		"outside": {tp.outer, "10.96.1.12:80"}, "node port": {tp.outer, "192.0.2.11:30112"}, "external": {tp.outer, "203.0.113.12:80"},
		"workload": {tp.w1, "10.96.1.12:80"}, "node": {tp.node, "10.96.1.12:80"}, "IPv6": {tp.outer, "[fd00:10:96::10c]:80"},
	} {
		set(w1, w2, far)
		first, _, _ := strings.Cut(x.s.call("tcp", x.to), " ")
		if whole[first] == "" {
			t.Fatalf("%s: %q", from, first)
		}
		keeps(x.s, x.to, first)
		var others []string
		for name, b := range whole {
			if name != first {
				others = append(others, b)
			}
		}
		set(whole[first], others[0]) // the slots move
		keeps(x.s, x.to, first)
		tp.halt()
		tp.start(optionView(stickyService(60, whole[first], others[0])))
		keeps(x.s, x.to, first)
		set(others...)
		second, _, _ := strings.Cut(x.s.call("tcp", x.to), " ")
		if second == first || whole[second] == "" {
			t.Fatalf("%s: %q after %q went", from, second, first)
		}
		keeps(x.s, x.to, second)
		set(w1, w2, far)
		keeps(x.s, x.to, second)
	}
	t.Run("nft lists it", func(t *testing.T) {
		listed := tp.node.nft("", "list", "table", "inet", "nodenet")
		if !strings.Contains(listed, "update @aff {") || !strings.Contains(listed, "expires") {
			t.Errorf("nothing learned is listed:\n%s", listed)
		}
	})
	t.Run("trace finds it", func(t *testing.T) {
		var rs Ruleset
		var err error
		tp.node.do(func() { rs, err = tp.lb.Inspect() })
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := strings.Cut(tp.outer.call("tcp", "10.96.1.12:80"), " ")
		for r := range uint32(3) {
			v := Trace(rs, Packet{In: "eth0", Src: addr("192.0.2.1"), Dst: addr("10.96.1.12"), Proto: TCP, Dport: 80, Rand: r})
			if got := v.Target.String(); !strings.HasPrefix(whole[want], got) {
				t.Errorf("slot %d: traced to %s, the kernel chose %s", r, got, want)
			}
		}
	})
}

// TestAffinityEnds: a client that stayed away for the time is balanced anew,
// which gives it another backend every other time.
func TestAffinityEnds(t *testing.T) {
	tp := optionTopology(t, stickyService(1, "10.244.0.2:8080", "10.244.0.3:8080"))
	first := tp.outer.call("tcp", "10.96.1.12:80")
	for range 30 {
		eventually(t, "nothing learned any more", func() bool {
			return !strings.Contains(tp.node.nft("", "list", "map", "inet", "nodenet", "aff"), "elements")
		})
		if tp.outer.call("tcp", "10.96.1.12:80") != first {
			return
		}
	}
	t.Errorf("30 times %s", first)
}
