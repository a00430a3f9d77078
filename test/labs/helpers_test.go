package labs

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"nodenet/test/scenario"
)

// scenarioTimeout is for what a healthy machine does within a second.
const scenarioTimeout = 10 * time.Second

// contains is an answer for Scenario.Eventually.
func contains(s, sub string) error {
	if !strings.Contains(s, sub) {
		return fmt.Errorf("no %q in %q", sub, s)
	}
	return nil
}

// received fails the test unless the summaries of n pings say that one packet
// was sent and came back.
func received(s *scenario.Scenario, out string, n int) {
	s.T().Helper()
	if got := strings.Count(out, "1 packets transmitted, 1 received"); got != n {
		s.T().Fatalf("%d of %d pings were answered:\n%s", got, n, out)
	}
}

// until waits for a command's output to match all patterns: what one node does
// is known to the others after a moment. It leaves no trace on the page.
func until(s *scenario.Scenario, where, cmdline string, patterns ...string) {
	s.T().Helper()
	s.Eventually(fmt.Sprintf("%s: %s", where, cmdline), scenarioTimeout, func() error {
		out, err := s.Exec(where, cmdline)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, p := range patterns {
			if !regexp.MustCompile("(?m)" + p).MatchString(out) {
				return fmt.Errorf("nothing matches %q in:\n%s", p, out)
			}
		}
		return nil
	})
}
