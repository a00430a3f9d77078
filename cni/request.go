package cni

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"nodenet/api"
)

// confLabel is the label by which GC tells the attachments of one
// configuration from those of another on the same network.
const confLabel = "cni.nodenet/conf"

// request is a configuration and an invocation in the daemon's terms.
type request struct {
	api.AttachRequest
	routes []ipamRoute // for the result of an IPAM call; nil: the default route
	dns    dnsConf     // empty: the daemon's
}

// buildRequest translates. Nothing that would change what the container gets
// is dropped in silence.
func buildRequest(c *netConf, v *invocation, ipamOnly bool) (request, error) {
	r := request{dns: c.DNS}
	r.ID, r.Netns, r.IfName, r.Kind = v.attachmentID(), v.netns, v.ifName, "cni"
	r.Labels = map[string]string{confLabel: c.Name}
	if err := c.checkKeys(); err != nil {
		return r, err
	}
	var err error
	switch {
	case ipamOnly, c.Type == nameHostLocal:
		r.Mode = "ipam"
		err = r.hostLocal(c)
	case c.Type == nameNodenet:
		err = r.nodenet(c)
	case c.Type == nameBridge:
		err = r.bridge(c)
	case c.Type == "":
		err = faultf(codeConfig, "network configuration has no type")
	default:
		err = faultf(codeConfig, "type %q: this plugin is %s, %s or %s", c.Type, nameNodenet, nameBridge, nameHostLocal)
	}
	if err != nil {
		return r, err
	}
	r.name(c, v)
	return r, r.wanted(c, v)
}

// nodenet attaches to a network of the cluster.
func (r *request) nodenet(c *netConf) error {
	if c.IPAM != nil && !isZero(c.keys["ipam"]) && c.IPAM.Type != nameNodenet {
		return &fault{code: codeUnsupported, msg: "unsupported field \"ipam\" in a configuration of type \"nodenet\"",
			details: "addresses come from the network named in the Nodefile: remove ipam"}
	}
	if len(c.RuntimeConfig.IPRanges) > 0 {
		return faultf(codeUnsupported, "capability ipRanges: addresses come from the network named in the Nodefile")
	}
	r.Network = c.Network
	if r.Network == "" {
		r.Network = "pods"
	}
	for k, val := range c.Labels {
		r.Labels[k] = val
	}
	return nil
}

// bridge takes the network out of the reference plugin's configuration. It
// exists on this node alone.
func (r *request) bridge(c *netConf) error {
	if c.IPAM == nil || c.IPAM.Type == "" {
		return faultf(codeUnsupported, "bridge without ipam: a layer-2 attachment without an address is not supported")
	}
	if c.IPAM.Type != nameHostLocal {
		return faultf(codeUnsupported, "ipam type %q: with type bridge only %s is supported", c.IPAM.Type, nameHostLocal)
	}
	def, err := c.definition()
	if err != nil {
		return err
	}
	def.Bridge = c.Bridge
	if def.Bridge == "" {
		def.Bridge = "cni0"
	}
	if why := badIfName(def.Bridge); why != "" {
		return faultf(codeConfig, "bridge %q: %s", def.Bridge, why)
	}
	if c.MTU < 0 || c.MTU > 65535 {
		return faultf(codeConfig, "mtu %d: want 0 to 65535", c.MTU)
	}
	def.MTU = c.MTU
	def.Masquerade = c.IPMasq
	def.NoGateway = !c.IsGateway && !c.IsDefaultGateway
	r.Network, r.Define = c.Name, def

	r.NoDefaultRoute = !c.IsDefaultGateway
	for _, rt := range c.IPAM.Routes {
		dst, gw, err := rt.parse()
		if err != nil {
			return err
		}
		if dst.Bits() != 0 || !dst.Addr().Is4() || (gw.IsValid() && gw != def.Gateway) {
			return &fault{code: codeUnsupported, msg: "unsupported route " + quote(rt.Dst) + " in ipam.routes",
				details: "only the IPv4 default route via the network's gateway is"}
		}
		r.NoDefaultRoute = false
	}
	return r.resolvConf(c)
}

