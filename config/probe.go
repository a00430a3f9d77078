package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The defaults of a check, for its result to be out within seconds and for a
// single lost packet not to count.
const (
	DefaultInterval = 2 * time.Second
	DefaultTimeout  = time.Second
	DefaultRise     = 1
	DefaultFall     = 2
)

var probeTypes = []string{"tcp", "http", "https", "exec", "udp", "dns"}

// ParseProbe parses the words of `check TYPE [ARG...]`: the path of http and
// https, the program of exec with its arguments, the name that dns looks up.
func ParseProbe(words []string) (*Probe, error) {
	kind, err := oneOf(probeTypes...)(words[0])
	if err != nil {
		return nil, err
	}
	pr := &Probe{Type: kind}
	args := words[1:]
	switch kind {
	case "exec":
		if len(args) > 0 {
			pr.Command, err = command(args)
		}
		if err != nil {
			return nil, err
		}
		return pr, nil
	case "http", "https", "dns":
	default:
		if len(args) > 0 {
			return nil, fmt.Errorf("%s: %s takes no argument, settings go into its block: `check %s { … }`", args[0], kind, kind)
		}
	}
	switch {
	case len(args) > 1:
		return nil, fmt.Errorf("%s: one argument too many for %s", args[1], kind)
	case len(args) == 0:
	case kind == "dns":
		pr.Host, err = domain(args[0])
	default:
		pr.Path, err = urlPath(args[0])
	}
	if err != nil {
		return nil, err
	}
	return pr, nil
}

// probeFields are the settings in a check's block. at is set before they are.
func probeFields(at **Probe) []field {
	// A type that is wrong is reported already: its block is read all the same.
	on := func(set func(*Probe, Directive) error) func(Directive) error {
		return func(d Directive) error {
			if *at == nil {
				return set(&Probe{}, d)
			}
			return set(*at, d)
		}
	}
	fields := []field{
		{name: "port", usage: "PORT", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Port, port)(d) })},
		{name: "path", usage: "PATH", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Path, urlPath)(d) })},
		{name: "host", usage: "NAME", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Host, hostName)(d) })},
		{name: "command", usage: "PROGRAM [ARG...]", min: 1, max: -1, set: on(func(pr *Probe, d Directive) (err error) {
			pr.Command, err = command(d.Args)
			return err
		})},
	}
	return append(fields, []field{
		{name: "interval", usage: "DURATION", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Interval, ParseInterval)(d) })},
		{name: "timeout", usage: "DURATION", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Timeout, ParseInterval)(d) })},
		{name: "rise", usage: "N", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Rise, intIn(1, maxRow))(d) })},
		{name: "fall", usage: "N", min: 1, max: 1, set: on(func(pr *Probe, d Directive) error { return one(&pr.Fall, intIn(1, maxRow))(d) })},
	}...)
}

// maxRow bounds the results in a row that a change takes.
const maxRow = 100

// The shortest and the longest time between two checks.
const (
	minInterval = 100 * time.Millisecond
	maxInterval = time.Hour
)

// ParseInterval parses the interval or the timeout of a check.
func ParseInterval(s string) (time.Duration, error) { return spanIn(minInterval, maxInterval)(s) }

// command parses a program with its arguments. There is no shell.
func command(words []string) ([]string, error) {
	if _, err := absolute(words[0]); err != nil {
		return nil, err
	}
	return append([]string{filepath.Clean(words[0])}, words[1:]...), nil
}

// urlPath parses the path of a URL, with its query if it has one.
func urlPath(s string) (string, error) {
	bad := func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }
	if !strings.HasPrefix(s, "/") || strings.ContainsFunc(s, bad) {
		return "", fmt.Errorf("%s: not a path, write it from / on, e.g. /healthz", s)
	}
	return s, nil
}

// hostName parses a name or an address.
func hostName(s string) (string, error) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, nil
	}
	return domain(s)
}

// check says what is wrong with a probe of a service.
func (pr *Probe) check(s *Service) (faults []ServiceFault) {
	wrong := func(format string, args ...any) {
		faults = append(faults, ServiceFault{Directive: "check", Text: fmt.Sprintf("check "+pr.Type+": "+format, args...)})
	}
	if !slices.Contains(probeTypes, pr.Type) {
		wrong("unknown type, use one of: %s", strings.Join(probeTypes, ", "))
		return faults
	}
	web := pr.Type == "http" || pr.Type == "https"
	if pr.Path != "" && !web {
		wrong("a path is for http and https, remove it")
	} else if pr.Path != "" {
		if _, err := urlPath(pr.Path); err != nil {
			wrong("path %v", err)
		}
	}
	if pr.Host != "" && !web && pr.Type != "dns" {
		wrong("a host is for http, https and dns, remove it")
	} else if pr.Host != "" {
		if _, err := hostName(pr.Host); err != nil {
			wrong("host %v", err)
		}
	}
	switch {
	case pr.Type != "exec" && len(pr.Command) > 0:
		wrong("a command is for exec, remove it")
	case pr.Type == "exec" && len(pr.Command) == 0:
		wrong("no program, write `check exec PROGRAM [ARG...]`")
	case pr.Type == "exec" && pr.Port != 0:
		wrong("port %d means nothing to a program, give it as an argument", pr.Port)
	case pr.Type == "exec":
		if _, err := command(pr.Command); err != nil {
			wrong("%v", err)
		}
	default:
		pr.checkPort(s, wrong)
	}
	for _, x := range []struct {
		name string
		d    time.Duration
	}{{"interval", pr.Interval}, {"timeout", pr.Timeout}} {
		if d := x.d; d != 0 && (d < minInterval || d > maxInterval || d%time.Millisecond != 0) {
			wrong("%s %s: out of range, write a duration from %s to %s", x.name, d, shortest(minInterval), shortest(maxInterval))
		}
	}
	if every, limit := cmp.Or(pr.Interval, DefaultInterval), cmp.Or(pr.Timeout, min(DefaultTimeout, cmp.Or(pr.Interval, DefaultTimeout))); limit > every {
		wrong("timeout %s is longer than interval %s, write `interval %s` or more", shortest(limit), shortest(every), shortest(limit))
	}
	for _, x := range []struct {
		name string
		n    int
	}{{"rise", pr.Rise}, {"fall", pr.Fall}} {
		if x.n < 0 || x.n > maxRow {
			wrong("%s %d: out of range, write a number from 1 to %d", x.name, x.n, maxRow)
		}
	}
	return faults
}

// checkPort wants a port that the probe can use.
func (pr *Probe) checkPort(s *Service, wrong func(string, ...any)) {
	if pr.Port != 0 {
		return
	}
	proto := pr.Protocol()
	if !slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Protocol == proto }) {
		wrong("the service has no %s port to check, write `check %s { port NUMBER }`", proto, pr.Type)
	}
}

// Protocol is the protocol that a probe speaks; "" of exec.
func (pr *Probe) Protocol() string {
	switch pr.Type {
	case "exec":
		return ""
	case "udp", "dns":
		return "udp"
	}
	return "tcp"
}
