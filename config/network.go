package config

import (
	"fmt"
	"net/netip"
)

// Overlay modes of a network.
const (
	OverlayVXLAN  = "vxlan"
	OverlayRoutes = "routes"
	OverlayAuto   = "auto"
	OverlayNone   = "none"
)

// bridgePrefix begins the name of every link that nodenet makes by itself.
const bridgePrefix = "nn-"

// minMTU6 is the least MTU of a link that carries IPv6, in bytes (RFC 8200
// section 5).
const minMTU6 = 1280

// UsesVXLAN reports whether the network may encapsulate.
func (n *Network) UsesVXLAN() bool { return n.Overlay == OverlayVXLAN || n.Overlay == OverlayAuto }

func (p *parser) network(b block) {
	n := Network{Pos: b.pos, Overlay: OverlayVXLAN, LeaseTime: DefaultLeaseTime, Namespace: DefaultNamespace}
	title := b.name()
	if len(b.keys) != 3 && len(b.keys) != 4 {
		p.faults.add(b.pos, title, "takes a name, a range and perhaps an IPv6 range, write `network %s %s { … }`", DefaultNetwork, DefaultPrefix)
	}
	if len(b.keys) > 1 {
		name, err := label("network name", 63)(b.keys[1])
		if err != nil {
			p.faults.add(b.pos, title, "%v", err)
		}
		if n.Name = name; err == nil {
			title = "network " + name
		}
	}
	if len(b.keys) > 2 {
		var err error
		if n.Prefix, err = rangePrefix(b.keys[2]); err != nil {
			p.faults.add(b.pos, title, "%v", err)
		}
	}
	if len(b.keys) > 3 {
		var err error
		if n.Prefix6, err = twinPrefix(b.keys[3], n.Prefix); err != nil {
			p.faults.add(b.pos, title, "%v", err)
		}
	}
	if n.Name != "" && !p.once(b.pos, title, "network "+n.Name, "a network of this name is at %s, rename one") {
		return
	}
	p.fields(title, b.body, p.networkFields(title, &n))
	p.completeNetwork(&n, title)
	p.cfg.Networks = append(p.cfg.Networks, n)
}

func (p *parser) networkFields(title string, n *Network) []field {
	return []field{
		{name: "block", usage: "LENGTH", min: 1, max: 1, set: one(&n.Block, intIn(1, 30))},
		{name: "pin", usage: "PREFIX", min: 1, max: 1, set: one(&n.Pin, prefix)},
		{name: "overlay", usage: "vxlan|routes|auto|none", min: 1, max: 1,
			set: one(&n.Overlay, oneOf(OverlayVXLAN, OverlayRoutes, OverlayAuto, OverlayNone))},
		{name: "vni", usage: "NUMBER", min: 1, max: 1, set: func(d Directive) error {
			v, err := number(d.Args[0], 1, 1<<24-1) // 24 bits, RFC 7348 section 5
			n.VNI = uint32(v)
			return err
		}},
		{name: "port", usage: "PORT", min: 1, max: 1, set: one(&n.Port, port)},
		{name: "mtu", usage: "BYTES", min: 1, max: 1, set: one(&n.MTU, intIn(576, 65535))},
		{name: "masquerade", set: on(&n.Masquerade)},
		{name: "internal", set: on(&n.Internal)},
		{name: "peer", usage: "NETWORK...", min: 1, max: -1, repeat: true, set: func(d Directive) error {
			if at := title + " peer"; p.seen != nil && p.seen[at].Line == 0 {
				p.seen[at] = d.Pos
			}
			return each(&n.Peers, label("network name", 63))(d)
		}},
		{name: "bridge", usage: "DEVICE", min: 1, max: 1, set: one(&n.Bridge, device)},
		{name: "gateway", usage: "ADDR|none", min: 1, max: 1, set: func(d Directive) (err error) {
			if n.NoGateway = d.Args[0] == "none"; !n.NoGateway {
				n.Gateway, err = addr4(d.Args[0])
			}
			return err
		}},
		{name: "exclude", usage: "ADDR|PREFIX...", min: 1, max: -1, repeat: true, set: each(&n.Exclude, excluded(n.Prefix))},
		{name: "search", usage: "on|off", min: 1, max: 1, set: func(d Directive) error {
			mode, err := oneOf("on", "off")(d.Args[0])
			n.NoSearch = mode == "off"
			return err
		}},
		{name: "dhcp", set: on(&n.DHCP), inner: []field{
			{name: "lease", usage: "DURATION", min: 1, max: 1, set: one(&n.LeaseTime, duration)},
			{name: "namespace", usage: "NAME", min: 1, max: 1, set: one(&n.Namespace, label("namespace", 63))},
		}},
	}
}

