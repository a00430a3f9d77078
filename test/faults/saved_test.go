package faults

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestSavedAnswers: a headless name lists the node's own backends first, on
// every node; a node that starts alone answers with what it had and says so.
func TestSavedAnswers(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	for i := 1; i <= 2; i++ {
		for j := 1; j <= 2; j++ {
			s.Workload(i, fmt.Sprintf("w%d%d", i, j), "--label app=w --port http=80")
		}
	}
	s.Run("node1", "nodectl service add w --vip none --port 80 --select app=w")
	const ask = "dig +tries=1 +time=2 @10.96.0.10 w.default.svc.cluster.local"
	// nearFirst looks at the order often: it is another one each time.
	nearFirst := func(node int) error {
		for range 20 {
			out, err := s.Exec(nodeName(node), ask+" +short")
			lines := strings.Fields(out)
			if err != nil || len(lines) != 4 {
				return fmt.Errorf("%w: %s", err, out)
			}
			for k, a := range lines {
				if near := strings.HasPrefix(a, fmt.Sprintf("10.244.%d.", node)); near != (k < 2) {
					return fmt.Errorf("node%d is told %v", node, lines)
				}
			}
		}
		return nil
	}
	for i := 1; i <= 2; i++ {
		s.Eventually("own backends come first", soon, func() error { return nearFirst(i) })
		s.Reject(s.Run(nodeName(i), ask), `EDE`)
	}
	for i := 1; i <= 2; i++ {
		kill(t, s, nodeName(i), unix.SIGKILL)
	}
	start(t, s, "node1")
	s.Eventually("the saved answer is marked", soon, func() error {
		out, err := s.Exec("node1", ask)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return contains(out, "EDE: 3 (Stale Answer)")
	})
	s.Want(s.Run("node1", "dig +tries=1 @10.96.0.10 nothing.default.svc.cluster.local"), `status: NXDOMAIN`, `EDE: 19 \(Stale NXDOMAIN Answer\)`)
	s.Want(s.Run("node1", ask+" +noedns"), `ANSWER: 4`)
	if err := nearFirst(1); err != nil {
		t.Error(err)
	}
	start(t, s, "node2")
	for i := 1; i <= 2; i++ {
		s.Eventually("the mark is gone", soon, func() error {
			out, err := s.Exec(nodeName(i), ask)
			if err == nil && strings.Contains(out, "EDE") {
				err = fmt.Errorf("still marked: %s", out)
			}
			return err
		})
	}
}
