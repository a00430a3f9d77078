package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"nodenet/api"
	"nodenet/dns"
)

// query asks the node's own DNS server through the chain that a packet from
// the given client would take.
func (n *Node) query(ctx context.Context, q api.DNSQuery) (*api.DNSAnswer, error) {
	typ, err := parseQuestion(q)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var r *mdns.Msg
	for _, name := range n.searchNames(q) {
		m := new(mdns.Msg)
		m.SetQuestion(name, typ)
		if r, err = n.dns.Query(ctx, m, n.clientFor(q.From), q.TCP); err != nil {
			return nil, fmt.Errorf("dns query %s: %w", name, err)
		}
		if r.Rcode == mdns.RcodeSuccess && len(r.Answer) > 0 {
			break
		}
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

// searchNames lists what a workload's resolver would ask for in turn: with
// fewer dots than ndots its search list comes first (resolv.conf(5)).
// For a question from nowhere, and for a name with a final dot, it is the name.
func (n *Node) searchNames(q api.DNSQuery) []string {
	full := mdns.Fqdn(q.Name)
	if strings.HasSuffix(q.Name, ".") || !q.From.IsValid() {
		return []string{full}
	}
	for e := range n.store.Snapshot().View().Endpoints() {
		if !slices.Contains(e.Addrs, q.From) || strings.Count(q.Name, ".") >= workloadNdots {
			continue
		}
		_, search, _ := dns.WorkloadConfig(n.zone(), e.Namespace, n.cfg.Services.DNS, nil)
		var names []string
		for _, s := range search {
			if name := full + mdns.Fqdn(s); len(name) < 255 {
				names = append(names, name)
			}
		}
		return append(names, full)
	}
	return []string{full}
}

// workloadNdots is what a workload's resolv.conf says.
const workloadNdots = 5

func rrText(rrs []mdns.RR) []string {
	out := []string{}
	for _, rr := range rrs {
		if rr.Header().Rrtype != mdns.TypeOPT {
			out = append(out, rr.String())
		}
	}
	return out
}
