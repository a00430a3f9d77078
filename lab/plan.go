package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"

	"nodenet/config"
)

// The IP plan. Node i has the address 192.168.1.(10+i).
var (
	lanPrefix     = netip.MustParsePrefix("192.168.1.0/24")
	routerAddr    = netip.MustParseAddr("192.168.1.1")
	outsidePrefix = netip.MustParsePrefix("203.0.113.0/24")
	outsideRouter = netip.MustParseAddr("203.0.113.1")
	outsideAddr   = netip.MustParseAddr("203.0.113.10")
)

// maxNodes is what one machine bears; the IP plan would allow 244.
const maxNodes = 64

// Namespaces of the lab beside those of nodes and workloads.
const (
	nsLAN     = "lan"
	nsRouter  = "rtr"
	nsOutside = "out"
)

// netnsDir is where ip-netns(8) looks for named namespaces, netnsEtcDir for
// files to mount over those of /etc in them.
const (
	netnsDir    = "/run/netns"
	netnsEtcDir = "/etc/netns"
)

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

// checkPlan reports a lab that the names and the addresses do not allow.
func checkPlan(name string, nodes int) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("lab name %q: want 1 to 20 lower-case letters, digits and inner hyphens", name)
	}
	if nodes < 1 || nodes > maxNodes {
		return fmt.Errorf("%d nodes: want 1 to %d", nodes, maxNodes)
	}
	return nil
}

// nodeAddr returns the LAN address of node i, counted from 1.
func nodeAddr(i int) netip.Addr {
	b := lanPrefix.Addr().As4()
	b[3] = byte(10 + i)
	return netip.AddrFrom4(b)
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// netnsPath returns where a namespace of the lab is pinned.
func netnsPath(lab, name string) string { return filepath.Join(netnsDir, lab+"-"+name) }

// reserved reports whether a workload must not be called that: Exec and the
// namespaces' names could not tell it from a part of the lab.
func reserved(name string) bool {
	switch name {
	case nsLAN, nsRouter, nsOutside, "router", "outside":
		return true
	}
	rest, ok := strings.CutPrefix(name, "node")
	return ok && rest != "" && strings.Trim(rest, "0123456789") == ""
}

var servicesLine = regexp.MustCompile(`(?m)^[ \t]*services[ \t]+([0-9.]+/[0-9]+)`)

// serviceRange returns the range that the outside reaches by way of node1.
func serviceRange(nodefile string) netip.Prefix {
	if m := servicesLine.FindStringSubmatch(nodefile); m != nil {
		if p, err := netip.ParsePrefix(m[1]); err == nil {
			return p.Masked()
		}
	}
	return netip.MustParsePrefix(config.DefaultServices)
}

// nodefile returns the text of node i's Nodefile.
func nodefile(o *Options, i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node {\n    name %s\n    advertise %s\n}\n", nodeName(i), nodeAddr(i))
	fmt.Fprintf(&b, "cluster %s {\n", o.Name)
	if o.Join == JoinSecret && o.Nodes > 1 {
		b.WriteString("    join")
		// A few seeds are enough: the rest is learned from them.
		for j := 1; j <= min(o.Nodes, 3); j++ {
			fmt.Fprintf(&b, " %s", nodeAddr(j))
		}
		b.WriteString("\n")
	}
	b.WriteString("}\n")
	if o.Nodefile != "" {
		b.WriteString(strings.TrimRight(o.Nodefile, "\n") + "\n")
		return b.String()
	}
	fmt.Fprintf(&b, `network %s %s {
    block %d
    overlay %s
    masquerade
}
services %s {
    dns 10.96.0.10
    nodeports 30000-32767
}
`, config.DefaultNetwork, config.DefaultPrefix, config.DefaultBlock, o.Overlay, config.DefaultServices)
	return b.String()
}