// hostLocal gives out an address only; whoever called makes the interface.
func (r *request) hostLocal(c *netConf) error {
	if c.IPAM == nil {
		return faultf(codeConfig, "network configuration has no ipam section")
	}
	if c.IPAM.Type != "" && c.IPAM.Type != nameHostLocal {
		return faultf(codeConfig, "ipam type %q: called as %s", c.IPAM.Type, nameHostLocal)
	}
	def, err := c.definition()
	if err != nil {
		return err
	}
	def.NoGateway = true // the bridge, if there is one, is the caller's
	r.Network, r.Define = c.Name, def
	r.routes = []ipamRoute{}
	for _, rt := range c.IPAM.Routes {
		if _, _, err := rt.parse(); err != nil {
			return err
		}
		r.routes = append(r.routes, rt)
	}
	return r.resolvConf(c)
}

// howIPv6 is what to do instead of writing an IPv6 range: it follows from the
// IPv4 one, in networks that every node knows.
const howIPv6 = "IPv6 comes with a network of the Nodefile that has an IPv6 prefix, and `\"type\": \"nodenet\"`"

// definition reads the one IPv4 range of a host-local configuration.
func (c *netConf) definition() (*api.NetworkDef, error) {
	sets := slices.Clone(c.IPAM.Ranges)
	if c.IPAM.Subnet != "" {
		// The old form of the first range.
		sets = append([][]ipRange{{c.IPAM.ipRange}}, sets...)
	}
	sets = append(sets, c.RuntimeConfig.IPRanges...)
	switch {
	case len(sets) == 0 || len(sets[0]) == 0:
		return nil, faultf(codeConfig, "ipam: no subnet and no ranges")
	case len(sets) > 1 && slices.ContainsFunc(sets, ofIPv6):
		return nil, &fault{code: codeUnsupported, msg: fmt.Sprintf("ipam: %d range sets: one, of IPv4, is supported", len(sets)), details: howIPv6}
	case len(sets) > 1:
		return nil, faultf(codeUnsupported, "ipam: %d range sets: one address for each interface is supported", len(sets))
	case len(sets[0]) > 1:
		return nil, faultf(codeUnsupported, "ipam: %d ranges in one set: one is supported", len(sets[0]))
	}
	r := sets[0][0]
	p, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return nil, faultf(codeConfig, "ipam: subnet %q is not a prefix", r.Subnet)
	}
	if !p.Addr().Is4() {
		return nil, &fault{code: codeUnsupported, msg: fmt.Sprintf("ipam: subnet %s: only IPv4 is supported", p), details: howIPv6}
	}
	p = p.Masked()
	if p.Bits() > 30 {
		return nil, faultf(codeConfig, "ipam: subnet %s is too small: /30 is the smallest", p)
	}
	def := &api.NetworkDef{Prefix: p, Gateway: p.Addr().Next()}
	for _, f := range []struct {
		key, val string
		to       *netip.Addr
	}{{"gateway", r.Gateway, &def.Gateway}, {"rangeStart", r.RangeStart, &def.RangeStart}, {"rangeEnd", r.RangeEnd, &def.RangeEnd}} {
		if f.val == "" {
			continue
		}
		a, err := netip.ParseAddr(f.val)
		if err != nil {
			return nil, faultf(codeConfig, "ipam: %s %q is not an address", f.key, f.val)
		}
		if !p.Contains(a) {
			return nil, faultf(codeConfig, "ipam: %s %s is not in subnet %s", f.key, a, p)
		}
		*f.to = a
	}
	if def.RangeStart.IsValid() && def.RangeEnd.IsValid() && def.RangeEnd.Less(def.RangeStart) {
		return nil, faultf(codeConfig, "ipam: rangeEnd %s is below rangeStart %s", def.RangeEnd, def.RangeStart)
	}
	return def, nil
}

// ofIPv6 reports whether a set has an IPv6 subnet.
func ofIPv6(set []ipRange) bool {
	return slices.ContainsFunc(set, func(r ipRange) bool {
		p, err := netip.ParsePrefix(r.Subnet)
		return err == nil && p.Addr().Is6()
	})
}

func (rt ipamRoute) parse() (dst netip.Prefix, gw netip.Addr, err error) {
	if dst, err = netip.ParsePrefix(rt.Dst); err != nil {
		return dst, gw, faultf(codeConfig, "ipam.routes: dst %q is not a prefix", rt.Dst)
	}
	if rt.GW != "" {
		if gw, err = netip.ParseAddr(rt.GW); err != nil {
			return dst, gw, faultf(codeConfig, "ipam.routes: gw %q is not an address", rt.GW)
		}
	}
	return dst, gw, nil
}

