package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"nodenet/state"
)

// Offer implements Leases. A client with a live lease is offered that; one
// whose lease ran out, its old address if nobody has it; any other, what
// Pick chooses (RFC 2131 §4.3.1). Only what Pick itself writes is durable: an
// offer is worth nothing after a restart, and the client knows that.
func (b *Book) Offer(ctx context.Context, network string, c Client) (Lease, error) {
	k := keyOf(network, c)
	var lease Lease
	_, err := b.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		now := b.now()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.index()
		if v := b.leaseOf(sn, k); v != nil {
			if c.canUse(v.Addr) && LeaseBlocks(v, now) {
				lease = leaseFrom(v)
				return nil, nil
			}
			if c.canUse(v.Addr) {
				c.Requested = v.Addr
			}
		}
		if o := b.offerOf(k, now); o != nil && !b.taken(sn, network, o.lease.Addr, k, now) {
			o.until = now.Add(b.Hold)
			o.lease.Expires = o.until
			lease = o.lease
			return nil, nil
		}
		if len(b.byClient) >= maxOffers {
			if b.prune(now); len(b.byClient) >= maxOffers {
				return nil, fmt.Errorf("%d offers are open: %w", len(b.byClient), ErrExhausted)
			}
		}
		l, ops, err := b.choose(sn, network, c, k, now)
		if err != nil {
			return nil, err
		}
		l.Expires = now.Add(b.Hold)
		b.hold(&offer{lease: l, client: k, until: l.Expires})
		lease = l
		return ops, nil
	})
	return lease, err
}

// Commit implements Leases.
func (b *Book) Commit(ctx context.Context, network string, c Client, addr netip.Addr, d time.Duration) (Lease, error) {
	k := keyOf(network, c)
	var lease Lease
	noted := false
	_, err := b.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		now := b.now()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.index()
		v, has := lookup(sn, network, addr)
		mine := has && owns(v, k)
		var ops []state.Op
		switch {
		case has && !mine && LeaseBlocks(v, now):
			return nil, fmt.Errorf("%s is leased to another client: %w", addr, ErrNotYours)
		case mine && LeaseBlocks(v, now):
			if !c.canUse(addr) {
				return nil, fmt.Errorf("%s is of another link: %w", addr, ErrNotYours)
			}
			lease = leaseFrom(v)
		default:
			o := b.byAddr[offerKey{network, addr}]
			offered := o != nil && now.Before(o.until)
			switch {
			case offered && o.client != k:
				return nil, fmt.Errorf("%s is offered to another client: %w", addr, ErrNotYours)
			case !offered && !mine:
				return nil, fmt.Errorf("%s: %w", addr, ErrUnknown)
			}
			// Somebody who is not a DHCP client may have taken the address
			// since: ask for just this one.
			c := c
			c.Requested = addr
			l, more, err := b.choose(sn, network, c, k, now)
			if err != nil && !errors.Is(err, ErrExhausted) {
				return nil, err
			}
			if err != nil || l.Addr != addr {
				return nil, fmt.Errorf("%s was taken: %w", addr, ErrNotYours)
			}
			lease, ops = l, more
		}
		next := state.LeaseValue{Network: network, Addr: addr, MAC: c.MAC.String(), ClientID: slices.Clone(c.ID), Hostname: c.Hostname,
			Server: b.store.Self(), Granted: now.Unix(), Expires: expiry(now, d)}
		if mine {
			next.Granted = v.Granted
			if next.Hostname == "" {
				next.Hostname = v.Hostname
			}
		}
		lease.Expires = time.Unix(next.Expires, 0)
		// A client has one lease on a network: the one before is over.
		if old := b.leaseOf(sn, k); old != nil && old.Addr != addr {
			ops = append(ops, state.Del(state.Lease, state.KindLease, leaseKey(network, old.Addr)))
			b.forget(offerKey{network, old.Addr})
		}
		// Noted before it is durable, for the writes that come in the same
		// batch; should the batch fail, a look at the record tells.
		b.note(&next)
		noted = true
		return append(ops, state.Put(state.Lease, state.KindLease, leaseKey(network, addr), next)), nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		if noted {
			b.reindex(b.store.Snapshot())
		}
		return Lease{}, err
	}
	b.withdraw(k)
	return lease, nil
}

// Release implements Leases.
func (b *Book) Release(ctx context.Context, network string, c Client, addr netip.Addr) error {
	k := keyOf(network, c)
	b.mu.Lock()
	b.withdraw(k)
	b.mu.Unlock()
	if !addr.IsValid() {
		return nil
	}
	_, err := b.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		v, ok := lookup(sn, network, addr)
		if !ok || !owns(v, k) {
			return nil, fmt.Errorf("release %s: %w", addr, ErrUnknown)
		}
		return []state.Op{state.Del(state.Lease, state.KindLease, leaseKey(network, addr))}, nil
	})
	return err
}

