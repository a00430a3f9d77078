package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodenet/api"
)

func (c *cli) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the node, its peers, networks, services and what is wrong",
		Args:  noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := c.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if c.output == "json" {
				return c.print(st, nil)
			}
			return writeStatus(c.out, &st, time.Now())
		},
	}
}

// writeStatus prints the status screen. It is a pure function of its
// arguments; now dates what the status counts from.
func writeStatus(w io.Writer, st *api.Status, now time.Time) error {
	head := fmt.Sprintf("%s  up %s  %s", st.Node, age(now, st.Started), clusterLine(st))
	fmt.Fprintf(w, "%-66s  revision %d, applied %d\n", head, st.Revision, applied(st))
	if st.Stale {
		fmt.Fprintf(w, "stale since %s: answering from saved state, no peer heard\n", clock(now, cmp.Or(st.StaleSince, st.Started)))
	}
	if !st.Synced {
		fmt.Fprintln(w, "not synced: waiting for a first full sync with a peer before giving out addresses")
	}
	sections := []func(io.Writer){}
	if len(st.Peers) > 0 {
		sections = append(sections, func(w io.Writer) { peerTable(w, st.Peers, now) })
	}
	if len(st.Networks) > 0 {
		sections = append(sections, func(w io.Writer) { networkTable(w, st.Networks) })
	}
	if len(st.Services) > 0 {
		sections = append(sections, func(w io.Writer) { serviceTable(w, st.Services) })
	}
	if len(st.Subsystems) > 0 {
		sections = append(sections, func(w io.Writer) { subsystemTable(w, st.Subsystems) })
	}
	if len(st.Conflicts) > 0 {
		sections = append(sections, func(w io.Writer) {
			for _, s := range st.Conflicts {
				fmt.Fprintf(w, "conflict\t%s\n", s)
			}
		})
	}
	for _, section := range sections {
		fmt.Fprintln(w)
		if err := columns(w, section); err != nil {
			return err
		}
	}
	return nil
}

