// Package lb balances services, opens node ports and published ports, and
// masquerades what leaves the cluster, all in the kernel's nftables.
//
// A packet's path; a box is a chain of table inet nodenet:
//
//	in ─► raw ─► dispatch ┬─ VIP ──────► vip ─► lb-N ─► DNAT ┐
//	      (no    (−100)   ├─ own addr ─► host ─► np-N ─► DNAT ├─► guard ─► route ─► post ─► out
//	      track)          └─ else ─────────────────────────── ┘   (−90)            (masquerade)
//	                                                           refuse, drop
//
// Services are data, not chains: map svc says how many slots a service has,
// map eps holds the slots, and chain lb-N picks one of N at random. Adding a
// backend is one element of each, in time that does not depend on how many
// services there are (a verdict map would validate the whole table again). What
// else a service asks for (clients that keep their backends, sources, other
// ways to choose a slot) is in its class, and the class leads to another chain.
//
// Table bridge nodenet lifts the replies of local backends into the IP stack
// when the client sits on the same bridge; see README.md. Tables inet and bridge
// nodenet-hold keep flows alive while somebody's flush of all rules is repaired.
//
// What the kernel has is kept as a book, service by service, so that a change
// costs what changed; at the start, and when networks change, everything is
// looked at.
//
//	state.View ─► Since ─► the services that changed ─► book ─► elements ─► one transaction
//	          └─► all ─► Table ─► diff with what the kernel has ────────┘
package lb

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nodenet/state"
)

// Options configure an LB. The zero value works in a process that may
// administer its network namespace.
type Options struct {
	Kernel    Kernel     // nil: the kernel's nftables, see OpenKernel
	Conntrack Conntrack  // nil: stale flows are left alone
	Loopback  LoopbackIO // nil: the process's network namespace
	Keeper    Keeper     // nil: what is published on loopback ends with Run
	Logger    *slog.Logger
	Registry  prometheus.Registerer // nil: no metrics
}

// wish is what a table is derived from.
type wish struct {
	v *state.View
	l Local
}

// LB keeps the kernel equal to what the newest view asks for. All methods are safe for
// concurrent use.
type LB struct {
	opt    Options
	log    *slog.Logger
	m      *metrics
	wake   chan struct{}
	loop   *loopback
	opened bool   // the kernel handle is ours to close
	watch  *watch // nil: changes are noticed by polling
	hold   *hold  // nil: `flush ruleset` may end flows

	mu        sync.Mutex
	desired   *wish
	sizes     [2]int // services and backends of the newest table
	status    Status
	warnings  []string  // of the book; never changed in place
	changed   time.Time // when the kernel was last changed
	drops     []ForwardDrop
	firewalls []string   // see Integrate
	passing   sync.Mutex // held while rules in others' chains change

	// Owned by Run.
	book     *book  // as the kernel is; nil: unknown, observe first
	expected uint32 // generation of the ruleset after our last transaction
}

const (
	manyOps    = 256                    // in one transaction: see transact
	pollEvery  = 500 * time.Millisecond // how soon a foreign change is noticed
	tickEvery  = 30 * time.Second
	checkEvery = 10 * time.Minute // how often the book is compared with one from scratch
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
)

// New opens the kernel's nftables and returns an LB that does nothing until
// Run. With Options.Kernel nil it needs CAP_NET_ADMIN, and the network
// namespace is the calling thread's.
func New(o Options) (*LB, error) {
	b := &LB{opt: o, log: o.Logger, wake: make(chan struct{}, 1)}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.opt.Kernel == nil {
		k, err := OpenKernel()
		if err != nil {
			return nil, err
		}
		b.opt.Kernel, b.opened = k, true
		if b.watch, err = openWatch(); err != nil {
			b.log.Warn("changes of single nftables elements from outside will not be noticed", "err", err)
		}
		if b.hold, err = openHold(); err != nil {
			b.log.Debug("translated TCP flows may be reset when somebody flushes all rules", "err", err)
		}
	}
	m, err := newMetrics(o.Registry)
	if err != nil {
		return nil, err
	}
	b.m = m
	b.loop = newLoopback(b.log, o.Loopback, o.Keeper)
	return b, nil
}

