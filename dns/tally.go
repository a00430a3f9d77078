package dns

import (
	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// tally counts the answers of one responder until they are added to the
// metrics, once a batch: counters that all cores share are touched as rarely
// as that.
type tally struct {
	n     [sourceCount][countedTypes][2]uint32
	total uint32

	plan *plan // of the block that run is of
	run  [sourceCount][2]uint32
}

// source of a packed answer.
type source uint8

const (
	byCluster source = iota
	byCache
	bySearch
	byForward
	sourceCount
)

const countedTypes = 12

// typeIndex numbers the types that the packed path answers, or is negative.
// Others are so rare that the chain may have them.
func typeIndex(qtype uint16) int {
	switch qtype {
	case wire.TypeA:
		return 0
	case wire.TypeAAAA:
		return 1
	case wire.TypeSRV:
		return 2
	case wire.TypePTR:
		return 3
	case wire.TypeHTTPS:
		return 4
	case wire.TypeSVCB:
		return 5
	case wire.TypeTXT:
		return 6
	case wire.TypeCNAME:
		return 7
	case wire.TypeNS:
		return 8
	case wire.TypeSOA:
		return 9
	case wire.TypeMX:
		return 10
	case wire.TypeNAPTR:
		return 11
	}
	return -1
}

func counted(qtype uint16) bool { return typeIndex(qtype) >= 0 }

// add counts an answer of a plan's block.
func (t *tally) add(pl *plan, qtype uint16, rcode uint8, by source) {
	if t.plan != pl {
		t.flushBlock()
		t.plan = pl
	}
	r := 0
	if rcode != wire.RcodeSuccess {
		r = 1 // NXDOMAIN, there is no other
	}
	t.n[by][typeIndex(qtype)][r]++
	t.run[by][r]++
	t.total++
}

// sourceNames and packedRcodes are what tally's indexes stand for.
func sourceNames() [sourceCount]string {
	return [sourceCount]string{"cluster", "cache", "search", "forward"}
}
func packedRcodes() [2]string { return [2]string{"NOERROR", "NXDOMAIN"} }

// flushBlock adds to the metrics of a block what was counted of it.
func (t *tally) flushBlock() {
	if t.plan == nil {
		return
	}
	for by := range t.run {
		for r, n := range t.run[by] {
			if n > 0 && t.plan.counters[by][r] != nil {
				t.plan.counters[by][r].Add(float64(n))
			}
		}
	}
	t.run = [sourceCount][2]uint32{}
}

// flush adds to the metrics what was counted since the last time.
func (t *tally) flush(m *metrics) {
	if t.total == 0 {
		return
	}
	m.queries.Add(uint64(t.total))
	t.flushBlock()
	watched := m.watches.list()
	for by := range t.n {
		for i := range t.n[by] {
			for r, n := range t.n[by][i] {
				if n == 0 {
					continue
				}
				m.packed[by][i][r].Add(float64(n))
				for _, w := range watched {
					w.count(sourceNames()[by], packedRcodes()[r], uint64(n))
				}
				if source(by) == byCache {
					m.hits.Add(uint64(n))
				}
			}
		}
	}
	*t = tally{}
}

// packedCounters resolves the counters of the packed path.
func packedCounters(requests *prometheus.CounterVec) (out [sourceCount][countedTypes][2]prometheus.Counter) {
	for by, name := range sourceNames() {
		for qtype, text := range wire.TypeToString {
			i := typeIndex(qtype)
			if i < 0 {
				continue
			}
			for r, rcode := range packedRcodes() {
				out[by][i][r] = requests.WithLabelValues(text, "udp", rcode, name)
			}
		}
	}
	return out
}
