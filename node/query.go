package node

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"nodenet/api"
)

// query asks the node's own DNS server through the chain that a packet from
// the given client would take.
func (n *Node) query(ctx context.Context, q api.DNSQuery) (*api.DNSAnswer, error) {
	name := mdns.Fqdn(q.Name)
	if _, ok := mdns.IsDomainName(name); !ok || q.Name == "" {
		return nil, invalid("dns query: %q is not a domain name", q.Name)
	}
	typ, ok := mdns.StringToType[strings.ToUpper(cmp.Or(q.Type, "A"))]
	if !ok {
		return nil, invalid("dns query: %q is not a record type", q.Type)
	}
	m := new(mdns.Msg)
	m.SetQuestion(name, typ)
	start := time.Now()
	r, err := n.dns.Query(ctx, m, n.clientFor(q.From), q.TCP)
	if err != nil {
		return nil, fmt.Errorf("dns query %s: %w", name, err)
	}
	a := &api.DNSAnswer{
		Rcode: mdns.RcodeToString[r.Rcode], Server: n.cfg.Services.DNS.String(), Micros: time.Since(start).Microseconds(),
		Answer: rrText(r.Answer), Authority: rrText(r.Ns), Additional: rrText(r.Extra),
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{r.Response, "qr"}, {r.Authoritative, "aa"}, {r.Truncated, "tc"}, {r.RecursionDesired, "rd"}, {r.RecursionAvailable, "ra"}} {
		if f.set {
			a.Flags = append(a.Flags, f.name)
		}
	}
	return a, nil
}

func rrText(rrs []mdns.RR) []string {
	out := []string{}
	for _, rr := range rrs {
		if rr.Header().Rrtype != mdns.TypeOPT {
			out = append(out, rr.String())
		}
	}
	return out
}
