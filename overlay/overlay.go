// Package overlay makes the kernel carry the cluster's networks: a bridge per
// network, one VXLAN device or plain routes towards the other nodes, and the
// veth pairs of attachments.
//
//	state.View ─► Derive ─► Plan ─► Set ─► diff(Plan, Observed) ─► Kernel
//	                                             ▲                   │
//	                netlink events, 30 s tick ───┴───── Observe ◄────┘
//
//	workload ──veth── nn-pods (bridge, gateway address)
//	                     │ route 10.244.2.0/24 via 192.168.1.12 dev nv-pods onlink
//	                  nv-pods (vxlan, neighbour + FDB entry per node) ── underlay ── node2
//
// The package is level-triggered: it compares what the plan wants with what
// the kernel has and does the difference, so that applying a plan twice does
// nothing and a restart touches nothing. It owns links with the alias
// "nodenet:<network>", routes with protocol 78 and the loopback address
// labelled "lo:nodenet", and touches nothing else.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How the package marks what it owns.
const (
	// Protocol is the routing protocol number of our routes (rtnetlink's
	// rtm_protocol; 78 is unassigned in iproute2's rt_protos).
	Protocol = 78
	// AliasPrefix starts the alias (IFLA_IFALIAS) of each link we made; the
	// network's name follows.
	AliasPrefix = "nodenet:"
	// LoLabel is the label of the addresses that we put on lo.
	LoLabel = "lo:nodenet"
)

const (
	tick       = 30 * time.Second
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second
	// eventGap is the least time between two passes that events alone cause,
	// so that somebody who fights over an object with us cannot make us spin.
	eventGap = 100 * time.Millisecond
	// maxPasses bounds observe-diff-apply rounds within one reconcile. The
	// kernel may take routes along with an address or a link that goes: the
	// next pass sees and repairs that.
	maxPasses = 4
)

// Options of New. The zero value is usable: the real kernel in the network
// namespace of the calling thread, no metrics, no log, no record of sysctls.
type Options struct {
	Kernel   Kernel // nil: netlink in the current network namespace
	Logger   *slog.Logger
	Registry prometheus.Registerer
	// StateDir is where sysctl.json keeps the values that sysctls had before
	// the first change, for Cleanup. Empty: they are not recorded.
	StateDir string
}

// Overlay reconciles the kernel with the newest Plan. It is safe for
// concurrent use.
type Overlay struct {
	kernel  Kernel
	log     *slog.Logger
	metrics *metrics
	sysctls sysctlLog
	closer  func()

	// opMu serialises changes: reconcile passes and attachments.
	opMu sync.Mutex

	mu       sync.Mutex
	plan     *Plan // nil before the first Set
	observed Observed
	status   Status
	// settled says that the plan was once reached; what a later pass has to
	// do without a new plan is drift.
	settled bool
	changed chan struct{} // closed and replaced after each pass
	kick    chan struct{}
}

// Status is what the overlay says about itself.
type Status struct {
	Desired, Applied uint64 // plan revisions: wanted, and last seen complete in the kernel
	OK               bool
	Detail           string // one line for people: "2 peers, 2 routes, no drift"
	Error, Fix       string // what is wrong now, and what to do about it
	Drift            uint64 // operations spent on repairing what others changed, since start
}

// New returns an Overlay that does nothing until Set and Run. With a nil
// Kernel it opens netlink sockets in the network namespace of the calling
// thread and keeps to it; Close releases them.
func New(o Options) (*Overlay, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ov := &Overlay{
		kernel:  o.Kernel,
		log:     o.Logger,
		sysctls: sysctlLog{dir: o.StateDir},
		changed: make(chan struct{}),
		kick:    make(chan struct{}, 1),
		closer:  func() {},
		status:  Status{OK: true, Detail: "no plan yet"},
	}
	m, err := newMetrics(o.Registry)
	if err != nil {
		return nil, err
	}
	ov.metrics = m
	if ov.kernel == nil {
		k, err := newNetlinkKernel()
		if err != nil {
			return nil, err
		}
		ov.kernel, ov.closer = k, k.Close
	}
	return ov, nil
}

// Close releases the netlink sockets that New opened. Call it after Run has
// returned. Kernel state stays.
func (o *Overlay) Close() { o.closer() }

// Set replaces the plan. It never blocks. A plan that wants the same as one
// that is reached costs no look at the kernel: most revisions of the cluster's
// tables change endpoints, of which the overlay knows nothing, and drift is
// found by events and the tick.
func (o *Overlay) Set(p Plan) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status.Desired = p.Rev
	same := o.plan != nil && o.plan.equal(&p)
	o.plan = &p
	if same && o.settled {
		o.status.Applied = p.Rev
		o.passed()
		return
	}
	o.settled = o.settled && same
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

