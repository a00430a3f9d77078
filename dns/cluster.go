package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
	"nodenet/state"
)

// defaultTTL of cluster names, in seconds: backends come and go.
const defaultTTL = 5

// cluster answers from the cluster's tables.
type cluster struct {
	opt  zoneOptions
	fall plugin.Fall

	anyOrder bool // addresses that are near do not come first

	zone atomic.Pointer[Zone]       // nil: no data yet
	view atomic.Pointer[state.View] // that zone is of; for traces

	namespaceOf func(netip.Addr) string // see search.go; nil: not attached
}

func parseCluster(p *parser, d config.Directive) plugin.Plugin {
	c := &cluster{opt: zoneOptions{ttl: defaultTTL}}
	zs := p.ZoneArgs(d, d.Args)
	if len(d.Args) == 0 && slices.Contains(zs, ".") {
		zs = plugin.Zones{wire.Fqdn(config.DefaultZone), "in-addr.arpa.", "ip6.arpa."}
	}
	for _, z := range zs {
		if plugin.IsReverse(z) {
			c.opt.reverse = append(c.opt.reverse, z)
		} else {
			c.opt.forward = append(c.opt.forward, z)
		}
	}
	for _, o := range d.Block {
		switch o.Name {
		case "pods":
			modes := map[string]podMode{"disabled": podsDisabled, "insecure": podsInsecure, "verified": podsVerified}
			if !p.Args(o, 1, 1, "pods disabled|insecure|verified") {
				continue
			}
			mode, ok := modes[o.Args[0]]
			if !ok {
				p.Errorf(o.Pos, "%s: pods %q is not a mode, write disabled, insecure or verified", d.Name, o.Args[0])
			}
			c.opt.pods = mode
		case "ttl":
			if p.Args(o, 1, 1, "ttl SECONDS") {
				if n, ok := p.Number(o, "value", o.Args[0], 0, 3600); ok {
					c.opt.ttl = uint32(n)
				}
			}
		case "fallthrough":
			c.fall = p.Fall(o)
		case "nearest":
			if p.Args(o, 1, 1, "nearest on|off") {
				if c.anyOrder = o.Args[0] == "off"; !c.anyOrder && o.Args[0] != "on" {
					p.Errorf(o.Pos, "%s: nearest %q, write on or off", d.Name, o.Args[0])
				}
			}
		case "noendpoints":
			c.opt.noEndpoints = true
		case "namespaces":
			if p.Args(o, 1, -1, "namespaces NAME...") {
				for _, n := range o.Args {
					c.opt.namespaces = append(c.opt.namespaces, strings.ToLower(n))
				}
			}
		case "upstream":
			p.Noticef(o, "%s: upstream is ignored, names outside the zone are resolved by this server", d.Name)
		case "endpoint_pod_names":
			p.Noticef(o, "%s: endpoint_pod_names is ignored, endpoints always have their names", d.Name)
		case "endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight", "namespace_labels", "labels", "startup_timeout", "multicluster", "ignore":
			p.Errorf(o.Pos, "%s: %s is not supported, there is no API server here: remove it", d.Name, o.Name)
		default:
			p.Unknown(d, o, "pods", "ttl", "fallthrough", "nearest", "noendpoints", "namespaces", "upstream", "endpoint_pod_names")
		}
	}
	return c
}

// derive makes the zone of a view the one to answer from: by what differs from
// the view before it, or, when old is nil or that does not do, all of it anew.
func (c *cluster) derive(old, v *state.View, ns []netip.Addr) {
	c.view.Store(v)
	if z := c.zone.Load(); z != nil && old != nil && slices.Equal(z.opt.ns, ns) {
		if z = z.change(old, v); z != nil {
			c.zone.Store(z)
			return
		}
	}
	opt := c.opt
	opt.ns = ns
	c.zone.Store(buildZone(v, opt))
}

// zoneNow returns what is answered from; nil: there is nothing, or no cluster.
func (c *cluster) zoneNow() *Zone {
	if c == nil {
		return nil
	}
	return c.zone.Load()
}

func (c *cluster) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	if q.Class != wire.ClassINET {
		return next(ctx, q)
	}
	z := c.zone.Load()
	if z == nil {
		if c.opt.forward.Match(q.Name) == "" && c.opt.reverse.Match(q.Name) == "" {
			return next(ctx, q)
		}
		q.Own, q.Source = true, "cluster"
		q.Explain(wire.ExtendedErrorCodeNotReady, "no cluster data yet")
		return &wire.Msg{MsgHdr: wire.MsgHdr{Rcode: wire.RcodeServerFailure}}, nil
	}
	a, ok := z.Lookup(q.Name, q.Type)
	if !ok || a.Rcode == wire.RcodeNameError && len(a.Answer) == 0 && c.fall.Passes(q.Name) {
		return next(ctx, q)
	}
	q.Own, q.Source = true, "cluster"
	c.record(q, z, &a)
	m := &wire.Msg{Answer: a.Answer, Ns: a.Ns, Extra: a.Extra}
	m.Rcode = a.Rcode
	m.Authoritative = a.Rcode != wire.RcodeServerFailure
	if a.Rcode == wire.RcodeServerFailure {
		q.Explain(wire.ExtendedErrorCodeOther, "CNAME chain is circular or too long")
	}
	if a.Chase != "" {
		return m, c.chase(ctx, q, m, a.Chase)
	}
	return m, nil
}

// chase completes an answer whose CNAME leads out of the zone. Stub
// resolvers do not follow a CNAME by themselves.
func (c *cluster) chase(ctx context.Context, q *plugin.Query, m *wire.Msg, target string) error {
	if q.Depth >= plugin.MaxDepth {
		m.Rcode = wire.RcodeServerFailure
		q.Explain(wire.ExtendedErrorCodeOther, "CNAME chain too long")
		return nil
	}
	r, err := q.Lookup(ctx, target, q.Type)
	if err != nil {
		return err
	}
	if r == nil {
		return nil // nobody here resolves it; the client may
	}
	m.Rcode = r.Rcode // of the last name in the chain, RFC 6604
	m.Answer = plugin.Join(m.Answer, r.Answer)
	m.Ns = r.Ns
	return nil
}

// holds implements holder.
func (c *cluster) Holds(name string) bool {
	z := c.zone.Load()
	if z == nil {
		return c.opt.forward.Match(name) != ""
	}
	return z.holds(name)
}
