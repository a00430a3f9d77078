package names

import (
	"encoding/json"
	"fmt"
	"testing"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestDoctor: the resolver's address is local and its port untracked, and the
// doctor notices when it is not.
func TestDoctor(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 1, Nodefile: pinned})
	w := s.Workload(1, "w", "")
	check := func(name string) (c api.Check) {
		t.Helper()
		out, _ := s.Exec("node1", "nodectl -o json doctor") // fails when any check does
		var all []api.Check
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, c := range all {
			if c.Name == name {
				return c
			}
		}
		t.Fatalf("no check %s in %s", name, out)
		return c
	}
	w.Run("dig +short @10.96.0.10 dns-version.cluster.local TXT")
	for _, name := range []string{"dns address", "dns conntrack"} {
		if c := check(name); c.Status != "ok" {
			t.Errorf("%+v", c)
		}
	}
	// Somebody who keeps taking our table away, and has conntrack see all.
	s.Run("node1", "nft add table ip nnt")
	s.Run("node1", "nft add chain ip nnt out { type nat hook output priority -150 ; }")
	vandal := s.Background("node1", `sh -c "while :; do nft delete table inet nodenet 2>/dev/null; sleep 0.01; done"`)
	s.Eventually("the doctor notices", soon, func() error {
		if c := check("dns conntrack"); c.Status != "fail" || c.Fix == "" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	vandal.Stop()
	s.Eventually("the table is back", soon, func() error {
		if c := check("dns conntrack"); c.Status == "fail" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}
