package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// FullName returns NAME.NAMESPACE.
func (s *Service) FullName() string { return s.Name + "." + s.Namespace }

func (p *parser) service(b block) {
	s := Service{Namespace: DefaultNamespace, Pos: b.pos}
	title := b.name()
	if len(b.keys) != 2 {
		p.faults.add(b.pos, title, "takes one name, write `service NAME[.NAMESPACE] { … }`")
		return
	}
	name, ns, dotted := strings.Cut(b.keys[1], ".")
	var err error
	if s.Name, err = label("service name", 63)(name); err != nil {
		p.faults.add(b.pos, title, "%v", err)
	}
	if dotted {
		if s.Namespace, err = label("namespace", 63)(ns); err != nil {
			p.faults.add(b.pos, title, "%v", err)
		}
	}
	if s.Name != "" && s.Namespace != "" {
		title = "service " + s.FullName()
		if !p.once(b.pos, title, title, "a service of this name is at %s, rename one or change its namespace") {
			return
		}
	}
	p.fields(title, b.body, p.serviceFields(title, &s))
	if s.Name != "" && s.Namespace != "" {
		p.checkService(&s, title, slices.ContainsFunc(b.body, func(d Directive) bool { return d.Name == "port" }))
		p.cfg.Service = append(p.cfg.Service, s)
	}
}

func (p *parser) serviceFields(title string, s *Service) []field {
	ports, backends := map[string]bool{}, map[netip.AddrPort]bool{}
	return []field{
		{name: "vip", usage: "ADDR|none", min: 1, max: 1, set: func(d Directive) (err error) {
			if s.Headless = d.Args[0] == "none"; !s.Headless {
				s.VIP, err = addr4(d.Args[0])
			}
			return err
		}},
		{name: "port", usage: "[NAME] PORT[:TARGET][/PROTO] [nodeport PORT]", min: 1, max: 4, repeat: true, set: func(d Directive) error {
			sp, err := servicePort(d.Args)
			if err != nil {
				return err
			}
			number := fmt.Sprintf("%d/%s", sp.Port, sp.Protocol)
			switch {
			case ports[number]:
				return fmt.Errorf("%s: given twice, keep one", number)
			case ports[sp.Name] && sp.Name != "":
				return fmt.Errorf("%s: a port of that name is above, rename one", sp.Name)
			}
			ports[number], ports[sp.Name] = true, true
			s.Ports = append(s.Ports, sp)
			p.seen[portTitle(title, sp)] = d.Pos
			return nil
		}},
		{name: "select", usage: "KEY=VALUE...", min: 1, max: -1, repeat: true, set: func(d Directive) error {
			for _, a := range d.Args {
				k, v, err := keyValue(a)
				if err != nil {
					return err
				}
				if old, dup := s.Select[k]; dup {
					return fmt.Errorf("%s: %s=%s is already asked for, keep one", a, k, old)
				}
				if s.Select == nil {
					s.Select = map[string]string{}
				}
				s.Select[k] = v
			}
			return nil
		}},
		{name: "backend", usage: "ADDR[:PORT]...", min: 1, max: -1, repeat: true, set: func(d Directive) error {
			for _, a := range d.Args {
				b, err := backend(a)
				if err != nil {
					return err
				}
				if backends[b] {
					return fmt.Errorf("%s: given twice, keep one", a)
				}
				backends[b] = true
				s.Backends = append(s.Backends, b)
			}
			return nil
		}},
		{name: "external", usage: "NAME", min: 1, max: 1, set: one(&s.External, domain)},
		{name: "nodeport", usage: "", set: on(&s.NodePorts)},
		{name: "check", usage: "tcp", min: 1, max: 1, set: one(&s.Check, oneOf("tcp"))},
	}
}

func portTitle(title string, sp ServicePort) string {
	return fmt.Sprintf("%s port %d/%s", title, sp.Port, sp.Protocol)
}

// servicePort parses `[NAME] PORT[:TARGET][/PROTO] [nodeport PORT]`.
func servicePort(args []string) (sp ServicePort, err error) {
	if len(args) > 1 && args[1] != "nodeport" {
		if sp.Name, err = portName(args[0]); err != nil {
			return sp, err
		}
		args = args[1:]
	}
	spec, proto, err := protocol(args[0])
	if err != nil {
		return sp, err
	}
	sp.Protocol = proto
	number, to, mapped := strings.Cut(spec, ":")
	if sp.Port, err = port(number); err != nil {
		return sp, fmt.Errorf("%w; a port is [NAME] PORT[:TARGET][/PROTO]", err)
	}
	if mapped {
		if strings.Trim(to, "0123456789") == "" {
			sp.Target, err = port(to)
		} else {
			sp.TargetName, err = portName(to)
		}
		if err != nil {
			return sp, err
		}
	}
	switch {
	case len(args) == 1:
	case len(args) != 3 || args[1] != "nodeport":
		return sp, fmt.Errorf("%s: unknown words after the port, write `nodeport PORT` or nothing", strings.Join(args[1:], " "))
	default:
		sp.NodePort, err = port(args[2])
	}
	return sp, err
}

// portName parses the name of a port: a label with a letter, so that it is
// not taken for a number, of at most 15 characters (RFC 6335 section 5.1).
func portName(s string) (string, error) {
	n, err := label("port name", 15)(s)
	if err == nil && strings.Trim(n, "0123456789-") == "" {
		return "", fmt.Errorf("%s: not a port name, it needs a letter", s)
	}
	return n, err
}

// backend parses ADDR[:PORT], an IPv6 address with a port in brackets; port 0 stands for the target port.
func backend(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		s = netip.AddrPortFrom(a, 1).String()
		ap, err := target(s)
		if err != nil {
			return ap, fmt.Errorf("%s: not the address of a host", a)
		}
		return netip.AddrPortFrom(ap.Addr(), 0), nil
	}
	return target(s)
}

// checkService checks a service by itself. ported: it has a port line, though
// maybe a faulty one.
func (p *parser) checkService(s *Service, title string, ported bool) {
	wrong := func(directive, format string, args ...any) {
		p.faults.add(p.where(title, directive, s.Pos), title, format, args...)
	}
	if s.External != "" {
		if s.VIP.IsValid() || s.Headless || len(s.Ports)+len(s.Select)+len(s.Backends) > 0 || s.NodePorts || s.Check != "" {
			wrong("external", "external is a name in DNS only, remove the other directives")
		}
		return
	}
	_, written := p.seen[title+" external"]
	switch {
	case written: // wrong, and reported
	case s.Headless:
		if s.NodePorts {
			wrong("nodeport", "nodeport needs a VIP, remove `vip none` or nodeport")
		}
		for _, sp := range s.Ports {
			if sp.NodePort != 0 {
				p.faults.add(p.seen[portTitle(title, sp)], title, "nodeport needs a VIP, remove `vip none` or the node port")
			}
		}
	case !ported:
		p.faults.add(s.Pos, title, "no port, add `port NUMBER`, or `vip none` for addresses in DNS alone")
	}
}
