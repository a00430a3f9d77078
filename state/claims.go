package state

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// claims says which records claim what is another's: they stay in the tables,
// and nothing of them is programmed. It is pure over a snapshot.
//
// What a node may claim is said by records that travel apart from its own. So
// a claim that is not confirmed by what is known here, but could be by what is
// yet to come, is waiting: it counts unless it is in another's way.
type claims struct {
	sn       *Snapshot // while it is made
	gone     Gone
	refused  map[NodeID]refusal // whole nodes
	blocks   map[ID]refusal
	open     map[string]*openBlocks   // accepted, by network
	rings    map[string][]RingPart    // by name; only those with one ring ID
	prefixes map[string]networkScopes // by network
	found    []Refusal
}

type refusal struct {
	holder  NodeID
	why     string
	waiting bool
}

// networkScopes are the prefixes that nodes declare for a network.
type networkScopes map[NodeID]*Network

// openBlocks finds the accepted block of a network that an address lies in.
type openBlocks struct {
	owner map[netip.Prefix]NodeID
	bits  []int // lengths that occur, longest first
}

func (o *openBlocks) at(a netip.Addr) (netip.Prefix, NodeID, bool) {
	for _, n := range o.bits {
		if p, err := a.Prefix(n); err == nil {
			if id, ok := o.owner[p]; ok {
				return p, id, true
			}
		}
	}
	return netip.Prefix{}, "", false
}

// Refusal is a claim that is not programmed, or, Waiting, that nothing known
// here confirms yet.
type Refusal struct {
	Record  ID
	What    string // as in Conflict
	Holder  NodeID // whose it is; empty: nobody's
	Owner   NodeID // who claims it
	Why     string
	Waiting bool
	Time    int64 // of the record, Unix seconds by its writer's clock
}

// newClaims judges nodes and blocks; endpoints, leases and services are judged
// one by one with the methods. Its cost is that of all nodes, blocks, networks
// and ring records.
func newClaims(sn *Snapshot, gone Gone) *claims {
	c := &claims{
		sn: sn, gone: gone, refused: map[NodeID]refusal{}, blocks: map[ID]refusal{}, open: map[string]*openBlocks{},
		rings: map[string][]RingPart{}, prefixes: map[string]networkScopes{},
	}
	for r, n := range allOf[Network](sn) {
		if c.prefixes[n.Name] == nil {
			c.prefixes[n.Name] = networkScopes{}
		}
		c.prefixes[n.Name][r.ID.Owner] = n
	}
	c.judgeNodes()
	c.resolveRings()
	c.judgeBlocks()
	c.sn, c.gone = nil, Gone{}
	slices.SortFunc(c.found, inOrder)
	return c
}

// present reports that a node's records count at all.
func (c *claims) present(id NodeID, n *Node) bool {
	return id == c.sn.self || !n.Left && c.sn.live[id].State != Left && !c.gone.Node(id)
}

