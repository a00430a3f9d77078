package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/state"
)

// PartUse is a part of a ring with what is done in it.
type PartUse struct {
	Part
	Units       uint64         // blocks (single addresses where the ring has no blocks) in it
	Blocks      []netip.Prefix // opened in it, by whomever, in address order
	Used, Total uint64         // addresses in use, and those that can be given out of what is open
}

// RingUse is a ring with what is done in it.
type RingUse struct {
	Spec
	Bits    int // prefix length of a unit
	Parts   []PartUse
	Foreign []string // IDs of other rings with the same name
}

// Describe returns a ring with what is done in it, or nil when it is not
// known. net is the ring's network, nil for VIPs and node ports. Of a ring
// that is of use in part only (node ports), the rest is left out.
func Describe(sn *state.Snapshot, ringID string, spec Spec, net *state.Network, now time.Time) *RingUse {
	ring := Resolve(sn, spec.Ring, ringID)
	if ring == nil {
		return nil
	}
	out := &RingUse{Spec: spec, Bits: unit(spec.Ring, spec.Block, spec.Prefix), Foreign: ring.Foreign}
	used := inUseOf(sn, spec, net, now)
	blocks := blocksOf(sn, spec.Ring)
	for _, p := range ring.Parts {
		if spec.First.IsValid() && spec.Last.IsValid() {
			if p.To.Compare(spec.First) < 0 || p.From.Compare(spec.Last) > 0 {
				continue
			}
			p.From, p.To = maxAddr(p.From, spec.First), minAddr(p.To, spec.Last)
		}
		u := PartUse{Part: p, Used: within(used, p)}
		for _, q := range prefixes([]span{{p.From, p.To}}) {
			u.Units = satAdd(u.Units, max(1, units(q, out.Bits)))
		}
		if net == nil {
			u.Total = span{p.From, p.To}.count() - within(spec.never(), p)
		}
		for _, b := range blocks {
			if p.From.Compare(b.Addr()) <= 0 && p.To.Compare(b.Addr()) >= 0 {
				u.Blocks = append(u.Blocks, b)
				if net != nil {
					u.Total = satAdd(u.Total, (&scope{net: net}).usable(b))
				}
			}
		}
		out.Parts = append(out.Parts, u)
	}
	return out
}

