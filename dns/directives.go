package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodenet/config"
)

// directive gives a word of a server block its meaning. The parse function
// has no side effects beyond the parser; what it returns takes part in the
// chain unless it is nil.
type directive struct {
	name    string
	alias   string
	repeats bool // may be written more than once in a block
	parse   func(p *parser, d config.Directive) plugin
}

// directives lists the known directives in the order of the chain, which is
// that of CoreDNS's plugin.cfg and not that of the file.
func directives() []directive {
	return []directive{
		{name: "reload", parse: parseReload},
		{name: "nsid", parse: parseNSID},
		{name: "bufsize", parse: parseBufsize},
		{name: "bind", repeats: true, parse: parseBind},
		{name: "ready", parse: parseReady},
		{name: "health", parse: parseHealth},
		{name: "prometheus", parse: parsePrometheus},
		{name: "errors", parse: parseErrors},
		{name: "log", repeats: true, parse: parseLog},
		{name: "any", parse: parseAny},
		{name: "chaos", parse: parseChaos},
		{name: "loadbalance", parse: parseLoadbalance},
		{name: "cache", repeats: true, parse: parseCache},
		{name: "hosts", parse: parseHosts},
		{name: "cluster", alias: "kubernetes", repeats: true, parse: parseCluster},
		{name: "loop", parse: parseLoop},
		{name: "forward", alias: "proxy", repeats: true, parse: parseForward},
		{name: "whoami", parse: parseWhoami},
	}
}

// elsewhere lists directives of CoreDNS that nodenet does not have, with the
// reason or what to use instead.
func elsewhere() map[string]string {
	return map[string]string{
		"acl":          "it is not supported; limit access with `bind` or the host's firewall",
		"auto":         "zone files are not supported; use `hosts` or static names",
		"autopath":     "it is not supported; remove it, workloads use their search path",
		"azure":        "cloud zones are not supported; forward to a server that has them",
		"cancel":       "every query has a time limit already; remove it",
		"clouddns":     "cloud zones are not supported; forward to a server that has them",
		"debug":        "it is not supported; remove it",
		"dns64":        "it is not supported; forward to a server that does it",
		"dnssec":       "signing is not supported; forward to a server that does it",
		"dnstap":       "it is not supported; use `log`",
		"erratic":      "it is not supported; remove it",
		"etcd":         "there is no etcd here; use `cluster` or static names",
		"file":         "zone files are not supported; use `hosts` or static names",
		"geoip":        "it is not supported; remove it",
		"grpc":         "only plain DNS is supported; use `forward`",
		"header":       "it is not supported; remove it",
		"k8s_external": "it is not supported; use `cluster` with that zone",
		"metadata":     "it is not supported; remove it",
		"minimal":      "answers are minimal already; remove it",
		"multisocket":  "it is not supported; remove it",
		"pprof":        "it is not supported; remove it",
		"quic":         "only plain DNS is supported; remove it",
		"rewrite":      "it is not supported; use a static CNAME",
		"root":         "it is not supported; write full paths",
		"route53":      "cloud zones are not supported; forward to a server that has them",
		"secondary":    "zone transfer is not supported; forward to that server",
		"sign":         "signing is not supported; forward to a server that does it",
		"template":     "it is not supported; use `hosts` or static names",
		"timeouts":     "it is not supported; remove it",
		"tls":          "only plain DNS is supported; remove it",
		"trace":        "it is not supported; use `log`",
		"transfer":     "zone transfer is not supported; remove it",
		"tsig":         "it is not supported; remove it",
		"view":         "it is not supported; use blocks with different `bind` addresses",
	}
}

// parseDirectives fills the block, plugins in chain order.
func (p *parser) parseDirectives() {
	known := directives()
	var names []string
	for _, k := range known {
		names = append(names, k.name)
		if k.alias != "" {
			names = append(names, k.alias)
		}
	}
	perKind := make([][]plugin, len(known))
	first := make(map[string]config.Pos)
	for _, d := range p.block.server.Directives {
		i := slices.IndexFunc(known, func(k directive) bool { return k.name == d.Name || k.alias != "" && k.alias == d.Name })
		if i < 0 {
			if why, ok := elsewhere()[d.Name]; ok {
				p.errorf(d.Pos, "%s: %s", d.Name, why)
			} else {
				p.errorf(d.Pos, "unknown directive %q, %s", d.Name, suggest(d.Name, names))
			}
			continue
		}
		k := known[i]
		if pos, twice := first[k.name]; twice && !k.repeats {
			p.errorf(d.Pos, "%s: already given at line %d, keep one", d.Name, pos.Line)
			continue
		}
		first[k.name] = d.Pos
		if d.Name == "proxy" {
			p.noticef(d, "proxy: is read as forward")
		}
		if pl := k.parse(p, d); pl != nil {
			perKind[i] = append(perKind[i], pl)
		}
	}
	for _, ps := range perKind {
		p.block.plugins = append(p.block.plugins, ps...)
	}
	if f, ok := first["forward"]; ok {
		p.reachable(first["hosts"], f)
	}
}

// reachable tells when hosts keeps every question from forward, which
// surprises people who know dnsmasq.
func (p *parser) reachable(pos, forward config.Pos) {
	for _, pl := range p.block.plugins {
		if h, ok := pl.(*hosts); ok && !h.fall.set && slices.Equal(h.zones, p.block.zones) {
			p.notices = append(p.notices, fmt.Sprintf("%s:%d: hosts: without `fallthrough` no unknown name reaches forward in line %d", pos.File, pos.Line, forward.Line))
		}
	}
}

// suggest names the known word that a mistyped one probably means.
func suggest(word string, known []string) string {
	if n := config.Nearest(word, known); n != "" {
		return "did you mean " + n + "?"
	}
	return "known are " + strings.Join(known, ", ")
}

func parseBind(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	if !p.args(d, 1, -1, "bind ADDRESS...") {
		return nil
	}
	for _, s := range d.Args {
		a, err := netip.ParseAddr(s)
		if err != nil {
			p.errorf(d.Pos, "bind: %q is not an address, interface names are not supported: write the address", s)
			continue
		}
		if a = a.Unmap(); !slices.Contains(p.block.bind, a) {
			p.block.bind = append(p.block.bind, a)
		}
	}
	return nil
}

func parseBufsize(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	if !p.args(d, 0, 1, "bufsize [BYTES]") {
		return nil
	}
	p.block.bufsize = defaultBufsize
	if len(d.Args) == 1 {
		if n, ok := p.number(d, "size", d.Args[0], 512, 4096); ok {
			p.block.bufsize = uint16(n)
		}
	}
	return nil
}

func parseNSID(p *parser, d config.Directive) plugin {
	p.noBlock(d)
	if !p.args(d, 1, -1, "nsid TEXT") {
		return nil
	}
	p.block.nsid = []byte(strings.Join(d.Args, " "))
	return nil
}
