package config

import (
	"fmt"
	"net/netip"
	"strings"
)

func (p *parser) node(b block) {
	if len(b.keys) > 1 {
		p.faults.add(b.pos, "node", "takes no key but has %q, write `name %s` inside", b.keys[1], b.keys[1])
	}
	if p.once(b.pos, "node", "node", "already at %s, merge the two") {
		p.fields("node", b.body, p.nodeFields())
	}
}

func (p *parser) nodeFields() []field {
	n := &p.cfg.Node
	return []field{
		{name: "name", usage: "NAME", min: 1, max: 1, set: one(&n.Name, nodeName)},
		{name: "advertise", usage: "ADDR", min: 1, max: 1, set: one(&n.Advertise, hostAddr)},
		{name: "underlay", usage: "ADDR", min: 1, max: 1, set: one(&n.Underlay, hostAddr)},
		{name: "zone", usage: "NAME", min: 1, max: 1, set: one(&n.Zone, label("zone name", 63))},
		{name: "state_dir", usage: "PATH", min: 1, max: 1, set: one(&n.StateDir, absolute)},
		{name: "socket", usage: "PATH", min: 1, max: 1, set: one(&n.Socket, absolute)},
	}
}

// nodeName takes the first label of a host name, so that {$HOSTNAME} fits
// where hosts have long names: in DNS the node is <name>.node.<zone>.
func nodeName(s string) (string, error) {
	d, err := domain(s)
	if err != nil {
		return "", fmt.Errorf("%s: not a host name, write letters, digits and inner hyphens", s)
	}
	first, _, _ := strings.Cut(d, ".")
	return first, nil
}

func (p *parser) cluster(b block) {
	if !p.once(b.pos, "cluster", "cluster", "already at %s, a node is in one cluster") {
		return
	}
	title := b.name()
	switch {
	case len(b.keys) > 2:
		p.faults.add(b.pos, title, "takes one name, write `cluster %s { … }`", b.keys[1])
	case len(b.keys) == 2:
		name, err := label("cluster name", 63)(b.keys[1])
		if err != nil {
			p.faults.add(b.pos, "cluster", "%v", err)
		}
		p.cfg.Cluster.Name = name
	}
	p.fields("cluster", b.body, p.clusterFields())
}

func (p *parser) clusterFields() []field {
	c := &p.cfg.Cluster
	return []field{
		{name: "join", usage: "HOST[:PORT]...", min: 1, max: -1, repeat: true, set: each(&c.Join, hostPort)},
		{name: "secret", usage: "FILE", min: 1, max: 1, set: one(&c.Secret, absolute)},
		{name: "gossip_port", usage: "PORT", min: 1, max: 1, set: one(&c.GossipPort, port)},
		{name: "sync_port", usage: "PORT", min: 1, max: 1, set: one(&c.SyncPort, port)},
	}
}

// each is the set of a directive that appends its arguments to a list.
func each[T any](list *[]T, parse func(string) (T, error)) func(Directive) error {
	return func(d Directive) error {
		for _, a := range d.Args {
			v, err := parse(a)
			if err != nil {
				return err
			}
			*list = append(*list, v)
		}
		return nil
	}
}

func (p *parser) services(b block) {
	if !p.once(b.pos, "services", "services", "already at %s, one range serves the whole cluster") {
		return
	}
	s := &p.cfg.Services
	s.Pos = b.pos
	if len(b.keys) != 2 && len(b.keys) != 3 {
		p.faults.add(b.pos, "services", "takes a range and perhaps an IPv6 range, write `services %s { … }`", DefaultServices)
	} else if got, err := rangePrefix(b.keys[1]); err != nil {
		p.faults.add(b.pos, "services", "%v", err)
	} else {
		s.Prefix = got
	}
	if len(b.keys) == 3 {
		var err error
		if s.Prefix6, err = twinPrefix(b.keys[2], s.Prefix); err != nil {
			p.faults.add(b.pos, "services", "%v", err)
		}
	}
	p.fields("services", b.body, p.servicesFields())
}

func (p *parser) servicesFields() []field {
	s := &p.cfg.Services
	return []field{
		{name: "dns", usage: "ADDR", min: 1, max: 1, set: one(&s.DNS, addr4)},
		{name: "nodeports", usage: "FIRST-LAST", min: 1, max: 1, set: one(&s.NodePorts, portRange)},
	}
}

func (p *parser) publish(b block) {
	title := "publish"
	if len(b.keys) > 1 {
		title = b.name()
	}
	p.fields(title, b.body, nil)
	if len(b.keys) != 3 {
		p.faults.add(b.pos, title, "takes a port and a target, write `publish [HOST:]PORT[-LAST][/PROTO] ADDR:PORT`")
		return
	}
	pub := Publish{Pos: b.pos}
	host, proto, err := protocol(b.keys[1], "tcp", "udp", "sctp")
	if err != nil {
		p.faults.add(b.pos, title, "%v", err)
	}
	pub.Protocol = proto
	number := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		number = host[i+1:]
		addr, err := publishedOn(host[:i])
		if err == nil && addr == netip.IPv4Unspecified() {
			addr = netip.Addr{} // every address of the host, as without one
		}
		if err != nil {
			p.faults.add(b.pos, title, "%v", err)
		}
		pub.HostAddr = addr
	}
	if pub.HostPort, pub.Last, err = ports(number); err != nil {
		p.faults.add(b.pos, title, "%v", err)
	}
	if pub.Target, err = targets(b.keys[2], pub.HostPort, pub.Last); err != nil {
		p.faults.add(b.pos, title, "%v", err)
	}
	if h, t := pub.HostAddr, pub.Target.Addr(); h.IsValid() && t.IsValid() && !h.IsLoopback() && h.Is4() != t.Is4() {
		p.faults.add(b.pos, title, "%s and the target %s are of different IP versions, which only a loopback address may be; write two of one version", h, t)
	}
	if pub.Protocol == "sctp" && pub.HostAddr.IsLoopback() {
		p.faults.add(b.pos, title, "SCTP is not served on loopback, write an address of the network, or none for all of the host's")
	}
	p.cfg.Publishes = append(p.cfg.Publishes, pub)
}

// publishedOn parses the host's address before a published port: an IPv4
// address, or an IPv6 address in brackets.
func publishedOn(s string) (netip.Addr, error) {
	in, v6 := strings.CutPrefix(s, "[")
	if !v6 {
		return addr4(s)
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(in, "]"))
	if err != nil || !strings.HasSuffix(s, "]") || !a.Is6() || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return netip.Addr{}, fmt.Errorf("%s: not an IPv6 address of a host in brackets, write e.g. [2001:db8::1]", s)
	}
	return a, nil
}
