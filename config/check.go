package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// check compares the parts of a configuration with one another and with the
// host. Faults name the later of two parts, and where the other is.
func (p *parser) check() {
	p.checkNode()
	p.checkRanges()
	p.checkLinks()
	p.checkPeers()
	p.checkServices()
	p.checkEntrances()
	p.checkPublishes()
}

func (p *parser) checkNode() {
	c := &p.cfg
	if _, written := p.seen["node name"]; !written && c.Node.Name == "" {
		p.faults.add(Pos{File: c.File}, "node", "the host has no usable name, write `node { name NAME }`")
	}
	for directive, a := range map[string]netip.Addr{"advertise": c.Node.Advertise, "underlay": c.Node.Underlay} {
		for _, r := range p.ranges() {
			if a.IsValid() && !r.local && r.prefix.Contains(a) {
				p.faults.add(p.where("node", directive, Pos{}), "node", "%s %s: lies in %s, which nodenet gives addresses from; choose another range", directive, a, r)
			}
		}
	}
	if c.Cluster.GossipPort == c.Cluster.SyncPort {
		p.faults.add(p.where("cluster", "sync_port", p.where("cluster", "gossip_port", Pos{})), "cluster",
			"gossip_port and sync_port are both %d, choose two", c.Cluster.SyncPort)
	}
}

// span is a range of addresses of the configuration.
type span struct {
	title  string
	prefix netip.Prefix
	pos    Pos
	local  bool // overlay none: may be the node's own LAN, through a bridge of the host
}

func (s span) String() string {
	if s.pos.Line == 0 {
		return fmt.Sprintf("%s %s (the default)", s.title, s.prefix)
	}
	return fmt.Sprintf("%s %s (%s)", s.title, s.prefix, s.pos)
}

// ranges lists the networks and the service range that are well formed.
func (p *parser) ranges() []span {
	var all []span
	for _, n := range p.cfg.Networks {
		if n.Prefix.IsValid() {
			all = append(all, span{"network " + n.Name, n.Prefix, n.Pos, n.Overlay == OverlayNone})
		}
		if n.Prefix6.IsValid() {
			all = append(all, span{"network " + n.Name, n.Prefix6, n.Pos, n.Overlay == OverlayNone})
		}
	}
	if s := p.cfg.Services; s.Prefix.IsValid() {
		all = append(all, span{"services", s.Prefix, s.Pos, false})
	}
	if s := p.cfg.Services; s.Prefix6.IsValid() {
		all = append(all, span{"services", s.Prefix6, s.Pos, false})
	}
	return all
}

// maxNetworks bounds the comparison of each range with each other one.
const maxNetworks = 1000

func (p *parser) checkRanges() {
	all := p.ranges()
	if n := len(p.cfg.Networks); n > maxNetworks {
		p.faults.add(p.cfg.Networks[maxNetworks].Pos, "", "%d networks, a node has at most %d", n, maxNetworks)
		return
	}
	for i, b := range all {
		for _, a := range all[:i] {
			if !a.prefix.Overlaps(b.prefix) {
				continue
			}
			at, other := b, a
			if later(a.pos, b.pos) {
				at, other = a, b
			}
			p.faults.add(at.pos, at.title, "%s overlaps %s, choose ranges apart from each other", at.prefix, other)
		}
		for _, r := range p.env.Routes {
			if p.foreign(r) && r.Prefix.Overlaps(b.prefix) {
				fix := "choose another range"
				if b.pos.Line == 0 {
					fix = "write `" + b.title + " PREFIX` with another range"
				}
				p.faults.add(b.pos, b.title, "%s overlaps this host's route %s dev %s, %s", b.prefix, r.Prefix, cmp.Or(r.Dev, "?"), fix)
			}
		}
	}
}

// later reports whether a is written and b is a default or written before it
// in the same file.
func later(a, b Pos) bool {
	return a.Line != 0 && (b.Line == 0 || a.File == b.File && a.Line > b.Line)
}

