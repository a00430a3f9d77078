package config

import "fmt"

// Notes returns remarks that `nodectl check` prints: nothing wrong, but worth
// knowing before the cluster grows.
func (c *Config) Notes() []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for _, n := range c.Networks {
		if n.Overlay == OverlayNone {
			note("network %s: every node uses all of %s for itself, its addresses are not reachable from other nodes", n.Name, n.Prefix)
			continue
		}
		blocks := 1 << (n.Block - n.Prefix.Bits())
		nodes := "nodes"
		if blocks == 1 {
			nodes = "node"
		}
		note("network %s: %s has %d addresses, in blocks of /%d it serves %d %s with %d a block",
			n.Name, n.Prefix, 1<<(32-n.Prefix.Bits())-2, n.Block, blocks, nodes, 1<<(32-n.Block)-3) // a block less network, gateway, broadcast
	}
	for _, s := range c.Service {
		if s.External == "" && len(s.Select) == 0 && len(s.Backends) == 0 {
			note("service %s: neither select nor backend, it answers once backends are added", s.FullName())
		}
	}
	for _, p := range c.Publishes {
		if np := c.Services.NodePorts; p.HostPort <= np.Last && np.First <= max(p.HostPort, p.Last) {
			note("publish %s: lies in the node ports %d-%d, keep services from allocating it by choosing another port",
				p.host(), c.Services.NodePorts.First, c.Services.NodePorts.Last)
		}
	}
	return notes
}