// resolvConf takes the result's DNS from a file, as host-local does.
func (r *request) resolvConf(c *netConf) error {
	if c.IPAM.ResolvConf == "" || !r.dns.empty() {
		return nil
	}
	b, err := os.ReadFile(c.IPAM.ResolvConf)
	if err != nil {
		return faultf(codeConfig, "ipam.resolvConf: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.dns.Nameservers = append(r.dns.Nameservers, f[1])
		case "domain":
			r.dns.Domain = f[1]
		case "search":
			r.dns.Search = append(r.dns.Search, f[1:]...)
		case "options":
			r.dns.Options = append(r.dns.Options, f[1:]...)
		}
	}
	return nil
}

// name fills in what the workload is called.
func (r *request) name(c *netConf, v *invocation) {
	r.Name, r.Namespace = v.workloadName()
	if r.Name == "" {
		r.Name = shortID(v.containerID)
	}
	if r.Namespace == "" {
		r.Namespace = c.Namespace
	}
	for k, val := range v.workloadLabels() {
		if _, ok := r.Labels[k]; !ok {
			r.Labels[k] = val
		}
	}
	for _, kv := range c.Args.CNI.Labels {
		if kv.Key != "" {
			r.Labels[kv.Key] = kv.Value
		}
	}
	r.Labels[confLabel] = c.Name
	for _, a := range c.RuntimeConfig.Aliases.of(c.Name) {
		if l := label(a); l != "" && l != r.Name && !slices.Contains(r.Aliases, l) {
			r.Aliases = append(r.Aliases, l)
		}
	}
}

// wanted fills in address, MAC and published ports. What a capability says
// counts more than args, and args more than CNI_ARGS, the oldest way.
func (r *request) wanted(c *netConf, v *invocation) error {
	var err error
	for _, from := range []struct {
		where string
		ips   []string
	}{{"runtimeConfig.ips", c.RuntimeConfig.IPs}, {"args.cni.ips", c.Args.CNI.IPs}, {"CNI_ARGS IP", split(v.args["IP"])}} {
		if len(from.ips) == 0 {
			continue
		}
		if len(from.ips) > 1 {
			return faultf(codeUnsupported, "%s: %d addresses: one is supported", from.where, len(from.ips))
		}
		if r.IP, err = parseIP(from.where, from.ips[0]); err != nil {
			return err
		}
		break
	}
	for _, from := range [][2]string{{"runtimeConfig.mac", c.RuntimeConfig.MAC}, {"args.cni.mac", c.Args.CNI.MAC}, {"CNI_ARGS MAC", v.args["MAC"]}} {
		if from[1] == "" {
			continue
		}
		if r.MAC, err = parseMAC(from[0], from[1]); err != nil {
			return err
		}
		break
	}
	if r.Mode == "ipam" {
		return nil // ports are published by whoever makes the interface
	}
	for i, m := range c.RuntimeConfig.PortMappings {
		p, err := m.publish()
		if err != nil {
			return faultf(err.code, "runtimeConfig.portMappings[%d]: %s", i, err.msg)
		}
		if p.HostPort != 0 && !slices.Contains(r.Publish, p) {
			r.Publish = append(r.Publish, p)
		}
	}
	return nil
}

func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func (m portMapping) publish() (api.Publish, *fault) {
	p := api.Publish{Protocol: strings.ToLower(m.Protocol), Source: "cni"}
	if p.Protocol == "" {
		p.Protocol = "tcp"
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp" {
		return p, faultf(codeUnsupported, "protocol %q: tcp, udp and sctp are supported", m.Protocol)
	}
	if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return p, faultf(codeConfig, "port %d to %d: want 1 to 65535", m.HostPort, m.ContainerPort)
	}
	p.HostPort, p.Port = uint16(m.HostPort), uint16(m.ContainerPort)
	if m.HostIP == "" {
		return p, nil
	}
	a, err := netip.ParseAddr(m.HostIP)
	switch {
	case err != nil:
		return p, faultf(codeConfig, "hostIP %q is not an address", m.HostIP)
	case a.IsUnspecified():
		// Every address, which is what the zero HostAddr says; runtimes
		// send one mapping for 0.0.0.0 and one for ::.
	case !a.Is4():
		return p, faultf(codeUnsupported, "hostIP %s: only IPv4 is supported", a)
	default:
		p.HostAddr = a
	}
	return p, nil
}
