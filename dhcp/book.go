package dhcp

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"nodenet/state"
)

// Store is what a Book needs of the cluster's tables; *state.Store has it.
type Store interface {
	Self() state.NodeID
	Snapshot() *state.Snapshot
	Write(ctx context.Context, fn func(*state.Snapshot) ([]state.Op, error)) (uint64, error)
	Subscribe() *state.Feed
}

// Pick is an address for a client, with the ops that must be committed
// together with its lease or offer, such as opening a block.
type Pick struct {
	Addr   netip.Addr
	Prefix netip.Prefix // invalid: the scope's
	Router netip.Addr   // invalid: the scope's
	Ops    []state.Op
}

// PickFunc chooses an address for a client that has no live lease. It runs
// inside a Write, so that sn holds everything written before, and must be
// quick. It must not return an address for which held is true, nor one that
// another endpoint or a reservation has; leases and offers are the Book's
// business and count as held. When c.Requested may be given to c, it must be
// what is returned: that is how a Book asks about one address. Errors:
// ErrExhausted, wrapped with the reason, when nothing is left.
type PickFunc func(sn *state.Snapshot, network string, c Client, held func(netip.Addr) bool) (Pick, error)

// Defaults of a Book.
const (
	DefaultHold         = 30 * time.Second
	DefaultQuarantine   = 10 * time.Minute
	DefaultGrace        = 5 * time.Minute
	DefaultForeignGrace = time.Hour
)

// Book implements Leases on the cluster's tables: offers in memory, leases as
// records of class Lease. Any node renews any lease, because the record says
// whose it is. It is safe for concurrent use; its fields are set before the
// first call, if at all.
type Book struct {
	// Free tells the free part of a network's addresses, 0 to 1, for Usage.
	// Nil: not known.
	Free func(network string) float64
	Now  func() time.Time // nil: time.Now

	Hold       time.Duration // of an offer
	Quarantine time.Duration // of a declined address
	// Grace is how long an expired lease stays with its client before its
	// server removes it. Other nodes remove it after ForeignGrace: its server
	// may be gone for good, or merely cut off and renewing.
	Grace, ForeignGrace time.Duration

	store Store
	pick  PickFunc
	feed  *state.Feed

	mu       sync.Mutex
	byAddr   map[offerKey]*offer
	byClient map[clientKey]*offer
	clients  map[clientKey]netip.Addr
	leases   map[offerKey]leaseRef // every lease record, expired and declined ones too
}

// leaseRef is what the index keeps of a lease record.
type leaseRef struct {
	client   clientKey
	expires  int64 // Unix seconds
	declined bool
}

// maxOffers bounds what made-up clients can make us hold.
const maxOffers = 4096

// clientKey identifies a client on a network: option 61 or else the MAC
// (RFC 2131 §4.2). Both in one space, told apart by a first letter.
type clientKey struct{ network, client string }

// offerKey is an address of a network.
type offerKey struct {
	network string
	addr    netip.Addr
}

type offer struct {
	lease  Lease
	client clientKey
	until  time.Time
}

var _ Leases = (*Book)(nil)

// NewBook returns a Book that knows the leases of the store and takes
// addresses from pick. Run ends its subscription to the store.
func NewBook(store Store, pick PickFunc) *Book {
	b := &Book{store: store, pick: pick, byAddr: make(map[offerKey]*offer), byClient: make(map[clientKey]*offer),
		Hold: DefaultHold, Quarantine: DefaultQuarantine, Grace: DefaultGrace, ForeignGrace: DefaultForeignGrace}
	b.feed = store.Subscribe()
	b.reindex(store.Snapshot())
	return b
}

// sweepEvery is how often Run looks for leases that ran out.
const sweepEvery = 30 * time.Second

// Run removes expired leases until ctx is cancelled; it then returns nil. A
// failure to write is not the end of it: the next round tries again.
func (b *Book) Run(ctx context.Context) error {
	defer b.feed.Close()
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if _, err := b.Sweep(ctx); errors.Is(err, state.ErrClosed) {
				return err
			}
		}
	}
}

func (b *Book) now() time.Time {
	if b.Now != nil {
		return b.Now()
	}
	return time.Now()
}

// LeaseBlocks reports whether a lease record keeps its address from others at
// a time: the lease has not expired, or the address is quarantined.
func LeaseBlocks(v *state.LeaseValue, now time.Time) bool { return v.Expires > now.Unix() }

func keyOf(network string, c Client) clientKey {
	if len(c.ID) > 0 {
		return clientKey{network, "i" + string(c.ID)}
	}
	return clientKey{network, "m" + string(c.MAC)}
}

