package announce

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// Plan says who answers for which address. It is made by Elect and immutable
// afterwards.
type Plan struct {
	Rev   uint64
	Self  state.NodeID
	Addrs []Address // sorted by Addr
	// Stations are the nodes' Ethernet addresses on their LANs, by which a
	// claim that is heard is told from a stranger's.
	Stations map[MAC]state.NodeID
}

// Address is an external address with the outcome of its election.
type Address struct {
	Addr     netip.Addr
	Services []string     // keys of those that announce it, sorted
	Owner    state.NodeID // who answers for it; empty: nobody, and Why says why
	Name     string       // of Owner
	Why      string
	// Order holds all nodes with an interface on the address's LAN, the one
	// that has it when all are well first. It is the same on every node that
	// knows the same nodes, whoever of them is alive.
	Order []Candidate
}

// Candidate is a node that could answer for an address.
type Candidate struct {
	Node  state.NodeID
	State state.Liveness
	Unfit string // why it cannot have the address now; empty: it can
}

// rank is a node's place in the order, or -1.
func (a *Address) rank(id state.NodeID) int {
	return slices.IndexFunc(a.Order, func(c Candidate) bool { return c.Node == id })
}

// Elect elects the owner of each announced address of a view. It is pure, and
// no messages are needed: nodes with equal views elect the same. See Elector
// for what costs no more than what changed.
//
// Each address has an order of nodes of its own, by a hash of address and node
// (rendezvous hashing): a node that goes away moves the addresses that it had
// and no others, to as many nodes as it had addresses; one that comes moves
// only those that it gets.
func Elect(v *state.View) *Plan {
	var e Elector
	return e.Elect(v)
}

// Elector elects for one view after the other and looks at what changed only.
// The zero Elector is ready to use. Not safe for concurrent use.
type Elector struct {
	view *state.View
	plan *Plan
	keys map[string][]netip.Addr            // what each announced service announces
	by   map[netip.Addr]map[string]struct{} // the reverse
	lans lans
}

// lans is what the nodes' records say of their interfaces.
type lans struct {
	stations map[MAC]state.NodeID
	hosts    map[netip.Addr]string // a node's own addresses → its name
}

// Elect returns the plan of a view. It is the same pointer as before when
// nothing in it changed but the revision.
func (e *Elector) Elect(v *state.View) *Plan {
	c := v.Since(e.view)
	stale := map[netip.Addr]bool{}
	if c.All || e.plan == nil {
		e.keys, e.by = map[string][]netip.Addr{}, map[netip.Addr]map[string]struct{}{}
		for s := range v.Services() {
			e.index(s.Key(), s, stale)
		}
		c.Nodes = true
	} else {
		for _, s := range c.Services {
			key := ""
			if s.New != nil {
				key = s.New.Key()
			} else {
				key = s.Old.Key()
			}
			e.index(key, s.New, stale)
		}
	}
	e.view = v
	if c.Nodes {
		e.lans = lansOf(v)
		for a := range e.by {
			stale[a] = true
		}
	}
	if e.plan != nil && len(stale) == 0 && maps.Equal(e.plan.Stations, e.lans.stations) {
		return e.plan
	}
	p := &Plan{Rev: v.Rev, Self: v.Self, Stations: e.lans.stations}
	was := map[netip.Addr]*Address{}
	if e.plan != nil {
		for i := range e.plan.Addrs {
			was[e.plan.Addrs[i].Addr] = &e.plan.Addrs[i]
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(e.by), netip.Addr.Compare) {
		if old := was[a]; old != nil && !stale[a] {
			p.Addrs = append(p.Addrs, *old)
			continue
		}
		p.Addrs = append(p.Addrs, e.elect(v, a))
	}
	if e.plan != nil && samePlan(e.plan, p) {
		return e.plan
	}
	e.plan = p
	return p
}

func samePlan(a, b *Plan) bool {
	return a.Self == b.Self && maps.Equal(a.Stations, b.Stations) && slices.EqualFunc(a.Addrs, b.Addrs, func(x, y Address) bool {
		return x.Addr == y.Addr && x.Owner == y.Owner && x.Name == y.Name && x.Why == y.Why &&
			slices.Equal(x.Services, y.Services) && slices.Equal(x.Order, y.Order)
	})
}

// index notes what a service announces from now on, and which addresses are to
// be looked at for it. A nil service announces nothing.
func (e *Elector) index(key string, s *state.ServiceView, stale map[netip.Addr]bool) {
	for _, a := range e.keys[key] {
		stale[a] = true
		if delete(e.by[a], key); len(e.by[a]) == 0 {
			delete(e.by, a)
		}
	}
	delete(e.keys, key)
	if s == nil || !s.Announce || len(s.Addresses) == 0 {
		return
	}
	e.keys[key] = s.Addresses
	for _, a := range s.Addresses {
		stale[a] = true
		if e.by[a] == nil {
			e.by[a] = map[string]struct{}{}
		}
		e.by[a][key] = struct{}{}
	}
}

func lansOf(v *state.View) lans {
	l := lans{map[MAC]state.NodeID{}, map[netip.Addr]string{}}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.Refused != "" {
			continue
		}
		for _, a := range []netip.Addr{n.Advertise, n.Underlay} {
			if a.IsValid() {
				l.hosts[a] = n.Name
			}
		}
		for _, x := range n.LANs {
			l.hosts[x.Addr.Addr()] = n.Name
			if len(x.MAC) == 6 {
				l.stations[MAC(x.MAC)] = n.ID
			}
		}
	}
	return l
}

