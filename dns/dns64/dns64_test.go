package dns64

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

const records = `
	v4.example. 3600 A 192.0.2.33
	both.example. 60 A 192.0.2.1
	both.example. 60 AAAA 2001:db8::1
	mapped.example. 60 A 192.0.2.1
	mapped.example. 60 AAAA ::ffff:192.0.2.1
	mx.example. 60 MX 10 v4.example.
	33.2.0.192.in-addr.arpa. 60 PTR v4.example.
`

func TestServe(t *testing.T) {
	soa := "authority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"
	tests := []struct{ name, text, client, question, want string }{
		{"made", "dns64", "2001:db8::9", "v4.example AAAA", "NOERROR\nv4.example. 30 IN AAAA 64:ff9b::c000:221\n"},
		{"asked over IPv4", "dns64", "192.0.2.9", "v4.example AAAA", "NOERROR\n" + soa},
		{"allow_ipv4", "dns64 {\n allow_ipv4\n}", "192.0.2.9", "v4.example AAAA", "NOERROR\nv4.example. 30 IN AAAA 64:ff9b::c000:221\n"},
		{"has its own", "dns64", "2001:db8::9", "both.example AAAA", "NOERROR\nboth.example. 60 IN AAAA 2001:db8::1\n"},
		{"translate_all", "dns64 {\n translate_all\n}", "2001:db8::9", "both.example AAAA", "NOERROR\nboth.example. 60 IN AAAA 64:ff9b::c000:201\n"},
		{"mapped addresses do not count", "dns64", "2001:db8::9", "mapped.example AAAA", "NOERROR\nmapped.example. 60 IN AAAA 64:ff9b::c000:201\n"},
		{"no such name", "dns64", "2001:db8::9", "none.example AAAA", "NXDOMAIN\n" + soa},
		{"no address at all", "dns64", "2001:db8::9", "mx.example AAAA", "NOERROR\n" + soa},
		{"another type", "dns64", "2001:db8::9", "v4.example A", "NOERROR\nv4.example. 3600 IN A 192.0.2.33\n"},
		{"prefix of 64", "dns64 2001:db8:122:344::/64", "2001:db8::9", "v4.example AAAA", "NOERROR\nv4.example. 30 IN AAAA 2001:db8:122:344:c0:2:2100:0\n"},
		{"pointer", "dns64", "2001:db8::9", plugin.ReverseName(netip.MustParseAddr("64:ff9b::c000:221")) + " PTR",
			"NOERROR\n1.2.2.0.0.0.0.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.b.9.f.f.4.6.0.0.ip6.arpa. 600 IN CNAME 33.2.0.192.in-addr.arpa.\n" +
				"33.2.0.192.in-addr.arpa. 60 IN PTR v4.example.\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := plugintest.New(t, ".", tt.text, Parse)
			q := plugintest.Query(t, tt.question)
			q.Client = netip.AddrPortFrom(netip.MustParseAddr(tt.client), 1234)
			if diff := cmp.Diff(tt.want, plugintest.Serve(t, p, q, plugintest.Records(t, records))); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEmbed: what goes in comes out, and the table of RFC 6052 section 2.4.
func TestEmbed(t *testing.T) {
	for pfx, want := range map[string]string{
		"2001:db8::/32": "2001:db8:c000:221::", "2001:db8:100::/40": "2001:db8:1c0:2:21::",
		"2001:db8:122::/48": "2001:db8:122:c000:2:2100::", "2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
		"2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::", "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
	} {
		p := &dns64{prefix: netip.MustParsePrefix(pfx)}
		if got := p.embed(netip.MustParseAddr("192.0.2.33")); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", pfx, got, want)
		}
		rapid.Check(t, func(t *rapid.T) {
			a := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
			if got := p.extract(p.embed(a)); got != a {
				t.Errorf("%s: %s comes out as %s", pfx, a, got)
			}
		})
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "dns64 10.0.0.0/8\ndns64 {\n prefix 64:ff9b::/95\n map 1\n}", map[string]plugintest.ParseFunc{"dns64": Parse})
	want := []string{
		`Nodefile:2: .: dns64: "10.0.0.0/8" is not an IPv6 prefix, write it like 64:ff9b::/96`,
		`Nodefile:4: .: dns64: 64:ff9b::/95: the length must be 32, 40, 48, 56, 64 or 96`,
		`Nodefile:5: .: dns64: unknown option "map", known are prefix, translate_all, allow_ipv4`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
