package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

// The IP plan: node i is 192.168.1.(10+i) and has pinned 10.244.i.0/24.
const pinned = `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
}
services 10.96.0.0/12 {
    nodeports 30000-32767
}
`

const curl = "curl -sS -m 3 "

// soon is for what a healthy machine does within a second or two.
const soon = 20 * time.Second

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// client calls a node's control API.
func client(t *testing.T, s *scenario.Scenario, i int) *api.Client {
	t.Helper()
	c := s.Lab.Node(i).Client()
	t.Cleanup(c.Close)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// kill ends a node's daemon; its kernel state stays.
func kill(t *testing.T, s *scenario.Scenario, node string, sig unix.Signal) {
	t.Helper()
	must(t, s.Lab.Kill(t.Context(), node, sig))
}

// start starts daemons and waits until the cluster is whole.
func start(t *testing.T, s *scenario.Scenario, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		must(t, s.Lab.Start(t.Context(), n))
	}
	converged(t, s)
}

func converged(t *testing.T, s *scenario.Scenario) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, s.Lab.WaitConverged(ctx))
}

// backends is an answer for Eventually: does node i see so many ready
// backends of a service? -1: it does not know the service.
func backends(t *testing.T, s *scenario.Scenario, i int, service string, want int) error {
	c := s.Lab.Node(i).Client()
	defer c.Close()
	list, err := c.Services(t.Context())
	if err != nil {
		return err
	}
	got := -1
	for _, svc := range list {
		if svc.Name == service {
			got = svc.Ready
		}
	}
	if got != want {
		return fmt.Errorf("node%d sees %d ready backends of %s, want %d", i, got, service, want)
	}
	return nil
}

// backend is what node i says of a backend of a service, by its name. It asks
// for all services: for a single one connections are counted, on nodes that may
// be down.
func backend(t *testing.T, s *scenario.Scenario, i int, service, name string) (*api.ServiceBackend, error) {
	c := s.Lab.Node(i).Client()
	defer c.Close()
	list, err := c.Services(t.Context())
	if err != nil {
		return nil, err
	}
	for _, svc := range list {
		for j := range svc.Backends {
			if svc.Name == service && svc.Backends[j].Name == name {
				return &svc.Backends[j], nil
			}
		}
	}
	return nil, fmt.Errorf("node%d knows no backend %s of %s", i, name, service)
}

// lookup is what a node's resolver says for a name of the cluster.
func lookup(s *scenario.Scenario, node, name string) string {
	out, _ := s.Exec(node, "dig +short +tries=1 +time=2 @10.96.0.10 "+name)
	return strings.TrimSpace(out)
}

// contains is an answer for Eventually.
func contains(s, sub string) error {
	if !strings.Contains(s, sub) {
		return fmt.Errorf("no %q in %q", sub, s)
	}
	return nil
}

// records is what a node believes about all nodes, as text that is equal on
// nodes that agree: whatever is one node's own view is left out.
func records(t *testing.T, s *scenario.Scenario, i int) string {
	t.Helper()
	c := s.Lab.Node(i).Client()
	defer c.Close()
	ctx := t.Context()
	eps, err := c.Endpoints(ctx)
	if err != nil {
		return err.Error()
	}
	svcs, err := c.Services(ctx)
	if err != nil {
		return err.Error()
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err.Error()
	}
	leases, err := c.Leases(ctx)
	if err != nil {
		return err.Error()
	}
	slices.SortFunc(eps, func(a, b api.Endpoint) int { return strings.Compare(a.Node+a.ID, b.Node+b.ID) })
	slices.SortFunc(svcs, func(a, b api.Service) int { return strings.Compare(a.Name, b.Name) })
	for i := range svcs {
		slices.SortFunc(svcs[i].Backends, func(a, b api.ServiceBackend) int { return a.Addr.Compare(b.Addr) })
	}
	nodes := []string{st.Node + " alive"}
	for _, p := range st.Peers {
		nodes = append(nodes, p.Name+" "+p.State)
	}
	slices.Sort(nodes)
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetIndent("", " ")
	for _, v := range []any{nodes, st.ClusterID, eps, svcs, leases} {
		must(t, e.Encode(v))
	}
	return b.String()
}

