package config

import (
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// testEnv is a host with one interface in 192.0.2.0/24, a Docker bridge, and
// routes of nodenet's own that must not count.
func testEnv() Env {
	vars := map[string]string{
		"NS": "vms", "ZONE": "rack", "RACK": "7", "RANGE": "10.1.0.0/16", "PORT": "1053", "NAME": "alpha",
		"UPSTREAM": "192.0.2.53", "BRACE": "{", "RECURSIVE": "{$RECURSIVE}",
	}
	return Env{
		LookupEnv: func(k string) (string, bool) { v, ok := vars[k]; return v, ok },
		Hostname:  "node1",
		Routes: []HostRoute{
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth0", Protocol: 3},
			{Prefix: netip.MustParsePrefix("0.0.0.0/1"), Dev: "tun0", Protocol: 3},
			{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Dev: "eth0", Protocol: 2},
			{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Dev: "docker0", Protocol: 2},
			{Prefix: netip.MustParsePrefix("10.244.3.0/24"), Dev: "eth0", Protocol: RouteProtocol},
			{Prefix: netip.MustParsePrefix("10.244.0.0/24"), Dev: "nn-pods", Protocol: 2},
			{Prefix: netip.MustParsePrefix("10.3.0.0/24"), Dev: "br0", Protocol: 2},
		},
	}
}

// same compares configurations wherever they are written.
var same = cmp.Options{
	cmpopts.IgnoreTypes(Pos{}),
	cmpopts.IgnoreFields(Config{}, "File"),
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// TestGolden reads every testdata/*.nodefile and compares the effective
// configuration with its notes, or the errors, with the .golden file.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.nodefile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".nodefile")
		t.Run(name, func(t *testing.T) {
			c, err := Load(file, testEnv())
			if wantErr := strings.HasPrefix(name, "error-"); wantErr != (err != nil) {
				t.Fatalf("Load: error %v, want one: %v", err, wantErr)
			}
			var got string
			if err != nil {
				got = err.Error() + "\n"
				if c != nil {
					t.Error("Load returns a Config with an error")
				}
			} else {
				for _, n := range c.Notes() {
					got += "# " + n + "\n"
				}
				got += c.String()
				roundTrip(t, c)
			}
			golden := strings.TrimSuffix(file, ".nodefile") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got (regenerate with -update, then read the diff):\n%s", d)
			}
		})
	}
}

// roundTrip parses what c prints and expects c.
func roundTrip(t *testing.T, c *Config) {
	t.Helper()
	text := c.String()
	again, err := Parse("printed", strings.NewReader(text), Env{LookupEnv: noEnv, Hostname: "other", FS: noFS{}})
	if err != nil {
		t.Fatalf("parse of the printed config: %v\n%s", err, text)
	}
	if d := cmp.Diff(c, again, same); d != "" {
		t.Fatalf("printed config differs (-want +got):\n%s\n%s", d, text)
	}
	if !c.Equal(again) {
		t.Fatal("Equal is false for the printed config")
	}
}

func noEnv(string) (string, bool) { return "", false }

type noFS struct{}

func (noFS) ReadFile(name string) ([]byte, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}
func (noFS) Glob(string) ([]string, error) { return nil, nil }

// mapFS holds files in memory by their path.
type mapFS map[string]string

func (m mapFS) ReadFile(name string) ([]byte, error) {
	if s, ok := m[name]; ok {
		return []byte(s), nil
	}
	return noFS{}.ReadFile(name)
}
func (m mapFS) Glob(string) ([]string, error) { return nil, nil }

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("Nodefile", strings.NewReader(text), testEnv())
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return c
}

