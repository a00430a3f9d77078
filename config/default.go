package config

import (
	"net/netip"
	"path/filepath"
	"strings"
)

// defaults fills what the Nodefile left out.
func (p *parser) defaults() {
	c := &p.cfg
	if _, written := p.seen["node name"]; !written {
		c.Node.Name = nodeNameOf(p.env.Hostname)
	}
	c.Node.StateDir = or(c.Node.StateDir, DefaultStateDir)
	c.Node.Socket = or(c.Node.Socket, DefaultSocket)
	c.Cluster.Name = or(c.Cluster.Name, DefaultCluster)
	c.Cluster.Secret = or(c.Cluster.Secret, filepath.Join(c.Node.StateDir, "cluster.secret"))
	c.Cluster.GossipPort = or(c.Cluster.GossipPort, DefaultGossipPort)
	c.Cluster.SyncPort = or(c.Cluster.SyncPort, DefaultSyncPort)
	p.defaultNetworks()
	p.defaultServices()
	if len(c.Servers) == 0 {
		c.Servers = []Server{defaultServer()}
	}
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// defaultNetworks adds the default network where there is none, and numbers
// the VXLAN networks that have no number.
func (p *parser) defaultNetworks() {
	c := &p.cfg
	if len(c.Networks) == 0 {
		c.Networks = []Network{{
			Name: DefaultNetwork, Prefix: netip.MustParsePrefix(DefaultPrefix), Block: DefaultBlock,
			Overlay: OverlayVXLAN, Port: DefaultVXLANPort, Masquerade: true, Bridge: bridgePrefix + DefaultNetwork,
			LeaseTime: DefaultLeaseTime, Namespace: DefaultNamespace, Pos: Pos{File: c.File},
		}}
	}
	var nth uint32
	for i := range c.Networks {
		n := &c.Networks[i]
		if !n.UsesVXLAN() {
			continue
		}
		if nth++; n.VNI == 0 {
			n.VNI = nth
		}
	}
}

func (p *parser) defaultServices() {
	s := &p.cfg.Services
	if _, written := p.seen["services"]; !written {
		s.Prefix, s.Pos = netip.MustParsePrefix(DefaultServices), Pos{File: p.cfg.File}
	}
	if _, written := p.seen["services dns"]; !written && s.Prefix.IsValid() {
		a := s.Prefix.Addr()
		for range 10 {
			a = a.Next()
		}
		s.DNS = a
	}
	if _, written := p.seen["services nodeports"]; !written {
		s.NodePorts = PortRange{30000, 32767}
	}
}

// nodeNameOf makes a node name of a host name: its first label, with a hyphen
// for what DNS does not allow. "" when nothing is left.
func nodeNameOf(host string) string {
	first, _, _ := strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, first)
	return strings.Trim(name[:min(len(name), 63)], "-")
}

// defaultServer answers the cluster's names and forwards the rest. Its health,
// ready and metrics listeners are for this host alone.
func defaultServer() Server {
	d := func(name string, args ...string) Directive { return Directive{Name: name, Args: args} }
	with := func(d Directive, body ...Directive) Directive { d.Block = body; return d }
	return Server{Keys: []string{".:53"}, Directives: []Directive{
		d("errors"),
		d("health", "127.0.0.1:9154"),
		d("ready", "127.0.0.1:9155"),
		with(d("cluster", DefaultZone, "in-addr.arpa", "ip6.arpa"),
			d("pods", "insecure"),
			d("fallthrough", "in-addr.arpa", "ip6.arpa")),
		with(d("hosts", "/etc/hosts"),
			d("fallthrough")),
		d("prometheus", "127.0.0.1:9153"),
		d("forward", ".", "/etc/resolv.conf"),
		d("cache", "30"),
		d("loop"),
		d("reload"),
		d("loadbalance"),
	}}
}
