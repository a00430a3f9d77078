package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nodenet/lab"
)

// labFlags are shared by the verbs of `nodectl lab`.
type labFlags struct{ name, root string }

func (f labFlags) open() (*lab.Lab, error) { return lab.Open(f.root, f.name) }

func (c *cli) labCmd() *cobra.Command {
	var f labFlags
	cmd := group(&cobra.Command{
		Use:   "lab",
		Short: "A cluster in network namespaces on this machine, to try and to test",
		Long: `A whole cluster on one machine: a LAN in network namespaces, one namespace a
node with a real daemon in it, and workloads attached to them. Nothing of the
machine's own network is touched.`,
		Example: `  nodectl lab up --nodes 3
  nodectl lab workload add node1 web1 --label app=web --port http=80 --serve 80
  nodectl lab exec node2 -- nodectl status
  nodectl lab cut node1 node2; nodectl lab status; nodectl lab heal
  nodectl lab down`,
	})
	name := os.Getenv("NODENET_LAB")
	if name == "" {
		name = "demo"
	}
	cmd.PersistentFlags().StringVar(&f.name, "name", name, "name of the lab (environment: NODENET_LAB)")
	cmd.PersistentFlags().StringVar(&f.root, "dir", lab.DefaultRoot, "directory that holds the labs' directories")
	cmd.AddCommand(c.labUpCmd(&f), c.labDownCmd(&f), c.labStatusCmd(&f), c.labExecCmd(&f), c.labLogsCmd(&f),
		c.labCutCmd(&f), c.labHealCmd(&f), c.labKillCmd(&f), c.labStartCmd(&f), c.labWorkloadCmd(&f),
		c.labDemoCmd(&f), c.labServeCmd(), c.labGetCmd(), c.labUpstreamCmd())
	return cmd
}

func (c *cli) labUpCmd(f *labFlags) *cobra.Command {
	var o lab.Options
	var file string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up and wait until its cluster has converged",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := readNodefile(&o, file); err != nil {
				return err
			}
			o.Name, o.Root = f.name, f.root
			o.Progress = func(s string) { fmt.Fprintln(c.err, s) }
			if _, err := lab.Up(cmd.Context(), o); err != nil {
				return err
			}
			return c.print(map[string]string{"name": f.name}, func(w io.Writer) {
				self := "nodectl"
				if exe, err := os.Executable(); err == nil {
					self = lab.ShellName(exe)
				}
				fmt.Fprintf(w, "lab %s is up: '%s lab status --name %s', '%s lab exec --name %s node1 -- nodectl status'\n", f.name, self, f.name, self, f.name)
			})
		},
	}
	labUpFlags(cmd, &o, &file)
	return cmd
}

func labUpFlags(cmd *cobra.Command, o *lab.Options, file *string) {
	fl := cmd.Flags()
	fl.IntVar(&o.Nodes, "nodes", 3, "number of nodes")
	fl.StringVar(&o.Overlay, "overlay", "vxlan", "way between the nodes: vxlan, routes, auto")
	fl.StringVar(file, "nodefile", "", "file with everything of the Nodefiles but the node and cluster blocks; {$NODENET_NODE} and {$NODENET_INDEX} differ per node")
	fl.StringVar(&o.Join, "join", lab.JoinSecret, "how nodes enter the cluster: secret or token")
	fl.DurationVar(&o.Timeout, "timeout", time.Minute, "how long the cluster may take to converge")
	cmd.MarkFlagFilename("nodefile")
}

func readNodefile(o *lab.Options, file string) error {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read --nodefile: %w", err)
	}
	o.Nodefile = string(b)
	return nil
}

func (c *cli) labDownCmd(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take a lab down: processes, namespaces, files; nothing stays",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.open()
			if errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintf(c.err, "there is no lab %s\n", f.name)
				return nil
			} else if err != nil {
				return err
			}
			return l.Down(cmd.Context())
		},
	}
}

func (c *cli) labExecCmd(f *labFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec NODE|WORKLOAD|outside|router -- COMMAND [ARG...]",
		Short: "Run a command as one of the lab's machines would",
		Long: `Run a command in the namespace of a node, a workload, the outside host or the
router, with that machine's resolv.conf and hosts. On a node, nodectl talks to
that node's daemon. The exit status is the command's.`,
		Example: `  nodectl lab exec node1 -- nodectl status
  nodectl lab exec web1 -- ping -c1 10.244.1.2`,
		Args: nargs(2, 1<<20, "NODE|WORKLOAD -- COMMAND"),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			v, err := l.View(args[0])
			if err != nil {
				return err
			}
			return lab.Enter(v, command(args[1:]))
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the first argument is the command's
	return cmd
}

