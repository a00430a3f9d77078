package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/state"
)

// DefaultRest is how long a released address rests before somebody else gets
// it, so that stale ARP entries, connections and DNS answers die first.
const DefaultRest = time.Minute

// Request asks for one address on a network.
type Request struct {
	Network state.Network
	RingID  string
	// ID is the endpoint's ID (for DHCP, one derived from the client). An
	// endpoint of this node with that ID gets the address that it has.
	ID              string
	Namespace, Name string
	MAC             string
	Want            netip.Addr    // zero: any
	Now             time.Time     // zero: time.Now
	Rest            time.Duration // zero: DefaultRest; negative: none
	// Held reports addresses promised in memory, such as DHCP offers. Nil:
	// none. It must not call the Allocator.
	Held func(netip.Addr) bool
}

// Grant is an address that was picked. It is the caller's once the Write that
// picked it, with the caller's record of it, has returned.
type Grant struct {
	Addr    netip.Addr
	Prefix  netip.Prefix // the block that it lies in
	Gateway netip.Addr   // zero: the network has none
}

// Allocate picks an address and returns the ops that must go into the same
// Write as the caller's endpoint or lease: none, or a block that it opens.
// It reads all endpoints of the snapshot; an Allocator made with NewAllocator
// does not.
//
// Errors: ErrNeedSpace (a NeedSpaceError says which range to Grow), ErrInUse
// and ErrNotOurs for a wanted address, ErrExhausted on a Local network,
// ErrNoRing.
func Allocate(sn *state.Snapshot, self state.NodeID, r Request) (Grant, []state.Op, error) {
	return new(Allocator).Allocate(sn, self, r)
}

// OpenAhead returns the op that opens this node's pinned block, or its next
// block once less than a fifth of a block is free in those that are open: the
// route is then everywhere before the first workload needs it. It returns
// nothing when there is no space to open; Ahead says so.
func OpenAhead(sn *state.Snapshot, self state.NodeID, ringID string, n state.Network) []state.Op {
	return new(Allocator).OpenAhead(sn, self, ringID, n)
}

// Ahead is OpenAhead with the reason why nothing could be opened though it
// should be: ErrNeedSpace (Grow before it hurts) or ErrNoRing.
func Ahead(sn *state.Snapshot, self state.NodeID, ringID string, n state.Network) ([]state.Op, error) {
	return new(Allocator).Ahead(sn, self, ringID, n)
}

// Allocate is the function of that name with the Allocator's memory.
func (a *Allocator) Allocate(sn *state.Snapshot, self state.NodeID, r Request) (Grant, []state.Op, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.scope(sn, self, r)
	if err != nil {
		return Grant{}, nil, fmt.Errorf("allocate on %s: %w", title(r.Network.Name), err)
	}
	g, ops, err := s.allocate()
	if err != nil {
		if r.Want.IsValid() {
			return Grant{}, nil, fmt.Errorf("allocate %s on %s: %w", r.Want, title(r.Network.Name), err)
		}
		return Grant{}, nil, fmt.Errorf("allocate on %s: %w", title(r.Network.Name), err)
	}
	a.given(r.Network.Name, g.Addr)
	return g, ops, nil
}

// OpenAhead is the function of that name with the Allocator's memory.
func (a *Allocator) OpenAhead(sn *state.Snapshot, self state.NodeID, ringID string, n state.Network) []state.Op {
	ops, _ := a.Ahead(sn, self, ringID, n)
	return ops
}