// Set says what to balance from now on. It never blocks. What it costs later
// is the difference to the view before; the first one, and those that come
// with another Local or with changed networks, cost a walk over everything.
func (b *LB) Set(v *state.View, l Local) {
	b.mu.Lock()
	b.desired = &wish{v, l}
	b.status.Desired = v.Rev
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Run applies tables until ctx ends, then closes the loopback listeners, or
// leaves them with the Keeper, and returns nil. The kernel keeps what it has. Run may be called once.
func (b *LB) Run(ctx context.Context) error {
	defer b.loop.close()
	if b.opened {
		defer b.opt.Kernel.Close()
		defer b.hold.close()
	}
	if b.watch != nil {
		var reading sync.WaitGroup
		reading.Go(b.watch.read)
		defer reading.Wait()
		defer b.watch.close()
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var retry <-chan time.Time
	backoff := backoffMin
	lastCheck, lastCompared := time.Now(), time.Now()
	first := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-retry:
		case <-b.watch.signal():
			if retry != nil || b.book == nil || b.watch.upTo(b.expected) || !b.disturbed() {
				continue
			}
			if before := b.expected; b.intact() {
				if b.watch.reshaped(before) {
					b.lookAround()
				}
				continue
			}
			b.book = nil
		case <-poll.C:
			b.loop.tend(time.Now())
			slow := time.Since(lastCheck) >= tickEvery
			if b.book != nil {
				if err := b.m.policy.count(b.opt.Kernel); err != nil {
					b.log.Debug("denied packets not counted", "err", err)
				}
			}
			if retry != nil || b.book == nil || !slow && !b.disturbed() {
				continue
			}
			lastCheck = time.Now()
			if b.intact() {
				b.lookAround()
				if slow {
					b.loop.retry()
				}
				if time.Since(lastCompared) < checkEvery {
					continue
				}
				lastCompared = time.Now()
				if b.agrees() {
					continue
				}
			}
			b.book = nil
		}
		b.mu.Lock()
		w := b.desired
		b.mu.Unlock()
		if w == nil {
			continue
		}
		err := b.apply(w)
		b.note(w.v.Rev, err)
		if err == nil {
			if first {
				first = false
				b.lookAround()
			}
			retry, backoff = nil, backoffMin
			continue
		}
		b.book = nil // a failed transaction tells us nothing certain: look again
		retry = time.After(backoff)
		backoff = min(backoff*2, backoffMax)
	}
}

// agrees reports whether the book says what one from scratch would say.
func (b *LB) agrees() bool {
	what := b.book.agrees()
	if what == "" {
		return true
	}
	b.m.disagreements.Inc()
	b.log.Error("programmed services were wrong and are made anew", "what", what, "rev", b.book.view.Rev)
	return false
}

// disturbed reports whether somebody changed any nftables since we did.
func (b *LB) disturbed() bool {
	g, err := b.opt.Kernel.Generation()
	return err != nil || g != b.expected
}

// intact reports whether our tables, chains, rules and sets are still there,
// without listing elements.
func (b *LB) intact() bool {
	before, err := b.opt.Kernel.Generation()
	if err != nil {
		return false
	}
	return b.unchanged(before)
}

// unchanged reports whether what happened up to generation g left our tables
// alone; then g is what is expected.
func (b *LB) unchanged(g uint32) bool {
	by, elements := "", false
	touched, known := b.watch.between(b.expected, g)
	for _, t := range touched {
		by, elements = t.by, elements || t.elements
	}
	ok, err := true, error(nil)
	switch {
	case elements:
		ok = false
	case known && len(touched) == 0 && g != b.expected:
		// Somebody else's tables alone.
	case !known && b.watch != nil && g != b.expected:
		ok = false // what was told is lost: list everything
	default:
		ok, err = sameShape(b.opt.Kernel, b.book.outline().Ruleset())
	}
	if !ok || err != nil {
		b.log.Warn("nftables rules were changed from outside, restoring them", "by", by, "err", err)
		b.m.repairs.Inc()
		return false
	}
	b.expected = g
	b.watch.forget(g)
	return true
}

