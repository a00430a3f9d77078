package dhcp

import "github.com/prometheus/client_golang/prometheus"

// metrics counts events. Without a registry it counts all the same.
type metrics struct {
	requests *prometheus.CounterVec // by network, type
	replies  *prometheus.CounterVec // by network, type
	dropped  *prometheus.CounterVec // by network, reason
	seconds  *prometheus.HistogramVec
	leases   *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodenet_dhcp_requests_total", Help: "Requests received, by message type."}, []string{"network", "type"}),
		replies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodenet_dhcp_replies_total", Help: "Replies sent, by message type."}, []string{"network", "type"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodenet_dhcp_dropped_total", Help: "Requests left without a reply, by reason."}, []string{"network", "reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nodenet_dhcp_request_seconds", Help: "Time from receipt to reply, with the wait for the disk.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8)}, []string{"network"}),
		leases: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nodenet_dhcp_leases", Help: "Leases that have not expired, of all servers."}, []string{"network"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.replies, m.dropped, m.seconds, m.leases} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
