package dns

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodenet/config"
	"nodenet/dns/acl"
	"nodenet/dns/autopath"
	"nodenet/dns/cancel"
	"nodenet/dns/chaos"
	"nodenet/dns/dns64"
	"nodenet/dns/errors"
	"nodenet/dns/file"
	"nodenet/dns/header"
	"nodenet/dns/hosts"
	"nodenet/dns/loadbalance"
	"nodenet/dns/log"
	looping "nodenet/dns/loop"
	"nodenet/dns/minimal"
	"nodenet/dns/plugin"
	"nodenet/dns/rewrite"
	"nodenet/dns/template"
	"nodenet/dns/transfer"
	"nodenet/dns/whoami"
)

// directive gives a word of a server block its meaning. The parse function
// has no side effects beyond the parser; what it returns takes part in the
// chain unless it is nil.
type directive struct {
	name    string
	alias   string
	repeats bool // may be written more than once in a block
	parse   func(p *parser, d config.Directive) plugin.Plugin
	// merge makes one plugin of all that the block has. Nil: each is its own.
	merge func([]plugin.Plugin) plugin.Plugin
}

// directives lists the known directives in the order of the chain, which is
// that of CoreDNS's plugin.cfg and not that of the file.
func directives() []directive {
	return []directive{
		{name: "root", parse: parseRoot},
		{name: "metadata", parse: parseNothing("there is no metadata here; views and templates see the question itself")},
		{name: "cancel", parse: own(cancel.Parse)},
		{name: "tls", parse: parseTLS},
		{name: "multisocket", parse: parseNothing("sockets are shared out over the processors anyway")},
		{name: "reload", parse: parseReload},
		{name: "nsid", parse: parseNSID},
		{name: "bufsize", parse: parseBufsize},
		{name: "ratelimit", parse: parseRatelimit},
		{name: "bind", repeats: true, parse: parseBind},
		{name: "debug", parse: parseDebug},
		{name: "ready", parse: parseReady},
		{name: "health", parse: parseHealth},
		{name: "pprof", parse: parsePprof},
		{name: "prometheus", parse: parsePrometheus},
		{name: "errors", parse: own(errors.Parse)},
		{name: "log", repeats: true, parse: own(log.Parse)},
		{name: "acl", repeats: true, parse: own(acl.Parse)},
		{name: "dns64", parse: own(dns64.Parse)},
		{name: "any", parse: parseAny},
		{name: "chaos", parse: own(chaos.Parse)},
		{name: "loadbalance", parse: own(loadbalance.Parse)},
		{name: "rewrite", repeats: true, parse: own(rewrite.Parse), merge: rewrite.Merged},
		{name: "autopath", parse: own(autopath.Parse)},
		{name: "search", parse: parseSearch},
		{name: "cache", repeats: true, parse: parseCache},
		{name: "header", repeats: true, parse: own(header.Parse)},
		{name: "minimal", parse: own(minimal.Parse)},
		{name: "template", repeats: true, parse: own(template.Parse)},
		{name: "transfer", repeats: true, parse: parseTransfer},
		{name: "hosts", parse: own(hosts.Parse)},
		{name: "cluster", alias: "kubernetes", repeats: true, parse: parseCluster},
		{name: "file", repeats: true, parse: own(file.Parse)},
		{name: "loop", parse: own(looping.Parse)},
		{name: "forward", alias: "proxy", repeats: true, parse: parseForward},
		{name: "whoami", parse: own(whoami.Parse)},
		{name: "view", repeats: true, parse: parseView},
	}
}

// own adapts a plugin that knows nothing of the block.
func own(parse func(*plugin.Setup, config.Directive) plugin.Plugin) func(*parser, config.Directive) plugin.Plugin {
	return func(p *parser, d config.Directive) plugin.Plugin { return parse(p.Setup, d) }
}

