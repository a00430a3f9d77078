package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) conflictsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "conflicts",
		Short: "List what records disagree on, which counts and what to do",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Conflicts(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(c.err, "no conflicts")
					return
				}
				conflictList(w, list)
			})
		},
	}
}

func conflictList(w io.Writer, list []api.Conflict) {
	for i, x := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, x.What)
		fmt.Fprintf(w, "  counts:\t%s\n", strings.TrimSpace(x.Winner+" "+string(x.WinnerValue)))
		fmt.Fprintf(w, "  not:\t%s\n", strings.TrimSpace(x.Loser+" "+string(x.LoserValue)))
		fmt.Fprintf(w, "  why:\t%s\n", x.Detail)
	}
}