// foreign reports whether r is somebody else's route to somewhere in
// particular. VPNs write the default route as two halves.
func (p *parser) foreign(r HostRoute) bool {
	if !r.Prefix.IsValid() || r.Prefix.Bits() <= 1 || r.Protocol == RouteProtocol || ownDevice(r.Dev) {
		return false
	}
	for _, n := range p.cfg.Networks {
		if n.Bridge == r.Dev {
			return false
		}
	}
	return true
}

// ownDevice reports whether nodenet gives such names: nn* to bridges, nv-* to
// VXLAN links.
func ownDevice(name string) bool {
	return strings.HasPrefix(name, "nn") || strings.HasPrefix(name, "nv-")
}

func (p *parser) checkLinks() {
	bridges, vnis := map[string]string{}, map[uint32]string{}
	for _, n := range p.cfg.Networks {
		title := "network " + n.Name
		if other, dup := bridges[n.Bridge]; dup && n.Name != "" {
			p.faults.add(p.networkPos(n, "bridge"), title, "bridge %s is that of %s, choose another", n.Bridge, other)
		}
		bridges[n.Bridge] = title
		if other, dup := vnis[n.VNI]; dup && n.VNI != 0 && n.Prefix.IsValid() {
			p.faults.add(p.networkPos(n, "vni"), title, "vni %d is that of %s, write `vni NUMBER` with another", n.VNI, other)
		}
		vnis[n.VNI] = title
	}
}

// checkPeers wants the peers of networks to be there, and not to be closed.
func (p *parser) checkPeers() {
	internal := map[string]bool{}
	var known []string
	for _, n := range p.cfg.Networks {
		known = append(known, n.Name)
		internal[n.Name] = n.Internal
	}
	for _, n := range p.cfg.Networks {
		title := "network " + n.Name
		seen := map[string]bool{}
		for _, peer := range n.Peers {
			at := p.networkPos(n, "peer")
			closed, there := internal[peer]
			switch {
			case peer == n.Name:
				p.faults.add(at, title, "peer %s: the network itself, remove it", peer)
			case seen[peer]:
				p.faults.add(at, title, "peer %s: given twice, keep one", peer)
			case !there:
				p.faults.add(at, title, "peer %s: no network of that name%s", peer, meant(peer, known))
			case closed:
				p.faults.add(at, title, "peer %s: is internal, which has no way out; remove one of the two", peer)
			}
			seen[peer] = true
		}
	}
}

func (p *parser) networkPos(n Network, directive string) Pos {
	return p.where("network "+n.Name, directive, n.Pos)
}

func (p *parser) checkServices() {
	r := p.cfg.Services
	if r.Prefix.IsValid() && r.DNS.IsValid() && !usable(r.DNS, r.Prefix) {
		fix := "write an address of the range, e.g. `dns " + r.Prefix.Addr().Next().String() + "`"
		p.faults.add(p.where("services", "dns", r.Pos), "services", "dns %s: not a host address of %s, %s", r.DNS, r.Prefix, fix)
	}
	vips, nodePorts := map[netip.Addr]string{}, map[string]string{}
	for i := range p.cfg.Service {
		s := &p.cfg.Service[i]
		title := "service " + s.FullName()
		for _, f := range s.CheckIn(&r) {
			p.faults.add(p.where(title, f.Directive, s.Pos), title, "%s", f.Text)
		}
		for _, v := range s.vips(&r) {
			if other, dup := vips[v.addr]; dup && other != title {
				p.faults.add(p.where(title, "vip", s.Pos), title, "vip %s: is that of %s, choose another", v, other)
				break
			}
			vips[v.addr] = title
		}
		for _, sp := range s.Ports {
			if sp.NodePort == 0 {
				continue
			}
			at := p.seen[portTitle(title, sp)]
			key := fmt.Sprintf("%d/%s", sp.NodePort, sp.Protocol)
			if !r.NodePorts.Contains(sp.NodePort) {
				p.faults.add(at, title, "nodeport %d: outside of nodeports %d-%d, choose one inside", sp.NodePort, r.NodePorts.First, r.NodePorts.Last)
			}
			if other, dup := nodePorts[key]; dup {
				p.faults.add(at, title, "nodeport %s: is that of %s, choose another", key, other)
			} else {
				nodePorts[key] = title
			}
		}
	}
}

