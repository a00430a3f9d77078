package scenario

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Workload is a network namespace that was made with `ip netns add` and
// attached with `nodectl attach`, as a person does it. The scenario detaches
// and removes it at its end.
type Workload struct {
	Name string // of the namespace, and in DNS unless the flags say otherwise
	Node string
	Addr string // without the prefix length; empty without an address

	s *Scenario
}

// Workload types
//
//	machine# ip netns add NAME
//	nodeN#   nodectl attach --netns NAME FLAGS
//
// and returns the result. flags may be empty.
func (s *Scenario) Workload(node int, name, flags string) *Workload {
	s.t.Helper()
	s.Netns(name)
	return s.Attach(node, name, flags)
}

// Netns types `ip netns add NAME`; the scenario removes the namespace at its end.
func (s *Scenario) Netns(name string) {
	s.t.Helper()
	s.Run(Machine, "ip netns add "+name)
	s.workload = append(s.workload, &Workload{Name: name, s: s})
}

// Attach types `nodectl attach` for a namespace that is there.
func (s *Scenario) Attach(node int, name, flags string) *Workload {
	s.t.Helper()
	w := &Workload{Name: name, Node: fmt.Sprintf("node%d", node), s: s}
	out := s.Run(w.Node, strings.TrimSpace("nodectl attach --netns "+name+" "+flags))
	if addr, _, ok := strings.Cut(strings.TrimSpace(out), "/"); ok {
		w.Addr = addr
	}
	for i, old := range s.workload {
		if old.Name == name {
			s.workload[i] = w
			return w
		}
	}
	s.workload = append(s.workload, w)
	return w
}

// Run types `ip netns exec NAME CMDLINE` on the machine: see Scenario.Run.
func (w *Workload) Run(cmdline string) string {
	w.s.t.Helper()
	return w.s.Run(Machine, w.exec(cmdline))
}

// Try is Run for commands that may or must fail.
func (w *Workload) Try(cmdline string) (string, error) {
	w.s.t.Helper()
	return w.s.Try(Machine, w.exec(cmdline))
}

// Fail is Run for a command that must fail.
func (w *Workload) Fail(cmdline string) string {
	w.s.t.Helper()
	return w.s.Fail(Machine, w.exec(cmdline))
}

// Exec is Try without a trace on the page.
func (w *Workload) Exec(cmdline string) (string, error) {
	w.s.t.Helper()
	return w.s.Exec(Machine, w.exec(cmdline))
}

// Start is Scenario.Start within the workload.
func (w *Workload) Start(cmdline string) *Process {
	w.s.t.Helper()
	return w.s.Start(Machine, w.exec(cmdline))
}

// Serve starts a small web server in the workload, which answers each request
// with the workload's name and the address that it was asked from, and waits
// until it listens.
func (w *Workload) Serve(port int) *Process {
	w.s.t.Helper()
	p := w.Start(fmt.Sprintf("nodectl lab serve --name %s --port %d", w.Name, port))
	w.s.listening(port, w.Exec)
	return p
}

// Serve is Workload.Serve at another place of the lab.
func (s *Scenario) Serve(where, name string, port int) *Process {
	s.t.Helper()
	p := s.Start(where, fmt.Sprintf("nodectl lab serve --name %s --port %d", name, port))
	s.listening(port, func(cmdline string) (string, error) { return s.Exec(where, cmdline) })
	return p
}

func (s *Scenario) listening(port int, exec func(string) (string, error)) {
	s.t.Helper()
	s.Eventually(fmt.Sprintf("a server listens on port %d", port), 10*time.Second, func() error {
		out, err := exec(fmt.Sprintf("ss -Hltn sport = :%d", port))
		if err == nil && !strings.Contains(out, "LISTEN") {
			err = fmt.Errorf("ss lists no such socket: %s", out)
		}
		return err
	})
}

// Host types what plugs one more machine into the lab's LAN: a namespace that
// nodenet knows nothing about, with an address such as 192.168.1.3 and the
// router as its gateway. It has no node.
func (s *Scenario) Host(name, addr string) *Workload {
	s.t.Helper()
	s.Netns(name)
	s.Shell(Machine, strings.NewReplacer("NAME", name, "LAN", s.name+"-lan", "ADDR", addr).Replace(`
ip link add eth0 netns NAME type veth peer name NAME netns LAN
ip -n LAN link set NAME master lan0 up
ip -n NAME address add ADDR/24 dev eth0
ip -n NAME link set lo up
ip -n NAME link set eth0 up
ip -n NAME route add default via 192.168.1.1`))
	w := s.workload[len(s.workload)-1]
	w.Addr = addr
	return w
}

// Detach types `nodectl detach`, where a node has the workload, and `ip netns del`.
func (w *Workload) Detach() {
	w.s.t.Helper()
	if w.Node != "" {
		w.s.Run(w.Node, "nodectl detach "+w.Name)
	}
	w.s.Run(Machine, "ip netns del "+w.Name)
	w.forget()
}

func (w *Workload) forget() {
	for i, o := range w.s.workload {
		if o == w {
			w.s.workload = append(w.s.workload[:i:i], w.s.workload[i+1:]...)
			return
		}
	}
}

// remove is Detach at the end of a scenario, when the daemon may be gone.
func (w *Workload) remove() {
	exec.Command("ip", "netns", "del", w.Name).Run()
	exec.Command("rm", "-rf", filepath.Join(netnsEtcDir, w.Name)).Run()
}

func (w *Workload) exec(cmdline string) string { return "ip netns exec " + w.Name + " " + cmdline }
