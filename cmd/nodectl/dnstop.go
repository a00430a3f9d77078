package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"nodenet/api"
)

func (c *cli) dnsTopCmd() *cobra.Command {
	var every time.Duration
	var rows int
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what the node's DNS server does now",
		Long: `Show the rate, codes, times and cache hits of the DNS server, and who asks it for
what most. On a terminal the screen is written anew each interval until it is
interrupted; elsewhere, with --once or with -o json, one interval is shown.

Names and clients are counted in a fixed amount of memory: a count may be too
high by the number behind it. Above 10000 queries a second one of 16 is looked
at, and the counts are estimates.`,
		Example: `  nodectl dns top
  nodectl dns top --once --interval 10s -o json`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || every > time.Minute {
				return usagef("--interval %s: want 100ms to 1m", every)
			}
			if rows < 1 || rows > 100 {
				return usagef("--rows %d: want 1 to 100", rows)
			}
			screen := !once && c.output != "json" && isTerminal(c.out)
			for {
				t, err := c.client().DNSTop(cmd.Context(), api.DNSTopRequest{Millis: every.Milliseconds(), Rows: rows})
				if err != nil {
					if cmd.Context().Err() != nil && screen {
						return nil // interrupted: that is how it ends
					}
					return err
				}
				if screen {
					fmt.Fprint(c.out, "\x1b[H\x1b[2J")
				}
				if err := c.print(t, func(w io.Writer) { dnsTopTable(w, &t) }); err != nil || !screen {
					return err
				}
			}
		},
	}
	cmd.Flags().DurationVar(&every, "interval", time.Second, "how long to look")
	cmd.Flags().IntVar(&rows, "rows", 10, "how many names and clients")
	cmd.Flags().BoolVar(&once, "once", false, "show one interval and end")
	return cmd
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func dnsTopTable(w io.Writer, t *api.DNSTop) {
	fmt.Fprintf(w, "queries\t%.1f/s\t%d in %.1f s\n", t.QPS, t.Queries, float64(t.Millis)/1000)
	for _, r := range t.Rcodes {
		fmt.Fprintf(w, "\t%s\t%s\n", r.What, percentOf(r.Count, t.Queries))
	}
	for i, s := range t.Sources {
		head := ""
		if i == 0 {
			head = "by"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", head, s.What, percentOf(s.Count, t.Queries))
	}
	if t.CacheHitPercent >= 0 {
		fmt.Fprintf(w, "cache\t%.1f %%\tof what it saw\n", t.CacheHitPercent)
	}
	if l := t.Latency; l.Count > 0 {
		fmt.Fprintf(w, "time\tp50 %s\tp90 %s, p99 %s, most %s; %d not answered in the receive loop\n",
			micros(int64(l.P50)), micros(int64(l.P90)), micros(int64(l.P99)), micros(int64(l.Max)), l.Count)
	}
	for _, list := range []struct {
		head  string
		items []api.DNSCount
	}{{"NAME", t.Names}, {"CLIENT", t.Clients}} {
		if len(list.items) == 0 {
			continue
		}
		fmt.Fprintln(w)
		row(w, list.head, "QUERIES", "SHARE")
		for _, it := range list.items {
			n := fmt.Sprint(it.Count)
			if it.Error > 0 {
				n += fmt.Sprintf(" (-%d)", it.Error)
			}
			row(w, it.What, n, percentOf(it.Count, t.Queries))
		}
	}
	if t.Every > 1 {
		fmt.Fprintf(w, "\nnames and clients: estimated from %d queries, one of %d\n", t.Sampled, t.Every)
	}
}
