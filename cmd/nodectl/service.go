package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) serviceCmd() *cobra.Command {
	cmd := group(&cobra.Command{Use: "service", Aliases: []string{"svc"}, Short: "Services: one address, many backends"})
	cmd.AddCommand(c.serviceAddCmd(), c.serviceRemoveCmd(), c.serviceListCmd(), c.serviceShowCmd(),
		c.serviceBackendCmd(), c.serviceWeightCmd(), c.serviceDrainCmd())
	return cmd
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
		Short: "Show a service with its backends: weight, health, connections",
		Args:  nargs(1, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.client().Service(cmd.Context(), fullName(args[0]))
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) { serviceDetail(w, &s, time.Now()) })
		},
	}
}

// fullName is NAME.NAMESPACE of NAME[.NAMESPACE].
func fullName(arg string) string {
	name, namespace := splitName(arg)
	return name + "." + namespace
}

func serviceDetail(w io.Writer, s *api.Service, now time.Time) {
	fmt.Fprintf(w, "service\t%s.%s\n", s.Name, s.Namespace)
	vip := vipText(s)
	switch {
	case s.VIP6.IsValid() && s.VIP.IsValid():
		vip += " " + s.VIP6.String()
	case s.VIP6.IsValid():
		vip = s.VIP6.String()
	}
	fmt.Fprintf(w, "vip\t%s\n", vip)
	fmt.Fprintf(w, "ports\t%s\n", portsText(s.Ports))
	if len(s.Select) > 0 {
		fmt.Fprintf(w, "select\t%s\n", labelsText(s.Select))
	}
	for _, x := range settingsText(&s.ServiceSettings) {
		fmt.Fprintf(w, "%s\t%s\n", x[0], x[1])
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
	row(w, "BACKEND", "PORTS", "NAME", "NODE", "ZONE", "WEIGHT", "READY", "CONNS", "")
	for i := range s.Backends {
		b := &s.Backends[i]
		ports := make([]string, len(b.Ports))
		for i, p := range b.Ports {
			if ports[i] = fmt.Sprint(p); p == 0 {
				ports[i] = "none"
			}
		}
		conns := ""
		if b.Conns != nil {
			conns = fmt.Sprint(*b.Conns)
		}
		row(w, b.Addr, strings.Join(ports, " "), b.Name, b.Node, b.Zone, weightText(b), readyText(b), conns, backendNote(b, now))
	}
	if from := countedOn(s); from != "" {
		fmt.Fprintf(w, "\nconnections counted on %s\n", from)
	}
}

// countedOn names the nodes that all of a service's connections come from.
func countedOn(s *api.Service) string {
	seen := map[string]bool{}
	for _, b := range s.Backends {
		for _, n := range b.ConnsFrom {
			seen[n] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), " ")
}

func weightText(b *api.ServiceBackend) string {
	switch {
	case b.Weight == 0:
		return ""
	case b.Share > 0 && b.Share < 100:
		return fmt.Sprintf("%d (%d %%)", b.Weight, b.Share)
	}
	return fmt.Sprint(b.Weight)
}

func readyText(b *api.ServiceBackend) string {
	switch {
	case b.Ready:
		return "yes"
	case b.Draining && !b.Failed:
		return "draining"
	}
	return "no"
}

// backendNote is what there is to say of a backend: why it is not ready, what
// its check says and since when, and until when it drains.
func backendNote(b *api.ServiceBackend, now time.Time) string {
	var notes []string
	if b.Why != "" && b.Why != "draining" { // the column says that
		notes = append(notes, b.Why)
	}
	if b.Health == "ok" {
		notes = append(notes, "healthy")
	}
	if len(notes) > 0 && b.Since != 0 {
		notes[len(notes)-1] += " for " + age(now, b.Since)
	}
	if b.By != "" {
		notes = append(notes, "says "+b.By)
	}
	if b.Draining && b.Until != 0 && !b.Failed {
		notes = append(notes, "what is left is reset in "+left(now, b.Until))
	}
	return strings.Join(notes, ", ")
}

// left is the time to go until then.
func left(now time.Time, unix int64) string {
	return max(time.Unix(unix, 0).Sub(now), 0).Round(time.Second).String()
}

// settingsText lists what is not the default, as the Nodefile calls it.
func settingsText(s *api.ServiceSettings) (out [][2]string) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, [2]string{name, value})
		}
	}
	add("addresses", words(s.Addresses))
	if s.Announce {
		add("announce", "yes")
	}
	add("sources", words(s.Sources))
	add("node port addresses", words(s.NodePortAddresses))
	if s.HealthPort != 0 {
		add("health port", fmt.Sprint(s.HealthPort))
	}
	add("families", strings.Join(s.Families, " "))
	add("balance", s.Balance)
	if s.AffinitySeconds != 0 {
		add("affinity", (time.Duration(s.AffinitySeconds) * time.Second).String())
	}
	add("inside", s.Inside)
	add("outside", s.Outside)
	if s.SlowStartMillis != 0 {
		add("slow start", (time.Duration(s.SlowStartMillis) * time.Millisecond).String())
	}
	add("check", checkText(s.Check, s.Probe))
	return out
}

// words lists values; a prefix of one address is that address.
func words[T fmt.Stringer](list []T) string {
	var out []string
	for _, v := range list {
		text := v.String()
		if p, ok := any(v).(netip.Prefix); ok && p.IsSingleIP() {
			text = p.Addr().String()
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func checkText(kind string, p *api.Probe) string {
	if p == nil || kind == "" {
		return kind
	}
	text := kind
	switch {
	case kind == "exec":
		text += " " + strings.Join(p.Command, " ")
	case kind == "dns" && p.Host != "":
		text += " " + p.Host
	case p.Path != "":
		text += " " + p.Path
	}
	if p.Host != "" && kind != "dns" {
		text += " at " + p.Host
	}
	if p.Port != 0 {
		text += fmt.Sprintf(" port %d", p.Port)
	}
	millis := func(name string, ms int64) {
		if ms != 0 {
			text += fmt.Sprintf(", %s %s", name, time.Duration(ms)*time.Millisecond)
		}
	}
	millis("every", p.IntervalMillis)
	millis("timeout", p.TimeoutMillis)
	if p.Rise != 0 {
		text += fmt.Sprintf(", rise %d", p.Rise)
	}
	if p.Fall != 0 {
		text += fmt.Sprintf(", fall %d", p.Fall)
	}
	return text
}
