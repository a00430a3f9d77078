package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestClonedDisk: a machine is made from a copy of another one's disk. The
// copy refuses to run and says why, where the operator looks; the holder goes
// on; with a state of its own the machine gets in.
func TestClonedDisk(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 4, Nodefile: pinned})
	n2, n4 := s.Lab.Node(2), s.Lab.Node(4)
	a, b := s.Workload(1, "a", ""), s.Workload(2, "b", "--label app=w --port http=80")
	b.Serve(80)
	s.Run("node1", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w")
	s.Eventually("the service is there", soon, func() error { return backends(t, s, 1, "w", 1) })
	token, err := s.Lab.Exec(t.Context(), "node1", "nodectl", "token")
	must(t, err)
	s.Run("node4", "nodectl leave --yes")
	s.Eventually("node4 has ended", soon, func() error {
		nodes, err := s.Lab.Nodes()
		if err == nil && nodes[3].Proc.Alive() {
			err = errors.New("it runs")
		}
		return err
	})
	state := filepath.Join(n4.Dir, "state")
	clone := func() {
		t.Helper()
		must(t, os.RemoveAll(state))
		s.Run(scenario.Machine, "cp -a "+filepath.Join(n2.Dir, "state")+" "+state)
	}
	said1, said2 := logSize(s.Lab.Node(1)), logSize(n2)
	run := func() string {
		t.Helper()
		out, err := s.Exec("node4", "nodectl run --config "+filepath.Join(n4.Dir, "Nodefile")+" --state "+state+" --socket "+n4.Socket)
		if ee := (*exec.ExitError)(nil); !errors.As(err, &ee) || ee.ExitCode() != 4 {
			t.Fatalf("nodectl run on the copy: %v, want exit status 4\n%s", err, out)
		}
		return out
	}
	for range 2 { // starting it again changes nothing
		clone()
		out := run()
		s.Want(out, `copy of another one's disk`, `192\.168\.1\.12`, `192\.168\.1\.14`, `remove the state directory`, `token`)
		s.Reject(out, `level=ERROR.*own records`)
		for _, verb := range []string{"status", "doctor", "peers"} {
			out, err := s.Exec("node4", "nodectl "+verb)
			if err == nil {
				t.Errorf("nodectl %s on the copy exits with 0", verb)
			}
			s.Want(out, `refuses to run`, `192\.168\.1\.12`, `192\.168\.1\.14`)
		}
	}
	s.Want(daemonLog(s.Lab.Node(1), said1)+daemonLog(n2, said2), `copies of one disk.*192\.168\.1\.14`)
	s.Reject(daemonLog(n2, said2), `level=ERROR`, `nodenet stops`, `written anew`)
	s.Want(a.Run("nodectl lab get -n 5 http://10.96.1.1/"), `5 b`)
	for i := 1; i <= 3; i++ {
		st, err := client(t, s, i).Status(t.Context())
		must(t, err)
		for _, p := range st.Peers {
			if p.State != "alive" || p.Name == "node2" && p.Address.String() != "192.168.1.12" {
				t.Errorf("node%d sees %s at %s %s", i, p.Name, p.Address, p.State)
			}
		}
	}
	agree(t, s, 3, soon)

	must(t, os.RemoveAll(state))
	s.Run("node4", "nodectl join "+strings.TrimSpace(token)+" --config "+filepath.Join(n4.Dir, "Nodefile")+" --state "+state)
	must(t, s.Lab.Start(t.Context(), "node4"))
	s.Eventually("with a state of its own it gets in", soon, func() error {
		st, err := client(t, s, 1).Status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range st.Peers {
			if p.Name == "node4" && p.State == "alive" && p.Address.String() == "192.168.1.14" {
				return nil
			}
		}
		return fmt.Errorf("%+v", st.Peers)
	})
}

// TestNewAddress: a node comes back at another address of its LAN. Links,
// tunnels and the addresses that the others keep on disk follow, and its
// workloads go on.
func TestNewAddress(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	a, b := s.Workload(1, "a", ""), s.Workload(2, "b", "--label app=w --port http=80")
	b.Serve(80)
	s.Run("node3", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w")
	s.Eventually("the service is there", soon, func() error { return backends(t, s, 1, "w", 1) })
	const was, is = "192.168.1.12", "192.168.1.77"
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		from, to := was, is
		if sig == unix.SIGTERM {
			from, to = is, was // and back
		}
		kill(t, s, "node2", sig)
		route := s.Match(s.Run("node2", "ip -4 route show default"), `(default via \S+)`)
		s.Run("node2", "ip address del "+from+"/24 dev eth0")
		s.Run("node2", "ip address add "+to+"/24 dev eth0")
		s.Run("node2", "ip route add "+route)
		file := filepath.Join(s.Lab.Node(2).Dir, "Nodefile")
		text, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, []byte(strings.Replace(string(text), "advertise "+from, "advertise "+to, 1)), 0o600))
		must(t, s.Lab.Start(t.Context(), "node2"))
		for _, node := range []string{"node1", "node3"} {
			s.Eventually(node+"'s tunnel leads to the new address", soon, func() error {
				out, err := s.Exec(node, "bridge fdb show dev nv-pods")
				if err == nil && strings.Contains(out, "dst "+from) {
					err = fmt.Errorf("the old one is left: %s", out)
				}
				if err == nil {
					err = contains(out, "dst "+to)
				}
				return err
			})
			s.Eventually(node+" is connected with it there", soon, func() error {
				out, err := s.Exec(node, "nodectl peers")
				if err != nil {
					return err
				}
				for l := range strings.Lines(out) {
					if f := strings.Fields(l); len(f) > 3 && f[0] == "node2" && f[1] == "alive" && strings.Contains(l, to) {
						return nil
					}
				}
				return fmt.Errorf("%s", out)
			})
			dir := s.Lab.Node(int(node[4] - '0')).Dir
			s.Eventually(node+" keeps the new address on disk, and not the old one", soon, func() error {
				b, err := os.ReadFile(filepath.Join(dir, "state", "cluster.json"))
				if err != nil {
					return err
				}
				_, peers, _ := strings.Cut(string(b), `"peers"`)
				if strings.Contains(peers, from+":") {
					return fmt.Errorf("the old one is left: %s", peers)
				}
				return contains(peers, to+":")
			})
		}
		converged(t, s)
		s.Want(a.Run("ping -q -c 3 -W 2 "+b.Addr), "3 received")
		s.Want(a.Run("nodectl lab get -n 5 http://10.96.1.1/"), `5 b`)
		for i := 1; i <= 3; i++ {
			s.Reject(daemonLog(s.Lab.Node(i), 0), `copies of one disk`)
		}
	}
	noDuplicates(t, s, 1)
}
