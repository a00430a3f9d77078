package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/config"
	"nodenet/lab"
)

func (c *cli) labWorkloadCmd(f *labFlags) *cobra.Command {
	cmd := group(&cobra.Command{Use: "workload", Short: "Workloads of the lab: namespaces attached to a node"})
	cmd.AddCommand(c.labWorkloadAddCmd(f), &cobra.Command{
		Use:     "rm NAME[.NAMESPACE]",
		Aliases: []string{"remove"},
		Short:   "Detach a workload and remove its namespace",
		Args:    nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			return l.Detach(cmd.Context(), args[0])
		},
	})
	return cmd
}

func (c *cli) labWorkloadAddCmd(f *labFlags) *cobra.Command {
	var o lab.WorkloadOptions
	var ports, publish []string
	var ip string
	cmd := &cobra.Command{
		Use:     "add NODE NAME",
		Short:   "Make a namespace and attach it to a node",
		Example: "  nodectl lab workload add node1 web1 --namespace apps --label app=web --port http=80 --serve 80",
		Args:    nargs(2, 2, "NODE NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			index, err := strconv.Atoi(strings.TrimPrefix(args[0], "node"))
			if err != nil {
				return usagef("%s is not a node: want node1, node2, …", args[0])
			}
			o.Name = args[1]
			if o.IP, err = parseAddr("--ip", ip); err != nil {
				return err
			}
			for _, s := range ports {
				p, err := parsePort(s)
				if err != nil {
					return err
				}
				o.Ports = append(o.Ports, p)
			}
			for _, s := range publish {
				p, err := parseAttachPublish(s)
				if err != nil {
					return err
				}
				o.Publish = append(o.Publish, p)
			}
			w, err := l.Attach(cmd.Context(), index, o)
			if err != nil {
				return err
			}
			return c.print(w, func(out io.Writer) { fmt.Fprintf(out, "%s %s\n", w.Ref(), w.Attached.Addr) })
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.Namespace, "namespace", "default", "namespace of the name")
	fl.StringVar(&o.Network, "network", config.DefaultNetwork, "network to attach to")
	fl.StringToStringVar(&o.Labels, "label", nil, "label KEY=VALUE")
	fl.StringSliceVar(&ports, "port", nil, "port [NAME=]PORT[/PROTO]")
	fl.StringVar(&ip, "ip", "", "wanted address")
	fl.StringSliceVar(&publish, "publish", nil, "publish [HOSTADDR:]HOSTPORT[-LAST]:PORT[/PROTO] of the node")
	fl.StringVar(&o.Mode, "mode", "bridge", "bridge or none")
	fl.Uint16Var(&o.Serve, "serve", 0, "run a small web server on this port")
	return cmd
}

// labServeCmd is a workload that answers, where there is no web server.
func (c *cli) labServeCmd() *cobra.Command {
	var name string
	var port uint16
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "Answer HTTP requests with a name and the client's address",
		Hidden: true,
		Args:   noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
			if err != nil {
				return fmt.Errorf("serve: %w", err)
			}
			return lab.Serve(cmd.Context(), name, l)
		},
	}
	cmd.Flags().StringVar(&name, "name", "web", "name to answer with")
	cmd.Flags().Uint16Var(&port, "port", 80, "TCP port")
	return cmd
}

// labGetCmd is a client where there is no curl.
func (c *cli) labGetCmd() *cobra.Command {
	var n int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:    "get URL",
		Short:  "Ask a URL, each time over a new connection",
		Hidden: true,
		Args:   nargs(1, 1, "URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Get(cmd.Context(), c.out, args[0], n, timeout)
		},
	}
	cmd.Flags().IntVarP(&n, "count", "n", 1, "how often; more than once prints how often each server answered")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "for each request")
	return cmd
}

// labUpstreamCmd is the outside host's DNS server.
func (c *cli) labUpstreamCmd() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:    "upstream",
		Short:  "Answer DNS queries for example.com",
		Hidden: true,
		Args:   noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := netip.ParseAddr(listen)
			if err != nil {
				return usagef("--listen %s: not an IP address", listen)
			}
			ap := netip.AddrPortFrom(addr, 53)
			pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(ap))
			if err != nil {
				return fmt.Errorf("serve DNS: %w", err)
			}
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(ap))
			if err != nil {
				return fmt.Errorf("serve DNS: %w", err)
			}
			return lab.Upstream(cmd.Context(), pc, l)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1", "address")
	return cmd
}
