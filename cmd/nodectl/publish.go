package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

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
		Use:   "add [HOSTADDR:]PORT[-LAST][/PROTO] TARGET:PORT",
		Short: "Publish a port of this node, or a range of ports",
		Long: `Publish a port of this node. A range of ports goes to as many ports of the
target, from PORT on. PROTO is tcp, udp or sctp. A port on which a process of
this host listens is refused: the process would hear nothing any more. SCTP is
not served on loopback.`,
		Example: `  nodectl publish add 8443 10.244.0.2:443
  nodectl publish add 192.168.1.11:5353/udp 10.244.0.7:53
  nodectl publish add 3868/sctp 10.244.0.2:3868
  nodectl publish add 8000-8010 10.244.0.2:9000`,
		Args: nargs(2, 2, "[HOSTADDR:]PORT[-LAST][/PROTO] TARGET:PORT"),
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
	if p.HostAddr, p.HostPort, p.Last, err = hostPorts(rest); err != nil {
		return p, usagef("publish %s: %v", host, err)
	}
	i := strings.LastIndexByte(target, ':')
	if i < 0 {
		return p, usagef("publish %s to %s: want ADDRESS:PORT", host, target)
	}
	ap, err := netip.ParseAddrPort(target[:i] + ":1") // for brackets around IPv6
	if err != nil {
		return p, usagef("publish %s to %s: want ADDRESS:PORT", host, target)
	}
	if p.Port, err = targetPort(target[i+1:], p); err != nil {
		return p, usagef("publish %s to %s: %v", host, target, err)
	}
	p.Target = ap.Addr().Unmap()
	return p, nil
}

func (c *cli) publishRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "rm KEY",
		Aliases: []string{"remove"},
		Short:   "Stop publishing a port; KEY as 'nodectl publish ls' shows it, or [HOSTADDR:]PORT[-LAST][/PROTO]",
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
	addr, port, last, err := hostPorts(rest)
	if err != nil {
		return s
	}
	host := "*"
	if addr.IsValid() {
		host = addr.String()
	}
	if last > port {
		return fmt.Sprintf("%s:%d-%d/%s", host, port, last, proto)
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
		target := netip.AddrPortFrom(p.Target, p.Port).String()
		if p.Last > p.HostPort {
			target += fmt.Sprintf("-%d", p.Port+p.Last-p.HostPort)
		}
		row(w, p.Key, target, p.Endpoint, p.Source)
	}
}
