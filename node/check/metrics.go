package check

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the checks' counters; they work unregistered too.
type metrics struct {
	duties, failing prometheus.Gauge
	runs            *prometheus.CounterVec
	changes         prometheus.Counter
	seconds         *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		duties: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_service_check_backends",
			Help: "Backends that this node checks."}),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_service_check_failing",
			Help: "Of these, those that fail."}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nodenet_service_check_runs_total",
			Help: "Checks made, by type and result."}, []string{"type", "result"}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_service_check_changes_total",
			Help: "Backends that went out of use or came back by their check."}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "nodenet_service_check_seconds",
			Help: "Time of one check, by type.", Buckets: prometheus.ExponentialBuckets(100e-6, 4, 9)}, []string{"type"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.duties, m.failing, m.runs, m.changes, m.seconds} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of checks: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) ran(kind string, err error, took time.Duration) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.runs.WithLabelValues(kind, result).Inc()
	m.seconds.WithLabelValues(kind).Observe(took.Seconds())
}

// turn counts a backend that went from one state to the other.
func (m *metrics) turn(failed, fails bool) {
	switch {
	case fails && !failed:
		m.failing.Inc()
	case failed && !fails:
		m.failing.Dec()
	}
}
