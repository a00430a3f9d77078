package dns

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"nodenet/config"
)

// loopback opens sockets on free ports of 127.0.0.1, whatever is asked for.
func loopback(o Options) Options {
	o.ListenPacket = func(context.Context, string, string) (net.PacketConn, error) {
		return net.ListenPacket("udp", "127.0.0.1:0")
	}
	o.Listen = func(context.Context, string, string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	return o
}

// inward makes upstreams ports of this machine that nobody listens on.
func inward(srv []config.Server) []config.Server {
	for _, s := range srv {
		for _, d := range s.Directives {
			if d.Name != "forward" && d.Name != "proxy" {
				continue
			}
			for i, to := range d.Args[1:] {
				if !strings.HasPrefix(to, "/") {
					d.Args[i+1] = "127.0.0.1:9"
				}
			}
		}
	}
	return srv
}

// starts runs server blocks until every socket is open.
func starts(t *testing.T, srv []config.Server) {
	t.Helper()
	for _, b := range srv {
		for i, d := range b.Directives {
			if d.Name == "tls" {
				cert, key := certificate(t, "dns.example")
				b.Directives[i].Args = []string{cert, key}
			}
		}
	}
	s, err := New(loopback(Options{Servers: inward(srv), ResolvConf: "testdata/none"}))
	if err != nil {
		t.Fatal(err)
	}
	start(t, s, nil, addr("192.0.2.1"))
	waitFor(t, "the sockets", func() bool { return len(s.Status().Listening) == len(s.live.Load().tables)+len(s.live.Load().sites) })
}

// TestREADME starts every configuration in the READMEs.
func TestREADME(t *testing.T) {
	files, err := filepath.Glob("*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	fence := regexp.MustCompile("(?s)(?:```|~~~) ?corefile\n(.*?)(?:```|~~~)")
	for _, file := range append(files, "README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := fence.FindAllStringSubmatch(string(text), -1)
		if len(blocks) == 0 {
			t.Errorf("%s has no example", file)
		}
		t.Run(file, func(t *testing.T) {
			for _, b := range blocks {
				srv := servers(t, b[1])
				if n := Notices(srv); len(n) > 0 {
					t.Errorf("example:\n%s\nhas notices %q", b[1], n)
				}
				t.Run(strings.Join(strings.Fields(b[1]), " "), func(t *testing.T) {
					t.Parallel()
					starts(t, srv)
				})
			}
		})
	}
}

// TestTable: every directive has a row in README.md, one that has an effect
// also a README of the usual form, and every word of CoreDNS that is refused
// is listed.
func TestTable(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	row := func(name string) bool {
		return regexp.MustCompile(`(?m)^\| ` + "(`\\w+`, )*" + regexp.QuoteMeta(name) + "(, `\\w+`)* \\|").Match(text)
	}
	for _, d := range directives() {
		file := d.name + "/README.md"
		switch readme, err := os.ReadFile(file); {
		case os.IsNotExist(err):
			if !strings.Contains(string(text), "| `"+d.name+"` | ignored |") {
				t.Errorf("%s has no README and is not ignored", d.name)
			}
		case err != nil:
			t.Error(err)
		default:
			if !row("[" + d.name + "](" + file + ")") {
				t.Errorf("no row with a link to %s", file)
			}
			form := "# " + d.name + "\n(?s).*\n## Name\n\n\\*" + d.name + "\\* - .*\n## Description\n.*\n## Syntax\n.*\n## Examples\n"
			if !regexp.MustCompile(`^` + form).Match(readme) {
				t.Errorf("%s has not Name, Description, Syntax and Examples", file)
			}
		}
	}
	for name := range elsewhere() {
		if !row("`" + name + "`") {
			t.Errorf("%s is refused but no row says so", name)
		}
	}
}

// TestDefaultExample: the first example in README.md is what a node without a
// Nodefile serves.
func TestDefaultExample(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "~~~ corefile\n")
	example, _, _ = strings.Cut(example, "~~~")
	want := withoutPos(config.Default(config.Env{Hostname: "node1"}).Servers[0])
	if diff := gocmp.Diff(want, withoutPos(servers(t, example)[0])); diff != "" {
		t.Errorf("the example differs from the default (-want +got):\n%s", diff)
	}
}

// examples finds the Nodefiles of a page. One that is followed by the faults
// it has is left out.
func examples(page string) (out []string) {
	fence := regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	all := fence.FindAllStringSubmatch(page, -1)
	for i, f := range all {
		faulty := i+1 < len(all) && all[i+1][1] == "text" && strings.HasPrefix(all[i+1][2], "Nodefile:")
		if (f[1] == "nodefile" || f[1] == "corefile") && !faulty {
			out = append(out, f[2])
		}
	}
	return out
}

// TestPages starts the server blocks of every Nodefile in the project's pages,
// and of the packaged one.
func TestPages(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../*.md", "../*/README.md", "../docs/*.md", "../docs/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	started := 0
	run := func(t *testing.T, text string) {
		env := config.Env{
			Hostname: "node1",
			LookupEnv: func(k string) (string, bool) {
				v, ok := map[string]string{"RACK": "rack-7", "NODENET_INDEX": "1"}[k] // the latter in labs
				return v, ok
			},
		}
		c, err := config.Parse("Nodefile", strings.NewReader(text), env)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		started += len(c.Servers)
		starts(t, c.Servers)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, nodefile := range examples(string(text)) {
			t.Run(fmt.Sprintf("%s %d", file, i+1), func(t *testing.T) { run(t, nodefile) })
		}
	}
	t.Run("packaging/Nodefile", func(t *testing.T) {
		text, err := os.ReadFile("../packaging/Nodefile")
		if err != nil {
			t.Fatal(err)
		}
		run(t, string(text))
	})
	if started < 25 {
		t.Errorf("only %d server blocks are found", started)
	}
}
