// Package minimal leaves out of answers what was not asked for.
package minimal

import (
	"context"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

type minimal struct{}

// Parse reads `minimal`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.NoBlock(d)
	s.Args(d, 0, 0, "minimal")
	return minimal{}
}

// Serve strips the authority and additional sections of an answer that has
// the records. A denial keeps its SOA (RFC 2308), a delegation its servers.
func (minimal) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	m, err := next(ctx, q)
	if m != nil && m.Rcode == wire.RcodeSuccess && len(m.Answer) > 0 {
		m.Ns, m.Extra = nil, nil
	}
	return m, err
}
