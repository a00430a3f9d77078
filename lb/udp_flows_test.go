package lb

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodenet/state"
)

// udpClient is a UDP client that keeps its port: by it conntrack knows it again.
type udpClient struct{ net.Conn }

// ask sends a datagram and returns who answers, or what else happens.
func (f udpClient) ask() string {
	for { // errors and answers of questions before
		_ = f.SetReadDeadline(time.Now().Add(time.Millisecond))
		var e net.Error
		if _, err := f.Read(make([]byte, 100)); errors.As(err, &e) && e.Timeout() {
			break
		}
	}
	b := make([]byte, 100)
	_ = f.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, err := f.Write([]byte("?"))
	n := 0
	if err == nil {
		n, err = f.Read(b)
	}
	var e net.Error
	switch {
	case err == nil:
		name, _, _ := strings.Cut(string(b[:n]), " ")
		return name
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM): // of the node's own
		return "refused"
	case errors.As(err, &e) && e.Timeout():
		return "nobody"
	}
	return err.Error()
}

// TestUDPFlows: a client that goes on sending from one port gets, after
// everything that can happen to a service, the backends of now, and keeps the
// one that it has as long as that is one of them.
func TestUDPFlows(t *testing.T) {
	service := func(name string, backends ...string) *state.ServiceView {
		return with(svc(name, "10.96.1.30", "udp", 53, 30130, backends...), externals("203.0.113.30", "2001:db8:113::30"))
	}
	marked := func(mark func(*state.BackendOf), backends ...string) *state.ServiceView {
		s := service("u", backends...)
		s.Backends[0].Ready = false
		if mark != nil {
			mark(&s.Backends[0])
		}
		return s
	}
	draining, failed := func(b *state.BackendOf) { b.Draining = true }, func(b *state.BackendOf) { b.Failed = true }
	const w1, w2 = "10.244.0.2:5353", "10.244.0.3:5353"
	type step struct {
		service *state.ServiceView // nil: none
		want    string
	}
	start := step{service("u", w1), "w1"}
	tests := map[string]struct {
		restart bool // between the steps, and they are what the daemon does not see happen
		steps   []step
	}{
		"none, some":                    {false, []step{{service("u"), "refused"}, {service("u", w1), "w1"}}},
		"some, none":                    {false, []step{start, {service("u"), "refused"}}},
		"backend goes":                  {false, []step{start, {service("u", w2), "w2"}}},
		"backend comes":                 {false, []step{start, {service("u", w1, w2), "w1"}}},
		"backend drains":                {false, []step{start, {marked(draining, w1, w2), "w1"}}},
		"backend falls silent":          {false, []step{start, {marked(nil, w1, w2), "w2"}}},
		"backend fails":                 {false, []step{start, {marked(failed, w1, w2), "w2"}}},
		"backend fails, alone":          {false, []step{start, {marked(failed, w1), "refused"}, start}},
		"service goes, comes":           {false, []step{start, {nil, "nobody"}, start}},
		"another service":               {false, []step{start, {service("v", w2), "w2"}}},
		"restart":                       {true, []step{start, start}},
		"restart, backend came":         {true, []step{start, {service("u", w1, w2), "w1"}}},
		"restart, backend went":         {true, []step{start, {service("u", w2), "w2"}}},
		"restart, all backends went":    {true, []step{start, {service("u"), "refused"}, start}},
		"restart, service went":         {true, []step{start, {nil, "nobody"}}},
		"restart, the address has been": {true, []step{start, {service("v", w2), "w2"}}},
	}
	tp := optionTopology(t)
	var rev uint64 = 100
	view := func(s *state.ServiceView) *state.View {
		var list []*state.ServiceView
		if s != nil {
			list = append(list, s)
		}
		v := optionView(list...)
		rev++
		v.Rev = rev
		return v
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			flows := map[string]udpClient{
				"outside": {tp.outer.dialUDP("10.96.1.30:53")}, "outside, IPv6": {tp.outer.dialUDP("[fd00:10:96::11e]:53")},
				"node port": {tp.outer.dialUDP("192.0.2.11:30130")}, "node port, IPv6": {tp.outer.dialUDP("[2001:db8::11]:30130")},
				"external": {tp.outer.dialUDP("203.0.113.30:53")}, "external, IPv6": {tp.outer.dialUDP("[2001:db8:113::30]:53")},
				"sibling": {tp.w2.dialUDP("10.96.1.30:53")}, "sibling, IPv6": {tp.w2.dialUDP("[fd00:10:96::11e]:53")},
				"node": {tp.node.dialUDP("10.96.1.30:53")}, "node, IPv6": {tp.node.dialUDP("[fd00:10:96::11e]:53")},
			}
			for _, f := range flows {
				defer f.Close()
			}
			for i, st := range tt.steps {
				if tt.restart && i > 0 {
					tp.halt()
					for from, f := range flows {
						if got := f.ask(); got != tt.steps[i-1].want {
							t.Errorf("step %d, %s: %q while no daemon runs", i, from, got)
						}
					}
					tp.start(view(st.service))
				} else {
					tp.set(view(st.service))
				}
				for from, f := range flows {
					want := st.want
					if want == "nobody" && (strings.HasPrefix(from, "node")) {
						want = "refused" // by the host, whose port is one like any other, or whose sender hears of the drop
					}
					for range 3 {
						if got := f.ask(); got != want {
							t.Errorf("step %d, %s: got %q, want %q", i+1, from, got, want)
							break
						}
					}
				}
			}
		})
	}
}
