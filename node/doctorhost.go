package node

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"nodenet/api"
	"nodenet/config"
	"nodenet/lb"
	"nodenet/overlay"
	"nodenet/state"
)

// hostFacts is what the linter asks of the host.
type hostFacts interface {
	hostSockets
	// Read returns a file below /proc; empty: it is not there.
	Read(path string) string
	// InputDrops names the chains of other firewalls that would drop packets
	// to the given ports of this host.
	InputDrops([]lb.Port) ([]lb.InputDrop, error)
	// RuleFiles returns what is loaded into nftables at boot, by path.
	RuleFiles() map[string]string
}

// thisHost is the one that the process runs on.
type thisHost struct{ hostSockets }

func (thisHost) Read(path string) string {
	b, err := os.ReadFile("/proc/" + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (thisHost) InputDrops(p []lb.Port) ([]lb.InputDrop, error) { return lb.InputDrops(p) }

// sysctl returns the value of one, by its path below /proc/sys.
func sysctl(path string) string { return thisHost{}.Read("sys/" + path) }

func number(h hostFacts, path string) (int, bool) {
	n, err := strconv.Atoi(h.Read(path))
	return n, err == nil
}

// checkHost makes the checks of the host that need no configuration.
func checkHost(h hostFacts) []api.Check {
	out := []api.Check{checkForwarding(h), checkBridgeNetfilter(h), checkReversePath(h), checkSavedRules(h)}
	return append(out, checkConntrack(h)...)
}

func checkForwarding(h hostFacts) api.Check {
	v := h.Read("sys/net/ipv4/ip_forward")
	c := api.Check{Name: "ip forwarding", Status: okay, Detail: "net.ipv4.ip_forward = " + v}
	if v != "1" {
		c.Status, c.Fix = bad, "the daemon sets it while it runs; if it does, something sets it back: look in /etc/sysctl.d"
	}
	return c
}

// checkBridgeNetfilter tells whether packets within a bridge pass iptables.
func checkBridgeNetfilter(h hostFacts) api.Check {
	c := api.Check{Name: "bridge-nf-call-iptables", Status: okay, Detail: "br_netfilter not loaded: packets within a bridge pass no other firewall"}
	switch h.Read("sys/net/bridge/bridge-nf-call-iptables") {
	case "0":
		c.Detail = "= 0: packets within a bridge pass no other firewall; replies of VIPs work either way"
	case "1":
		c.Detail = "= 1: packets within a bridge pass other firewalls' forward chains too; replies of VIPs work either way"
	}
	return c
}

// checkReversePath looks for packets that the reverse path filter dropped: in
// strict mode (1) those whose way back is by another device, such as with
// two uplinks.
func checkReversePath(h hostFacts) api.Check {
	all, _ := number(h, "sys/net/ipv4/conf/all/rp_filter")
	def, _ := number(h, "sys/net/ipv4/conf/default/rp_filter")
	c := api.Check{Name: "rp_filter", Status: okay, Detail: map[bool]string{true: "strict", false: "not strict"}[all == 1]}
	c.Detail += fmt.Sprintf(": net.ipv4.conf.all.rp_filter = %d, default = %d", all, def)
	dropped := counter(h.Read("net/netstat"), "TcpExt:", "IPReversePathFilter")
	if dropped > 0 {
		c.Detail += fmt.Sprintf(", %d packets dropped since boot", dropped)
		if all == 1 || def == 1 {
			c.Status, c.Fix = warn, "if peers or workloads lose packets: sysctl -w net.ipv4.conf.all.rp_filter=2 (loose; the larger of all and the device's own holds)"
		}
	}
	return c
}

// counter reads one of the counters of /proc/net/netstat: a line of names and
// a line of values with the same prefix.
func counter(text, prefix, name string) int {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != prefix {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if i := slices.Index(names, name); i > 0 && i < len(f) {
			n, _ := strconv.Atoi(f[i])
			return n
		}
	}
	return 0
}

// checkConntrack looks at the room in the connection tracking table, at what
// was dropped for lack of it, and at how flows are picked up again.
func checkConntrack(h hostFacts) []api.Check {
	cur, ok1 := number(h, "sys/net/netfilter/nf_conntrack_count")
	lim, ok2 := number(h, "sys/net/netfilter/nf_conntrack_max")
	if !ok1 || !ok2 || lim == 0 {
		return nil
	}
	c := api.Check{Name: "conntrack", Status: okay, Detail: fmt.Sprintf("%d of %d entries", cur, lim)}
	grow := fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d, and in /etc/sysctl.d", 2*lim)
	switch lost := conntrackDrops(h.Read("net/stat/nf_conntrack")); {
	case cur >= lim:
		c.Status, c.Fix = bad, grow
		c.Detail += ": new connections are dropped"
	case cur > lim*8/10:
		c.Status, c.Fix = warn, grow
	case lost > 0:
		c.Status, c.Fix = warn, grow
		c.Detail += fmt.Sprintf(", %d packets dropped since boot because it was full", lost)
	}
	out := []api.Check{c}
	if v, ok := number(h, "sys/net/netfilter/nf_conntrack_tcp_loose"); ok && v == 0 {
		out = append(out, api.Check{Name: "conntrack loose", Status: warn, Detail: "net.netfilter.nf_conntrack_tcp_loose = 0: connections that the table forgot are not picked up again, and hang",
			Fix: "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1"})
	}
	if v, ok := number(h, "sys/net/netfilter/nf_conntrack_tcp_be_liberal"); ok {
		c := api.Check{Name: "conntrack window", Status: okay, Detail: fmt.Sprintf("net.netfilter.nf_conntrack_tcp_be_liberal = %d", v)}
		if v == 0 {
			c.Detail += ": segments outside of the window are not translated; if a VIP's clients see resets under loss, 1 helps"
		}
		out = append(out, c)
	}
	return out
}

// conntrackDrops sums over all CPUs what was dropped for lack of room. The
// first line names the columns, the values are hexadecimal.
func conntrackDrops(text string) int {
	var at []int
	sum := 0
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if at == nil {
			at = []int{slices.Index(f, "drop"), slices.Index(f, "early_drop")}
			continue
		}
		for _, i := range at {
			if i >= 0 && i < len(f) {
				n, _ := strconv.ParseInt(f[i], 16, 64)
				sum += int(n)
			}
		}
	}
	return sum
}

// site is what the linter knows of this node's configuration.
type site struct {
	nodePorts config.PortRange
	ports     []lb.Port    // on which others reach this node
	dns       []netip.Addr // of the node's own server
}

func (n *Node) site(sn *state.Snapshot) site {
	c, v, l := n.cfg.Cluster, sn.View(), n.localNow()
	s := site{nodePorts: n.cfg.Services.NodePorts, dns: n.dnsAddrs(v, l, overlay.Derive(v, l)), ports: []lb.Port{
		{Proto: "udp", Number: 53}, {Proto: "tcp", Number: 53},
		{Proto: "tcp", Number: c.GossipPort}, {Proto: "udp", Number: c.GossipPort}, {Proto: "tcp", Number: c.SyncPort},
	}}
	for _, nw := range v.Networks {
		if nw.Overlay == state.OverlayVXLAN || nw.Overlay == state.OverlayAuto {
			if p := (lb.Port{Proto: "udp", Number: cmp.Or(nw.Port, 4789)}); !slices.Contains(s.ports, p) {
				s.ports = append(s.ports, p)
			}
		}
	}
	return s
}

// checkSite makes the checks of the host against the configuration.
func checkSite(h hostFacts, s site) []api.Check {
	return []api.Check{checkPortRange(h, s.nodePorts), checkInput(h, s), checkResolvers(h, s.dns)}
}

// checkPortRange warns of node ports that the host's own clients may take as
// their local port.
func checkPortRange(h hostFacts, np config.PortRange) api.Check {
	c := api.Check{Name: "node ports", Status: okay, Detail: fmt.Sprintf("%d-%d", np.First, np.Last)}
	f := strings.Fields(h.Read("sys/net/ipv4/ip_local_port_range"))
	if len(f) != 2 {
		return c
	}
	lo, err1 := strconv.Atoi(f[0])
	hi, err2 := strconv.Atoi(f[1])
	if err1 != nil || err2 != nil || lo > int(np.Last) || int(np.First) > hi {
		return c
	}
	c.Detail = fmt.Sprintf("%d-%d overlap the host's own client ports %d-%d", np.First, np.Last, lo, hi)
	reserved := h.Read("sys/net/ipv4/ip_local_reserved_ports")
	if covers(reserved, max(lo, int(np.First)), min(hi, int(np.Last))) {
		c.Detail += ", which are reserved"
		return c
	}
	with := fmt.Sprintf("%d-%d", np.First, np.Last)
	if reserved != "" {
		with = reserved + "," + with
	}
	c.Status, c.Fix = warn, "sysctl -w net.ipv4.ip_local_reserved_ports="+with+", and in /etc/sysctl.d"
	return c
}

// covers reports whether a list like 8080,9000-9010 has every port from lo to
// hi. The kernel keeps it sorted and merged.
func covers(list string, lo, hi int) bool {
	for r := range strings.SplitSeq(list, ",") {
		a, b, ranged := strings.Cut(r, "-")
		first, err := strconv.Atoi(a)
		if err != nil {
			continue
		}
		last := first
		if ranged {
			if last, err = strconv.Atoi(b); err != nil {
				continue
			}
		}
		if first <= lo && hi <= last {
			return true
		}
	}
	return false
}

// checkInput warns of other firewalls that never name a port of ours.
func checkInput(h hostFacts, s site) api.Check {
	c := api.Check{Name: "input rules", Status: okay, Detail: "no other firewall drops what it does not know, or each names our ports"}
	drops, err := h.InputDrops(s.ports)
	if err != nil {
		c.Status, c.Detail = skip, err.Error()
		return c
	}
	if !slices.ContainsFunc(s.dns, netip.Addr.Is6) { // neither the underlay nor workloads have IPv6
		drops = slices.DeleteFunc(drops, func(d lb.InputDrop) bool { return d.Family == "ip6" })
	}
	if len(drops) == 0 {
		return c
	}
	d := drops[0]
	var names []string
	for _, p := range d.Ports {
		names = append(names, p.String())
	}
	c.Status = warn
	c.Detail = fmt.Sprintf("chain %s %s %s drops what it does not know and names none of %s", d.Family, d.Table, d.Chain, strings.Join(names, " "))
	if d.Family == "ip6" {
		c.Detail += " (only IPv6 is hit)"
	}
	c.Fix = fmt.Sprintf("unless a rule without a port lets them in: accept %s in that firewall, from the other nodes and from workloads (53)", strings.Join(names, " "))
	return c
}

// checkResolvers looks for other servers on port 53. One that listens on all
// addresses keeps ours from its own.
func checkResolvers(h hostFacts, ours []netip.Addr) api.Check {
	c := api.Check{Name: "other resolvers", Status: okay, Detail: "none in the way of port 53"}
	sockets, err := h.Bound()
	if err != nil {
		c.Status, c.Detail = skip, err.Error()
		return c
	}
	var beside []string
	for _, s := range sockets {
		if s.at.Port() != 53 || s.proto == "sctp" || h.Own(s.inode) {
			continue
		}
		who := fmt.Sprintf("%s at %s/%s", cmp.Or(h.Owner(s.inode), "a process"), s.at, s.proto)
		if s.at.Addr().IsUnspecified() || slices.Contains(ours, s.at.Addr()) {
			c.Status, c.Detail = bad, who+" is in the way of the node's own name server"
			c.Fix = "bind it to addresses of its own (dnsmasq: bind-interfaces and listen-address), or give our server block others with `bind`"
			return c
		}
		if !slices.Contains(beside, who) {
			beside = append(beside, who)
		}
	}
	if len(beside) > 0 {
		c.Detail = "not in the way: " + strings.Join(beside, ", ")
	}
	return c
}

// checkPorts looks for processes that have a published port or a node port.
func (n *Node) checkPorts() []api.Check {
	found, err := n.findPortConflicts()
	if err != nil {
		return []api.Check{{Name: "ports", Status: skip, Detail: err.Error()}}
	}
	n.mu.Lock()
	all := append(slices.Clone(n.withheld), found...)
	n.mu.Unlock()
	if len(all) == 0 {
		return []api.Check{{Name: "ports", Status: okay, Detail: "no process of the host has a published port or a node port"}}
	}
	var out []api.Check
	for _, c := range all {
		out = append(out, api.Check{Name: "ports", Status: bad, Detail: c.String(), Fix: c.fix()})
	}
	return out
}

// checkFirewalls tells which other firewalls there are and how nodenet lives
// beside them. That one drops workloads' packets is told by lb's own line.
func (n *Node) checkFirewalls() []api.Check {
	list, err := n.lb.Firewalls()
	if err != nil {
		return []api.Check{{Name: "firewalls", Status: skip, Detail: err.Error()}}
	}
	return firewallChecks(list, lb.LegacyRules())
}

func firewallChecks(list []lb.FirewallState, legacy bool) []api.Check {
	var out []api.Check
	for _, f := range list {
		c := api.Check{Name: "firewall " + f.Name, Status: okay}
		switch {
		case f.Error != "":
			detail, fix, _ := bytes.Cut([]byte(f.Error), []byte(": run "))
			c.Status, c.Detail = warn, string(detail)
			if len(fix) > 0 {
				c.Fix = "run " + string(fix)
			} else {
				c.Fix = "start it, or `nodectl firewall remove " + f.Name + "`"
			}
		case f.On:
			c.Detail = fmt.Sprintf("integrated, %d rules", len(f.Rules))
		case f.Found:
			c.Detail = "is here and not integrated; needed if the lb line above says that it drops workloads' packets"
		default:
			continue
		}
		out = append(out, c)
	}
	if legacy {
		out = append(out, api.Check{Name: "iptables-legacy", Status: warn, Detail: "this host has rules of iptables-legacy, which cannot be seen from here",
			Fix: "see that `iptables-legacy -S FORWARD` lets nn-+ pass, or switch to iptables-nft"})
	}
	return out
}
