package rewrite

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

const records = `
	ftp.service.us-west-1.consul. 20 A 10.10.10.10
	blue.example. 60 A 192.0.2.2
	blue.example. 60 AAAA 2001:db8::2
	alias.example. 60 CNAME blue.example.
	web.internal. 60 A 192.0.2.3
	web.internal. 60 MX 10 mail.internal.
	30.30.30.10.in-addr.arpa. 60 PTR ftp-us-west-1.service.consul.
	short.example. 1 A 192.0.2.4
	long.example. 86400 A 192.0.2.5
`

// parse is what package dns does with several directives.
func parse(t *testing.T, text string) plugin.Plugin {
	t.Helper()
	ps, s := plugintest.Setup(t, ".", text, map[string]plugintest.ParseFunc{"rewrite": Parse})
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	var parts []plugin.Plugin
	for _, p := range ps {
		parts = append(parts, p.Plugin)
	}
	return Merged(parts)
}

func TestServe(t *testing.T) {
	tests := []struct{ name, text, question, want string }{
		{"exact is undone", "rewrite name red.example blue.example", "red.example A", "NOERROR\nred.example. 60 IN A 192.0.2.2\n"},
		{"exact, other case", "rewrite name exact Red.Example. Blue.Example.", "RED.example A", "NOERROR\nred.example. 60 IN A 192.0.2.2\n"},
		{"no rule fits", "rewrite name red.example blue.example", "blue.example A", "NOERROR\nblue.example. 60 IN A 192.0.2.2\n"},
		{"regex", `rewrite name regex (.*)-(us-west-1)\.coredns\.rocks {1}.service.{2}.consul`, "ftp-us-west-1.coredns.rocks A",
			"NOERROR\nftp.service.us-west-1.consul. 20 IN A 10.10.10.10\n"},
		{"regex, answer auto", `rewrite name regex (.*)-(us-west-1)\.coredns\.rocks {1}.service.{2}.consul answer auto`, "ftp-us-west-1.coredns.rocks A",
			"NOERROR\nftp-us-west-1.coredns.rocks. 20 IN A 10.10.10.10\n"},
		{"regex, answer name", "rewrite stop {\n name regex (.*)-(us-west-1)\\.coredns\\.rocks {1}.service.{2}.consul\n answer name (.*)\\.service\\.(us-west-1)\\.consul {1}-{2}.coredns.rocks\n}",
			"ftp-us-west-1.coredns.rocks A", "NOERROR\nftp-us-west-1.coredns.rocks. 20 IN A 10.10.10.10\n"},
		{"suffix, answer auto", "rewrite stop {\n name suffix .example.org .internal answer auto\n}", "web.example.org MX",
			"NOERROR\nweb.example.org. 60 IN MX 10 mail.example.org.\n"},
		{"suffix", "rewrite name suffix .example.org. .internal.", "web.example.org A", "NOERROR\nweb.internal. 60 IN A 192.0.2.3\n"},
		{"prefix", "rewrite name prefix www web", "www.internal A", "NOERROR\nweb.internal. 60 IN A 192.0.2.3\n"},
		{"substring", "rewrite name substring us-east us-west", "ftp.service.us-east-1.consul A", "NOERROR\nftp.service.us-west-1.consul. 20 IN A 10.10.10.10\n"},
		{"answer value", "rewrite stop {\n name suffix .arpa .arpa\n answer name auto\n answer value (.*)\\.service\\.consul\\. {1}.coredns.rocks.\n}",
			"30.30.30.10.in-addr.arpa PTR", "NOERROR\n30.30.30.10.in-addr.arpa. 60 IN PTR ftp-us-west-1.coredns.rocks.\n"},
		{"stop", "rewrite name red.example green.example\nrewrite name green.example blue.example", "red.example A",
			"NXDOMAIN\nauthority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"},
		{"continue", "rewrite continue name red.example green.example\nrewrite name green.example blue.example", "red.example A", "NOERROR\nred.example. 60 IN A 192.0.2.2\n"},
		{"type", "rewrite type AAAA A", "blue.example AAAA", "NOERROR\nblue.example. 60 IN A 192.0.2.2\n"},
		{"class", "rewrite class CH IN", "blue.example A CH", "NOERROR\nblue.example. 60 IN A 192.0.2.2\n"},
		{"ttl", "rewrite ttl long.example 30", "long.example A", "NOERROR\nlong.example. 30 IN A 192.0.2.5\n"},
		{"ttl at most", "rewrite ttl suffix .example. -300", "long.example A", "NOERROR\nlong.example. 300 IN A 192.0.2.5\n"},
		{"ttl at least", "rewrite ttl regex .* 30-", "short.example A", "NOERROR\nshort.example. 30 IN A 192.0.2.4\n"},
		{"ttl between", "rewrite ttl regex .* 30-300", "blue.example A", "NOERROR\nblue.example. 60 IN A 192.0.2.2\n"},
		{"rcode", "rewrite continue {\n rcode suffix .example NXDOMAIN NOERROR\n}", "none.example A",
			"NOERROR\nauthority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"},
		{"rcode in numbers", "rewrite rcode none.example 3 5", "none.example A",
			"REFUSED\nauthority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"},
		{"cname", "rewrite cname exact blue.example. web.internal.", "alias.example A", "NOERROR\nalias.example. 60 IN CNAME web.internal.\nweb.internal. 60 IN A 192.0.2.3\n"},
		{"old form", "rewrite red.example blue.example", "red.example A", "NOERROR\nred.example. 60 IN A 192.0.2.2\n"},
		{"not a name", "rewrite name regex (.*) {1}." + strings.Repeat("x", 64), "red.example A", "error: rewrite red.example.: \"red.example.." + strings.Repeat("x", 64) + ".\" is not a name\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next := plugintest.Records(t, records)
			q := plugintest.Query(t, tt.question)
			q.Ask = func(ctx context.Context, q *plugin.Query, name string, qtype uint16) (*wire.Msg, error) {
				return next(ctx, q.With(name, qtype, q.Class))
			}
			before := q.Msg.String()
			if diff := cmp.Diff(tt.want, plugintest.Serve(t, parse(t, tt.text), q, next)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if q.Msg.String() != before {
				t.Error("the client's message was changed")
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"bytes", "rewrite edns0 local set 0xffee 0x61626364", "LOCAL OPT: 65518:0x61626364"},
		{"text", "rewrite edns0 local set 0xffee abcd", "LOCAL OPT: 65518:0x61626364"},
		{"variable", "rewrite edns0 local set 0xffee {client_ip}", "LOCAL OPT: 65518:0xc000024d"},
		{"set twice", "rewrite continue edns0 local set 0xffee a\nrewrite edns0 local set 0xffee b", "LOCAL OPT: 65518:0x62"},
		{"append once", "rewrite continue edns0 local append 0xffee a\nrewrite edns0 local append 0xffee b", "LOCAL OPT: 65518:0x61"},
		{"replace nothing", "rewrite edns0 local replace 0xffee a", ""},
		{"unset", "rewrite continue edns0 local set 0xffee a\nrewrite edns0 local unset 0xffee", ""},
		{"subnet", "rewrite edns0 subnet set 24 56", "SUBNET: 192.0.2.0/24/0"},
		{"nsid", "rewrite edns0 nsid set", "NSID: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			plugintest.Serve(t, parse(t, tt.text), plugintest.Query(t, "a.example A"), func(_ context.Context, q *plugin.Query) (*wire.Msg, error) {
				for _, o := range q.Options {
					opt := &wire.OPT{Hdr: wire.RR_Header{Name: ".", Rrtype: wire.TypeOPT}, Option: []wire.EDNS0{o}}
					lines := strings.Split(strings.TrimRight(opt.String(), "\n"), "\n")
					got = append(got, strings.TrimPrefix(lines[len(lines)-1], "; "))
				}
				return nil, nil
			})
			g := strings.Join(got, "\n")
			if i := strings.Index(g, " (a.b"); i >= 0 {
				g = g[:i]
			}
			if !strings.HasPrefix(g, tt.want) || tt.want == "" && g != "" {
				t.Errorf("options %q, want %q", g, tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, strings.TrimSpace(`
rewrite
rewrite nmae a b
rewrite name a
rewrite name regex ( b
rewrite name exact a b answer maybe
rewrite type A NOTYPE
rewrite ttl a.example 30-20
rewrite rcode a.example 77 0
rewrite edns0 local put 1 2
rewrite edns0 local set 0x1ffff 2
rewrite edns0 local set 1 0xzz
rewrite edns0 local set 1 {label}
rewrite edns0 subnet set 33 0
rewrite cname a`), map[string]plugintest.ParseFunc{"rewrite": Parse})
	want := []string{
		"Nodefile:2: .: rewrite: nothing to do, write `rewrite [continue|stop] name|type|class|ttl|rcode|cname|edns0 …`",
		`Nodefile:3: .: rewrite: unknown field "nmae", did you mean name?`,
		"Nodefile:4: .: rewrite: write `rewrite name [exact|prefix|suffix|substring|regex] FROM TO [answer auto | answer name|value FROM TO]`",
		"Nodefile:5: .: rewrite: \"(\" is not a regular expression: error parsing regexp: missing closing ): `(`",
		"Nodefile:5: .: rewrite: write `rewrite name [exact|prefix|suffix|substring|regex] FROM TO [answer auto | answer name|value FROM TO]`",
		"Nodefile:6: .: rewrite: \"maybe\": write `rewrite name [exact|prefix|suffix|substring|regex] FROM TO [answer auto | answer name|value FROM TO]`",
		`Nodefile:7: .: rewrite: "NOTYPE" is not a record type`,
		`Nodefile:8: .: rewrite: ttl "30-20" is neither seconds nor a range, write it like 30, 30-300, 30- or -300`,
		`Nodefile:9: .: rewrite: "77" is not an rcode`,
		"Nodefile:10: .: rewrite: write `rewrite edns0 local|nsid|subnet set|append|replace|unset …`",
		"Nodefile:11: .: rewrite: write `rewrite edns0 local set|append|replace CODE DATA` or `unset CODE`",
		`Nodefile:12: .: rewrite: "0xzz" is not hexadecimal`,
		"Nodefile:13: .: rewrite: variable {label} is not known, there is no metadata here",
		"Nodefile:14: .: rewrite: write `rewrite edns0 subnet set|append|replace BITS4 BITS6`, such as 24 56",
		"Nodefile:15: .: rewrite: write `rewrite cname [exact|prefix|suffix|substring|regex] FROM TO`",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
