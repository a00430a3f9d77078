package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nodenet/api"
	"nodenet/config"
)

// netnsDir is where ip-netns(8) pins named network namespaces.
const netnsDir = "/run/netns"

func (c *cli) attachCmd() *cobra.Command {
	var r api.AttachRequest
	var netns, ip, resolv string
	var ports, publish []string
	cmd := &cobra.Command{
		Use:   "attach --netns NAME|PATH|PID",
		Short: "Give a network namespace an address, a name and a route to everything",
		Long: `Attach a network namespace to a network: an interface with an address of this
node's pod CIDR, a default route, and an entry in the cluster's tables under
--name and --namespace, so that DNS and services find it on every node.

The address is printed; in a network that has an IPv6 prefix too, its IPv6
address on a second line. The gateways are in -o json.

For a namespace under /run/netns the resolver configuration is written to
/etc/netns/NAME/resolv.conf, which 'ip netns exec NAME' puts in place of
/etc/resolv.conf; 'nodectl detach' removes it.`,
		Example: `  ip netns add red
  nodectl attach --netns red
  nodectl attach --netns web1 --namespace apps --label app=web --port http=80 --publish 8080:80
  nodectl attach --netns 4711 --name db --ip 10.244.1.9`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.IP, err = parseAddr("--ip", ip); err != nil {
				return err
			}
			for _, s := range ports {
				p, err := parsePort(s)
				if err != nil {
					return err
				}
				r.Ports = append(r.Ports, p)
			}
			for _, s := range publish {
				p, err := parseAttachPublish(s)
				if err != nil {
					return err
				}
				r.Publish = append(r.Publish, p)
			}
			switch r.Mode {
			case "bridge", "dhcp", "host", "none":
			default:
				return usagef("--mode %s: want bridge, dhcp, host or none", r.Mode)
			}
			if netns == "" && r.Mode != "host" {
				return usagef("missing --netns: the namespace to attach, as a name under %s, a path or a process ID", netnsDir)
			}
			nsName := ""
			if netns != "" {
				if r.Netns, nsName, err = findNetns(netns); err != nil {
					return err
				}
			}
			if r.Name == "" && isLabel(nsName) {
				r.Name = nsName
			}
			a, err := c.client().Attach(cmd.Context(), r)
			if err != nil {
				return err
			}
			c.writeResolvConf(&a, resolv, nsName, r.Namespace, r.Name)
			return c.print(a, func(w io.Writer) {
				if a.Addr.IsValid() {
					fmt.Fprintln(w, a.Addr)
				} else {
					fmt.Fprintln(w, "-")
				}
				if a.Addr6.IsValid() {
					fmt.Fprintln(w, a.Addr6)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&netns, "netns", "", "network namespace: a name under "+netnsDir+", a path or a process ID")
	f.StringVar(&r.Network, "network", config.DefaultNetwork, "network to attach to")
	f.StringVar(&r.Name, "name", "", "name in DNS (default: the namespace's name)")
	f.StringVar(&r.Namespace, "namespace", "default", "namespace of the name")
	f.StringSliceVar(&r.Aliases, "alias", nil, "another name")
	f.StringVar(&r.ID, "id", "", "identity on this node (default: NAMESPACE.NAME)")
	f.StringToStringVar(&r.Labels, "label", nil, "label KEY=VALUE that services select by")
	f.StringSliceVar(&ports, "port", nil, "port [NAME=]PORT[/PROTO] that it listens on")
	f.StringVar(&ip, "ip", "", "wanted address")
	f.StringVar(&r.MAC, "mac", "", "wanted Ethernet address")
	f.StringSliceVar(&publish, "publish", nil, "publish [HOSTADDR:]HOSTPORT[-LAST]:PORT[/PROTO] of this node")
	f.StringVar(&r.Mode, "mode", "bridge", "bridge: own address; dhcp: a link, the workload asks for its address; host: the node's network, registered under the name; none: no link")
	f.StringVar(&r.IfName, "ifname", "eth0", "name of the interface inside")
	f.BoolVar(&r.NoDefaultRoute, "no-default-route", false, "do not set a default route")
	f.StringVar(&resolv, "resolv-conf", "", "where to write the resolver configuration: PATH or none (default: /etc/netns/NAME/resolv.conf for a named namespace)")
	return cmd
}

func (c *cli) detachCmd() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "detach NAME[.NAMESPACE] | --id ID",
		Short: "Undo an attach",
		Long: `Remove an attachment: its interface, its address, its name. What is not there
counts as detached.`,
		Args: nargs(0, 1, "NAME[.NAMESPACE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := api.DetachRequest{ID: id}
			switch {
			case id == "" && len(args) == 0:
				return usagef("which attachment? Give NAME[.NAMESPACE] or --id ('nodectl endpoints' lists them)")
			case id != "" && len(args) > 0:
				return usagef("give NAME or --id, not both")
			case id == "":
				r.Name, r.Namespace = splitName(args[0])
			}
			if err := c.client().Detach(cmd.Context(), r); err != nil {
				return err
			}
			removeResolvConf(netnsEtcDir, id, r.Namespace, r.Name)
			return c.print(api.Empty{}, func(io.Writer) {})
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "identity that was given to attach")
	return cmd
}

// findNetns returns the path of a network namespace and, for one that is
// pinned in netnsDir, its name. A name wins over a process ID.
func findNetns(s string) (path, name string, err error) {
	if strings.Contains(s, "/") {
		path, err := filepath.Abs(s)
		if err != nil {
			return "", "", fmt.Errorf("find network namespace %s: %w", s, err)
		}
		if dir, base := filepath.Split(path); filepath.Clean(dir) == netnsDir || filepath.Clean(dir) == "/var"+netnsDir {
			name = base
		}
		if _, err := os.Stat(path); err != nil {
			return "", "", fmt.Errorf("find network namespace: %w", err)
		}
		return path, name, nil
	}
	path = filepath.Join(netnsDir, s)
	if _, err := os.Stat(path); err == nil {
		return path, s, nil
	}
	if _, err := strconv.ParseUint(s, 10, 31); err == nil {
		// Whether it may be entered is for the daemon to say.
		if _, err := os.Stat(filepath.Join("/proc", s)); err != nil {
			return "", "", fmt.Errorf("find network namespace of process %s: %w", s, err)
		}
		return filepath.Join("/proc", s, "ns/net"), "", nil
	}
	return "", "", fmt.Errorf("find network namespace %s: there is no %s: make it with 'ip netns add %s'", s, path, s)
}

// parsePort reads [NAME=]PORT[/PROTO].
func parsePort(s string) (api.Port, error) {
	name, rest, named := strings.Cut(s, "=")
	if !named {
		name, rest = "", s
	}
	rest, proto, err := cutProtocol(rest)
	if err != nil {
		return api.Port{}, usagef("--port %s: %v", s, err)
	}
	n, err := portNumber(rest)
	if err != nil {
		return api.Port{}, usagef("--port %s: %v: want [NAME=]PORT[/PROTO]", s, err)
	}
	return api.Port{Name: name, Protocol: proto, Port: n}, nil
}

// parseAttachPublish reads [HOSTADDR:]HOSTPORT:PORT[/PROTO], where both ports
// may be ranges FIRST-LAST of the same length, or PORT the first alone.
func parseAttachPublish(s string) (api.Publish, error) {
	rest, proto, err := cutProtocol(s)
	if err != nil {
		return api.Publish{}, usagef("--publish %s: %v", s, err)
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return api.Publish{}, usagef("--publish %s: want [HOSTADDR:]HOSTPORT[-LAST]:PORT[/PROTO]", s)
	}
	p := api.Publish{Protocol: proto}
	if p.HostAddr, p.HostPort, p.Last, err = hostPorts(rest[:i]); err != nil {
		return p, usagef("--publish %s: %v", s, err)
	}
	if p.Port, err = targetPort(rest[i+1:], p); err != nil {
		return p, usagef("--publish %s: %v", s, err)
	}
	return p, nil
}

// hostPorts reads [ADDR:]PORT[-LAST]; an IPv6 address stands in brackets. Last
// is 0 for one port.
func hostPorts(s string) (addr netip.Addr, port, last uint16, err error) {
	first, end, ranged := s, "", false
	if i := strings.LastIndexByte(s, '-'); i > strings.LastIndexByte(s, ':') {
		first, end, ranged = s[:i], s[i+1:], true
	}
	if !strings.Contains(first, ":") {
		port, err = portNumber(first)
	} else if ap, perr := netip.ParseAddrPort(first); perr != nil || ap.Port() == 0 {
		err = fmt.Errorf("%s is not ADDRESS:PORT", first)
	} else {
		addr, port = ap.Addr().Unmap(), ap.Port()
	}
	if err != nil || !ranged {
		return addr, port, 0, err
	}
	if last, err = portNumber(end); err == nil && last < port {
		err = fmt.Errorf("%s: the range ends before it begins", s)
	}
	if last == port {
		last = 0
	}
	return addr, port, last, err
}

// targetPort reads the port that the first host port of p goes to, or the
// whole range, which must be as long as that of p.
func targetPort(s string, p api.Publish) (uint16, error) {
	first, end, ranged := strings.Cut(s, "-")
	port, err := portNumber(first)
	if err != nil || !ranged {
		return port, err
	}
	last, err := portNumber(end)
	if err != nil {
		return port, err
	}
	if want := int(max(p.HostPort, p.Last)) - int(p.HostPort); int(last)-int(port) != want {
		return port, fmt.Errorf("%s: %d ports published to %d: write ranges of one length, or the first port alone", s, want+1, int(last)-int(port)+1)
	}
	return port, nil
}

func cutProtocol(s string) (rest, proto string, err error) {
	rest, proto, found := strings.Cut(s, "/")
	if !found {
		return s, "tcp", nil
	}
	if proto = strings.ToLower(proto); proto != "tcp" && proto != "udp" && proto != "sctp" {
		return "", "", fmt.Errorf("protocol %q: want tcp, udp or sctp", proto)
	}
	return rest, proto, nil
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port (1 to 65535)", s)
	}
	return uint16(n), nil
}

// splitName splits NAME[.NAMESPACE].
func splitName(s string) (name, namespace string) {
	name, namespace, ok := strings.Cut(s, ".")
	if !ok {
		namespace = "default"
	}
	return name, namespace
}

// isLabel reports whether s can be a label of a host name (RFC 1123 §2.1).
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, b := range []byte(s) {
		if !(b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-') {
			return false
		}
	}
	return true
}

// writeResolvConf writes a workload's resolver configuration to where it
// belongs. The attachment holds without it: trouble is a warning.
func (c *cli) writeResolvConf(a *api.Attachment, where, nsName, namespace, name string) {
	if where == "none" || a.ResolvConf == "" || where == "" && nsName == "" {
		return
	}
	if where == "" {
		where = filepath.Join(netnsEtcDir, nsName, "resolv.conf")
	}
	if err := saveResolvConf(where, a, namespace, name); err != nil {
		fmt.Fprintf(c.err, "nodectl: warning: %v\n", err)
		if errors.Is(err, errForeignFile) {
			fmt.Fprintf(c.err, "nodectl: names resolve there with what that file says; --resolv-conf=PATH writes elsewhere\n")
		}
	}
}
