package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ServiceFault is something that is wrong with a service as a whole.
type ServiceFault struct {
	Directive string       // where in a block it is; "": nowhere in particular
	Port      *ServicePort // the port that it is about; nil: none
	Text      string       // what, with the fix
}

// Check says what is wrong with a service by itself: all that a Nodefile, a
// command and a label have in common. What a Nodefile's words cannot even say
// is looked at too, for services that come otherwise.
func (s *Service) Check() []ServiceFault {
	c := &serviceCheck{s: s}
	if !isLabel(s.Name) || !isLabel(s.Namespace) {
		c.wrong("", "%s: not NAME.NAMESPACE of letters, digits and inner hyphens, at most 63 each", s.FullName())
	}
	if s.External != "" {
		c.external()
		return c.faults
	}
	if s.Headless {
		c.headless()
	} else if len(s.Ports) == 0 {
		c.wrong("", "no port, add `port NUMBER`, or `vip none` for addresses in DNS alone")
	}
	c.ports()
	c.families()
	c.outside()
	c.words()
	if s.Probe != nil {
		c.faults = append(c.faults, s.Probe.check(s)...)
	}
	return c.faults
}

type serviceCheck struct {
	s      *Service
	faults []ServiceFault
}

func (c *serviceCheck) wrong(directive, format string, args ...any) {
	c.faults = append(c.faults, ServiceFault{Directive: directive, Text: fmt.Sprintf(format, args...)})
}

func (c *serviceCheck) external() {
	s := c.s
	if s.VIP.IsValid() || s.VIP6.IsValid() || len(s.Families) > 0 || s.Headless || len(s.Ports)+len(s.Select)+len(s.Backends) > 0 || s.NodePorts || s.Probe != nil ||
		s.SlowStart != 0 || len(s.vipOnly()) > 0 {
		c.wrong("external", "external is a name in DNS only, remove the other directives")
	}
	if _, err := domain(s.External); err != nil {
		c.wrong("external", "external %v", err)
	}
}

// vipOnly lists the directives in use that mean nothing without a VIP.
func (s *Service) vipOnly() (names []string) {
	for _, d := range []struct {
		name string
		used bool
	}{
		{"balance", s.Balance != ""}, {"affinity", s.Affinity != 0}, {"inside", s.Inside != ""}, {"outside", s.Outside != ""},
		{"address", len(s.Addresses) > 0}, {"announce", s.Announce}, {"source", len(s.Sources) > 0},
		{"nodeport_addresses", len(s.NodeAddrs) > 0}, {"health_port", s.HealthPort != 0},
	} {
		if d.used {
			names = append(names, d.name)
		}
	}
	return names
}

func (c *serviceCheck) headless() {
	if c.s.VIP.IsValid() || c.s.VIP6.IsValid() {
		c.wrong("vip", "a headless service has no VIP, remove %s", vipText(c.s.VIP, c.s.VIP6))
	}
	if c.s.NodePorts {
		c.wrong("nodeport", "nodeport needs a VIP, remove `vip none` or nodeport")
	}
	for _, name := range c.s.vipOnly() {
		c.wrong(name, "%s needs a VIP, remove `vip none` or %s", name, name)
	}
	for i := range c.s.Ports {
		if p := &c.s.Ports[i]; p.NodePort != 0 {
			c.port(p, "nodeport needs a VIP, remove `vip none` or the node port")
		}
	}
}

func (c *serviceCheck) port(p *ServicePort, format string, args ...any) {
	c.faults = append(c.faults, ServiceFault{Directive: "port", Port: p, Text: fmt.Sprintf(format, args...)})
}

// key is the port as people write it, with its protocol.
func (p *ServicePort) key() string {
	if p.Last != 0 {
		return fmt.Sprintf("%d-%d/%s", p.Port, p.Last, p.Protocol)
	}
	return fmt.Sprintf("%d/%s", p.Port, p.Protocol)
}

func (c *serviceCheck) ports() {
	for i := range c.s.Ports {
		p := &c.s.Ports[i]
		last := cmp.Or(p.Last, p.Port)
		switch {
		case !slices.Contains([]string{"tcp", "udp", "sctp"}, p.Protocol):
			c.port(p, "port %s: unknown protocol %q, write tcp, udp or sctp", p.key(), p.Protocol)
			continue
		case p.Port == 0 || last < p.Port:
			c.port(p, "port %s: not a port or a range of them, from 1 to 65535", p.key())
			continue
		case p.Last != 0 && p.TargetName != "":
			c.port(p, "port %s: a range has no named target, write a number", p.key())
		case p.Last != 0 && p.NodePort != 0:
			c.port(p, "port %s: a range has no node port, give its ports one by one", p.key())
		case p.Last != 0 && p.Target != 0 && int(p.Target)+int(p.Last-p.Port) > 65535:
			c.port(p, "port %s: its targets from %d on end beyond 65535, choose a lower one", p.key(), p.Target)
		case p.Name != "":
			if _, err := portName(p.Name); err != nil {
				c.port(p, "port %v", err)
			}
		}
		for j := range c.s.Ports[:i] {
			q := &c.s.Ports[j]
			if q.Protocol != p.Protocol {
				continue
			}
			switch {
			case p.key() == q.key():
				c.port(p, "port %s: given twice, keep one", p.key())
			case p.Port <= cmp.Or(q.Last, q.Port) && q.Port <= last:
				c.port(p, "port %s: overlaps port %s, keep them apart", p.key(), q.key())
			}
		}
	}
}

