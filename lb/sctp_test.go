package lb

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"nodenet/state"
	"nodenet/test/sctp"
)

// serveSCTP runs an SCTP endpoint on an address, which fails the test when a
// checksum is wrong.
func (s *space) serveSCTP(name, address string, ports ...uint16) {
	s.t.Helper()
	var c net.PacketConn
	var err error
	s.do(func() { c, err = net.ListenPacket(network("ip", addr(address))+":132", address) })
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- sctp.Serve(c, name, ports...) }()
	s.t.Cleanup(func() {
		c.Close()
		if err := <-done; err != nil {
			s.t.Errorf("%s: %v", name, err)
		}
	})
}

// sctpTo opens an association, from any port if from is 0. The socket is
// closed with the test at the latest.
func (s *space) sctpTo(address string, from uint16) (*sctp.Assoc, *net.IPConn, error) {
	s.t.Helper()
	to := ap(address)
	var c *net.IPConn
	var err error
	s.do(func() {
		c, err = net.DialIP(network("ip", to.Addr())+":132", nil, &net.IPAddr{IP: to.Addr().AsSlice()})
	})
	if err != nil {
		return nil, nil, err
	}
	s.t.Cleanup(func() { c.Close() })
	if from == 0 {
		from = sctp.FreePort()
	}
	a, err := sctp.Dial(c, from, to.Port())
	return a, c, err
}

// associate does a whole association, from any port if from is 0, and returns
// the answer or what went wrong. Of refusals it tells "aborted", "refused",
// "unreachable" and "denied", see package sctp.
func (s *space) associate(from uint16, address string) string {
	s.t.Helper()
	a, c, err := s.sctpTo(address, from)
	if c != nil {
		defer c.Close()
	}
	if err != nil {
		return sctpResult(err)
	}
	msg := strings.Repeat("diameter", 150)
	got, err := a.Ask([]byte(msg))
	if err == nil {
		err = a.Close()
	}
	if err != nil {
		return sctpResult(err)
	}
	answer, echo, _ := strings.Cut(string(got), "\n")
	if echo != msg {
		return fmt.Sprintf("%s, and %d bytes that are not what was sent", answer, len(echo))
	}
	return answer
}

func sctpResult(err error) string {
	if err == nil {
		return "answered"
	}
	for _, e := range []error{sctp.ErrAborted, sctp.ErrRefused, sctp.ErrUnreachable, sctp.ErrDenied} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	if os.IsTimeout(err) {
		return "timeout"
	}
	return err.Error()
}

// sctpPlan has the addresses of one version. refused is what a client hears of a
// port that our rules refuse, denied the node's own client of a VIP's: there is
// no ICMP error for what leaves by lo.
type sctpPlan struct {
	vip, one, empty, both, far, ext, extEmpty     string
	node, named, gw, w1, w2, w1real, farIP, outer string
	refused, denied                               string
}

const sctpPort = ":3868"

var sctpPlans = map[string]sctpPlan{
	"IPv4": {"10.96.2.1", "10.96.2.2", "10.96.2.3", "10.96.2.4", "10.96.2.5", "203.0.113.41", "203.0.113.43",
		"192.0.2.11", "192.0.2.13", "10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.2", "10.244.1.2", "192.0.2.1", "refused", "denied"},
	"IPv6": {"[fd00:10:96::201]", "[fd00:10:96::202]", "[fd00:10:96::203]", "[fd00:10:96::204]", "[fd00:10:96::205]", "[2001:db8:113::41]", "[2001:db8:113::43]",
		"[2001:db8::11]", "[2001:db8::13]", "fd00:10:244::1", "fd00:10:244::2", "fd00:10:244::3", "[fd00:10:244::2]", "[fd00:10:244::102]", "2001:db8::1", "unreachable", "unreachable"},
}

