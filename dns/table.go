package dns

import (
	"context"
	"net/netip"
	"slices"

	wire "github.com/miekg/dns"

	"nodenet/dns/limit"
	"nodenet/dns/plugin"
)

// query is a question with the blocks of its socket.
type query struct {
	plugin.Query
	table *table
	block *block // chosen by longest match
}

// table finds the block of a name, for one socket. Immutable.
type table struct {
	addr  netip.AddrPort      // of the socket; zero: none
	limit *limit.Limiter      // of clients; nil: none
	zones map[string][]*block // in file order; more than one with `view` only
	only  *block              // that every name goes to, as in most tables; nil: it depends
	ask   askFunc
}

// askFunc answers a question on behalf of another one.
type askFunc = func(ctx context.Context, q *plugin.Query, name string, qtype uint16) (*wire.Msg, error)

func newTable() *table {
	t := &table{zones: make(map[string][]*block)}
	t.ask = t.lookup
	return t
}

// asker is t.ask, also of no table.
func (t *table) asker() askFunc {
	if t == nil {
		return nil
	}
	return t.ask
}

// add puts a block under a zone.
func (t *table) add(zone string, b *block) {
	t.zones[zone] = append(t.zones[zone], b)
	t.only = nil
	if root := t.zones["."]; len(t.zones) == 1 && len(root) == 1 && len(root[0].views) == 0 {
		t.only = root[0]
	}
}

// limited sets the limiter of a socket: that of the first block with `ratelimit`, or standard.
func (t *table) limited(blocks []*block, standard *limit.Limiter) {
	t.limit = standard
	for _, b := range blocks {
		if !b.limited {
			continue
		}
		for _, of := range t.zones {
			if slices.Contains(of, b) {
				t.limit = b.limiter
				return
			}
		}
	}
}

// match returns the block with the longest zone that name lies in, when the
// name alone decides: nil when there is none, or when it has a view. The name
// is lower-case and fully qualified.
func (t *table) match(name string) *block {
	b := t.find(name, func(*block) bool { return true })
	if b != nil && len(b.views) > 0 {
		return nil
	}
	return b
}

// of returns the block that answers a question, or nil: the longest zone that
// has a block whose views hold.
func (t *table) of(q *plugin.Query) *block {
	return t.find(q.Name, func(b *block) bool { return b.sees(q) })
}

func (t *table) find(name string, fits func(*block) bool) *block {
	if t == nil {
		return nil
	}
	first := func(zone string) *block {
		for _, b := range t.zones[zone] {
			if fits(b) {
				return b
			}
		}
		return nil
	}
	for off, end := 0, name == "."; !end; off, end = wire.NextLabel(name, off) {
		if b := first(name[off:]); b != nil {
			return b
		}
	}
	return first(".")
}

// lookup asks another name on behalf of q. The result may be nil: no block
// serves that name.
func (t *table) lookup(ctx context.Context, q *plugin.Query, name string, qtype uint16) (*wire.Msg, error) {
	m := new(wire.Msg)
	m.SetQuestion(name, qtype)
	m.CheckingDisabled = q.Msg.CheckingDisabled
	sub := &plugin.Query{
		Msg: m, Name: wire.CanonicalName(name), Type: qtype, Class: wire.ClassINET,
		Client: q.Client, Local: q.Local, Proto: q.Proto, TCP: q.TCP, DO: q.DO,
		Depth: q.Depth + 1, Ask: q.Ask, Trace: q.Trace,
	}
	b := t.of(sub)
	if b == nil {
		return nil, nil
	}
	sub.Block = b.label()
	r, err := b.chain(ctx, sub)
	q.EDE = append(q.EDE, sub.EDE...)
	return r, err
}

// buildLive makes the tables for a set of blocks and addresses.
func buildLive(blocks []*block, addrs []netip.Addr) *live {
	l := &live{blocks: blocks, tables: make(map[netip.AddrPort]*table), main: newTable(), sites: make(map[site]*secureTable)}
	main := uint16(0)
	for _, b := range blocks {
		for st, zs := range b.sites(addrs) {
			if l.sites[st] == nil {
				l.sites[st] = &secureTable{newTable(), b.tls}
				l.sites[st].addr = st.addr
			}
			for _, z := range zs {
				l.sites[st].add(z, b)
			}
		}
		for ap, zs := range b.listens(addrs) {
			t := l.tables[ap]
			if t == nil {
				t = newTable()
				t.addr = ap
				l.tables[ap] = t
			}
			for _, z := range zs {
				t.add(z, b)
			}
		}
		for _, k := range b.keys {
			if k.scheme != "" {
				continue
			}
			if main == 0 || k.port == defaultPort || main != defaultPort && k.port < main {
				main = k.port
			}
		}
	}
	for _, b := range blocks {
		for _, k := range b.keys {
			if k.scheme == "" && k.port == main {
				l.main.add(k.zone, b)
			}
		}
	}
	return l
}

// overLimit takes one question of a client and reports whether it is one too
// many.
func (t *table) overLimit(client netip.Addr) bool {
	return t != nil && !t.limit.Allow(client)
}
