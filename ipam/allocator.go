package ipam

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodenet/state"
)

// Allocator gives Allocate a memory: the address given last on each network
// (round robin), the addresses that rest after their release, and, when made
// with NewAllocator, an index of what is in use that follows the store, so
// that an allocation costs the same with ten endpoints or 100 000.
//
// The memory is lost with the process. After a restart nothing rests, and
// round robin goes on behind the address of the newest endpoint, so that a
// released address is still among the last to be given again.
//
// What the index holds is committed. On top of it each call reads from the
// snapshot that it is given what this node wrote since (state.Snapshot.Delta
// of its own records, and the lease at the picked address): calls in Writes
// that share a commit see one another, and a Write that fails leaves no trace.
//
// The zero value has no index and reads all endpoints at each call. An
// Allocator is safe for concurrent use; with an index it must be given
// snapshots of its own store.
type Allocator struct {
	mu     sync.Mutex
	cursor map[string]netip.Addr
	rests  map[restKey]rest
	last   map[stickyKey]netip.Addr // what an ID or name released last

	store *state.Store
	feed  *state.Feed
	index *table // committed state, as far as the feed has told
	mark  state.Mark
	rings map[ringKey]*Ring
}

type (
	restKey struct {
		network string
		addr    netip.Addr
	}
	rest struct {
		at       time.Time
		id, name string
	}
	stickyKey struct {
		network, who string
		named        bool // who is "namespace/name", not an ID
	}
	ringKey struct{ ring, id string }
)

// NewAllocator returns an Allocator with an index over a store. Close it
// before the store.
func NewAllocator(store *state.Store) *Allocator {
	return &Allocator{store: store, feed: store.Subscribe()}
}

// Close ends the Allocator's feed, if it has one.
func (a *Allocator) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.feed != nil {
		a.feed.Close()
		a.feed, a.store, a.index = nil, nil, nil
	}
}

// Release returns the op that deletes an endpoint of this node, and lets its
// addresses rest from now on. Releasing what is not there is nothing. Should
// the Write fail, the endpoint keeps its addresses: nothing is lost.
func (a *Allocator) Release(sn *state.Snapshot, self state.NodeID, endpointID string, now time.Time) []state.Op {
	ep, ok := state.Lookup[state.Endpoint](sn, state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: self, Key: endpointID})
	if !ok {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restEndpoint(ep, now)
	return []state.Op{state.Del(state.Owner, state.KindEndpoint, endpointID)}
}

// Rest lets an address rest from now on, for who gave it up (a DHCP client's
// RELEASE): the same id or "namespace/name" may have it back at once.
func (a *Allocator) Rest(network string, addr netip.Addr, id, name string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.putRest(restKey{network, addr}, rest{now, id, name})
}

func (a *Allocator) restEndpoint(ep *state.Endpoint, now time.Time) {
	name := ""
	if ep.Name != "" {
		name = ep.Namespace + "/" + ep.Name
	}
	for _, addr := range ep.Addrs {
		a.putRest(restKey{ep.Network, addr}, rest{now, ep.ID, name})
	}
}

// maxRests bounds the memory of released addresses; see sweep.
const maxRests = 16384

func (a *Allocator) putRest(k restKey, r rest) {
	if a.rests == nil {
		a.rests, a.last = map[restKey]rest{}, map[stickyKey]netip.Addr{}
	}
	if len(a.rests) >= maxRests {
		a.sweep(r.at)
	}
	a.dropRest(k)
	a.rests[k] = r
	for _, s := range k.sticky(r) {
		a.last[s] = k.addr
	}
}

// sticky returns the keys under which a released address is found again.
func (k restKey) sticky(r rest) (out []stickyKey) {
	if r.id != "" {
		out = append(out, stickyKey{k.network, r.id, false})
	}
	if r.name != "" {
		out = append(out, stickyKey{k.network, r.name, true})
	}
	return out
}

func (a *Allocator) dropRest(k restKey) {
	r, ok := a.rests[k]
	if !ok {
		return
	}
	delete(a.rests, k)
	for _, s := range k.sticky(r) {
		if a.last[s] == k.addr {
			delete(a.last, s)
		}
	}
}

// sweep forgets the older half of the resting addresses.
func (a *Allocator) sweep(now time.Time) {
	ages := make([]time.Duration, 0, len(a.rests))
	for _, r := range a.rests {
		ages = append(ages, now.Sub(r.at))
	}
	slices.Sort(ages)
	median := ages[len(ages)/2]
	for k, r := range a.rests {
		if now.Sub(r.at) >= median {
			a.dropRest(k)
		}
	}
}

// resting reports whether an address was released less than d ago.
func (a *Allocator) resting(network string, addr netip.Addr, now time.Time, d time.Duration) bool {
	k := restKey{network, addr}
	r, ok := a.rests[k]
	if ok && now.Sub(r.at) >= d {
		a.dropRest(k)
		return false
	}
	return ok
}

// sticky returns the address that the endpoint of that ID, or else of that
// name, gave up last, if that was less than d ago.
func (a *Allocator) sticky(network, id, name string, now time.Time, d time.Duration) (netip.Addr, bool) {
	for _, s := range (restKey{network: network}).sticky(rest{id: id, name: name}) {
		addr, ok := a.last[s]
		if ok && now.Sub(a.rests[restKey{network, addr}].at) < d {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// given notes that an address was picked.
func (a *Allocator) given(network string, addr netip.Addr) {
	if a.cursor == nil {
		a.cursor = map[string]netip.Addr{}
	}
	a.cursor[network] = addr
}

// follow brings the index up to the newest committed state.
func (a *Allocator) follow() {
	changed, all, sn := a.feed.Take()
	self := a.store.Self()
	for i := range changed {
		// What counts changes with it, in many records.
		all = all || changed[i].ID.Kind == state.KindForgotten
	}
	if all || a.index == nil {
		a.index, a.rings = newTable(self), nil
		a.index.load(sn, "")
		a.mark = sn.Head(self).Mark
		return
	}
	for i := range changed {
		rec := &changed[i]
		if rec.ID.Kind == state.KindRing {
			a.rings = nil
		}
		if gone := a.index.apply(rec); gone != nil {
			a.restGone(gone, time.Unix(rec.Time, 0))
		}
		if m := (state.Mark{Epoch: rec.Version.Epoch, Seq: rec.Version.Seq}); rec.ID.Class == state.Owner && rec.ID.Owner == self && m.Compare(a.mark) > 0 {
			a.mark = m
		}
	}
}

// restGone lets the addresses of an endpoint rest that was deleted by
// somebody other than Release.
func (a *Allocator) restGone(ep *state.Endpoint, at time.Time) {
	for _, addr := range ep.Addrs {
		if r, ok := a.rests[restKey{ep.Network, addr}]; ok && !r.at.Before(at.Add(-2*time.Second)) {
			return
		}
	}
	a.restEndpoint(ep, at)
}

// ring returns a ring, from memory while no range changed.
func (a *Allocator) ring(sn *state.Snapshot, ring, ringID string) *Ring {
	if a.index == nil {
		return Resolve(sn, ring, ringID)
	}
	k := ringKey{ring, ringID}
	if r, ok := a.rings[k]; ok {
		return r
	}
	// From committed state: a Write that fails must not stay in memory.
	r := Resolve(a.store.Snapshot(), ring, ringID)
	if r == nil {
		return Resolve(sn, ring, ringID)
	}
	if a.rings == nil {
		a.rings = map[ringKey]*Ring{}
	}
	a.rings[k] = r
	return r
}
