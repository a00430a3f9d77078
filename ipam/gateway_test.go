package ipam

import (
	"net/netip"
	"testing"

	"nodenet/state"
)

// The bridge has one address in each block, and nobody else may have it.
func TestGatewayOfEachBlock(t *testing.T) {
	n := state.Network{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Block: 24,
		Overlay: state.OverlayVXLAN, Gateway: netip.MustParseAddr("10.244.1.254")}
	for block, want := range map[string]string{"10.244.1.0/24": "10.244.1.254", "10.244.2.0/24": "10.244.2.1"} {
		if got := Gateway(n, netip.MustParsePrefix(block)); got.String() != want {
			t.Errorf("gateway in %s: %s, want %s", block, got, want)
		}
	}
}
