package lb

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"nodenet/state"
)

// chatter serves a TCP port on which each side of a connection says something
// every millisecond, until one of them hears no more.
func (s *space) chatter(address string) {
	s.t.Helper()
	l, err := s.Listen(network("tcp", ap(address).Addr()), address)
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
			go chat(c)
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
	}()
}

func chat(c net.Conn) {
	defer c.Close()
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestFlushOnABridge: a TCP flow by a VIP between workloads of one bridge lives
// through `nft flush ruleset`, though a reply that is switched past the node
// reaches a client that never heard of the backend's address, and answers the
// backend with a reset.
func TestFlushOnABridge(t *testing.T) {
	services := dual(svc("e", "10.96.0.50", "tcp", 7100, 0, "10.244.0.2:7100"))
	eachBridgeNF(t, state.NewView(state.View{Rev: 1}, nil, services), func(t *testing.T, tp *topology) {
		tp.w1.chatter("0.0.0.0:7100")
		tp.w1.chatter("[::]:7100")
		flows := make(map[string]net.Conn)
		for _, vip := range []string{"10.96.0.50:7100", "[fd00:10:96::32]:7100"} {
			c, err := tp.w2.Dial(context.Background(), "tcp", vip)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go chat(c)
			flows[vip] = c
		}
		for i := range 5 {
			tp.node.nft("", "flush", "ruleset")
			eventually(t, "the tables are back", func() bool {
				return strings.Contains(tables(tp.node)+";", "table bridge nodenet;")
			})
			for vip, c := range flows {
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.ReadFull(c, make([]byte, 500)); err != nil {
					t.Fatalf("%s: after flush %d: %v", vip, i+1, err)
				}
			}
		}
	})
}

// TestHoldFollows: the copies have what table bridge nodenet has, after changes
// of services, after a change of everything, and after a flush.
func TestHoldFollows(t *testing.T) {
	one := svc("e", "10.96.0.50", "tcp", 7100, 0, "10.244.0.2:7100")
	two := svc("f", "10.96.0.51", "udp", 7200, 0, "10.244.0.3:7200", "10.244.1.3:7200")
	view := func(rev uint64, s ...*state.ServiceView) *state.View {
		return state.NewView(state.View{Rev: rev}, nil, dual(s...))
	}
	tp := newTopology(t, view(1, one))
	same := func(when string, want int) {
		t.Helper()
		for _, v := range versions {
			m := v.name("backends")
			elems := func(table string) string {
				_, list, _ := strings.Cut(tp.node.nft("", "list", "map", "bridge", table, m), "ether_addr\n")
				return list
			}
			eventually(t, when, func() bool { return elems(TableName) == elems(HoldName) })
			if n := strings.Count(elems(HoldName), "02:00:00:00:00:01"); n != want {
				t.Errorf("%s: %d elements in %s, want %d", when, n, m, want)
			}
		}
	}
	same("at the start", 1)
	tp.set(view(2, svc("e", "10.96.0.50", "tcp", 7100, 0, "10.244.0.2:7100"), two))
	same("a service more", 2)
	tp.node.nft("", "flush", "ruleset")
	eventually(t, "the tables are back", func() bool { return strings.Contains(tables(tp.node)+";", "table bridge nodenet;") })
	same("after a flush", 2)
	tp.set(view(3, svc("f", "10.96.0.51", "udp", 7200, 0, "10.244.0.3:7200")))
	same("a service less", 1)
	tp.set(state.NewView(state.View{Rev: 4, Networks: []state.NetworkView{{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16")}}}},
		nil, dual(svc("f", "10.96.0.51", "udp", 7200, 0, "10.244.0.2:7200", "10.244.0.3:7200"))))
	same("other networks", 2)
}