// judgeNodes looks at what nodes say they are: a key that gives their ID, the
// VTEP address that follows from it, and an underlay address of their own.
func (c *claims) judgeNodes() {
	type claimant struct {
		id   NodeID
		node *Node
		rec  *Record
	}
	at := map[netip.Addr][]claimant{}
	for r, n := range allOf[Node](c.sn) {
		id := r.ID.Owner
		if !c.present(id, n) {
			continue
		}
		switch {
		case len(n.PublicKey) > 0 && NodeIDFromKey(n.PublicKey) != id:
			c.refuseNode(r, n, "", "its public key does not give its ID: on that node restore node.key from its backup, or remove its state directory and join again")
			continue
		case len(n.VTEPMAC) > 0 && !bytes.Equal(n.VTEPMAC, id.VTEPMAC()):
			c.refuseNode(r, n, c.vtepHolder(n.VTEPMAC, id), fmt.Sprintf("it claims VTEP address %s, and its own is %s: update or reinstall nodenet there", net.HardwareAddr(n.VTEPMAC), id.VTEPMAC()))
			continue
		}
		seen := netip.Addr{}
		for _, a := range []netip.Addr{n.Advertise, n.Underlay} {
			if a.IsValid() && a != seen {
				at[a] = append(at[a], claimant{id, n, r})
				seen = a
			}
		}
	}
	// rank is lower for who has the address with more right: we have ours,
	// then who is heard from that very address, who is heard at all, whose
	// life began last (a replaced disk).
	rank := func(a netip.Addr, x claimant) int {
		switch l := c.sn.live[x.id]; {
		case x.id == c.sn.self:
			return 0
		case l.Addr.IsValid() && l.Addr == a && l.State == Alive:
			return 1
		case l.State == Alive:
			return 2
		case l.State == Suspect:
			return 3
		}
		return 4
	}
	for _, a := range slices.SortedFunc(maps.Keys(at), netip.Addr.Compare) {
		list := at[a]
		if len(list) < 2 {
			continue
		}
		slices.SortFunc(list, func(x, y claimant) int {
			return cmp.Or(rank(a, x)-rank(a, y), cmp.Compare(y.node.Started, x.node.Started), cmp.Compare(x.id, y.id))
		})
		for _, x := range list[1:] {
			if x.id == c.sn.self {
				continue
			}
			if _, done := c.refused[x.id]; !done {
				c.refuseNode(x.rec, x.node, list[0].id, fmt.Sprintf("its address %s is that of another node: give each its own `advertise` or `underlay`; if it was replaced, run `nodectl node forget %s`", a, x.node.Name))
			}
		}
	}
}

func (c *claims) refuseNode(r *Record, n *Node, holder NodeID, why string) {
	if r.ID.Owner == c.sn.self {
		return // its own daemon made it so; others will say it
	}
	c.refused[r.ID.Owner] = refusal{holder: holder, why: why}
	c.found = append(c.found, Refusal{Record: r.ID, What: "node " + cmp.Or(n.Name, r.ID.Owner.Short()), Holder: holder, Owner: r.ID.Owner, Why: why, Time: r.Time})
}

// vtepHolder finds the node whose VTEP address somebody else claims.
func (c *claims) vtepHolder(mac []byte, not NodeID) NodeID {
	for r := range allOf[Node](c.sn) {
		if r.ID.Owner != not && bytes.Equal(mac, r.ID.Owner.VTEPMAC()) {
			return r.ID.Owner
		}
	}
	return ""
}

// resolveRings resolves the rings of which one is known by each name. Where
// two clusters were founded apart, which of them counts is not said here.
func (c *claims) resolveRings() {
	ids := map[string]string{}
	byName := map[string][]RingClaim{}
	two := map[string]bool{}
	for r, x := range allOf[Range](c.sn) {
		if !x.Prefix.IsValid() || x.Owner == "" {
			continue
		}
		if id, ok := ids[x.Ring]; ok && id != x.RingID {
			two[x.Ring] = true
		}
		ids[x.Ring] = x.RingID
		byName[x.Ring] = append(byName[x.Ring], RingClaim{x.Prefix.Masked(), x.Owner, r.Version.Gen, x.From, x.Until})
	}
	for name, list := range byName {
		if !two[name] {
			c.rings[name] = ResolveRing(list)
		}
	}
}

// ringSays judges a block by the ring alone. confirmed: by all that is known here
// it is its owner's.
func (c *claims) ringSays(owner NodeID, b *Block) (r refusal, confirmed bool) {
	parts, ok := c.rings[b.Network]
	if !ok {
		return refusal{}, false
	}
	p := b.Prefix.Masked()
	first, last := p.Addr(), lastOf(p)
	i, _ := slices.BinarySearchFunc(parts, first, func(q RingPart, a netip.Addr) int { return q.To.Compare(a) })
	confirmed = true
	next := first
	for ; i < len(parts) && parts[i].From.Compare(last) <= 0; i++ {
		q := &parts[i]
		if q.From.Compare(next) > 0 {
			confirmed = false // beyond what is known of the ring
		}
		next = q.To.Next()
		switch {
		case q.Owner == owner:
			continue
		case b.Gen != 0 && q.Gen >= b.Gen:
			return refusal{holder: q.Owner, why: fmt.Sprintf("generation %d of the ring gave the range to its owner, and the block was opened by generation %d: it closes when that node hears of it; if it does not, restart the daemon there", q.Gen, b.Gen)}, false
		}
		confirmed = false
		r = refusal{holder: q.Owner, waiting: true, why: fmt.Sprintf("no record that gave the range away has arrived here (generation %d, the block wants %d): if this stays, look at `nodectl peers` for nodes that are not in sync", q.Gen, b.Gen)}
	}
	if next.IsValid() && next.Compare(last) <= 0 {
		confirmed = false
	}
	return r, confirmed
}

