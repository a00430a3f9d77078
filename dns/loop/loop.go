// Package loop finds upstreams that send the server's own queries back to it.
package loop

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"sync/atomic"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// Loop is one directive. It recognizes questions that were sent as probes.
type Loop struct {
	probes sync.Map // name → *atomic.Bool: it came back
}

// Parse reads `loop`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.NoBlock(d)
	s.Args(d, 0, 0, "loop")
	return new(Loop)
}

// Probe makes a question that nobody else asks, for a random name below zone.
// back reports whether the question has arrived here; end forgets it.
func (l *Loop) Probe(zone string) (m *wire.Msg, back func() bool, end func()) {
	name := plugin.Under("loop-"+strings.ToLower(rand.Text()), zone)
	hit := new(atomic.Bool)
	l.probes.Store(name, hit)
	m = new(wire.Msg)
	m.SetQuestion(name, wire.TypeHINFO)
	return m, hit.Load, func() { l.probes.Delete(name) }
}

// Serve implements plugin.Plugin.
func (l *Loop) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Type == wire.TypeHINFO {
		if hit, ok := l.probes.Load(q.Name); ok {
			hit.(*atomic.Bool).Store(true)
			q.Source = "loop"
			return plugin.Refusal(wire.RcodeRefused), nil
		}
	}
	return next(ctx, q)
}
