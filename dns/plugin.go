package dns

import (
	"context"
	"net/netip"

	wire "github.com/miekg/dns"
)

// query is one question on its way through a chain. It belongs to one
// goroutine; the message in it is never changed.
type query struct {
	msg   *wire.Msg
	name  string // lower-case, fully qualified
	qtype uint16
	class uint16
	from  netip.AddrPort
	tcp   bool
	do    bool // the client sets DNSSEC OK
	table *table
	block *block // chosen by longest match
	depth int    // of questions asked on behalf of another one

	// Set on the way back.
	local  bool   // answered from own data: not worth caching
	cached bool   // answered by cache
	source string // directive that answered, for logs and metrics
	ede    []*wire.EDNS0_EDE
}

// explain adds an extended error (RFC 8914) to the answer.
func (q *query) explain(code uint16, text string) {
	q.ede = append(q.ede, &wire.EDNS0_EDE{InfoCode: code, ExtraText: text})
}

// maxDepth bounds questions asked on behalf of others and CNAME chains.
const maxDepth = 10

// lookup asks another name on behalf of q, through the blocks of the same
// socket. The result may be nil: no block serves that name.
func (q *query) lookup(ctx context.Context, name string, qtype uint16) (*wire.Msg, error) {
	m := new(wire.Msg)
	m.SetQuestion(name, qtype)
	m.CheckingDisabled = q.msg.CheckingDisabled
	sub := &query{
		msg: m, name: wire.CanonicalName(name), qtype: qtype, class: wire.ClassINET,
		from: q.from, tcp: q.tcp, do: q.do, table: q.table, depth: q.depth + 1,
	}
	if sub.block = q.table.match(sub.name); sub.block == nil {
		return nil, nil
	}
	r, err := sub.block.chain(ctx, sub)
	q.ede = append(q.ede, sub.ede...)
	return r, err
}

// handler answers a query. A nil message means that nobody has an answer. The
// message belongs to the caller; its records are shared and must be copied
// before they are changed.
type handler func(ctx context.Context, q *query) (*wire.Msg, error)

// plugin is a directive that takes part in answering.
type plugin interface {
	serve(ctx context.Context, q *query, next handler) (*wire.Msg, error)
}

// attacher is a plugin that needs its surroundings. attach is called once,
// before the first query, and may read files.
type attacher interface {
	attach(s *Server, b *block)
}

// runner is a plugin with work in the background, until ctx ends.
type runner interface {
	run(ctx context.Context)
}

// holder is a plugin that answers some names from own data. The cache leaves
// these names alone, so that a change is seen at once.
type holder interface {
	holds(name string) bool
}

// chainOf makes one handler of plugins in their order.
func chainOf(plugins []plugin) handler {
	h := func(context.Context, *query) (*wire.Msg, error) { return nil, nil }
	for i := len(plugins) - 1; i >= 0; i-- {
		p, next := plugins[i], h
		h = func(ctx context.Context, q *query) (*wire.Msg, error) { return p.serve(ctx, q, next) }
	}
	return h
}

// zones is a set of zones, lower-case and fully qualified.
type zones []string

// match returns the longest zone that name lies in, or "".
func (z zones) match(name string) string {
	best := ""
	for _, zone := range z {
		if len(zone) > len(best) && inZone(zone, name) {
			best = zone
		}
	}
	return best
}

// inZone reports whether a name is a zone's or below it. Both are lower-case
// and fully qualified; a dot after a backslash does not separate labels.
func inZone(zone, name string) bool {
	cut := len(name) - len(zone)
	if zone == "." || cut == 0 {
		return zone == "." || zone == name
	}
	if cut < 0 || name[cut-1] != '.' || name[cut:] != zone {
		return false
	}
	slashes := 0
	for i := cut - 2; i >= 0 && name[i] == '\\'; i-- {
		slashes++
	}
	return slashes%2 == 0
}

// fallthroughTo says for which names a directive passes on what it does not
// know. The zero value: for none.
type fallthroughTo struct {
	set   bool
	zones zones // empty: every name
}

func (f fallthroughTo) passes(name string) bool {
	return f.set && (len(f.zones) == 0 || f.zones.match(name) != "")
}
