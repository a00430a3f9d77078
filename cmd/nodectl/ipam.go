package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) ipamCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "Show who owns which part of the networks, VIPs and node ports",
		Long: `Show the ring of each network, of the service VIPs and of the node ports: who
owns which part, what is opened and used in it, what rests after a takeover
and what more than one node claims. VIPs and node ports change hands one by one:
of those a node's parts are added up, unless --all is given.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Rings(cmd.Context())
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.print(list, nil)
			}
			return writeRings(c.out, list, all, time.Now())
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every part of every range")
	cmd.AddCommand(c.explainCmd())
	return cmd
}

func writeRings(w io.Writer, list []api.Ring, all bool, now time.Time) error {
	for i, r := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, ringTitle(&r))
		if r.Missing {
			fmt.Fprintln(w, "no ring yet: this node has not heard who owns it")
			continue
		}
		if r.Block == 0 && !all {
			r.Parts = byOwner(r.Parts)
		}
		if err := columns(w, func(w io.Writer) { ringTable(w, &r, now) }); err != nil {
			return err
		}
		for _, id := range r.Foreign {
			fmt.Fprintf(w, "ring %s of another cluster has this name: ignored; a node joined with a state directory that was not empty\n", id)
		}
	}
	return nil
}

// byOwner adds up the parts of each owner that nothing else tells apart.
func byOwner(parts []api.RingPart) []api.RingPart {
	var out []api.RingPart
	at, n := map[string]int{}, map[string]int{}
	for _, p := range parts {
		key := fmt.Sprint(p.OwnerID, p.Quarantine, p.Contested)
		i, ok := at[key]
		if n[key]++; !ok {
			at[key] = len(out)
			out = append(out, p)
			continue
		}
		q := &out[i]
		q.Generation = max(q.Generation, p.Generation)
		q.Units, q.Share, q.Used, q.Total = q.Units+p.Units, q.Share+p.Share, q.Used+p.Used, q.Total+p.Total
		q.Text = fmt.Sprintf("%s and %d more", strings.SplitN(q.Text, " ", 2)[0], n[key]-1)
	}
	return out
}

func ringTitle(r *api.Ring) string {
	switch {
	case r.Ports != "":
		return "node ports " + r.Ports
	case r.Block == 0:
		return fmt.Sprintf("services %s", r.Prefix)
	}
	return fmt.Sprintf("network %s %s in blocks of /%d", r.Name, r.Prefix, r.Block)
}

func ringTable(w io.Writer, r *api.Ring, now time.Time) {
	if r.Block == 0 {
		row(w, "RANGE", "OWNER", "STATE", "GENERATION", "SHARE", "USED", "")
	} else {
		row(w, "RANGE", "OWNER", "STATE", "GENERATION", "SHARE", "BLOCKS", "USED", "")
	}
	for _, p := range r.Parts {
		share, used := fmt.Sprintf("%.3g %%", 100*p.Share), fmt.Sprintf("%d/%d", p.Used, p.Total)
		cells := []any{p.Text, p.Owner, p.State, p.Generation, share}
		if r.Block != 0 {
			cells = append(cells, fmt.Sprintf("%d/%d", len(p.Blocks), p.Units))
		}
		row(w, append(cells, used, partNote(&p, now))...)
	}
}

func partNote(p *api.RingPart, now time.Time) string {
	var notes []string
	if p.Quarantine > now.Unix() {
		notes = append(notes, fmt.Sprintf("rests for %s more, taken over from a forgotten node", time.Unix(p.Quarantine, 0).Sub(now).Round(time.Second)))
	}
	if len(p.Contested) > 0 {
		notes = append(notes, "CONTESTED: claimed by "+strings.Join(p.Contested, ", ")+" too; see 'nodectl conflicts'")
	}
	return strings.Join(notes, "; ")
}

func (c *cli) explainCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "explain ADDRESS",
		Short:   "Say who has an address, why and since when",
		Example: "  nodectl ipam explain 10.244.1.7",
		Args:    nargs(1, 1, "ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := netip.ParseAddr(args[0])
			if err != nil {
				return usagef("%q: not an IP address", args[0])
			}
			e, err := c.client().Explain(cmd.Context(), a)
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.print(e, nil)
			}
			return writeExplanation(c.out, &e, time.Now())
		},
	}
}

func writeExplanation(w io.Writer, e *api.Explanation, now time.Time) error {
	fmt.Fprintf(w, "%s  %s\n", e.Addr, e.Summary)
	if e.Network == "" {
		return nil
	}
	fmt.Fprintln(w)
	return columns(w, func(w io.Writer) {
		line := func(what string, parts ...string) {
			fmt.Fprintf(w, "%s\t%s\n", what, strings.Join(nonEmpty(parts), ", "))
		}
		switch p := e.Part; {
		case p != nil:
			from, resting, contested := "", "", ""
			if p.Quarantine > now.Unix() {
				resting = fmt.Sprintf("rests for %s more", time.Unix(p.Quarantine, 0).Sub(now).Round(time.Second))
			}
			if len(p.Contested) > 0 {
				contested = "CONTESTED: claimed by " + strings.Join(p.Contested, ", ") + " too"
			}
			switch {
			case e.TakenFrom != "":
				from = "taken over from " + e.TakenFrom + ", which was forgotten"
			case e.Donor != "":
				from = "given by " + e.Donor
			}
			line("range", fmt.Sprintf("%s owned by %s (%s)", p.Text, p.Owner, p.State), from, since(now, e.Since), e.Version, resting, contested)
		case e.Local:
			line("range", "none: each node uses all of the network by itself")
		default:
			line("range", "none yet: this node has not heard who owns it")
		}
		if b := e.Block; b != nil {
			node := ""
			if b.Node != "" {
				node = "opened by " + b.Node
			}
			line("block", strings.TrimSpace(b.Prefix.String()+" "+node), since(now, b.Since), b.Version)
		} else if e.Network != "services" {
			line("block", "none is open there")
		}
		for _, h := range e.Holders {
			name := h.Name
			if h.Node != "" {
				name += fmt.Sprintf(" on %s (%s)", h.Node, h.State)
			}
			line(h.What, name, h.Detail, since(now, h.Since), h.Version)
		}
		if e.Free != "" {
			line("free", e.Free)
		}
		if e.Route != "" {
			line("route", e.Route)
		}
		for _, s := range e.Conflicts {
			line("conflict", s)
		}
		if len(e.Conflicts) == 0 {
			line("conflicts", "none")
		}
	})
}

func nonEmpty(list []string) []string {
	out := list[:0]
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func since(now time.Time, unix int64) string {
	if unix <= 0 {
		return ""
	}
	return fmt.Sprintf("since %s (%s)", time.Unix(unix, 0).UTC().Format("2006-01-02 15:04:05 UTC"), age(now, unix))
}