// passed wakes whoever waits for a pass. The caller holds o.mu.
func (o *Overlay) passed() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// Run reconciles until ctx ends, and then returns nil with the kernel state
// left in place: a restart interrupts no traffic.
func (o *Overlay) Run(ctx context.Context) error {
	events := make(chan struct{}, 1)
	var watch sync.WaitGroup
	watch.Go(func() {
		o.kernel.Watch(ctx, func() {
			select {
			case events <- struct{}{}:
			default:
			}
		})
	})
	defer watch.Wait()

	var backoff time.Duration
	var last time.Time // end of the last pass
	timer := time.NewTimer(tick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.kick:
		case <-timer.C:
		case <-events:
			if backoff > 0 {
				continue // the timer is near
			}
			if d := eventGap - time.Since(last); d > 0 {
				timer.Reset(d)
				continue
			}
		}
		err := o.reconcile(ctx)
		last = time.Now()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			backoff = min(max(backoff*2, backoffMin), backoffMax)
			timer.Reset(backoff)
		default:
			backoff = 0
			timer.Reset(tick)
		}
	}
}

// reconcile makes the kernel equal to the plan and verifies it.
func (o *Overlay) reconcile(ctx context.Context) error {
	o.mu.Lock()
	p, settled := o.plan, o.settled
	o.mu.Unlock()
	if p == nil {
		return nil
	}
	start := time.Now()
	ops, obs, err := o.apply(ctx, p)
	o.metrics.seconds.Observe(time.Since(start).Seconds())

	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.status
	o.observed = obs
	if settled && ops > 0 {
		o.status.Drift += uint64(ops)
		o.metrics.drift.Add(float64(ops))
		o.log.Warn("repaired what somebody else changed", "operations", ops, "rev", p.Rev)
	}
	if err == nil {
		o.status.Applied = p.Rev
		if o.settled = o.plan == p || o.plan.equal(p); o.settled {
			o.status.Applied = o.plan.Rev
		}
	} else {
		o.settled = false
		o.metrics.errors.Inc()
	}
	o.metrics.peers.Set(float64(p.peers()))
	o.metrics.routes.Set(float64(p.peerRoutes()))
	o.describe(p, err)
	if o.status.Error != before.Error {
		if o.status.Error != "" {
			o.log.Error("overlay is not as wanted", "rev", p.Rev, "err", o.status.Error, "fix", o.status.Fix)
		} else {
			o.log.Info("overlay is as wanted again", "rev", p.Rev)
		}
	}
	o.passed()
	return err
}

// apply runs observe-diff-execute until nothing is left to do. Operations
// that fail do not keep the rest from being tried.
func (o *Overlay) apply(ctx context.Context, p *Plan) (ops int, obs Observed, err error) {
	o.opMu.Lock()
	defer o.opMu.Unlock()
	for range maxPasses {
		if err := ctx.Err(); err != nil {
			return ops, obs, err
		}
		if obs, err = o.kernel.Observe(p); err != nil {
			return ops, obs, fmt.Errorf("observe the kernel: %w", err)
		}
		todo, conflicts := diff(p, &obs)
		if len(todo) == 0 {
			return ops, obs, errors.Join(conflicts...)
		}
		if err := o.sysctls.record(p, &obs); err != nil {
			return ops, obs, err
		}
		errs := conflicts
		for _, op := range todo {
			if err := ctx.Err(); err != nil {
				return ops, obs, err
			}
			o.metrics.ops.WithLabelValues(op.kind).Inc()
			ops++
			if err := op.do(o.kernel); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", op.text, err))
				continue
			}
			o.log.Debug("overlay", "op", op.text)
		}
		if len(errs) > 0 {
			return ops, obs, errors.Join(errs...)
		}
	}
	return ops, obs, fmt.Errorf("the kernel still differs from the plan after %d passes: somebody else changes what nodenet owns", maxPasses)
}

// describe fills the status for people. The caller holds o.mu.
func (o *Overlay) describe(p *Plan, err error) {
	s := &o.status
	s.OK, s.Error, s.Fix = true, "", ""
	drift := "no drift"
	if s.Drift > 0 {
		drift = fmt.Sprintf("%d repaired", s.Drift)
	}
	s.Detail = fmt.Sprintf("%s, %s, %s", count(p.peers(), "peer"), count(p.peerRoutes(), "route"), drift)
	if len(p.Problems) > 0 {
		s.OK, s.Error, s.Fix = false, p.Problems[0].Text, p.Problems[0].Fix
		if n := len(p.Problems); n > 1 {
			s.Error = fmt.Sprintf("%s (and %d more)", s.Error, n-1)
		}
	}
	if err != nil {
		s.OK, s.Error = false, oneLine(err)
		s.Fix = fixFor(err)
	}
}

// Status returns the state after the last pass.
func (o *Overlay) Status() Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.status
}

// oneLine returns the first errors of a joined one, and how many more there are.
func oneLine(err error) string {
	const most = 3
	lines := strings.Split(err.Error(), "\n")
	if n := len(lines) - most; n > 0 {
		lines = append(lines[:most], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(lines, "; ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