func TestPositionsAndOrder(t *testing.T) {
	c := parse(t, `
. {
    errors
    log . "a
b"
    errors stacktrace
    hosts {
        192.0.2.1 web
    }
}`)
	at := func(line int) Pos { return Pos{"Nodefile", line} }
	want := []Server{{Keys: []string{"."}, Pos: at(2), Directives: []Directive{
		{Name: "errors", Pos: at(3)},
		{Name: "log", Args: []string{".", "a\nb"}, Pos: at(4)},
		{Name: "errors", Args: []string{"stacktrace"}, Pos: at(6)},
		{Name: "hosts", Pos: at(7), Block: []Directive{{Name: "192.0.2.1", Args: []string{"web"}, Pos: at(8)}}},
	}}}
	if d := cmp.Diff(want, c.Servers); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// An imported line keeps its own file and line, even where the line numbers
// of both files happen to be equal.
func TestImportedPositions(t *testing.T) {
	env := testEnv()
	env.FS = mapFS{"dir/one": "errors\ncache 30", "dir/two": "\nlog"}
	c, err := Parse("dir/Nodefile", strings.NewReader(". {\nimport one\nimport two\nimport one\nloop\n}"), env)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range c.Servers[0].Directives {
		got = append(got, d.Pos.String()+" "+d.Name+strings.Join(d.Args, ","))
	}
	want := []string{"dir/one:1 errors", "dir/one:2 cache30", "dir/two:2 log", "dir/one:1 errors", "dir/one:2 cache30", "dir/Nodefile:5 loop"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestDefault(t *testing.T) {
	c := Default(testEnv())
	if d := cmp.Diff(parse(t, ""), c, same); d != "" {
		t.Errorf("empty Nodefile differs from Default (-want +got):\n%s", d)
	}
	roundTrip(t, c)
	if c.Node.Name != "node1" || c.Services.DNS != netip.MustParseAddr("10.96.0.10") || c.File != "" {
		t.Errorf("node %q, dns %s, file %q", c.Node.Name, c.Services.DNS, c.File)
	}
}

func TestLoad(t *testing.T) {
	env := testEnv()
	env.FS = noFS{}
	c, err := Load(DefaultFile, env)
	if err != nil {
		t.Fatalf("missing default file: %v", err)
	}
	if d := cmp.Diff(Default(env), c); d != "" {
		t.Errorf("missing default file (-want +got):\n%s", d)
	}
	if _, err := Load("/etc/other/Nodefile", env); err == nil || !strings.Contains(err.Error(), "/etc/other/Nodefile: no such file") {
		t.Errorf("other missing file: %v", err)
	}
	env.Routes = append(env.Routes, HostRoute{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Dev: "vpn0"})
	_, err = Load(DefaultFile, env)
	want := "network pods: 10.244.0.0/16 overlaps this host's route 10.0.0.0/8 dev vpn0, write `network pods PREFIX` with another range\n" +
		"services: 10.96.0.0/12 overlaps this host's route 10.0.0.0/8 dev vpn0, write `services PREFIX` with another range"
	if err == nil || err.Error() != want {
		t.Errorf("default ranges on a host with that route:\n got %v\nwant %s", err, want)
	}
}

func TestHostname(t *testing.T) {
	for host, want := range map[string]string{
		"node1": "node1", "Node1.Example.Org": "node1", "my_host": "my-host", "-x-": "x", "…": "",
	} {
		if got := nodeNameOf(host); got != want {
			t.Errorf("nodeNameOf(%q) = %q, want %q", host, got, want)
		}
	}
	env := testEnv()
	env.Hostname = "___"
	if _, err := Parse("Nodefile", strings.NewReader(""), env); err == nil || !strings.Contains(err.Error(), "no usable name") {
		t.Errorf("unusable host name: %v", err)
	}
}

func TestErrorIsTyped(t *testing.T) {
	_, err := Parse("Nodefile", strings.NewReader("\nnode {\n  nmae x\n}"), testEnv())
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %T holds no *Error", err)
	}
	want := Error{Pos: Pos{"Nodefile", 3}, Block: "node", Text: "unknown directive nmae, did you mean name?"}
	if d := cmp.Diff(want, *e); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestReadError(t *testing.T) {
	if _, err := Parse("Nodefile", iotest.ErrReader(errors.New("bad disk")), testEnv()); err == nil || !strings.Contains(err.Error(), "bad disk") {
		t.Errorf("failing reader: %v", err)
	}
	if _, err := Parse("Nodefile", strings.NewReader(strings.Repeat("#", maxFile+1)), testEnv()); err == nil {
		t.Error("a file beyond the limit parses")
	}
}

func TestNearest(t *testing.T) {
	known := []string{"network", "node", "service", "services", "publish"}
	for word, want := range map[string]string{
		"netwrok": "network", "NETWORK": "network", "nod": "node", "servics": "service", "servicess": "services",
		"pub": "", "": "", "x": "", "example": "", strings.Repeat("n", 100): "",
	} {
		if got := Nearest(word, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

// A word that looks like the parser's own mark of an unset variable is no way
// around the checks.
func TestNUL(t *testing.T) {
	_, err := Parse("Nodefile", strings.NewReader("services 10.96.0.0/12\nservice a {\nvip \x00unset\nport 80\n}"), testEnv())
	if err == nil || err.Error() != "Nodefile:3: NUL byte in a word, the file is not text" {
		t.Errorf("error %v", err)
	}
}

// Files that would expand without end, or nearly, are refused in time.
func TestBounds(t *testing.T) {
	var doubling strings.Builder
	doubling.WriteString("(s0) {\n}\n")
	for i := 1; i < 40; i++ {
		n, m := string(rune('0'+i/10))+string(rune('0'+i%10)), string(rune('0'+(i-1)/10))+string(rune('0'+(i-1)%10))
		if i == 1 {
			m = "0"
		}
		doubling.WriteString("(s" + n + ") {\nimport s" + m + "\nimport s" + m + "\n}\n")
	}
	for name, text := range map[string]string{
		"doubling snippets": doubling.String() + ". {\nimport s39\n}",
		"deep braces":       ". {\n" + strings.Repeat("a {\n", 10_000),
		"many lone words":   "publish 1 192.0.2.1:1\n" + strings.Repeat("a\n", 20_000),
		"many braces":       strings.Repeat("{ ", 20_000),
		"many networks":     manyNetworks(3000),
		"big snippet":       "(s) {\n" + strings.Repeat("a b c d\n", 1000) + "}\n. {\n" + strings.Repeat("import s\n", 100) + "}",
		"inner snippets":    "(s) {\n(t) {\n" + strings.Repeat("a ", 30_000) + "\n}\n}\n" + strings.Repeat("import s\n", 100),
		"many errors":       "node {\n" + strings.Repeat("bad x\n", 5000) + "}",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("Nodefile", strings.NewReader(text), testEnv())
			if err == nil {
				t.Fatal("no error")
			}
			if n := strings.Count(err.Error(), "\n"); n > maxErrors {
				t.Errorf("%d lines of errors", n)
			}
		})
	}
}

func manyNetworks(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("network n" + strings.Repeat("a", i%5) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)) + " 10.0.0.0/8\n")
	}
	return b.String()
}

// Braces on one line read as they look, though CoreDNS refuses them.
func TestOneLine(t *testing.T) {
	c := parse(t, "node { zone rack-1 }\nnetwork vms 10.9.0.0/24 { dhcp { lease 5m } }\nexample.org { errors }\n")
	if c.Node.Zone != "rack-1" || c.Networks[0].LeaseTime != 5*time.Minute || c.Servers[0].Directives[0].Name != "errors" {
		t.Errorf("read as:\n%s", c)
	}
	var b strings.Builder
	if err := c.Print(&b); err != nil || b.String() != c.String() {
		t.Errorf("Print: error %v, differs from String: %v", err, b.String() != c.String())
	}
}
