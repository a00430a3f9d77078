package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const waitLimit = 10 * time.Second

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || checkPrivileges() != nil {
		t.Skip("needs root: makes network namespaces and mounts")
	}
}

// up brings a lab up under a name and a directory of its own, and checks at
// the end that nothing of it stays.
func up(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	o.Name = fmt.Sprintf("nnt-lab-%d", os.Getpid())
	o.Root = filepath.Join(t.TempDir(), "labs")
	before := traces(t)
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := l.read()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// What was started meanwhile is in the newest record.
		if now, err := l.read(); err == nil {
			rec = now
		}
		for range 2 { // the second finds nothing to do
			if err := l.Down(context.Background()); err != nil {
				t.Error(err)
			}
		}
		for _, p := range rec.procs() {
			if p.Alive() {
				t.Errorf("process %d is still there", p.PID)
			}
		}
		if diff := cmp.Diff(before, traces(t)); diff != "" {
			t.Errorf("the lab left something behind (-before +after):\n%s", diff)
		}
		if fileExists(l.dir) {
			t.Errorf("%s is still there", l.dir)
		}
	})
	return l
}

// traces lists what a lab could leave on the machine.
func traces(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{netnsDir + "/nnt-lab-*", netnsEtcDir + "/nnt-lab-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.Contains(f[4], "nnt-lab-") {
			out = append(out, "mount "+f[4])
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name := link.Attrs().Name; name == lanBridge || strings.HasPrefix(name, "node") {
			out = append(out, "link "+name)
		}
	}
	return out
}

// echo answers UDP datagrams in a namespace until the test ends.
func echo(t *testing.T, netns string) {
	t.Helper()
	var pc *net.UDPConn
	err := inNetns(netns, func() (err error) {
		pc, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 7})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := pc.ReadFromUDP(b)
			if err != nil {
				return
			}
			pc.WriteToUDP(b[:n], from)
		}
	}()
}

// reaches reports whether an echo comes back within the limit.
func reaches(t *testing.T, netns string, to netip.Addr, limit time.Duration) bool {
	t.Helper()
	var c *net.UDPConn
	err := inNetns(netns, func() (err error) {
		c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: to.AsSlice(), Port: 7})
		return err
	})
	if errors.Is(err, unix.ENETUNREACH) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		c.Write([]byte("x"))
		c.SetReadDeadline(time.Now().Add(min(limit, 200*time.Millisecond)))
		if _, err := c.Read(make([]byte, 8)); err == nil {
			return true
		}
	}
	return false
}