// outside checks what is about clients from outside of the cluster.
func (c *serviceCheck) outside() {
	s := c.s
	ported := s.NodePorts || slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.NodePort != 0 })
	open := ported || len(s.Addresses) > 0
	if s.Headless {
		return // reported
	}
	for _, d := range []struct {
		name string
		used bool
	}{{"outside", s.Outside != ""}, {"source", len(s.Sources) > 0}} {
		if d.used && !open {
			c.wrong(d.name, "%s is for clients from outside, who have no way in: add `nodeport` or `address ADDR`, or remove %s", d.name, d.name)
		}
	}
	if len(s.NodeAddrs) > 0 && !ported {
		c.wrong("nodeport_addresses", "nodeport_addresses without a node port, add `nodeport` or remove it")
	}
	if s.Announce && len(s.Addresses) == 0 {
		c.wrong("announce", "announce without an address, add `address ADDR` or remove it")
	}
	seen := map[netip.Addr]bool{}
	for _, a := range s.Addresses {
		switch {
		case !ofHost(a) || a.IsLoopback():
			c.wrong("address", "address %s: not the address of a host that others reach, write one of the LAN", a)
		case seen[a]:
			c.wrong("address", "address %s: given twice, keep one", a)
		}
		seen[a] = true
	}
	for _, d := range []struct {
		name string
		list []netip.Prefix
	}{{"source", s.Sources}, {"nodeport_addresses", s.NodeAddrs}} {
		for _, p := range d.list {
			if _, err := eitherPrefix(p.String()); err != nil {
				c.wrong(d.name, "%s %v", d.name, err)
			}
		}
	}
}

// words checks values that a Nodefile's parser would not have let through.
func (c *serviceCheck) words() {
	s := c.s
	for _, d := range []struct {
		name, value string
		parse       func(string) (string, error)
	}{{"balance", s.Balance, ParseBalance}, {"inside", s.Inside, ParsePolicy}, {"outside", s.Outside, ParsePolicy}} {
		if d.value == "" {
			continue
		}
		if _, err := d.parse(d.value); err != nil {
			c.wrong(d.name, "%s %v", d.name, err)
		}
	}
	if s.Affinity != 0 && (s.Affinity < time.Second || s.Affinity > 24*time.Hour || s.Affinity%time.Second != 0) {
		c.wrong("affinity", "affinity %s: write whole seconds from 1s to 24h", s.Affinity)
	}
	if s.SlowStart != 0 && (s.SlowStart < time.Second || s.SlowStart > time.Hour || s.SlowStart%time.Millisecond != 0) {
		c.wrong("slow_start", "slow_start %s: write a duration from 1s to 1h", s.SlowStart)
	}
	seen := map[netip.AddrPort]bool{}
	for _, b := range s.Backends {
		a := b.Addr.Addr()
		switch {
		case !ofHost(a):
			c.wrong("backend", "backend %s: not the address of a host", a)
		case b.Weight < 0 || b.Weight > MaxWeight:
			c.wrong("backend", "backend %s: weight %d is out of range, write a number from 1 to %d", a, b.Weight, MaxWeight)
		case seen[b.Addr]:
			c.wrong("backend", "backend %s: given twice, keep one", backendText(b.Addr))
		}
		seen[b.Addr] = true
	}
}

// backendText is ADDR[:PORT].
func backendText(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

// checkService places what is wrong with a service at its lines. What a line
// that could not be read would have said is not missed a second time.
func (p *parser) checkService(s *Service, title string, body []Directive) {
	written := func(name string) bool {
		return slices.ContainsFunc(body, func(d Directive) bool { return d.Name == name })
	}
	if written("external") && s.External == "" {
		return // wrong, and reported
	}
	for _, f := range s.Check() {
		switch {
		case f.Directive == "" && written("port") && len(s.Ports) == 0:
		case f.Directive == "check" && len(s.Ports) == 0:
		case f.Port != nil:
			p.faults.add(p.where(title, fmt.Sprintf("port %s", f.Port.key()), s.Pos), title, "%s", f.Text)
		default:
			at := s.Pos
			if f.Directive != "" {
				at = p.lineOf(title, f.Directive, body, s.Pos)
			}
			p.faults.add(at, title, "%s", f.Text)
		}
	}
}

// lineOf is where a directive of a body is first written.
func (p *parser) lineOf(title, directive string, body []Directive, block Pos) Pos {
	for _, d := range body {
		if d.Name == directive {
			return d.Pos
		}
	}
	return p.where(title, directive, block)
}
