package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) waitCmd() *cobra.Command {
	var converged bool
	var revision uint64
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until all nodes hold what this one holds",
		Long: `With --converged, wait until every node that is alive holds all records that
this node holds now. With --revision R, wait until this node's kernel holds its
revision R. Progress goes to standard error; the exit status is 1 when the time
was too short.`,
		Example: "  nodectl service add web --port 80 --select app=web && nodectl wait --converged",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !converged && revision == 0 {
				return usagef("wait: for what? say --converged, --revision, or both")
			}
			if timeout <= 0 || timeout > time.Hour {
				return usagef("--timeout %s: want more than 0 and up to 1h", timeout)
			}
			last := api.Progress{}
			said := ""
			err := c.client().Wait(cmd.Context(), converged, revision, timeout, func(p api.Progress) {
				last = p
				if line := progressLine(&p, converged); line != said && p.Error == "" {
					said = line
					fmt.Fprintln(c.err, line)
				}
			})
			if err != nil {
				return err
			}
			return c.print(last, func(io.Writer) {})
		},
	}
	cmd.Flags().BoolVar(&converged, "converged", false, "until every node that is alive holds what this one holds now")
	cmd.Flags().Uint64Var(&revision, "revision", 0, "until this node's kernel holds this revision")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return cmd
}

// progressLine says how far the cluster has come.
func progressLine(p *api.Progress, converged bool) string {
	var notes []string
	if len(p.Waiting) > 0 {
		more := ""
		if len(p.Waiting) > 3 {
			more = fmt.Sprintf(" and %d more", len(p.Waiting)-3)
		}
		notes = append(notes, "waiting for "+strings.Join(p.Waiting[:min(3, len(p.Waiting))], ", ")+more)
	}
	if len(p.Dead) > 0 {
		notes = append(notes, strings.Join(p.Dead, ", ")+" not alive: not waited for")
	}
	if !converged {
		return strings.Join(append([]string{fmt.Sprintf("applied revision %d", p.Applied)}, notes...), "; ")
	}
	share := 100
	if p.Nodes > 0 {
		share = 100 * p.Holding / p.Nodes
	}
	notes = append([]string{fmt.Sprintf("%d of %d", p.Holding, p.Nodes)}, notes...)
	return fmt.Sprintf("%d %% of nodes hold revision %d (%s)", share, p.Revision, strings.Join(notes, "; "))
}
