package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"nodenet/cni"
	"nodenet/config"
)

func (c *cli) cniCmd() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "cni",
		Short: "The CNI plugin for container runtimes",
		Long: `The CNI plugin for container runtimes. nodectl is the plugin itself when a
runtime calls it (CNI_COMMAND is set) or under the name nodenet.`,
	})
	cmd.AddCommand(c.cniInstallCmd())
	return cmd
}

func (c *cli) cniInstallCmd() *cobra.Command {
	var o cni.InstallOptions
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make the container runtimes of this machine use nodenet",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Socket = c.socketIfSet(cmd)
			done, err := c.engine.InstallCNI(o)
			if err != nil {
				return err
			}
			return c.print(done, func(w io.Writer) {
				for _, line := range done {
					fmt.Fprintln(w, line)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.ConfDir, "conf-dir", "/etc/cni/net.d", "directory of network configurations")
	f.StringVar(&o.BinDir, "bin-dir", "/opt/cni/bin", "directory of plugins")
	f.StringVar(&o.Network, "network", config.DefaultNetwork, "network that containers are attached to")
	f.StringVar(&o.Name, "cni-name", "nodenet", "name of the CNI network")
	f.BoolVar(&o.Force, "force", false, "overwrite files that are not nodenet's")
	cmd.MarkFlagDirname("conf-dir")
	cmd.MarkFlagDirname("bin-dir")
	return cmd
}
