package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// Ask is a request for space. It travels in an RPC.
type Ask struct {
	Ring   string `cbor:"1,keyasint"`
	RingID string `cbor:"2,keyasint"`
	// To is who shall own the space. A server must set it to the node at the
	// other end of the connection, whatever the request says.
	To     state.NodeID `cbor:"3,keyasint"`
	Prefix netip.Prefix `cbor:"4,keyasint,omitempty"` // of the whole ring: makes a ring that does not exist yet
	Block  int          `cbor:"5,keyasint,omitempty"` // as in Spec
	// Want is the range that is asked for; the zero value asks for half of
	// what the donor can spare.
	Want  netip.Prefix `cbor:"6,keyasint,omitempty"`
	First netip.Addr   `cbor:"7,keyasint,omitempty"` // as in Spec
	Last  netip.Addr   `cbor:"8,keyasint,omitempty"`
	// Owned is how many addresses To knows that it owns. A donor that knows of
	// more gives nothing new: an earlier answer got lost, this one repeats it.
	Owned uint64 `cbor:"9,keyasint,omitempty"`
}

// maxGift bounds how many records one donation writes. Space in more pieces
// than that is given in several.
const maxGift = 32

// ringSeat is a ring of one address. Who owns it may make new rings. No
// network can have its name.
const ringSeat = "(rings)"

var seatPrefix = netip.MustParsePrefix("0.0.0.0/32")

// Bootstrap returns the ops that give each ring which has no range here to
// self, and with the first of them the right to make rings. Only the founder
// of a cluster may run it on a table without ranges; everybody else must have
// synced first. From then on it does nothing on any node but the one that has
// that right: two nodes that learn of a new network together do not both found
// its ring (Grow asks the one that may). Local networks must be left out.
func Bootstrap(sn *state.Snapshot, self state.NodeID, ringID string, specs []Spec) []state.Op {
	if !MayFound(sn, self, ringID) {
		return nil
	}
	var ops []state.Op
	// As high as the right to make rings: above what a founder whose right was
	// taken over may have made without anybody hearing of it.
	gen := uint64(1)
	if seat := Resolve(sn, ringSeat, ringID); seat != nil {
		gen = seat.gen(seatPrefix)
	} else {
		specs = append([]Spec{{Ring: ringSeat, Prefix: seatPrefix}}, specs...)
	}
	for _, s := range specs {
		if s.Ring == "" || !s.Prefix.IsValid() || Resolve(sn, s.Ring, ringID) != nil {
			continue
		}
		ops = append(ops, rangeOp(state.Range{Ring: s.Ring, RingID: ringID, Prefix: s.Prefix.Masked(), Owner: self}, gen))
	}
	return ops
}

// MayFound reports whether self may make new rings: it has that right, or
// nobody is known to.
func MayFound(sn *state.Snapshot, self state.NodeID, ringID string) bool {
	f := founder(sn, ringID)
	return f == "" || f == self
}

// founder returns the node that may make new rings, or "". A ring of its own
// says so, because a part of another ring may be known here without its start.
func founder(sn *state.Snapshot, ringID string) state.NodeID {
	r := Resolve(sn, ringSeat, ringID)
	if r == nil {
		return ""
	}
	return r.Parts[0].Owner
}

