package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) serviceCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "service", Aliases: []string{"svc"}, Short: "Services: one address, many backends"})
	cmd.AddCommand(c.serviceAddCmd(), c.serviceRemoveCmd(), c.serviceListCmd(), c.serviceShowCmd())
	return cmd
}

func (c *cli) serviceAddCmd() *cobra.Command {
	var s api.ServiceSpec
	var vip string
	var ports, nodePorts []string
	cmd := &cobra.Command{
		Use:   "add NAME[.NAMESPACE]",
		Short: "Make a service for the whole cluster, or replace it",
		Example: `  nodectl service add web.apps --port 80:8080 --select app=web
  nodectl service add db --port mysql=3306 --backend 10.244.1.2 --vip 10.103.132.104 --check tcp
  nodectl service add www.apps --port 80 --select app=web --node-port 30080
  nodectl service add mail --external mail.example.com`,
		Args: nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Name, s.Namespace = splitName(args[0])
			if s.Headless = vip == "none"; !s.Headless {
				var err error
				if s.VIP, err = parseAddr("--vip", vip); err != nil {
					return err
				}
			}
			for _, p := range ports {
				sp, err := parseServicePort(p)
				if err != nil {
					return err
				}
				s.Ports = append(s.Ports, sp)
			}
			if err := setNodePorts(&s, nodePorts); err != nil {
				return err
			}
			if len(s.Ports) == 0 && s.External == "" && !s.Headless {
				return usagef("service %s: missing --port [NAME=]PORT[:TARGET][/udp]", args[0])
			}
			made, err := c.client().AddService(cmd.Context(), s)
			if err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) { serviceTable(w, []api.Service{made}) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&vip, "vip", "", "service address, or none for a headless service (default: allocate one)")
	f.StringSliceVar(&ports, "port", nil, "port [NAME=]PORT[:TARGET][/udp]; TARGET is a number or an endpoint's port name")
	f.StringSliceVar(&nodePorts, "node-port", nil, "node port of each --port in turn, or auto to allocate them")
	f.StringToStringVar(&s.Select, "select", nil, "label KEY=VALUE that its endpoints have")
	f.StringSliceVar(&s.Backends, "backend", nil, "explicit backend ADDR[:PORT]")
	f.StringVar(&s.External, "external", "", "name outside the cluster that this one stands for (CNAME)")
	f.StringVar(&s.Check, "check", "", "health check: tcp")
	return cmd
}

// parseServicePort reads [NAME=]PORT[:TARGET][/PROTO].
func parseServicePort(s string) (api.ServicePort, error) {
	const want = "want [NAME=]PORT[:TARGET][/udp]"
	var p api.ServicePort
	rest := s
	if name, r, ok := strings.Cut(s, "="); ok {
		p.Name, rest = name, r
	}
	rest, proto, err := cutProtocol(rest)
	if err != nil {
		return p, usagef("--port %s: %v", s, err)
	}
	p.Protocol = proto
	port, target, targeted := strings.Cut(rest, ":")
	if p.Port, err = portNumber(port); err != nil {
		return p, usagef("--port %s: %v: %s", s, err, want)
	}
	if targeted {
		if p.Target, err = portNumber(target); err != nil {
			if !isLabel(target) || strings.Trim(target, "0123456789") == "" {
				return p, usagef("--port %s: %v: %s", s, err, want)
			}
			p.TargetName = target
		}
	}
	return p, nil
}

func setNodePorts(s *api.ServiceSpec, nodePorts []string) error {
	for i, np := range nodePorts {
		if np == "auto" {
			s.NodePorts = true
			continue
		}
		n, err := portNumber(np)
		if err != nil {
			return usagef("--node-port %s: %v, or auto", np, err)
		}
		if i >= len(s.Ports) {
			return usagef("--node-port %s: there is no --port that it belongs to", np)
		}
		s.Ports[i].NodePort = n
	}
	return nil
}

func (c *cli) serviceRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME[.NAMESPACE]",
		Aliases: []string{"remove"},
		Short:   "Remove a service that was made with a command",
		Args:    nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, namespace := splitName(args[0])
			if err := c.client().RemoveService(cmd.Context(), name+"."+namespace); err != nil {
				return err
			}
			return c.print(api.Empty{}, func(io.Writer) {})
		},
	}
}

func (c *cli) serviceListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the services",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Services(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { serviceTable(w, list) })
		},
	}
}

func (c *cli) serviceShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME[.NAMESPACE]",
		Short: "Show a service with its backends",
		Args:  nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.client().Services(cmd.Context())
			if err != nil {
				return err
			}
			name, namespace := splitName(args[0])
			for _, s := range list {
				if s.Name == name && s.Namespace == namespace {
					return c.print(s, func(w io.Writer) { serviceDetail(w, &s) })
				}
			}
			return fmt.Errorf("there is no service %s.%s: 'nodectl service ls' lists them", name, namespace)
		},
	}
}

func serviceDetail(w io.Writer, s *api.Service) {
	fmt.Fprintf(w, "service\t%s.%s\n", s.Name, s.Namespace)
	fmt.Fprintf(w, "vip\t%s\n", vipText(s))
	fmt.Fprintf(w, "ports\t%s\n", portsText(s.Ports))
	if len(s.Select) > 0 {
		fmt.Fprintf(w, "select\t%s\n", labelsText(s.Select))
	}
	fmt.Fprintf(w, "from\t%s\n", s.Source)
	fmt.Fprintf(w, "ready\t%d/%d\n", s.Ready, s.Total)
	for _, a := range s.Announced {
		fmt.Fprintf(w, "address\t%s\n", announcementText(&a))
	}
	if len(s.Backends) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "BACKEND", "PORTS", "NAME", "NODE", "READY", "")
	for _, b := range s.Backends {
		ports := make([]string, len(b.Ports))
		for i, p := range b.Ports {
			if ports[i] = fmt.Sprint(p); p == 0 {
				ports[i] = "none"
			}
		}
		ready := "yes"
		if !b.Ready {
			ready = "no"
		}
		row(w, b.Addr, strings.Join(ports, " "), b.Name, b.Node, ready, b.Why)
	}
}
