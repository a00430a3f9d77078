package dns

import (
	"cmp"
	"context"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	wire "github.com/miekg/dns"

	"nodenet/dns/sketch"
)

const (
	// watchCounters is how many names, and how many clients, each sketch holds.
	watchCounters = 256
	// watchBusy is the rate, a second, from which on not every question is
	// looked at but one of watchEvery.
	watchBusy  = 10_000
	watchEvery = 16
	// latencyStep is by how much a bucket of the latencies ends after the one before.
	latencyStep    = 1.25
	latencyBuckets = 96 // 1.25^95 µs is half an hour
)

// Top is what the server did while it was watched.
type Top struct {
	Took           time.Duration
	Queries        uint64
	Rcodes         []sketch.Item // exact
	Sources        []sketch.Item // directives, exact
	Latency        Latency
	Hits, Misses   uint64 // of the cache
	Sampled        uint64 // questions that Names and Clients were counted from
	Every          int    // one of so many, on average
	Names, Clients []sketch.Item
}

// TopItem is something that was seen, with how often.
type TopItem = sketch.Item

// Latency is of the questions that went through the directives.
type Latency struct {
	Count              uint64
	P50, P90, P99, Max time.Duration // upper ends of buckets
}

// watch collects while somebody looks. Each receive loop has a shard, whose
// lock it takes once a question that is sampled, and nobody but the reader at
// the end takes it too; when nobody looks, a batch costs one load.
type watch struct {
	every  uint64
	shards [maxShards]watchShard

	mu      sync.Mutex // of what comes by the chain
	counts  map[watchKey]uint64
	latency [latencyBuckets]uint64
}

type watchKey struct{ source, rcode string }

type watchShard struct {
	mu             sync.Mutex
	names, clients *sketch.Sketch
	_              [64]byte // the next one's lock is on another cache line
}

func newWatch(every uint64) *watch {
	w := &watch{every: every, counts: make(map[watchKey]uint64)}
	for i := range w.shards {
		w.shards[i].names, w.shards[i].clients = sketch.New(watchCounters), sketch.New(watchCounters)
	}
	return w
}

// watches are those that are active; nil: nobody looks.
type watches struct {
	mu     sync.Mutex // of who begins and ends
	active atomic.Pointer[[]*watch]
}

func (ws *watches) add(w *watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	var list []*watch
	if p := ws.active.Load(); p != nil {
		list = slices.Clone(*p)
	}
	list = append(list, w)
	ws.active.Store(&list)
}

func (ws *watches) remove(w *watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(*ws.active.Load()), func(o *watch) bool { return o == w })
	if len(list) == 0 {
		ws.active.Store(nil)
		return
	}
	ws.active.Store(&list)
}

func (ws *watches) list() []*watch {
	if p := ws.active.Load(); p != nil {
		return *p
	}
	return nil
}

