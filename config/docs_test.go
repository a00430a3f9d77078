package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fence is a fenced block of a page.
type fence struct {
	kind, text string
	line       int
}

func fences(t *testing.T, file string) []fence {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []fence
	open := false
	for i, l := range strings.Split(string(data), "\n") {
		kind, mark := strings.CutPrefix(l, "```")
		switch {
		case mark && !open:
			all = append(all, fence{kind: kind, line: i + 1})
			open = true
		case mark:
			open = false
		case open:
			all[len(all)-1].text += l + "\n"
		}
	}
	return all
}

// docsEnv is the host of the documentation's examples.
func docsEnv() Env {
	return Env{
		LookupEnv: func(k string) (string, bool) {
			v, ok := map[string]string{"RACK": "rack-7", "NODENET_INDEX": "1"}[k] // the latter in labs
			return v, ok
		},
		Hostname: "node1.example.org",
		FS:       noFS{},
	}
}

// pages are all pages of the project.
func pages(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDocs parses every nodefile example of the pages. One that is followed by
// a text block of errors must have just these.
func TestDocs(t *testing.T) {
	want := []string{"../docs/nodefile.md", "../docs/policy.md", "../README.md", "../config/README.md", "../docs/labs/22-classic-corefile.md"}
	for _, page := range pages(t) {
		all := fences(t, page)
		parsed := 0
		for i, f := range all {
			if f.kind != "nodefile" && f.kind != "corefile" {
				continue
			}
			parsed++
			var faults string
			if i+1 < len(all) && all[i+1].kind == "text" && strings.HasPrefix(all[i+1].text, "Nodefile:") {
				faults = all[i+1].text
			}
			var got string
			c, err := Parse("Nodefile", strings.NewReader(f.text), docsEnv())
			if err != nil {
				got = err.Error() + "\n"
			} else {
				roundTrip(t, c)
			}
			if d := cmp.Diff(faults, got); d != "" {
				t.Errorf("%s:%d: errors (-want +got):\n%s", page, f.line, d)
			}
		}
		if parsed > 0 {
			want = slices.DeleteFunc(want, func(p string) bool { return p == page })
		}
	}
	for _, page := range want {
		t.Errorf("%s has no nodefile example", page)
	}
}

// TestDocsComplete: every block and directive has its row and is in an example.
func TestDocsComplete(t *testing.T) {
	data, err := os.ReadFile("../docs/nodefile.md")
	if err != nil {
		t.Fatal(err)
	}
	var examples string
	for _, f := range fences(t, "../docs/nodefile.md") {
		examples += f.text
	}
	for _, word := range reserved {
		if !strings.Contains(string(data), "\n## "+word+"\n") {
			t.Errorf("no section on %s", word)
		}
		for _, d := range directivesOf(word) {
			if !strings.Contains(string(data), "| `"+d) {
				t.Errorf("%s: no row for %s", word, d)
			}
			if !regexp.MustCompile(`(?m)^ +` + d + `\b`).MatchString(examples) {
				t.Errorf("%s: no example of %s", word, d)
			}
		}
	}
}

// TestPackagedNodefile: the file that is installed means what no file means,
// and each of its commented examples is valid.
func TestPackagedNodefile(t *testing.T) {
	env := docsEnv()
	c, err := Load("../packaging/Nodefile", Env{LookupEnv: env.LookupEnv, Hostname: env.Hostname})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(env), c, same); d != "" {
		t.Errorf("differs from the defaults (-want +got):\n%s", d)
	}
	data, err := os.ReadFile("../packaging/Nodefile")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^( *)#([^ #\n]|    )`).ReplaceAllString(string(data), "$1$2")
	c, err = Parse("Nodefile", strings.NewReader(text), env)
	if err != nil {
		t.Fatalf("with its examples in use: %v", err)
	}
	if c.Cluster.Name != "prod" || len(c.Service) != 1 || len(c.Publishes) != 1 || !c.Networks[0].DHCP || !c.Node.Underlay.IsValid() {
		t.Errorf("examples not in use:\n%s", c)
	}
}
