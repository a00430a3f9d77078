// Package policy holds the end-to-end tests of who may speak with whom: the
// isolation of networks, and policies on two nodes, with real clients.
package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/test/scenario"
)

func TestMain(m *testing.M) { scenario.Main(m) }

// soon is for what a healthy machine does within a second or two.
const soon = 20 * time.Second

// bed is a cluster of two nodes whose workloads ask one another.
type bed struct {
	*scenario.Scenario
}

// get is one connection that must be answered, or must not.
type get struct {
	from *scenario.Workload
	to   string // host:port
	ok   bool
}

// want tries until all connections do as they should: a node hears of what
// another was told a moment later.
func (b bed) want(what string, gets ...get) {
	b.T().Helper()
	b.Eventually(what, soon, func() error {
		for _, g := range gets {
			out, err := b.Exec(scenario.Machine, "ip netns exec "+g.from.Name+" curl -sS --max-time 1 http://"+g.to+"/")
			if (err == nil) != g.ok {
				return fmt.Errorf("%s to %s: answered %t, want %t: %s", g.from.Name, g.to, err == nil, g.ok, out)
			}
		}
		return nil
	})
}

// add types blocks into `nodectl policy add -f -`.
func (b bed) add(node, blocks string) {
	b.T().Helper()
	b.Shell(node, "nodectl policy add -f - <<'END'\n"+blocks+"\nEND")
}

// reload changes a node's Nodefile and tells the daemon.
func (b bed) reload(node int, old, now string) {
	b.T().Helper()
	n := b.Lab.Node(node)
	file := filepath.Join(n.Dir, "Nodefile")
	text, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(text), old) {
		err = fmt.Errorf("%s holds no %q", file, old)
	}
	if err == nil {
		err = os.WriteFile(file, []byte(strings.Replace(string(text), old, now, 1)), 0o644)
	}
	if err == nil {
		err = unix.Kill(n.Proc.PID, unix.SIGHUP)
	}
	if err != nil {
		b.T().Fatal(err)
	}
}