// saw notes a question of a shard's loop.
func (w *watch) saw(shard int, name string, client netip.Addr) {
	s := &w.shards[shard%maxShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names.Add(name, 1)
	b := client.As16()
	s.clients.Add(unsafe.String(&b[0], len(b)), 1)
}

// count notes n answers.
func (w *watch) count(source, rcode string, n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[watchKey{source, rcode}] += n
}

// took notes how long an answer took.
func (w *watch) took(d time.Duration) {
	i := 0
	if us := float64(d) / float64(time.Microsecond); us > 1 {
		i = min(int(math.Ceil(math.Log(us)/math.Log(latencyStep))), latencyBuckets-1)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.latency[i]++
}

// sampled reports whether the question in hand is one that a watch looks at.
// Drawn at random: questions come in patterns, A and AAAA in turns.
func (r *responder) sampled(every uint64) bool {
	if every == 1 {
		return true
	}
	r.turn ^= r.turn << 13
	r.turn ^= r.turn >> 7
	r.turn ^= r.turn << 17
	return (r.turn>>33)%every == 0
}

// watched notes the question that was just answered.
func (r *responder) watched(list []*watch, client netip.Addr) {
	for _, w := range list {
		if r.sampled(w.every) {
			w.saw(r.shard, r.qname, client)
		}
	}
}

// watched notes an answer of the chain. Its questions are all looked at: there
// are not many a second.
func (m *metrics) watched(q *query, source, rcode string, took time.Duration) {
	for _, w := range m.watches.list() {
		w.count(source, rcode, 1)
		w.took(took)
		if q.sample(w.every) {
			w.saw(int(q.Client.Port()), q.Name, q.Client.Addr().Unmap())
		}
	}
}

// sample is responder.sampled for the chain: the message's ID is random.
func (q *query) sample(every uint64) bool { return uint64(q.Msg.Id)%every == 0 }

// Watch looks for a time what the server does, and returns the n most frequent
// names and clients. What is asked in vast numbers is sampled.
func (s *Server) Watch(ctx context.Context, d time.Duration, n int) (*Top, error) {
	if !s.running.Load() {
		return nil, ErrNotRunning
	}
	s.mu.Lock()
	rate := s.rate
	s.mu.Unlock()
	w := newWatch(1)
	if rate >= watchBusy {
		w.every = watchEvery
	}
	hits, misses := s.metrics.hits.Load(), s.metrics.misses.Load()
	start := time.Now()
	s.metrics.watches.add(w)
	timer := time.NewTimer(d)
	defer timer.Stop()
	var err error
	select {
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.metrics.watches.remove(w)
	if err != nil {
		return nil, err
	}
	t := w.top(n)
	t.Took = time.Since(start)
	t.Hits, t.Misses = s.metrics.hits.Load()-hits, s.metrics.misses.Load()-misses
	return t, nil
}

// top sums up. Loops that have not noticed yet that the watch is over may
// still write to it.
func (w *watch) top(n int) *Top {
	t := &Top{Every: int(w.every)}
	names, clients := sketch.New(watchCounters), sketch.New(watchCounters)
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		names.Merge(s.names)
		clients.Merge(s.clients)
		s.mu.Unlock()
	}
	t.Sampled, t.Names = names.Total(), scaled(names.Top(n), w.every)
	for _, c := range scaled(clients.Top(n), w.every) {
		var b [16]byte
		copy(b[:], c.What)
		c.What = netip.AddrFrom16(b).Unmap().String()
		t.Clients = append(t.Clients, c)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	rcodes, sources := map[string]uint64{}, map[string]uint64{}
	for k, c := range w.counts {
		t.Queries += c
		rcodes[k.rcode] += c
		sources[k.source] += c
	}
	t.Rcodes, t.Sources = ranked(rcodes), ranked(sources)
	t.Latency = percentiles(&w.latency)
	return t
}

// scaled estimates the counts of all from those of a sample.
func scaled(items []sketch.Item, every uint64) []sketch.Item {
	for i := range items {
		items[i].Count *= every
		items[i].Error *= every
	}
	return items
}

func ranked(m map[string]uint64) (out []sketch.Item) {
	for what, n := range m {
		out = append(out, sketch.Item{What: what, Count: n})
	}
	slices.SortFunc(out, func(a, b sketch.Item) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.What, b.What))
	})
	return out
}

func percentiles(buckets *[latencyBuckets]uint64) (l Latency) {
	for _, n := range buckets {
		l.Count += n
	}
	var sum uint64
	for i, n := range buckets {
		if n == 0 {
			continue
		}
		end := time.Duration(math.Pow(latencyStep, float64(i)) * float64(time.Microsecond))
		before := sum
		sum += n
		for _, p := range []struct {
			share float64
			to    *time.Duration
		}{{0.5, &l.P50}, {0.9, &l.P90}, {0.99, &l.P99}} {
			if want := uint64(math.Ceil(p.share * float64(l.Count))); before < want && want <= sum {
				*p.to = end
			}
		}
		l.Max = end
	}
	return l
}

// rcodeName names a code also where no name is known.
func rcodeName(rcode int) string { return cmp.Or(wire.RcodeToString[rcode], "other") }
