package dns

import (
	"container/list"
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// Defaults and bounds of the cache.
const (
	cacheEntries     = 9984
	cacheBytes       = 32 << 20 // about, each of success and denial
	cacheMaxTTL      = time.Hour
	cacheMaxNegative = 30 * time.Minute
	cacheServfail    = time.Second // RFC 9520 section 3.2: at least one
	cacheShards      = 16
)

// cache keeps what others answered. What the node knows by itself is never
// cached: it is faster than the cache and must not be stale.
type cache struct {
	zones    plugin.Zones
	success  *store // nil: disabled
	denial   *store
	noGood   plugin.Zones // zones whose positive answers are not kept
	noBad    plugin.Zones
	servfail time.Duration
	keepTTL  bool
	stale    staleOptions
	prefetch prefetchOptions
	now      func() time.Time

	block   *block
	metrics *metrics
	refresh refresher
}

func parseCache(p *parser, d config.Directive) plugin.Plugin {
	success := storeOptions{entries: cacheEntries, max: cacheMaxTTL}
	denial := storeOptions{entries: cacheEntries, max: cacheMaxNegative}
	c := &cache{servfail: cacheServfail, now: time.Now}
	args := d.Args
	if len(args) > 0 && args[0] != "" && args[0][0] >= '0' && args[0][0] <= '9' && !plugin.IsPrefix(args[0]) {
		if ttl, ok := p.Duration(d, "TTL", args[0], time.Second); ok {
			success.max, denial.max = ttl, ttl
		}
		args = args[1:]
	}
	c.zones = p.ZoneArgs(d, args)
	for _, o := range d.Block {
		switch o.Name {
		case "success":
			success.parse(p, o)
		case "denial":
			denial.parse(p, o)
		case "servfail":
			if p.Args(o, 1, 1, "servfail DURATION") {
				c.servfail, _ = p.Duration(o, "time", o.Args[0], 0)
				if c.servfail > 5*time.Minute {
					p.Errorf(o.Pos, "cache: servfail %s is more than 5m (RFC 9520)", o.Args[0])
				}
			}
		case "disable":
			if !p.Args(o, 1, -1, "disable success|denial [ZONE...]") {
				continue
			}
			switch zs := p.ZoneArgs(o, o.Args[1:]); o.Args[0] {
			case "success":
				c.noGood = append(c.noGood, zs...)
			case "denial":
				c.noBad = append(c.noBad, zs...)
			default:
				p.Errorf(o.Pos, "cache: disable %q is not known, write success or denial", o.Args[0])
			}
		case "keepttl":
			c.keepTTL = p.Args(o, 0, 0, "keepttl")
		case "serve_stale":
			c.stale.parse(p, o)
		case "serve_stale_policy":
			p.Errorf(o.Pos, "cache: serve_stale_policy is not supported, a newer denial counts: remove it")
		case "prefetch":
			c.prefetch.parse(p, o)
		default:
			p.Unknown(d, o, "success", "denial", "servfail", "disable", "keepttl", "serve_stale", "prefetch")
		}
	}
	success.stale, denial.stale = c.stale.keep, c.stale.keep
	c.success, c.denial = newStore(success), newStore(denial)
	return c
}

// storeOptions are CAPACITY [TTL] [MINTTL] of success or denial.
type storeOptions struct {
	entries  int
	max, min time.Duration
	stale    time.Duration // entries are kept for so long after their end
}

func (s *storeOptions) parse(p *parser, o config.Directive) {
	if !p.Args(o, 1, 3, o.Name+" CAPACITY [TTL] [MINTTL]") {
		return
	}
	s.entries, _ = p.Number(o, "capacity", o.Args[0], 1, 1<<24)
	if len(o.Args) > 1 {
		s.max, _ = p.Duration(o, "TTL", o.Args[1], time.Second)
	}
	if len(o.Args) > 2 {
		s.min, _ = p.Duration(o, "minimal TTL", o.Args[2], 0)
	}
}

func (c *cache) attach(s *Server, b *block) { c.block, c.metrics = b, s.metrics }

func (c *cache) Serve(ctx context.Context, q *plugin.Query, next plugin.Handler) (*wire.Msg, error) {
	// An answer without recursion, or to options of its own, is nobody else's.
	if c.zones.Match(q.Name) == "" || !q.Msg.RecursionDesired || len(q.Options) > 0 || c.block.holds(q.Name) {
		return next(ctx, q)
	}
	k := cacheKey{name: q.Name, qtype: q.Type, class: q.Class, do: q.DO, cd: q.Msg.CheckingDisabled}
	now := c.now()
	e := c.find(k, now)
	switch {
	case e == nil:
	case now.Before(e.expires):
		if c.prefetch.due(e, now) {
			c.again(q, k, next)
		}
		return c.hit(q, e, now, "hit"), nil
	case c.refresh.pending(k, now) || !c.stale.verify:
		c.again(q, k, next)
		return c.hit(q, e, now, "stale"), nil
	default:
		if r := c.verified(ctx, q, k, next); r != nil {
			return r, nil
		}
		return c.hit(q, e, now, "stale"), nil
	}
	q.Record(plugin.Step{Plugin: "cache", Decision: "miss"})
	r, err := next(ctx, q)
	if q.Own || ctx.Err() != nil {
		return r, err
	}
	c.metrics.misses.Add(1)
	switch {
	case err != nil:
		c.keep(k, plugin.Refusal(wire.RcodeServerFailure), now)
	case r != nil:
		c.keep(k, r, now)
		// The first answer has the TTLs that the next one will have: a client
		// must not hold a record for longer than the cache was told to.
		if e := c.find(k, now); e != nil && now.Before(e.expires) {
			return e.reply(now, c.keepTTL), nil
		}
	}
	return r, err
}

// find returns the entry of a question: the fresh one, or else the one that
// went stale last.
func (c *cache) find(k cacheKey, now time.Time) (best *entry) {
	for _, s := range []*store{c.success, c.denial} {
		if e := s.get(k, now); e != nil && (best == nil || e.stored.After(best.stored)) {
			best = e
		}
	}
	return best
}

func (c *cache) hit(q *plugin.Query, e *entry, now time.Time, decision string) *wire.Msg {
	q.Cached, q.Source = decision == "hit", "cache"
	c.metrics.hits.Add(1)
	q.Record(plugin.Step{Plugin: "cache", Decision: decision, Age: now.Sub(e.stored), TTL: e.expires.Sub(now)})
	if decision == "stale" {
		q.Explain(wire.ExtendedErrorCodeStaleAnswer, "")
		return c.stale.reply(e)
	}
	return e.reply(now, c.keepTTL)
}

// keep stores an answer if it may be kept.
func (c *cache) keep(k cacheKey, r *wire.Msg, now time.Time) {
	if r.Truncated {
		return
	}
	switch kind, ttl := classify(r); kind {
	case good:
		if c.noGood.Match(k.name) == "" {
			c.success.put(k, r, ttl, now)
			c.denial.drop(k)
		}
	case negative:
		if c.noBad.Match(k.name) == "" {
			c.denial.put(k, r, ttl, now)
			c.success.drop(k)
		}
	case failure:
		if c.servfail > 0 && c.noBad.Match(k.name) == "" {
			c.denial.putFor(k, r, c.servfail, now)
		}
	}
}

// kinds of answers, as far as keeping them goes.
type answerKind uint8

const (
	unfit answerKind = iota
	good
	negative
	failure
)

// classify tells what an answer is and for how long its records are good.
func classify(r *wire.Msg) (answerKind, time.Duration) {
	ttl, found := uint32(1<<31-1), false
	for _, section := range [][]wire.RR{r.Answer, r.Ns, r.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != wire.TypeOPT {
				ttl, found = min(ttl, rr.Header().Ttl), true
			}
		}
	}
	var soa *wire.SOA
	for _, rr := range r.Ns {
		if s, ok := rr.(*wire.SOA); ok {
			soa = s
		}
	}
	minimum := uint32(0)
	if soa != nil {
		minimum = soa.Minttl
	}
	return kindOf(r.Rcode, found && len(r.Answer) > 0, ttl, soa != nil, minimum)
}

