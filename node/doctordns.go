package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"

	"nodenet/api"
	"nodenet/overlay"
)

// checkResolverPath proves that questions to the node's resolver address stay
// on the node and are neither translated nor tracked: two questions of one
// socket that race for an entry of conntrack are what makes lookups take five
// seconds elsewhere, and a full table must not end name resolution.
func (n *Node) checkResolverPath(ctx context.Context) []api.Check {
	resolver := n.cfg.Services.DNS
	if !resolver.IsValid() {
		return nil
	}
	return []api.Check{checkLocal(resolver), n.checkUntracked(ctx, netip.AddrPortFrom(resolver, 53))}
}

func checkLocal(resolver netip.Addr) api.Check {
	c := api.Check{Name: "dns address", Status: okay}
	local, dev, err := overlay.IsLocal(resolver)
	switch {
	case err != nil:
		c.Status, c.Detail = bad, err.Error()
	case !local:
		c.Status, c.Detail = bad, fmt.Sprintf("%s is not an address of this host: questions to it leave by %s", resolver, dev)
		c.Fix = "the daemon sets it on lo while it runs: see the overlay line above, and `ip route get " + resolver.String() + "`"
	default:
		c.Detail = resolver.String() + " is local"
	}
	return c
}

// checkUntracked asks from a port of its own and looks for that question in
// the connection tracking table. Questions of others are looked for too: those
// of workloads come in by another hook than the node's own.
func (n *Node) checkUntracked(ctx context.Context, server netip.AddrPort) api.Check {
	c := api.Check{Name: "dns conntrack", Status: okay}
	const fix = "the table inet nodenet exempts port 53 of the resolver: see the lb line above, and whether another ruleset tracks or translates it before (`nft list ruleset`, priority below -300)"
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return api.Check{Name: c.Name, Status: bad, Detail: fmt.Sprintf("ask %s: %v", server, err), Fix: fix}
	}
	defer conn.Close()
	own := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	own = netip.AddrPortFrom(own.Addr().Unmap(), own.Port())
	m := new(mdns.Msg)
	m.SetQuestion("dns-version."+mdns.Fqdn(n.zone()), mdns.TypeTXT)
	if _, _, err := (&mdns.Client{Timeout: 2 * time.Second}).ExchangeWithConnContext(ctx, m, &mdns.Conn{Conn: conn}); err != nil {
		return api.Check{Name: c.Name, Status: bad, Detail: fmt.Sprintf("ask %s: %v", server, err), Fix: fix}
	}
	// The socket is open still: an entry would be there.
	flows, err := n.overlay.Conntrack().Flows(server)
	if err != nil {
		return api.Check{Name: c.Name, Status: warn, Detail: err.Error(), Fix: "load the kernel module nf_conntrack_netlink"}
	}
	for _, f := range flows {
		if f.Src != own {
			c.Status, c.Fix = warn, fix
			c.Detail = fmt.Sprintf("%d questions of others are tracked, such as one of %s", len(flows), f.Src)
			continue
		}
		c.Status, c.Fix = bad, fix
		c.Detail = fmt.Sprintf("a question from %s to %s is tracked", own, server)
		if f.From != f.Dst {
			c.Detail += fmt.Sprintf(" and translated to %s", f.From)
		}
		return c
	}
	if c.Status == okay {
		c.Detail = fmt.Sprintf("a question from %s to %s is neither tracked nor translated", own, server)
	}
	return c
}
