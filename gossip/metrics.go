package gossip

import (
	"github.com/prometheus/client_golang/prometheus"

	"nodenet/state"
)

// metrics collects nodenet_gossip_*.
type metrics struct {
	g          *Gossip
	frames     *prometheus.CounterVec
	bytes      *prometheus.CounterVec
	refused    *prometheus.CounterVec
	calls      *prometheus.CounterVec
	rounds     prometheus.Counter
	pushes     prometheus.Counter
	copies     prometheus.Counter
	applied    prometheus.Counter
	rejected   prometheus.Counter
	forged     prometheus.Counter
	dropped    prometheus.Counter
	throttled  prometheus.Counter
	dialErrors prometheus.Counter
	peers      *prometheus.Desc
	links      *prometheus.Desc
	rtt        *prometheus.Desc
	frozen     *prometheus.Desc

	// Of frames and bytes, by direction: looking them up by their labels would
	// cost more than many a frame.
	in, out           map[kind]prometheus.Counter
	bytesIn, bytesOut prometheus.Counter
}

func newMetrics(g *Gossip) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nodenet", Subsystem: "gossip", Name: name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "nodenet", Subsystem: "gossip", Name: name, Help: help}, labels)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("nodenet_gossip_"+name, help, labels, nil)
	}
	m := &metrics{
		g:          g,
		frames:     vec("frames_total", "Frames on streams.", "direction", "kind"),
		bytes:      vec("bytes_total", "Bytes of frames on streams.", "direction"),
		refused:    vec("refused_total", "Connections that this node refused.", "reason"),
		calls:      vec("calls_total", "Calls of other nodes' handlers.", "result"),
		rounds:     counter("sync_rounds_total", "Exchanges of digests begun."),
		pushes:     counter("pushes_total", "Batches of fresh changes sent or forwarded."),
		copies:     counter("push_copies_total", "Changes in pushes of peers that were known already."),
		applied:    counter("records_applied_total", "Records of peers that were new."),
		rejected:   counter("records_rejected_total", "Deltas or records of peers that were refused."),
		forged:     counter("forged_total", "Deltas of peers that are not what the owner of the records signed."),
		dropped:    counter("frames_dropped_total", "Frames not sent because a peer's queue was full."),
		throttled:  counter("frames_throttled_total", "Frames that had to wait because their peer sends too fast."),
		dialErrors: counter("dial_errors_total", "Connections to peers that did not come about."),
		peers:      desc("peers", "Other nodes by state.", "state"),
		links:      desc("links", "Open streams."),
		rtt:        desc("rtt_seconds", "Smoothed round-trip time of a stream.", "node"),
		frozen:     desc("frozen", "1 while withdrawals are frozen after a mass loss."),
		in:         map[kind]prometheus.Counter{},
		out:        map[kind]prometheus.Counter{},
	}
	m.bytesIn, m.bytesOut = m.bytes.WithLabelValues("in"), m.bytes.WithLabelValues("out")
	for k, name := range kindNames {
		m.in[k], m.out[k] = m.frames.WithLabelValues("in", name), m.frames.WithLabelValues("out", name)
	}
	return m
}

func (m *metrics) counters() []prometheus.Collector {
	return []prometheus.Collector{m.frames, m.bytes, m.refused, m.calls, m.rounds, m.pushes, m.copies, m.applied, m.rejected, m.forged, m.dropped, m.throttled, m.dialErrors}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.counters() {
		c.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{m.peers, m.links, m.rtt, m.frozen} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.counters() {
		c.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	byState := map[state.Liveness]int{}
	links := 0
	for _, p := range m.g.Peers() {
		byState[p.State]++
		if p.Connected {
			links++
			gauge(m.rtt, p.RTT.Seconds(), string(p.ID))
		}
	}
	for _, s := range []state.Liveness{state.Unknown, state.Alive, state.Suspect, state.Dead, state.Left} {
		gauge(m.peers, float64(byState[s]), s.String())
	}
	gauge(m.links, float64(links))
	f := 0.0
	if m.g.Frozen() {
		f = 1
	}
	gauge(m.frozen, f)
}