// agree waits until nodes 1 to n have equal records, and returns them.
func agree(t *testing.T, s *scenario.Scenario, n int, timeout time.Duration) string {
	t.Helper()
	var first string
	s.Eventually("all nodes have equal records", timeout, func() error {
		first = records(t, s, 1)
		for i := 2; i <= n; i++ {
			if other := records(t, s, i); other != first {
				return fmt.Errorf("node1:\n%s\nnode%d:\n%s", first, i, other)
			}
		}
		return nil
	})
	return first
}

// noDuplicates fails the test when two endpoints have one address.
func noDuplicates(t *testing.T, s *scenario.Scenario, i int) {
	t.Helper()
	eps, err := client(t, s, i).Endpoints(t.Context())
	must(t, err)
	seen := map[string]string{}
	for _, e := range eps {
		for _, a := range e.Addrs {
			if other := seen[a.String()]; other != "" && e.Network != "" {
				t.Errorf("%s and %s both have %s", other, e.ID, a)
			}
			seen[a.String()] = e.Node + " " + e.ID
		}
	}
}

// timers of bridges run down whatever happens.
var timers = regexp.MustCompile(` [a-z_]+_timer +[0-9.]+`)

// holdTable matches those that are there as long as a daemon, and made anew by each.
var holdTable = regexp.MustCompile(`(?m)^table (?:inet|bridge) nodenet-hold \{(?s:.*?)\n\}(?: #.*)?\n`)

// kernel is what nodenet may have put into a node's kernel, with interface
// indexes and handles: equal only if nothing has been made anew, but for the
// tables that live and die with the daemon.
func kernel(t *testing.T, s *scenario.Scenario, where string) string {
	t.Helper()
	var b strings.Builder
	for _, cmdline := range []string{
		"ip -o -d link",
		"ip -o address",
		"ip route show table all",
		"ip rule",
		"ip neigh show nud permanent",
		"bridge fdb show",
		"nft -a -s list ruleset",
	} {
		out, err := s.Exec(where, cmdline)
		if err != nil {
			t.Fatalf("on %s: %s: %v\n%s", where, cmdline, err, out)
		}
		out = holdTable.ReplaceAllString(out, "")
		fmt.Fprintf(&b, "# %s\n%s", cmdline, timers.ReplaceAllString(out, ""))
	}
	return b.String()
}

// sysctls are those of a network namespace. The count of connections and
// what devices come and go with them are no settings.
func sysctls(t *testing.T, s *scenario.Scenario, where string) string {
	t.Helper()
	out, err := s.Exec(where, "sysctl -a --pattern ^net")
	if err != nil && out == "" {
		t.Fatalf("on %s: sysctl: %v", where, err)
	}
	var b strings.Builder
	for l := range strings.Lines(out) {
		if strings.HasPrefix(l, "net.") && !strings.Contains(l, "nf_conntrack_count") {
			b.WriteString(l)
		}
	}
	return b.String()
}

// daemonLog returns what a node's daemon has written since its log was size bytes long.
func daemonLog(n *lab.Node, size int) string {
	b, err := os.ReadFile(n.Log())
	if err != nil || len(b) < size {
		return ""
	}
	return string(b[size:])
}

func logSize(n *lab.Node) int { return len(daemonLog(n, 0)) }

// inNamespace lists the processes in a network namespace, but for this one:
// its threads have been everywhere.
func inNamespace(t *testing.T, netns string) []string {
	t.Helper()
	var want unix.Stat_t
	must(t, unix.Stat(netns, &want))
	dirs, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	var out []string
	for _, d := range dirs {
		var st unix.Stat_t
		if filepath.Base(d) == strconv.Itoa(os.Getpid()) {
			continue
		}
		if unix.Stat(d+"/ns/net", &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
			continue
		}
		cmdline, _ := os.ReadFile(d + "/cmdline")
		out = append(out, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	}
	return out
}
