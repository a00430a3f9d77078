// Package whoami tells a client its own address and port.
package whoami

import (
	"context"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

type whoami struct{}

// Parse reads `whoami`.
func Parse(s *plugin.Setup, d config.Directive) plugin.Plugin {
	s.NoBlock(d)
	s.Args(d, 0, 0, "whoami")
	return whoami{}
}

func (whoami) Serve(_ context.Context, q *plugin.Query, _ plugin.Handler) (*wire.Msg, error) {
	q.Own, q.Source = true, "whoami"
	m := new(wire.Msg)
	m.Authoritative = true
	addr := plugin.Address(q.Name, q.Client.Addr(), 0)
	if addr.Header().Rrtype == q.Type {
		m.Answer = []wire.RR{addr}
	} else {
		m.Extra = []wire.RR{addr}
	}
	proto := "_udp."
	if q.TCP {
		proto = "_tcp."
	}
	name := proto + strings.TrimPrefix(q.Name, ".")
	if _, ok := wire.IsDomainName(name); ok {
		m.Extra = append(m.Extra, &wire.SRV{
			Hdr:  wire.RR_Header{Name: name, Rrtype: wire.TypeSRV, Class: wire.ClassINET},
			Port: q.Client.Port(), Target: ".",
		})
	}
	return m, nil
}
