package node

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/ipam"
	"nodenet/state"
)

// clusterRoutes adds what concerns the whole cluster to the control API.
func (n *Node) clusterRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+api.PathRing, get(n.ringList))
	mux.HandleFunc("GET "+api.PathExplain, func(w http.ResponseWriter, r *http.Request) {
		get(func(context.Context) (*api.Explanation, error) { return n.explain(r.URL.Query().Get("addr")) })(w, r)
	})
	mux.HandleFunc("GET "+api.PathNames, get(n.nameList))
	mux.HandleFunc("POST "+api.PathNames, post(n.addName))
	mux.HandleFunc("DELETE "+api.PathNames, remove("key", n.removeName))
	mux.HandleFunc("POST "+api.PathForget, post(n.forgetNode))
	mux.HandleFunc("GET "+api.PathPeers, get(n.peerList))
	mux.HandleFunc("GET "+api.PathConflicts, get(n.conflictList))
	mux.HandleFunc("GET "+api.PathWait, func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r.Context()) { // it makes the node ask all others, again and again
			fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may wait", Code: api.CodeForbidden})
			return
		}
		n.wait(w, r)
	})
	mux.HandleFunc("GET "+api.PathSecret, func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r.Context()) { // it makes the node ask all others
			fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may ask all nodes", Code: api.CodeForbidden})
			return
		}
		get(n.secretStatus)(w, r)
	})
	n.balanceRoutes(mux)
	mux.HandleFunc("POST "+api.PathRotate, n.rotate)
	mux.HandleFunc("POST "+api.PathSnapshot, post(n.saveSnapshot))
}

// ringList shows who owns which part of the networks, the VIPs and the node
// ports.
func (n *Node) ringList(context.Context) ([]api.Ring, error) {
	sn := n.store.Snapshot()
	v, now := sn.View(), time.Now()
	specs := n.specs(sn)
	// Networks first, by name; VIPs and node ports after them.
	slices.SortStableFunc(specs, func(a, b ipam.Spec) int {
		return strings.Compare(ringOrder(a.Ring), ringOrder(b.Ring))
	})
	out := []api.Ring{}
	for _, spec := range specs {
		r := api.Ring{Name: spec.Ring, Prefix: spec.Prefix, Parts: []api.RingPart{}}
		var nw *state.Network
		switch spec.Ring {
		case state.RingServices:
		case state.RingNodePorts:
			r.Ports = fmt.Sprintf("%d-%d", ipam.AddrPort(spec.First), ipam.AddrPort(spec.Last))
		default:
			r.Block = spec.Block
			nw, _ = n.network(sn, spec.Ring)
		}
		u := ipam.Describe(sn, n.ringID(), spec, nw, now)
		if u == nil {
			r.Missing = true
			out = append(out, r)
			continue
		}
		r.Foreign = u.Foreign
		var all float64
		for _, p := range u.Parts {
			all += float64(p.Units)
		}
		for _, p := range u.Parts {
			part := n.ringPart(sn, v, spec.Ring, p.Part, now)
			part.Units, part.Blocks, part.Used, part.Total = p.Units, p.Blocks, p.Used, p.Total
			part.Share = float64(p.Units) / all
			r.Parts = append(r.Parts, part)
		}
		out = append(out, r)
	}
	return out, nil
}

func ringOrder(ring string) string {
	switch ring {
	case state.RingServices:
		return "~1"
	case state.RingNodePorts:
		return "~2"
	}
	return ring
}

func (n *Node) ringPart(sn *state.Snapshot, v *state.View, ring string, p ipam.Part, now time.Time) api.RingPart {
	out := api.RingPart{
		From: p.From, To: p.To, Text: spanText(ring, p.From, p.To), Owner: n.ownerName(sn, v, p.Owner), OwnerID: string(p.Owner),
		State: n.ownerState(sn, v, p.Owner), Generation: p.Gen,
	}
	if p.Until > now.Unix() {
		out.Quarantine = p.Until
	}
	for _, id := range p.Contested {
		out.Contested = append(out.Contested, n.ownerName(sn, v, id))
	}
	return out
}

// ownerName names nodes also that the view leaves out.
func (n *Node) ownerName(sn *state.Snapshot, v *state.View, id state.NodeID) string {
	if v.NodeByID(id) == nil {
		if nd, ok := state.Lookup[state.Node](sn, state.ID{Class: state.Owner, Kind: state.KindNode, Owner: id, Key: "self"}); ok && nd.Name != "" {
			return nd.Name
		}
	}
	return nodeName(v, id)
}

func (n *Node) ownerState(sn *state.Snapshot, v *state.View, id state.NodeID) string {
	if nv := v.NodeByID(id); nv != nil {
		return nv.State.String()
	}
	if sn.Gone().Node(id) {
		return "forgotten"
	}
	if nd, ok := state.Lookup[state.Node](sn, state.ID{Class: state.Owner, Kind: state.KindNode, Owner: id, Key: "self"}); ok && nd.Left {
		return "left"
	}
	return "unknown"
}

// spanText writes a run of a ring as people do: a prefix where it is one,
// ports of the node-port ring.
func spanText(ring string, from, to netip.Addr) string {
	if ring == state.RingNodePorts {
		if from == to {
			return fmt.Sprint(ipam.AddrPort(from))
		}
		return fmt.Sprintf("%d-%d", ipam.AddrPort(from), ipam.AddrPort(to))
	}
	return ipam.SpanText(from, to)
}

// rangeText names what a Range record is about; empty: nothing for people.
func rangeText(ring string, p netip.Prefix) string {
	switch {
	case strings.HasPrefix(ring, "("):
		return "" // the right to make rings
	case ring == state.RingNodePorts:
		return "node ports " + spanText(ring, p.Masked().Addr(), ipam.Last(p))
	case ring == state.RingServices:
		return "services " + p.String()
	}
	return ring + " " + p.String()
}

