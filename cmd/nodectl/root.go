package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"nodenet/api"
	"nodenet/config"
	"nodenet/node"
)

// Exit statuses. A command run by `lab exec` passes its own on.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
	// exitLeft is run's alone: the node has left its cluster, and starting it
	// again changes nothing (RestartPreventExitStatus in the unit).
	exitLeft = 3
	// exitClone is run's alone: another machine runs on a copy of this one's
	// disk. It is a failure, but starting again changes nothing.
	exitClone = 4
)

// envSocket names the control socket where --socket does not.
const envSocket = "NODENET_SOCKET"

// cli is one invocation: its streams, its global flags and what it calls.
type cli struct {
	in       io.Reader
	out, err io.Writer
	engine   engine

	socket string
	output string // table or json
}

// usageError is a mistake in how the command was called: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// statusError ends the program with a status and no message of its own: the
// command has already printed what there is to say.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// execute runs one command line and returns the exit status.
func (c *cli) execute(ctx context.Context, args []string) int {
	root := newRoot(c)
	root.SetArgs(args)
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var status statusError
	if errors.As(err, &status) {
		return int(status)
	}
	fmt.Fprintf(c.err, "nodectl: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(c.err, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return exitUsage
	}
	if errors.Is(err, node.ErrLeft) {
		return exitLeft
	}
	if errors.Is(err, node.ErrClone) {
		return exitClone
	}
	return exitError
}

func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "nodectl",
		Short: "Addresses, names, routes and load-balanced services for containers on plain nodes",
		Long: `nodectl gives containers, VMs and plain processes on Linux nodes what a cluster
network gives pods: an address, a name, a route to every other node, a
load-balanced service address, published ports. Nodes find each other by
gossip; there is no central server.

Try it in network namespaces on this machine:  nodectl lab up --nodes 3`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return usagef("--output %s: want table or json", c.output)
			}
			return nil
		},
	}
	socket := os.Getenv(envSocket)
	if socket == "" {
		socket = config.DefaultSocket
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", socket, "control socket of the daemon (environment: "+envSocket+")")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "output format: table or json")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "The node:"},
		&cobra.Group{ID: "cluster", Title: "The cluster:"},
		&cobra.Group{ID: "workload", Title: "Workloads and services:"},
		&cobra.Group{ID: "look", Title: "Looking at things:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add("node", c.runCmd(), c.checkCmd(), c.cleanupCmd(), c.cniCmd(), c.labCmd())
	add("cluster", c.initCmd(), c.tokenCmd(), c.joinCmd(), c.leaveCmd(), c.nodeCmd(), c.secretCmd(), c.snapshotCmd(), c.waitCmd())
	add("workload", c.attachCmd(), c.detachCmd(), c.serviceCmd(), c.publishCmd(), c.policyCmd(), c.nameCmd())
	add("look", c.statusCmd(), c.doctorCmd(), c.peersCmd(), c.conflictsCmd(), c.ipamCmd(), c.lbCmd(), c.firewallCmd(), c.endpointsCmd(), c.routesCmd(), c.leaseCmd(), c.dnsCmd())
	root.AddCommand(c.versionCmd(), c.manCmd())
	group(root)
	return root
}

// group makes a command that only has subcommands say so: called without one
// it prints its help as a usage error, called with an unknown one it names
// what comes near.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			cmd.SetOut(cmd.ErrOrStderr())
			cmd.Help()
			return statusError(exitUsage)
		}
		msg := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if cmd.SuggestionsMinimumDistance <= 0 {
			cmd.SuggestionsMinimumDistance = 2
		}
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			msg += fmt.Sprintf("; did you mean %s?", strings.Join(s, " or "))
		}
		return usageError{errors.New(msg)}
	}
	return cmd
}

// nargs is a cobra argument check whose failure is a usage error: between lo
// and hi arguments; what names them for the message.
func nargs(lo, hi int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < lo:
			return usagef("%s: missing argument: %s", cmd.CommandPath(), what)
		case len(args) > hi && what == "":
			return usagef("%s takes no arguments, got %q", cmd.CommandPath(), args)
		case len(args) > hi:
			return usagef("%s: too many arguments: want %s, got %q", cmd.CommandPath(), what, args)
		}
		return nil
	}
}

func noArgs() cobra.PositionalArgs { return nargs(0, 0, "") }

func (c *cli) client() *api.Client { return api.NewClient(c.socket) }

// print writes v as JSON, or calls table with a writer that aligns columns.
func (c *cli) print(v any, table func(w io.Writer)) error {
	if c.output == "json" {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return columns(c.out, table)
}

// columns calls fn with a writer on which tabs become aligned columns.
func columns(w io.Writer, fn func(w io.Writer)) error {
	var buf strings.Builder
	tw := tabwriter.NewWriter(&buf, 0, 8, 2, ' ', 0)
	fn(tw)
	if err := tw.Flush(); err != nil {
		return err
	}
	// A last empty cell leaves blanks at the end of its line.
	for line := range strings.Lines(buf.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// row writes one line of cells; an empty cell shows as "-".
func row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		s := fmt.Sprint(cell)
		if s == "" && i < len(cells)-1 {
			s = "-"
		}
		if i > 0 {
			io.WriteString(w, "\t")
		}
		io.WriteString(w, s)
	}
	io.WriteString(w, "\n")
}
