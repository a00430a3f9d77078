// Package scenario is the harness of the end-to-end tests: a test brings up a
// lab of real daemons, types commands as a person would, says what must be
// seen, and may turn the whole into a page of documentation.
//
//	func TestMain(m *testing.M) { scenario.Main(m) }
//
//	func TestTwoNamespaces(t *testing.T) {
//		s := scenario.Up(t, lab.Options{Nodes: 1})
//		red := s.Workload(1, "red", "")
//		blue := s.Workload(1, "blue", "")
//		s.Want(red.Run("ping -c1 -W2 "+blue.Addr), "1 received")
//	}
//
// Main runs the tests in a world of their own:
//
//	go test ─► parent: builds nodectl ─► child in new mount, PID and network namespaces:
//	                                     own /run/netns, /etc/netns and /run/nodenet-lab
//
// So a test may call a namespace `red` without asking who else does, no test
// reaches the machine's own network, and nothing outlives the child, however
// it ends. Within the child each scenario is compared with what was there
// before it: it must leave no process, namespace, link, mount, nft table or file.
//
// Test binaries may therefore run side by side, on two CPUs two of them (go test
// -p 2). Scenarios of one run one after the other, for the sake of that
// comparison: no t.Parallel.
package scenario

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodenet/lab"
)

// Machine is where commands run that belong to no node: the place from which
// the lab was brought up.
const Machine = "machine"

// Scenario is a lab together with the record of what was typed in it. Its
// methods must be called from the test's goroutine, as those of testing.T.
type Scenario struct {
	// Lab is nil before Up.
	Lab *lab.Lab

	t     *testing.T
	name  string
	nodes int
	env   []string
	dir   string // of the files that the scenario writes; commands run here
	page  page

	before   *world
	started  []*Process
	workload []*Workload
}

// New begins a scenario without a lab, for those whose page has something to
// say first. It skips the test without root, or fails it where NODENET_E2E is
// set: there a skip would hide that nothing was tested.
func New(t *testing.T) *Scenario {
	t.Helper()
	needPrivileges(t)
	s := &Scenario{t: t, dir: t.TempDir()}
	s.page.dir = s.dir
	s.env = append(os.Environ(), "PATH="+filepath.Dir(nodectl())+":/usr/local/bin:/usr/sbin:/sbin:"+os.Getenv("PATH"), "LC_ALL=C")
	s.before = observe(t)
	t.Cleanup(s.end)
	return s
}

// Up brings a lab up and takes it down when the test ends. The zero Options
// are three nodes over VXLAN. An empty Name becomes one that no other lab
// has; Binary is the nodectl of this source tree unless it is set.
//
// After the test nothing may be left of the lab: see the package's text. When
// the test has failed, the end of each daemon's log and its status are logged.
func Up(t *testing.T, o lab.Options) *Scenario {
	t.Helper()
	s := New(t)
	s.Up(o)
	return s
}

// Up is for scenarios that began with New.
func (s *Scenario) Up(o lab.Options) {
	s.t.Helper()
	if o.Name == "" {
		var b [2]byte
		rand.Read(b[:])
		o.Name = "nt" + hex.EncodeToString(b[:])
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	s.name, s.nodes = o.Name, o.Nodes
	s.env = append(s.env, "NODENET_LAB="+o.Name)
	if o.Root == "" {
		o.Root = lab.DefaultRoot
	}
	if o.Binary == "" {
		o.Binary = nodectl()
	}
	argv := "nodectl lab up --name " + o.Name + " --nodes " + strconv.Itoa(o.Nodes)
	if o.Overlay != "" {
		argv += " --overlay " + o.Overlay
	}
	if o.Join != "" {
		argv += " --join " + o.Join
	}
	if o.Nodefile != "" {
		s.File("Nodefile", o.Nodefile)
		argv += " --nodefile Nodefile"
	}
	var said strings.Builder
	progress := o.Progress
	o.Progress = func(line string) {
		fmt.Fprintln(&said, line)
		if progress != nil {
			progress(line)
		}
	}
	start := time.Now()
	l, err := lab.Up(s.t.Context(), o)
	s.page.command(Machine, argv, said.String())
	if err != nil {
		s.t.Fatalf("%s: %v", argv, err)
	}
	s.Lab = l
	s.t.Logf("lab %s is up after %s", o.Name, time.Since(start).Round(time.Millisecond))
}

// T returns the scenario's test.
func (s *Scenario) T() *testing.T { return s.t }

// Dir returns the directory in which commands run and File writes.
func (s *Scenario) Dir() string { return s.dir }

// File writes a file into the directory in which commands run, and shows it
// on the page. The name tells the page how to colour it.
func (s *Scenario) File(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.page.file(name, content)
}

// Eventually asks what until its answer is nil, and fails the test when that
// takes longer than timeout. The answer to show then is the last one.
func (s *Scenario) Eventually(what string, timeout time.Duration, fn func() error) {
	s.t.Helper()
	if err := s.eventually(timeout, fn); err != nil {
		s.t.Fatalf("%s: not within %s: %v", what, timeout, err)
	}
}

func (s *Scenario) eventually(timeout time.Duration, fn func() error) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-deadline.C:
			return err
		case <-tick.C:
		}
	}
}

