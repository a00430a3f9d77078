package acl

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/dns/plugin/plugintest"
)

// Clients: 192.168.0.0/16 and 2001:db8::/32; the zone is example.org.
func TestServe(t *testing.T) {
	const (
		passed   = "NOERROR\na.example.org. 60 IN A 192.0.2.1\n"
		refused  = "REFUSED\n"
		filtered = "NOERROR\n"
		dropped  = "error: the question is dropped\n"
	)
	tests := []struct{ name, text, client, question, want string }{
		{"no rule fits", "acl {\n block net 192.168.0.0/16\n}", "10.0.0.1", "a.example.org A", passed},
		{"block a net", "acl {\n block net 192.168.0.0/16\n}", "192.168.3.4", "a.example.org A", refused},
		{"an address is a net", "acl {\n block net 192.168.3.4\n}", "192.168.3.4", "a.example.org A", refused},
		{"v4 in v6 is v4", "acl {\n block net 192.168.0.0/16\n}", "::ffff:192.168.3.4", "a.example.org A", refused},
		{"IPv6", "acl {\n block net 2001:db8::/32\n}", "2001:db8:1::5", "a.example.org A", refused},
		{"IPv6 scope", "acl {\n block net fe80::/10\n}", "fe80::1%eth0", "a.example.org A", refused},
		{"by type", "acl {\n filter type AAAA MX\n}", "10.0.0.1", "a.example.org A", passed},
		{"filter", "acl {\n filter type A net *\n}", "10.0.0.1", "a.example.org A", filtered},
		{"drop", "acl {\n drop net 10.0.0.0/8\n}", "10.0.0.1", "a.example.org A", dropped},
		{"first rule wins", "acl {\n allow net 192.168.1.0/24\n block net 192.168.0.0/16\n}", "192.168.1.9", "a.example.org A", passed},
		{"only these", "acl {\n allow net 192.168.0.0/24 192.168.1.0/24\n block\n}", "192.168.2.9", "a.example.org A", refused},
		{"another zone", "acl b.example.org {\n block\n}", "192.168.2.9", "a.example.org A", passed},
		{"* is every type", "acl {\n block type * net 192.168.0.0/16\n}", "192.168.2.9", "a.example.org A", refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := plugintest.New(t, "example.org", tt.text, Parse)
			q := plugintest.Query(t, tt.question)
			q.Client = netip.AddrPortFrom(netip.MustParseAddr(tt.client), 1234)
			got := plugintest.Serve(t, p, q, plugintest.Records(t, "a.example.org. 60 A 192.0.2.1"))
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, strings.TrimSpace(`
acl
acl {
    deny net 10.0.0.0/8
    block 10.0.0.0/8
    block type NOTYPE net 10.0.0.0/33
    drop net
}`), map[string]plugintest.ParseFunc{"acl": Parse})
	want := []string{
		"Nodefile:2: .: acl: no rule, write `acl { allow|block|filter|drop [type TYPE...] [net PREFIX...] }`",
		`Nodefile:4: .: acl: unknown option "deny", known are allow, block, filter, drop`,
		"Nodefile:5: .: acl: \"10.0.0.0/8\" is neither type nor net, write `allow|block|filter|drop [type TYPE...] [net PREFIX...]`",
		`Nodefile:6: .: acl: "NOTYPE" is not a record type`,
		`Nodefile:6: .: block: "10.0.0.0/33" is not an address or a prefix, write it like 192.0.2.0/24`,
		"Nodefile:7: .: acl: nothing after \"net\", write `allow|block|filter|drop [type TYPE...] [net PREFIX...]`",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