// checkEntrances compares where services are reached from outside of the
// cluster: external addresses with their ports, and health ports.
func (p *parser) checkEntrances() {
	type entrance struct {
		addr  netip.Addr
		proto string
		port  uint16
	}
	taken := map[entrance]string{}
	health := map[uint16]string{}
	own := p.cfg.ownPorts()
	for i := range p.cfg.Service {
		s := &p.cfg.Service[i]
		title := "service " + s.FullName()
		for _, a := range s.Addresses {
			at := p.where(title, "address", s.Pos)
			for _, r := range p.ranges() {
				if !r.local && r.prefix.Contains(a) {
					p.faults.add(at, title, "address %s: lies in %s, which nodenet gives addresses from; choose one of the LAN", a, r)
				}
			}
			for _, sp := range s.Ports {
				for n := int(sp.Port); n <= int(max(sp.Port, sp.Last)); n++ {
					e := entrance{a, sp.Protocol, uint16(n)}
					if other, dup := taken[e]; dup && other != title {
						p.faults.add(at, title, "address %s: its port %d/%s is that of %s, choose another", a, n, sp.Protocol, other)
						break
					}
					taken[e] = title
				}
			}
		}
		if s.HealthPort == 0 {
			continue
		}
		at := p.where(title, "health_port", s.Pos)
		if other, dup := health[s.HealthPort]; dup {
			p.faults.add(at, title, "health_port %d: is that of %s, choose another", s.HealthPort, other)
		} else if user, used := own[fmt.Sprintf("%d/tcp", s.HealthPort)]; used {
			p.faults.add(at, title, "health_port %d: is the port of %s, choose another", s.HealthPort, user)
		}
		health[s.HealthPort] = title
	}
}

// ownPorts are the ports of the host that nodenet itself listens on.
func (c *Config) ownPorts() map[string]string {
	own := map[string]string{
		fmt.Sprintf("%d/tcp", c.Cluster.GossipPort): "gossip",
		fmt.Sprintf("%d/udp", c.Cluster.GossipPort): "gossip",
		fmt.Sprintf("%d/tcp", c.Cluster.SyncPort):   "sync",
	}
	for _, n := range c.Networks {
		if n.Port != 0 {
			own[fmt.Sprintf("%d/udp", n.Port)] = "VXLAN"
		}
	}
	for _, s := range c.Service {
		for _, sp := range s.Ports {
			if sp.NodePort != 0 {
				own[fmt.Sprintf("%d/%s", sp.NodePort, sp.Protocol)] = "the node port of service " + s.FullName()
			}
		}
	}
	return own
}

func (p *parser) checkPublishes() {
	own := p.cfg.ownPorts()
	var good []Publish
	for _, b := range p.cfg.Publishes {
		if b.HostPort == 0 {
			continue
		}
		title := "publish " + b.host()
		if h, t := b.HostAddr, b.Target.Addr(); h.IsValid() && t.IsValid() && !h.IsLoopback() && h.Is4() != t.Is4() && !p.cfg.Aim(&b).IsValid() {
			p.faults.add(b.Pos, title, "%s and the target %s are of different IP versions, which only a loopback address may be; write two of one version, or give the target's network an IPv6 range", h, t)
		}
		for n := int(b.HostPort); n <= int(max(b.HostPort, b.Last)); n++ {
			key := fmt.Sprintf("%d/%s", n, b.Protocol)
			if user, used := own[key]; used {
				p.faults.add(b.Pos, title, "%s is the port of %s, publish another", key, user)
			}
		}
		if i := slices.IndexFunc(good, b.overlaps); i >= 0 {
			p.faults.add(b.Pos, title, "already published as %s at %s, keep one", good[i].host(), good[i].Pos)
			continue
		}
		good = append(good, b)
	}
}

// overlaps reports whether two lines claim one port of one address.
func (p *Publish) overlaps(o Publish) bool {
	return p.Protocol == o.Protocol && p.HostPort <= max(o.HostPort, o.Last) && o.HostPort <= max(p.HostPort, p.Last) &&
		(p.HostAddr == o.HostAddr || !p.HostAddr.IsValid() || !o.HostAddr.IsValid())
}
