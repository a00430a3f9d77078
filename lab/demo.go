package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/api"
)

// Demo brings a lab up and shows what nodenet does: every step prints the
// command that a person would type, runs exactly that, and prints what it
// answers. It is for people: use Up in programs. The lab stays up when keep is
// set, also after an error, so that one can look around.
func Demo(ctx context.Context, w io.Writer, o Options, keep bool) (err error) {
	d := &demo{ctx: ctx, w: w, bold: terminal(w)}
	o.Progress = func(s string) { fmt.Fprintln(w, s) }
	if o.Nodes < 3 {
		return fmt.Errorf("the demonstration needs 3 nodes, not %d", o.Nodes)
	}
	if err := o.setDefaults(); err != nil {
		return err
	}
	d.name, d.root, d.binary = o.Name, o.Root, o.Binary
	start := time.Now()
	d.title("A LAN in network namespaces, %d nodes, a daemon in each", o.Nodes)
	d.prompt([]string{"lab", "up", "--nodes", fmt.Sprint(o.Nodes)})
	if d.lab, err = Up(ctx, o); err != nil {
		return err
	}
	if !keep {
		defer func() {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			if e := d.lab.Down(clean); err == nil {
				err = e
			}
		}()
	}
	for _, step := range []func(*demo) error{
		demoStatus, demoWorkloads, demoRoutes, demoService, demoOutside, demoCrash,
	} {
		if err := step(d); err != nil {
			return fmt.Errorf("%w\nThe lab is still up: look around with '%s', take it down with '%s'",
				err, d.text([]string{"lab", "status"}), d.text([]string{"lab", "down"}))
		}
	}
	d.title("That took %.0f seconds", time.Since(start).Seconds())
	if keep {
		fmt.Fprintf(w, "The lab stays up. Some things to try:\n\n")
		for _, argv := range [][]string{
			{"lab", "status"},
			{"lab", "exec", "node1", "--", "bash"},
			{"lab", "exec", "client", "--", "nodectl", "lab", "get", "-n", "100", "http://web/"},
			{"lab", "exec", "node1", "--", "nodectl", "doctor"},
			{"lab", "cut", "node1", "node2"},
			{"lab", "heal"},
			{"lab", "down"},
		} {
			fmt.Fprintf(w, "    %s\n", d.text(argv))
		}
	}
	return nil
}

type demo struct {
	ctx                context.Context // of the one call of Demo
	w                  io.Writer
	bold               bool
	name, root, binary string
	lab                *Lab
}

// terminal reports whether w is one: only there escape sequences make sense.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (d *demo) title(format string, a ...any) {
	s := fmt.Sprintf(format, a...)
	if d.bold {
		s = "\x1b[1;36m" + s + "\x1b[0m"
	}
	fmt.Fprintf(d.w, "\n%s\n\n", s)
}

// args completes a command line for a lab that is not the usual one.
func (d *demo) args(argv []string) []string {
	var flags []string
	if d.name != "demo" {
		flags = append(flags, "--name", d.name)
	}
	if d.root != DefaultRoot {
		flags = append(flags, "--dir", d.root)
	}
	return slices.Concat(argv[:2], flags, argv[2:])
}

// text is what a person would type here.
func (d *demo) text(argv []string) string {
	return ShellName(d.binary) + " " + strings.Join(d.args(argv), " ")
}

// ShellName is how a shell in the working directory finds a program: by its
// name when PATH leads to it, else by the shorter of its two paths.
func ShellName(binary string) string {
	name := filepath.Base(binary)
	if found, err := exec.LookPath(name); err == nil && found == binary {
		return name
	}
	wd, err := os.Getwd()
	if err != nil {
		return binary
	}
	if rel, err := filepath.Rel(wd, binary); err == nil && len(rel)+2 < len(binary) {
		return "./" + rel
	}
	return binary
}

func (d *demo) prompt(argv []string) {
	s := "# " + d.text(argv)
	if d.bold {
		s = "\x1b[1m" + s + "\x1b[0m"
	}
	fmt.Fprintln(d.w, s)
}

// run shows a command, runs it and shows its output.
func (d *demo) run(argv ...string) error {
	d.prompt(argv)
	cmd := exec.CommandContext(d.ctx, d.binary, d.args(argv)...)
	cmd.Stdout, cmd.Stderr = d.w, d.w
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", d.text(argv), err)
	}
	return nil
}

func (d *demo) runAll(commands ...[]string) error {
	for _, argv := range commands {
		if err := d.run(argv...); err != nil {
			return err
		}
	}
	return nil
}

// on returns the command line that runs a command somewhere in the lab.
func on(where string, argv ...string) []string {
	return append([]string{"lab", "exec", where, "--"}, argv...)
}

