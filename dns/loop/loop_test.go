package loop

import (
	"testing"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

// TestProbe: a probe that arrives is recognized until its end, by name and
// type; nothing else is touched.
func TestProbe(t *testing.T) {
	l := plugintest.New(t, ".", "loop", Parse).(*Loop)
	m, back, end := l.Probe("example.org.")
	other, otherBack, _ := l.Probe(".")
	name := m.Question[0].Name
	if !plugin.InZone("example.org.", name) || name == other.Question[0].Name {
		t.Errorf("probes %s and %s", name, other.Question[0].Name)
	}
	for _, question := range []string{name + " A", "example.org HINFO"} {
		if got := plugintest.Serve(t, l, plugintest.Query(t, question), nil); got != "none\n" || back() {
			t.Errorf("%s: %q, came back: %v", question, got, back())
		}
	}
	if got := plugintest.Serve(t, l, plugintest.Query(t, name+" "+wire.TypeToString[m.Question[0].Qtype]), nil); got != "REFUSED\n" || !back() {
		t.Errorf("the probe: %q, came back: %v", got, back())
	}
	if otherBack() {
		t.Error("the other probe came back too")
	}
	end()
	if got := plugintest.Serve(t, l, plugintest.Query(t, name+" HINFO"), nil); got != "none\n" {
		t.Errorf("after its end: %q", got)
	}
	if errs := plugintest.Errors(t, "loop x {\n y\n}", map[string]plugintest.ParseFunc{"loop": Parse}); len(errs) != 2 {
		t.Errorf("errors %q", errs)
	}
}
