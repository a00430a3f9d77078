package names

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"nodenet/test/scenario"
)

// perf asks a resolver by dnsperf while something happens to it.
type perf struct {
	t       *testing.T
	s       *scenario.Scenario
	enter   string // what dnsperf's command line begins with
	dnsperf string
	server  string
	queries string // file
}

// newPerf skips the test where there is no dnsperf.
func newPerf(t *testing.T, s *scenario.Scenario, enter, server string, queries ...string) *perf {
	t.Helper()
	p := &perf{t: t, s: s, enter: enter, server: server, queries: filepath.Join(t.TempDir(), "queries")}
	var err error
	if p.dnsperf, err = exec.LookPath("dnsperf"); err != nil {
		t.Skip("no dnsperf: run .ci/deps")
	}
	must(t, os.WriteFile(p.queries, []byte(strings.Join(queries, "\n")+"\n"), 0o644))
	return p
}

// under asks 1000 questions a second for eight seconds, of which fn happens in
// the first, and returns how many were lost.
func (p *perf) under(what string, fn func()) (lost int) {
	t := p.t
	t.Helper()
	// What waited for a process is answered at once, and dnsperf has to find room
	// for it: a socket's takes some 270 answers (net.core.rmem_default), which are
	// 10 s of a client's questions.
	const rate, clients = 1000, 40
	// As many may be outstanding as are asked while no process runs.
	run := p.s.Background(scenario.Machine, fmt.Sprintf("%s %s -s %s -d %s -l 8 -Q %d -c %d -T 1 -q 60000 -t 10 -S 1", p.enter, p.dnsperf, p.server, p.queries, rate, clients))
	p.s.Eventually("the load runs", soon, func() error {
		if !strings.Contains(run.Output(), "Sending queries") {
			return fmt.Errorf("%s", run.Output())
		}
		return nil
	})
	fn()
	<-run.Done()
	out := run.Output()
	sent, lost := count(t, out, `Queries sent:\s+(\d+)`), count(t, out, `Queries lost:\s+(\d+)`)
	codes := regexp.MustCompile(`Response codes:.*`).FindString(out)
	slowest := regexp.MustCompile(`Average Latency.*`).FindString(out)
	t.Logf("%s: %d queries sent, %d lost; %s; %s", what, sent, lost, codes, slowest)
	if sent < 4*rate {
		t.Errorf("%s: %d queries sent: no load", what, sent)
	}
	if strings.Contains(codes, "SERVFAIL") || strings.Contains(codes, "REFUSED") {
		t.Errorf("%s: %s", what, codes)
	}
	return lost
}

func count(t *testing.T, out, pattern string) int {
	t.Helper()
	f := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if f == nil {
		t.Fatalf("nothing matches %q in:\n%s", pattern, out)
	}
	n, err := strconv.Atoi(f[1])
	must(t, err)
	return n
}
