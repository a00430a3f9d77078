package check

import (
	"context"
	"fmt"

	mdns "github.com/miekg/dns"
)

// dns asks for a name's address, or for the root's servers when there is no
// name: then any answer will do, a refusal too.
func (p Probe) dns(ctx context.Context) error {
	q := new(mdns.Msg)
	if p.Host == "" {
		q.SetQuestion(".", mdns.TypeNS)
	} else {
		q.SetQuestion(mdns.Fqdn(p.Host), mdns.TypeA)
	}
	what := fmt.Sprintf("ask %s for %s", p.Addr, q.Question[0].Name)
	r, _, err := (&mdns.Client{Net: "udp"}).ExchangeContext(ctx, q, p.Addr.String())
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", what, reason(ctx, err))
	case p.Host == "":
		return nil
	case r.Rcode != mdns.RcodeSuccess:
		return fmt.Errorf("%s: %s", what, mdns.RcodeToString[r.Rcode])
	case len(r.Answer) == 0:
		return fmt.Errorf("%s: no answer in it", what)
	}
	return nil
}