// apply makes the kernel equal to what w asks for, in at most one transaction.
func (b *LB) apply(w *wish) error {
	start := time.Now()
	k := b.opt.Kernel
	if b.book != nil {
		// Before the book is changed, since it says what was there.
		if g, err := k.Generation(); err == nil && g != b.expected && !b.unchanged(g) {
			b.book = nil
		}
	}
	before := b.expected
	if b.book == nil {
		// Before the tables are listed: who changes them later is noticed.
		g, err := k.Generation()
		if err != nil {
			return fmt.Errorf("read the ruleset's generation: %w", err)
		}
		before = g
	}
	now, ops, stale, err := b.plan(w)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.sizes = [2]int{now.services, now.backends}
	b.mu.Unlock()
	switch {
	case !ops.Empty():
		if err := b.transact(before, ops); err != nil {
			b.m.applies.WithLabelValues("error").Inc()
			return fmt.Errorf("program nftables (%d operations): %w", ops.Count(), err)
		}
		b.expected = before + 1
		b.watch.forget(before)
	case b.book == nil:
		b.expected = before
	}
	took := time.Since(start)
	b.keepHold(now, ops)
	b.forget(stale, w.l.NodeAddrs)
	b.book = now
	b.loop.set(now.pub.loopback)

	b.m.applied.Inc()
	b.m.operations.Add(float64(ops.Count()))
	b.m.seconds.Observe(took.Seconds())
	b.m.services.Set(float64(now.services))
	b.m.backends.Set(float64(now.backends))
	b.m.policy.show(now.pol, len(w.v.Policies))
	b.mu.Lock()
	b.warnings = now.warningsNow()
	if w := now.pol.warnings(); len(w) > 0 {
		b.warnings = slices.Concat(b.warnings, w)
	}
	if !ops.Empty() {
		b.changed = time.Now()
	}
	b.mu.Unlock()
	return nil
}

// transact performs ops on the ruleset of generation before. Where the
// messages about them would cost more than to ask afterwards, it does not
// listen meanwhile.
func (b *LB) transact(before uint32, ops Ops) error {
	if ops.Count() < manyOps || !b.watch.leave() {
		return b.opt.Kernel.Apply(ops)
	}
	err := b.opt.Kernel.Apply(ops)
	if err := b.watch.join(); err != nil {
		b.log.Warn("changes of nftables from outside are noticed late", "err", err)
	}
	// The kernel counts a transaction before it tells of it: whoever came
	// between us has been counted, though half of it may have been told.
	if g, gerr := b.opt.Kernel.Generation(); err == nil && gerr == nil && g == before+1 {
		b.watch.skip(g)
	} else {
		b.watch.lose()
	}
	return err
}

// plan returns the book of w, the transaction that leads there and what says
// which flows are stale. Where it can, it changes the book that there is, and
// then only what differs between the two views is looked at.
func (b *LB) plan(w *wish) (*book, Ops, judge, error) {
	if b.book != nil && b.book.sc.l.equal(&w.l) {
		if c := w.v.Since(b.book.view); b.book.follow(w.v, c) {
			ops, stale := b.book.change(w.v, c)
			return b.book, ops, stale, nil
		}
	}
	now := newBook(w.v, w.l)
	var ops Ops
	var stale judge
	var next Table
	if b.book != nil {
		old := b.book.table()
		next = arrange(now.table(), slotsOf(&old))
		ops, stale = diffTables(&old, &next), between(&old, &next)
	} else {
		have, err := b.opt.Kernel.Observe(true)
		if err != nil {
			return nil, Ops{}, judge{}, fmt.Errorf("list tables nodenet: %w", err)
		}
		had := slotsObserved(have)
		next = arrange(now.table(), had)
		ops, stale = diffObserved(b.opt.Kernel, have, next.Ruleset()), everything(&next, had)
	}
	now.adopt(&next)
	return now, ops, stale, nil
}

// Cleanup deletes the tables inet nodenet and bridge nodenet of the calling
// thread's network namespace and our rules in other firewalls' chains, and
// nothing else. It returns what it deleted;
// tables that are not there are no error.
func Cleanup(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	gone, err := k.DeleteTables()
	if err != nil {
		return gone, err
	}
	have, err := k.Places()
	if err != nil {
		return gone, err
	}
	ops := planFirewalls(have, nil, nil)
	if err := k.Pass(ops); err != nil {
		return gone, err
	}
	for _, o := range ops {
		gone = append(gone, "nftables rule "+strings.TrimPrefix(o.String(), "delete rule "))
	}
	return gone, nil
}