// elect elects for one address. Who can have it is alive (a suspect still is:
// moving an address twice costs more than waiting for certainty), on its LAN,
// and has a ready backend when all of the services want local ones; who dies
// is out at once, whatever the hold for DNS answers and backends is. Of those,
// flapping nodes come last, then count local backends, then the order.
func (e *Elector) elect(v *state.View, addr netip.Addr) Address {
	out := Address{Addr: addr, Services: slices.Sorted(maps.Keys(e.by[addr]))}
	if name, own := e.lans.hosts[addr]; own {
		out.Why = fmt.Sprintf("it is node %s's own address: choose another", name)
		return out
	}
	local, all := e.localBackends(v, out.Services)
	type entrant struct {
		node     *state.NodeView
		fit      int
		flapping bool
		hash     uint64
	}
	var list []entrant
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.Refused == "" && onLAN(n, addr) {
			list = append(list, entrant{n, local[n.ID], n.Flapping && !n.Self, hash(addr, n.ID)})
		}
	}
	slices.SortFunc(list, func(a, b entrant) int {
		return cmp.Or(cmp.Compare(b.hash, a.hash), strings.Compare(string(a.node.ID), string(b.node.ID)))
	})
	var best *entrant
	for i := range list {
		x := &list[i]
		c := Candidate{Node: x.node.ID, State: x.node.State}
		switch {
		case !x.node.Self && x.node.State != state.Alive && x.node.State != state.Suspect:
			c.Unfit = "it is " + x.node.State.String()
		case x.node.Left:
			c.Unfit = "it leaves"
		case all && x.fit == 0:
			c.Unfit = "it has no ready backend"
		case best == nil, best.flapping && !x.flapping, best.flapping == x.flapping && x.fit > best.fit:
			best = x
		}
		out.Order = append(out.Order, c)
	}
	switch {
	case best != nil:
		out.Owner, out.Name = best.node.ID, best.node.Name
	case len(list) == 0:
		out.Why = "no node has an interface on its LAN: route it to any node, or give a node an address in its prefix"
	case all:
		out.Why = "no living node on its LAN has a ready backend, and the service wants local ones"
	default:
		out.Why = "no node on its LAN is alive"
	}
	return out
}

// localBackends counts for each node the services with a policy of local
// backends that have a ready one there; all says that every service wants that.
func (e *Elector) localBackends(v *state.View, keys []string) (map[state.NodeID]int, bool) {
	count, all := map[state.NodeID]int{}, true
	for _, k := range keys {
		s := v.Service(k)
		if s == nil || s.Outside != state.PolicyLocal {
			all = false
			continue
		}
		seen := map[state.NodeID]bool{}
		for _, b := range s.Backends {
			if b.Ready && b.Node != "" && !seen[b.Node] {
				seen[b.Node] = true
				count[b.Node]++
			}
		}
	}
	return count, all
}

// onLAN reports whether a node has an interface on the LAN that an address
// belongs to. A LAN's own and its broadcast address belong to nobody.
func onLAN(n *state.NodeView, addr netip.Addr) bool {
	return slices.ContainsFunc(n.LANs, func(x state.LAN) bool { return covers(x.Addr, addr) })
}

func covers(p netip.Prefix, addr netip.Addr) bool {
	if !p.Contains(addr) || p.IsSingleIP() {
		return false
	}
	if addr.Is4() && p.Bits() < 31 {
		return addr != p.Masked().Addr() && !isBroadcast(p, addr)
	}
	return true
}

func isBroadcast(p netip.Prefix, addr netip.Addr) bool {
	next := addr.Next()
	return !next.IsValid() || !p.Contains(next)
}

// hash is the weight of a node for an address: FNV-1a over both, mixed so that
// every bit counts (the finalizer of splitmix64). It must stay as it is: nodes
// of different versions elect together.
func hash(addr netip.Addr, id state.NodeID) uint64 {
	h := uint64(14695981039346656037)
	b := addr.As16()
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