// Decline implements Leases. Only a client that has the address, or was
// offered it, can take it out of service.
func (b *Book) Decline(ctx context.Context, network string, c Client, addr netip.Addr) error {
	k := keyOf(network, c)
	_, err := b.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		now := b.now()
		b.mu.Lock()
		defer b.mu.Unlock()
		v, ok := lookup(sn, network, addr)
		o := b.offerOf(k, now)
		if !(ok && owns(v, k)) && (o == nil || o.lease.Addr != addr) {
			return nil, fmt.Errorf("decline %s: %w", addr, ErrUnknown)
		}
		next := state.LeaseValue{Network: network, Addr: addr, MAC: c.MAC.String(), ClientID: slices.Clone(c.ID),
			Server: b.store.Self(), Granted: now.Unix(), Expires: expiry(now, b.Quarantine), Declined: true}
		return []state.Op{state.Put(state.Lease, state.KindLease, leaseKey(network, addr), next)}, nil
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.withdraw(k)
	return nil
}

// Lookup implements Leases.
func (b *Book) Lookup(_ context.Context, network string, c Client) (Lease, bool) {
	sn := b.store.Snapshot()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index()
	v := b.leaseOf(sn, keyOf(network, c))
	if v == nil || !LeaseBlocks(v, b.now()) {
		return Lease{}, false
	}
	return leaseFrom(v), true
}

// Usage returns the number of live leases on a network, and the free part of
// its addresses, negative when not known.
func (b *Book) Usage(network string) (leases int, free float64) {
	now := b.now().Unix()
	b.mu.Lock()
	b.index()
	for at, ref := range b.leases {
		if at.network == network && !ref.declined && ref.expires > now {
			leases++
		}
	}
	b.mu.Unlock()
	if b.Free == nil {
		return leases, -1
	}
	return leases, b.Free(network)
}

// sweepBatch bounds one transaction of Sweep.
const sweepBatch = 512

// Sweep removes leases that ran out, after their grace, and returns how many.
// Run calls it.
func (b *Book) Sweep(ctx context.Context) (int, error) {
	removed := 0
	for {
		n := 0
		_, err := b.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
			now := b.now()
			b.mu.Lock()
			defer b.mu.Unlock()
			b.index()
			b.prune(now)
			var ops []state.Op
			for at, ref := range b.leases {
				if ref.expires > now.Unix() {
					continue
				}
				v, ok := lookup(sn, at.network, at.addr)
				if !ok {
					b.forget(at)
					continue
				}
				if b.overdue(v, now) {
					ops = append(ops, state.Del(state.Lease, state.KindLease, leaseKey(at.network, at.addr)))
				}
				if len(ops) == sweepBatch {
					break
				}
			}
			n = len(ops)
			return ops, nil
		})
		if err != nil {
			return removed, fmt.Errorf("remove expired leases: %w", err)
		}
		removed += n
		if n < sweepBatch {
			return removed, nil
		}
	}
}

// overdue reports whether this node should remove a record.
func (b *Book) overdue(v *state.LeaseValue, now time.Time) bool {
	grace := b.Grace
	if v.Server != b.store.Self() {
		grace = b.ForeignGrace
	} else if v.Declined {
		grace = 0
	}
	return !now.Before(time.Unix(v.Expires, 0).Add(grace))
}

// leaseFrom describes a record. Mask and router are the scope's to know.
func leaseFrom(v *state.LeaseValue) Lease {
	return Lease{Addr: v.Addr, Expires: time.Unix(v.Expires, 0)}
}

// taken reports whether an address is anything but free for a client:
// offered to, or leased by, another one, or quarantined.
func (b *Book) taken(sn *state.Snapshot, network string, addr netip.Addr, k clientKey, now time.Time) bool {
	if o := b.byAddr[offerKey{network, addr}]; o != nil && o.client != k && now.Before(o.until) {
		return true
	}
	v, ok := lookup(sn, network, addr)
	return ok && LeaseBlocks(v, now) && !owns(v, k)
}

// choose asks pick, and does not take its word for what the tables say.
func (b *Book) choose(sn *state.Snapshot, network string, c Client, k clientKey, now time.Time) (Lease, []state.Op, error) {
	held := func(a netip.Addr) bool { return b.taken(sn, network, a, k, now) }
	p, err := b.pick(sn, network, c, held)
	if err != nil {
		return Lease{}, nil, err
	}
	if !p.Addr.Is4() || held(p.Addr) {
		return Lease{}, nil, fmt.Errorf("pick an address on network %s: %s is not free", network, p.Addr)
	}
	return Lease{Addr: p.Addr, Prefix: p.Prefix, Router: p.Router}, p.Ops, nil
}

// expiry rounds up, so that the table never ends a lease before the client does.
func expiry(now time.Time, d time.Duration) int64 {
	t := now.Add(d)
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}
