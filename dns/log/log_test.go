package log

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

func TestLog(t *testing.T) {
	records := plugintest.Records(t, "www.example. 60 A 192.0.2.1")
	failing := func(context.Context, *plugin.Query) (*wire.Msg, error) { return nil, errors.New("no") }
	tests := []struct {
		name, text, question string
		next                 plugin.Handler
		want                 string
	}{
		{"key=value", "log", "www.example A", records, "msg=query client=192.0.2.77:40000 name=www.example. type=A tcp=false rcode=NOERROR by=records took=T\n"},
		{"another zone", "log example.org", "www.example A", records, ""},
		{"common", "log . {common}", "www.example A", records, `msg="192.0.2.77:40000 - 7 \"A IN www.example. udp 29 false 512\" NOERROR qr,rd 56 T"` + "\n"},
		{"combined", "log . {combined}", "none.example A", records, `msg="192.0.2.77:40000 - 7 \"A IN none.example. udp 30 false 512\" NXDOMAIN qr,rd 105 T \"0\""` + "\n"},
		{"own format", `log "{remote} {name} {/log/type} {/some/label}"`, "www.example TXT", records, `msg="192.0.2.77 www.example. NODATA -"` + "\n"},
		{"no answer", "log . {rcode}{rsize}{>rflags}", "www.example TXT", nil, "msg=REFUSED0-\n"},
		{"class success", "log {\n class success\n}", "none.example A", records, ""},
		{"class denial", "log . {name} {\n class error\n class denial\n}", "none.example A", records, "msg=none.example.\n"},
		{"class error", "log . {rcode} {\n class error\n}", "none.example A", failing, "msg=SERVFAIL\n"},
		{"class all", "log . {rcode} {\n class error all\n}", "www.example A", records, "msg=NOERROR\n"},
	}
	took := regexp.MustCompile(`(took=|\d )[0-9.µmn]+s`)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			p := plugintest.New(t, ".", tt.text, Parse)
			p.(*queries).Attach(plugin.Env{Logger: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
					return slog.Attr{}
				}
				return a
			}}))})
			q := plugintest.Query(t, tt.question)
			q.Msg.Id = 7
			plugintest.Serve(t, p, q, tt.next)
			if diff := cmp.Diff(tt.want, took.ReplaceAllString(b.String(), "${1}T")); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		})
	}
	f, err := parseFormat("{remote} {local}")
	if err != nil {
		t.Fatal(err)
	}
	q := plugintest.Query(t, "a A")
	q.Client, q.Local = netip.MustParseAddrPort("[::1]:1"), netip.MustParseAddrPort("192.0.2.53:53")
	if got := f.render(&entry{q: q}); got != "[::1] 192.0.2.53" {
		t.Errorf("addresses %q", got)
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "log . {nam}\nlog a:b\nlog {\n class good\n level 3\n}", map[string]plugintest.ParseFunc{"log": Parse})
	want := []string{
		"Nodefile:2: .: log: format: {nam} is not known",
		`Nodefile:3: .: log: "a:b" is not a zone, write a domain name or a prefix`,
		`Nodefile:5: .: log: class "good" is not known, write success, denial, error or all`,
		`Nodefile:6: .: log: unknown option "level", known are class`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