// kindOf is classify for what has been read from a message.
func kindOf(rcode int, data bool, ttl uint32, soa bool, minimum uint32) (answerKind, time.Duration) {
	switch rcode {
	case wire.RcodeServerFailure:
		return failure, 0
	case wire.RcodeSuccess, wire.RcodeNameError:
	default:
		return unfit, 0
	}
	switch {
	case rcode == wire.RcodeSuccess && data && !soa:
		return good, time.Duration(ttl) * time.Second
	case soa: // RFC 2308 section 5: the lesser of TTL and MINIMUM
		return negative, time.Duration(min(ttl, minimum)) * time.Second
	}
	return unfit, 0 // a denial without SOA must not be kept
}

// keepPacked is keep for a packed answer that is no failure and that nobody
// else has. Its TTLs become those that the next answer will have.
func (c *cache) keepPacked(k cacheKey, p *packed, info *answerInfo, now time.Time) {
	kind, ttl := kindOf(int(info.rcode), info.records && info.counts[0] > 0, info.ttl, info.soa, info.minimum)
	in, other, not := c.success, c.denial, c.noGood
	switch kind {
	case good:
	case negative:
		in, other, not = c.denial, c.success, c.noBad
	default:
		return
	}
	if not.Match(k.name) != "" {
		return
	}
	ttl = min(max(ttl, in.opt.min), in.opt.max)
	if ttl <= 0 {
		return
	}
	capTTLs(p, uint32((ttl+time.Second-1)/time.Second))
	in.insert(&entry{key: k, packed: p, stored: now, expires: now.Add(ttl), size: len(p.body) + len(k.name) + 400})
	other.drop(k)
}