// until waits for a node's status to fulfil a condition, and says how long
// that took.
func (d *demo) until(node int, what string, cond func(api.Status) bool) error {
	c := d.lab.Node(node).Client()
	defer c.Close()
	start := time.Now()
	err := poll(d.ctx, 45*time.Second, func() error {
		st, err := c.Status(d.ctx)
		if err == nil && !cond(st) {
			err = fmt.Errorf("%s: not yet", what)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait on %s: %w", nodeName(node), err)
	}
	fmt.Fprintf(d.w, "(%s after %.1f s)\n", what, time.Since(start).Seconds())
	return nil
}

// ready is the condition that a service has so many backends in use.
func ready(name, namespace string, n int) func(api.Status) bool {
	return func(st api.Status) bool {
		return slices.ContainsFunc(st.Services, func(s api.Service) bool {
			return s.Name == name && s.Namespace == namespace && s.Ready == n
		})
	}
}

func demoStatus(d *demo) error {
	d.title("They have found each other: addresses, ways, rules and names are in place")
	return d.run(on("node1", "nodectl", "status")...)
}

func demoWorkloads(d *demo) error {
	d.title("Two web servers on two nodes and a client on the third: namespaces with one interface each")
	return d.runAll(
		[]string{"lab", "workload", "add", "node1", "web1", "--namespace", "apps", "--label", "app=web", "--port", "http=80", "--serve", "80"},
		[]string{"lab", "workload", "add", "node2", "web2", "--namespace", "apps", "--label", "app=web", "--port", "http=80", "--serve", "80", "--publish", "8080:80"},
		[]string{"lab", "workload", "add", "node3", "client", "--namespace", "apps"},
		on("node3", "nodectl", "endpoints"),
	)
}

func demoRoutes(d *demo) error {
	d.title("Every pod CIDR is routed to its node, and a connection keeps its addresses: no NAT on the way")
	if err := d.run(on("node3", "nodectl", "routes")...); err != nil {
		return err
	}
	web1, err := d.addr("web1.apps")
	if err != nil {
		return err
	}
	return d.run(on("client", "nodectl", "lab", "get", "http://"+web1+"/")...)
}

func (d *demo) addr(ref string) (string, error) {
	list, err := d.lab.Workloads()
	if err != nil {
		return "", err
	}
	for _, w := range list {
		if w.Ref() == ref {
			return w.Addr.String(), nil
		}
	}
	return "", fmt.Errorf("there is no workload %s", ref)
}

func demoService(d *demo) error {
	d.title("One service, made once, known everywhere: a name, an address, two backends")
	if err := d.run(on("node1", "nodectl", "service", "add", "web.apps", "--port", "80", "--select", "app=web", "--node-port", "30080")...); err != nil {
		return err
	}
	if err := d.until(3, "node3 balances it", ready("web", "apps", 2)); err != nil {
		return err
	}
	return d.runAll(
		on("client", "cat", "/etc/resolv.conf"),
		on("client", "nodectl", "lab", "get", "http://web/"),
		on("client", "nodectl", "lab", "get", "-n", "30", "http://web.apps.svc.cluster.local/"),
	)
}

func demoOutside(d *demo) error {
	d.title("From outside the cluster: a node port on a node that has no backend, and a published port")
	if err := d.runAll(
		on("outside", "nodectl", "lab", "get", "-n", "10", "http://192.168.1.13:30080/"),
		on("outside", "nodectl", "lab", "get", "http://192.168.1.12:8080/"),
	); err != nil {
		return err
	}
	d.title("To the outside: the name is forwarded, the connection leaves with the node's address")
	return d.run(on("client", "nodectl", "lab", "get", "http://example.com/")...)
}

func demoCrash(d *demo) error {
	d.title("node2's daemon crashes. Its kernel goes on: web2 stays reachable")
	web2, err := d.addr("web2.apps")
	if err != nil {
		return err
	}
	if err := d.runAll(
		[]string{"lab", "kill", "-9", "node2"},
		on("client", "nodectl", "lab", "get", "http://"+web2+"/"),
	); err != nil {
		return err
	}
	d.title("The others notice, and send nothing new there")
	if err := d.until(3, "node2 is out of the service", ready("web", "apps", 1)); err != nil {
		return err
	}
	if err := d.runAll(
		on("node3", "nodectl", "status"),
		on("client", "nodectl", "lab", "get", "-n", "10", "http://web/"),
	); err != nil {
		return err
	}
	d.title("node2 comes back, takes over what its kernel holds, and is used again")
	if err := d.run("lab", "start", "node2"); err != nil {
		return err
	}
	if err := d.until(3, "node2 is in the service", ready("web", "apps", 2)); err != nil {
		return err
	}
	return d.runAll(
		on("client", "nodectl", "lab", "get", "-n", "30", "http://web/"),
		[]string{"lab", "status"},
	)
}