// Donate returns the ops by which self, the owner, hands space to a.To: half
// of what it can spare in aligned blocks, or exactly a.Want. It never gives a
// block that it opened, nor one that holds an address in use or that a third
// node's Nodefile pins. No ops and no error mean that a.To owns more than it
// knows; it needs the records, not more space.
//
// Errors: ErrExhausted, ErrInUse and ErrNotOurs (with a.Want), ErrNoRing.
func Donate(sn *state.Snapshot, self state.NodeID, ringID string, a Ask) ([]state.Op, error) {
	if !a.To.Valid() || a.To == self {
		return nil, fmt.Errorf("donate %s: %q is not another node", title(a.Ring), a.To)
	}
	if a.Ring == ringSeat {
		return nil, fmt.Errorf("donate %s: only a node that leaves gives that away: %w", title(a.Ring), ErrInUse)
	}
	var ops []state.Op
	ring := Resolve(sn, a.Ring, ringID)
	if ring == nil {
		if !a.Prefix.IsValid() || founder(sn, ringID) != self {
			return nil, fmt.Errorf("donate %s: %w", title(a.Ring), ErrNoRing)
		}
		ops = Bootstrap(sn, self, ringID, []Spec{{Ring: a.Ring, Prefix: a.Prefix}})
		ring = resolve([]claim{{Prefix: a.Prefix.Masked(), Owner: self, Gen: ops[0].Gen}})
		ring.Name, ring.ID = a.Ring, ringID
	}
	give := func(p netip.Prefix) {
		r := state.Range{Ring: a.Ring, RingID: ringID, Prefix: p, Owner: a.To, Donor: self}
		ops = append(ops, rangeOp(r, ring.gen(p)+1))
	}
	if a.Want.IsValid() {
		want := a.Want.Masked()
		if ring.Owns(a.To, want) {
			return nil, nil
		}
		if err := donatable(sn, ring, self, a.To, want); err != nil {
			return nil, err
		}
		give(want)
		return ops, nil
	}
	if count(ring.owned(a.To)) > a.Owned {
		return nil, nil
	}
	bits := unit(a.Ring, a.Block, netip.PrefixFrom(ring.Parts[0].From, ring.bits()))
	spare := ring.spare(self, bits, normal(busy(sn, ring, a.To)), a.First, a.Last)
	if len(spare) == 0 {
		return nil, fmt.Errorf("donate %s: %w", title(a.Ring), ErrExhausted)
	}
	for _, p := range half(spare, bits) {
		give(p)
	}
	return ops, nil
}

// donatable reports why self cannot give all of want to another node.
func donatable(sn *state.Snapshot, ring *Ring, self, to state.NodeID, want netip.Prefix) error {
	if !ring.Owns(self, want) {
		for _, p := range ring.Parts {
			if p.Owner != self && p.From.Compare(lastAddr(want)) <= 0 && p.To.Compare(want.Addr()) >= 0 {
				return fmt.Errorf("donate %s of %s: range of %s: %w", want, title(ring.Name), nodeName(sn, p.Owner), ErrNotOurs)
			}
		}
		return fmt.Errorf("donate %s: outside of %s: %w", want, title(ring.Name), ErrNotOurs)
	}
	w := spanOf(want)
	if until, ok := ring.resting(w, time.Now()); ok {
		return fmt.Errorf("donate %s of %s: %w", want, title(ring.Name), restError(until))
	}
	for _, b := range busy(sn, ring, to) {
		if b.from.Compare(w.to) <= 0 && b.to.Compare(w.from) >= 0 {
			return fmt.Errorf("donate %s of %s: %s holds %s there: %w", want, title(ring.Name), nodeName(sn, self), b, ErrInUse)
		}
	}
	return nil
}

func (s span) String() string {
	if p := prefixes([]span{s}); len(p) == 1 && !p[0].IsSingleIP() {
		return p[0].String()
	}
	if s.from == s.to {
		return s.from.String()
	}
	return s.from.String() + "-" + s.to.String()
}

// half picks half of the units, rounded up, in as few pieces as it can: the
// largest first, from the top of the range.
func half(spare []netip.Prefix, bits int) []netip.Prefix {
	var total uint64
	for _, p := range spare {
		total = satAdd(total, units(p, bits))
	}
	left := total - total/2
	pieces := slices.Clone(spare)
	var out []netip.Prefix
	for left > 0 && len(pieces) > 0 && len(out) < maxGift {
		slices.SortFunc(pieces, func(a, b netip.Prefix) int {
			return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), b.Addr().Compare(a.Addr()))
		})
		p := pieces[0]
		pieces = pieces[1:]
		for units(p, bits) > left {
			var low netip.Prefix
			low, p = halves(p)
			pieces = append(pieces, low)
		}
		out = append(out, p)
		left -= units(p, bits)
	}
	return out
}

