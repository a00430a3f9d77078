package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) firewallCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "firewall", Short: "Live beside Docker's, ufw's or firewalld's rules"})
	cmd.AddCommand(c.firewallIntegrateCmd(), c.firewallRemoveCmd(), c.firewallStatusCmd())
	return cmd
}

func (c *cli) firewallIntegrateCmd() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "integrate docker|ufw|firewalld...",
		Short: "Keep rules in another firewall's chain that let workloads' packets pass",
		Long: `Docker, ufw and firewalld drop forwarded packets that they do not know, and no
rule in a table of nodenet's can undo that. This puts accept rules for our
devices, marked "nodenet", into the chain that each has for such rules: Docker's
DOCKER-USER, ufw's ufw-before-forward, firewalld's filter_FORWARD. The daemon
puts them back when the other firewall makes its rules anew. 'firewall remove'
and 'cleanup' take them away. What the rules accept is still subject to
nodenet's own.`,
		Example: `  nodectl firewall integrate docker --dry-run
  nodectl firewall integrate ufw`,
		Args: nargs(1, 3, "docker|ufw|firewalld"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changeFirewalls(cmd, api.FirewallRequest{Names: args, DryRun: dry})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print what would be done")
	return cmd
}

func (c *cli) firewallRemoveCmd() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:     "remove [docker|ufw|firewalld...]",
		Aliases: []string{"rm"},
		Short:   "Take the rules away again; without names, all of them",
		Args:    nargs(0, 3, "[docker|ufw|firewalld]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changeFirewalls(cmd, api.FirewallRequest{Names: args, Remove: true, DryRun: dry})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print what would be done")
	return cmd
}

func (c *cli) changeFirewalls(cmd *cobra.Command, r api.FirewallRequest) error {
	done, err := c.client().ChangeFirewalls(cmd.Context(), r)
	if err != nil {
		return err
	}
	return c.print(done, func(w io.Writer) {
		for _, line := range done.Operations {
			fmt.Fprintln(w, line)
		}
		if len(done.Operations) == 0 {
			fmt.Fprintln(c.err, "nothing to do")
		}
	})
}

func (c *cli) firewallStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the firewalls that nodenet knows, and its rules in them",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Firewalls(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { firewallTable(w, list) })
		},
	}
}

func firewallTable(w io.Writer, list []api.Firewall) {
	row(w, "FIREWALL", "ON THIS HOST", "INTEGRATED", "RULES")
	yes := map[bool]string{true: "yes", false: "no"}
	for _, f := range list {
		first := ""
		if len(f.Rules) > 0 {
			first = f.Rules[0]
		}
		row(w, f.Name, yes[f.Found], yes[f.On], first)
		for i := 1; i < len(f.Rules); i++ {
			row(w, "", "", "", f.Rules[i])
		}
		if f.Error != "" {
			fmt.Fprintf(w, "\t\t\t%s\n", f.Error)
		}
	}
}