// TestTopology: node1 192.168.1.11, node2 .12, node3 .13, router .1 and
// 203.0.113.1, outside 203.0.113.10.
func TestTopology(t *testing.T) {
	l := up(t, Options{Nodes: 3, Idle: true})
	n1, n2, n3 := l.Node(1), l.Node(2), l.Node(3)
	out := netnsPath(l.Name(), nsOutside)
	for _, ns := range []string{n1.Netns, n2.Netns, n3.Netns, out} {
		echo(t, ns)
	}
	const lost = 300 * time.Millisecond
	want := func(t *testing.T, from *Node, to netip.Addr, yes bool) {
		t.Helper()
		limit := lost
		if yes {
			limit = waitLimit
		}
		if got := reaches(t, from.Netns, to, limit); got != yes {
			t.Errorf("%s reaches %s: %t, want %t", from.Name, to, got, yes)
		}
	}
	wantCuts := func(t *testing.T, cuts ...Cut) {
		t.Helper()
		got, err := l.Cuts()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(cuts, got); diff != "" {
			t.Errorf("cuts (-want +got):\n%s", diff)
		}
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("all reach all", func(t *testing.T) {
		want(t, n1, n2.Addr, true)
		want(t, n2, n3.Addr, true)
		want(t, n3, outsideAddr, true)
		if !reaches(t, out, n1.Addr, waitLimit) {
			t.Error("the outside does not reach node1")
		}
	})
	t.Run("service range leads to node1", func(t *testing.T) {
		must(t, inNetns(netnsPath(l.Name(), nsRouter), func() error {
			routes, err := netlink.RouteGet(net.ParseIP("10.96.0.10"))
			if err == nil && routes[0].Gw.String() != n1.Addr.String() {
				err = fmt.Errorf("via %s, want %s", routes[0].Gw, n1.Addr)
			}
			return err
		}))
	})
	t.Run("cut and heal", func(t *testing.T) {
		must(t, l.Cut("node1", "node2", false))
		wantCuts(t, Cut{"node1", "node2"}, Cut{"node2", "node1"})
		want(t, n1, n2.Addr, false)
		want(t, n2, n1.Addr, false)
		want(t, n1, n3.Addr, true)
		must(t, l.Heal("node2", "node1"))
		wantCuts(t)
		want(t, n1, n2.Addr, true)
	})
	t.Run("cut one way", func(t *testing.T) {
		must(t, l.Cut("node3", "node1", true))
		wantCuts(t, Cut{"node3", "node1"})
		want(t, n1, n3.Addr, false) // the answer is lost
		must(t, l.Heal("", ""))
		want(t, n1, n3.Addr, true)
	})
	t.Run("cable out", func(t *testing.T) {
		must(t, l.Cut("node2", "", false))
		wantCuts(t, Cut{From: "node2"})
		want(t, n1, n2.Addr, false)
		must(t, l.Heal("node2", ""))
		wantCuts(t)
		want(t, n1, n2.Addr, true)
	})
	t.Run("mistakes", func(t *testing.T) {
		for _, err := range []error{l.Cut("node1", "node1", false), l.Cut("node9", "", false), l.Heal("node9", "")} {
			if err == nil {
				t.Error("no error")
			}
		}
	})
}

func TestProcesses(t *testing.T) {
	var steps []string
	l := up(t, Options{Nodes: 2, Progress: func(s string) { steps = append(steps, s) }})
	ctx := t.Context()
	if len(steps) < 4 || !strings.HasPrefix(steps[len(steps)-1], "converged after") {
		t.Errorf("progress: %q", steps)
	}
	if _, err := Up(ctx, Options{Name: l.Name(), Root: filepath.Dir(l.dir)}); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("a second lab of the name: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("view of a node", func(t *testing.T) {
		got, err := l.Exec(ctx, "node2", self, "lab", "sysname")
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("node2|%s|nameserver 203.0.113.10\n|127.0.0.1 localhost\n::1 localhost\n192.168.1.12 node2\n", l.Node(2).Socket)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("outside by name", func(t *testing.T) {
		got, err := l.Exec(ctx, "node2", self, "lab", "get", "http://www.example.com/")
		if err != nil {
			t.Fatal(err)
		}
		if got != "outside saw 192.168.1.12\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("exec fails", func(t *testing.T) {
		if _, err := l.Exec(ctx, "node1", self, "nonsense"); err == nil || !strings.Contains(err.Error(), "does not know") {
			t.Errorf("error %v", err)
		}
		if _, err := l.Exec(ctx, "node7", self); err == nil || !strings.Contains(err.Error(), "has no node or workload node7") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("workload", func(t *testing.T) {
		w, err := l.Attach(ctx, 1, WorkloadOptions{Name: "web", Namespace: "apps", Serve: 8000})
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Exec(ctx, "web", self, "lab", "sysname")
		if err != nil || !strings.HasPrefix(got, "web||nameserver 10.96.0.10\nsearch apps.svc.cluster.local\n|") {
			t.Errorf("view of the workload: %q, %v", got, err)
		}
		got, err = l.Exec(ctx, "web.apps", self, "lab", "get", "http://127.0.0.1:8000/")
		if err != nil || got != "web saw 127.0.0.1\n" {
			t.Errorf("its web server: %q, %v", got, err)
		}
		if _, err := l.Attach(ctx, 2, WorkloadOptions{Name: "web", Namespace: "apps"}); err == nil {
			t.Error("attached a second workload of the same name")
		}
		if err := l.Detach(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if fileExists(w.Netns) || slices.ContainsFunc(w.Procs, Proc.Alive) {
			t.Error("detached, but still there")
		}
	})
	t.Run("workload refused", func(t *testing.T) {
		for _, o := range []WorkloadOptions{{Name: "bad"}, {Name: "node1"}, {Name: "../x"}, {}} {
			if _, err := l.Attach(ctx, 1, o); err == nil {
				t.Errorf("attached %q", o.Name)
			}
		}
		if fileExists(netnsPath(l.Name(), "bad")) {
			t.Error("the namespace of a failed attach is still there")
		}
	})
	t.Run("kill and start", func(t *testing.T) {
		if err := l.Kill(ctx, "node2", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := l.Kill(ctx, "node2", unix.SIGKILL); err == nil {
			t.Error("killed twice")
		}
		wait, cancel := context.WithTimeout(ctx, waitLimit)
		defer cancel()
		if err := l.WaitConverged(wait); err != nil {
			t.Fatal(err)
		}
		states, err := l.States(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if s := states[0].Status; s == nil || s.Peers[0].State != "dead" {
			t.Errorf("node1 sees %+v", s)
		}
		if err := l.Start(ctx, "node2"); err != nil {
			t.Fatal(err)
		}
		if err := l.Start(ctx, "node2"); err == nil {
			t.Error("started twice")
		}
		if err := l.WaitConverged(wait); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("crash", func(t *testing.T) {
		n := l.Node(2)
		if err := n.Proc.signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := n.Proc.wait(ctx); err != nil {
			t.Fatal(err)
		}
		if err := l.WaitConverged(ctx); err == nil || !strings.Contains(err.Error(), "node2: the daemon has ended") {
			t.Errorf("error %v", err)
		}
	})
}

// TestAliveThroughExec: a process is alive all the time that it takes to
// become the command it was started for.
func TestAliveThroughExec(t *testing.T) {
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for range 5 {
		p, err := start(View{Netns: "/proc/self/ns/net"}, filepath.Join(dir, "log"), self, "lab", "become", "sleep", "60")
		if err != nil {
			t.Fatal(err)
		}
		for {
			if !p.Alive() {
				t.Error("not alive")
				break
			}
			if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID)); exe != self && exe != "" {
				break
			}
		}
		if err := stopAll(t.Context(), p); err != nil {
			t.Error(err)
		}
		if p.Alive() {
			t.Error("still alive")
		}
	}
}

func TestJoinByToken(t *testing.T) {
	l := up(t, Options{Nodes: 2, Join: JoinToken})
	got, err := os.ReadFile(filepath.Join(l.Node(2).state(), "joined"))
	if err != nil || string(got) != "token-of-node1" {
		t.Errorf("node2 joined with %q, %v", got, err)
	}
}

// TestUpFails: a daemon that ends at once takes the lab down, and its last
// words are in the error.
func TestUpFails(t *testing.T) {
	needRoot(t)
	before := traces(t)
	o := Options{Name: fmt.Sprintf("nnt-lab-%d", os.Getpid()), Root: filepath.Join(t.TempDir(), "labs"), Nodes: 2, Nodefile: "# crash node1\n"}
	_, err := Up(t.Context(), o)
	if err == nil {
		t.Fatal("the lab is up")
	}
	for _, want := range []string{"node1: the daemon has ended", "log of node1:", "Nodefile asks for a crash"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if diff := cmp.Diff(before, traces(t)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	if _, err := Open(o.Root, o.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
}

func TestUpCancelled(t *testing.T) {
	needRoot(t)
	before := traces(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{Name: fmt.Sprintf("nnt-lab-%d", os.Getpid()), Root: filepath.Join(t.TempDir(), "labs"), Nodes: 2}
	o.Progress = func(s string) {
		if strings.HasPrefix(s, "node1") {
			cancel() // as Ctrl-C does
		}
	}
	if _, err := Up(ctx, o); err == nil {
		t.Fatal("the lab is up")
	}
	if diff := cmp.Diff(before, traces(t)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

// TestViewStart: the view is the child's alone.
func TestViewStart(t *testing.T) {
	needRoot(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.1 there\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	v := View{Netns: "/proc/self/ns/net", Hostname: "elsewhere", Binds: map[string]string{"/etc/hosts": hosts}, Env: []string{"SEEN=view"}}
	cmd := exec.Command("sh", "-c", "uname -n; cat /etc/hosts; echo $SEEN $KEPT")
	var out strings.Builder
	cmd.Stdout, cmd.Env = &out, append(os.Environ(), "SEEN=caller", "KEPT=caller")
	if err := v.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "elsewhere\n192.0.2.1 there\nview caller\n" {
		t.Errorf("%v, %q", err, out.String())
	}
	after, err := os.ReadFile("/etc/hosts")
	if name, _ := os.Hostname(); name == "elsewhere" || err != nil || !slices.Equal(before, after) {
		t.Errorf("the caller is %s now and sees %q, %v", name, after, err)
	}
	v.Env = []string{"PATH=/nowhere"}
	if err := v.Start(exec.Command("true")); err == nil || !strings.Contains(err.Error(), "find command: true") {
		t.Errorf("a program that is not in the view's PATH: %v", err)
	}
}
