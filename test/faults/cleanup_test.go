package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestCleanup: after `nodectl cleanup` the kernel of a node is as it was
// before its daemon first started, whatever the daemon has done meanwhile;
// and nothing that somebody else has made is gone.
func TestCleanup(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Idle: true})
	machine := sysctls(t, s, scenario.Machine)
	for i := 1; i <= 2; i++ {
		prepare(t, s, i)
		// What others have on the host.
		s.Shell(nodeName(i), `
nft add table inet foreign
nft add chain inet foreign input '{ type filter hook input priority 0 ; }'
nft add rule inet foreign input tcp dport 9999 drop
nft add table ip filter
nft add chain ip filter DOCKER-USER
nft add chain ip filter FORWARD '{ type filter hook forward priority 0 ; }'
nft add rule ip filter FORWARD counter jump DOCKER-USER
nft add rule ip filter DOCKER-USER counter return
ip link add br0 type bridge
ip address add 172.16.0.1/24 dev br0
ip link set br0 up
ip route add 198.51.100.0/24 via 192.168.1.1 table 100
ip rule add from 172.16.0.0/24 lookup 100
sysctl -qw net.ipv4.conf.br0.rp_filter=1`)
		settled(s, nodeName(i))
	}
	// nf_tables and conntrack bring sysctls along when they are first used.
	var kernels, settings [2]string
	for i := range 2 {
		kernels[i], settings[i] = kernel(t, s, nodeName(i+1)), sysctls(t, s, nodeName(i+1))
	}
	start(t, s, "node1", "node2")

	for i := 1; i <= 2; i++ {
		// The counter of a rule is not one of its parts.
		s.Want(s.Run(nodeName(i), "nodectl firewall integrate docker"), `insert rule ip filter DOCKER-USER iifname "nn-\*" accept comment "nodenet"`)
	}
	a := s.Workload(1, "a", "--label app=w --port http=80 --publish 8080:80")
	b := s.Workload(2, "b", "--label app=w --port http=80")
	a.Serve(80)
	b.Serve(80)
	s.Run("node1", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w --node-port 30080")
	s.Run("node2", "nodectl publish add 8443 "+b.Addr+":80")
	for i := 1; i <= 2; i++ {
		s.Eventually("the service is there", soon, func() error { return backends(t, s, i, "w", 2) })
	}
	s.Want(a.Run("nodectl lab get -n 20 http://10.96.1.1/"), `\d+ a`, `\d+ b`)
	a.Detach() // b stays attached

	s.Want(s.Fail("node1", cleanup(s, 1)), `daemon .*is running`)
	for i := 1; i <= 2; i++ {
		node := nodeName(i)
		kill(t, s, node, unix.SIGTERM)
		if cmp.Equal(kernels[i-1], kernel(t, s, node)) {
			t.Errorf("%s: the daemon has left nothing: its data path must stay when it stops", node)
		}
		if out := s.Shell(node, "nft list tables"); strings.Contains(out, "nodenet-hold") {
			t.Errorf("%s: without a daemon there is:\n%s", node, out)
		}
		s.Run(node, cleanup(s, i))
		if d := cmp.Diff(kernels[i-1], kernel(t, s, node)); d != "" {
			t.Errorf("%s: cleanup (-before +after):\n%s", node, d)
		}
		if d := cmp.Diff(settings[i-1], sysctls(t, s, node)); d != "" {
			t.Errorf("%s: sysctls (-before +after):\n%s", node, d)
		}
		if procs := inNamespace(t, s.Lab.Node(i).Netns); len(procs) > 0 {
			t.Errorf("%s: processes: %q", node, procs)
		}
		// Again: nothing to do, no error.
		s.Run(node, cleanup(s, i))
	}
	if d := cmp.Diff(machine, sysctls(t, s, scenario.Machine)); d != "" {
		t.Errorf("sysctls of the machine (-before +after):\n%s", d)
	}

	// The state has stayed: the nodes come back as what they were, and can be
	// told that the workload is gone whose link cleanup has removed.
	start(t, s, "node1", "node2")
	s.Want(s.Run("node1", "nodectl service ls"), `^w\S*\s+10\.96\.1\.1\s`)
	s.Run("node2", "nodectl detach b")
	s.Eventually("its backend is gone", soon, func() error { return backends(t, s, 1, "w", 0) })
}

// TestDown: `lab down` leaves nothing on the machine, though daemons were
// killed, cables cut and workloads are still attached. The scenario's own
// comparison at the end is what fails.
func TestDown(t *testing.T) {
	s := scenario.New(t)
	before := sysctls(t, s, scenario.Machine)
	s.Up(lab.Options{Nodes: 3})
	for i := 1; i <= 3; i++ {
		_, err := s.Lab.Attach(t.Context(), i, lab.WorkloadOptions{Name: fmt.Sprintf("w%d", i), Serve: 80})
		must(t, err)
	}
	s.Run("node1", "nodectl service add w --port 80 --backend 10.244.0.2")
	kill(t, s, "node1", unix.SIGKILL)
	must(t, s.Lab.Cut("node2", "node3", true))
	must(t, s.Lab.Cut("node3", "", false))
	must(t, s.Lab.Down(t.Context()))
	must(t, s.Lab.Down(t.Context())) // again
	s.Lab = nil
	if d := cmp.Diff(before, sysctls(t, s, scenario.Machine)); d != "" {
		t.Errorf("sysctls of the machine (-before +after):\n%s", d)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/exe")
	must(t, err)
	if slices.ContainsFunc(procs, func(p string) bool {
		exe, _ := os.Readlink(p)
		return filepath.Base(exe) == "nodectl"
	}) {
		t.Error("a nodectl still runs")
	}
}

// prepare writes the files of a node in an idle lab, all in one cluster.
func prepare(t *testing.T, s *scenario.Scenario, i int) {
	t.Helper()
	n := s.Lab.Node(i)
	state := filepath.Join(n.Dir, "state")
	must(t, os.MkdirAll(state, 0o700))
	for name, content := range map[string]string{
		"Nodefile": fmt.Sprintf("node {\n    name %s\n    advertise %s\n}\ncluster test {\n    join 192.168.1.11\n}\n%s", n.Name, n.Addr, pinned),
		"hosts":    "127.0.0.1 localhost\n",
		// Nobody answers there: an idle lab has no outside.
		"resolv.conf": "nameserver 203.0.113.10\n",
	} {
		must(t, os.WriteFile(filepath.Join(n.Dir, name), []byte(content), 0o644))
	}
	if i == 1 {
		// An idle lab has not got it yet.
		bin := filepath.Join(s.Lab.Dir(), "bin")
		must(t, os.MkdirAll(bin, 0o755))
		must(t, os.Symlink(strings.TrimSpace(s.Run(scenario.Machine, "which nodectl")), filepath.Join(bin, "nodectl")))
		_, err := s.Lab.Exec(t.Context(), n.Name, "nodectl", "init", "--config", n.Dir+"/Nodefile", "--state", state)
		must(t, err)
		return
	}
	secret, err := os.ReadFile(filepath.Join(s.Lab.Node(1).Dir, "state", "cluster.secret"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(state, "cluster.secret"), secret, 0o600))
}

func cleanup(s *scenario.Scenario, i int) string {
	dir := s.Lab.Node(i).Dir
	return "nodectl cleanup --config " + dir + "/Nodefile --state " + dir + "/state"
}
