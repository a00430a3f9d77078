package node

import (
	"cmp"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/config"
	"nodenet/state"
)

// Where a service was declared.
const (
	sourceCommand = "command"
	sourceLabel   = "label"
)

// serviceRecord is the record of a service, whoever declares it.
func serviceRecord(c *config.Service, source string) state.Service {
	s := state.Service{
		Namespace: c.Namespace, Name: c.Name, VIP: c.VIP, VIP6: c.VIP6, Families: c.Family(), Selector: c.Select, Headless: c.Headless,
		External: c.External, NodePorts: c.NodePorts, Source: source,
		SlowStart: c.SlowStart.Milliseconds(), Balance: c.Balance, Affinity: int64(c.Affinity / time.Second),
		Inside: c.Inside, Outside: c.Outside, Addresses: c.Addresses, Announce: c.Announce,
		Sources: c.Sources, NodeAddrs: c.NodeAddrs, HealthPort: c.HealthPort,
	}
	for _, p := range c.Ports {
		s.Ports = append(s.Ports, state.ServicePort{
			Name: p.Name, Protocol: p.Protocol, Port: p.Port, Last: p.Last, Target: p.Target, TargetName: p.TargetName, NodePort: p.NodePort,
		})
	}
	for _, b := range c.Backends {
		s.Backends = append(s.Backends, state.Backend{Namespace: c.Namespace, Service: c.Name, Addr: b.Addr.Addr(), Port: b.Addr.Port(), Weight: b.Weight})
	}
	if pr := c.Probe; pr != nil {
		s.Check = pr.Type
		s.Probe = &state.Probe{
			Port: pr.Port, Path: pr.Path, Host: pr.Host, Command: pr.Command,
			Interval: pr.Interval.Milliseconds(), Timeout: pr.Timeout.Milliseconds(), Rise: pr.Rise, Fall: pr.Fall,
		}
		if probeIsPlain(s.Probe) {
			s.Probe = nil
		}
	}
	return s
}

// probeIsPlain reports a probe that takes all defaults: its record is that of
// a version which knew no others.
func probeIsPlain(p *state.Probe) bool {
	return p.Port == 0 && p.Path == "" && p.Host == "" && len(p.Command) == 0 && p.Interval == 0 && p.Timeout == 0 && p.Rise == 0 && p.Fall == 0
}

// serviceConfig is what a request asks for in the Nodefile's terms, which is
// what services are checked in.
func serviceConfig(r *api.ServiceSpec) (*config.Service, error) {
	c := &config.Service{
		Namespace: cmp.Or(r.Namespace, config.DefaultNamespace), Name: r.Name, VIP: r.VIP, VIP6: r.VIP6, Families: r.Families, Select: r.Select,
		Headless: r.Headless, External: strings.TrimSuffix(r.External, "."), NodePorts: r.NodePorts,
		SlowStart: time.Duration(r.SlowStartMillis) * time.Millisecond, Balance: without(r.Balance, "random"),
		Affinity: time.Duration(r.AffinitySeconds) * time.Second, Inside: without(r.Inside, "all"), Outside: without(r.Outside, "all"),
		Addresses: r.Addresses, Announce: r.Announce, Sources: r.Sources, NodeAddrs: r.NodePortAddresses, HealthPort: r.HealthPort,
	}
	for _, p := range r.Ports {
		c.Ports = append(c.Ports, config.ServicePort{
			Name: p.Name, Protocol: cmp.Or(p.Protocol, "tcp"), Port: p.Port, Last: p.Last, Target: p.Target, TargetName: p.TargetName, NodePort: p.NodePort,
		})
	}
	for _, text := range r.Backends {
		b, err := parseBackend(text)
		if err != nil {
			return nil, err
		}
		c.Backends = append(c.Backends, b)
	}
	if pr := r.Probe; r.Check != "" {
		c.Probe = &config.Probe{Type: r.Check}
		if pr != nil {
			*c.Probe = config.Probe{
				Type: r.Check, Port: pr.Port, Path: pr.Path, Host: pr.Host, Command: pr.Command,
				Interval: time.Duration(pr.IntervalMillis) * time.Millisecond, Timeout: time.Duration(pr.TimeoutMillis) * time.Millisecond,
				Rise: pr.Rise, Fall: pr.Fall,
			}
		}
	} else if pr != nil {
		return nil, errors.New("settings of a check without one: say which, tcp, http, https, exec, udp or dns")
	}
	return c, nil
}

