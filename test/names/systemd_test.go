package names

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodenet/test/scenario"
)

// rootFS is what .ci/rootfs unpacks: a Debian with systemd.
const rootFS = "/var/cache/nodenet-test/bookworm-1"

// container is that Debian, booted by systemd-nspawn with all namespaces of its
// own, network included. What it writes is gone with it.
type container struct {
	t    *testing.T
	cmd  *exec.Cmd
	init string // PID of its systemd, as seen from here
}

// boot boots it. The directory shared is /shared there.
func boot(t *testing.T, shared string) *container {
	t.Helper()
	nspawn, err := exec.LookPath("systemd-nspawn")
	if err != nil {
		t.Skip("no systemd-nspawn: run .ci/deps")
	}
	if _, err := os.Stat(rootFS); err != nil {
		t.Skipf("no Debian to boot in %s: run .ci/deps", rootFS)
	}
	console, err := os.Create(filepath.Join(t.TempDir(), "console"))
	must(t, err)
	defer console.Close()
	name := fmt.Sprintf("nnt%d", os.Getpid())
	join := ownCgroups(t, name)
	c := &container{t: t, cmd: exec.Command("sh", "-ec", join+`exec "$@"`, "sh", nspawn, "--quiet", "--settings=no", "--register=no", "--keep-unit", "--private-network",
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--volatile=overlay", "--bind="+shared+":/shared",
		"--machine="+name, "--directory="+rootFS, "--boot")}
	c.cmd.Stdout, c.cmd.Stderr = console, console
	must(t, c.cmd.Start())
	done := make(chan struct{})
	go func() {
		_ = c.cmd.Wait() // how it ended says nothing: it is told to
		close(done)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(console.Name())
			t.Logf("console:\n%s", b)
		}
		_ = c.cmd.Process.Signal(unix.SIGTERM) // shut down; it may have ended
		select {
		case <-done:
		case <-time.After(soon):
			t.Errorf("the container does not shut down within %s", soon)
			_ = c.cmd.Process.Kill()
			<-done
		}
	})
	deadline := time.Now().Add(soon)
	for c.init == "" {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.cmd.Process.Pid))
		must(t, err)
		for _, pid := range strings.Fields(string(b)) {
			if comm, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil && strings.TrimSpace(string(comm)) == "systemd" {
				c.init = pid
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("systemd does not run after %s", soon)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for {
		// "degraded" is a unit that nothing here needs.
		out, err := c.try("systemctl is-system-running --wait")
		if state := strings.TrimSpace(out); state == "running" || state == "degraded" {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("systemd is not up after %s: %s, %v", soon, out, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ownCgroups makes control groups for the container below the test's own, in
// the hierarchies that systemd uses, and returns the shell commands that enter
// them. systemd-nspawn makes two in the one that it is started in, and leaves
// them there.
func ownCgroups(t *testing.T, name string) (script string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	groups, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	at := map[string]string{} // mount points, by what /proc/self/cgroup calls them
	for line := range strings.Lines(string(mounts)) {
		f, rest, _ := strings.Cut(line, " - ")
		switch kind := strings.Fields(rest); {
		case kind[0] == "cgroup2":
			at["0:"] = strings.Fields(f)[4]
		case kind[0] == "cgroup" && strings.Contains(kind[len(kind)-1], "name=systemd"):
			at["name=systemd"] = strings.Fields(f)[4]
		}
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		mount := at[f[1]]
		if f[0] == "0" {
			mount = at["0:"]
		}
		if mount == "" {
			continue
		}
		dir := filepath.Join(mount, f[2], name)
		must(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() {
			var dirs []string
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			for _, d := range slices.Backward(dirs) {
				err = errors.Join(err, os.Remove(d))
			}
			if err != nil {
				t.Errorf("remove control group: %v", err)
			}
		})
		script += "echo $$ >" + dir + "/cgroup.procs; "
	}
	return script
}

// try runs a script in the container.
func (c *container) try(script string) (string, error) {
	cmd := exec.Command("nsenter", "--target", c.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "sh", "-ec", script)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *container) run(script string) string {
	c.t.Helper()
	out, err := c.try(script)
	if err != nil {
		journal, _ := c.try("journalctl --no-pager -n 60 -u nodenet")
		c.t.Fatalf("in the container: %s: %v\n%s\n%s", script, err, out, journal)
	}
	return out
}

// network runs one of the machine's programs in the container's network.
func (c *container) network(argv ...string) string {
	c.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--target", c.init, "--net"}, argv...)...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("in the container's network: %v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// nameSockets are the inodes of the sockets that listen on port 53, by protocol
// and address.
func (c *container) nameSockets() map[string][]string {
	c.t.Helper()
	out := map[string][]string{}
	for proto, flag := range map[string]string{"udp": "-u", "tcp": "-t"} {
		for line := range strings.Lines(c.network("ss", "-Hnale", flag, "sport = :53")) {
			var addr, inode string
			for _, f := range strings.Fields(line) {
				if strings.HasSuffix(f, ":53") {
					addr = f
				}
				if n, ok := strings.CutPrefix(f, "ino:"); ok {
					inode = n
				}
			}
			if addr != "" && inode != "" && inode != "0" {
				out[proto+" "+addr] = append(out[proto+" "+addr], inode)
			}
		}
	}
	for _, inodes := range out {
		slices.Sort(inodes)
	}
	return out
}

// program is the inode of the file that the daemon runs, and its PID.
func (c *container) program() (inode, pid string) {
	c.t.Helper()
	f := strings.Fields(c.run("pid=$(systemctl show -p MainPID --value nodenet); stat -Lc %i /proc/$pid/exe; echo $pid"))
	return f[0], f[1]
}

// TestSystemd: the unit as it is packaged, under a real systemd. Sockets stay
// with systemd while the daemon is restarted, replaced and killed, no query is
// lost, and a connection by a port published on loopback goes on.
func TestSystemd(t *testing.T) {
	s := scenario.New(t)
	shared := t.TempDir()
	must(t, os.Chmod(shared, 0o755))
	nodectl := strings.TrimSpace(s.Run(scenario.Machine, "which nodectl"))
	for from, to := range map[string]string{nodectl: "nodectl", "../../packaging/systemd/nodenet.service": "nodenet.service"} {
		must(t, copyFile(filepath.Join(shared, to), from))
	}
	// Another file with the same program: it is about which file runs.
	must(t, copyFile(filepath.Join(shared, "newer"), nodectl))
	f, err := os.OpenFile(filepath.Join(shared, "newer"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("newer")
	must(t, errors.Join(err, f.Close()))
	must(t, os.WriteFile(filepath.Join(shared, "Nodefile"), []byte("network pods 10.244.0.0/16 {\n    block 24\n}\nservices 10.96.0.0/12\n"), 0o644))

	c := boot(t, shared)
	c.network("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	c.network("ip", "link", "set", "up1", "up")
	c.network("ip", "address", "add", "192.168.1.10/24", "dev", "up0")
	c.network("ip", "link", "set", "up0", "up")
	c.network("ip", "route", "add", "default", "via", "192.168.1.1")
	c.run(`install -D -m 755 /shared/nodectl /usr/bin/nodectl
		install -D -m 644 /shared/nodenet.service /etc/systemd/system/nodenet.service
		install -D -m 644 /shared/Nodefile /etc/nodenet/Nodefile
		systemctl daemon-reload
		nodectl init
		systemctl start nodenet
		nodectl service add web --vip 10.96.1.1 --port 80
		nodectl publish add 127.0.0.1:8700 192.168.1.10:7000`)
	inside := "/proc/" + c.init + "/ns/net"
	echoes(t, inside, "192.168.1.10:7000")

	load := newPerf(t, s, "nsenter --target "+c.init+" --net", "10.96.0.10",
		"web.default.svc.cluster.local A", "none.default.svc.cluster.local A", "1.1.96.10.in-addr.arpa PTR")
	s.Eventually("the name is answered", soon, func() error {
		if out := c.network("dig", "+short", "+tries=1", "+time=1", "@10.96.0.10", "web.default.svc.cluster.local"); strings.TrimSpace(out) != "10.96.1.1" {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if lost := load.under("no restart", func() {}); lost != 0 {
		t.Fatalf("%d queries were lost without a restart: the machine is too busy to tell", lost)
	}
	sockets := c.nameSockets()
	for _, name := range []string{"udp 10.96.0.10:53", "tcp 10.96.0.10:53", "udp 192.168.1.10:53"} {
		if len(sockets[name]) == 0 {
			t.Errorf("nothing listens on %s: %v", name, sockets)
		}
	}
	for _, tt := range []struct {
		name   string
		script string
		newer  bool
		lost   int  // at most
		ends   bool // the connection by loopback
	}{
		{name: "restart", script: "systemctl restart nodenet"},
		// As a package manager replaces a program that runs.
		{name: "upgrade", script: "cp /shared/newer /usr/bin/nodectl.new; mv /usr/bin/nodectl.new /usr/bin/nodectl; systemctl restart nodenet", newer: true},
		// A process that is killed takes along what it had read and not answered:
		// one batch of each socket at most.
		{name: "kill -9", lost: 64, ends: true, script: `pid=$(systemctl show -p MainPID --value nodenet)
			systemctl kill --kill-whom=main -s KILL nodenet
			until [ "$(systemctl is-active nodenet)" = active ] && [ "$(systemctl show -p MainPID --value nodenet)" != "$pid" ]; do sleep 0.1; done`},
	} {
		file, pid := c.program()
		busy := newTalk(t, s, inside, "127.0.0.1:8700")
		busy.goesOn("before " + tt.name)
		lost := load.under(tt.name, func() { c.run(tt.script) })
		if lost > tt.lost {
			t.Errorf("%s: %d queries were lost, want %d at most", tt.name, lost, tt.lost)
		}
		if tt.ends {
			busy.ends(tt.name)
		} else {
			busy.finish(tt.name)
		}
		if d := cmp.Diff(sockets, c.nameSockets()); d != "" {
			t.Errorf("%s: sockets (-before +after):\n%s", tt.name, d)
		}
		newFile, newPID := c.program()
		if newPID == pid {
			t.Errorf("%s: the daemon has not been started again", tt.name)
		}
		if (newFile != file) != tt.newer {
			t.Errorf("%s: the daemon runs file %s, before %s", tt.name, newFile, file)
		}
	}
	if t.Failed() {
		t.Log(c.try("systemctl status nodenet; journalctl --no-pager -n 100 -u nodenet"))
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