// never returns the addresses of a ring without blocks that nobody can have.
func (s Spec) never() []netip.Addr {
	var out []netip.Addr
	if s.Ring == state.RingServices {
		out = append(out, s.Prefix.Masked().Addr())
		if s.Prefix.Addr().Is4() {
			out = append(out, lastAddr(s.Prefix))
		}
		out = append(out, s.Reserved...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// inUseOf returns the addresses of a ring that are in use, sorted.
func inUseOf(sn *state.Snapshot, spec Spec, net *state.Network, now time.Time) []netip.Addr {
	var out []netip.Addr
	switch {
	case spec.Ring == state.RingServices:
		for a := range usedVIPs(sn) {
			out = append(out, a)
		}
	case spec.Ring == state.RingNodePorts:
		for p := range usedNodePorts(sn) {
			out = append(out, PortAddr(p))
		}
	case net != nil:
		gone := sn.Gone()
		for rec, ep := range state.All[state.Endpoint](sn) {
			if ep.Network == net.Name && !gone.Record(&rec) {
				out = append(out, ep.Addrs...)
			}
		}
		for _, l := range state.All[state.LeaseValue](sn) {
			if l.Network == net.Name && l.Expires > now.Unix() {
				out = append(out, l.Addr)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// blocksOf returns the opened blocks of a network, in address order.
func blocksOf(sn *state.Snapshot, network string) []netip.Prefix {
	gone := sn.Gone()
	var out []netip.Prefix
	for rec, b := range state.All[state.Block](sn) {
		if b.Network == network && b.Prefix.IsValid() && !gone.Record(&rec) {
			out = append(out, b.Prefix.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// within counts the addresses of a sorted list that lie in a part.
func within(addrs []netip.Addr, p Part) uint64 {
	from, _ := slices.BinarySearchFunc(addrs, p.From, netip.Addr.Compare)
	to, found := slices.BinarySearchFunc(addrs, p.To, netip.Addr.Compare)
	if found {
		to++
	}
	return uint64(max(0, to-from))
}

func minAddr(a, b netip.Addr) netip.Addr {
	if a.Compare(b) <= 0 {
		return a
	}
	return b
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Compare(b) >= 0 {
		return a
	}
	return b
}

// Holder is a record that has an address, or speaks of it.
type Holder struct {
	What   string       // "endpoint", "lease", "VIP", "reservation", "gateway"
	Name   string       // "web.apps", a host name, a MAC
	Node   state.NodeID // empty: no certain one
	Record *state.Record
	Detail string
	Frees  bool // it does not keep the address from being given out
}

// Explanation says who has an address and why.
type Explanation struct {
	Addr    netip.Addr
	Ring    string // "" when it lies in no range of this cluster
	Network *state.Network
	Part    *Part         // the ring's; nil: the network is local to each node, or has no ring yet
	Range   *state.Record // that gave Part to its owner
	Block   netip.Prefix  // the opened block; invalid: none
	Opened  *state.Record // its record
	Holders []Holder
	// Free says why nobody holds it: "free", or what keeps it from being
	// given out all the same. Empty: it is held.
	Free string
}

// Explain says who has an address: networks are those that the asking node
// knows, services its service range.
func Explain(sn *state.Snapshot, ringID string, networks []state.Network, services Spec, addr netip.Addr, now time.Time) *Explanation {
	e := &Explanation{Addr: addr.Unmap()}
	switch i := slices.IndexFunc(networks, func(n state.Network) bool { return n.Prefix.Contains(e.Addr) }); {
	case i >= 0:
		e.Network, e.Ring = &networks[i], networks[i].Name
	case services.Prefix.Contains(e.Addr):
		e.Ring = services.Ring
	default:
		return e
	}
	e.explainRing(sn, ringID)
	if e.Network != nil {
		e.explainBlock(sn)
		e.explainEndpoints(sn, now)
	} else {
		e.explainService(sn, services)
	}
	if !slices.ContainsFunc(e.Holders, func(h Holder) bool { return !h.Frees }) {
		e.explainFree(services, now)
	}
	return e
}

func (e *Explanation) explainRing(sn *state.Snapshot, ringID string) {
	ring := Resolve(sn, e.Ring, ringID)
	if ring == nil {
		return
	}
	p, ok := ring.Part(e.Addr)
	if !ok {
		return
	}
	e.Part = &p
	for rec, r := range state.All[state.Range](sn) {
		if r.Ring == e.Ring && r.RingID == ringID && r.Owner == p.Owner && rec.Version.Gen == p.Gen && r.Prefix.Contains(e.Addr) {
			e.Range = &rec
		}
	}
}

func (e *Explanation) explainBlock(sn *state.Snapshot) {
	gone := sn.Gone()
	if e.Network.Local() {
		e.Block = e.Network.Prefix.Masked()
	}
	for rec, b := range state.All[state.Block](sn) {
		if b.Network == e.Network.Name && b.Prefix.Contains(e.Addr) && !gone.Record(&rec) {
			e.Block, e.Opened = b.Prefix.Masked(), &rec
		}
	}
}

func (e *Explanation) explainEndpoints(sn *state.Snapshot, now time.Time) {
	gone := sn.Gone()
	for rec, ep := range state.All[state.Endpoint](sn) {
		if ep.Network != e.Network.Name || !slices.Contains(ep.Addrs, e.Addr) {
			continue
		}
		h := Holder{What: "endpoint", Name: displayName(ep.Name, ep.Namespace, ep.ID), Node: rec.ID.Owner, Record: &rec, Detail: ep.Kind}
		switch {
		case gone.Record(&rec):
			h.Frees, h.Detail = true, h.Detail+", its node was forgotten"
		case !ep.Ready && ep.Why != "":
			h.Detail += ", not ready: " + ep.Why
		case !ep.Ready:
			h.Detail += ", not ready"
		}
		e.Holders = append(e.Holders, h)
	}
	for rec, l := range state.All[state.LeaseValue](sn) {
		if l.Network != e.Network.Name || l.Addr != e.Addr {
			continue
		}
		h := Holder{What: "lease", Name: strings.TrimSpace(l.Hostname + " " + l.MAC), Node: l.Server, Record: &rec}
		until := time.Unix(l.Expires, 0).Format(time.DateTime)
		switch {
		case l.Expires <= now.Unix():
			h.Frees, h.Detail = true, "ran out at "+until
		case l.Declined:
			h.Detail = "declined: somebody else was seen to use it; until " + until
		default:
			h.Detail = "until " + until
		}
		e.Holders = append(e.Holders, h)
	}
	for rec, r := range state.All[state.Reservation](sn) {
		if r.Network == e.Network.Name && r.Addr == e.Addr {
			e.Holders = append(e.Holders, Holder{What: "reservation", Name: strings.TrimSpace(r.Name + " " + r.MAC), Node: rec.ID.Owner, Record: &rec})
		}
	}
	if e.Block.IsValid() && Gateway(*e.Network, e.Block) == e.Addr {
		h := Holder{What: "gateway", Name: e.Block.String(), Detail: "address of the bridge"}
		if e.Opened != nil {
			h.Node, h.Record = e.Opened.ID.Owner, e.Opened
		} else {
			h.Detail += " on each node"
		}
		e.Holders = append(e.Holders, h)
	}
}

func (e *Explanation) explainService(sn *state.Snapshot, services Spec) {
	v4, v6 := sn.ServiceRanges()
	for rec, s := range state.All[state.Service](sn) {
		h := Holder{What: "VIP", Name: s.Name + "." + s.Namespace, Node: rec.ID.Owner, Record: &rec, Detail: "given by its " + s.Source}
		switch e.Addr {
		case s.VIP:
		case state.Untwin(v4, v6, s.VIP6):
			h.Detail = "given as " + s.VIP6.String() + " by its " + s.Source
		default:
			continue
		}
		e.Holders = append(e.Holders, h)
	}
	for rec, v := range state.All[state.VIP](sn) {
		if v.Addr == e.Addr {
			ns, name, _ := strings.Cut(rec.ID.Key, "/")
			e.Holders = append(e.Holders, Holder{What: "VIP", Name: name + "." + ns, Node: rec.Version.Node, Record: &rec, Detail: "allocated"})
		}
	}
	if slices.Contains(services.Reserved, e.Addr) {
		e.Holders = append(e.Holders, Holder{What: "resolver", Name: "dns", Detail: "the resolver's address on every node"})
	}
}

// explainFree says why nobody has the address.
func (e *Explanation) explainFree(services Spec, now time.Time) {
	if e.Part != nil && e.Part.Until > now.Unix() {
		e.Free = "nobody can have it before " + time.Unix(e.Part.Until, 0).Format(time.DateTime) + ": its range was taken over from a forgotten node"
		return
	}
	if e.Network == nil {
		if slices.Contains(services.never(), e.Addr) {
			e.Free = "nobody can have it: an end of the range"
			return
		}
		e.Free = "free"
		return
	}
	b, closed := e.Block, false
	if !b.IsValid() {
		b, closed = netip.PrefixFrom(e.Addr, BlockBits(*e.Network)).Masked(), true
	}
	if why := (&scope{net: e.Network}).never(e.Addr, b); why != "" && !(closed && strings.HasPrefix(why, "gateway")) {
		e.Free = "nobody can have it: " + why
		return
	}
	e.Free = "free"
	if closed {
		e.Free = "free, in block " + b.String() + ", which nobody has opened"
	}
}

func displayName(name, namespace, id string) string {
	if name == "" {
		return id
	}
	return name + "." + namespace
}

// Resting returns how long an address that was released on this node still
// rests; zero: it does not.
func (a *Allocator) Resting(network string, addr netip.Addr, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.feed != nil {
		a.follow()
	}
	r, ok := a.rests[restKey{network, addr}]
	if !ok {
		return 0
	}
	return max(0, DefaultRest-now.Sub(r.at))
}
