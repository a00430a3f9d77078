package whoami

import (
	"net/netip"
	"testing"

	"nodenet/dns/plugin/plugintest"
)

func TestServe(t *testing.T) {
	p := plugintest.New(t, ".", "whoami", Parse)
	q := plugintest.Query(t, "example.org A")
	if got, want := plugintest.Serve(t, p, q, nil), "NOERROR aa\nexample.org. 0 IN A 192.0.2.77\nadditional _udp.example.org. 0 IN SRV 0 0 40000 .\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	q = plugintest.Query(t, ". A")
	q.Client, q.TCP = netip.MustParseAddrPort("[2001:db8::1]:7"), true
	if got, want := plugintest.Serve(t, p, q, nil), "NOERROR aa\nadditional . 0 IN AAAA 2001:db8::1\nadditional _tcp. 0 IN SRV 0 0 7 .\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
