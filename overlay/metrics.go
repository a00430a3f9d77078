package overlay

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	ops     *prometheus.CounterVec
	drift   prometheus.Counter
	errors  prometheus.Counter
	seconds prometheus.Histogram
	peers   prometheus.Gauge
	routes  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		ops: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nodenet_overlay_operations_total",
			Help: "Changes made to links, addresses, neighbours, forwarding entries, routes and sysctls."}, []string{"object"}),
		drift: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_overlay_drift_repairs_total",
			Help: "Changes made because somebody else had altered what nodenet owns."}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_overlay_reconcile_errors_total",
			Help: "Passes that did not reach the plan."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "nodenet_overlay_reconcile_duration_seconds",
			Help: "Time of a pass.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}),
		peers: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_overlay_peers",
			Help: "Other nodes that the plan routes to."}),
		routes: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_overlay_routes",
			Help: "Blocks of other nodes that the plan routes."}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.ops, m.drift, m.errors, m.seconds, m.peers, m.routes} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register overlay metrics: %w", err)
		}
	}
	return m, nil
}