// clock is the time of day, with the date when it was another day.
func clock(now time.Time, unix int64) string {
	t := time.Unix(unix, 0).In(now.Location())
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

func clusterLine(st *api.Status) string {
	alive := 1
	for _, p := range st.Peers {
		if p.State == "alive" {
			alive++
		}
	}
	return fmt.Sprintf("cluster %s: %s, %d alive", st.Cluster, count(len(st.Peers)+1, "node"), alive)
}

// applied is the revision that every subsystem has reached.
func applied(st *api.Status) uint64 {
	low := st.Revision
	for _, s := range st.Subsystems {
		if s.Desired > s.Applied {
			low = min(low, s.Applied)
		}
	}
	return low
}

func peerTable(w io.Writer, peers []api.Peer, now time.Time) {
	row(w, "PEER", "STATE", "ADDRESS", "VIA", "MTU", "RTT", "LAST SYNC", "")
	peers = slices.Clone(peers)
	slices.SortStableFunc(peers, func(a, b api.Peer) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range peers {
		state := p.State
		if state != "alive" && p.Since > 0 {
			state += " " + age(now, p.Since)
		}
		rtt := "-"
		if p.RTTMicro > 0 {
			rtt = fmt.Sprintf("%.2f ms", float64(p.RTTMicro)/1000)
		}
		sync := "never"
		if p.LastSync >= 0 {
			sync = ago(time.Duration(p.LastSync) * time.Millisecond)
		}
		row(w, p.Name, state, addrText(p.Address), p.Via, number(p.MTU), rtt, sync, peerNote(p.Skew, p.Flapping))
	}
}

// networkTable prints a line for each network, and one below it where it has
// an IPv6 prefix: a column of its own would be empty for most.
func networkTable(w io.Writer, networks []api.NetworkStatus) {
	row(w, "NETWORK", "PREFIX", "OWNS", "POD CIDRS", "USED", "OVERLAY", "LEASES")
	for _, n := range networks {
		overlay := n.Overlay
		if n.VNI > 0 && strings.Contains(overlay, "vxlan") {
			overlay += fmt.Sprintf(" vni %d", n.VNI)
		}
		leases := "-"
		if n.DHCP {
			leases = strconv.Itoa(n.Leases)
		}
		row(w, n.Name, n.Prefix, share(&n), join(n.Blocks, " "), fmt.Sprintf("%d/%d", n.Used, n.Total), overlay, leases)
		if n.Prefix6.IsValid() {
			fmt.Fprintf(w, "\t%s\t\t\t\t\t\n", n.Prefix6)
		}
	}
}

// share is how much of a network's addresses the node may give out or away.
func share(n *api.NetworkStatus) string {
	bits := n.Prefix.Addr().BitLen() - n.Prefix.Bits()
	if n.Owned == 0 || bits > 62 {
		return "-"
	}
	return fmt.Sprintf("%.3g %%", float64(n.Owned)/float64(uint64(1)<<bits)*100)
}

// serviceTable prints a line for each service, to be found by its name; the
// column of IPv6 addresses is there if any service has one.
func serviceTable(w io.Writer, services []api.Service) {
	dual := slices.ContainsFunc(services, func(s api.Service) bool { return s.VIP6.IsValid() })
	line := func(name, vip, vip6 any, rest ...any) {
		cells := []any{name, vip}
		if dual {
			cells = append(cells, vip6)
		}
		row(w, append(cells, rest...)...)
	}
	line("SERVICE", "VIP", "IPV6", "PORTS", "READY", "")
	for _, s := range services {
		line(s.Name+"."+s.Namespace, vipText(&s), addrText(s.VIP6), portsText(s.Ports), fmt.Sprintf("%d/%d", s.Ready, s.Total), whyNotReady(&s))
	}
}

func vipText(s *api.Service) string {
	switch {
	case s.External != "":
		return "→" + s.External
	case s.Headless:
		return "none"
	case !s.VIP.IsValid() && s.VIP6.IsValid():
		return "-"
	case !s.VIP.IsValid():
		return "pending"
	}
	return s.VIP.String()
}

func portsText(ports []api.ServicePort) string {
	out := make([]string, 0, len(ports))
	for _, p := range ports {
		t := strconv.Itoa(int(p.Port))
		if p.Last != 0 {
			t += fmt.Sprintf("-%d", p.Last)
		}
		if p.NodePort != 0 {
			t += fmt.Sprintf(":%d", p.NodePort)
		}
		switch {
		case p.TargetName != "":
			t += "→" + p.TargetName
		case p.Target != 0 && p.Target != p.Port:
			t += fmt.Sprintf("→%d", p.Target)
		}
		out = append(out, t+"/"+p.Protocol)
	}
	return strings.Join(out, " ")
}

// whyNotReady names the first two backends that are not ready, and why.
func whyNotReady(s *api.Service) string {
	if s.Total == 0 && s.External == "" {
		if len(s.Select) > 0 {
			return "no endpoint in namespace " + s.Namespace + " has " + labelsText(s.Select)
		}
		return "no backends"
	}
	var out []string
	more := 0
	for _, b := range s.Backends {
		switch {
		case b.Ready:
			continue
		case len(out) == 2:
			more++
			continue
		}
		name := b.Name
		if name == "" {
			name = b.Addr.String()
		}
		why := b.Why
		if why == "" {
			why = "not ready"
		}
		out = append(out, name+": "+why)
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, "; ")
}

func subsystemTable(w io.Writer, subsystems []api.SubsystemStatus) {
	for _, s := range subsystems {
		state, detail := "ok", s.Detail
		if !s.OK {
			state = "FAIL"
		}
		if s.Applied < s.Desired {
			detail = strings.TrimSuffix(fmt.Sprintf("applied %d of %d, %s", s.Applied, s.Desired, detail), ", ")
		}
		row(w, s.Name, state, detail)
		if s.Error != "" {
			fmt.Fprintf(w, "\t\terror: %s\n", s.Error)
		}
		if s.Fix != "" {
			fmt.Fprintf(w, "\t\tfix: %s\n", s.Fix)
		}
	}
}

// age returns how long ago a Unix time was, in the two largest units.
func age(now time.Time, unix int64) string {
	if unix <= 0 {
		return "?"
	}
	d := max(now.Sub(time.Unix(unix, 0)), 0).Truncate(time.Second)
	day := 24 * time.Hour
	switch {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// ago returns a short duration as people read it.
func ago(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d min", int(d.Minutes()))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// number returns n, or nothing for zero.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func join[T fmt.Stringer](list []T, sep string) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return strings.Join(out, sep)
}

func labelsText(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
