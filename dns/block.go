package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"nodenet/config"
	"nodenet/dns/limit"
	"nodenet/dns/plugin"
)

// block is a server block: zones, ports and a chain of plugins. It is
// immutable once it is attached.
type block struct {
	server  config.Server
	keys    []zoneKey
	zones   plugin.Zones // of all keys, in order, no duplicates
	plugins []plugin.Named
	chain   plugin.Handler
	plan    *plan  // nil: every question goes through the chain
	views   []view // all must hold for a question; empty: every question

	bind     binding        // where it listens
	bufsize  uint16         // 0: defaultBufsize
	recurse  bool           // a forward is there: RA is set
	transfer bool           // zones may be copied
	limited  bool           // ratelimit is given
	searched bool           // search is given
	nearest  bool           // addresses that are near come first
	limiter  *limit.Limiter // nil: off, or the server's own
	tls      *tlsFiles      // of keys with a scheme; nil: not given
	debug    bool           // the way of each question is logged
	nsid     []byte         // nil: not given
	endpoint httpEndpoints
	reload   reloadOptions

	cancel context.CancelFunc // ends the runners
	wg     sync.WaitGroup
}

// zoneKey is one key of a block.
type zoneKey struct {
	zone   string
	port   uint16
	scheme string // tls, https; empty: plain DNS
}

const defaultPort = 53

// label names the block in messages.
func (b *block) label() string {
	if len(b.server.Keys) == 0 {
		return "."
	}
	return b.server.Keys[0]
}

// parseKeys reads keys such as ".:53", "example.org", "dns://." and
// "10.0.0.0/8:1053".
func (p *parser) parseKeys() {
	b := p.block
	for _, key := range b.server.Keys {
		k := strings.TrimSuffix(key, ",")
		port, scheme := defaultPort, ""
		if sch, rest, ok := strings.Cut(k, "://"); ok {
			if port = portOf(sch); port == 0 {
				p.Errorf(b.server.Pos, "%s:// is not supported, write dns://, tls:// or https://", sch)
				continue
			}
			if k = rest; sch != "dns" {
				scheme = sch
			}
		}
		if i := strings.LastIndexByte(k, ':'); i >= 0 && !plugin.IsPrefix(k) {
			n, err := strconv.ParseUint(k[i+1:], 10, 16)
			if err != nil || n == 0 {
				p.Errorf(b.server.Pos, "port %q is not a number from 1 to 65535", k[i+1:])
				continue
			}
			port, k = int(n), k[:i]
		}
		if k == "" {
			k = "."
		}
		zs, err := plugin.ParseZone(k)
		if err != nil {
			p.Errorf(b.server.Pos, "%v", err)
			continue
		}
		for _, z := range zs {
			b.keys = append(b.keys, zoneKey{zone: z, port: uint16(port), scheme: scheme})
			if !slices.Contains(b.zones, z) {
				b.zones = append(b.zones, z)
			}
		}
	}
	if len(b.server.Keys) == 0 {
		p.Errorf(b.server.Pos, "a server block needs a zone, write `.:53 { … }`")
	}
}

// overlaps finds zones that two blocks serve on the same port and address.
func overlaps(blocks []*block) []error {
	type claim struct {
		zoneKey
		at place
	}
	var errs []error
	seen := make(map[claim]*block)
	for _, b := range blocks {
		for _, k := range b.keys {
			for _, at := range b.bind.places() {
				c := claim{k, at}
				if first, ok := seen[c]; ok {
					errs = append(errs, fmt.Errorf("%s:%d: %s: zone %s port %d is already served by the block at line %d, remove one or give them different `bind` addresses",
						b.server.Pos.File, b.server.Pos.Line, b.label(), k.zone, k.port, first.server.Pos.Line))
					continue
				}
				if len(b.views) == 0 { // else the next block may still be asked
					seen[c] = b
				}
			}
		}
	}
	return errs
}

// attach gives the plugins their surroundings and builds the chain.
func (b *block) attach(s *Server) {
	for _, p := range b.plugins {
		switch a := p.Plugin.(type) {
		case plugin.Attacher:
			a.Attach(s.env(b))
		case attacher:
			a.attach(s, b)
		}
	}
	b.chain = plugin.Chain(b.plugins)
	b.nearest = b.orders()
	if len(b.views) == 0 && !b.debug {
		b.plan = planOf(b.plugins)
		if b.plan != nil {
			for by, source := range sourceNames() {
				for r, rcode := range packedRcodes() {
					b.plan.counters[by][r] = s.metrics.blocks.WithLabelValues(b.label(), source, rcode)
				}
			}
		}
	}
}

// start runs the background work of the plugins until stop.
func (b *block) start(ctx context.Context) {
	ctx, b.cancel = context.WithCancel(ctx)
	for _, p := range b.plugins {
		if r, ok := p.Plugin.(plugin.Runner); ok {
			b.wg.Go(func() { r.Run(ctx) })
		}
	}
}

func (b *block) stop() {
	if b.cancel != nil {
		b.cancel()
	}
	b.wg.Wait()
}

// holds reports whether the block answers a name from own data.
func (b *block) holds(name string) bool { return plugin.Holds(b.plugins, name) }

// listens returns the sockets that the block wants.
func (b *block) listens(addrs []netip.Addr) map[netip.AddrPort][]string {
	addrs = b.bind.addrs(addrs)
	out := make(map[netip.AddrPort][]string)
	for _, k := range b.keys {
		if k.scheme != "" {
			continue
		}
		for _, a := range addrs {
			ap := netip.AddrPortFrom(a, k.port)
			out[ap] = append(out[ap], k.zone)
		}
	}
	return out
}
