package lb

import (
	"os/exec"
	"strings"
	"testing"
)

// load reads rules the way a boot script does, and returns what nft says.
func (s *space) load(rules string) (string, error) {
	s.t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		s.t.Skip("needs the nft command")
	}
	var out []byte
	s.do(func() {
		c := exec.Command(path, "-f", "-")
		c.Stdin = strings.NewReader(rules)
		out, err = c.CombinedOutput()
	})
	return string(out), err
}

const hostRules = `table inet host {
	chain incoming {
		type filter hook input priority 0; policy accept;
		tcp dport 22 accept
	}
}
`

// saveCommand is what README.md, the operations manual and doctor tell people
// to save rules with.
const saveCommand = `nft list tables | grep -v ' nodenet' | while read -r t; do nft list $t; done`

// TestSavedRules: what becomes of a listing of all rules that is loaded again,
// and that the documented way to save them gives a file that loads.
func TestSavedRules(t *testing.T) {
	s := newSpace(t)
	if out, err := s.load(hostRules); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := s.hold()
	defer h.close()
	all := s.nft("", "list", "ruleset")
	if !strings.Contains(all, "table inet "+HoldName) {
		t.Fatalf("nft lists no table %s:\n%s", HoldName, all)
	}
	for name, rules := range map[string]string{"as it is": all, "after a flush": "flush ruleset\n" + all} {
		if out, err := s.load(rules); err == nil || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%s: while the daemon runs: %v\n%s", name, err, out)
		}
		if got := s.nft("", "list", "ruleset"); got != all {
			t.Errorf("%s: a file that is refused changed something:\n%s", name, got)
		}
	}
	syncKernel(t, s.kernel(), nil, Derive(testView(), testLocal()))
	saved := s.tool("sh", "-c", saveCommand)
	if strings.Contains(saved, "nodenet") || !strings.Contains(saved, "tcp dport 22 accept") {
		t.Errorf("saved:\n%s", saved)
	}
	if out, err := s.load("flush ruleset\n" + saved); err != nil {
		t.Errorf("saved without ours: %v\n%s", err, out)
	}
	if got := tables(s); got != "table inet nodenet-hold; table bridge nodenet-hold; table inet host" {
		t.Errorf("tables %q", got)
	}
	h.close()
	if out, err := s.load("flush ruleset\n" + all); err != nil {
		t.Errorf("without a daemon: %v\n%s", err, out)
	}
	if got := tables(s); got != "table inet host" {
		t.Errorf("tables %q: an owned table goes with the nft that loaded it", got)
	}
}

// TestHoldOfAFile: a table of the name that has no owner, which a listing from
// an nft without the flag leaves behind, is taken over.
func TestHoldOfAFile(t *testing.T) {
	s := newSpace(t)
	if out, err := s.load("table inet nodenet-hold {\n\tchain prerouting {\n\t}\n}\n"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h := s.hold()
	s.nft("", "flush", "ruleset")
	if got := tables(s); got != "table inet nodenet-hold; table bridge nodenet-hold" {
		t.Errorf("after a flush of everything: tables %q", got)
	}
	h.close()
	if got := tables(s); got != "" {
		t.Errorf("after its end: tables %q", got)
	}
}

func tables(s *space) string {
	return strings.ReplaceAll(strings.TrimSpace(s.nft("", "list", "tables")), "\n", "; ")
}
