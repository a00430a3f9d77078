package check

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How many questions may be under way at once. A check that hangs holds its
// place for its timeout, which is never longer than its interval.
const (
	maxAtOnce = 1024
	maxExecs  = 64
)

// storeAgain is how long to wait after a result could not be stored.
const storeAgain = time.Second

// Options says where results come from and go to.
type Options struct {
	// Load returns the result that is stored for a duty.
	Load func(key string) (Result, bool)
	// Store keeps a new one. It is called from many goroutines.
	Store    func(ctx context.Context, key string, r Result) error
	Logger   *slog.Logger
	Registry prometheus.Registerer // nil: none

	run func(context.Context, Probe) error // of tests
}

// Runner makes checks. Its methods are safe for concurrent use.
type Runner struct {
	opt     Options
	metrics *metrics
	slots   chan struct{}
	execs   chan struct{}

	mu       sync.Mutex
	checkers map[string]*checker
	ctx      context.Context // of Run; nil before
	done     sync.WaitGroup
}

// New returns a runner that does nothing before Run.
func New(o Options) (*Runner, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.run == nil {
		o.run = func(ctx context.Context, p Probe) error { return p.Run(ctx) }
	}
	r := &Runner{opt: o, slots: make(chan struct{}, maxAtOnce), execs: make(chan struct{}, maxExecs), checkers: map[string]*checker{}}
	var err error
	r.metrics, err = newMetrics(o.Registry)
	return r, err
}

// checker is the goroutine of one duty.
type checker struct {
	key    string
	stop   context.CancelFunc
	update chan Duty // one deep: the newest
	duty   Duty      // the last that was handed over
}

// Run serves until ctx ends, and then until all checks have returned.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	r.ctx = ctx
	for _, c := range r.checkers {
		r.start(c)
	}
	r.mu.Unlock()
	<-ctx.Done()
	r.done.Wait()
	return nil
}

// Set makes the duties those given, by key. One that is not among them ends
// without a word: what to do with its result is the caller's affair.
func (r *Runner) Set(duties map[string]Duty) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, c := range r.checkers {
		if _, ok := duties[key]; !ok {
			delete(r.checkers, key)
			if c.stop != nil {
				c.stop()
			}
		}
	}
	for key, d := range duties {
		c, ok := r.checkers[key]
		switch {
		case !ok:
			c = &checker{key: key, update: make(chan Duty, 1), duty: d}
			r.checkers[key] = c
			if r.ctx != nil {
				r.start(c)
			}
		case !c.duty.equal(d):
			c.duty = d
			select {
			case <-c.update: // nobody has seen it
			default:
			}
			c.update <- d
		}
	}
	r.metrics.duties.Set(float64(len(r.checkers)))
}

// start is called with the mutex held.
func (r *Runner) start(c *checker) {
	ctx, stop := context.WithCancel(r.ctx)
	c.stop = stop
	r.done.Add(1)
	d := c.duty
	go func() {
		defer r.done.Done()
		defer stop()
		r.serve(ctx, c, d)
	}()
}

// serve makes one duty's checks.
func (r *Runner) serve(ctx context.Context, c *checker, d Duty) {
	var kept *Result
	if k, ok := r.opt.Load(c.key); ok {
		kept = &k
	}
	now := time.Now()
	h := begin(d, kept, now)
	failing := false
	defer func() { r.metrics.turn(failing, false) }()
	// Those that begin together must not ask together for ever after.
	next := now.Add(rand.N(min(h.duty.Interval, time.Second)/4 + 1))
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		again := r.keep(ctx, c.key, h)
		r.metrics.turn(failing, !h.ok)
		failing = !h.ok
		_, wake := h.step(time.Now())
		if h.duty.Probe.Type != "" {
			wake = earlier(wake, next)
		}
		wake = earlier(wake, again)
		if wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(wake))
		}
		select {
		case <-timer.C:
		case d := <-c.update:
			before := h.duty.Probe
			h.update(d, time.Now())
			if h.duty.Probe.Type != before.Type || h.duty.Probe.Addr != before.Addr {
				next = time.Now()
			}
			next = earlier(next, time.Now().Add(h.duty.Interval))
			continue
		case <-ctx.Done():
			return
		}
		now = time.Now()
		if h.duty.Probe.Type == "" || now.Before(next) {
			continue
		}
		next = now.Add(jitter(h.duty.Interval))
		err := r.ask(ctx, h.duty)
		if ctx.Err() != nil {
			return
		}
		if h.note(err, time.Now()) {
			r.metrics.changes.Inc()
			if h.ok {
				r.opt.Logger.Info("backend healthy again", "check", c.key)
			} else {
				r.opt.Logger.Warn("backend fails its check", "check", c.key, "err", h.why)
			}
		}
	}
}

// keep stores what is known, if that changed. It returns when to try again.
func (r *Runner) keep(ctx context.Context, key string, h *history) time.Time {
	res, changed := h.result(time.Now())
	if !changed {
		return time.Time{}
	}
	if err := r.opt.Store(ctx, key, res); err != nil {
		if ctx.Err() == nil {
			r.opt.Logger.Error("health result not written", "check", key, "err", err)
		}
		return time.Now().Add(storeAgain)
	}
	h.kept = &res
	return time.Time{}
}

// ask makes one check once there is room for it.
func (r *Runner) ask(ctx context.Context, d Duty) error {
	slots := r.slots
	if d.Probe.Type == "exec" {
		slots = r.execs
	}
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-slots }()
	limited, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	start := time.Now()
	err := r.opt.run(limited, d.Probe)
	if ctx.Err() == nil {
		r.metrics.ran(d.Probe.Type, err, time.Since(start))
	}
	return err
}

// jitter is d, give or take a tenth.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// earlier is the first of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
