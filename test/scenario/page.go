package scenario

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", os.Getenv("NODENET_UPDATE_DOCS") != "", "write the pages of documentation anew")

// Page makes the scenario a page of documentation: prose from Say, files, and
// the commands with their real output. The path is relative to the module.
//
// With `go test ./test/labs -args -update`, or NODENET_UPDATE_DOCS set, the
// page is written. Otherwise the committed page must have the scenario's
// prose, files and commands; its output may be that of an earlier run. So no
// page tells of a command that does not work.
func (s *Scenario) Page(path, title string) {
	s.page.path = path
	s.page.parts = append([]part{{text: "# " + title + "\n"}}, s.page.parts...)
}

// AddressesVary says that addresses in the commands differ from run to run.
// The committed page is then compared without them.
func (s *Scenario) AddressesVary() { s.page.vary = true }

// Say puts prose on the page, in Markdown. Lines may be indented by tabs.
func (s *Scenario) Say(markdown string) {
	var out []string
	for l := range strings.SplitSeq(strings.TrimSpace(markdown), "\n") {
		out = append(out, strings.TrimRight(strings.TrimLeft(l, "\t"), " \t"))
	}
	s.page.parts = append(s.page.parts, part{text: strings.Join(out, "\n") + "\n"})
}

// page collects what a scenario does, in order.
type page struct {
	path  string
	dir   string // in which commands run
	vary  bool   // see AddressesVary
	parts []part
}

// part is prose or a fenced file, or else a command with its output.
type part struct {
	text    string
	command string // with its prompt; several lines where a script has them
	output  string
}

// command records one. Directories of the test run are shown as what they
// stand for. Lines of a script after the first get the prompt of a
// shell that waits for more.
func (p *page) command(where, cmdline, output string) {
	if p.dir != "" {
		output = strings.NewReplacer(p.dir, "/root", nodectl(), "/usr/bin/nodectl").Replace(output)
	}
	c := where + "# " + strings.ReplaceAll(cmdline, "\n", "\n> ")
	p.parts = append(p.parts, part{command: c, output: output})
}

func (p *page) file(name, content string) {
	lang := strings.ToLower(strings.TrimPrefix(filepath.Ext(name), "."))
	switch {
	case name == "Nodefile":
		lang = "nodefile"
	case strings.HasPrefix(content, "{"):
		lang = "json"
	}
	p.parts = append(p.parts, part{text: fmt.Sprintf("`%s`:\n\n```%s\n%s\n```\n", name, lang, strings.Trim(content, "\n"))})
}

// render makes the page. Commands without prose between them share a box.
func (p *page) render() string {
	var b strings.Builder
	open := false
	shut := func() {
		if open {
			b.WriteString("```\n")
		}
		open = false
	}
	for i, part := range p.parts {
		if part.command == "" {
			shut()
			if i > 0 {
				b.WriteString("\n")
			}
			b.WriteString(part.text)
			continue
		}
		if !open {
			b.WriteString("\n```console\n")
			open = true
		}
		b.WriteString(part.command + "\n")
		for l := range strings.SplitSeq(strings.Trim(part.output, "\n"), "\n") {
			if l = strings.TrimRight(l, " \t\r"); l != "" || part.output != "" {
				b.WriteString(l + "\n")
			}
		}
	}
	shut()
	return b.String()
}

var prompt = regexp.MustCompile(`^[a-z][a-z0-9.-]*# `)

var ipv4 = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)

// withoutOutput takes the output out of a page's console boxes, and on demand
// the addresses out of its commands.
func withoutOutput(page string, vary bool) string {
	var out []string
	box, command := false, false
	for l := range strings.SplitSeq(page, "\n") {
		switch {
		case strings.HasPrefix(l, "```console"):
			box, command = true, false
		case box && strings.HasPrefix(l, "```"):
			box = false
		case box && prompt.MatchString(l):
			command = true
		case box && command && strings.HasPrefix(l, "> "):
		case box:
			command = false
			continue
		}
		if box && vary {
			l = ipv4.ReplaceAllString(l, "ADDRESS")
		}
		out = append(out, l)
	}
	return strings.Join(out, "\n")
}

// finish writes or checks the page, if the scenario has one.
func (p *page) finish(t *testing.T) {
	if p.path == "" {
		return
	}
	path := filepath.Join(moduleRoot(), p.path)
	text := p.render()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	committed, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: write the page with 'go test %s -run %s -args -update'", err, "./test/labs", t.Name())
	}
	if d := cmp.Diff(withoutOutput(string(committed), p.vary), withoutOutput(text, p.vary)); d != "" {
		t.Errorf("%s is not what the scenario does: write it anew with 'go test ./test/labs -run %s -args -update' (-page +scenario):\n%s", p.path, t.Name(), d)
	}
}
