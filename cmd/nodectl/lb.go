package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) lbCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "lb", Short: "Show what the load balancer has in the kernel"}
	cmd.AddCommand(c.lbDumpCmd(), c.lbTraceCmd())
	return cmd
}

func (c *cli) lbDumpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "dump",
		Short: "Print this node's tables as the kernel has them, in nft's syntax",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := c.client().LBDump(cmd.Context())
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.print(d, nil)
			}
			_, err = io.WriteString(c.out, d.Ruleset)
			return err
		},
	}
}

func (c *cli) lbTraceCmd() *cobra.Command {
	var from string
	var slot uint32
	cmd := &cobra.Command{
		Use:   "trace ADDRESS:PORT[/PROTOCOL] --from ADDRESS",
		Short: "Follow the first packet of a flow through this node's rules",
		Long: `Follow the first packet of a flow through the rules of this node, with every map
looked up in the elements that the kernel has: the chains, the backend, and
whether the source address stays. No packet is sent. Other firewalls' rules
are not looked at.`,
		Example: "  nodectl lb trace --from 10.244.1.7 10.96.0.20:80/tcp",
		Args:    nargs(1, 1, "ADDRESS:PORT[/PROTOCOL]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dst, proto, ok := strings.Cut(args[0], "/")
			if !ok {
				proto = "tcp"
			}
			to, err := netip.ParseAddrPort(dst)
			if err != nil {
				return usagef("%q: not ADDRESS:PORT", dst)
			}
			if proto != "tcp" && proto != "udp" && proto != "sctp" {
				return usagef("%q: use tcp, udp or sctp", proto)
			}
			src, err := netip.ParseAddr(from)
			if err != nil {
				return usagef("--from %q: not an IP address", from)
			}
			t, err := c.client().LBTrace(cmd.Context(), src, to, proto, slot)
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.print(t, nil)
			}
			return writeTrace(c.out, &t)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "source address: a workload's, the node's or an outside one")
	cmd.Flags().Uint32Var(&slot, "slot", 0, "number drawn among the backends, modulo how many there are")
	_ = cmd.MarkFlagRequired("from")
	return cmd
}

func writeTrace(w io.Writer, t *api.LBTrace) error {
	by := "sent by the node itself"
	if t.Device != "" {
		by = "arrives by " + t.Device
	}
	fmt.Fprintf(w, "%s → %s/%s  %s\n\n", t.From, t.To, t.Protocol, by)
	for _, l := range t.Lookups {
		fmt.Fprintf(w, "  %s\n", l)
	}
	fmt.Fprintf(w, "\n  chains %s\n\n", strings.Join(t.Chains, " "))
	result := t.Action
	if t.Action == "accept" {
		result = "goes to " + t.Target.String()
		switch {
		case t.Masquerade:
			result += ", masqueraded"
		case t.Translated:
			result += ", source address kept"
		default:
			result += ", not translated"
		}
	}
	_, err := fmt.Fprintln(w, result)
	return err
}
