package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) nodeCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "node", Short: "Deal with nodes that are gone"})
	cmd.AddCommand(c.forgetCmd())
	return cmd
}

func (c *cli) forgetCmd() *cobra.Command {
	var force bool
	var quarantine time.Duration
	cmd := &cobra.Command{
		Use:   "forget NAME|ID",
		Short: "Take over the address space of a node that is gone for good",
		Long: `Take over the address space of a node that is gone for good: its disk is lost,
its machine is scrapped. Its routes, names and endpoints go away; its ranges
become this node's, and rest for a while before anything in them is given out.

More than half of the known nodes must agree that it is not there and know the
same ranges as this node; --force does without them. A node that runs, however
cut off, must not be forgotten: it goes on giving out its addresses. Should it
come back all the same, it gives way: it closes its blocks and drains their
endpoints.`,
		Example: "  nodectl node forget node3",
		Args:    nargs(1, 1, "NAME or ID (see 'nodectl peers')"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("quarantine") && quarantine < time.Second {
				return usagef("--quarantine %s: want at least 1s", quarantine)
			}
			if force {
				fmt.Fprintf(c.err, "WARNING: forgetting %s without asking for a majority. If it still runs anywhere, its addresses will be given out twice.\n", args[0])
			}
			f, err := c.client().Forget(cmd.Context(), api.ForgetRequest{Node: args[0], Force: force, QuarantineSeconds: int64(quarantine / time.Second)})
			if err != nil {
				return err
			}
			for _, s := range f.Warnings {
				fmt.Fprintln(c.err, "WARNING: "+s)
			}
			return c.print(f, func(w io.Writer) { forgottenText(w, &f, time.Now()) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "without the consent of a majority: dangerous")
	cmd.Flags().DurationVar(&quarantine, "quarantine", 0, "how long its space rests (default 10m, or its DHCP lease time if longer)")
	return cmd
}

func forgottenText(w io.Writer, f *api.Forgotten, now time.Time) {
	fmt.Fprintf(w, "forgot\t%s (%s)\n", f.Node, f.ID)
	fmt.Fprintf(w, "agreed\t%s: %d of %d nodes\n", strings.Join(f.Agreed, ", "), len(f.Agreed), f.Known)
	for i, s := range f.Ranges {
		what := "taken over"
		if i > 0 {
			what = ""
		}
		fmt.Fprintf(w, "%s\t%s\n", what, s)
	}
	if len(f.Ranges) == 0 {
		fmt.Fprintln(w, "taken over\tnothing: it owned no space")
	}
	if f.Quarantine > now.Unix() {
		fmt.Fprintf(w, "rests\tfor %s; 'nodectl ipam' shows it\n", time.Unix(f.Quarantine, 0).Sub(now).Round(time.Second))
	}
}
