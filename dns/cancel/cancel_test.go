package cancel

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(d time.Duration) plugin.Handler {
			return func(ctx context.Context, _ *plugin.Query) (*wire.Msg, error) {
				select {
				case <-time.After(d):
					return new(wire.Msg), nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}
		for _, tt := range []struct {
			text string
			took time.Duration
			want string
		}{
			{"cancel", 5 * time.Second, "NOERROR\n"},
			{"cancel", 6 * time.Second, "error: the question is dropped\n"},
			{"cancel 1s", 2 * time.Second, "error: the question is dropped\n"},
		} {
			p := plugintest.New(t, ".", tt.text, Parse)
			if got := plugintest.Serve(t, p, plugintest.Query(t, "example.org A"), slow(tt.took)); got != tt.want {
				t.Errorf("%s, answer after %s: %q, want %q", tt.text, tt.took, got, tt.want)
			}
		}
	})
	if got := plugintest.Errors(t, "cancel soon", map[string]plugintest.ParseFunc{"cancel": Parse}); len(got) != 1 ||
		got[0] != `Nodefile:2: .: cancel: timeout "soon" is not a duration of at least 1ms, write it like 10s` {
		t.Errorf("errors %q", got)
	}
}
