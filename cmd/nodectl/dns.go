package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) dnsCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "dns", Short: "The node's DNS server"})
	cmd.AddCommand(c.dnsQueryCmd(), c.dnsTraceCmd(), c.dnsTopCmd(), c.dnsWaitCmd(), c.dnsHostSetupCmd())
	return cmd
}

func (c *cli) dnsQueryCmd() *cobra.Command {
	var from string
	var tcp bool
	cmd := &cobra.Command{
		Use:   "query NAME [TYPE]",
		Short: "Ask the node's DNS server, as any client or workload would",
		Example: `  nodectl dns query web.apps.svc.cluster.local
  nodectl dns query web --from client.apps`,
		Args: nargs(1, 2, "NAME [TYPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := c.client()
			q, err := dnsQuestion(cmd.Context(), client, args, from, tcp)
			if err != nil {
				return err
			}
			a, err := client.DNSQuery(cmd.Context(), q)
			if err != nil {
				return err
			}
			return c.print(a, func(w io.Writer) { dnsAnswer(w, &a) })
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "ask as this client: an address or a workload NAME[.NAMESPACE]")
	cmd.Flags().BoolVar(&tcp, "tcp", false, "ask as over TCP")
	return cmd
}

// dnsQuestion reads NAME [TYPE] and --from.
func dnsQuestion(ctx context.Context, client *api.Client, args []string, from string, tcp bool) (q api.DNSQuery, err error) {
	q = api.DNSQuery{Name: args[0], TCP: tcp}
	if len(args) > 1 {
		q.Type = strings.ToUpper(args[1])
	}
	if from != "" {
		q.From, err = findClient(ctx, client, from)
	}
	return q, err
}

// findClient returns the address that --from means.
func findClient(ctx context.Context, client *api.Client, from string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(from); err == nil {
		return a.Unmap(), nil
	}
	list, err := client.Endpoints(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	name, namespace, given := strings.Cut(from, ".")
	var found []api.Endpoint
	for _, e := range list {
		if e.Name == name && (!given || e.Namespace == namespace) && len(e.Addrs) > 0 {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		return netip.Addr{}, fmt.Errorf("--from %s: no endpoint of that name has an address: 'nodectl endpoints' lists them", from)
	}
	for _, e := range found[1:] {
		if e.Namespace != found[0].Namespace {
			return netip.Addr{}, fmt.Errorf("--from %s: there is one in namespace %s and one in %s: say %s.%s", from, found[0].Namespace, e.Namespace, name, e.Namespace)
		}
	}
	return found[0].Addrs[0], nil
}

// dnsAnswer prints an answer in the order people know from dig(1).
func dnsAnswer(w io.Writer, a *api.DNSAnswer) {
	fmt.Fprintf(w, ";; %s, flags: %s, answer by %s in %d µs\n", a.Rcode, strings.Join(a.Flags, " "), a.Server, a.Micros)
	for _, section := range []struct {
		name string
		rrs  []string
	}{{"ANSWER", a.Answer}, {"AUTHORITY", a.Authority}, {"ADDITIONAL", a.Additional}} {
		if len(section.rrs) == 0 {
			continue
		}
		fmt.Fprintf(w, ";; %s\n", section.name)
		for _, rr := range section.rrs {
			fmt.Fprintln(w, rr)
		}
	}
}