func keyOfLease(v *state.LeaseValue) clientKey {
	if len(v.ClientID) > 0 {
		return clientKey{v.Network, "i" + string(v.ClientID)}
	}
	mac, err := hex.DecodeString(strings.ReplaceAll(v.MAC, ":", ""))
	if err != nil {
		return clientKey{}
	}
	return clientKey{v.Network, "m" + string(mac)}
}

func leaseKey(network string, addr netip.Addr) string { return network + "/" + addr.String() }

func lookup(sn *state.Snapshot, network string, addr netip.Addr) (*state.LeaseValue, bool) {
	return state.Lookup[state.LeaseValue](sn, state.ID{Class: state.Lease, Kind: state.KindLease, Key: leaseKey(network, addr)})
}

// index brings the index up to date with the store. The index only says where
// to look: every hit is checked against a snapshot. Callers hold mu.
func (b *Book) index() {
	changed, all, sn := b.feed.Take()
	if all {
		b.reindex(sn)
		return
	}
	for i := range changed {
		if changed[i].ID.Kind != state.KindLease {
			continue
		}
		network, addr, ok := parseKey(changed[i].ID.Key)
		if !ok {
			continue
		}
		// The newest version counts, which may be later than this one.
		if v, ok := lookup(sn, network, addr); ok {
			b.note(v)
		} else {
			b.forget(offerKey{network, addr})
		}
	}
}

func (b *Book) reindex(sn *state.Snapshot) {
	b.clients = make(map[clientKey]netip.Addr)
	b.leases = make(map[offerKey]leaseRef)
	for _, v := range state.All[state.LeaseValue](sn) {
		b.note(v)
	}
}

func (b *Book) note(v *state.LeaseValue) {
	at := offerKey{v.Network, v.Addr}
	b.forget(at)
	ref := leaseRef{client: keyOfLease(v), expires: v.Expires, declined: v.Declined}
	b.leases[at] = ref
	if !v.Declined {
		b.clients[ref.client] = v.Addr
	}
}

func (b *Book) forget(at offerKey) {
	if ref, ok := b.leases[at]; ok && b.clients[ref.client] == at.addr {
		delete(b.clients, ref.client)
	}
	delete(b.leases, at)
}

// leaseOf returns the record of a client's lease, expired ones included, or
// nil. Callers hold mu.
func (b *Book) leaseOf(sn *state.Snapshot, k clientKey) *state.LeaseValue {
	addr, ok := b.clients[k]
	if !ok {
		return nil
	}
	if v, ok := lookup(sn, k.network, addr); ok && owns(v, k) {
		return v
	}
	return nil
}

// owns reports whether a record is the client's lease.
func owns(v *state.LeaseValue, k clientKey) bool { return !v.Declined && keyOfLease(v) == k }

// parseKey is leaseKey's inverse. A network's name has no slash.
func parseKey(key string) (network string, addr netip.Addr, ok bool) {
	network, a, ok := strings.Cut(key, "/")
	if !ok {
		return "", addr, false
	}
	addr, err := netip.ParseAddr(a)
	return network, addr, err == nil
}

// Held reports whether an address is offered to a client at the moment. An
// allocator that serves others from the same range leaves it alone.
func (b *Book) Held(network string, addr netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.byAddr[offerKey{network, addr}]
	return o != nil && b.now().Before(o.until)
}

// offerOf returns what is offered to a client, or nil. Callers hold mu.
func (b *Book) offerOf(k clientKey, now time.Time) *offer {
	if o := b.byClient[k]; o != nil && now.Before(o.until) {
		return o
	}
	return nil
}

// hold offers; at most one address to a client. Callers hold mu.
func (b *Book) hold(o *offer) {
	b.withdraw(o.client)
	at := offerKey{o.client.network, o.lease.Addr}
	if old := b.byAddr[at]; old != nil {
		b.withdraw(old.client)
	}
	b.byAddr[at], b.byClient[o.client] = o, o
}

// withdraw ends a client's offer. Callers hold mu.
func (b *Book) withdraw(k clientKey) {
	if o := b.byClient[k]; o != nil {
		delete(b.byClient, k)
		delete(b.byAddr, offerKey{k.network, o.lease.Addr})
	}
}

// prune removes offers that nobody took. Callers hold mu.
func (b *Book) prune(now time.Time) {
	for k, o := range b.byClient {
		if !now.Before(o.until) {
			b.withdraw(k)
		}
	}
}
