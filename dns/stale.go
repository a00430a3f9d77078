package dns

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// staleOptions say how answers are used after their end (RFC 8767). The zero
// value: not at all.
type staleOptions struct {
	keep    time.Duration // after the end
	verify  bool          // ask first, and answer so only when that fails
	timeout time.Duration // of asking first; 0: as long as it takes
	ttl     uint32        // of stale answers, seconds
	recheck time.Duration // pause after a failed refresh
}

// Defaults of RFC 8767 sections 4 and 5.
const (
	staleKeep    = time.Hour
	staleTTL     = 30
	staleRecheck = 30 * time.Second
)

// parse reads `serve_stale [DURATION] [immediate [TTL [RECHECK]] | verify
// [TIMEOUT [TTL [RECHECK]]]]`.
func (s *staleOptions) parse(p *parser, o config.Directive) {
	*s = staleOptions{keep: staleKeep, ttl: staleTTL, recheck: staleRecheck}
	args := o.Args
	if len(args) > 0 && args[0] != "immediate" && args[0] != "verify" {
		s.keep, _ = p.Duration(o, "time", args[0], time.Second)
		args = args[1:]
	}
	if len(args) == 0 {
		return
	}
	switch args[0] {
	case "verify":
		s.verify = true
		if args = args[1:]; len(args) > 0 {
			s.timeout, _ = p.Duration(o, "timeout", args[0], 0)
			args = args[1:]
		}
	case "immediate":
		args = args[1:]
	default:
		p.Errorf(o.Pos, "cache: serve_stale %q is not known, write immediate or verify", args[0])
		return
	}
	if len(args) > 0 {
		ttl, _ := p.Duration(o, "TTL", args[0], 0)
		s.ttl, args = uint32(ttl/time.Second), args[1:]
	}
	if len(args) > 0 {
		s.recheck, _ = p.Duration(o, "pause", args[0], 0)
		args = args[1:]
	}
	if len(args) > 0 {
		p.Errorf(o.Pos, "cache: serve_stale: too many arguments from %q on", args[0])
	}
}

// reply copies a stale answer.
func (s *staleOptions) reply(e *entry) *wire.Msg {
	m := e.reply(e.stored, true)
	for _, section := range [][]wire.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl = s.ttl
		}
	}
	return m
}

// prefetchOptions say which answers are asked for again before their end. The
// zero value: none.
type prefetchOptions struct {
	amount  uint32        // hits
	gap     time.Duration // longest pause between them
	percent int           // of the lifetime that is left
}

// parse reads `prefetch AMOUNT [DURATION] [PERCENTAGE%]`.
func (f *prefetchOptions) parse(p *parser, o config.Directive) {
	*f = prefetchOptions{gap: time.Minute, percent: 10}
	if !p.Args(o, 1, 3, "prefetch AMOUNT [DURATION] [PERCENTAGE%]") {
		return
	}
	n, _ := p.Number(o, "amount", o.Args[0], 0, 1<<30)
	f.amount = uint32(n)
	for _, a := range o.Args[1:] {
		if text, ok := strings.CutSuffix(a, "%"); ok {
			n, err := strconv.Atoi(text)
			if err != nil || n < 10 || n > 90 {
				p.Errorf(o.Pos, "prefetch: %q is not a percentage from 10%% to 90%%", a)
			}
			f.percent = n
			continue
		}
		f.gap, _ = p.Duration(o, "pause", a, time.Second)
	}
}

// due counts a hit and reports whether the answer is popular and near its
// end.
func (f *prefetchOptions) due(e *entry, now time.Time) bool {
	if f.amount == 0 {
		return false
	}
	if last := e.last.Swap(now.UnixNano()); now.UnixNano()-last > int64(f.gap) {
		e.hits.Store(0)
	}
	hits := e.hits.Add(1)
	life, left := e.expires.Sub(e.stored), e.expires.Sub(now)
	return hits >= f.amount && (left <= life*time.Duration(f.percent)/100 || left <= time.Second)
}

// refresher asks again in the background: once at a time for each question,
// and not too many at once. The zero value is ready.
type refresher struct {
	mu      sync.Mutex
	running map[cacheKey]bool
	failed  map[cacheKey]time.Time // until when a failure counts
	ctx     context.Context        // ends with the block; nil: it does not run
	wg      sync.WaitGroup
}

const (
	maxRefresh     = 256
	refreshTimeout = 5 * time.Second
)

// pending reports whether a refresh is under way or has just failed.
func (r *refresher) pending(k cacheKey, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running[k] || now.Before(r.failed[k])
}

// begin claims a question. It is given up with end.
func (r *refresher) begin(k cacheKey, now time.Time) (ctx context.Context, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx == nil || r.running[k] || now.Before(r.failed[k]) || len(r.running) >= maxRefresh {
		return nil, false
	}
	if r.running == nil {
		r.running = make(map[cacheKey]bool)
	}
	r.running[k] = true
	r.wg.Add(1)
	return r.ctx, true
}

func (r *refresher) end(k cacheKey, until time.Time, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, k)
	if delete(r.failed, k); until.After(now) {
		if r.failed == nil || len(r.failed) >= maxRefresh*16 {
			r.failed = make(map[cacheKey]time.Time)
		}
		r.failed[k] = until
	}
	r.wg.Done()
}

// Run ends the refreshes with the block.
func (c *cache) Run(ctx context.Context) {
	c.refresh.mu.Lock()
	c.refresh.ctx = ctx
	c.refresh.mu.Unlock()
	<-ctx.Done()
	c.refresh.mu.Lock()
	c.refresh.ctx = nil // nobody begins any more
	c.refresh.mu.Unlock()
	c.refresh.wg.Wait()
}

// again asks in the background and keeps what comes.
func (c *cache) again(q *plugin.Query, k cacheKey, next plugin.Handler) <-chan *wire.Msg {
	ctx, ok := c.refresh.begin(k, c.now())
	if !ok {
		return nil
	}
	ask := q.With(q.Msg.Question[0].Name, q.Type, q.Class)
	ask.Trace = nil
	out := make(chan *wire.Msg, 1)
	go func() {
		defer close(out)
		ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
		defer cancel()
		until := time.Time{}
		r, err := next(ctx, ask)
		now := c.now()
		if err != nil || r == nil || r.Rcode == wire.RcodeServerFailure || r.Rcode == wire.RcodeRefused {
			until = now.Add(c.stale.recheck) // the old answer stays
		} else if !ask.Own {
			c.keep(k, r, now)
			out <- r
		}
		c.refresh.end(k, until, now)
	}()
	return out
}

// verified asks before a stale answer is used; nil: that failed, or took too
// long and goes on in the background.
func (c *cache) verified(ctx context.Context, q *plugin.Query, k cacheKey, next plugin.Handler) *wire.Msg {
	answer := c.again(q, k, next)
	if answer == nil {
		return nil
	}
	if c.stale.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.stale.timeout)
		defer cancel()
	}
	select {
	case <-answer:
	case <-ctx.Done():
		return nil
	}
	now := c.now()
	if e := c.find(k, now); e != nil && now.Before(e.expires) {
		q.Source = "forward"
		return e.reply(now, c.keepTTL)
	}
	return nil
}