// spare returns what node owns between first and last (zero: anywhere) and
// could give away or open, in units of the given prefix length: pieces that
// are that long or shorter and touch nothing in taken, a set.
func (r *Ring) spare(node state.NodeID, bits int, taken []span, first, last netip.Addr) []netip.Prefix {
	set := r.owned(node)
	if first.IsValid() && last.IsValid() {
		set = intersect(set, []span{{first, last}})
	}
	wide := make([]span, 0, len(taken))
	for _, t := range taken {
		if t.from.BitLen() < bits {
			continue // of the other family
		}
		wide = append(wide, span{
			netip.PrefixFrom(t.from, bits).Masked().Addr(),
			lastAddr(netip.PrefixFrom(t.to, bits)),
		})
	}
	all := prefixes(subtract(set, normal(wide)))
	return slices.DeleteFunc(all, func(p netip.Prefix) bool { return p.Bits() > bits })
}

// bits returns the length of the longest prefix that holds the whole ring.
func (r *Ring) bits() int {
	first, last := r.Parts[0].From, r.Parts[len(r.Parts)-1].To
	for b := first.BitLen(); b > 0; b-- {
		if lastAddr(netip.PrefixFrom(first, b)).Compare(last) >= 0 {
			return b
		}
	}
	return 0
}

// busy returns what of a ring must stay where it is: what is closed, and
// addresses in use. It is not sorted.
func busy(sn *state.Snapshot, r *Ring, to state.NodeID) []span {
	out := closed(sn, r, to)
	one := func(a netip.Addr) {
		if a.IsValid() {
			out = append(out, span{a, a})
		}
	}
	if r.Name == state.RingServices || r.Name == state.RingNodePorts {
		return out
	}
	gone := sn.Gone()
	for rec, ep := range state.All[state.Endpoint](sn) {
		if ep.Network == r.Name && !gone.Record(&rec) {
			for _, a := range ep.Addrs {
				one(a)
			}
		}
	}
	for _, l := range state.All[state.LeaseValue](sn) {
		if l.Network == r.Name {
			one(l.Addr)
		}
	}
	return out
}

// closed returns what of a ring node cannot open: of a network, the opened
// blocks, those excluded and those pinned by other nodes; of the rings of
// single addresses, what is in use; of both, what is in quarantine. It is not sorted.
func closed(sn *state.Snapshot, r *Ring, node state.NodeID) []span {
	out := r.quarantine(time.Now())
	switch r.Name {
	case state.RingServices:
		// Nobody can be given these two; see AllocateVIP.
		first, last := r.Parts[0].From, r.Parts[len(r.Parts)-1].To
		out = append(out, span{first, first}, span{last, last})
		for a := range usedVIPs(sn) {
			out = append(out, span{a, a})
		}
		return out
	case state.RingNodePorts:
		for p := range usedNodePorts(sn) {
			out = append(out, span{PortAddr(p), PortAddr(p)})
		}
		return out
	}
	gone := sn.Gone()
	for rec, b := range state.All[state.Block](sn) {
		if b.Network == r.Name && b.Prefix.IsValid() && !gone.Record(&rec) {
			out = append(out, spanOf(b.Prefix))
		}
	}
	for rec, n := range state.All[state.Network](sn) {
		if n.Name != r.Name {
			continue
		}
		if gone.Node(rec.ID.Owner) {
			continue
		}
		if n.Pin.IsValid() && rec.ID.Owner != node {
			out = append(out, spanOf(n.Pin))
		}
		for _, x := range n.Exclude {
			// Smaller ones are left to the blocks that they lie in.
			if x.IsValid() && x.Bits() <= BlockBits(*n) {
				out = append(out, spanOf(x))
			}
		}
	}
	return out
}
