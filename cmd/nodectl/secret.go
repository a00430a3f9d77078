package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) secretCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Look at the cluster's secret and replace it",
		Long: `Look at the cluster's secret and replace it while everything runs. Secrets are
shown as fingerprints, which give nothing away.`,
	}
	cmd.AddCommand(c.secretStatusCmd(), c.secretRotateCmd())
	group(cmd)
	return cmd
}

func (c *cli) secretStatusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Ask all nodes which secrets they hold",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.client().Secret(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) { secretTable(w, &r) })
		},
	}
}

func (c *cli) secretRotateCmd() *cobra.Command {
	var q api.RotateRequest
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the cluster's secret while everything runs",
		Long: `Replace the cluster's secret while everything runs, in three steps:

  add     every node gets the new secret and accepts both
  use     every node uses the new one and still accepts the old one
  retire  the old one is removed everywhere

Each step begins when all nodes have done the one before. A node that does not
answer holds it up; --force goes on without it, and that node then needs the
new secret file or a token. Interrupt it whenever you like: run it again, on
this or another node, and it goes on. With --abort, drop a new secret that no
node uses yet. Progress goes to standard error.`,
		Example: "  nodectl peers && nodectl secret rotate   # is everybody there one of yours?",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout < 0 || timeout > time.Hour {
				return usagef("--timeout %s: want up to 1h, or 0 for none", timeout)
			}
			q.TimeoutSeconds = int64((timeout + time.Second - 1) / time.Second)
			p := &rotatePrinter{w: c.err, said: map[string]string{}}
			r, err := c.client().Rotate(cmd.Context(), q, p.show)
			if err != nil {
				return err
			}
			return c.print(r, func(w io.Writer) {
				switch {
				case q.Abort:
					fmt.Fprintln(w, "aborted: no node holds a new secret")
				default:
					fmt.Fprintf(w, "rotated: all nodes that answered hold secret %s only\n", r.From)
				}
				for _, n := range r.Nodes {
					if !n.Answered {
						fmt.Fprintf(w, "%s was not reached: it comes back by itself if it got the new secret before, else copy the secret file to it or run 'nodectl join TOKEN' there\n", n.Name)
					}
				}
			})
		},
	}
	cmd.Flags().BoolVar(&q.Force, "force", false, "go on without nodes that have not answered for 5s")
	cmd.Flags().BoolVar(&q.Abort, "abort", false, "drop a new secret that no node uses yet")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up waiting after so long; nothing is lost (default: wait for ever)")
	return cmd
}

// rotatePrinter says what changed since the last look.
type rotatePrinter struct {
	w    io.Writer
	said map[string]string // by node; "" for the step, "?" for what is waited for
}

var stepTitles = map[string]string{
	"add":    "step 1 of 3, add: every node gets the new secret",
	"use":    "step 2 of 3, use: every node switches to it",
	"retire": "step 3 of 3, retire: the old secret is removed",
	"done":   "done",
}

func (p *rotatePrinter) say(key, line string) {
	if p.said[key] == line {
		return
	}
	p.said[key] = line
	if line != "" {
		fmt.Fprintln(p.w, line)
	}
}

func (p *rotatePrinter) show(r api.Rotation) {
	if r.To != "" {
		p.said["to"] = r.To
	}
	if t := stepTitles[r.Step]; t != "" {
		p.say("", t)
	}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if r.Step == "none" {
			continue
		}
		p.say(n.Name, "  "+n.Name+" "+secretWords(n, p.said["to"]))
		if n.Note != "" {
			p.say(n.Name+" note", "  WARNING: "+n.Name+": "+n.Note)
		}
	}
	wait := ""
	if len(r.Waiting) > 0 && r.Error == "" {
		wait = "  waiting: " + strings.Join(r.Waiting, "; ")
	}
	p.say("?", wait)
	if len(r.Skipped) > 0 {
		p.say("skipped", "  WARNING: going on without "+strings.Join(r.Skipped, ", ")+": copy the secret file there afterwards, or run 'nodectl join TOKEN'")
	}
}

// secretWords says how far a node is on the way to a secret.
func secretWords(n *api.NodeSecrets, to string) string {
	switch {
	case !n.Answered:
		return "does not answer"
	case to == "":
		return "uses " + short(n.Primary)
	case n.Primary == to && n.Previous == "":
		return "uses " + short(to) + ", the old one is removed"
	case n.Primary == to:
		return "uses " + short(to) + ", still accepts " + short(n.Previous)
	case n.Next == to:
		return "holds " + short(to) + ", still uses " + short(n.Primary)
	}
	return "does not hold " + short(to) + " yet"
}

// short is enough of a fingerprint to tell two apart.
func short(print string) string { return print[:min(8, len(print))] }

func secretTable(w io.Writer, r *api.Rotation) {
	switch r.Step {
	case "none":
		fmt.Fprintln(w, "no rotation is under way")
	default:
		fmt.Fprintf(w, "a rotation to %s is under way, step %s: 'nodectl secret rotate' goes on with it\n", short(r.To), r.Step)
	}
	for _, s := range r.Waiting {
		fmt.Fprintln(w, "waiting: "+s)
	}
	fmt.Fprintln(w)
	row(w, "NODE", "STATE", "USES", "NEXT", "PREVIOUS", "NOTE")
	for _, n := range r.Nodes {
		row(w, n.Name, n.State, short(n.Primary), short(n.Next), short(n.Previous), strings.TrimSpace(n.Note+" "+n.Error))
	}
}