// sctpView has the services and published ports of the plan.
func sctpView(rev uint64, services ...*state.ServiceView) *state.View {
	const w1, w2, far = "10.244.0.2:3900", "10.244.0.3:3900", "10.244.1.2:3900@other"
	v := optionView(append(services,
		with(svc("dia", "10.96.2.1", "sctp", 3868, 30201, w1, w2), externals("203.0.113.41", "2001:db8:113::41")),
		svc("one", "10.96.2.2", "sctp", 3868, 0, w1),
		with(svc("empty", "10.96.2.3", "sctp", 3868, 30203, w1+"!"), externals("203.0.113.43", "2001:db8:113::43")),
		svc("both", "10.96.2.4", "sctp", 3868, 30204, w1, far),
		svc("far", "10.96.2.5", "sctp", 3868, 0, far),
		with(svc("local", "10.96.2.6", "sctp", 3868, 30206, w1, far), func(s *state.ServiceView) { s.Outside = state.PolicyLocal }),
	)...)
	v.Rev = rev
	v.Publishes = []state.Publish{
		pub("", "sctp", 3868, w1), pub("192.0.2.11", "sctp", 3869, w2), pub("", "sctp", 3870, "10.244.1.2:3900"), pub("", "sctp", 3871, "10.244.0.2:9"),
		pub("::", "sctp", 3868, "[fd00:10:244::2]:3900"), pub("2001:db8::11", "sctp", 3869, "[fd00:10:244::3]:3900"),
		pub("::", "sctp", 3870, "[fd00:10:244::102]:3900"), pub("::", "sctp", 3871, "[fd00:10:244::2]:9"),
	}
	return v
}

func sctpTopology(t *testing.T) *topology {
	tp := optionTopology(t)
	tp.set(sctpView(10))
	for name, at := range map[string]struct {
		s     *space
		addrs []string
	}{"w1": {tp.w1, []string{"10.244.0.2", "fd00:10:244::2"}}, "w2": {tp.w2, []string{"10.244.0.3", "fd00:10:244::3"}}, "far": {tp.outer, []string{"10.244.1.2", "fd00:10:244::102"}}} {
		for _, a := range at.addrs {
			at.s.serveSCTP(name, a, 3900)
		}
	}
	tp.outer.serveSCTP("internet", "192.0.2.1", 7000, 30201, 3868)
	tp.outer.serveSCTP("internet", "2001:db8::1", 7000, 30201, 3868)
	return tp
}

// TestSCTPTraffic: SCTP packets of real associations, whose checksums both ends
// verify, are translated as TCP's are.
func TestSCTPTraffic(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			tp := sctpTopology(t)
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				tp.node.sysctl("net/bridge/bridge-nf-call-iptables", nf)
				tp.node.sysctl("net/bridge/bridge-nf-call-ip6tables", nf)
			} else if nf == "1" {
				t.Skip("needs br_netfilter")
			}
			for version, p := range sctpPlans {
				t.Run(version, func(t *testing.T) { sctpTraffic(t, tp, p) })
			}
		})
	}
}

