package lb

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"nodenet/state"
)

// hold opens one in the namespace.
func (s *space) hold() *hold {
	s.t.Helper()
	var h *hold
	var err error
	s.do(func() { h, err = openHold() })
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// TestHold: the tables stay when others flush everything, are nobody else's to
// change, are not taken for those that are programmed, and go with their socket.
func TestHold(t *testing.T) {
	s := newSpace(t)
	k := s.kernel()
	h := s.hold()
	defer h.close()
	list := func() string { return tables(s) }
	const want = "table inet nodenet-hold; table bridge nodenet-hold"
	s.nft("", "add", "table", "inet", "other")
	s.nft("", "flush", "ruleset")
	if got := list(); got != want {
		t.Fatalf("after a flush of everything: %q, want %q", got, want)
	}
	var second *hold
	var err error
	s.do(func() { second, err = openHold() })
	if err == nil {
		second.close()
		t.Error("a second socket took the table over")
	}
	if have, err := k.Observe(true); err != nil || len(have) != 0 {
		t.Errorf("observed %v, %v; want nothing", have, err)
	}
	if gone, err := k.DeleteTables(); err != nil || len(gone) != 0 {
		t.Errorf("cleanup: deleted %v, %v; want nothing", gone, err)
	}
	if drops, err := k.ForwardDrops([]string{"nn-pods"}); err != nil || len(drops) != 0 {
		t.Errorf("taken for a firewall: %v, %v", drops, err)
	}
	if drops, err := k.inputDrops([]Port{{"tcp", 7946}}); err != nil || len(drops) != 0 {
		t.Errorf("taken for a firewall: %v, %v", drops, err)
	}
	h.close()
	if got := list(); got != "" {
		t.Errorf("after its end: %q, want nothing", got)
	}
}

// TestHoldKeepsFlows: without any other table the flows by a VIP that there
// are go on as long as the table is there, in both IP versions. Nobody repairs
// meanwhile, so that no moment is missed.
func TestHoldKeepsFlows(t *testing.T) {
	services := dual(svc("e", "10.96.0.50", "tcp", 7100, 0, "10.244.0.2:7100"))
	tp := newTopology(t, state.NewView(state.View{Rev: 1}, nil, services))
	for _, at := range []string{"0.0.0.0:7100", "[::]:7100"} {
		l, err := tp.w1.Listen(network("tcp", ap(at).Addr()), at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
	}
	vips := []string{"10.96.0.50:7100", "[fd00:10:96::32]:7100"}
	flows := make(map[string]net.Conn)
	for _, vip := range vips {
		c, err := tp.outer.Dial(context.Background(), "tcp", vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		flows[vip] = c
	}
	say := func(vip string, within time.Duration) error {
		c := flows[vip]
		_ = c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	tp.halt()
	h := tp.node.hold()
	defer h.close()
	tp.node.nft("", "flush", "ruleset")
	for _, vip := range vips {
		for range 3 {
			if err := say(vip, 3*time.Second); err != nil {
				t.Errorf("%s: without our tables: %v", vip, err)
			}
		}
	}
	h.close()
	for _, vip := range vips {
		if say(vip, 300*time.Millisecond) == nil {
			t.Errorf("%s goes on without any table: the test sees nothing", vip)
		}
	}
}
