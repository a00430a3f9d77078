package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

const (
	soa    = "authority example. 600 IN SOA ns.example.com. hostmaster.example. 2026 7200 600 3600000 600\n"
	nodata = "NOERROR aa\n" + soa
	nx     = "NXDOMAIN aa\n" + soa
	cut    = "authority subdel.example. 3600 IN NS ns.example.net.\nauthority subdel.example. 3600 IN NS ns.subdel.example.\n"
	glue   = "additional ns.subdel.example. 3600 IN A 192.0.2.53\n"
)

func TestLookup(t *testing.T) {
	tests := []struct{ question, want string }{
		// Plain.
		{"host1.example A", "NOERROR aa\nhost1.example. 3600 IN A 192.0.2.1\n"},
		{"HOST1.Example A", "NOERROR aa\nhost1.example. 3600 IN A 192.0.2.1\n"},
		{"host1.example AAAA", nodata},
		{"example SOA", "NOERROR aa\nexample. 3600 IN SOA ns.example.com. hostmaster.example. 2026 7200 600 3600000 600\n"},
		{"example NS", "NOERROR aa\nexample. 3600 IN NS ns.example.com.\nexample. 3600 IN NS ns.example.net.\n"},
		{"multi.example A", "NOERROR aa\nmulti.example. 30 IN A 192.0.2.10\nmulti.example. 30 IN A 192.0.2.9\n"},
		{"_ssh._tcp.host1.example SRV", "NOERROR aa\n_ssh._tcp.host1.example. 3600 IN SRV 0 0 22 host1.example.\nadditional host1.example. 3600 IN A 192.0.2.1\n"},
		// Empty non-terminals exist.
		{"_tcp.host1.example A", nodata},
		{"b.c.deep.example A", nodata},
		{"deep.example MX", nodata},
		{"x.deep.example A", nx},
		// RFC 4592 section 2.2.1.
		{"host3.example MX", "NOERROR aa\nhost3.example. 3600 IN MX 10 host1.example.\nadditional host1.example. 3600 IN A 192.0.2.1\n"},
		{"host3.example A", nodata},
		{"foo.bar.example TXT", "NOERROR aa\nfoo.bar.example. 3600 IN TXT \"this is a wildcard\"\n"},
		{"host1.example MX", nodata},
		{"sub.*.example MX", nodata},
		{"_telnet._tcp.host1.example SRV", nx},
		{"host.subdel.example A", "NOERROR\n" + cut + glue},
		{"ghost.*.example MX", nx},
		{"*.example MX", "NOERROR aa\n*.example. 3600 IN MX 10 host1.example.\nadditional host1.example. 3600 IN A 192.0.2.1\n"},
		// Delegation.
		{"subdel.example NS", "NOERROR\n" + cut + glue},
		{"ns.subdel.example A", "NOERROR\n" + cut + glue},
		{"subdel.example DS", "NOERROR aa\nsubdel.example. 3600 IN DS 1 8 2 0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF\n"},
		// Aliases.
		{"alias1.example A", "NOERROR aa\nalias1.example. 3600 IN CNAME alias2.example.\nalias2.example. 3600 IN CNAME host1.example.\nhost1.example. 3600 IN A 192.0.2.1\n"},
		{"alias1.example CNAME", "NOERROR aa\nalias1.example. 3600 IN CNAME alias2.example.\n"},
		{"alias2.example MX", "NOERROR aa\nalias2.example. 3600 IN CNAME host1.example.\n" + soa},
		{"dangling.example A", "NXDOMAIN aa\ndangling.example. 3600 IN CNAME nothing.host1.example.\n" + soa},
		{"loop1.example A", "SERVFAIL\n"},
		{"x.wild.example A", "NOERROR aa\nhost1.example. 3600 IN A 192.0.2.1\nx.wild.example. 3600 IN CNAME host1.example.\n"},
		{"out.example A", "NOERROR aa\nout.example. 3600 IN CNAME www.example.org.\nwww.example.org. 9 IN A 198.51.100.1\n"},
		{"tocut.example A", "NOERROR aa\ntocut.example. 3600 IN CNAME www.subdel.example.\n" + cut + glue},
		// DNAME, RFC 6672.
		{"dname.example DNAME", "NOERROR aa\ndname.example. 3600 IN DNAME target.example.\n"},
		{"dname.example A", nodata},
		{"a.dname.example A", "NOERROR aa\na.dname.example. 3600 IN CNAME a.target.example.\na.target.example. 3600 IN A 192.0.2.7\ndname.example. 3600 IN DNAME target.example.\n"},
		{"b.dname.example A", "NXDOMAIN aa\nb.dname.example. 3600 IN CNAME b.target.example.\ndname.example. 3600 IN DNAME target.example.\n" + soa},
		{"www.away.example A", "NOERROR aa\naway.example. 3600 IN DNAME example.org.\nwww.away.example. 3600 IN CNAME www.example.org.\nwww.example.org. 9 IN A 198.51.100.1\n"},
		{strings.Repeat(strings.Repeat("x", 49)+".", 4) + strings.Repeat("y", 39) + ".dname.example A", "YXDOMAIN aa\ndname.example. 3600 IN DNAME target.example.\n"},
		// Not ours.
		{"example.net A", "none\n"},
		{"host1.example A CH", "none\n"},
	}
	p := plugintest.New(t, "example", "file testdata/db.example", Parse)
	outside := plugintest.Records(t, "www.example.org. 9 A 198.51.100.1")
	for _, tt := range tests {
		t.Run(tt.question, func(t *testing.T) {
			q := plugintest.Query(t, tt.question)
			q.Ask = func(ctx context.Context, q *plugin.Query, name string, qtype uint16) (*wire.Msg, error) {
				return outside(ctx, q.With(name, qtype, q.Class))
			}
			if diff := cmp.Diff(tt.want, plugintest.Serve(t, p, q, nil)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFallthrough(t *testing.T) {
	next := plugintest.Records(t, "none.deep.example. 5 A 192.0.2.99")
	for text, want := range map[string]string{
		"file testdata/db.example":                                  nx,
		"file testdata/db.example {\n fallthrough\n}":               "NOERROR\nnone.deep.example. 5 IN A 192.0.2.99\n",
		"file testdata/db.example {\n fallthrough host1.example\n}": nx,
	} {
		if got := plugintest.Serve(t, plugintest.New(t, "example", text, Parse), plugintest.Query(t, "none.deep.example A"), next); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestReload: a new file counts, a faulty or missing one changes nothing but
// the status.
func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	zone := func(serial int, rest string) string {
		return fmt.Sprintf("$ORIGIN example.\n@ 60 SOA ns h %d 1 2 3 4\n%s", serial, rest)
	}
	var problem string
	ps, s := plugintest.Setup(t, "example", "file "+path, map[string]plugintest.ParseFunc{"file": Parse})
	f := ps[0].Plugin.(*file)
	f.Attach(plugin.Env{Zones: s.Zones, Note: func(_ string, err error, _ string) {
		problem = ""
		if err != nil {
			problem = strings.ReplaceAll(err.Error(), path, "FILE")
		}
	}}.Filled())
	ask := func() string {
		return strings.TrimSpace(strings.ReplaceAll(plugintest.Serve(t, f, plugintest.Query(t, "a.example A"), nil), "\n", "|"))
	}
	if got := ask(); got != "SERVFAIL|" || problem != "stat FILE: no such file or directory" {
		t.Errorf("without a file: %s, %s", got, problem)
	}
	const first = "NOERROR aa|a.example. 60 IN A 192.0.2.1|"
	for _, step := range []struct{ text, answer, problem string }{
		{zone(1, "a 60 A 192.0.2.1\n"), first, ""},
		{zone(2, "a 60 A 192.0.2\n"), first, `FILE: dns: bad A A: "192.0.2" at line: 3:14`},
		{zone(3, "a A 192.0.2.2\na CNAME b\n"), first, "a.example.: a CNAME stands alone (RFC 1034 section 3.6.2), remove it or the rest"},
		{"a.example. 60 A 192.0.2.5\n", first, "example. has no SOA record of its own"},
		{zone(4, "a.example.org. A 192.0.2.2\n"), first, "a.example.org. is outside of example."},
		{zone(5, "a 60 A 192.0.2.6\n"), "NOERROR aa|a.example. 60 IN A 192.0.2.6|", ""},
	} {
		if err := os.WriteFile(path, []byte(step.text), 0o644); err != nil {
			t.Fatal(err)
		}
		f.stamp = stamp{} // files of one second and one size
		f.refresh()
		if got := ask(); got != step.answer || problem != step.problem {
			t.Errorf("after %q:\nanswer %s, problem %s\nwant   %s, problem %s", step.text, got, problem, step.answer, step.problem)
		}
	}
}

// TestTransfer: the records are those of the file, the SOA first.
func TestTransfer(t *testing.T) {
	f := plugintest.New(t, "example", "file testdata/db.example", Parse).(*file)
	rrs, ok := f.Transfer("example.")
	if !ok || len(rrs) != 27 || rrs[0].Header().Rrtype != wire.TypeSOA {
		t.Fatalf("%d records, %v", len(rrs), ok)
	}
	if slices.ContainsFunc(rrs[1:], func(rr wire.RR) bool { return rr.Header().Rrtype == wire.TypeSOA }) {
		t.Error("the SOA is there twice")
	}
	if _, ok := f.Transfer("example.org."); ok {
		t.Error("transfers a zone that it does not have")
	}
}

func TestParse(t *testing.T) {
	got := plugintest.Errors(t, "file\nfile db a:b {\n reload often\n transfer to *\n no_reload\n refresh 5\n}", map[string]plugintest.ParseFunc{"file": Parse})
	want := []string{
		"Nodefile:2: .: file: wrong number of arguments, write `file FILE [ZONE...]`",
		`Nodefile:3: .: file: "a:b" is not a zone, write a domain name or a prefix`,
		`Nodefile:4: .: reload: interval "often" is not a duration of at least 0s, write it like 10s`,
		"Nodefile:5: .: file: transfer is a directive of its own, write `transfer { to … }`",
		"Nodefile:6: .: file: no_reload is gone, write `reload 0`",
		`Nodefile:7: .: file: unknown option "refresh", known are reload, reload_by_mtime, fallthrough`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

// FuzzLoad: no zone file panics, and what is read answers every name in it.
func FuzzLoad(f *testing.F) {
	text, err := os.ReadFile("testdata/db.example")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Add("@ SOA a b 1 2 3 4 5\n* DNAME .\n*.* NS a\n\\000 CNAME @\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(strings.ToUpper(text), "$") {
			return // $GENERATE makes many records, $INCLUDE reads files
		}
		z, err := load(strings.NewReader(text), "example.", "db")
		if err != nil {
			return
		}
		for name := range z.names {
			for _, n := range []string{name, "x." + name} {
				for _, qtype := range []uint16{wire.TypeA, wire.TypeCNAME, wire.TypeDS, wire.TypeSOA} {
					a := z.lookup(n, qtype, true)
					m := wire.Msg{Answer: a.answer, Ns: a.ns, Extra: a.extra}
					_ = m.String()
				}
			}
		}
	})
}
