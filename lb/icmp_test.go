package lb

import (
	"os"
	"testing"

	"nodenet/state"
)

// TestErrorsAreTranslated: an ICMP error about a packet to a backend reaches
// the client as one about its packet to the VIP. A connected UDP socket hears
// of errors about its own peer only (RFC 1122 section 4.1.3.3), so "refused"
// means that the quoted packet was translated back.
func TestErrorsAreTranslated(t *testing.T) {
	v := state.NewView(state.View{Rev: 1, Self: selfID, Networks: []state.NetworkView{
		{Network: state.Network{Name: "pods", Prefix: pfx("10.244.0.0/16"), Overlay: state.OverlayVXLAN}},
	}}, nil, dual(svc("deaf", "10.96.0.30", "udp", 53, 30053, "10.244.0.2:9"))) // nobody listens there
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			tp := newTopology(t, v)
			if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
				tp.node.sysctl("net/bridge/bridge-nf-call-iptables", nf)
				tp.node.sysctl("net/bridge/bridge-nf-call-ip6tables", nf)
			} else if nf == "1" {
				t.Skip("needs br_netfilter")
			}
			for name, c := range map[string]struct {
				from *space
				to   string
				nf   bool // needs br_netfilter: without it a sibling's error is switched past the IP stack, see README.md
			}{
				"outside, VIP":          {from: tp.outer, to: "10.96.0.30:53"},
				"outside, VIP, IPv6":    {from: tp.outer, to: "[fd00:10:96::1e]:53"},
				"outside, node port":    {from: tp.outer, to: "192.0.2.11:30053"},
				"sibling on the bridge": {from: tp.w2, to: "10.96.0.30:53", nf: true},
				"sibling, IPv6":         {from: tp.w2, to: "[fd00:10:96::1e]:53", nf: true},
				"the node itself":       {from: tp.node, to: "10.96.0.30:53"},
				"the node itself, IPv6": {from: tp.node, to: "[fd00:10:96::1e]:53"},
				"the backend itself":    {from: tp.w1, to: "10.96.0.30:53"},
			} {
				if c.nf && nf == "0" {
					continue
				}
				// The kernel limits how many errors a host sends to one
				// destination; one of a few is enough.
				got := ""
				for range 5 {
					if got = c.from.call("udp", c.to); got == "refused" {
						break
					}
				}
				if got != "refused" {
					t.Errorf("%s: %s, want refused", name, got)
				}
			}
		})
	}
}