// judgeBlocks settles which blocks count: first by the ring, then, among those
// that overlap, the confirmed ones before the others.
func (c *claims) judgeBlocks() {
	type block struct {
		rec       *Record
		b         *Block
		p         netip.Prefix
		confirmed bool
		waits     refusal
	}
	byNet := map[string][]block{}
	for r, b := range allOf[Block](c.sn) {
		id := r.ID.Owner
		n, ok := Lookup[Node](c.sn, ID{Class: Owner, Kind: KindNode, Owner: id, Key: "self"})
		if !b.Prefix.IsValid() || c.gone.Record(r) || ok && !c.present(id, n) {
			continue
		}
		if _, no := c.refused[id]; no {
			continue
		}
		if def := c.prefixes[b.Network][id]; def != nil && def.Local() {
			continue
		}
		why, confirmed := c.ringSays(id, b)
		if why.why != "" && !why.waiting {
			c.refuseBlock(r, b, why)
			continue
		}
		byNet[b.Network] = append(byNet[b.Network], block{r, b, b.Prefix.Masked(), confirmed, why})
	}
	for network, list := range byNet {
		slices.SortFunc(list, func(x, y block) int {
			return cmp.Or(x.p.Addr().Compare(y.p.Addr()), cmp.Compare(x.p.Bits(), y.p.Bits()), cmp.Compare(x.rec.ID.Owner, y.rec.ID.Owner))
		})
		o := &openBlocks{owner: map[netip.Prefix]NodeID{}}
		c.open[network] = o
		for i := 0; i < len(list); {
			// Aligned prefixes nest: what overlaps follows its widest.
			j := i + 1
			for j < len(list) && list[i].p.Overlaps(list[j].p) {
				j++
			}
			group := slices.Clone(list[i:j])
			slices.SortStableFunc(group, func(x, y block) int {
				if x.confirmed != y.confirmed {
					if x.confirmed {
						return -1
					}
					return 1
				}
				return cmp.Compare(x.rec.ID.Owner, y.rec.ID.Owner)
			})
			var kept []block
			for _, x := range group {
				k := slices.IndexFunc(kept, func(y block) bool { return y.rec.ID.Owner != x.rec.ID.Owner && y.p.Overlaps(x.p) })
				if k >= 0 {
					y := kept[k]
					c.refuseBlock(x.rec, x.b, refusal{holder: y.rec.ID.Owner, why: cmp.Or(x.waits.why,
						fmt.Sprintf("block %s of that network is open there: one of the two must give way; see `nodectl ipam ring`", y.p))})
					continue
				}
				kept = append(kept, x)
				o.owner[x.p] = x.rec.ID.Owner
				if !slices.Contains(o.bits, x.p.Bits()) {
					o.bits = append(o.bits, x.p.Bits())
				}
				if x.waits.why != "" {
					c.note(x.rec, blockText(x.b), x.rec.ID.Owner, x.waits)
				}
			}
			i = j
		}
		slices.SortFunc(o.bits, func(a, b int) int { return b - a })
	}
}

func blockText(b *Block) string { return fmt.Sprintf("block %s of %s", b.Prefix, b.Network) }

func (c *claims) refuseBlock(r *Record, b *Block, why refusal) {
	c.blocks[r.ID] = why
	c.note(r, blockText(b), r.ID.Owner, why)
}

func (c *claims) note(r *Record, what string, owner NodeID, why refusal) {
	c.found = append(c.found, refusalOf(r, what, owner, why))
}

