package errors

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

// logged asks n times, every second, with an error each time; then waits for
// the end of all periods.
func logged(t *testing.T, text, fault string, n int) string {
	t.Helper()
	var b bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		p := plugintest.New(t, ".", text, Parse)
		log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		p.(*report).Attach(plugin.Env{Logger: log})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.(*report).Run(ctx) }()
		for range n {
			_, err := p.Serve(t.Context(), plugintest.Query(t, "example.org A"), func(context.Context, *plugin.Query) (*wire.Msg, error) {
				return nil, errors.New(fault)
			})
			if err == nil || err.Error() != fault {
				t.Errorf("error %v", err)
			}
			time.Sleep(time.Second)
		}
		cancel()
		<-done
	})
	return b.String()
}

func TestLog(t *testing.T) {
	line := `level=ERROR msg="dns query" name=example.org. type=A err="no way" suppressed=`
	tests := []struct {
		name, text, fault string
		n                 int
		want              string
	}{
		{"once in ten seconds", "errors", "no way", 12, line + "0\n" + line + "9\n"},
		{"consolidated", "errors {\n consolidate 5m \"^no way$\" warning\n}", "no way", 3,
			"level=WARN msg=\"3 errors like '^no way$' occurred in last 5m0s\"\n"},
		{"two periods", "errors {\n consolidate 1500ms \"no\"\n}", "no way", 3,
			"level=ERROR msg=\"2 errors like 'no' occurred in last 1.5s\"\nlevel=ERROR msg=\"1 errors like 'no' occurred in last 1.5s\"\n"},
		{"first shown", "errors {\n consolidate 5m no info show_first\n}", "no way", 2,
			"level=INFO msg=\"dns query\" name=example.org. type=A err=\"no way\"\nlevel=INFO msg=\"2 errors like 'no' occurred in last 5m0s\"\n"},
		{"first shown, no other", "errors {\n consolidate 5m no debug show_first\n}", "no way", 1, ""},
		{"no pattern fits", "errors {\n consolidate 5m yes\n}", "no way", 1, line + "0\n"},
		{"dropped is no error", "errors", plugin.ErrDrop.Error(), 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, logged(t, tt.text, tt.fault, tt.n)); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, strings.TrimSpace(`
errors all
errors {
    consolidate 5m
    consolidate soon "x"
    consolidate 5m "(" error
    consolidate 5m "x" loud
    silent
}`), map[string]plugintest.ParseFunc{"errors": Parse})
	want := []string{
		"Nodefile:2: .: errors: wrong number of arguments, write `errors`",
		"Nodefile:4: .: consolidate: wrong number of arguments, write `consolidate DURATION REGEXP [LEVEL] [show_first]`",
		`Nodefile:5: .: consolidate: period "soon" is not a duration of at least 1ms, write it like 10s`,
		"Nodefile:6: .: consolidate: \"(\" is not a regular expression: error parsing regexp: missing closing ): `(`",
		`Nodefile:7: .: errors: consolidate: "loud" is no level, write debug, info, warning, error`,
		`Nodefile:8: .: errors: unknown option "silent", known are consolidate, stacktrace`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
