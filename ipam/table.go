package ipam

import (
	"net/netip"
	"slices"
	"strings"

	"nodenet/state"
)

// table says which addresses are in use and which blocks this node opened. It
// is filled from a snapshot and may then follow the changes one by one.
type table struct {
	self state.NodeID
	nets map[string]*netTable
	// eps remembers what an endpoint held: a tombstone does not say.
	eps  map[state.ID]*state.Endpoint
	gone state.Gone // what counts no longer
}

// netTable is the table of one network.
type netTable struct {
	own, others  map[netip.Addr]holder // endpoints of this node, of all others
	leases       map[netip.Addr]*state.LeaseValue
	reservations map[netip.Addr]map[state.ID]*state.Reservation
	blocks       map[string]netip.Prefix // opened by this node, by record key
	newest       int64                   // when the newest of own was created, in Unix seconds
	newestAddr   netip.Addr              // its address, the highest where several are as new
}

// holder is who has an address. Two may claim one after a forced takeover, so
// that one of them going does not free it.
type holder struct {
	ep *state.Endpoint
	n  int
}

func newTable(self state.NodeID) *table {
	return &table{self: self, nets: map[string]*netTable{}, eps: map[state.ID]*state.Endpoint{}}
}

// load fills an empty table with one network, or with all when only is "".
func (t *table) load(sn *state.Snapshot, only string) {
	t.gone = sn.Gone()
	for rec, ep := range state.All[state.Endpoint](sn) {
		if t.gone.Record(&rec) {
			continue
		}
		if only == "" || ep.Network == only {
			t.putEndpoint(rec.ID, ep)
		}
	}
	for _, l := range state.All[state.LeaseValue](sn) {
		if only == "" || l.Network == only {
			t.putLease(l)
		}
	}
	for rec, r := range state.All[state.Reservation](sn) {
		if only == "" || r.Network == only {
			t.putReservation(rec.ID, r)
		}
	}
	for rec, b := range state.All[state.Block](sn) {
		if rec.ID.Owner == t.self && !t.gone.Record(&rec) && (only == "" || b.Network == only) {
			t.net(b.Network).blocks[rec.ID.Key] = b.Prefix.Masked()
		}
	}
}

func (t *table) net(name string) *netTable {
	n := t.nets[name]
	if n == nil {
		n = &netTable{
			own: map[netip.Addr]holder{}, others: map[netip.Addr]holder{},
			leases: map[netip.Addr]*state.LeaseValue{}, blocks: map[string]netip.Prefix{},
			reservations: map[netip.Addr]map[state.ID]*state.Reservation{},
		}
		t.nets[name] = n
	}
	return n
}

// apply follows one change. It returns the endpoint of this node that the
// change removed, if it did.
func (t *table) apply(rec *state.Record) (gone *state.Endpoint) {
	switch rec.ID.Kind {
	case state.KindEndpoint:
		old := t.eps[rec.ID]
		t.dropEndpoint(rec.ID)
		if ep, ok := rec.Val().(*state.Endpoint); ok && !t.gone.Record(rec) {
			t.putEndpoint(rec.ID, ep)
		} else if !ok && rec.ID.Owner == t.self {
			return old
		}
	case state.KindLease:
		if l, ok := rec.Val().(*state.LeaseValue); ok {
			t.putLease(l)
		} else if network, addr, ok := splitAddrKey(rec.ID.Key); ok {
			delete(t.net(network).leases, addr)
		}
	case state.KindReservation:
		if network, addr, ok := splitAddrKey(rec.ID.Key); ok {
			delete(t.net(network).reservations[addr], rec.ID)
		}
		if r, ok := rec.Val().(*state.Reservation); ok {
			t.putReservation(rec.ID, r)
		}
	case state.KindBlock:
		if rec.ID.Owner != t.self {
			return nil
		}
		if b, ok := rec.Val().(*state.Block); ok {
			t.net(b.Network).blocks[rec.ID.Key] = b.Prefix.Masked()
		} else if i := strings.IndexByte(rec.ID.Key, '/'); i > 0 {
			delete(t.net(rec.ID.Key[:i]).blocks, rec.ID.Key)
		}
	}
	return nil
}

// splitAddrKey takes a key "<network>/<addr>" apart.
func splitAddrKey(key string) (network string, addr netip.Addr, ok bool) {
	i := strings.LastIndexByte(key, '/')
	if i < 0 {
		return "", netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(key[i+1:])
	return key[:i], addr, err == nil
}

func (t *table) putEndpoint(id state.ID, ep *state.Endpoint) {
	t.eps[id] = ep
	n := t.net(ep.Network)
	m := n.others
	if id.Owner == t.self {
		m = n.own
	}
	for _, a := range ep.Addrs {
		m[a] = holder{ep, m[a].n + 1}
		if id.Owner == t.self && (ep.Created > n.newest || ep.Created == n.newest && n.newestAddr.Compare(a) < 0) {
			n.newest, n.newestAddr = ep.Created, a
		}
	}
}

func (t *table) dropEndpoint(id state.ID) {
	ep := t.eps[id]
	if ep == nil {
		return
	}
	delete(t.eps, id)
	n := t.net(ep.Network)
	m := n.others
	if id.Owner == t.self {
		m = n.own
	}
	for _, a := range ep.Addrs {
		if h := m[a]; h.n > 1 {
			m[a] = holder{h.ep, h.n - 1}
		} else {
			delete(m, a)
		}
	}
}

func (t *table) putLease(l *state.LeaseValue) { t.net(l.Network).leases[l.Addr] = l }

func (t *table) putReservation(id state.ID, r *state.Reservation) {
	m := t.net(r.Network).reservations
	if m[r.Addr] == nil {
		m[r.Addr] = map[state.ID]*state.Reservation{}
	}
	m[r.Addr][id] = r
}

// opened returns the blocks in address order.
func (n *netTable) opened() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(n.blocks))
	for _, p := range n.blocks {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return slices.Compact(out)
}
