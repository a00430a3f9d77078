// Package cancel ends questions that take too long.
package cancel

import (
	"context"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// standard is a little more than clients wait by default: 5 s, resolv.conf(5).
const standard = 5001 * time.Millisecond

type cancel struct{ after time.Duration }

// Parse reads `cancel [TIMEOUT]`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.NoBlock(d)
	c := cancel{after: standard}
	if s.Args(d, 0, 1, "cancel [TIMEOUT]") && len(d.Args) == 1 {
		c.after, _ = s.Duration(d, "timeout", d.Args[0], time.Millisecond)
	}
	return c
}

func (c cancel) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	ctx, stop := context.WithTimeout(ctx, c.after)
	defer stop()
	m, err := next(ctx, q)
	if err != nil && ctx.Err() != nil {
		return nil, plugin.ErrDrop // the client does not wait any more
	}
	return m, err
}

// Skips implements plugin.Bystander: an answer in the receive loop takes no time.
func (cancel) Skips(string, uint16) bool { return true }