func refusalOf(r *Record, what string, owner NodeID, why refusal) Refusal {
	return Refusal{Record: r.ID, What: what, Holder: why.holder, Owner: owner, Why: why.why, Waiting: why.waiting, Time: r.Time}
}

// node says why nothing of a node is programmed, or "".
func (c *claims) node(id NodeID) string { return c.refused[id].why }

// block says whether a block is programmed.
func (c *claims) block(id ID) bool {
	_, no := c.blocks[id]
	return !no
}

// endpoint says why an endpoint is not used, or nil: one of its addresses lies
// in a block of another node.
func (c *claims) endpoint(r *Record, e *Endpoint) *Refusal {
	o := c.open[e.Network]
	if o == nil || e.Mode == "host" {
		return nil
	}
	if def := c.prefixes[e.Network][r.ID.Owner]; def != nil && def.Local() {
		return nil
	}
	for _, a := range e.Addrs {
		p, holder, ok := o.at(a)
		if !ok || holder == r.ID.Owner {
			continue
		}
		why := fmt.Sprintf("its address %s lies in block %s of another node: run `nodectl detach --id %s` on its node and attach it again", a, p, e.ID)
		what := fmt.Sprintf("endpoint %s (%s)", e.ID, a)
		if e.Name != "" {
			what = fmt.Sprintf("endpoint %s.%s (%s)", e.Name, e.Namespace, a)
		}
		x := refusalOf(r, what, r.ID.Owner, refusal{holder: holder, why: why})
		return &x
	}
	return nil
}

// lease says why a lease is not used, or nil: its address must lie in the network, as
// any node defines it; on a network of each node's own, as its server does.
func (c *claims) lease(r *Record, l *LeaseValue) *Refusal {
	defs := c.prefixes[l.Network]
	if len(defs) == 0 {
		return nil
	}
	for owner, n := range defs {
		if n.Prefix.Contains(l.Addr) && (!n.Local() || owner == l.Server) {
			return nil
		}
	}
	if defs[l.Server] == nil && slices.ContainsFunc(slices.Collect(maps.Values(defs)), (*Network).Local) {
		return nil // its server's own definition has not come yet
	}
	x := refusalOf(r, fmt.Sprintf("lease %s of %s", l.Addr, l.Network), l.Server, refusal{why: "its address lies outside the network: make the Nodefiles agree on the network's prefix; the lease ends by itself"})
	return &x
}

// vip says why an address cannot be a service's, or nil: the ring of the
// service addresses must reach it, where one is known.
func (c *claims) vip(id ID, s *Service, a netip.Addr) *Refusal {
	parts, ok := c.rings[RingServices]
	if !ok || !a.IsValid() {
		return nil
	}
	i, found := slices.BinarySearchFunc(parts, a, func(p RingPart, a netip.Addr) int { return p.From.Compare(a) })
	if !found {
		i--
	}
	if i >= 0 && parts[i].To.Compare(a) >= 0 {
		return nil
	}
	return &Refusal{
		Record: id, What: "VIP " + a.String(), Why: "it lies outside the service range: give " + s.FullName() + " an address inside it",
	}
}

// conflictsOf shows what was refused. What only waits is left out: see
// View.Refusals.
func conflictsOf(list []Refusal, name func(NodeID) string) []Conflict {
	var out []Conflict
	for _, f := range list {
		if f.Waiting {
			continue
		}
		x := Conflict{What: f.What, Winner: "nobody", Loser: f.Record.Key, Detail: "not programmed: " + f.Why}
		if f.Owner != "" {
			x.Loser = name(f.Owner)
		}
		if f.Holder != "" {
			x.Winner = name(f.Holder)
		}
		out = append(out, x)
	}
	return out
}

// inOrder orders refusals alike on every node.
func inOrder(a, b Refusal) int {
	return cmp.Or(cmp.Compare(a.What, b.What), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Record.Key, b.Record.Key))
}

// compareRefusals orders refusals by what is refused.
func compareRefusals(a, b *Refusal) int {
	return cmp.Or(compareIDs(&Record{ID: a.Record}, &Record{ID: b.Record}), cmp.Compare(a.Owner, b.Owner))
}