func versionText(rec *state.Record) string {
	v := rec.Version
	switch rec.ID.Class {
	case state.Owner:
		return fmt.Sprintf("epoch %d seq %d", v.Epoch, v.Seq)
	case state.Cluster:
		return fmt.Sprintf("clock %s by %s", v.HLC, v.Node.Short())
	}
	return fmt.Sprintf("generation %d, clock %s by %s", v.Gen, v.HLC, v.Node.Short())
}

// explain says who has an address and why.
func (n *Node) explain(text string) (*api.Explanation, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, invalid("explain %q: not an address", text)
	}
	sn := n.store.Snapshot()
	v, now := sn.View(), time.Now()
	var networks []state.Network
	for i := range v.Networks {
		networks = append(networks, v.Networks[i].Network)
	}
	e := ipam.Explain(sn, n.ringID(), networks, serviceSpecs(n.cfg)[0], addr, now)
	out := &api.Explanation{Addr: e.Addr, Network: e.Ring, Free: e.Free}
	if e.Ring == "" {
		out.Summary = n.explainForeign(v, e.Addr)
		return out, nil
	}
	out.Local = e.Network != nil && e.Network.Local()
	if e.Part != nil {
		p := n.ringPart(sn, v, e.Ring, *e.Part, now)
		out.Part = &p
	}
	if e.Range != nil {
		r := e.Range.Val().(*state.Range)
		out.Range, out.Since, out.Version = r.Prefix, e.Range.Time, versionText(e.Range)
		if r.Donor != "" {
			out.Donor = n.ownerName(sn, v, r.Donor)
		}
		if r.From != "" {
			out.TakenFrom = n.ownerName(sn, v, r.From)
		}
	}
	if e.Block.IsValid() {
		out.Block = &api.BlockInfo{Prefix: e.Block}
		if e.Opened != nil {
			out.Block.Node, out.Block.Since, out.Block.Version = n.ownerName(sn, v, e.Opened.ID.Owner), e.Opened.Time, versionText(e.Opened)
		}
	}
	for _, h := range e.Holders {
		a := api.Holder{What: h.What, Name: h.Name, Detail: h.Detail}
		if h.Node != "" {
			a.Node, a.State = n.ownerName(sn, v, h.Node), n.ownerState(sn, v, h.Node)
		}
		if h.Record != nil {
			a.Since, a.Version = h.Record.Time, versionText(h.Record)
		}
		out.Holders = append(out.Holders, a)
	}
	if e.Network != nil && e.Free != "" && !strings.HasPrefix(e.Free, "nobody") {
		if left := n.alloc.Resting(e.Network.Name, e.Addr, now); left > 0 {
			out.Free = fmt.Sprintf("released a moment ago on this node, rests for %s more", left.Round(time.Second))
		}
	}
	if e.Network != nil && n.overlay != nil {
		for _, r := range n.overlay.Routes() {
			if r.Network == e.Network.Name && r.Prefix.Contains(e.Addr) {
				out.Route = routeText(r.Prefix, r.Via, r.NextHop, r.Device, r.InKernel)
			}
		}
	}
	for _, c := range n.conflicts(sn, v) {
		if conflictAbout(c, e) {
			out.Conflicts = append(out.Conflicts, fmt.Sprintf("%s: %s (%s is used, not %s)", c.What, c.Detail, c.Winner, c.Loser))
		}
	}
	if e.Part != nil && len(e.Part.Contested) > 0 && len(out.Conflicts) == 0 {
		out.Conflicts = append(out.Conflicts, "its range is claimed by "+strings.Join(out.Part.Contested, ", ")+" too")
	}
	out.Summary = explainSummary(out)
	return out, nil
}

// conflictAbout reports whether a conflict concerns an address.
func conflictAbout(c state.Conflict, e *ipam.Explanation) bool {
	if strings.Contains(c.What, "("+e.Addr.String()+")") || c.What == "VIP "+e.Addr.String() {
		return true
	}
	for _, word := range strings.Fields(c.What) {
		if p, err := netip.ParsePrefix(word); err == nil && p.Contains(e.Addr) {
			return true
		}
	}
	return e.Part != nil && len(e.Part.Contested) > 0 && strings.HasPrefix(c.What, fmt.Sprintf("range %s-%s of ", e.Part.From, e.Part.To))
}

func routeText(p netip.Prefix, via string, hop netip.Addr, dev string, inKernel bool) string {
	text := fmt.Sprintf("%s via %s dev %s", p, via, dev)
	if hop.IsValid() {
		text = fmt.Sprintf("%s via %s %s dev %s", p, via, hop, dev)
	}
	if !inKernel {
		text += ", MISSING in the kernel"
	}
	return text
}

func explainSummary(e *api.Explanation) string {
	where := "network " + e.Network
	switch {
	case e.Network == state.RingServices:
		where = "service range"
	case e.Local:
		where += ", which each node uses by itself"
	}
	if e.Free == "" && len(e.Holders) > 0 {
		h := e.Holders[0]
		text := fmt.Sprintf("%s: %s %s", where, h.What, h.Name)
		if h.Node != "" {
			text += " on " + h.Node
		}
		return text
	}
	if e.Free == "" {
		return where
	}
	return where + ": " + e.Free
}

// explainForeign says what an address is that no range of the cluster holds.
func (n *Node) explainForeign(v *state.View, a netip.Addr) string {
	for i := range v.Nodes {
		if nv := &v.Nodes[i]; nv.Advertise == a || nv.Underlay == a {
			return "in no range of this cluster; it is the own address of " + nv.Name
		}
	}
	return "in no range of this cluster: see `nodectl ipam` for those"
}
