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
// services there are (a verdict map would validate the whole table again).
//
// Table bridge nodenet lifts the replies of local backends into the IP stack
// when the client sits on the same bridge; see README.md.
//
//	state.View ─► Derive ─► Table ─► Set ─► diff with what the kernel has ─► one transaction
package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Conntrack forgets flows, so that a UDP client whose flow was pinned to a
// backend that went (or to no backend at all) is balanced anew: a UDP entry
// lives as long as its client keeps sending.
type Conntrack interface {
	// Flush deletes the entries whose original destination is dst and port.
	// An invalid dst stands for every address of this host.
	Flush(proto uint8, dst netip.Addr, port uint16) error
}

// Options configure an LB. The zero value works in a process that may
// administer its network namespace.
type Options struct {
	Kernel    Kernel     // nil: the kernel's nftables, see OpenKernel
	Conntrack Conntrack  // nil: stale UDP flows are left alone
	Loopback  LoopbackIO // nil: the process's network namespace
	Logger    *slog.Logger
	Registry  prometheus.Registerer // nil: no metrics
}

// Status is the load balancer in one line, for `nodectl status`.
type Status struct {
	Desired, Applied uint64 // revisions
	OK               bool
	Detail           string
	Error, Fix       string
	Warnings         []string
}

// LB keeps the kernel equal to the newest Table. All methods are safe for
// concurrent use.
type LB struct {
	opt    Options
	log    *slog.Logger
	m      *metrics
	wake   chan struct{}
	loop   *loopback
	opened bool // the kernel handle is ours to close

	mu      sync.Mutex
	desired *Table
	status  Status
	took    time.Duration
	changed time.Time // when the kernel was last changed
	drops   []ForwardDrop

	// Owned by Run.
	applied  *Table // nil: unknown, observe first
	expected uint32 // generation of the ruleset after our last transaction
}

const (
	pollEvery  = 500 * time.Millisecond // how soon a foreign change is noticed
	tickEvery  = 30 * time.Second
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
	}
	m, err := newMetrics(o.Registry)
	if err != nil {
		return nil, err
	}
	b.m = m
	b.loop = newLoopback(b.log, o.Loopback)
	return b, nil
}

// Set replaces the desired table. It never blocks.
func (b *LB) Set(t Table) {
	b.mu.Lock()
	b.desired = &t
	b.status.Desired = t.Rev
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Run applies tables until ctx ends, then closes the loopback listeners and
// returns nil. The kernel keeps what it has. Run may be called once.
func (b *LB) Run(ctx context.Context) error {
	defer b.loop.close()
	if b.opened {
		defer b.opt.Kernel.Close()
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var retry <-chan time.Time
	backoff := backoffMin
	lastCheck := time.Now()
	first := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-retry:
		case <-poll.C:
			slow := time.Since(lastCheck) >= tickEvery
			if retry != nil || b.applied == nil || !slow && !b.disturbed() {
				continue
			}
			lastCheck = time.Now()
			if b.intact() {
				b.lookAround()
				if slow {
					b.loop.retry()
				}
				continue
			}
			b.applied = nil
		}
		b.mu.Lock()
		t := b.desired
		b.mu.Unlock()
		if t == nil {
			continue
		}
		err := b.apply(*t)
		b.note(*t, err)
		if err == nil {
			if first {
				first = false
				b.lookAround()
			}
			retry, backoff = nil, backoffMin
			continue
		}
		b.applied = nil // a failed transaction tells us nothing certain: look again
		retry = time.After(backoff)
		backoff = min(backoff*2, backoffMax)
	}
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
	ok, err := sameShape(b.opt.Kernel, b.applied.Ruleset())
	if err != nil || !ok {
		b.log.Warn("nftables rules were changed from outside, restoring them", "err", err)
		b.m.repairs.Inc()
		return false
	}
	b.expected = before
	return true
}