// Want fails the test unless the output matches each pattern: a regular
// expression of package regexp in which ^ and $ are the ends of a line.
func (s *Scenario) Want(out string, patterns ...string) {
	s.t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)" + p).MatchString(out) {
			s.t.Fatalf("nothing in the output matches %q:\n%s", p, out)
		}
	}
}

// Reject fails the test when the output matches one of the patterns, which
// are those of Want.
func (s *Scenario) Reject(out string, patterns ...string) {
	s.t.Helper()
	for _, p := range patterns {
		if m := regexp.MustCompile("(?m)" + p).FindString(out); m != "" {
			s.t.Fatalf("the output has %q, which matches %q:\n%s", m, p, out)
		}
	}
}

// Match returns what the first group of a pattern (see Want) matched.
func (s *Scenario) Match(out, pattern string) string {
	s.t.Helper()
	m := regexp.MustCompile("(?m)" + pattern).FindStringSubmatch(out)
	if len(m) < 2 {
		s.t.Fatalf("nothing in the output matches %q:\n%s", pattern, out)
	}
	return m[1]
}

// end runs when the test does: report, take down, compare, check the page.
func (s *Scenario) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.Lab != nil {
		s.checkLogs()
		if s.t.Failed() {
			s.report(ctx)
		}
	}
	for _, p := range s.started {
		p.Stop()
	}
	for _, w := range s.workload {
		w.remove()
	}
	if s.Lab != nil {
		if err := s.Lab.Down(ctx); err != nil {
			s.t.Errorf("take the lab down: %v", err)
		}
	}
	if s.t.Failed() {
		removeLeftNamespaces(s.before) // so that the next scenario does not stumble over them
		return
	}
	s.before.compare(s.t, s.eventually)
	s.page.finish(s.t)
}

// checkLogs fails the test for what no daemon may ever write.
func (s *Scenario) checkLogs() {
	nodes, err := s.Lab.Nodes()
	if err != nil {
		s.t.Error(err)
		return
	}
	bad := regexp.MustCompile(`(?m)^(WARNING: DATA RACE|panic: |fatal error: ).*`)
	for _, n := range nodes {
		b, err := os.ReadFile(n.Log())
		if err != nil {
			continue // an idle lab has no daemons
		}
		if at := bad.FindIndex(b); at != nil {
			s.t.Errorf("%s has written:\n%s", n.Name, b[at[0]:min(len(b), at[0]+6000)])
		}
	}
}

// report logs what a person would look at first.
func (s *Scenario) report(ctx context.Context) {
	nodes, err := s.Lab.Nodes()
	if err != nil {
		s.t.Log(err)
		return
	}
	for _, n := range nodes {
		if n.Proc.Alive() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			out, err := s.run(ctx, n.Name, []string{"nodectl", "status"})
			cancel()
			s.t.Logf("%s: nodectl status: %v\n%s", n.Name, err, out)
		} else {
			s.t.Logf("%s: the daemon does not run", n.Name)
		}
		b, err := os.ReadFile(n.Log())
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		s.t.Logf("%s: end of its log:\n%s", n.Name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}
