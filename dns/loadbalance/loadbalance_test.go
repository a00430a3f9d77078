package loadbalance

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

const answer = `
	www.example. 5 A 192.0.2.1
	www.example. 5 A 192.0.2.2
	www.example. 5 A 198.51.100.3
	alias.example. 5 CNAME www.example.
	www.example. 5 MX 10 a.example.
	www.example. 5 MX 20 b.example.
	www.example. 5 TXT "end"
`

// order asks once, with a random source that always says n, and returns the
// data in their order.
func order(t *testing.T, p plugin.Plugin, n uint64) string {
	t.Helper()
	p.(*loadbalance).random = func(most uint64) uint64 { return min(n, most-1) }
	m, err := p.Serve(t.Context(), plugintest.Query(t, "alias.example A"), func(context.Context, *plugin.Query) (*wire.Msg, error) {
		return &wire.Msg{Answer: plugintest.RRs(t, answer)}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, ", ")
}

func TestOrder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "weights")
	if err := os.WriteFile(file, []byte("# shares\nWWW.example\n192.0.2.1 3\n198.51.100.3 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, text string
		random     uint64
		want       string
	}{
		{"as it was", "loadbalance", 0, `www.example., 192.0.2.1, 192.0.2.2, 198.51.100.3, 10 a.example., 20 b.example., "end"`},
		{"rotated", "loadbalance round_robin", 1, `www.example., 192.0.2.2, 198.51.100.3, 192.0.2.1, 20 b.example., 10 a.example., "end"`},
		{"prefer", "loadbalance {\n prefer 198.51.100.0/24 192.0.2.2\n}", 0, `www.example., 198.51.100.3, 192.0.2.2, 192.0.2.1, 10 a.example., 20 b.example., "end"`},
		{"weight 3 of 6", "loadbalance weighted " + file, 2, `www.example., 192.0.2.1, 192.0.2.2, 198.51.100.3, 20 b.example., 10 a.example., "end"`},
		{"no weight is 1", "loadbalance weighted " + file, 3, `www.example., 192.0.2.2, 192.0.2.1, 198.51.100.3, 20 b.example., 10 a.example., "end"`},
		{"weight 2 of 6", "loadbalance weighted " + file, 4, `www.example., 198.51.100.3, 192.0.2.2, 192.0.2.1, 20 b.example., 10 a.example., "end"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := order(t, plugintest.New(t, ".", tt.text, Parse), tt.random); got != tt.want {
				t.Errorf("order %s\nwant  %s", got, tt.want)
			}
		})
	}
}

// TestReload: a new file counts, a faulty or missing one changes nothing.
func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "weights")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := plugintest.New(t, ".", "loadbalance weighted "+file+" {\n reload 10s\n}", Parse).(*loadbalance)
	if l.weights.Load() != nil {
		t.Error("weights without a file")
	}
	for _, step := range []struct{ text, want string }{
		{"a.example\n192.0.2.1 3\n", "3"}, {"a.example\n192.0.2.1 300\n", "3"}, {"192.0.2.1 4\n", "3"},
		{"a.example\n192.0.2.1\t4 5\n", "3"}, {"a.example\n192.0.2.1 4", "4"},
	} {
		write(step.text)
		l.refresh()
		var got string
		for _, m := range *l.weights.Load() {
			for _, n := range m {
				got = string(rune('0' + n))
			}
		}
		if got != step.want {
			t.Errorf("after %q the weight is %s, want %s", step.text, got, step.want)
		}
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "loadbalance fastest\nloadbalance weighted\nloadbalance {\n reload 5s\n prefer 10.0.0.0/33\n spread\n}",
		map[string]plugintest.ParseFunc{"loadbalance": Parse})
	want := []string{
		`Nodefile:2: .: loadbalance: policy "fastest" is not known, write round_robin or weighted FILE`,
		"Nodefile:3: .: loadbalance: wrong number of arguments, write `loadbalance [round_robin | weighted FILE]`",
		`Nodefile:5: .: loadbalance: reload is for weighted only, remove it`,
		`Nodefile:6: .: prefer: "10.0.0.0/33" is not an address or a prefix, write it like 192.0.2.0/24`,
		`Nodefile:7: .: loadbalance: unknown option "spread", known are prefer, reload`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