// elsewhere lists directives of CoreDNS that nodenet does not have, with the
// reason or what to use instead.
func elsewhere() map[string]string {
	return map[string]string{
		"auto":         "it is not supported; write `file` for each zone",
		"azure":        "cloud zones are not supported; forward to a server that has them",
		"clouddns":     "cloud zones are not supported; forward to a server that has them",
		"dnssec":       "signing is not supported; forward to a server that does it",
		"dnstap":       "it is not supported; use `log`",
		"erratic":      "it is not supported; remove it",
		"etcd":         "there is no etcd here; use `cluster`, `file` or static names",
		"geoip":        "it is not supported; remove it",
		"grpc":         "upstreams are asked over UDP, TCP or TLS; use `forward . tls://…`",
		"k8s_external": "it is not supported; use `cluster` with that zone",
		"https":        "it is not needed, keys with https:// are served; remove it",
		"https3":       "DNS over HTTP/3 is not served; use keys with https://",
		"grpc_server":  "DNS over gRPC is not served; use keys with tls:// or https://",
		"local":        "it is not supported; write localhost into `hosts`",
		"nomad":        "there is no Nomad here; use `cluster` or static names",
		"proxyproto":   "the PROXY protocol is not supported; remove it",
		"shed":         "shedding is always on; remove it",
		"quic":         "DNS over QUIC is not served; use keys with tls:// or https://",
		"route53":      "cloud zones are not supported; forward to a server that has them",
		"secondary":    "zones are not copied from other servers; forward to that server",
		"sign":         "signing is not supported; forward to a server that does it",
		"timeouts":     "a connection may be idle for 10s, that is fixed; remove it",
		"trace":        "spans are not sent anywhere; use `debug`",
		"tsig":         "it is not supported; remove it",
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
	for _, d := range p.block.server.Directives { // the rest depends on it
		if d.Name == "root" && len(d.Args) == 1 {
			p.Root = d.Args[0]
		}
	}
	perKind := make([][]plugin.Named, len(known))
	first := make(map[string]config.Pos)
	for _, d := range p.block.server.Directives {
		i := slices.IndexFunc(known, func(k directive) bool { return k.name == d.Name || k.alias != "" && k.alias == d.Name })
		if i < 0 {
			if why, ok := elsewhere()[d.Name]; ok {
				p.Errorf(d.Pos, "%s: %s", d.Name, why)
			} else {
				p.Errorf(d.Pos, "unknown directive %q, %s", d.Name, plugin.Suggest(d.Name, names))
			}
			continue
		}
		k := known[i]
		if pos, twice := first[k.name]; twice && !k.repeats {
			p.Errorf(d.Pos, "%s: already given at line %d, keep one", d.Name, pos.Line)
			continue
		}
		first[k.name] = d.Pos
		if d.Name == "proxy" {
			p.Noticef(d, "proxy: is read as forward")
		}
		if pl := k.parse(p, d); pl != nil {
			perKind[i] = append(perKind[i], plugin.Named{Name: k.name, Plugin: pl})
		}
	}
	p.completes(perKind, known)
	for i, ps := range perKind {
		if merge := known[i].merge; merge != nil && len(ps) > 0 {
			var parts []plugin.Plugin
			for _, n := range ps {
				parts = append(parts, n.Plugin)
			}
			ps = []plugin.Named{{Name: known[i].name, Plugin: merge(parts)}}
		}
		p.block.plugins = append(p.block.plugins, ps...)
	}
	if tr, ok := first["transfer"]; ok {
		if _, ok := first["file"]; !ok {
			p.Noticef(config.Directive{Pos: tr}, "transfer: has no effect without `file`, names of the cluster are not copied")
		}
	}
	if f, ok := first["forward"]; ok {
		p.reachable(first["hosts"], f)
	}
}

// reachable tells when hosts keeps every question from forward, which
// surprises people who know dnsmasq.
func (p *parser) reachable(pos, forward config.Pos) {
	for _, pl := range p.block.plugins {
		if h, ok := pl.Plugin.(interface{ Keeps(plugin.Zones) bool }); ok && h.Keeps(p.block.zones) {
			p.Noticef(config.Directive{Pos: pos}, "hosts: without `fallthrough` no unknown name reaches forward in line %d", forward.Line)
		}
	}
}

func parseBufsize(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	if !p.Args(d, 0, 1, "bufsize [BYTES]") {
		return nil
	}
	p.block.bufsize = defaultBufsize
	if len(d.Args) == 1 {
		if n, ok := p.Number(d, "size", d.Args[0], 512, 4096); ok {
			p.block.bufsize = uint16(n)
		}
	}
	return nil
}

func parseNSID(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	p.block.nsid = []byte(strings.Join(d.Args, " "))
	if len(d.Args) == 0 {
		host, err := os.Hostname()
		if err != nil {
			p.Errorf(d.Pos, "nsid: the host's name is unknown (%v), write `nsid TEXT`", err)
		}
		p.block.nsid = []byte(host)
	}
	return nil
}

// parseAny accepts `any`: the answer to ANY is always minimal (serve.go).
func parseAny(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	p.Args(d, 0, 0, "any")
	return nil
}

// parseRoot reads `root DIRECTORY`, which relative paths of the block are in.
func parseRoot(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	if p.Args(d, 1, 1, "root DIRECTORY") && !filepath.IsAbs(d.Args[0]) {
		p.Errorf(d.Pos, "root: %q is not an absolute path", d.Args[0])
	}
	return nil
}

// parseNothing accepts a directive that has no meaning here.
func parseNothing(why string) func(*parser, config.Directive) plugin.Plugin {
	return func(p *parser, d config.Directive) plugin.Plugin {
		p.Noticef(d, "%s: is ignored, %s", d.Name, why)
		return nil
	}
}

// parseDebug reads `debug`: the way of each question is logged.
func parseDebug(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	p.block.debug = p.Args(d, 0, 0, "debug")
	return nil
}

func parseTransfer(p *parser, d config.Directive) plugin.Plugin {
	p.block.transfer = true
	return transfer.Parse(p.Setup, d)
}
