// Package plugin is what a directive that takes part in answering needs: the
// question on its way through a chain, the chain itself, the surroundings, and
// the reading of a directive's arguments.
//
//	Nodefile ──► Setup ──► Plugin ──► Attach(Env) ──► Serve(ctx, Query, next)
//	              errors      │                           │
//	              notices     └ Run(ctx), Holds(name)     └ Trace, extended errors
//
// Each directive lives in a directory of its own below dns and imports this
// package, never package dns, which puts them together.
package plugin

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	wire "github.com/miekg/dns"
)

// Query is one question on its way through a chain. It belongs to one
// goroutine; the message in it is never changed. A plugin that changes the
// question passes on a copy (With) and takes over what came back (Merge).
type Query struct {
	Msg    *wire.Msg
	Name   string // lower-case, fully qualified
	Type   uint16
	Class  uint16
	Client netip.AddrPort
	Local  netip.AddrPort // the socket that was asked; zero: none
	Proto  string         // udp, tcp, tls, https; empty: udp
	TCP    bool           // the answer has no size limit
	DO     bool           // the client sets DNSSEC OK
	Depth  int            // of questions asked on behalf of another one
	Block  string         // the server block, as its first key is written

	// Ask answers a question on behalf of this one, through the blocks of the
	// same socket. Nil: nobody else can be asked. See Lookup.
	Ask func(ctx context.Context, q *Query, name string, qtype uint16) (*wire.Msg, error)
	// Trace records the way of the question. Nil: nobody wants to know.
	Trace *Trace

	// Options are EDNS options for upstreams, beside those that forward sends by
	// itself. Answers to questions with such options are not cached.
	Options []wire.EDNS0

	// Set on the way back.
	Own    bool   // answered from own data: not worth caching
	Cached bool   // answered by cache
	Source string // directive that answered, for logs and metrics
	EDE    []*wire.EDNS0_EDE
	// Overrides of the header flags that the server sets; nil: none.
	RecursionAvailable, RecursionDesired *bool
}

// MaxDepth bounds questions asked on behalf of others and CNAME chains.
const MaxDepth = 10

// ErrDrop is what a plugin returns when a question must get no answer at all.
var ErrDrop = errors.New("the question is dropped")

// Explain adds an extended error (RFC 8914) to the answer.
func (q *Query) Explain(code uint16, text string) {
	q.EDE = append(q.EDE, &wire.EDNS0_EDE{InfoCode: code, ExtraText: text})
}

// Lookup asks another name on behalf of q. The result may be nil: no block
// serves that name. It fails when questions lead to questions without end.
func (q *Query) Lookup(ctx context.Context, name string, qtype uint16) (*wire.Msg, error) {
	if q.Ask == nil {
		return nil, nil
	}
	if q.Depth >= MaxDepth {
		return nil, errors.New("look up " + name + ": too many questions on behalf of others")
	}
	return q.Ask(ctx, q, name, qtype)
}

// With returns a copy that asks for another name, type or class. The client's
// message is copied, not changed.
func (q *Query) With(name string, qtype, class uint16) *Query {
	c := *q
	c.Name, c.Type, c.Class = wire.CanonicalName(name), qtype, class
	m := *q.Msg
	m.Question = []wire.Question{{Name: name, Qtype: qtype, Qclass: class}}
	c.Msg = &m
	c.EDE = nil
	return &c
}

// Merge takes over what a copy brought back.
func (q *Query) Merge(c *Query) {
	q.Own, q.Cached, q.Source = c.Own, c.Cached, c.Source
	q.EDE = append(q.EDE, c.EDE...)
	q.RecursionAvailable, q.RecursionDesired = c.RecursionAvailable, c.RecursionDesired
}

// OPT returns the client's EDNS record, or nil.
func (q *Query) OPT() *wire.OPT { return q.Msg.IsEdns0() }

// Handler answers a query. A nil message means that nobody has an answer. The
// message belongs to the caller; its records are shared and must be copied
// before they are changed.
type Handler func(ctx context.Context, q *Query) (*wire.Msg, error)

// Plugin is a directive that takes part in answering. It is safe for
// concurrent use.
type Plugin interface {
	Serve(ctx context.Context, q *Query, next Handler) (*wire.Msg, error)
}

// Attacher is a plugin that needs its surroundings. Attach is called once,
// before the first query, and may read files.
type Attacher interface{ Attach(Env) }

// Runner is a plugin with work in the background, until ctx ends.
type Runner interface{ Run(ctx context.Context) }

// Holder is a plugin that answers some names from own data. The cache leaves
// these names alone, so that a change is seen at once.
type Holder interface{ Holds(name string) bool }

// Bystander is a plugin that tells by the question alone that it takes no
// part: Serve would call the next handler with the same query and hand back
// what it gets, unchanged. Questions of class IN that all plugins skip up to
// the one that knows the answer are answered in the receive loop, without a
// chain; a plugin that is no bystander ends that path. The name is lower-case,
// fully qualified, free of escapes, and must not be kept.
type Bystander interface {
	Skips(name string, qtype uint16) bool
}

// Searcher is a plugin that knows the search path of a client, for autopath.
// The zones are fully qualified; none means that it does not know the client.
type Searcher interface {
	Search(client netip.Addr) []string
}

// Transferer is a plugin whose zones may be copied by other servers.
type Transferer interface {
	// Transfer returns the records of a zone, the SOA first and not again at
	// the end. False: the plugin does not serve that zone.
	Transfer(zone string) ([]wire.RR, bool)
}

// Named is a plugin with the name of its directive.
type Named struct {
	Name string
	Plugin
}

// Chain makes one handler of plugins in their order.
func Chain(plugins []Named) Handler {
	h := func(context.Context, *Query) (*wire.Msg, error) { return nil, nil }
	for _, p := range slices.Backward(plugins) {
		next := h
		h = func(ctx context.Context, q *Query) (*wire.Msg, error) {
			if q.Trace != nil {
				return traced(ctx, p, q, next)
			}
			return p.Serve(ctx, q, next)
		}
	}
	return h
}

// traced serves and records a step.
func traced(ctx context.Context, p Named, q *Query, next Handler) (*wire.Msg, error) {
	start := time.Now()
	i := q.Trace.open(Step{Block: q.Block, Plugin: p.Name, Depth: q.Depth, Name: q.Name, Type: q.Type})
	passed := false
	m, err := p.Serve(ctx, q, func(ctx context.Context, q *Query) (*wire.Msg, error) {
		passed = true
		return next(ctx, q)
	})
	q.Trace.shut(i, passed, m, err, time.Since(start))
	return m, err
}
