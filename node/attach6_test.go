package node

import (
	"net/netip"
	"strings"
	"testing"

	"nodenet/api"
	"nodenet/config"
	"nodenet/state"
)

// newDualNetwork is a test node whose network pods has an IPv6 prefix.
func newDualNetwork(t *testing.T) *Node {
	t.Helper()
	n := newTestNode(t)
	n.book = newIdleBook(n)
	n.cfg.Networks[0].Prefix6 = netip.MustParsePrefix("fd00:10:244::/112")
	n.cfg.Networks = append(n.cfg.Networks, config.Network{Name: "plain", Prefix: netip.MustParsePrefix("192.0.2.0/24"), Overlay: config.OverlayNone})
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWantedIPv6Address(t *testing.T) {
	n := newDualNetwork(t)
	ip := func(s string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		return netip.MustParseAddr(s)
	}
	for name, tt := range map[string]struct {
		network, mode, ip, ip6 string
		want                   string // addresses; "!": an error with the rest in it
	}{
		"IPv6 alone":     {ip6: "fd00:10:244::9", want: "10.244.0.9 fd00:10:244::9"},
		"both":           {ip: "10.244.0.10", ip6: "fd00:10:244::a", want: "10.244.0.10 fd00:10:244::a"},
		"IPv4 alone":     {ip: "10.244.0.11", want: "10.244.0.11 fd00:10:244::b"},
		"not a pair":     {ip: "10.244.0.12", ip6: "fd00:10:244::d", want: "!10.244.0.13 goes with fd00:10:244::d"},
		"outside":        {ip6: "2001:db8::1", want: "!stands for no IPv4 address of network pods, where 10.244.0.1 has fd00:10:244::1"},
		"network of one": {network: "plain", ip6: "2001:db8::1", want: "!network plain has no IPv6 prefix"},
		"no such mode":   {mode: modeIPAM, ip6: "fd00:10:244::e", want: "!mode ipam has no IPv6 address"},
		"the gateway":    {ip6: "fd00:10:244::1", want: "!10.244.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := api.AttachRequest{ID: name, Network: "pods", Namespace: "default", Mode: modeBridge, IP: ip(tt.ip), IP6: ip(tt.ip6)}
			if tt.network != "" {
				r.Network = tt.network
			}
			if tt.mode != "" {
				r.Mode = tt.mode
			}
			ep, _, err := n.reserve(t.Context(), r)
			got := strings.Join(texts(ep.Addrs), " ")
			if text, bad := strings.CutPrefix(tt.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("error %v, want one with %q", err, text)
				}
			} else if err != nil || got != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

// TestPublishedOnIPv6: a port on an IPv6 address of the host leads to the IPv6
// address of the workload, however it was published.
func TestPublishedOnIPv6(t *testing.T) {
	n := newDualNetwork(t)
	host, four := netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("10.244.0.9")
	n.put(t, state.Put(state.Owner, state.KindEndpoint, "old", state.Endpoint{ID: "old", Network: "pods", Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.77")}}))
	for name, tt := range map[string]struct {
		host   netip.Addr
		target string
		want   string
	}{
		"to the IPv4 address":         {host, "10.244.0.9", "fd00:10:244::9"},
		"to the IPv6 address":         {host, "fd00:10:244::9", "fd00:10:244::9"},
		"the other way round":         {netip.MustParseAddr("192.0.2.11"), "fd00:10:244::9", "10.244.0.9"},
		"every address":               {netip.Addr{}, "10.244.0.9", "10.244.0.9"},
		"loopback":                    {netip.IPv6Loopback(), "10.244.0.9", "10.244.0.9"},
		"a network of IPv4":           {host, "192.0.2.9", "!different IP versions"},
		"elsewhere":                   {host, "198.51.100.1", "!different IP versions"},
		"attached before IPv6 was on": {host, "10.244.0.77", "!old has no address of that IP version (10.244.0.77)"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := n.addPublish(t.Context(), api.Publish{HostAddr: tt.host, HostPort: 8080, Target: netip.MustParseAddr(tt.target), Port: 80})
			if text, bad := strings.CutPrefix(tt.want, "!"); bad {
				if code(err) != api.CodeInvalid || !strings.Contains(err.Error(), text) {
					t.Errorf("error %v, want one with %q", err, text)
				}
				return
			}
			if err != nil || p.Target.String() != tt.want {
				t.Fatalf("got %+v, %v, want %s", p, err, tt.want)
			}
			if err := n.removePublish(t.Context(), p.Key); err != nil {
				t.Fatal(err)
			}
		})
	}
	cfg := *n.cfg
	cfg.Publishes = []config.Publish{{HostAddr: host, Protocol: "tcp", HostPort: 81, Target: netip.AddrPortFrom(four, 80)}}
	if err := n.declare(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	if p := n.store.Snapshot().View().Publishes; len(p) != 1 || p[0].Target.String() != "fd00:10:244::9" {
		t.Errorf("by the Nodefile: %+v", p)
	}
	for network, good := range map[string]bool{"pods": true, "plain": false} {
		r := api.AttachRequest{ID: "w-" + network, Network: network, Namespace: "default", Mode: modeBridge, Publish: []api.Publish{{HostAddr: host, HostPort: 9000, Port: 80}}}
		ep, _, err := n.reserve(t.Context(), r)
		if (err == nil) != good {
			t.Errorf("attach to %s with a port on %s: %v", network, host, err)
		}
		if !good {
			if _, ok := n.find(api.DetachRequest{ID: r.ID}); ok {
				t.Errorf("%s is left", r.ID)
			}
			continue
		}
		if a, err := aimAt(&ep, host); err != nil || a != ep.Addrs[1] {
			t.Errorf("aimed at %v, %v, want %s", a, err, ep.Addrs[1])
		}
	}
}
