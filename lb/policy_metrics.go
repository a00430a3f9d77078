package lb

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/prometheus/client_golang/prometheus"
)

// countEvery is how often the kernel's counters of denied packets are read.
const countEvery = 5 * time.Second

// policyMetrics are what policies come to on this node.
type policyMetrics struct {
	policies, endpoints, classes prometheus.Gauge
	denied                       *prometheus.CounterVec

	// Owned by Run.
	seen map[string]uint64 // by chain, as read last
	read time.Time
}

func newPolicyMetrics() *policyMetrics {
	return &policyMetrics{
		policies: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_policy_policies",
			Help: "Policies of the cluster."}),
		endpoints: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_policy_isolated_addresses",
			Help: "Addresses of this node's endpoints that some policy isolates."}),
		classes: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nodenet_policy_classes",
			Help: "Different sets of rules that this node's endpoints have."}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nodenet_policy_denied_packets_total",
			Help: "Packets dropped, by what is against them: networks, egress or ingress. Read every 5 s."}, []string{"by"}),
		seen: make(map[string]uint64),
	}
}

func (m *policyMetrics) collectors() []prometheus.Collector {
	for _, by := range []string{"networks", "egress", "ingress"} {
		m.denied.WithLabelValues(by) // shown as 0 from the start
	}
	return []prometheus.Collector{m.policies, m.endpoints, m.classes, m.denied}
}

// show sets what a book holds.
func (m *policyMetrics) show(b *policyBook, policies int) {
	isolated, classes := b.counts()
	m.policies.Set(float64(policies))
	m.endpoints.Set(float64(isolated))
	m.classes.Set(float64(classes))
}

// counter is a Kernel that counts what it drops.
type counter interface {
	// Denied returns how many packets each chain of policies dropped since the
	// table was made.
	Denied() (map[string]uint64, error)
}

// count adds what was dropped since it was read last.
func (m *policyMetrics) count(k Kernel) error {
	c, ok := k.(counter)
	if !ok || time.Since(m.read) < countEvery {
		return nil
	}
	m.read = time.Now()
	now, err := c.Denied()
	if err != nil {
		return err
	}
	for chain, n := range now {
		more := n - m.seen[chain]
		if n < m.seen[chain] { // the table was made anew
			more = n
		}
		by, _, _ := strings.Cut(strings.TrimSuffix(chain, "6"), "-")
		if by == "isolated" {
			by = "networks"
		}
		m.denied.WithLabelValues(by).Add(float64(more))
	}
	m.seen = now
	return nil
}

// Denied implements counter.
func (k *kernel) Denied() (map[string]uint64, error) {
	t := &nftables.Table{Name: TableName, Family: family("inet")}
	out := make(map[string]uint64)
	for _, c := range policyChains() {
		if c.Type != "" {
			continue
		}
		rules, err := k.conn.GetRules(t, &nftables.Chain{Name: c.Name})
		if err != nil {
			return nil, fmt.Errorf("read counters of chain %s: %w", c.Name, explain(err))
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					out[c.Name] += n.Packets
				}
			}
		}
	}
	return out, nil
}