func sctpTraffic(t *testing.T, tp *topology, p sctpPlan) {
	node := strings.Trim(p.node, "[]")
	tests := map[string]struct {
		from *space
		to   string
		want []string
	}{
		"workload to itself and its sibling":     {tp.w1, p.vip + sctpPort, []string{"w1 " + p.gw, "w2 " + p.w1}},
		"sibling on the same bridge":             {tp.w2, p.one + sctpPort, []string{"w1 " + p.w2}},
		"workload to itself":                     {tp.w1, p.one + sctpPort, []string{"w1 " + p.gw}},
		"workload to both nodes":                 {tp.w2, p.both + sctpPort, []string{"w1 " + p.w2, "far " + p.w2}},
		"workload to the other node":             {tp.w1, p.far + sctpPort, []string{"far " + p.w1}},
		"node to VIP":                            {tp.node, p.vip + sctpPort, []string{"w1 " + node, "w2 " + node}},
		"node to the other node":                 {tp.node, p.far + sctpPort, []string{"far " + node}},
		"outside to VIP":                         {tp.outer, p.vip + sctpPort, []string{"w1 " + p.outer, "w2 " + p.outer}},
		"outside to both nodes":                  {tp.outer, p.both + sctpPort, []string{"w1 " + p.outer, "far " + node}},
		"sibling directly":                       {tp.w2, p.w1real + ":3900", []string{"w1 " + p.w2}},
		"node port from outside":                 {tp.outer, p.node + ":30201", []string{"w1 " + p.outer, "w2 " + p.outer}},
		"node port from outside to both":         {tp.outer, p.node + ":30204", []string{"w1 " + p.outer, "far " + node}},
		"node port from outside, local":          {tp.outer, p.node + ":30206", []string{"w1 " + p.outer}},
		"node port from the node":                {tp.node, p.node + ":30201", []string{"w1 " + node, "w2 " + node}},
		"node port from a workload":              {tp.w1, p.node + ":30201", []string{"w1 " + p.gw, "w2 " + p.w1}},
		"node port without backends":             {tp.outer, p.node + ":30203", []string{"refused"}}, // by the kernel, which has no SCTP
		"external address from outside":          {tp.outer, p.ext + sctpPort, []string{"w1 " + p.outer, "w2 " + p.outer}},
		"external address from a workload":       {tp.w1, p.ext + sctpPort, []string{"w1 " + p.gw, "w2 " + p.w1}},
		"external address from the node":         {tp.node, p.ext + sctpPort, []string{"w1 " + node, "w2 " + node}},
		"external address without backends":      {tp.outer, p.extEmpty + sctpPort, []string{p.refused}},
		"the same from a workload":               {tp.w1, p.extEmpty + sctpPort, []string{p.refused}},
		"the same from the node":                 {tp.node, p.extEmpty + sctpPort, []string{p.refused}},
		"unknown port of an external address":    {tp.outer, p.ext + ":81", []string{p.refused}},
		"no backends from outside":               {tp.outer, p.empty + sctpPort, []string{p.refused}},
		"no backends from a workload":            {tp.w1, p.empty + sctpPort, []string{p.refused}},
		"no backends from the node":              {tp.node, p.empty + sctpPort, []string{p.denied}},
		"unknown port from outside":              {tp.outer, p.vip + ":81", []string{p.refused}},
		"published port from outside":            {tp.outer, p.node + ":3868", []string{"w1 " + p.outer}},
		"published port from the node":           {tp.node, p.node + ":3868", []string{"w1 " + node}},
		"published port from itself":             {tp.w1, p.node + ":3868", []string{"w1 " + p.gw}},
		"published port from its sibling":        {tp.w2, p.node + ":3868", []string{"w1 " + p.w2}},
		"published on a named address":           {tp.outer, p.node + ":3869", []string{"w2 " + p.outer}},
		"published on another address":           {tp.outer, p.named + ":3869", []string{"refused"}},
		"published, on the other node":           {tp.outer, p.node + ":3870", []string{"far " + node}},
		"published, nobody listens there":        {tp.outer, p.node + ":3871", []string{"aborted"}},
		"masquerade to the outside":              {tp.w1, bracket(p.outer) + ":7000", []string{"internet " + node}},
		"no masquerade inside the cluster":       {tp.w1, p.farIP + ":3900", []string{"far " + p.w1}},
		"a node port of another host, transit":   {tp.w1, bracket(p.outer) + ":30201", []string{"internet " + node}},
		"published port of another one, transit": {tp.w2, bracket(p.outer) + ":3868", []string{"internet " + node}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			calls(t, tt.from, "sctp", tt.to, tt.want...)
			if d := time.Since(start); len(tt.want) == 1 && d > 400*time.Millisecond {
				t.Errorf("after %v", d)
			}
		})
	}
}

func bracket(a string) string {
	if strings.Contains(a, ":") {
		return "[" + a + "]"
	}
	return a
}

