package autopath

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

const records = `
	db.apps.svc.cluster.local. 5 A 10.96.0.7
	web.other.svc.cluster.local. 5 A 10.96.0.8
	www.example.org. 60 A 192.0.2.1
	six.svc.cluster.local. 60 AAAA 2001:db8::1
`

// search knows the path of one client.
type search struct{}

func (search) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	return next(ctx, q)
}

func (search) Search(a netip.Addr) []string {
	if a != plugintest.Client.Addr() {
		return nil
	}
	return []string{"apps.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}
}

func TestServe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.53\nsearch old\nsearch Apps.svc.cluster.local svc.cluster.local cluster.local\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const none = "authority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"
	tests := []struct{ name, client, question, want string }{
		{"found at once", "", "db.apps.svc.cluster.local A", "NOERROR\ndb.apps.svc.cluster.local. 5 IN A 10.96.0.7\n"},
		{"in another namespace", "", "web.other.apps.svc.cluster.local A", "NOERROR\nweb.other.apps.svc.cluster.local. 5 IN CNAME web.other.svc.cluster.local.\nweb.other.svc.cluster.local. 5 IN A 10.96.0.8\n"},
		{"outside", "", "www.example.org.apps.svc.cluster.local A", "NOERROR\nwww.example.org. 60 IN A 192.0.2.1\nwww.example.org.apps.svc.cluster.local. 60 IN CNAME www.example.org.\n"},
		{"no data ends it", "", "six.apps.svc.cluster.local A", "NOERROR\nsix.apps.svc.cluster.local. 3600 IN CNAME six.svc.cluster.local.\n" + none},
		{"nowhere", "", "nothing.apps.svc.cluster.local A", "NXDOMAIN\n" + none},
		{"second step of a client", "", "www.example.org.svc.cluster.local A", "NXDOMAIN\n" + none},
		{"another type", "", "www.example.org.apps.svc.cluster.local MX", "NXDOMAIN\n" + none},
	}
	for _, conf := range []string{file, "@kubernetes"} {
		ps, s := plugintest.Setup(t, ".", "autopath "+conf, map[string]plugintest.ParseFunc{"autopath": Parse})
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		p := ps[0].Plugin
		p.(plugin.Attacher).Attach(plugin.Env{Plugins: []plugin.Named{{Name: "cluster", Plugin: search{}}}}.Filled())
		for _, tt := range tests {
			t.Run(conf[:1]+" "+tt.name, func(t *testing.T) {
				next := plugintest.Records(t, records)
				q := plugintest.Query(t, tt.question)
				q.Ask = func(ctx context.Context, q *plugin.Query, name string, qtype uint16) (*wire.Msg, error) {
					return next(ctx, q.With(name, qtype, q.Class))
				}
				if diff := cmp.Diff(tt.want, plugintest.Serve(t, p, q, next)); diff != "" {
					t.Errorf("answer (-want +got):\n%s", diff)
				}
			})
		}
		if conf[0] == '@' {
			q := plugintest.Query(t, "web.other.apps.svc.cluster.local A")
			q.Client = netip.MustParseAddrPort("192.0.2.1:1")
			if got := plugintest.Serve(t, p, q, plugintest.Records(t, records)); got != "NXDOMAIN\n"+none {
				t.Errorf("a client that nobody knows: %q", got)
			}
		}
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "autopath\nautopath @erratic\nautopath a:b /etc/resolv.conf", map[string]plugintest.ParseFunc{"autopath": Parse})
	want := []string{
		"Nodefile:2: .: autopath: wrong number of arguments, write `autopath [ZONE...] RESOLV-CONF|@cluster`",
		"Nodefile:3: .: autopath: @erratic knows no search paths, write @cluster",
		`Nodefile:4: .: autopath: "a:b" is not a zone, write a domain name or a prefix`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}
