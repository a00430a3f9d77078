package dns

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

// loop finds upstreams that send our own queries back to us. forward asks
// each upstream for a random name; when that question arrives here, the
// upstream loops, is disabled and reported. The server goes on.
type loop struct {
	probes sync.Map // name → *atomic.Bool: it came back
}

func parseLoop(p *parser, d config.Directive) plugin.Plugin {
	p.NoBlock(d)
	p.Args(d, 0, 0, "loop")
	return new(loop)
}

func (l *loop) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Type == wire.TypeHINFO {
		if hit, ok := l.probes.Load(q.Name); ok {
			hit.(*atomic.Bool).Store(true)
			q.Source = "loop"
			return plugin.Refusal(wire.RcodeRefused), nil
		}
	}
	return next(ctx, q)
}

// testLoop sends the probe of one upstream in the background.
func (f *forward) testLoop(ctx context.Context, u *upstream) {
	if f.loop == nil {
		return
	}
	f.probes.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		name := plugin.Under("loop-"+strings.ToLower(rand.Text()), f.from)
		hit := new(atomic.Bool)
		f.loop.probes.Store(name, hit)
		defer f.loop.probes.Delete(name)
		m := new(wire.Msg)
		m.SetQuestion(name, wire.TypeHINFO)
		_, err := u.exchange(ctx, m, f.forceTCP)
		if err != nil && !hit.Load() && u.looping.Load() {
			return // no answer proves nothing
		}
		if loops := hit.Load(); u.looping.Swap(loops) != loops {
			f.poke()
		}
	})
}
