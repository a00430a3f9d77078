package scenario

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplit(t *testing.T) {
	for _, tc := range []struct {
		name, line string
		want       []string // nil: an error
	}{
		{"words", "  ping -c1\t10.0.0.1 ", []string{"ping", "-c1", "10.0.0.1"}},
		{"single quotes", `sh -c 'echo "a b" \n'`, []string{"sh", "-c", `echo "a b" \n`}},
		{"double quotes", `echo "a \"b\" \$c"`, []string{"echo", `a "b" \$c`}},
		{"empty word", `echo '' x`, []string{"echo", "", "x"}},
		{"joined", `a'b c'd\ e`, []string{"ab cd e"}},
		{"open quote", `echo 'a`, nil},
		{"open escape", `echo \`, nil},
		{"nothing", "  ", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := split(tc.line)
			if (err != nil) != (tc.want == nil) {
				t.Fatalf("split(%q): error %v", tc.line, err)
			}
			if d := cmp.Diff(tc.want, got); err == nil && d != "" {
				t.Errorf("split(%q) (-want +got):\n%s", tc.line, d)
			}
		})
	}
}

func example(addr, output string) *page {
	p := &page{}
	p.parts = append(p.parts, part{text: "# Title\n"}, part{text: "Some prose.\n"})
	p.file("Nodefile", "network a 10.1.0.0/16\n")
	p.command(Machine, "ip netns add red", "")
	p.command("node1", "for a in 1 2; do\n  ping "+addr+"\ndone", output)
	p.command("node1.x", "true", "")
	return p
}

func TestPageRender(t *testing.T) {
	const want = "# Title\n\nSome prose.\n\n`Nodefile`:\n\n```nodefile\nnetwork a 10.1.0.0/16\n```\n\n" +
		"```console\nmachine# ip netns add red\nnode1# for a in 1 2; do\n>   ping 10.1.0.1\n> done\n" +
		"one\n\n> two\nnode1.x# true\n```\n"
	if d := cmp.Diff(want, example("10.1.0.1", "one  \n\n> two\n").render()); d != "" {
		t.Errorf("render() (-want +got):\n%s", d)
	}
}

// A page differs for its prose, files and commands, not for its output.
func TestPageWithoutOutput(t *testing.T) {
	base := example("10.1.0.1", "one\n").render()
	for _, tc := range []struct {
		name string
		page *page
		vary bool
		same bool
	}{
		{name: "output", page: example("10.1.0.1", "other\n\n# x\n> y\n"), same: true},
		{name: "command", page: example("10.1.0.2", "one\n")},
		{name: "command whose addresses vary", page: example("10.1.0.2", "one\n"), vary: true, same: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := cmp.Diff(withoutOutput(base, tc.vary), withoutOutput(tc.page.render(), tc.vary))
			if (d == "") != tc.same {
				t.Errorf("same is %t, want %t:\n%s", d == "", tc.same, d)
			}
		})
	}
}