// cacheKey is all of a question that its answer depends on.
type cacheKey struct {
	name         string
	qtype, class uint16
	do, cd       bool
}

// entry is one answer. The message is never changed.
type entry struct {
	key     cacheKey
	msg     *wire.Msg // nil: it is packed still
	packed  *packed   // nil: it came as a message
	stored  time.Time
	expires time.Time
	size    int
	hits    atomic.Uint32 // without a long pause between them
	last    atomic.Int64  // hit, Unix nanoseconds
}

// message returns the answer as a message, which is nobody's to change.
func (e *entry) message() *wire.Msg {
	if e.msg != nil {
		return e.msg
	}
	m, err := e.packed.message(e.key.name)
	if err != nil { // parseAnswer lets data pass that it does not know
		return plugin.Refusal(wire.RcodeServerFailure)
	}
	return m
}

// reply copies the answer with TTLs as they are now.
func (e *entry) reply(now time.Time, keepTTL bool) *wire.Msg {
	age := uint32(now.Sub(e.stored) / time.Second)
	left := uint32((e.expires.Sub(now) + time.Second - 1) / time.Second)
	from := e.message()
	m := &wire.Msg{MsgHdr: from.MsgHdr}
	aged := func(rrs []wire.RR) []wire.RR {
		out := make([]wire.RR, len(rrs))
		for i, rr := range rrs {
			out[i] = wire.Copy(rr)
			h := out[i].Header()
			if keepTTL {
				continue
			}
			h.Ttl = min(h.Ttl-min(age, h.Ttl), left)
		}
		return out
	}
	m.Answer, m.Ns, m.Extra = aged(from.Answer), aged(from.Ns), aged(from.Extra)
	return m
}

// store is a bounded map that evicts what was not used for longest. It is
// split into shards, each with a lock of its own.
type store struct {
	opt    storeOptions
	seed   maphash.Seed
	shards [cacheShards]shard
}

type shard struct {
	mu      sync.Mutex
	entries map[cacheKey]*list.Element // of *entry
	recent  *list.List                 // most recent first
	bytes   int
}

func newStore(o storeOptions) *store {
	s := &store{opt: o, seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i] = shard{entries: make(map[cacheKey]*list.Element), recent: list.New()}
	}
	return s
}

func (s *store) shard(k cacheKey) *shard {
	return &s.shards[maphash.Comparable(s.seed, k)%cacheShards]
}

func (s *store) get(k cacheKey, now time.Time) *entry {
	sh := s.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	el := sh.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if !now.Before(e.expires.Add(s.opt.stale)) {
		sh.remove(el)
		return nil
	}
	sh.recent.MoveToFront(el)
	return e
}

func (s *store) put(k cacheKey, r *wire.Msg, ttl time.Duration, now time.Time) {
	s.putFor(k, r, min(max(ttl, s.opt.min), s.opt.max), now)
}

func (s *store) putFor(k cacheKey, r *wire.Msg, ttl time.Duration, now time.Time) {
	if ttl <= 0 {
		return
	}
	records := len(r.Answer) + len(r.Ns) + len(r.Extra)
	e := &entry{key: k, stored: now, expires: now.Add(ttl), size: r.Len() + len(k.name) + 200 + 150*records}
	// The caller goes on to fill in the header of r; the records are shared.
	e.msg = &wire.Msg{Answer: r.Answer, Ns: r.Ns, Extra: r.Extra}
	e.msg.Rcode, e.msg.AuthenticatedData = r.Rcode, r.AuthenticatedData
	s.insert(e)
}

// insert puts an entry in the place of an older one.
func (s *store) insert(e *entry) {
	k := e.key
	sh := s.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if old := sh.entries[k]; old != nil {
		e.hits.Store(old.Value.(*entry).hits.Load())
		e.last.Store(old.Value.(*entry).last.Load())
		sh.remove(old)
	}
	sh.entries[k] = sh.recent.PushFront(e)
	sh.bytes += e.size
	most := max(1, s.opt.entries/cacheShards)
	for sh.recent.Len() > most || sh.bytes > cacheBytes/cacheShards {
		sh.remove(sh.recent.Back())
	}
}

// drop forgets an entry.
func (s *store) drop(k cacheKey) {
	sh := s.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if el := sh.entries[k]; el != nil {
		sh.remove(el)
	}
}

func (sh *shard) remove(el *list.Element) {
	e := sh.recent.Remove(el).(*entry)
	delete(sh.entries, e.key)
	sh.bytes -= e.size
}
