package config

import (
	"fmt"
	"net/netip"
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
		p.checkService(&s, title, b.body)
		p.cfg.Service = append(p.cfg.Service, s)
	}
}

func portTitle(title string, sp ServicePort) string { return title + " port " + sp.key() }

// servicePort parses `[NAME] PORT[-LAST][:TARGET][/PROTO] [nodeport PORT]`.
func servicePort(args []string) (sp ServicePort, err error) {
	name := ""
	if len(args) > 1 && args[1] != "nodeport" {
		if name, err = portName(args[0]); err != nil {
			return sp, err
		}
		args = args[1:]
	}
	if sp, err = ParsePort(args[0]); err != nil {
		return sp, err
	}
	sp.Name = name
	switch {
	case len(args) == 1:
	case len(args) != 3 || args[1] != "nodeport":
		return sp, fmt.Errorf("%s: unknown words after the port, write `nodeport PORT` or nothing", strings.Join(args[1:], " "))
	default:
		sp.NodePort, err = port(args[2])
	}
	return sp, err
}

// ParsePort parses PORT[-LAST][:TARGET][/PROTO], as `port` has it after the
// name. Errors begin with the word that is wrong.
func ParsePort(s string) (sp ServicePort, err error) {
	spec, proto, err := protocol(s, "tcp", "udp", "sctp")
	if err != nil {
		return sp, err
	}
	sp.Protocol = proto
	number, to, mapped := strings.Cut(spec, ":")
	if strings.Contains(number, "-") {
		r, err := portRange(number)
		if err != nil {
			return sp, err
		}
		if sp.Port = r.First; r.Last > r.First {
			sp.Last = r.Last
		}
	} else if sp.Port, err = port(number); err != nil {
		return sp, fmt.Errorf("%w; a port is [NAME] PORT[-LAST][:TARGET][/PROTO]", err)
	}
	if !mapped {
		return sp, nil
	}
	switch {
	case strings.Trim(to, "0123456789") == "":
		sp.Target, err = port(to)
	case sp.Last != 0 && strings.Trim(to, "0123456789-") == "":
		err = fmt.Errorf("%s: the target of a range is its first port, write %s:%s", s, number, to[:strings.IndexByte(to, '-')])
	default:
		sp.TargetName, err = portName(to)
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

// backend parses ADDR[:PORT]; port 0 stands for the target port.
func backend(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		s = netip.AddrPortFrom(a, 1).String()
		ap, err := target(s)
		if err != nil {
			return ap, fmt.Errorf("%s: not the IPv4 address of a host", a)
		}
		return netip.AddrPortFrom(ap.Addr(), 0), nil
	}
	return target(s)
}

// MaxWeight bounds a backend's weight.
const MaxWeight = 256

// ParseBackend parses ADDR[:PORT]. Its port is 0 when none is given.
func ParseBackend(s string) (netip.AddrPort, error) { return backend(s) }

// backends parses `ADDR[:PORT]... [weight N]`.
func backends(args []string) ([]Backend, error) {
	weight := 0
	if n := len(args) - 2; n >= 0 && args[n] == "weight" {
		var err error
		if weight, err = number(args[n+1], 1, MaxWeight); err != nil {
			return nil, fmt.Errorf("weight %w", err)
		}
		if args = args[:n]; n == 0 {
			return nil, fmt.Errorf("weight: no address before it, write `backend ADDR[:PORT]... weight %d`", weight)
		}
	}
	var all []Backend
	for _, a := range args {
		addr, err := backend(a)
		if err != nil {
			return nil, err
		}
		all = append(all, Backend{addr, weight})
	}
	return all, nil
}