// apply makes the kernel equal to t in at most one transaction.
func (b *LB) apply(t Table) error {
	start := time.Now()
	k := b.opt.Kernel
	var ops Ops
	var next Table
	if b.applied != nil {
		next = arrange(t, slotsOf(b.applied))
		ops = diffTables(b.applied, &next)
	} else {
		have, err := k.Observe(true)
		if err != nil {
			return fmt.Errorf("list tables nodenet: %w", err)
		}
		next = arrange(t, slotsObserved(have))
		ops = diffObserved(k, have, next.Ruleset())
	}
	if !ops.Empty() {
		before, err := k.Generation()
		if err == nil && b.applied != nil && before != b.expected {
			// Somebody was here since: what we believe may be wrong.
			if ok, cerr := sameShape(k, b.applied.Ruleset()); cerr != nil || !ok {
				b.m.repairs.Inc()
				b.log.Warn("nftables rules were changed from outside, restoring them", "err", cerr)
				b.applied = nil
				return b.apply(t)
			}
		}
		if err := k.Apply(ops); err != nil {
			b.m.applies.WithLabelValues("error").Inc()
			return fmt.Errorf("program nftables (%d operations): %w", ops.Count(), err)
		}
		b.expected = before + 1
	} else if b.applied == nil {
		g, err := k.Generation()
		if err != nil {
			return fmt.Errorf("read the ruleset's generation: %w", err)
		}
		b.expected = g
	}
	took := time.Since(start)
	b.forget(b.applied, &next)
	b.applied = &next
	b.loop.set(next.Loopback)

	b.m.applies.WithLabelValues("ok").Inc()
	b.m.operations.Add(float64(ops.Count()))
	b.m.seconds.Observe(took.Seconds())
	b.m.services.Set(float64(t.services))
	b.m.backends.Set(float64(t.backends))
	b.mu.Lock()
	b.took = took
	if !ops.Empty() {
		b.changed = time.Now()
	}
	b.mu.Unlock()
	return nil
}

// forget drops conntrack entries that would keep UDP clients on a backend
// that is gone, or on none.
func (b *LB) forget(old, now *Table) {
	if b.opt.Conntrack == nil {
		return
	}
	for _, x := range staleUDP(old, now) {
		if err := b.opt.Conntrack.Flush(UDP, x.Addr, x.Port); err != nil {
			b.log.Warn("forget UDP flows", "addr", x.Addr, "port", x.Port, "err", err)
		}
	}
}

// note records the outcome and logs when it turns from good to bad or back.
func (b *LB) note(t Table, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.status
	b.status.OK = err == nil
	if err == nil {
		b.status.Applied = t.Rev
		b.status.Error, b.status.Fix = "", ""
		b.status.Warnings = t.Warnings
		if was.Error != "" {
			b.log.Info("nftables programmed again", "rev", t.Rev)
		}
		return
	}
	b.status.Error, b.status.Fix = err.Error(), fixFor(err)
	if was.Error != b.status.Error {
		b.log.Error("nftables not programmed", "rev", t.Rev, "err", err)
	}
}

func fixFor(err error) string {
	switch {
	case errors.Is(err, errNoPermission):
		return "run as root or with CAP_NET_ADMIN in this network namespace"
	case errors.Is(err, errNotSupported):
		return "load nf_tables, nft_nat, nft_masq, nft_fib_inet, nft_numgen and nft_reject_inet (kernel 5.9 or newer)"
	}
	return "see the log; the same change is retried every 10 seconds"
}

// Status reports the newest outcome. Its zero revision means that nothing
// was applied yet.
func (b *LB) Status() Status {
	lo := b.loop.problems()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Warnings = append(append([]string(nil), s.Warnings...), lo...)
	var ns, nb int
	if b.desired != nil {
		ns, nb = b.desired.services, b.desired.backends
	}
	s.Detail = fmt.Sprintf("%s, %s", count(ns, "service"), count(nb, "backend"))
	if !b.changed.IsZero() {
		s.Detail += ", applied " + ago(time.Since(b.changed)) + " ago"
	}
	if len(s.Warnings) > 0 {
		s.Detail += "; " + s.Warnings[0]
		if n := len(s.Warnings) - 1; n > 0 {
			s.Detail += fmt.Sprintf(" (and %d more)", n)
		}
	}
	blame(&s, b.drops)
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// ago rounds a duration to what a person reads at a glance.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return d.Truncate(time.Second).String()
}

// Cleanup deletes the tables inet nodenet and bridge nodenet of the calling
// thread's network namespace, and nothing else. It returns what it deleted;
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
	return k.DeleteTables()
}
