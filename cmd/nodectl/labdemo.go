package main

import (
	"github.com/spf13/cobra"

	"nodenet/lab"
)

// labDemoCmd is `make demo`.
func (c *cli) labDemoCmd(f *labFlags) *cobra.Command {
	var o lab.Options
	var file string
	var keep bool
	cmd := &cobra.Command{
		Use:    "demo",
		Short:  "Bring a lab up and show what nodenet does, with real output",
		Hidden: true,
		Args:   noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := readNodefile(&o, file); err != nil {
				return err
			}
			o.Name, o.Root = f.name, f.root
			return lab.Demo(cmd.Context(), c.out, o, keep)
		},
	}
	labUpFlags(cmd, &o, &file)
	cmd.Flags().BoolVar(&keep, "keep", true, "leave the lab up afterwards")
	return cmd
}
