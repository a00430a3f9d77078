package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong and say what to do about it",
		Long: `Run the checks of the daemon, or, when it does not run, those that need no
daemon. The exit status is 1 when a check fails.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks, err := c.client().Doctor(cmd.Context())
			var down *api.UnreachableError
			if errors.As(err, &down) {
				checks = append([]api.Check{{Name: "daemon", Status: "fail", Detail: down.Error()}},
					c.engine.DoctorOffline(cmd.Context())...)
			} else if err != nil {
				return err
			}
			if err := c.print(checks, func(w io.Writer) { doctorTable(w, checks) }); err != nil {
				return err
			}
			for _, k := range checks {
				if k.Status == "fail" {
					return statusError(exitError)
				}
			}
			return nil
		},
	}
}

func doctorTable(w io.Writer, checks []api.Check) {
	row(w, "CHECK", "RESULT", "")
	for _, k := range checks {
		result := k.Status
		if result == "fail" {
			result = "FAIL"
		}
		row(w, k.Name, result, k.Detail)
		if k.Fix != "" {
			fmt.Fprintf(w, "\t\tfix: %s\n", k.Fix)
		}
	}
}
