package announce

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	held                                         prometheus.Gauge
	takeovers, announcements, replies, conflicts prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_announce_addresses",
			Help: "External addresses that this node answers for."}),
		takeovers: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_announce_takeovers_total",
			Help: "External addresses that this node began to answer for."}),
		announcements: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_announce_announcements_total",
			Help: "Gratuitous ARP and unsolicited neighbour advertisements sent."}),
		replies: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_announce_replies_total",
			Help: "Asks for an external address that were answered."}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodenet_announce_conflicts_total",
			Help: "External addresses found claimed by a host that is no node."}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.held, m.takeovers, m.announcements, m.replies, m.conflicts} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
