package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// binding says where a server block listens. The zero value: on the addresses
// of the server.
type binding []bindLine

// bindLine is one `bind` directive.
type bindLine struct{ at, except []place }

// place is an address or the name of an interface, which stands for its
// addresses of the moment. The zero value: the addresses of the server.
type place struct {
	addr netip.Addr
	name string
}

// maxInterface is how long the name of an interface may be (IFNAMSIZ without
// its final zero).
const maxInterface = 15

// parseBind reads `bind ADDRESS|INTERFACE... { except ADDRESS|INTERFACE... }`.
func parseBind(p *parser, d config.Directive) plugin.Plugin {
	if !p.Args(d, 1, -1, "bind ADDRESS|INTERFACE...") {
		return nil
	}
	places := func(d config.Directive) (out []place) {
		for _, s := range d.Args {
			a, err := netip.ParseAddr(s)
			switch {
			case err == nil:
				out = append(out, place{addr: a.Unmap()})
			case len(s) > maxInterface || strings.ContainsAny(s, "/: "):
				p.Errorf(d.Pos, "bind: %q is neither an address nor the name of an interface", s)
			default:
				out = append(out, place{name: s})
			}
		}
		return out
	}
	b := bindLine{at: places(d)}
	for _, o := range d.Block {
		if o.Name != "except" {
			p.Unknown(d, o, "except")
		} else if p.Args(o, 1, -1, "except ADDRESS|INTERFACE...") {
			b.except = append(b.except, places(o)...)
		}
	}
	p.block.bind = append(p.block.bind, b)
	return nil
}

// places lists what is bound to, the zero place when nothing is written.
func (b binding) places() (out []place) {
	for _, d := range b {
		out = append(out, d.at...)
	}
	if len(out) == 0 {
		return []place{{}}
	}
	return out
}

// addrs returns the addresses to listen on; standard are those without `bind`.
func (b binding) addrs(standard []netip.Addr) []netip.Addr {
	if len(b) == 0 {
		return standard
	}
	var out []netip.Addr
	for _, d := range b {
		not := addrsOf(d.except)
		for _, a := range addrsOf(d.at) {
			if !slices.Contains(not, a) && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// addrsOf looks up places. An interface that is not there has none.
func addrsOf(places []place) (out []netip.Addr) {
	for _, p := range places {
		if p.name == "" {
			out = append(out, p.addr)
			continue
		}
		addrs, _ := interfaceAddrs(p.name)
		out = append(out, addrs...)
	}
	return out
}

// interfaceAddrs returns the addresses of an interface. IPv6 link-local ones
// are left out: they mean nothing without their interface.
func interfaceAddrs(name string) ([]netip.Addr, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	nets, err := ifc.Addrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses of interface %s: %w", name, err)
	}
	var out []netip.Addr
	for _, n := range nets {
		p, err := netip.ParsePrefix(n.String())
		if a := p.Addr().Unmap(); err == nil && (a.Is4() || !a.IsLinkLocalUnicast()) {
			out = append(out, a)
		}
	}
	return out, nil
}

// report notes which interfaces are not there.
func (b binding) report(note func(what string, err error, fix string)) {
	for _, p := range b.places() {
		if p.name != "" {
			_, err := interfaceAddrs(p.name)
			note("bind "+p.name, err, "correct the name; an interface that appears later is listened on then")
		}
	}
}

// forget takes back what report noted.
func (b binding) forget(note func(what string, err error, fix string)) {
	for _, p := range b.places() {
		if p.name != "" {
			note("bind "+p.name, nil, "")
		}
	}
}
