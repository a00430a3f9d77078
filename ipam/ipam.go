// Package ipam decides who owns which part of an address range and which
// address is given out next: for workloads, for service VIPs and for node ports.
//
// It is pure over snapshots. Every decision is a function of a
// *state.Snapshot and gives []state.Op, to be run inside state.Store.Write, so
// that picking an address and recording it are one durable transaction. Only
// Grow and ServeAsk, the two ends of a donation, hold a store.
//
//	ring "pods"  10.244.0.0/16                     who may give out what
//	├─ 10.244.0.0/17    node1  gen 1               (Range records, Resolve)
//	└─ 10.244.128.0/17  node2  gen 2, from node1
//	     ├─ 10.244.128.0/24  opened: a pod CIDR    what is routed
//	     │    ├─ .1  gateway                       (Block records, OpenAhead)
//	     │    └─ .2  endpoint db-0                 what is in use
//	     └─ 10.244.129.0/24 … spare                (Endpoint, Lease: Allocate)
//
// # A node that is gone for good
//
// Its ranges move only by Forget, which breaks the rule above: not the owner
// writes the record. It is safe when a majority agrees that the owner is not
// there and whoever forgets knows what they know of the ring; what a node
// beyond the majority had from the dead one alone, is contested afterwards. The
// record's generation stands far above what was known, so that nothing the
// dead node wrote unheard counts against it, and what is taken over rests
// before anything in it is given out (DefaultQuarantine). When the node comes
// back, it obeys (GiveWay). Strays finds what is in the wrong place meanwhile.
//
// # Why two nodes never give out the same address
//
// A ring is a set of Range records. Where ranges overlap, the one with the
// higher generation owns the addresses that both cover. Only the owner of
// addresses writes a record over them, and it writes one record: "from now on
// this prefix is yours", with a generation above everything that it overlaps.
// So the records over any one address form a chain in which each link was
// written by the owner that the link before names. A node that does not know
// the end of the chain sees an earlier owner; that can only be itself if it
// gave the address away, and then it wrote the next link and knows it. Hence
// no partial, late or reordered view makes two nodes believe that they own
// one address, and no quorum is asked for anything.
//
// The whole of a new ring goes to one node: the founder of the cluster, or for
// rings that appear later the node that has the right to make rings (see
// Bootstrap), which is handed on only by a node that leaves (see HandOver).
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"nodenet/state"
)

// Errors that callers branch on, with errors.Is.
var (
	// ErrNeedSpace: this node's part of the ring is used up, or does not hold
	// the wanted range. Call Grow and try again; see NeedSpaceError.
	ErrNeedSpace = errors.New("no space of our own")
	// ErrExhausted: nobody that could be asked has anything left.
	ErrExhausted = errors.New("no space left")
	// ErrInUse: the wanted address or range is held; the message says by whom.
	ErrInUse = errors.New("in use")
	// ErrNotOurs: the wanted address lies in a block that another node opened.
	ErrNotOurs = errors.New("belongs to another node")
	// ErrNoRing: no record of the ring is here yet. The node has not synced,
	// or nobody has bootstrapped the ring.
	ErrNoRing = errors.New("no ring yet")
	// ErrGiveWay: self holds space that is another's by now; what GiveWay
	// returns comes first.
	ErrGiveWay = errors.New("this node has yet to give up space that is another's")
)

// NeedSpaceError is ErrNeedSpace with what to ask for.
type NeedSpaceError struct {
	Ring string
	// Want is the range that is needed; the zero value means any.
	Want netip.Prefix
}

func (e *NeedSpaceError) Error() string {
	if e.Want.IsValid() {
		return fmt.Sprintf("%s: %s is not ours: %v", title(e.Ring), e.Want, ErrNeedSpace)
	}
	return fmt.Sprintf("%s: %v", title(e.Ring), ErrNeedSpace)
}

// Is makes errors.Is(err, ErrNeedSpace) true.
func (e *NeedSpaceError) Is(target error) bool { return target == ErrNeedSpace }

