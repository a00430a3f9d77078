package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// search walks a workload's search path on the server, so that its first
// question gets what the whole path leads to:
//
//	web.other.apps.svc.cluster.local.      the first question of the path,
//	  └─ CNAME web.other.svc.cluster.local.  completed
//	       └─ A 10.96.0.7
//
// A question for any other name is answered as with the resolver option
// ndots:1: a single label is looked for in the path and then as it is, a
// longer name as it is and then in the path.
//
// A name of one label below the namespace is that of a service, and one below
// a service that of an endpoint. They are answered as they are, so that the
// name of a service that is gone never leads to a machine elsewhere that is
// called the same.
//
// The name that a walk ends at is the first that has an address, of either
// family, so that A and AAAA agree. What is found is put together for each
// question and never kept: only its parts are, under their own names.
type search struct {
	zone string // of the path
	ttl  uint32 // of the alias, at most: a better name may come into being
	who  func(netip.Addr) string
}

// parseSearch reads `search [ZONE | off]`.
func parseSearch(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	if !p.Args(d, 0, 1, "search [ZONE | off]") {
		return nil
	}
	p.block.searched = true
	if len(d.Args) == 0 {
		return &search{}
	}
	if d.Args[0] == "off" {
		return nil
	}
	zs, err := plugin.ParseZone(d.Args[0])
	if err != nil || len(zs) != 1 || plugin.IsReverse(zs[0]) || zs[0] == "." {
		p.Errorf(d.Pos, "search: %q is not the zone of a search path, write e.g. `search %s` or `search off`", d.Args[0], config.DefaultZone)
		return nil
	}
	return &search{zone: zs[0], ttl: defaultTTL}
}

// completes gives a block with cluster names its search path, unless it says
// something else about that.
func (p *parser) completes(perKind [][]plugin.Named, known []directive) {
	kind := func(name string) int {
		return slices.IndexFunc(known, func(k directive) bool { return k.name == name })
	}
	at := kind("search")
	var zone string
	ttl := uint32(defaultTTL)
	for _, n := range perKind[kind("cluster")] {
		if c := n.Plugin.(*cluster); len(c.opt.forward) > 0 && c.opt.forward[0] != "." {
			zone, ttl = c.opt.forward[0], c.opt.ttl
			break
		}
	}
	switch {
	case len(perKind[at]) > 0: // with a zone of its own, or the cluster's
		s := perKind[at][0].Plugin.(*search)
		if s.zone == "" && zone == "" {
			p.Errorf(p.block.server.Pos, "search: there is no `cluster` in the block whose zone it could be for, write `search %s`", config.DefaultZone)
		} else if s.zone == "" {
			s.zone, s.ttl = zone, ttl
		}
	case !p.block.searched && zone != "" && len(perKind[kind("autopath")]) == 0:
		perKind[at] = []plugin.Named{{Name: "search", Plugin: &search{zone: zone, ttl: ttl}}}
	}
}

// attach implements attacher.
func (p *search) attach(s *Server, _ *block) { p.who = s.namespaceOf }

// How a question takes part in a search.
type part uint8

const (
	notAsked   part = iota
	askedFirst      // the first name of the path
	askedBare       // a single label
	askedWhole      // a longer name as it is
)

// kind tells how a name takes part when a workload of a namespace asks for it.
// base is the name without its suffix, with the final dot.
func (p *search) kind(name, ns string) (k part, base string) {
	if rest, ok := strings.CutSuffix(name, p.zone); ok && (rest == "" || rest[len(rest)-1] == '.') {
		rest, ok = strings.CutSuffix(rest, ".svc.")
		if !ok || len(rest) < len(ns)+2 || rest[len(rest)-len(ns):] != ns || rest[len(rest)-len(ns)-1] != '.' {
			return notAsked, ""
		}
		if base = rest[:len(rest)-len(ns)]; strings.IndexByte(base, '.') == len(base)-1 {
			return notAsked, "" // a service
		}
		return askedFirst, base
	}
	switch strings.IndexByte(name, '.') {
	case 0: // the root
		return notAsked, ""
	case len(name) - 1:
		return askedBare, name
	}
	return askedWhole, name
}

// above returns the name of the service that a first question would be about
// if it were about an endpoint.
func above(name, base string) string {
	return name[strings.LastIndexByte(base[:len(base)-1], '.')+1:]
}

// path is what WorkloadConfig gives to the workloads of a namespace.
func (p *search) path(ns string) [3]string { return searchPath(ns, p.zone) }

func searchPath(ns, zone string) [3]string {
	return [3]string{plugin.Under(ns+".svc", zone), plugin.Under("svc", zone), zone}
}

func (p *search) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Type != wire.TypeA && q.Type != wire.TypeAAAA || q.Class != wire.ClassINET || q.Depth > 0 {
		return next(ctx, q)
	}
	ns := p.who(q.Client.Addr())
	if ns == "" {
		return next(ctx, q)
	}
	kind, base := p.kind(q.Name, ns)
	path := p.path(ns)
	w := walk{search: p, q: q, base: base}
	switch kind {
	case askedFirst:
		return w.first(ctx, path[1:], next)
	case askedBare:
		if w.through(ctx, path[:]); w.found != nil {
			return w.answer(), nil
		}
		return next(ctx, q)
	case askedWhole:
		m, err := next(ctx, q)
		if err != nil || m != nil && (m.Rcode != wire.RcodeNameError || len(m.Answer) > 0) {
			return m, err
		}
		if w.through(ctx, path[:]); w.found != nil {
			return w.answer(), nil
		}
		return m, nil
	}
	return next(ctx, q)
}

