package main

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) publishCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "publish", Short: "Ports of this node that lead to a workload"})
	cmd.AddCommand(c.publishAddCmd(), c.publishRemoveCmd(), c.publishListCmd())
	return cmd
}

func (c *cli) publishAddCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "add [HOSTADDR:]PORT[/udp] TARGET:PORT",
		Short: "Publish a port of this node",
		Example: `  nodectl publish add 8443 10.244.0.2:443
  nodectl publish add 192.168.1.11:53/udp 10.244.0.7:53`,
		Args: nargs(2, 2, "[HOSTADDR:]PORT[/udp] TARGET:PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePublish(args[0], args[1])
			if err != nil {
				return err
			}
			made, err := c.client().AddPublish(cmd.Context(), p)
			if err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) { fmt.Fprintln(w, made.Key) })
		},
	}
}

func parsePublish(host, target string) (api.Publish, error) {
	rest, proto, err := cutProtocol(host)
	if err != nil {
		return api.Publish{}, usagef("publish %s: %v", host, err)
	}
	p := api.Publish{Protocol: proto}
	if p.HostAddr, p.HostPort, err = hostPort(rest); err != nil {
		return p, usagef("publish %s: %v", host, err)
	}
	ap, err := netip.ParseAddrPort(target)
	if err != nil || ap.Port() == 0 {
		return p, usagef("publish %s to %s: want ADDRESS:PORT", host, target)
	}
	p.Target, p.Port = ap.Addr().Unmap(), ap.Port()
	return p, nil
}

func (c *cli) publishRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "rm KEY",
		Aliases: []string{"remove"},
		Short:   "Stop publishing a port; KEY as 'nodectl publish ls' shows it, or [HOSTADDR:]PORT[/udp]",
		Args:    nargs(1, 1, "KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().RemovePublish(cmd.Context(), publishKey(args[0])); err != nil {
				return err
			}
			return c.print(api.Empty{}, func(io.Writer) {})
		},
	}
}

// publishKey completes what a person typed to a key; what it does not
// understand it passes on.
func publishKey(s string) string {
	rest, proto, err := cutProtocol(s)
	if err != nil {
		return s
	}
	addr, port, err := hostPort(rest)
	if err != nil {
		return s
	}
	host := "*"
	if addr.IsValid() {
		host = addr.String()
	}
	return fmt.Sprintf("%s:%d/%s", host, port, proto)
}

func (c *cli) publishListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the published ports of this node",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Publishes(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { publishTable(w, list) })
		},
	}
}

func publishTable(w io.Writer, list []api.Publish) {
	row(w, "KEY", "TARGET", "ENDPOINT", "FROM")
	for _, p := range list {
		row(w, p.Key, netip.AddrPortFrom(p.Target, p.Port), p.Endpoint, p.Source)
	}
}
