package faults

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestDiskFull: without room on the disk nothing new is promised, and what
// was promised is kept. With room again all goes on, without a restart.
func TestDiskFull(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	a, b := s.Workload(1, "a", "--label app=w --port http=80"), s.Workload(2, "b", "--label app=w --port http=80")
	a.Serve(80)
	b.Serve(80)
	s.Run("node2", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w")
	kill(t, s, "node1", unix.SIGTERM)
	state := filepath.Join(s.Lab.Node(1).Dir, "state")
	small := filepath.Join(s.Dir(), "small")
	must(t, os.Mkdir(small, 0o700))
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m,mode=700"))
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	s.Run(scenario.Machine, "cp -a "+state+"/. "+small)
	must(t, unix.Mount(small, state, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(state, unix.MNT_DETACH) })
	start(t, s, "node1")
	s.Eventually("the service is there", soon, func() error { return backends(t, s, 1, "w", 2) })

	filler := filepath.Join(state, "filler")
	f, err := os.Create(filler)
	must(t, err)
	for chunk := make([]byte, 4096); ; {
		if _, err := f.Write(chunk); err != nil {
			break
		}
	}
	f.Close()
	// The database has free pages of its own: fill those with work, until there is no more.
	var out string
	var done []string
	for i := range 300 {
		name := fmt.Sprintf("x%d", i)
		s.Netns(name)
		if out, err = s.Exec("node1", "nodectl attach --netns "+name+" --label filler="+strings.Repeat("x", 60)+" --resolv-conf none"); err != nil {
			done = append(done, name)
			break
		}
	}
	if err == nil {
		t.Fatal("300 attachments on a full disk, and none was refused")
	}
	t.Logf("refused: %s", strings.TrimSpace(out))
	s.Want(out, `(?i)no space left|disk full`)
	refused := done[0]
	if links, _ := s.Exec(scenario.Machine, "ip -n "+refused+" -br link"); strings.Contains(links, "eth0") {
		t.Errorf("the refused attachment has left an interface:\n%s", links)
	}
	if got := lookup(s, "node2", refused+".default.pod.cluster.local"); got != "" {
		t.Errorf("the refused attachment has a name: %s", got)
	}
	// Service goes on, for what was there and for what the peers say.
	serving := func() {
		t.Helper()
		if got := lookup(s, "node1", "w.default.svc.cluster.local"); got != "10.96.1.1" {
			t.Errorf("DNS answers %q", got)
		}
		s.Want(a.Run("nodectl lab get -n 20 http://10.96.1.1/"), `\d+ a`, `\d+ b`)
	}
	serving()
	s.Run("node2", "nodectl service add later --vip 10.96.1.2 --port 80 --select app=w")
	s.Eventually("a service made elsewhere works here", soon, func() error {
		out, err := a.Exec("curl -sS -m 2 http://10.96.1.2/")
		if err != nil {
			return err
		}
		return contains(out, " saw ")
	})

	must(t, os.Remove(filler))
	s.Eventually("attach works again", soon, func() error {
		out, err := s.Exec("node1", "nodectl attach --netns "+refused+" --resolv-conf none")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.Eventually("its name is known on node2", soon, func() error {
		return contains(lookup(s, "node2", refused+".default.pod.cluster.local"), "10.244.1.")
	})
	serving()
	noDuplicates(t, s, 2)
	kill(t, s, "node1", unix.SIGKILL)
	start(t, s, "node1")
	agree(t, s, 2, soon)
}

// TestCorruptState: a state file that is garbage is kept for inspection, and
// what it held comes from the peers.
func TestCorruptState(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3, Nodefile: pinned})
	for i := 1; i <= 3; i++ {
		w := s.Workload(i, fmt.Sprintf("w%d", i), "--label app=w --port http=80")
		w.Serve(80)
	}
	s.Run("node2", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w --node-port 30080")
	for i := 1; i <= 3; i++ {
		s.Eventually("the service is there", soon, func() error { return backends(t, s, i, "w", 3) })
	}
	before := agree(t, s, 3, soon)
	// Workloads must not be cut off while the node learns what it was.
	links := "cat /sys/class/net/nn-pods/ifindex /sys/class/net/nv-pods/ifindex"
	indexes := s.Run("node2", links)
	for _, c := range []struct {
		what   string
		damage func([]byte) []byte
		aside  bool
	}{
		{"garbage", func(b []byte) []byte { return bytes.Repeat([]byte("garbage."), len(b)/8) }, true},
		// The file's two heads are whole, what they point to is gone.
		{"cut off", func(b []byte) []byte { return b[:2*os.Getpagesize()+100] }, true},
		{"empty", func([]byte) []byte { return nil }, false},
	} {
		t.Logf("a state file that is %s", c.what)
		db := filepath.Join(s.Lab.Node(2).Dir, "state", "state.db")
		kill(t, s, "node2", unix.SIGKILL)
		b, err := os.ReadFile(db)
		must(t, err)
		must(t, os.WriteFile(db, c.damage(b), 0o600))
		said := logSize(s.Lab.Node(2))
		start(t, s, "node2")
		if c.aside {
			log := daemonLog(s.Lab.Node(2), said)
			s.Want(log, `level=ERROR.*unreadable, set aside`)
			kept := s.Match(log, ` kept=(\S+)`)
			now, err := os.ReadFile(kept)
			must(t, err)
			if !bytes.Equal(now, c.damage(b)) {
				t.Errorf("%s is not the damaged file", kept)
			}
			must(t, os.Remove(kept))
		}
		s.Eventually("the service is there", soon, func() error { return backends(t, s, 2, "w", 3) })
		if now := s.Run("node2", links); now != indexes {
			t.Errorf("%s: bridge and VXLAN device were made anew: indexes %q, were %q", c.what, now, indexes)
		}
		if d := cmp.Diff(before, agree(t, s, 3, soon)); d != "" {
			t.Errorf("%s: records (-before +after):\n%s", c.what, d)
		}
		for _, url := range []string{"http://10.244.1.2/", "http://10.96.1.1/"} {
			s.Want(s.Run(scenario.Machine, "ip netns exec w2 "+curl+url), ` saw `)
		}
		s.Want(s.Run("outside", curl+"http://192.168.1.12:30080/"), ` saw `)
		noDuplicates(t, s, 2)
	}
	more := s.Workload(2, "more", "")
	s.Want(more.Addr, `^10\.244\.2\.`)
	noDuplicates(t, s, 1)
}
