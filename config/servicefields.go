package config

import (
	"fmt"
	"net/netip"
	"time"
)

// serviceFields are the directives of a service block.
func (p *parser) serviceFields(title string, s *Service) []field {
	return append(p.addressFields(title, s), []field{
		{name: "check", usage: "TYPE [ARG...]", min: 1, max: -1, inner: probeFields(&s.Probe), set: func(d Directive) (err error) {
			s.Probe, err = ParseProbe(d.Args)
			return err
		}},
		{name: "slow_start", usage: "DURATION", min: 1, max: 1, set: one(&s.SlowStart, spanIn(time.Second, time.Hour))},
		{name: "balance", usage: "random|source|maglev", min: 1, max: 1, set: one(&s.Balance, ParseBalance)},
		{name: "affinity", usage: "DURATION", min: 1, max: 1, set: one(&s.Affinity, ParseAffinity)},
		{name: "inside", usage: "all|local|prefer-node|prefer-zone", min: 1, max: 1, set: one(&s.Inside, ParsePolicy)},
		{name: "outside", usage: "all|local|prefer-node|prefer-zone", min: 1, max: 1, set: one(&s.Outside, ParsePolicy)},
	}...)
}

// addressFields are those that say where a service is and what is behind it.
func (p *parser) addressFields(title string, s *Service) []field {
	ports, given := map[string]bool{}, map[netip.AddrPort]bool{}
	return []field{
		{name: "vip", usage: "ADDR [ADDR6]|none", min: 1, max: 2, set: func(d Directive) (err error) {
			s.VIP, s.VIP6, s.Headless, err = ParseVIPs(d.Args)
			return err
		}},
		{name: "families", usage: "ipv4 ipv6", min: 1, max: 2, set: func(d Directive) (err error) {
			s.Families, err = ParseFamilies(d.Args)
			return err
		}},
		{name: "port", usage: "[NAME] PORT[-LAST][:TARGET][/PROTO] [nodeport PORT]", min: 1, max: 4, repeat: true, set: func(d Directive) error {
			sp, err := servicePort(d.Args)
			if err != nil {
				return err
			}
			switch {
			case ports[sp.key()]:
				return fmt.Errorf("%s: given twice, keep one", sp.key())
			case ports[sp.Name] && sp.Name != "":
				return fmt.Errorf("%s: a port of that name is above, rename one", sp.Name)
			}
			ports[sp.key()], ports[sp.Name] = true, true
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
		{name: "backend", usage: "ADDR[:PORT]... [weight N]", min: 1, max: -1, repeat: true, set: func(d Directive) error {
			all, err := backends(d.Args)
			if err != nil {
				return err
			}
			for i, b := range all {
				if given[b.Addr] {
					return fmt.Errorf("%s: given twice, keep one", d.Args[i])
				}
				given[b.Addr] = true
				s.Backends = append(s.Backends, b)
			}
			return nil
		}},
		{name: "external", usage: "NAME", min: 1, max: 1, set: one(&s.External, domain)},
		{name: "nodeport", usage: "", set: on(&s.NodePorts)},
		{name: "nodeport_addresses", usage: "PREFIX...", min: 1, max: -1, repeat: true, set: each(&s.NodeAddrs, prefixOrAddr)},
		{name: "address", usage: "ADDR...", min: 1, max: -1, repeat: true, set: each(&s.Addresses, eitherAddr)},
		{name: "announce", usage: "", set: on(&s.Announce)},
		{name: "source", usage: "PREFIX...", min: 1, max: -1, repeat: true, set: each(&s.Sources, prefixOrAddr)},
		{name: "health_port", usage: "PORT", min: 1, max: 1, set: one(&s.HealthPort, port)},
	}
}

// ParseBalance parses how a backend is chosen; random, the default, is "".
func ParseBalance(s string) (string, error) { return wordOr(s, "random", "source", "maglev") }

// ParsePolicy parses which backends connections get; all, the default, is "".
func ParsePolicy(s string) (string, error) {
	return wordOr(s, "all", "local", "prefer-node", "prefer-zone")
}

// ParseAffinity parses how long a client keeps its backend, in whole seconds.
func ParseAffinity(s string) (time.Duration, error) {
	d, err := spanIn(time.Second, 24*time.Hour)(s)
	if err == nil && d%time.Second != 0 {
		return 0, fmt.Errorf("%s: not whole seconds, write e.g. %s", s, d.Truncate(time.Second))
	}
	return d, err
}

// ParseSlowStart parses the time that a new backend takes to its whole share.
func ParseSlowStart(s string) (time.Duration, error) { return spanIn(time.Second, time.Hour)(s) }

// wordOr parses one of the words; the first, the default, is "".
func wordOr(s string, words ...string) (string, error) {
	w, err := oneOf(words...)(s)
	if w == words[0] {
		w = ""
	}
	return w, err
}

// prefixOrAddr parses a prefix of either version, or an address as the prefix
// of itself alone.
func prefixOrAddr(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && !a.Is4In6() && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return eitherPrefix(s)
}

// ParsePrefix parses a prefix or an address, as `source` takes it.
func ParsePrefix(s string) (netip.Prefix, error) { return prefixOrAddr(s) }

// spanIn parses a duration of whole milliseconds within [lo, hi].
func spanIn(lo, hi time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s: not a duration, write e.g. 500ms, 30s or 10m", s)
		case d < lo || d > hi || d%time.Millisecond != 0:
			return 0, fmt.Errorf("%s: out of range, write a duration from %s to %s", s, shortest(lo), shortest(hi))
		}
		return d, nil
	}
}
