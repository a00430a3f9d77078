package main

import (
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nodenet/api"
	"nodenet/config"
)

// serviceFlags are the words of `service add`, before they are understood.
type serviceFlags struct {
	vip, check, slowStart, balance, affinity, inside, outside string
	ports, nodePorts, addresses, sources, nodeAddrs           []string

	checkPort, checkHost, checkPath string
	checkInterval, checkTimeout     string
	checkRise, checkFall            int
}

func (c *cli) serviceAddCmd() *cobra.Command {
	var s api.ServiceSpec
	var w serviceFlags
	cmd := &cobra.Command{
		Use:   "add NAME[.NAMESPACE]",
		Short: "Make a service for the whole cluster, or replace it",
		Example: `  nodectl service add web.apps --port 80:8080 --select app=web
  nodectl service add db --port mysql=3306 --backend 10.244.1.2 --vip 10.103.132.104 --check tcp
  nodectl service add www.apps --port 80 --select app=web --node-port 30080
  nodectl service add shop.apps --port 80 --select app=shop --check "http /healthz" --check-interval 5s --slow-start 30s
  nodectl service add rtp --port 6000-6010/udp --select app=rtp --balance maglev --address 192.0.2.200 --announce
  nodectl service add mail --external mail.example.com`,
		Args: nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Name, s.Namespace = splitName(args[0])
			if err := w.understand(&s); err != nil {
				return err
			}
			if len(s.Ports) == 0 && s.External == "" && !s.Headless {
				return usagef("service %s: missing --port [NAME=]PORT[-LAST][:TARGET][/PROTO]", args[0])
			}
			made, err := c.client().AddService(cmd.Context(), s)
			if err != nil {
				return err
			}
			return c.print(made, func(w io.Writer) { serviceTable(w, []api.Service{made}) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&w.vip, "vip", "", "service address, or none for a headless service (default: allocate one)")
	f.StringSliceVar(&w.ports, "port", nil, "port or range [NAME=]PORT[-LAST][:TARGET][/PROTO]; TARGET is a number or an endpoint's port name")
	f.StringSliceVar(&w.nodePorts, "node-port", nil, "node port of each --port in turn, or auto to allocate them")
	f.StringToStringVar(&s.Select, "select", nil, "label KEY=VALUE that its endpoints have")
	f.StringSliceVar(&s.Backends, "backend", nil, "explicit backend ADDR[:PORT][=WEIGHT]")
	f.StringVar(&s.External, "external", "", "name outside the cluster that this one stands for (CNAME)")
	f.StringVar(&w.balance, "balance", "", "how a backend is chosen: random (default), source or maglev")
	f.StringVar(&w.affinity, "affinity", "", "how long a client address keeps its backend")
	f.StringVar(&w.inside, "inside", "", "backends for clients inside: all (default), local, prefer-node or prefer-zone")
	f.StringVar(&w.outside, "outside", "", "backends for clients of node ports and external addresses: the same")
	f.StringSliceVar(&w.addresses, "address", nil, "external address on which every node takes connections")
	f.BoolVar(&s.Announce, "announce", false, "let one node answer ARP for each --address")
	f.StringSliceVar(&w.sources, "source", nil, "prefix of clients that may come from outside (default: all)")
	f.StringSliceVar(&w.nodeAddrs, "node-port-address", nil, "prefix of host addresses on which node ports answer (default: all but loopback)")
	f.Uint16Var(&s.HealthPort, "health-port", 0, "TCP port of every node that tells whether it has a ready backend")
	w.checkFlags(f)
	return cmd
}

func (w *serviceFlags) checkFlags(f *pflag.FlagSet) {
	f.StringVar(&w.slowStart, "slow-start", "", "time that a new backend takes to its whole share")
	f.StringVar(&w.check, "check", "", `health check: tcp, "http [PATH]", "https [PATH]", "exec PROGRAM [ARG...]", udp or "dns [NAME]"`)
	f.StringVar(&w.checkPort, "check-port", "", "port to check (default: the first port's target)")
	f.StringVar(&w.checkPath, "check-path", "", "path that an http check asks for (default /)")
	f.StringVar(&w.checkHost, "check-host", "", "host name that an http check asks for, name that a dns check looks up")
	f.StringVar(&w.checkInterval, "check-interval", "", "time between two checks (default 2s)")
	f.StringVar(&w.checkTimeout, "check-timeout", "", "of one check (default 1s)")
	f.IntVar(&w.checkRise, "check-rise", 0, "successes in a row that take a backend in (default 1)")
	f.IntVar(&w.checkFall, "check-fall", 0, "failures in a row that take it out (default 2)")
}

// understand fills in what the words mean.
func (w *serviceFlags) understand(s *api.ServiceSpec) error {
	if s.Headless = w.vip == "none"; !s.Headless {
		var err error
		if s.VIP, err = parseAddr("--vip", w.vip); err != nil {
			return err
		}
	}
	for _, p := range w.ports {
		sp, err := parseServicePort(p)
		if err != nil {
			return err
		}
		s.Ports = append(s.Ports, sp)
	}
	if err := setNodePorts(s, w.nodePorts); err != nil {
		return err
	}
	for _, a := range w.addresses {
		addr, err := parseAddr("--address", a)
		if err != nil {
			return err
		}
		s.Addresses = append(s.Addresses, addr)
	}
	var err error
	if s.Sources, err = flagValues("source", w.sources, config.ParsePrefix); err != nil {
		return err
	}
	if s.NodePortAddresses, err = flagValues("node-port-address", w.nodeAddrs, config.ParsePrefix); err != nil {
		return err
	}
	if s.Balance, err = flagValue("balance", w.balance, config.ParseBalance); err != nil {
		return err
	}
	if s.Inside, err = flagValue("inside", w.inside, config.ParsePolicy); err != nil {
		return err
	}
	if s.Outside, err = flagValue("outside", w.outside, config.ParsePolicy); err != nil {
		return err
	}
	affinity, err := flagValue("affinity", w.affinity, config.ParseAffinity)
	if err != nil {
		return err
	}
	slow, err := flagValue("slow-start", w.slowStart, config.ParseSlowStart)
	if err != nil {
		return err
	}
	s.AffinitySeconds, s.SlowStartMillis = int64(affinity/time.Second), slow.Milliseconds()
	return w.understandCheck(s)
}

// understandCheck reads --check and the flags beside it.
func (w *serviceFlags) understandCheck(s *api.ServiceSpec) error {
	words := strings.Fields(w.check)
	if len(words) == 0 {
		words = nil
	}
	var pr api.Probe
	if words != nil {
		c, err := config.ParseProbe(words)
		if err != nil {
			return usagef("--check %v", err)
		}
		s.Check, pr.Path, pr.Host, pr.Command = c.Type, c.Path, c.Host, c.Command
	}
	if w.checkPort != "" {
		p, err := portNumber(w.checkPort)
		if err != nil {
			return usagef("--check-port %v", err)
		}
		pr.Port = p
	}
	if w.checkPath != "" {
		pr.Path = w.checkPath
	}
	if w.checkHost != "" {
		pr.Host = w.checkHost
	}
	every, err := flagValue("check-interval", w.checkInterval, config.ParseInterval)
	if err != nil {
		return err
	}
	limit, err := flagValue("check-timeout", w.checkTimeout, config.ParseInterval)
	if err != nil {
		return err
	}
	pr.IntervalMillis, pr.TimeoutMillis, pr.Rise, pr.Fall = every.Milliseconds(), limit.Milliseconds(), w.checkRise, w.checkFall
	plain := pr.Port == 0 && pr.Path == "" && pr.Host == "" && len(pr.Command) == 0 && every == 0 && limit == 0 && pr.Rise == 0 && pr.Fall == 0
	switch {
	case plain:
	case s.Check == "":
		return usagef("settings of a check without one: add --check tcp, http, https, exec, udp or dns")
	default:
		s.Probe = &pr
	}
	return nil
}

// flagValue parses a flag's word; none is the zero value.
func flagValue[T any](flag, word string, parse func(string) (T, error)) (v T, err error) {
	if word == "" {
		return v, nil
	}
	if v, err = parse(word); err != nil {
		return v, usagef("--%s %v", flag, err)
	}
	return v, nil
}

func flagValues[T any](flag string, words []string, parse func(string) (T, error)) (all []T, err error) {
	for _, word := range words {
		v, err := flagValue(flag, word, parse)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// parseServicePort reads [NAME=]PORT[-LAST][:TARGET][/PROTO].
func parseServicePort(s string) (api.ServicePort, error) {
	name, rest, named := strings.Cut(s, "=")
	if !named {
		name, rest = "", s
	}
	p, err := config.ParsePort(strings.ToLower(rest))
	if err != nil {
		return api.ServicePort{}, usagef("--port %s: %v: want [NAME=]PORT[-LAST][:TARGET][/PROTO]", s, err)
	}
	return api.ServicePort{Name: name, Protocol: p.Protocol, Port: p.Port, Last: p.Last, Target: p.Target, TargetName: p.TargetName}, nil
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