// Spec describes a ring that should exist.
type Spec struct {
	Ring   string
	Prefix netip.Prefix
	// Block is the prefix length of the unit in which space changes hands.
	// Zero: for the services and node-port rings single addresses, for a
	// network DefaultBlock.
	Block int
	// First and Last bound the part of the ring that is of any use (the
	// configured node ports). Zero: the whole prefix.
	First, Last netip.Addr
	// Reserved addresses are nobody's to have: the resolver's.
	Reserved []netip.Addr
}

// NetworkSpec returns the ring of a network. Local networks have none: the
// caller must leave them out.
func NetworkSpec(n state.Network) Spec {
	return Spec{Ring: n.Name, Prefix: n.Prefix.Masked(), Block: BlockBits(n)}
}

// ServicesSpec returns the ring of the service VIPs; reserved as in AllocateVIP.
func ServicesSpec(prefix netip.Prefix, reserved ...netip.Addr) Spec {
	return Spec{Ring: state.RingServices, Prefix: prefix.Masked(), Reserved: reserved}
}

// NodePortsSpec returns the ring of the node ports, of which only first to
// last (inclusive) are ever asked for.
func NodePortsSpec(first, last uint16) Spec {
	return Spec{Ring: state.RingNodePorts, Prefix: portRing, First: PortAddr(first), Last: PortAddr(last)}
}

// BlockBits returns the prefix length of the blocks that nodes open on a
// network: Network.Block, or DefaultBlock where it is zero or makes no sense.
// On a Local network it is the length of the whole prefix.
func BlockBits(n state.Network) int {
	if n.Local() {
		return n.Prefix.Bits()
	}
	if n.Block < n.Prefix.Bits() || n.Block > n.Prefix.Addr().BitLen() {
		return DefaultBlock(n.Prefix)
	}
	return n.Block
}

// DefaultBlock returns the block length used where none is configured: /24,
// for IPv6 /112, and the prefix itself where that is smaller.
func DefaultBlock(p netip.Prefix) int {
	if p.Addr().Is4() {
		return max(24, p.Bits())
	}
	return max(112, p.Bits())
}

// unit is the prefix length in which the space of a ring changes hands.
func unit(ring string, block int, prefix netip.Prefix) int {
	bits := prefix.Addr().BitLen()
	switch {
	case ring == state.RingServices || ring == state.RingNodePorts:
		return bits
	case block <= 0 || block > bits:
		return DefaultBlock(prefix)
	}
	return block
}

// RangeKey returns the record key of a range. It names ring ID and owner
// besides "<ring>/<prefix>": records of two rings, or two claims to one prefix
// (contested), must be kept side by side to be seen, and a key holds only one.
func RangeKey(r state.Range) string {
	return fmt.Sprintf("%s/%s/%s/%s", r.Ring, r.Prefix, r.RingID, r.Owner)
}

func rangeOp(r state.Range, gen uint64) state.Op {
	op := state.Put(state.Ring, state.KindRing, RangeKey(r), r)
	op.Gen = gen
	return op
}

func blockKey(network string, p netip.Prefix) string { return network + "/" + p.String() }

// title names a ring for people.
func title(ring string) string {
	switch ring {
	case state.RingServices:
		return "services"
	case state.RingNodePorts:
		return "node ports"
	case ringSeat:
		return "the right to make rings"
	}
	return "network " + ring
}

// nodeName returns the name of a node, or the start of its ID.
func nodeName(sn *state.Snapshot, id state.NodeID) string {
	n, ok := state.Lookup[state.Node](sn, state.ID{Class: state.Owner, Kind: state.KindNode, Owner: id, Key: "self"})
	if ok && n.Name != "" {
		return n.Name
	}
	return id.Short()
}

// who names an endpoint for an error message.
func who(ep *state.Endpoint) string {
	name := ep.Name
	if name == "" {
		name = ep.ID
	}
	return strings.TrimPrefix(ep.Namespace+"/"+name, "/")
}
