package header

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

func TestServe(t *testing.T) {
	p := plugintest.New(t, ".", "header {\n query clear rd\n response set aa ra\n response clear rd\n}", Parse)
	q := plugintest.Query(t, "example.org A")
	m, err := p.Serve(t.Context(), q, func(_ context.Context, q *plugin.Query) (*wire.Msg, error) {
		if q.Msg.RecursionDesired {
			t.Error("rd is still set below")
		}
		return new(wire.Msg), nil
	})
	if err != nil || !m.Authoritative || q.RecursionAvailable == nil || !*q.RecursionAvailable || q.RecursionDesired == nil || *q.RecursionDesired {
		t.Errorf("answer %v, %v; ra %v, rd %v", m, err, q.RecursionAvailable, q.RecursionDesired)
	}
	if !q.Msg.RecursionDesired {
		t.Error("the client's message was changed")
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "header\nheader {\n answer set aa\n query set\n response set tc\n}", map[string]plugintest.ParseFunc{"header": Parse})
	want := []string{
		"Nodefile:2: .: header: nothing to change, write `header { query|response set|clear aa|ra|rd... }`",
		`Nodefile:4: .: header: unknown option "answer", known are query, response`,
		"Nodefile:5: .: header: write `query|response set|clear aa|ra|rd...`",
		`Nodefile:6: .: header: flag "tc" cannot be changed, write aa, ra or rd`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
