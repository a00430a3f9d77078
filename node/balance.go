package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"

	"nodenet/api"
	"nodenet/lb"
)

// balanceRoutes adds what shows the load balancer's rules to the control API.
func (n *Node) balanceRoutes(mux *http.ServeMux) {
	guarded := func(path string, h func(http.ResponseWriter, *http.Request)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if !allowed(r.Context()) { // it makes the node list all elements
				fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may list the rules", Code: api.CodeForbidden})
				return
			}
			h(w, r)
		})
	}
	guarded(api.PathLBDump, get(func(context.Context) (api.LBDump, error) {
		rs, err := n.lb.Inspect()
		return api.LBDump{Ruleset: rs.String()}, err
	}))
	guarded(api.PathLBTrace, func(w http.ResponseWriter, r *http.Request) {
		get(func(context.Context) (api.LBTrace, error) { return n.lbTrace(r.URL.Query()) })(w, r)
	})
}

func (n *Node) lbTrace(q url.Values) (api.LBTrace, error) {
	p, slot, err := tracePacket(q)
	if err != nil {
		return api.LBTrace{}, &api.Error{Message: err.Error(), Code: api.CodeInvalid}
	}
	rs, err := n.lb.Inspect()
	if err != nil {
		return api.LBTrace{}, err
	}
	p.In, p.Rand = rs.Arrival(p.Src), slot
	v := lb.Trace(rs, p)
	out := api.LBTrace{
		From: p.Src, To: netip.AddrPortFrom(p.Dst, p.Dport), Protocol: q.Get("protocol"), Device: p.In,
		Chains: v.Path, Action: v.Action, Target: v.Target, Translated: v.DNAT, Masquerade: v.Masquerade, Notrack: v.Notrack,
	}
	for _, l := range v.Lookups {
		out.Lookups = append(out.Lookups, l.String())
	}
	return out, nil
}

func tracePacket(q url.Values) (p lb.Packet, slot uint32, err error) {
	if p.Src, err = netip.ParseAddr(q.Get("from")); err != nil {
		return p, 0, fmt.Errorf("from %q: not an address", q.Get("from"))
	}
	to, err := netip.ParseAddrPort(q.Get("to"))
	if err != nil {
		return p, 0, fmt.Errorf("to %q: not ADDRESS:PORT", q.Get("to"))
	}
	p.Dst, p.Dport = to.Addr(), to.Port()
	switch {
	case p.Src.Is4() != p.Dst.Is4():
		return p, 0, fmt.Errorf("%s to %s: not the same version of IP", p.Src, p.Dst)
	case q.Get("protocol") == "tcp":
		p.Proto = lb.TCP
	case q.Get("protocol") == "udp":
		p.Proto = lb.UDP
	default:
		return p, 0, fmt.Errorf("protocol %q: use tcp or udp", q.Get("protocol"))
	}
	p.Sport = 40000 // any; no rule but the resolver's looks at it
	n, err := strconv.ParseUint(q.Get("slot"), 10, 32)
	if err != nil {
		return p, 0, fmt.Errorf("slot %q: not a number", q.Get("slot"))
	}
	return p, uint32(n), nil
}
