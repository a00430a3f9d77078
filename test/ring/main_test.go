// Package ring holds the end-to-end tests of the address space: a network that
// is used up, a node that is gone for good, one that comes back all the same,
// and two sides that both took what was not theirs.
package ring

import (
	"fmt"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/test/scenario"
)

func TestMain(m *testing.M) { scenario.Main(m) }

// soon is for what a healthy machine does within a second or two; dying takes
// membership some seconds.
const (
	soon  = 20 * time.Second
	dying = 45 * time.Second
)

// until waits for a command's output to match all patterns.
func until(s *scenario.Scenario, d time.Duration, where, cmdline string, patterns ...string) string {
	s.T().Helper()
	var out string
	s.Eventually(where+": "+cmdline, d, func() error {
		var err error
		if out, err = s.Exec(where, cmdline); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, p := range patterns {
			if !regexp.MustCompile("(?m)" + p).MatchString(out) {
				return fmt.Errorf("nothing matches %q in:\n%s", p, out)
			}
		}
		return nil
	})
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kill ends a node's daemon as a power cut does.
func kill(t *testing.T, s *scenario.Scenario, node string) {
	t.Helper()
	must(t, s.Lab.Kill(t.Context(), node, unix.SIGKILL))
}