// walk is one question on its way along a path.
type walk struct {
	*search
	q    *plugin.Query
	base string // with the final dot

	found, empty         *wire.Msg // with an address; the first that exists without
	foundName, emptyName string
	broken               bool // a step failed: what comes after it cannot be told
}

// first answers the first question of a path, whose other suffixes are rest.
func (w *walk) first(ctx context.Context, rest []string, next plugin.Handler) (*wire.Msg, error) {
	first, err := next(ctx, w.q)
	if err != nil || first == nil || len(first.Answer) > 0 || first.Rcode != wire.RcodeNameError && first.Rcode != wire.RcodeSuccess {
		return first, err
	}
	if first.Rcode == wire.RcodeSuccess && w.otherFamily(ctx, w.q.Name) {
		return first, nil
	}
	if s, err := w.q.Lookup(ctx, above(w.q.Name, w.base), w.q.Type); err != nil || s == nil || s.Rcode != wire.RcodeNameError || len(s.Answer) > 0 {
		return first, nil // an alias that leads nowhere is a name too
	}
	explained := len(w.q.EDE)
	if w.through(ctx, rest); w.found == nil && !w.broken {
		w.asIs(ctx)
	}
	switch {
	case w.found != nil:
	case w.broken:
		// It is true of the name that was asked. The client asks on, and
		// learns of the failure from the question that it is about.
		w.q.EDE = w.q.EDE[:explained]
		return first, nil
	case w.empty == nil || first.Rcode == wire.RcodeSuccess:
		w.q.Own, w.q.Cached, w.q.Source = true, false, "search"
		return first, nil
	default:
		w.found, w.foundName = w.empty, w.emptyName
	}
	return w.answer(), nil
}

// through looks for the name below each suffix until one has an address.
func (w *walk) through(ctx context.Context, suffixes []string) {
	for _, s := range suffixes {
		name := w.base + s
		if _, ok := wire.IsDomainName(name); !ok {
			continue
		}
		r := w.look(ctx, name)
		switch {
		case r == nil:
			w.broken = true
			return
		case r.Rcode == wire.RcodeNameError:
		case hasAddress(r) || w.otherFamily(ctx, name):
			w.found, w.foundName = r, name
			return
		case w.empty == nil:
			w.empty, w.emptyName = r, name
		}
	}
}

// asIs looks for the name itself, the last of the path. It may be anybody's;
// that it exists without data is an answer too.
func (w *walk) asIs(ctx context.Context) {
	r := w.look(ctx, w.base)
	if r == nil {
		w.broken = true
	} else if r.Rcode == wire.RcodeSuccess {
		w.found, w.foundName = r, w.base
	}
}

// look asks for a name. Nil: it could not be told whether there is one.
func (w *walk) look(ctx context.Context, name string) *wire.Msg {
	r, err := w.q.Lookup(ctx, name, w.q.Type)
	if err != nil || r == nil || r.Rcode != wire.RcodeSuccess && r.Rcode != wire.RcodeNameError {
		return nil
	}
	w.q.Record(plugin.Step{Plugin: "search", Decision: "tried", Name: name, Type: w.q.Type, Rcode: wire.RcodeToString[r.Rcode]})
	return r
}

// otherFamily reports whether a name has an address of the family that was
// not asked for.
func (w *walk) otherFamily(ctx context.Context, name string) bool {
	other := wire.TypeA
	if w.q.Type == wire.TypeA {
		other = wire.TypeAAAA
	}
	r, err := w.q.Lookup(ctx, name, other)
	return err == nil && r != nil && r.Rcode == wire.RcodeSuccess && hasAddress(r)
}

func hasAddress(m *wire.Msg) bool {
	return slices.ContainsFunc(m.Answer, func(rr wire.RR) bool {
		t := rr.Header().Rrtype
		return t == wire.TypeA || t == wire.TypeAAAA
	})
}

// answer leads from the name that was asked for to the one that was found.
func (w *walk) answer() *wire.Msg {
	w.q.Own, w.q.Cached, w.q.Source = true, false, "search"
	ttl := w.ttl
	for _, rr := range w.found.Answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	m := &wire.Msg{Ns: w.found.Ns}
	m.Rcode = w.found.Rcode
	m.Authoritative = plugin.InZone(w.zone, w.q.Name)
	m.Answer = append([]wire.RR{&wire.CNAME{
		Hdr:    wire.RR_Header{Name: w.q.Name, Rrtype: wire.TypeCNAME, Class: wire.ClassINET, Ttl: ttl},
		Target: w.foundName,
	}}, w.found.Answer...)
	return m
}

// attach implements attacher.
func (c *cluster) attach(s *Server, _ *block) { c.namespaceOf = s.namespaceOf }

// Search implements plugin.Searcher: the path that WorkloadConfig gives to the
// client's namespace.
func (c *cluster) Search(client netip.Addr) []string {
	if c.namespaceOf == nil || len(c.opt.forward) == 0 {
		return nil
	}
	ns := c.namespaceOf(client)
	if ns == "" {
		return nil
	}
	path := searchPath(ns, c.opt.forward[0])
	return path[:]
}
