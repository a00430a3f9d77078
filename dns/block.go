package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	wire "github.com/miekg/dns"

	"nodenet/config"
)

// block is a server block: zones, ports and a chain of plugins. It is
// immutable once it is attached.
type block struct {
	server  config.Server
	keys    []zoneKey
	zones   zones // of all keys, in order, no duplicates
	plugins []plugin
	chain   handler

	bind     []netip.Addr // empty: the server's addresses
	bufsize  uint16       // 0: defaultBufsize
	recurse  bool         // a forward is there: RA is set
	nsid     []byte       // nil: not given
	endpoint httpEndpoints
	reload   reloadOptions

	cancel context.CancelFunc // ends the runners
	wg     sync.WaitGroup
}

// zoneKey is one key of a block.
type zoneKey struct {
	zone string
	port uint16
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
		if scheme, rest, ok := strings.Cut(k, "://"); ok {
			if scheme != "dns" {
				p.errorf(b.server.Pos, "%s:// is not supported, only plain DNS (dns://) is served", scheme)
				continue
			}
			k = rest
		}
		port := defaultPort
		if i := strings.LastIndexByte(k, ':'); i >= 0 && !isPrefix(k) {
			n, err := strconv.ParseUint(k[i+1:], 10, 16)
			if err != nil || n == 0 {
				p.errorf(b.server.Pos, "port %q is not a number from 1 to 65535", k[i+1:])
				continue
			}
			port, k = int(n), k[:i]
		}
		if k == "" {
			k = "."
		}
		zs, err := parseZone(k)
		if err != nil {
			p.errorf(b.server.Pos, "%v", err)
			continue
		}
		for _, z := range zs {
			b.keys = append(b.keys, zoneKey{zone: z, port: uint16(port)})
			if !slices.Contains(b.zones, z) {
				b.zones = append(b.zones, z)
			}
		}
	}
	if len(b.server.Keys) == 0 {
		p.errorf(b.server.Pos, "a server block needs a zone, write `.:53 { … }`")
	}
}

func isPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// overlaps finds zones that two blocks serve on the same port and address.
func overlaps(blocks []*block) []error {
	type claim struct {
		zoneKey
		addr netip.Addr // zero: the server's addresses
	}
	var errs []error
	seen := make(map[claim]*block)
	for _, b := range blocks {
		addrs := b.bind
		if len(addrs) == 0 {
			addrs = []netip.Addr{{}}
		}
		for _, k := range b.keys {
			for _, a := range addrs {
				c := claim{k, a}
				if first, ok := seen[c]; ok {
					errs = append(errs, fmt.Errorf("%s:%d: %s: zone %s port %d is already served by the block at line %d, remove one or give them different `bind` addresses",
						b.server.Pos.File, b.server.Pos.Line, b.label(), k.zone, k.port, first.server.Pos.Line))
					continue
				}
				seen[c] = b
			}
		}
	}
	return errs
}

// attach gives the plugins their surroundings and builds the chain.
func (b *block) attach(s *Server) {
	for _, p := range b.plugins {
		if a, ok := p.(attacher); ok {
			a.attach(s, b)
		}
	}
	b.chain = chainOf(b.plugins)
}

// start runs the background work of the plugins until stop.
func (b *block) start(ctx context.Context) {
	ctx, b.cancel = context.WithCancel(ctx)
	for _, p := range b.plugins {
		if r, ok := p.(runner); ok {
			b.wg.Go(func() { r.run(ctx) })
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
func (b *block) holds(name string) bool {
	for _, p := range b.plugins {
		if h, ok := p.(holder); ok && h.holds(name) {
			return true
		}
	}
	return false
}

// listens returns the sockets that the block wants.
func (b *block) listens(addrs []netip.Addr) map[netip.AddrPort][]string {
	if len(b.bind) > 0 {
		addrs = b.bind
	}
	out := make(map[netip.AddrPort][]string)
	for _, k := range b.keys {
		for _, a := range addrs {
			ap := netip.AddrPortFrom(a, k.port)
			out[ap] = append(out[ap], k.zone)
		}
	}
	return out
}

// table finds the block of a name, for one socket. Immutable.
type table struct {
	zones map[string]*block
}

// match returns the block with the longest zone that name lies in, or nil.
// The name is lower-case and fully qualified.
func (t *table) match(name string) *block {
	if t == nil {
		return nil
	}
	for off, end := 0, false; !end; off, end = wire.NextLabel(name, off) {
		if b, ok := t.zones[name[off:]]; ok {
			return b
		}
	}
	return t.zones["."]
}

// buildLive makes the tables for a set of blocks and addresses.
func buildLive(blocks []*block, addrs []netip.Addr) *live {
	l := &live{blocks: blocks, tables: make(map[netip.AddrPort]*table), main: &table{zones: make(map[string]*block)}}
	main := uint16(0)
	for _, b := range blocks {
		for ap, zs := range b.listens(addrs) {
			t := l.tables[ap]
			if t == nil {
				t = &table{zones: make(map[string]*block)}
				l.tables[ap] = t
			}
			for _, z := range zs {
				t.zones[z] = b
			}
		}
		for _, k := range b.keys {
			if main == 0 || k.port == defaultPort || main != defaultPort && k.port < main {
				main = k.port
			}
		}
	}
	for _, b := range blocks {
		for _, k := range b.keys {
			if _, taken := l.main.zones[k.zone]; k.port == main && !taken {
				l.main.zones[k.zone] = b
			}
		}
	}
	return l
}
