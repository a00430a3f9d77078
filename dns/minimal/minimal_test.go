package minimal

import (
	"context"
	"testing"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

func TestServe(t *testing.T) {
	a, ns, glue := "x.example. 5 IN A 192.0.2.1", "example. 5 IN NS ns.example.", "ns.example. 5 IN A 192.0.2.53"
	soa := "example. 5 IN SOA ns.example. h.example. 1 2 3 4 5"
	tests := []struct{ name, answer, ns, extra, want string }{
		{"answer", a, ns, glue, "NOERROR\n" + a + "\n"},
		{"delegation", "", ns, glue, "NOERROR\nauthority " + ns + "\nadditional " + glue + "\n"},
		{"denial", "", soa, "", "NOERROR\nauthority " + soa + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next := func(context.Context, *plugin.Query) (*wire.Msg, error) {
				return &wire.Msg{Answer: plugintest.RRs(t, tt.answer), Ns: plugintest.RRs(t, tt.ns), Extra: plugintest.RRs(t, tt.extra)}, nil
			}
			if got := plugintest.Serve(t, plugintest.New(t, ".", "minimal", Parse), plugintest.Query(t, "x.example A"), next); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