// TestSCTPFlows: associations go on with a backend that drains or fell silent,
// and are forgotten when it failed or went: nobody answers the client any more,
// whose own timers end the association, and when it comes again from the same
// port it gets another backend at once.
func TestSCTPFlows(t *testing.T) {
	view := func(rev uint64, w1 func(*state.BackendOf), backends ...string) *state.View {
		s := svc("flows", "10.96.2.20", "sctp", 3868, 30220, backends...)
		externals("203.0.113.50")(s)
		if w1 != nil {
			s.Backends[0].Ready = false
			w1(&s.Backends[0])
		}
		v := optionView(s)
		v.Rev = rev
		return v
	}
	const w1, w2 = "10.244.0.2:3900", "10.244.0.3:3900"
	draining, silent, failed := func(b *state.BackendOf) { b.Draining = true }, func(*state.BackendOf) {}, func(b *state.BackendOf) { b.Failed = true }
	tests := map[string]struct {
		step     func(*state.BackendOf)
		backends []string
		again    string // who answers who comes again; empty: associations go on
	}{
		"draining":        {draining, []string{w1, w2}, ""},
		"draining, alone": {draining, []string{w1}, ""},
		"silent":          {silent, []string{w1, w2}, ""},
		"failed":          {failed, []string{w1, w2}, "w2"},
		"failed, alone":   {failed, []string{w1}, "refused"},
		"gone":            {nil, []string{w2}, "w2"},
	}
	tp := optionTopology(t)
	tp.w1.serveSCTP("w1", "10.244.0.2", 3900)
	tp.w2.serveSCTP("w2", "10.244.0.3", 3900)
	rev := uint64(100)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rev++
			tp.set(view(rev, nil, w1))
			var clients []*sctpClient
			for _, to := range []string{"10.96.2.20:3868", "192.0.2.11:30220", "203.0.113.50:3868"} {
				c := &sctpClient{s: tp.outer, to: to, port: sctp.FreePort()}
				var err error
				if c.assoc, _, err = tp.outer.sctpTo(to, c.port); err != nil {
					t.Fatalf("%s: %v", to, err)
				}
				if got := c.ask(); got != "w1" {
					t.Fatalf("%s: %q before anything happened", to, got)
				}
				clients = append(clients, c)
			}
			rev++
			tp.set(view(rev, tt.step, tt.backends...))
			for _, c := range clients {
				if tt.again == "" {
					c.goesOn(t)
				} else {
					c.comesAgain(t, tt.again)
				}
			}
		})
	}
}

// sctpClient has an association.
type sctpClient struct {
	s     *space
	to    string
	port  uint16
	assoc *sctp.Assoc
}

// ask sends a message and returns the name of who answers.
func (c *sctpClient) ask() string {
	got, err := c.assoc.Ask([]byte("?"))
	if err != nil {
		return sctpResult(err)
	}
	name, _, _ := strings.Cut(string(got), " ")
	return name
}

func (c *sctpClient) goesOn(t *testing.T) {
	t.Helper()
	if got := c.ask(); got != "w1" {
		t.Errorf("%s: DATA: got %q, want w1", c.to, got)
	}
	if err := c.assoc.Heartbeat(); err != nil {
		t.Errorf("%s: HEARTBEAT: %v", c.to, err)
	}
	if err := c.assoc.Close(); err != nil {
		t.Errorf("%s: SHUTDOWN: %v", c.to, err)
	}
}

func (c *sctpClient) comesAgain(t *testing.T, want string) {
	t.Helper()
	// DATA belongs to no flow that conntrack could make of it: it is not
	// translated, and at a node port meets the node's own stack, without SCTP.
	gone := "timeout"
	if strings.HasPrefix(c.to, "192.0.2.11:") {
		gone = "refused"
	}
	if got := c.ask(); got != gone {
		t.Errorf("%s: DATA: got %q, want %q", c.to, got, gone)
	}
	got, _, _ := strings.Cut(c.s.associate(c.port, c.to), " ")
	if got != want {
		t.Errorf("%s: from the same port: got %q, want %q", c.to, got, want)
	}
}
