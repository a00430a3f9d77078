package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"nodenet/node"
)

func (c *cli) cleanupCmd() *cobra.Command {
	var o node.CleanupOptions
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from the kernel what nodenet put there, and nothing else",
		Long: `Remove nodenet's own links, routes (protocol 78) and nftables tables. Saved
state stays: the node comes back as the same one. Stop the daemon first.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if st, err := c.client().Status(cmd.Context()); err == nil {
				return fmt.Errorf("the daemon of %s is running and would put everything back: stop it first (systemctl stop nodenet)", st.Node)
			}
			done, err := c.engine.Cleanup(cmd.Context(), o)
			if done == nil {
				done = []string{}
			}
			if perr := c.print(done, func(w io.Writer) {
				for _, line := range done {
					fmt.Fprintln(w, line)
				}
				if len(done) == 0 && err == nil {
					fmt.Fprintln(c.err, "nothing to remove")
				}
			}); perr != nil && err == nil {
				err = perr
			}
			return err
		},
	}
	configFlags(cmd, &o.ConfigFile, &o.StateDir)
	return cmd
}
