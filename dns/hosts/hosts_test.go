package hosts

import (
	"os"
	"path/filepath"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"nodenet/config"
	"nodenet/dns/plugin"
	"nodenet/dns/plugin/plugintest"
)

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestServe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	write(t, file, "192.0.2.1 Web web.example.org # both\n2001:db8::1 web\n::ffff:192.0.2.2 mapped\nnonsense x\n192.0.2.3\n")
	next := plugintest.Records(t, "behind. 60 IN A 192.0.2.99")
	for _, tt := range []struct{ name, options, question, want string }{
		{"A", "", "web A", "NOERROR aa\nweb. 3600 IN A 192.0.2.1\n"},
		{"AAAA", "", "web AAAA", "NOERROR aa\nweb. 3600 IN AAAA 2001:db8::1\n"},
		{"mapped addresses are IPv4", "", "mapped A", "NOERROR aa\nmapped. 3600 IN A 192.0.2.2\n"},
		{"another type", "", "mapped AAAA", "NOERROR aa\nauthority mapped. 30 IN SOA ns.dns.mapped. hostmaster.mapped. 1 7200 1800 86400 30\n"},
		{"unknown", "", "lost A", "NXDOMAIN aa\nauthority . 30 IN SOA ns.dns. hostmaster. 1 7200 1800 86400 30\n"},
		{"reverse", "", "1.2.0.192.in-addr.arpa PTR", "NOERROR aa\n1.2.0.192.in-addr.arpa. 3600 IN PTR web.\n1.2.0.192.in-addr.arpa. 3600 IN PTR web.example.org.\n"},
		{"no reverse", "no_reverse\nfallthrough", "1.2.0.192.in-addr.arpa PTR", "NXDOMAIN\nauthority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"},
		{"unknown reverse goes on", "", "9.2.0.192.in-addr.arpa PTR", "NXDOMAIN\nauthority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"},
		{"fallthrough", "fallthrough", "behind A", "NOERROR\nbehind. 60 IN A 192.0.2.99\n"},
		{"fallthrough of another zone", "fallthrough example.org", "behind A", "NXDOMAIN aa\nauthority . 30 IN SOA ns.dns. hostmaster. 1 7200 1800 86400 30\n"},
		{"a line in the block", "192.0.2.7 extra\nttl 60", "extra A", "NOERROR aa\nextra. 60 IN A 192.0.2.7\n"},
		{"another class", "", "web A CH", "NXDOMAIN\nauthority example. 30 IN SOA ns.dns.example. hostmaster.example. 1 7200 1800 86400 30\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := plugintest.New(t, ".", "hosts "+file+" {\n"+tt.options+"\n}", Parse)
			if diff := gocmp.Diff(tt.want, plugintest.Serve(t, p, plugintest.Query(t, tt.question), next)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.question, diff)
			}
		})
	}
}

// TestRoot: FILE is relative to `root`.
func TestRoot(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "names"), "192.0.2.1 web\n")
	ps, s := plugintest.Setup(t, ".", "hosts names", map[string]plugintest.ParseFunc{"hosts": func(s *plugin.Setup, d config.Directive) plugin.Plugin {
		s.Root = dir
		return Parse(s, d)
	}})
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	ps[0].Plugin.(plugin.Attacher).Attach(plugin.Env{}.Filled())
	if got, want := plugintest.Serve(t, ps[0].Plugin, plugintest.Query(t, "web A"), nil), "NOERROR aa\nweb. 3600 IN A 192.0.2.1\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestRefresh: a file that changes or goes is noticed.
func TestRefresh(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	write(t, file, "192.0.2.1 web\n")
	h := plugintest.New(t, ".", "hosts "+file, Parse).(*hosts)
	if !h.Holds("web.") || !h.Holds("1.2.0.192.in-addr.arpa.") || h.Holds("db.") {
		t.Error("the file was not read")
	}
	write(t, file, "192.0.2.22 db\n") // of another length: the clock of files is coarse
	h.refresh()
	if h.Holds("web.") || !h.Holds("db.") {
		t.Error("the changed file was not read")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.refresh()
	if h.Holds("db.") {
		t.Error("a file that is gone still counts")
	}
}

// TestSkips: what is skipped is what Serve passes on.
func TestSkips(t *testing.T) {
	p := plugintest.New(t, ".", "hosts /dev/null example.org in-addr.arpa {\n192.0.2.1 web.example.org\nfallthrough later.example.org\n}", Parse).(*hosts)
	for _, name := range []string{"web.example.org", "lost.example.org", "x.later.example.org", "other", "1.2.0.192.in-addr.arpa", "9.2.0.192.in-addr.arpa"} {
		for _, qtype := range []string{"A", "PTR"} {
			q := plugintest.Query(t, name+" "+qtype)
			passed := plugintest.Serve(t, p, q, nil) == "none\n"
			if got := p.Skips(q.Name, q.Type); got != passed {
				t.Errorf("%s %s: Skips says %v, Serve passes on: %v", name, qtype, got, passed)
			}
		}
	}
}
