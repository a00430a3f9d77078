package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
	"nodenet/config"
)

func (c *cli) policyCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "policy", Short: "Who may speak with which workloads"})
	cmd.AddCommand(c.policyAddCmd(), c.policyRemoveCmd(), c.policyListCmd(), c.policyShowCmd(), c.policyTestCmd())
	return cmd
}

func (c *cli) policyAddCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "add -f FILE",
		Short: "Add policies for the whole cluster, or replace them",
		Long: `Add policies for the whole cluster, or replace them. FILE holds policy blocks as in
a Nodefile; - is the standard input.`,
		Example: "  nodectl policy add -f policies",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("policy add: missing -f FILE")
			}
			r, name := c.in, "standard input"
			if file != "-" {
				f, err := os.Open(file)
				if err != nil {
					return fmt.Errorf("read policies: %w", err)
				}
				defer f.Close()
				r, name = f, file
			}
			policies, err := config.ParsePolicies(name, r, config.Env{})
			if err != nil {
				return err
			}
			if len(policies) == 0 {
				return usagef("%s holds no policy", name)
			}
			var made []api.Policy
			for i := range policies {
				p, err := c.client().AddPolicy(cmd.Context(), apiPolicy(&policies[i]))
				if err != nil {
					if len(made) > 0 {
						err = fmt.Errorf("%w (added before: %s)", err, strings.Join(policyNames(made), ", "))
					}
					return err
				}
				made = append(made, p)
			}
			return c.print(made, func(w io.Writer) { policyTable(w, made) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with policy blocks, or -")
	return cmd
}

func policyNames(list []api.Policy) (out []string) {
	for _, p := range list {
		out = append(out, p.Name+"."+p.Namespace)
	}
	return out
}

// apiPolicy turns a block into a request.
func apiPolicy(p *config.Policy) api.Policy {
	rules := func(in []config.PolicyRule) (out []api.PolicyRule) {
		for _, r := range in {
			var ar api.PolicyRule
			for _, peer := range r.Peers {
				ap := api.PolicyPeer{Namespace: peer.Namespace, Labels: peer.Labels, Except: peer.Except, Node: peer.Node}
				if prefix := peer.Prefix; prefix.IsValid() {
					ap.Prefix = &prefix
				}
				ar.Peers = append(ar.Peers, ap)
			}
			for _, pp := range r.Ports {
				ar.Ports = append(ar.Ports, api.PolicyPort{Protocol: pp.Protocol, First: pp.First, Last: pp.Last})
			}
			out = append(out, ar)
		}
		return out
	}
	return api.Policy{Namespace: p.Namespace, Name: p.Name, Select: p.Select, Ingress: rules(p.Ingress), Egress: rules(p.Egress),
		DenyIngress: p.DenyIngress, DenyEgress: p.DenyEgress}
}

// configPolicy is apiPolicy's inverse, to print a policy as a block.
func configPolicy(p *api.Policy) config.Policy {
	rules := func(in []api.PolicyRule) (out []config.PolicyRule) {
		for _, r := range in {
			var cr config.PolicyRule
			for _, peer := range r.Peers {
				cp := config.PolicyPeer{Namespace: peer.Namespace, Labels: peer.Labels, Except: peer.Except, Node: peer.Node}
				if peer.Prefix != nil {
					cp.Prefix = *peer.Prefix
				}
				cr.Peers = append(cr.Peers, cp)
			}
			for _, pp := range r.Ports {
				cr.Ports = append(cr.Ports, config.PolicyPort{Protocol: pp.Protocol, First: pp.First, Last: pp.Last})
			}
			out = append(out, cr)
		}
		return out
	}
	return config.Policy{Namespace: p.Namespace, Name: p.Name, Select: p.Select, Ingress: rules(p.Ingress), Egress: rules(p.Egress),
		DenyIngress: p.DenyIngress, DenyEgress: p.DenyEgress}
}

func (c *cli) policyRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME[.NAMESPACE]",
		Aliases: []string{"remove"},
		Short:   "Remove a policy that was added by command",
		Args:    nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().RemovePolicy(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(api.Empty{}, func(io.Writer) {})
		},
	}
}

func (c *cli) policyListCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the policies of the cluster",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Policies(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(list, func(w io.Writer) { policyTable(w, list) })
		},
	}
}

func policyTable(w io.Writer, list []api.Policy) {
	row(w, "POLICY", "SELECTS", "ENDPOINTS", "INGRESS", "EGRESS", "SOURCE")
	for i := range list {
		p := &list[i]
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(p.Select)) {
			labels = append(labels, k+"="+p.Select[k])
		}
		if len(labels) == 0 {
			labels = []string{"all"}
		}
		row(w, p.Name+"."+p.Namespace, strings.Join(labels, ","), p.Selects, policyWay(p.DenyIngress, p.Ingress), policyWay(p.DenyEgress, p.Egress), p.Source)
	}
}

