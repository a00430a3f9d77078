package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/state"
)

// defaultTTL of cluster names, in seconds: backends come and go.
const defaultTTL = 5

// cluster answers from the cluster's tables.
type cluster struct {
	opt  zoneOptions
	fall fallthroughTo
	zone atomic.Pointer[Zone] // nil: no data yet
}

func parseCluster(p *parser, d config.Directive) plugin {
	c := &cluster{opt: zoneOptions{ttl: defaultTTL}}
	zs := p.zoneArgs(d, d.Args)
	if len(d.Args) == 0 && slices.Contains(zs, ".") {
		zs = zones{wire.Fqdn(config.DefaultZone), "in-addr.arpa.", "ip6.arpa."}
	}
	for _, z := range zs {
		if isReverse(z) {
			c.opt.reverse = append(c.opt.reverse, z)
		} else {
			c.opt.forward = append(c.opt.forward, z)
		}
	}
	for _, o := range d.Block {
		switch o.Name {
		case "pods":
			modes := map[string]podMode{"disabled": podsDisabled, "insecure": podsInsecure, "verified": podsVerified}
			if !p.args(o, 1, 1, "pods disabled|insecure|verified") {
				continue
			}
			mode, ok := modes[o.Args[0]]
			if !ok {
				p.errorf(o.Pos, "%s: pods %q is not a mode, write disabled, insecure or verified", d.Name, o.Args[0])
			}
			c.opt.pods = mode
		case "ttl":
			if p.args(o, 1, 1, "ttl SECONDS") {
				if n, ok := p.number(o, "value", o.Args[0], 0, 3600); ok {
					c.opt.ttl = uint32(n)
				}
			}
		case "fallthrough":
			c.fall = p.fallthroughTo(o)
		case "noendpoints":
			c.opt.noEndpoints = true
		case "namespaces":
			if p.args(o, 1, -1, "namespaces NAME...") {
				for _, n := range o.Args {
					c.opt.namespaces = append(c.opt.namespaces, strings.ToLower(n))
				}
			}
		case "upstream":
			p.noticef(o, "%s: upstream is ignored, names outside the zone are resolved by this server", d.Name)
		case "endpoint_pod_names":
			p.noticef(o, "%s: endpoint_pod_names is ignored, endpoints always have their names", d.Name)
		case "endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight", "namespace_labels", "labels", "startup_timeout", "multicluster", "ignore":
			p.errorf(o.Pos, "%s: %s is not supported, there is no API server here: remove it", d.Name, o.Name)
		default:
			p.unknown(d, o, "pods", "ttl", "fallthrough", "noendpoints", "namespaces", "upstream", "endpoint_pod_names")
		}
	}
	return c
}

// derive builds the zone of a view and makes it the one to answer from.
func (c *cluster) derive(v *state.View, ns []netip.Addr) {
	opt := c.opt
	opt.ns = ns
	c.zone.Store(buildZone(v, opt))
}

func (c *cluster) serve(ctx context.Context, q *query, next handler) (*wire.Msg, error) {
	if q.class != wire.ClassINET {
		return next(ctx, q)
	}
	z := c.zone.Load()
	if z == nil {
		if c.opt.forward.match(q.name) == "" && c.opt.reverse.match(q.name) == "" {
			return next(ctx, q)
		}
		q.local, q.source = true, "cluster"
		q.explain(wire.ExtendedErrorCodeNotReady, "no cluster data yet")
		return &wire.Msg{MsgHdr: wire.MsgHdr{Rcode: wire.RcodeServerFailure}}, nil
	}
	a, ok := z.Lookup(q.name, q.qtype)
	if !ok || a.Rcode == wire.RcodeNameError && len(a.Answer) == 0 && c.fall.passes(q.name) {
		return next(ctx, q)
	}
	q.local, q.source = true, "cluster"
	m := &wire.Msg{Answer: a.Answer, Ns: a.Ns, Extra: a.Extra}
	m.Rcode = a.Rcode
	m.Authoritative = a.Rcode != wire.RcodeServerFailure
	if a.Rcode == wire.RcodeServerFailure {
		q.explain(wire.ExtendedErrorCodeOther, "CNAME chain is circular or too long")
	}
	if a.Chase != "" {
		return m, c.chase(ctx, q, m, a.Chase)
	}
	return m, nil
}

// chase completes an answer whose CNAME leads out of the zone. Stub
// resolvers do not follow a CNAME by themselves.
func (c *cluster) chase(ctx context.Context, q *query, m *wire.Msg, target string) error {
	if q.depth >= maxDepth {
		m.Rcode = wire.RcodeServerFailure
		q.explain(wire.ExtendedErrorCodeOther, "CNAME chain too long")
		return nil
	}
	r, err := q.lookup(ctx, target, q.qtype)
	if err != nil {
		return err
	}
	if r == nil {
		return nil // nobody here resolves it; the client may
	}
	m.Rcode = r.Rcode // of the last name in the chain, RFC 6604
	m.Answer = join(m.Answer, r.Answer)
	m.Ns = r.Ns
	return nil
}

// holds implements holder.
func (c *cluster) holds(name string) bool {
	z := c.zone.Load()
	if z == nil {
		return c.opt.forward.match(name) != ""
	}
	return z.holds(name)
}
