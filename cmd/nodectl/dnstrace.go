package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) dnsTraceCmd() *cobra.Command {
	var from string
	var tcp, all bool
	cmd := &cobra.Command{
		Use:   "trace NAME [TYPE]",
		Short: "Follow a question through the node's DNS server",
		Long: `Ask as 'nodectl dns query' does and show the way of the question: each name of
the search list that was tried, the server block and the directive that
answered, the record of the cluster, the line of a file or the server that the
answer comes from, and how old a cached one is. It is a question like any
other: it counts in the metrics and its answer is cached.`,
		Example: `  nodectl dns trace web --from client.apps
  nodectl dns trace example.com AAAA`,
		Args: nargs(1, 2, "NAME [TYPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := c.client()
			q, err := dnsQuestion(cmd.Context(), client, args, from, tcp)
			if err != nil {
				return err
			}
			t, err := client.DNSTrace(cmd.Context(), q)
			if err != nil {
				return err
			}
			return c.print(t, func(w io.Writer) { dnsTraceTable(w, &t, all, time.Now()) })
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "ask as this client: an address or a workload NAME[.NAMESPACE]")
	cmd.Flags().BoolVar(&tcp, "tcp", false, "ask as over TCP")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show the directives that only passed the question on, too")
	return cmd
}

// dnsTraceTable prints a line for each name that was tried and below it what
// happened to the question.
func dnsTraceTable(w io.Writer, t *api.DNSTrace, all bool, now time.Time) {
	row(w, "TRIED", "BLOCK", "DIRECTIVE", "RESULT", "TOOK", "WHERE FROM")
	for _, try := range t.Tries {
		what := "as it is"
		if try.Search != "" {
			what = "search domain " + try.Search
		}
		row(w, try.Name+" "+t.Type, "", "", try.Rcode, micros(try.Micros), what)
		for _, s := range try.Steps {
			if s.Decision == "passed on" && !all {
				continue
			}
			where := dnsStepFrom(&s, now)
			first := ""
			if len(where) > 0 {
				first = where[0]
			}
			asked := strings.Repeat("  ", s.Depth+1)
			if s.Depth > 0 || s.Name != try.Name {
				asked += s.Name + " " + s.Type
			}
			result := s.Decision
			if s.Rcode != "" {
				result += " " + s.Rcode
			}
			took := ""
			if s.Micros > 0 {
				took = micros(s.Micros)
			}
			row(w, asked, s.Block, s.Plugin, result, took, first)
			for _, more := range where[min(1, len(where)):] {
				fmt.Fprintf(w, "\t\t\t\t\t%s\n", more)
			}
		}
	}
	last := &t.Tries[len(t.Tries)-1]
	if len(last.Answer) > 0 {
		fmt.Fprintln(w)
	}
	for _, rr := range last.Answer {
		fmt.Fprintln(w, strings.ReplaceAll(rr, "\t", " "))
	}
}

// dnsStepFrom says where a step's answer comes from, a line each.
func dnsStepFrom(s *api.DNSStep, now time.Time) (out []string) {
	if s.Origin != "" {
		out = append(out, s.Origin)
	}
	for _, r := range s.Records {
		line := r.Kind + " " + r.Key
		if r.Node != "" {
			line += fmt.Sprintf(", declared by %s %s ago, version %s", r.Node, age(now, r.Written), r.Version)
		}
		out = append(out, line)
	}
	if s.Upstream != "" {
		out = append(out, "server "+s.Upstream)
	}
	if s.AgeMillis != 0 || s.TTLMillis != 0 {
		line := fmt.Sprintf("cached %s ago, ", ago(time.Duration(s.AgeMillis)*time.Millisecond))
		if s.TTLMillis < 0 {
			line += "stale for " + ago(-time.Duration(s.TTLMillis)*time.Millisecond)
		} else {
			line += ago(time.Duration(s.TTLMillis)*time.Millisecond) + " left"
		}
		out = append(out, line)
	}
	if s.Error != "" {
		out = append(out, s.Error)
	}
	return out
}

// micros writes a number of microseconds as people read it.
func micros(us int64) string {
	if us < 1000 {
		return fmt.Sprintf("%d µs", us)
	}
	return fmt.Sprintf("%.1f ms", float64(us)/1000)
}

func (c *cli) dnsWaitCmd() *cobra.Command {
	var from string
	var tcp bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME [TYPE]",
		Short: "Wait until a name is answered",
		Long: `Return as soon as the node's DNS server answers a name with a record of the type.
Names of the cluster are looked at whenever they change, others once a second.
The exit status is 1 when the time was too short.`,
		Example: `  nodectl service add web --port 80 --select app=web && nodectl dns wait web.default.svc.cluster.local
  nodectl dns wait db --from client.apps --timeout 2m`,
		Args: nargs(1, 2, "NAME [TYPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 || timeout > time.Hour {
				return usagef("--timeout %s: want more than 0 and up to 1h", timeout)
			}
			client := c.client()
			q, err := dnsQuestion(cmd.Context(), client, args, from, tcp)
			if err != nil {
				return err
			}
			a, err := client.DNSWait(cmd.Context(), api.DNSWait{DNSQuery: q, TimeoutMillis: max(1, timeout.Milliseconds())})
			if err != nil {
				return err
			}
			return c.print(a, func(w io.Writer) {
				for _, rr := range a.Answer {
					fmt.Fprintln(w, rr)
				}
			})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "ask as this client: an address or a workload NAME[.NAMESPACE]")
	cmd.Flags().BoolVar(&tcp, "tcp", false, "ask as over TCP")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return cmd
}

// percentOf is a part in percent.
func percentOf(n, of uint64) string {
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(cmp.Or(of, 1)))
}