// policyWay says in a word what a policy does in a direction.
func policyWay(deny bool, rules []api.PolicyRule) string {
	switch {
	case len(rules) == 1:
		return "1 rule"
	case len(rules) > 0:
		return fmt.Sprintf("%d rules", len(rules))
	case deny:
		return "deny"
	}
	return ""
}

func (c *cli) policyShowCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME[.NAMESPACE]",
		Short: "Print a policy as the block that makes it",
		Args:  nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.client().Policies(cmd.Context())
			if err != nil {
				return err
			}
			name, ns := splitName(args[0])
			if ns == "" {
				ns = config.DefaultNamespace
			}
			i := slices.IndexFunc(list, func(p api.Policy) bool { return p.Name == name && p.Namespace == ns })
			if i < 0 {
				return fmt.Errorf("no policy %s.%s: `nodectl policy ls` lists them", name, ns)
			}
			if c.output == "json" {
				return c.print(list[i], nil)
			}
			p := configPolicy(&list[i])
			_, err = io.WriteString(c.out, p.String())
			return err
		},
	}
}

func (c *cli) policyTestCmd() *cobra.Command {
	var from, to string
	var lookups bool
	cmd := &cobra.Command{
		Use:   "test --from END --to END:PORT[/PROTOCOL]",
		Short: "Say whether a connection is allowed, and by what",
		Long: `Say whether new connections are allowed, by which policy or isolation, first by what
the cluster's records say, then by the rules in the kernels of both ends' nodes.
An END is an address, an endpoint or a service, the last two as NAME.NAMESPACE;
a service stands for each of its backends. No packet is sent. The exit status is
1 when a connection is denied or a kernel does otherwise than the records say.`,
		Example: "  nodectl policy test --from web.apps --to db.apps:3306",
		Args:    noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" || to == "" {
				return usagef("policy test: missing --from END or --to END:PORT")
			}
			dst, proto, ok := strings.Cut(to, "/")
			if !ok {
				proto = "tcp"
			}
			host, port, err := net.SplitHostPort(dst)
			if err != nil {
				return usagef("--to %q: not END:PORT[/PROTOCOL]", to)
			}
			t, err := c.client().TestPolicy(cmd.Context(), from, host, port, proto)
			if err != nil {
				return err
			}
			if c.output == "json" {
				err = c.print(t, nil)
			} else {
				err = writePolicyTest(c.out, &t, lookups)
			}
			denied := slices.ContainsFunc(t.Results, func(r api.PolicyResult) bool { return !r.Allowed || r.Differs })
			if err == nil && denied {
				return statusError(1)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "client: address, or endpoint or service NAME.NAMESPACE")
	cmd.Flags().StringVar(&to, "to", "", "server: the same, with :PORT and maybe /udp")
	cmd.Flags().BoolVarP(&lookups, "verbose", "v", false, "show each set that the kernels were asked for")
	return cmd
}

func writePolicyTest(w io.Writer, t *api.PolicyTest, lookups bool) error {
	var errs []error
	for i := range t.Results {
		r := &t.Results[i]
		verdict := "allowed"
		if !r.Allowed {
			verdict = "denied"
		}
		_, err := fmt.Fprintf(w, "%s → %s/%s  %s\n", endText(r.Egress, r.From), portText(r.Ingress, r.To), t.Protocol, verdict)
		errs = append(errs, err)
		if r.Networks != "" {
			fmt.Fprintf(w, "  networks  denied: %s\n", r.Networks)
		}
		fmt.Fprintf(w, "  egress    %s\n", sideText(r.Egress))
		fmt.Fprintf(w, "  ingress   %s\n", sideText(r.Ingress))
		for _, k := range r.Kernel {
			fmt.Fprintf(w, "  kernel    %s\n", kernelText(k))
			if lookups {
				for _, l := range k.Lookups {
					fmt.Fprintf(w, "            %s\n", l)
				}
			}
		}
	}
	return errors.Join(errs...)
}

func endText(s api.PolicySide, a netip.Addr) string {
	if s.Endpoint == "" {
		return a.String()
	}
	return fmt.Sprintf("%s (%s)", s.Endpoint, a)
}

func portText(s api.PolicySide, a netip.AddrPort) string {
	if s.Endpoint == "" {
		return a.String()
	}
	return fmt.Sprintf("%s (%s) port %d", s.Endpoint, a.Addr(), a.Port())
}

func sideText(s api.PolicySide) string {
	if s.Allowed {
		return "allowed: " + s.By
	}
	return "denied: isolated by " + strings.Join(s.Isolated, ", ") + ", no rule allows it"
}

func kernelText(k api.PolicyKernel) string {
	switch {
	case k.Error != "":
		return k.Node + " not asked: " + k.Error
	case k.Differs && k.Allowed:
		return k.Node + " DIFFERS: its rules let it pass"
	case k.Differs:
		return k.Node + " DIFFERS: its rules drop it in chain " + k.Chain
	case k.Allowed:
		return k.Node + " lets it pass"
	}
	return k.Node + " drops it in chain " + k.Chain
}
