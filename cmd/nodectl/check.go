package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"nodenet/config"
	"nodenet/node"
)

func (c *cli) checkCmd() *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a Nodefile, all mistakes at once",
		Args:  nargs(0, 1, "FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file := config.DefaultFile
			if len(args) > 0 {
				file = args[0]
			}
			cfg, notices, err := c.engine.Check(node.CheckOptions{File: file})
			for _, n := range notices {
				fmt.Fprintf(c.err, "notice: %s\n", n)
			}
			if err != nil {
				return fmt.Errorf("%s is not valid:\n%w", file, err)
			}
			switch {
			case c.output == "json":
				enc := json.NewEncoder(c.out)
				enc.SetIndent("", "  ")
				return enc.Encode(cfg)
			case show:
				return cfg.Print(c.out)
			}
			_, err = fmt.Fprintf(c.out, "%s is valid: %s, %s, %s, %s\n", file,
				count(len(cfg.Networks), "network"), count(len(cfg.Service), "service"),
				count(len(cfg.Publishes), "published port"), count(len(cfg.Servers), "DNS server block"))
			return err
		},
	}
	cmd.Flags().BoolVar(&show, "print", false, "print the configuration with every default filled in")
	return cmd
}
