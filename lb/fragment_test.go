package lb

import (
	"bytes"
	"strconv"
	"testing"
	"time"

	"nodenet/state"
)

// serveSized answers a datagram with as many bytes as it asks for.
func (s *space) serveSized(address string) {
	s.t.Helper()
	pc, err := s.ListenPacket(network("udp", ap(address).Addr()), address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			size, _ := strconv.Atoi(string(b[:n]))
			_, _ = pc.WriteTo(bytes.Repeat([]byte("x"), size), from)
		}
	}()
}

// askSized returns how many bytes come back from a peer that is asked for
// size, by a socket that takes answers of that peer only; 0: none.
func (s *space) askSized(to string, size int) int {
	s.t.Helper()
	c := s.dialUDP(to)
	defer c.Close()
	_, _ = c.Write([]byte(strconv.Itoa(size)))
	_ = c.SetDeadline(time.Now().Add(time.Second))
	b := make([]byte, 1<<16)
	n, _ := c.Read(b)
	return n
}

// TestFragments: an answer that takes several packets reaches a client whole,
// from the address that it asked, wherever the client is. So do fragmented
// datagrams between siblings that no service has to do with.
func TestFragments(t *testing.T) {
	services := dual(svc("big", "10.96.0.40", "udp", 53, 30053, "10.244.0.2:7200"))
	v := state.NewView(state.View{Rev: 1, Self: selfID, Networks: []state.NetworkView{
		{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16"), Overlay: state.OverlayVXLAN}},
	}}, nil, services)
	eachBridgeNF(t, v, func(t *testing.T, tp *topology) {
		for _, at := range []string{"0.0.0.0:7200", "[::]:7200", "0.0.0.0:7300", "[::]:7300"} {
			tp.w1.serveSized(at)
		}
		for name, c := range map[string]struct {
			from *space
			to   string
		}{
			"sibling":                     {tp.w2, "10.96.0.40:53"},
			"sibling, IPv6":               {tp.w2, "[fd00:10:96::28]:53"},
			"sibling, node port":          {tp.w2, "192.0.2.11:30053"},
			"itself":                      {tp.w1, "10.96.0.40:53"},
			"itself, IPv6":                {tp.w1, "[fd00:10:96::28]:53"},
			"outside":                     {tp.outer, "10.96.0.40:53"},
			"outside, IPv6":               {tp.outer, "[fd00:10:96::28]:53"},
			"the node":                    {tp.node, "10.96.0.40:53"},
			"sibling, another port":       {tp.w2, "10.244.0.2:7300"},
			"sibling, another port, IPv6": {tp.w2, "[fd00:10:244::2]:7300"},
		} {
			for _, size := range []int{100, 4000, 30000} {
				if got := c.from.askSized(c.to, size); got != size {
					t.Errorf("%s: %d of %d bytes", name, got, size)
				}
			}
		}
	})
}