// excluded parses an address or prefix within the network.
func excluded(within netip.Prefix) func(string) (netip.Prefix, error) {
	return func(s string) (netip.Prefix, error) {
		var p netip.Prefix
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
			p = netip.PrefixFrom(a, 32)
		} else if p, err = prefix(s); err != nil {
			return p, err
		}
		if within.IsValid() && !inside(p, within) {
			return p, fmt.Errorf("%s: outside of %s", s, within)
		}
		return p, nil
	}
}

// inside reports whether all of p lies in within.
func inside(p, within netip.Prefix) bool {
	return p.Bits() >= within.Bits() && within.Contains(p.Addr())
}

// completeNetwork fills what depends on other directives and checks the
// network by itself.
func (p *parser) completeNetwork(n *Network, title string) {
	wrong := func(directive, format string, args ...any) {
		p.faults.add(p.where(title, directive, n.Pos), title, directive+" "+format, args...)
	}
	if n.Bridge == "" {
		if n.Bridge = bridgePrefix + n.Name; len(n.Bridge) > 15 {
			p.faults.add(n.Pos, title, "device name %s is longer than 15 characters, shorten the network's name to %d or write `bridge DEVICE`",
				n.Bridge, 15-len(bridgePrefix))
		}
	}
	if !n.UsesVXLAN() {
		if n.VNI != 0 {
			wrong("vni", "has no meaning with overlay %s, remove it", n.Overlay)
			n.VNI = 0
		}
		if n.Port != 0 {
			wrong("port", "has no meaning with overlay %s, remove it", n.Overlay)
		}
	} else if n.Port == 0 {
		n.Port = DefaultVXLANPort
	}
	if n.Prefix6.IsValid() && n.MTU != 0 && n.MTU < minMTU6 {
		wrong("mtu", "%d: too small for IPv6, which Linux switches off on such a link, write %d or more or leave out %s", n.MTU, minMTU6, n.Prefix6)
	}
	if n.Internal && n.Masquerade {
		wrong("masquerade", "contradicts internal, keep one of them")
	}
	if n.Internal && len(n.Peers) > 0 {
		wrong("peer", "contradicts internal, keep one of them")
	}
	if !n.Prefix.IsValid() {
		return
	}
	bits := n.Prefix.Bits()
	switch {
	case n.Overlay == OverlayNone && n.Block != 0:
		wrong("block", "has no meaning with overlay none, remove it: every node uses all of %s", n.Prefix)
	case n.Overlay == OverlayNone:
	case n.Block == 0:
		n.Block = max(DefaultBlock, bits)
	case n.Block < bits || n.Block > 30:
		wrong("block", "%d: not between the range's own length and 30, write %d to 30", n.Block, bits)
	}
	if n.Gateway.IsValid() && !usable(n.Gateway, n.Prefix) {
		wrong("gateway", "%s: not a host address of %s", n.Gateway, n.Prefix)
	}
	switch {
	case !n.Pin.IsValid():
	case n.Overlay == OverlayNone:
		wrong("pin", "has no meaning with overlay none, remove it")
	case !inside(n.Pin, n.Prefix):
		wrong("pin", "%s: outside of %s", n.Pin, n.Prefix)
	case n.Pin.Bits() != n.Block:
		wrong("pin", "%s: not one block, write %s/%d or change block", n.Pin, n.Pin.Addr(), n.Block)
	case n.Gateway.IsValid() && !n.Pin.Contains(n.Gateway):
		wrong("gateway", "%s: outside of the pinned block %s", n.Gateway, n.Pin)
	}
}

// usable reports whether a lies in p and is neither its first nor, in IPv4, its
// last address.
func usable(a netip.Addr, p netip.Prefix) bool {
	return p.Contains(a) && a != p.Addr() && (a.Is6() || a != last(p))
}

// last returns the last (broadcast) address of an IPv4 prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}
