package state

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestTwin(t *testing.T) {
	tests := map[string]struct{ in, in6, addr, want string }{
		"workload":         {"10.244.0.0/16", "fd00:10:244::/112", "10.244.3.7", "fd00:10:244::307"},
		"service":          {"10.96.0.0/12", "fd00:10:96::/108", "10.103.132.104", "fd00:10:96::7:8468"},
		"first":            {"10.96.0.0/12", "fd00:10:96::/108", "10.96.0.0", "fd00:10:96::"},
		"with more room":   {"10.244.0.0/16", "2001:db8:1:2::/64", "10.244.255.255", "2001:db8:1:2::ffff"},
		"whole IPv4 space": {"0.0.0.0/0", "64:ff9b::/96", "192.0.2.1", "64:ff9b::c000:201"},
		"outside":          {"10.244.0.0/16", "fd00:10:244::/112", "10.245.0.1", ""},
		"too small":        {"10.96.0.0/12", "fd00:10:96::/112", "10.96.0.1", ""},
		"no IPv6 prefix":   {"10.96.0.0/12", "", "10.96.0.1", ""},
		"an IPv6 address":  {"10.96.0.0/12", "fd00:10:96::/108", "fd00:10:96::1", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var in6 netip.Prefix
			if tt.in6 != "" {
				in6 = netip.MustParsePrefix(tt.in6)
			}
			var want netip.Addr
			if tt.want != "" {
				want = netip.MustParseAddr(tt.want)
			}
			if got := Twin(netip.MustParsePrefix(tt.in), in6, netip.MustParseAddr(tt.addr)); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	n := &Network{Prefix: netip.MustParsePrefix("10.244.0.0/16"), Prefix6: netip.MustParsePrefix("fd00:10:244::/112")}
	if got := n.TwinPrefix(netip.MustParsePrefix("10.244.3.0/24")); got.String() != "fd00:10:244::300/120" {
		t.Errorf("block %v", got)
	}
}

// TestTwinIsOwn: different addresses have different twins, and a block's twins
// are those of its addresses.
func TestTwinIsOwn(t *testing.T) {
	n := &Network{Prefix: netip.MustParsePrefix("10.96.0.0/12"), Prefix6: netip.MustParsePrefix("fd00:10:96::/108")}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) netip.Addr {
			x := rapid.Uint32Range(0, 1<<20-1).Draw(t, name)
			return netip.AddrFrom4([4]byte{10, 96 + byte(x>>16), byte(x >> 8), byte(x)})
		}
		a, b := draw("a"), draw("b")
		if (a == b) != (n.Twin(a) == n.Twin(b)) {
			t.Fatalf("%s %s: %s %s", a, b, n.Twin(a), n.Twin(b))
		}
		block, _ := a.Prefix(rapid.IntRange(12, 32).Draw(t, "bits"))
		if block.Contains(b) != n.TwinPrefix(block).Contains(n.Twin(b)) {
			t.Fatalf("%s in %s: %s in %s", b, block, n.Twin(b), n.TwinPrefix(block))
		}
	})
}