// Ahead is the function of that name with the Allocator's memory.
func (a *Allocator) Ahead(sn *state.Snapshot, self state.NodeID, ringID string, n state.Network) ([]state.Op, error) {
	if n.Local() {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.scope(sn, self, Request{Network: n, RingID: ringID})
	if err != nil {
		return nil, fmt.Errorf("open a block of %s: %w", title(n.Name), err)
	}
	if s.pinDue() {
		p, err := s.pin()
		if err != nil {
			return nil, fmt.Errorf("open a block of %s: %w", title(n.Name), err)
		}
		return []state.Op{s.openOp(p)}, nil
	}
	if len(s.blocks) == 0 && !n.Pin.IsValid() {
		return nil, nil // the first block opens with the first address
	}
	var free uint64
	for _, b := range s.blocks {
		free = satAdd(free, s.free(b))
	}
	one := netip.PrefixFrom(n.Prefix.Masked().Addr(), BlockBits(n))
	if free > s.usable(one)/5 {
		return nil, nil
	}
	p, _, err := s.next()
	if err != nil {
		return nil, fmt.Errorf("open a block of %s: %w", title(n.Name), err)
	}
	return []state.Op{s.openOp(p)}, nil
}

// allocate goes through the reasons to get a certain address, strongest
// first, and then takes the next free one.
func (s *scope) allocate() (Grant, []state.Op, error) {
	if a, ok := s.current(); ok && (!s.req.Want.IsValid() || s.req.Want == a) {
		if b, ok := s.block(a); ok {
			return s.grant(a, b), nil, nil
		}
	}
	if s.req.Want.IsValid() {
		return s.take(s.req.Want, true)
	}
	for _, a := range s.reserved() {
		if g, ops, err := s.take(a, true); err == nil {
			return g, ops, nil
		}
	}
	if a, ok := s.alloc.sticky(s.net.Name, s.req.ID, s.endpointName(), s.now, s.rest()); ok {
		if g, ops, err := s.take(a, true); err == nil {
			return g, ops, nil
		}
	}
	var pinned error
	if s.pinDue() {
		p, err := s.pin()
		if err == nil {
			if a, ok := s.firstFree(p, netip.Addr{}); ok {
				return s.grant(a, p), []state.Op{s.openOp(p)}, nil
			}
		}
		pinned = err
	}
	if a, b, ok := s.roundRobin(); ok {
		return s.grant(a, b), nil, nil
	}
	if pinned != nil {
		return Grant{}, nil, pinned
	}
	if s.net.Local() {
		return Grant{}, nil, fmt.Errorf("%w: %d of %d addresses in use or at rest", ErrExhausted, s.usable(s.blocks[0])-s.free(s.blocks[0]), s.usable(s.blocks[0]))
	}
	p, a, err := s.next()
	if err != nil {
		return Grant{}, nil, err
	}
	return s.grant(a, p), []state.Op{s.openOp(p)}, nil
}

// take gives out one certain address, or says why not. wanted addresses need
// not have rested.
func (s *scope) take(a netip.Addr, wanted bool) (Grant, []state.Op, error) {
	if !s.net.Prefix.Contains(a) {
		return Grant{}, nil, fmt.Errorf("outside of %s: %w", s.net.Prefix, ErrNotOurs)
	}
	if b, ok := s.block(a); ok {
		if why := s.why(a, b, wanted); why != "" {
			return Grant{}, nil, fmt.Errorf("%s: %w", why, ErrInUse)
		}
		return s.grant(a, b), nil, nil
	}
	if s.net.Local() {
		return Grant{}, nil, fmt.Errorf("outside of %s: %w", s.net.Prefix, ErrNotOurs)
	}
	b, err := a.Prefix(BlockBits(*s.net))
	if err != nil {
		return Grant{}, nil, err
	}
	if s.net.Pin.IsValid() && s.net.Pin.Contains(a) {
		b = s.net.Pin.Masked()
	}
	if by := s.blockTaken(b); by != "" {
		return Grant{}, nil, fmt.Errorf("block %s is %s: %w", b, by, ErrNotOurs)
	}
	ring := Resolve(s.sn, s.net.Name, s.req.RingID)
	if ring == nil {
		return Grant{}, nil, ErrNoRing
	}
	if !ring.Owns(s.self, b) {
		return Grant{}, nil, &NeedSpaceError{Ring: s.net.Name, Want: b}
	}
	if until, ok := ring.resting(spanOf(b), s.now); ok {
		return Grant{}, nil, restError(until)
	}
	if why := s.why(a, b, wanted); why != "" {
		return Grant{}, nil, fmt.Errorf("%s: %w", why, ErrInUse)
	}
	return s.grant(a, b), []state.Op{s.openOp(b)}, nil
}

// roundRobin returns the first free address after the last one given.
func (s *scope) roundRobin() (netip.Addr, netip.Prefix, bool) {
	if len(s.blocks) == 0 {
		return netip.Addr{}, netip.Prefix{}, false
	}
	cursor := s.alloc.cursor[s.net.Name]
	if !cursor.IsValid() && s.t != nil {
		cursor = s.t.newestAddr
	}
	set := make([]span, len(s.blocks))
	for i, b := range s.blocks {
		set[i] = spanOf(b)
	}
	start := set[0].from
	if next := cursor.Next(); cursor.IsValid() && next.IsValid() {
		start = next
	}
	b := s.blocks[0]
	a, ok := pick(set, start, func(a netip.Addr) bool {
		if !b.Contains(a) {
			b, _ = s.block(a)
		}
		return s.why(a, b, false) == ""
	})
	return a, b, ok
}

// firstFree returns the first free address of a block behind after, or else
// from the block's start. A zero after means the start.
func (s *scope) firstFree(b netip.Prefix, after netip.Addr) (netip.Addr, bool) {
	whole := spanOf(b)
	start := whole.from
	if b.Contains(after) && after != whole.to {
		start = after.Next()
	}
	return pick([]span{whole}, start, func(a netip.Addr) bool { return s.why(a, b, false) == "" })
}

// pinDue reports whether the node's Nodefile pins a block that is not open.
func (s *scope) pinDue() bool {
	return !s.net.Local() && s.net.Pin.IsValid() && !slices.Contains(s.opened, s.net.Pin.Masked())
}

// pin returns the pinned block when it can be opened.
func (s *scope) pin() (netip.Prefix, error) {
	p := s.net.Pin.Masked()
	if by := s.blockTaken(p); by != "" {
		return p, fmt.Errorf("pinned block %s is %s: %w", p, by, ErrInUse)
	}
	ring := Resolve(s.sn, s.net.Name, s.req.RingID)
	if ring == nil {
		return p, ErrNoRing
	}
	if !ring.Owns(s.self, p) {
		return p, &NeedSpaceError{Ring: s.net.Name, Want: p}
	}
	if until, ok := ring.resting(spanOf(p), s.now); ok {
		return p, fmt.Errorf("pinned block %s: %w", p, restError(until))
	}
	return p, nil
}

// maxTries bounds how many blocks next looks into.
const maxTries = 4096

// next returns the lowest block that could be opened and its first free address.
func (s *scope) next() (netip.Prefix, netip.Addr, error) {
	ring := Resolve(s.sn, s.net.Name, s.req.RingID)
	if ring == nil {
		return netip.Prefix{}, netip.Addr{}, ErrNoRing
	}
	bits := BlockBits(*s.net)
	tries := 0
	for _, piece := range ring.spare(s.self, bits, normal(closed(s.sn, ring, s.self)), netip.Addr{}, netip.Addr{}) {
		for p := netip.PrefixFrom(piece.Addr(), bits); piece.Contains(p.Addr()) && tries < maxTries; tries++ {
			if a, ok := s.firstFree(p, netip.Addr{}); ok {
				return p, a, nil
			}
			p = netip.PrefixFrom(lastAddr(p).Next(), bits)
			if !p.IsValid() {
				break
			}
		}
	}
	return netip.Prefix{}, netip.Addr{}, &NeedSpaceError{Ring: s.net.Name}
}

// blockTaken says what keeps a block from being opened, or "".
func (s *scope) blockTaken(p netip.Prefix) string {
	gone := s.sn.Gone()
	for rec, b := range state.All[state.Block](s.sn) {
		if gone.Record(&rec) {
			continue
		}
		if b.Network == s.net.Name && b.Prefix.Overlaps(p) {
			return "opened by " + nodeName(s.sn, rec.ID.Owner)
		}
	}
	for rec, n := range state.All[state.Network](s.sn) {
		if n.Name == s.net.Name && rec.ID.Owner != s.self && n.Pin.IsValid() && n.Pin.Overlaps(p) && !gone.Node(rec.ID.Owner) {
			return "pinned by " + nodeName(s.sn, rec.ID.Owner)
		}
	}
	return ""
}

// current returns the address that the endpoint of that ID has here.
func (s *scope) current() (netip.Addr, bool) {
	if s.req.ID == "" {
		return netip.Addr{}, false
	}
	ep, ok := state.Lookup[state.Endpoint](s.sn, state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: s.self, Key: s.req.ID})
	if !ok || ep.Network != s.net.Name {
		return netip.Addr{}, false
	}
	for _, a := range ep.Addrs {
		if s.net.Prefix.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// reserved returns the addresses that are reserved for this client, sorted.
func (s *scope) reserved() []netip.Addr {
	var out []netip.Addr
	if s.t != nil {
		for a, m := range s.t.reservations {
			for _, r := range m {
				if s.mine(r) {
					out = append(out, a)
					break
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// mine reports whether a reservation is for this client: by MAC, or by name
// as "name", "namespace/name" or "name.namespace".
func (s *scope) mine(r *state.Reservation) bool {
	if r.MAC != "" && s.req.MAC != "" && strings.EqualFold(r.MAC, s.req.MAC) {
		return true
	}
	n, ns := s.req.Name, s.req.Namespace
	return n != "" && (r.Name == n || r.Name == ns+"/"+n || r.Name == n+"."+ns)
}

func (s *scope) endpointName() string {
	if s.req.Name == "" {
		return ""
	}
	return s.req.Namespace + "/" + s.req.Name
}

func (s *scope) rest() time.Duration {
	if s.req.Rest == 0 {
		return DefaultRest
	}
	return s.req.Rest
}

func (s *scope) grant(a netip.Addr, b netip.Prefix) Grant {
	return Grant{Addr: a, Prefix: b, Gateway: Gateway(*s.net, b)}
}

// Gateway returns the address of the bridge in a block: Network.Gateway where
// it lies in the block, or the first host address of the block. It is zero
// where the bridge has none.
func Gateway(n state.Network, block netip.Prefix) netip.Addr {
	first := block.Masked().Addr()
	switch {
	case n.Gateway.IsValid() && block.Contains(n.Gateway):
		return n.Gateway
	case n.NoGateway || block.IsSingleIP():
		return netip.Addr{}
	case hasNetworkAddr(block):
		return first.Next()
	}
	return first
}