// without is the default's way to be written: not at all.
func without(word, standard string) string {
	if word == standard {
		return ""
	}
	return word
}

// parseBackend parses ADDR[:PORT][=WEIGHT].
func parseBackend(text string) (config.Backend, error) {
	at, weight, weighted := strings.Cut(text, "=")
	addr, err := config.ParseBackend(at)
	if err != nil {
		return config.Backend{}, invalid("backend %v", err)
	}
	b := config.Backend{Addr: addr}
	if weighted {
		if b.Weight, err = strconv.Atoi(weight); err != nil || b.Weight < 1 || b.Weight > config.MaxWeight {
			return b, invalid("backend %s: weight %q: want a number from 1 to %d", at, weight, config.MaxWeight)
		}
	}
	return b, nil
}

// parseService checks a request and returns the record that it asks for, with
// its explicit backends apart.
func (n *Node) parseService(r api.ServiceSpec) (state.Service, []state.Backend, error) {
	c, err := serviceConfig(&r)
	if err != nil {
		return state.Service{}, nil, invalid("service %s.%s: %v", r.Name, cmp.Or(r.Namespace, config.DefaultNamespace), err)
	}
	if err := n.faultsOf(c); err != nil {
		return state.Service{}, nil, err
	}
	s := serviceRecord(c, sourceCommand)
	backends := s.Backends
	s.Backends = nil
	return s, backends, nil
}

// faultsOf says all that is wrong with a service on this node.
func (n *Node) faultsOf(c *config.Service) error {
	var texts []string
	for _, f := range c.Check() {
		texts = append(texts, f.Text)
	}
	for _, f := range c.CheckIn(&n.cfg.Services) {
		texts = append(texts, f.Text)
	}
	for _, p := range c.Ports {
		if np := n.cfg.Services.NodePorts; p.NodePort != 0 && !np.Contains(p.NodePort) {
			texts = append(texts, "node port "+strconv.Itoa(int(p.NodePort))+" is outside "+strconv.Itoa(int(np.First))+"-"+strconv.Itoa(int(np.Last)))
		}
	}
	for _, a := range c.Addresses {
		for _, p := range []netip.Prefix{n.cfg.Services.Prefix, n.cfg.Services.Prefix6} {
			if p.Contains(a) {
				texts = append(texts, "address "+a.String()+" lies in the service range "+p.String()+": choose one of the LAN")
			}
		}
		for _, nw := range n.cfg.Networks {
			if nw.Overlay != config.OverlayNone && (nw.Prefix.Contains(a) || nw.Prefix6.Contains(a)) {
				texts = append(texts, "address "+a.String()+" lies in network "+nw.Name+": choose one of the LAN")
			}
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return invalid("service %s: %s", c.FullName(), strings.Join(texts, "; "))
}

// settingsOf is the other way round, for answers.
func settingsOf(s *state.Service) api.ServiceSettings {
	out := api.ServiceSettings{
		Check: s.Check, SlowStartMillis: s.SlowStart, Balance: s.Balance, AffinitySeconds: s.Affinity, Inside: s.Inside, Outside: s.Outside,
		Addresses: s.Addresses, Announce: s.Announce, Sources: s.Sources, NodePortAddresses: s.NodeAddrs, HealthPort: s.HealthPort,
	}
	if s.Families != "" {
		out.Families = []string{s.Families}
	}
	if p := s.Probe; p != nil {
		out.Probe = &api.Probe{
			Port: p.Port, Path: p.Path, Host: p.Host, Command: p.Command, IntervalMillis: p.Interval, TimeoutMillis: p.Timeout, Rise: p.Rise, Fall: p.Fall,
		}
	}
	return out
}
