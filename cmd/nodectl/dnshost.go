package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/node"
)

func (c *cli) dnsHostSetupCmd() *cobra.Command {
	var o node.HostDNSOptions
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "host-setup",
		Short: "Let the host's own programs resolve cluster names",
		Long: `Let the host's own programs resolve cluster names. With systemd-resolved only the
cluster's zone and its reverse zones are sent to the node's resolver; where
programs read /etc/resolv.conf themselves, the node's resolver comes first in it.
Nothing is written with --dry-run; --undo takes back what this command did.`,
		Example: `  nodectl dns host-setup --dry-run
  nodectl dns host-setup --search default.svc.cluster.local
  nodectl dns host-setup --undo`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := c.engine.HostDNS(o)
			if err != nil {
				return err
			}
			if !dryRun {
				if err := p.Apply(); err != nil {
					return err
				}
			}
			return c.print(p, func(w io.Writer) { hostDNSPlan(w, p, dryRun) })
		},
	}
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "show what would be written, and write nothing")
	f.BoolVar(&o.Undo, "undo", false, "take back what an earlier host-setup wrote")
	f.StringSliceVar(&o.Search, "search", nil, "search domain of the host, e.g. default.svc.cluster.local")
	f.StringVarP(&o.ConfigFile, "config", "c", "", "Nodefile (default /etc/nodenet/Nodefile, if there is one)")
	cmd.MarkFlagFilename("config")
	return cmd
}

// hostDNSPlan prints each change as a diff of lines, and what is left to do.
func hostDNSPlan(w io.Writer, p *node.HostDNSPlan, dryRun bool) {
	if len(p.Changes) == 0 {
		fmt.Fprintf(w, "nothing to do: %s is set up already\n", p.Kind)
		return
	}
	done := map[bool]string{false: "written", true: "would be written"}
	gone := map[bool]string{false: "removed", true: "would be removed"}
	for _, ch := range p.Changes {
		if ch.Remove {
			fmt.Fprintf(w, "%s: %s\n", ch.Path, gone[dryRun])
		} else {
			fmt.Fprintf(w, "%s: %s\n", ch.Path, done[dryRun])
		}
		before, after := strings.SplitAfter(ch.Before, "\n"), strings.SplitAfter(ch.After, "\n")
		for _, line := range missingFrom(after, before) {
			fmt.Fprintf(w, "- %s\n", strings.TrimSuffix(line, "\n"))
		}
		for _, line := range missingFrom(before, after) {
			fmt.Fprintf(w, "+ %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if p.Then != "" {
		fmt.Fprintf(w, "then run: %s\n", p.Then)
	}
}

// missingFrom returns the lines of b that are not in a.
func missingFrom(a, b []string) (out []string) {
	there := map[string]int{}
	for _, l := range a {
		there[l]++
	}
	for _, l := range b {
		if there[l] > 0 {
			there[l]--
		} else if l != "" {
			out = append(out, l)
		}
	}
	return out
}
