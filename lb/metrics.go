package lb

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the load balancer's counters; they work unregistered too.
type metrics struct {
	services, backends  prometheus.Gauge
	applies             *prometheus.CounterVec
	applied             prometheus.Counter // of applies: those that went well
	operations, repairs prometheus.Counter
	disagreements       prometheus.Counter
	flows               *prometheus.CounterVec
	seconds             prometheus.Histogram
	policy              *policyMetrics
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		services: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_lb_services",
			Help: "Services with a virtual address that is programmed."}),
		backends: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_lb_backends",
			Help: "Ready backends of programmed services."}),
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nodenet_lb_applies_total",
			Help: "Tables applied to the kernel, by result."}, []string{"result"}),
		operations: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_lb_operations_total",
			Help: "nftables objects made, changed or deleted."}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_lb_repairs_total",
			Help: "Times that rules were found changed from outside."}),
		disagreements: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_lb_disagreements_total",
			Help: "Times that what was kept up to date differed from what is derived from scratch."}),
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nodenet_lb_flows_forgotten_total",
			Help: "Tracked flows ended because their backend went or failed, by protocol."}, []string{"proto"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "nodenet_lb_apply_seconds",
			Help: "Time to compare and program one table.", Buckets: prometheus.ExponentialBuckets(10e-6, 4, 10)}),
	}
	m.policy = newPolicyMetrics()
	m.applied = m.applies.WithLabelValues("ok")
	if r == nil {
		return m, nil
	}
	own := []prometheus.Collector{m.services, m.backends, m.applies, m.operations, m.repairs, m.disagreements, m.flows, m.seconds}
	for _, c := range append(own, m.policy.collectors()...) {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register lb metrics: %w", err)
		}
	}
	return m, nil
}
