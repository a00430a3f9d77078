package template

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

func TestServe(t *testing.T) {
	tests := []struct{ name, text, question, want string }{
		{"address in the name", "template IN A example {\n match \"^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]example[.]$\"\n answer \"{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}\"\n fallthrough\n}",
			"ip-10-95-12-8.example A", "NOERROR aa\nip-10-95-12-8.example. 60 IN A 10.95.12.8\n"},
		{"fallthrough", "template IN A example {\n match ^ip-\n answer \"x. 1 A 1.1.1.1\"\n fallthrough\n}", "www.example A", "NOERROR\nwww.example. 5 IN A 192.0.2.9\n"},
		{"no fallthrough", "template IN A example {\n match ^ip-\n answer \"x. 1 A 1.1.1.1\"\n}", "www.example A",
			"error: template: www.example. matches none of the expressions and there is no fallthrough\n"},
		{"another type", "template IN AAAA {\n rcode NXDOMAIN\n}", "www.example A", "NOERROR\nwww.example. 5 IN A 192.0.2.9\n"},
		{"another zone", "template ANY ANY example.org {\n rcode NXDOMAIN\n}", "www.example A", "NOERROR\nwww.example. 5 IN A 192.0.2.9\n"},
		{"never", "template ANY ANY {\n rcode NXDOMAIN\n}", "www.example A", "NXDOMAIN aa\n"},
		{"no AAAA", "template IN AAAA example {\n authority \"{{ .Zone }} 60 IN SOA ns.{{ .Zone }} h.{{ .Zone }} (1 60 60 60 60)\"\n}", "www.example AAAA",
			"NOERROR aa\nauthority example. 60 IN SOA ns.example. h.example. 1 60 60 60 60\n"},
		{"additional, remote", "template IN MX {\n answer \"{{ .Name }} 60 IN {{ .Type }} 10 m.{{ .Name }}\"\n additional \"m.{{ .Name }} 60 IN A {{ .Remote }}\"\n}", "a.example MX",
			"NOERROR aa\na.example. 60 IN MX 10 m.a.example.\nadditional m.a.example. 60 IN A 192.0.2.77\n"},
		{"number", "template IN A {\n match \"^x(?P<h>[0-9a-f]*)[.]\"\n answer \"{{ .Name }} 60 IN A 10.0.0.{{ parseInt .Group.h 16 8 }}\"\n}", "xff.example A", "NOERROR aa\nxff.example. 60 IN A 10.0.0.255\n"},
		{"alias is followed", "template IN ANY alias.example {\n answer \"{{ .Name }} 60 IN CNAME www.example.\"\n}", "alias.example A",
			"NOERROR aa\nalias.example. 60 IN CNAME www.example.\nwww.example. 5 IN A 192.0.2.9\n"},
		{"expr", "template IN A {\n expr client_ip() == '192.0.2.1'\n rcode REFUSED\n fallthrough\n}", "www.example A", "NOERROR\nwww.example. 5 IN A 192.0.2.9\n"},
		{"no record", "template IN A {\n answer \"{{ .Name }} IN A nowhere\"\n}", "www.example A",
			"error: template: answer for www.example.: dns: bad A A: \"nowhere\" at line: 1:25\n"},
		{"no such group", "template IN A {\n answer \"{{ .Group.none }}\"\n}", "www.example A",
			"error: template: answer for www.example.: template: answer:1:9: executing \"answer\" at <.Group.none>: map has no entry for key \"none\"\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next := plugintest.Records(t, "www.example. 5 A 192.0.2.9")
			q := plugintest.Query(t, tt.question)
			q.Ask = func(ctx context.Context, q *plugin.Query, name string, qtype uint16) (*wire.Msg, error) {
				return next(ctx, q.With(name, qtype, q.Class))
			}
			if diff := cmp.Diff(tt.want, plugintest.Serve(t, plugintest.New(t, ".", tt.text, Parse), q, next)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, strings.TrimSpace(`
template IN
template XX NOTYPE {
    match (
    answer "{{ .Name "
    rcode NONE
    ederror x
    expr name()
    var a b
    reply x
}
template IN A`), map[string]plugintest.ParseFunc{"template": Parse})
	want := []string{
		"Nodefile:2: .: template: wrong number of arguments, write `template CLASS TYPE [ZONE...]`",
		`Nodefile:3: .: template: "XX" is not a class, write IN or ANY`,
		`Nodefile:3: .: template: "NOTYPE" is not a record type`,
		"Nodefile:4: .: match: \"(\" is not a regular expression: error parsing regexp: missing closing ): `(`",
		`Nodefile:5: .: template: answer: template: answer:1: unclosed action`,
		`Nodefile:6: .: template: "NONE" is not an rcode, write it like NXDOMAIN`,
		`Nodefile:7: .: ederror: code "x" is not a number from 0 to 65535`,
		`Nodefile:8: .: template: expr: the expression is text, not a condition`,
		`Nodefile:9: .: template: var is not supported, write the expression where it is used`,
		`Nodefile:10: .: template: unknown option "reply", known are match, answer, authority, additional, rcode, ederror, expr, fallthrough`,
		"Nodefile:12: .: template: no answer, write `template IN A { answer \"…\" }` or `rcode CODE`",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