// command drops the "--" that may stand before a command line.
func command(args []string) []string {
	if len(args) > 1 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func (c *cli) labLogsCmd(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "logs NODE",
		Short: "Print the log of a node's daemon",
		Args:  nargs(1, 1, "NODE"),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			nodes, err := l.Nodes()
			if err != nil {
				return err
			}
			for _, n := range nodes {
				if n.Name != args[0] {
					continue
				}
				log, err := os.Open(n.Log())
				if err != nil {
					return fmt.Errorf("read log of %s: %w", n.Name, err)
				}
				defer log.Close()
				_, err = io.Copy(c.out, log)
				return err
			}
			return fmt.Errorf("lab %s has no node %s", f.name, args[0])
		},
	}
}

func (c *cli) labStatusCmd(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show nodes, workloads, cuts, and what keeps the cluster from being whole",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			var s labStatus
			if s.Nodes, err = l.States(cmd.Context()); err != nil {
				return err
			}
			if s.Workloads, err = l.Workloads(); err != nil {
				return err
			}
			if s.Cuts, err = l.Cuts(); err != nil {
				return err
			}
			s.Name, s.Problems = l.Name(), lab.Problems(s.Nodes)
			return c.print(s, func(w io.Writer) { s.table(w) })
		},
	}
}

type labStatus struct {
	Name      string          `json:"name"`
	Nodes     []lab.NodeState `json:"nodes"`
	Workloads []*lab.Workload `json:"workloads"`
	Cuts      []lab.Cut       `json:"cuts"`
	Problems  []string        `json:"problems"`
}

func (s *labStatus) table(w io.Writer) {
	row(w, "NODE", "ADDRESS", "DAEMON", "PID", "POD CIDRS", "SOCKET")
	for _, n := range s.Nodes {
		daemon, pid, blocks := "running", "", ""
		if n.Running {
			pid = fmt.Sprint(n.Node.Proc.PID)
		} else if daemon = "stopped"; n.Node.Proc != (lab.Proc{}) {
			daemon = "CRASHED"
		}
		if n.Status != nil {
			var all []string
			for _, net := range n.Status.Networks {
				all = append(all, join(net.Blocks, " "))
			}
			blocks = strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), " ")
		}
		row(w, n.Node.Name, n.Node.Addr, daemon, pid, blocks, n.Node.Socket)
	}
	if len(s.Workloads) > 0 {
		fmt.Fprintln(w)
		row(w, "WORKLOAD", "NODE", "ADDRESS", "NAMESPACE OF THE KERNEL")
		for _, x := range s.Workloads {
			row(w, x.Ref(), x.Node, addrText(x.Addr), x.Netns)
		}
	}
	if len(s.Cuts)+len(s.Problems) > 0 {
		fmt.Fprintln(w)
	}
	for _, cut := range s.Cuts {
		if cut.To == "" {
			fmt.Fprintf(w, "cut: %s has its cable out\n", cut.From)
		} else {
			fmt.Fprintf(w, "cut: %s → %s\n", cut.From, cut.To)
		}
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "%s\n", p)
	}
}

func (c *cli) labCutCmd(f *labFlags) *cobra.Command {
	var oneWay bool
	cmd := &cobra.Command{
		Use:   "cut A [B]",
		Short: "Drop what two nodes send each other, or pull one node's cable out",
		Args:  nargs(1, 2, "A [B]"),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			args = append(args, "")
			if oneWay && args[1] == "" {
				return usagef("--one-way: from %s to whom?", args[0])
			}
			return l.Cut(args[0], args[1], oneWay)
		},
	}
	cmd.Flags().BoolVar(&oneWay, "one-way", false, "only what A sends to B")
	return cmd
}

func (c *cli) labHealCmd(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "heal [A [B]]",
		Short: "Undo cuts: between two nodes, of one node, or all",
		Args:  nargs(0, 2, "[A [B]]"),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			args = append(args, "", "")
			return l.Heal(args[0], args[1])
		},
	}
}

func (c *cli) labKillCmd(f *labFlags) *cobra.Command {
	var hard bool
	cmd := &cobra.Command{
		Use:   "kill NODE",
		Short: "End a node's daemon; its links and workloads stay",
		Args:  nargs(1, 1, "NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			sig := syscall.Signal(unix.SIGTERM)
			if hard {
				sig = unix.SIGKILL
			}
			return l.Kill(cmd.Context(), args[0], sig)
		},
	}
	cmd.Flags().BoolVarP(&hard, "kill", "9", false, "with SIGKILL, as a crash would")
	return cmd
}

func (c *cli) labStartCmd(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "start NODE",
		Short: "Start a node's daemon again and wait until the cluster has converged",
		Args:  nargs(1, 1, "NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			if err := l.Start(cmd.Context(), args[0]); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return l.WaitConverged(ctx)
		},
	}
}
