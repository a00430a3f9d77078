package lb

import (
	"net"
	"os"
	"testing"
	"time"

	"nodenet/state"
)

// eachBridgeNF runs f without and with br_netfilter, each time in a topology
// of its own.
func eachBridgeNF(t *testing.T, v *state.View, f func(t *testing.T, tp *topology)) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			tp := newTopology(t, v)
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				tp.node.sysctl("net/bridge/bridge-nf-call-iptables", nf)
				tp.node.sysctl("net/bridge/bridge-nf-call-ip6tables", nf)
			} else if nf == "1" {
				t.Skip("needs br_netfilter")
			}
			f(t, tp)
		})
	}
}

func deafView() *state.View {
	return state.NewView(state.View{Rev: 1, Self: selfID, Networks: []state.NetworkView{
		{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16"), Overlay: state.OverlayVXLAN}},
	}}, nil, dual(svc("deaf", "10.96.0.30", "udp", 53, 30053, "10.244.0.2:9"))) // nobody listens there
}

// TestErrorsAreTranslated: an ICMP error about a packet to a backend reaches
// the client as one about its packet to the VIP. A connected UDP socket hears
// of errors about its own peer only (RFC 1122 section 4.1.3.3), so "refused"
// means that the quoted packet was translated back.
func TestErrorsAreTranslated(t *testing.T) {
	eachBridgeNF(t, deafView(), func(t *testing.T, tp *topology) {
		for name, c := range map[string]struct {
			from *space
			to   string
		}{
			"outside, VIP":          {tp.outer, "10.96.0.30:53"},
			"outside, VIP, IPv6":    {tp.outer, "[fd00:10:96::1e]:53"},
			"outside, node port":    {tp.outer, "192.0.2.11:30053"},
			"sibling on the bridge": {tp.w2, "10.96.0.30:53"},
			"sibling, IPv6":         {tp.w2, "[fd00:10:96::1e]:53"},
			"sibling, node port":    {tp.w2, "192.0.2.11:30053"},
			"the node itself":       {tp.node, "10.96.0.30:53"},
			"the node itself, IPv6": {tp.node, "[fd00:10:96::1e]:53"},
			"the backend itself":    {tp.w1, "10.96.0.30:53"},
		} {
			if got := c.from.callOften(c.to); got != "refused" {
				t.Errorf("%s: %s, want refused", name, got)
			}
		}
	})
}

// callOften asks by UDP until it is refused. The kernel limits how many errors
// a host sends to one destination; one of a few is enough.
func (s *space) callOften(to string) (got string) {
	s.t.Helper()
	for range 5 {
		if got = s.call("udp", to); got == "refused" {
			break
		}
	}
	return got
}

// TestErrorsBetweenSiblings: an ICMP error of a backend's address about what no
// service has to do with reaches the sibling as it was sent, also where the
// node checks where packets come from.
func TestErrorsBetweenSiblings(t *testing.T) {
	eachBridgeNF(t, deafView(), func(t *testing.T, tp *topology) {
		tp.node.sysctl("net/ipv4/conf/all/rp_filter", "1")
		tp.node.sysctl("net/ipv4/conf/nn-t0/rp_filter", "1")
		for _, to := range []string{"10.244.0.2:99", "[fd00:10:244::2]:99"} {
			heard, err := tp.w2.ListenPacketICMP(versionOf(ap(to).Addr()))
			if err != nil {
				t.Fatal(err)
			}
			defer heard.Close()
			if got := tp.w2.callOften(to); got != "refused" {
				t.Errorf("%s: %s, want refused", to, got)
			}
			if got := errorFrom(heard); got != ap(to).Addr().String() {
				t.Errorf("the error about %s comes from %q", to, got)
			}
		}
	})
}

// errorFrom returns who sent the first unreachable message that a socket has.
func errorFrom(c net.PacketConn) string {
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err.Error()
		}
		if n > 0 && (b[0] == 3 || b[0] == 1) { // RFC 792, RFC 4443 §3.1
			return from.String()
		}
	}
}
