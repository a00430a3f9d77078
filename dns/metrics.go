package dns

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the server does. The atomic counters are what Status
// reads; the others exist for Prometheus only.
type metrics struct {
	queries, hits, misses, panics atomic.Uint64

	requests  *prometheus.CounterVec   // by type, proto, rcode, source
	duration  *prometheus.HistogramVec // by source
	upstreams *prometheus.CounterVec   // by upstream, result
	shed      prometheus.Counter
	busy      prometheus.Counter
	limited   prometheus.Counter
	passed    prometheus.Observer // duration of what forward answers in the receive loops
	packed    [sourceCount][countedTypes][2]prometheus.Counter
	reloads   prometheus.Counter
	blocks    *prometheus.CounterVec // by block, source, rcode

	watches watches
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodenet_dns_queries_total", Help: "Queries answered, by type, transport, rcode and the directive that answered.",
		}, []string{"type", "proto", "rcode", "source"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nodenet_dns_query_seconds", Help: "Time to answer a query that the receive loop did not answer, by the directive that answered.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		}, []string{"source"}),
		upstreams: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodenet_dns_forward_queries_total", Help: "Queries sent to upstreams, by upstream and rcode or error.",
		}, []string{"upstream", "result"}),
		shed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodenet_dns_forward_shed_total", Help: "Queries refused because too many were being forwarded.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodenet_dns_shed_total", Help: "Queries answered with SERVFAIL because too many were being answered.",
		}),
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodenet_dns_limited_total", Help: "Queries dropped because their client asks too much.",
		}),
		blocks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodenet_dns_block_queries_total", Help: "Queries answered, by server block, the directive that answered and rcode.",
		}, []string{"block", "source", "rcode"}),
		reloads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodenet_dns_reloads_total", Help: "Times that changed server blocks were taken over.",
		}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.requests, m.duration, m.blocks, m.upstreams, m.shed, m.busy, m.limited, m.reloads,
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "nodenet_dns_panics_total", Help: "Queries whose handling panicked.",
		}, func() float64 { return float64(m.panics.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "nodenet_dns_cache_hits_total", Help: "Queries answered by the cache.",
		}, func() float64 { return float64(m.hits.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "nodenet_dns_cache_misses_total", Help: "Queries that the cache had to pass on.",
		}, func() float64 { return float64(m.misses.Load()) }),
	} {
		errs = append(errs, r.Register(c))
	}
	m.packed = packedCounters(m.requests)
	m.passed = m.duration.WithLabelValues("forward")
	return m, errors.Join(errs...)
}

func (m *metrics) observe(q *query, reply *wire.Msg, took time.Duration) {
	m.queries.Add(1)
	proto, source := "udp", q.Source
	if q.TCP {
		proto = "tcp"
	}
	if source == "" {
		source = "server"
	}
	// Types that nobody named would make labels without end.
	qtype := wire.TypeToString[q.Type]
	if qtype == "" {
		qtype = "other"
	}
	block, rcode := "none", rcodeName(reply.Rcode)
	if q.block != nil {
		block = q.block.label()
	}
	m.requests.WithLabelValues(qtype, proto, rcode, source).Inc()
	m.blocks.WithLabelValues(block, source, rcode).Inc()
	m.duration.WithLabelValues(source).Observe(took.Seconds())
	m.watched(q, source, rcode, took)
}

func (m *metrics) forwarded(to netip.AddrPort, r *wire.Msg, err error) {
	result := "error"
	if err == nil {
		result = wire.RcodeToString[r.Rcode]
	}
	m.upstreams.WithLabelValues(to.String(), result).Inc()
}
