package gossip

import (
	"flag"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// The figures of `make bench-gossip`: what the package promises, measured, and
// whether it holds. Times of the simulated cluster are virtual: network and
// timers, as if computing took none; what computing takes is shown apart.
var (
	figures    = flag.Bool("figures", false, "measure the figures of gossip and print a table")
	figNodes   = flag.Int("figures.nodes", 1000, "nodes of the simulated cluster")
	figRate    = flag.Int("figures.rate", 500, "endpoint changes a second, cluster-wide, of the sustained load")
	figSustain = flag.Duration("figures.sustain", time.Second, "how long that load lasts, virtual time")
)

// figure is one line of the table.
type figure struct {
	name  string
	value float64
	unit  string
	goal  float64 // 0: none, shown for comparison
	least bool    // the value should be at least the goal, not at most
	how   string
}

func (f figure) reached() bool {
	return f.goal == 0 || f.least == (f.value >= f.goal) || f.value == f.goal
}

type figureTable struct {
	mu    sync.Mutex
	lines []figure
}

func (t *figureTable) add(fs ...figure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, fs...)
}

func (t *figureTable) String() string {
	var b strings.Builder
	b.WriteString("| figure | measured | goal | measured/goal | | how |\n|---|---|---|---|---|---|\n")
	for _, f := range t.lines {
		goal, ratio, ok := "–", "–", ""
		if f.goal > 0 {
			sign := "≤"
			if f.least {
				sign = "≥"
			}
			goal, ratio, ok = fmt.Sprintf("%s %s %s", sign, num(f.goal), f.unit), fmt.Sprintf("%.3g", f.value/f.goal), "reached"
			if !f.reached() {
				ok = "MISSED"
			}
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %s | %s | %s |\n", f.name, num(f.value), f.unit, goal, ratio, ok, f.how)
	}
	return b.String()
}

func num(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// cpuTime is what this process has computed so far.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// used is what this process has of the system's memory, in MiB.
func used() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.Sys-m.HeapReleased) / (1 << 20)
}

func seconds(d time.Duration) float64 { return d.Seconds() }

func quantile(d []time.Duration, of int, q float64) time.Duration {
	i := int(q*float64(of)+0.9999) - 1
	if i < 0 || i >= len(d) {
		return time.Hour // some never had it
	}
	return d[i]
}

func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("run with -figures, or make bench-gossip")
	}
	var tab figureTable
	began := time.Now()
	for _, part := range []struct {
		name string
		fn   func(*testing.T, *figureTable)
	}{
		{"cluster", figCluster}, {"membership", figMembership}, {"broadcasts", figBroadcasts}, {"heal", figHeal},
		{"join", figJoin}, {"heap", figHeap}, {"change", figChange},
	} {
		t.Run(part.name, func(t *testing.T) {
			at := time.Now()
			part.fn(t, &tab)
			t.Logf("took %s", time.Since(at).Round(time.Second))
			runtime.GC()
		})
	}
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	fmt.Printf("\ncommit %s, %s, %s/%s, %d CPUs (%s), %s\n", strings.TrimSpace(string(commit)), runtime.Version(), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU(), cpuModel(), time.Since(began).Round(time.Second))
	fmt.Printf("%d nodes, fan-out %d, %d links at least, %v between comparisons, %v between pings, push delay %v; latency of a path 0.1 ms + exponential of mean 4 ms, jitter half of it\n\n",
		*figNodes, fanout, maxMesh, time.Second, time.Second, 3*time.Millisecond)
	fmt.Println(tab.String())
	for _, f := range tab.lines {
		if !f.reached() {
			t.Logf("goal missed: %s", f.name)
		}
	}
}

// figCluster measures a large cluster: spreading, rest and sustained load.
func figCluster(t *testing.T, tab *figureTable) {
	synctest.Test(t, func(t *testing.T) {
		h := newHerd(t, herdOptions{nodes: *figNodes, seed: 1})
		defer h.close()
		h.lossy(0)
		if !h.meshed(30 * time.Second) {
			t.Fatalf("no mesh after 30 s: %.1f links a node", h.degree())
		}
		time.Sleep(3 * time.Second)
		phase := func(name string) {
			t.Logf("%s: took %v of CPU so far, %.0f MiB", name, cpuTime().Round(time.Second), used())
		}
		phase("mesh")
		how := fmt.Sprintf("virtual time; %d nodes, %.1f links each", *figNodes, h.degree())
		p50, p99, last := h.spreads(8)
		tab.add(figure{"one change at half of the nodes", seconds(p50), "s", 0.5, false, how + ", worst of 8 changes, no loss"},
			figure{"… at 99 %", seconds(p99), "s", 1, false, ""}, figure{"… at the last node", seconds(last), "s", 1.5, false, ""})
		h.lossy(0.05)
		_, p99, last = h.spreads(5)
		tab.add(figure{"… at 99 %, 5 % of packets lost", seconds(p99), "s", 0, false, "worst of 5; a lost segment of a stream comes after 200 ms, 400 ms …"},
			figure{"… at the last node, 5 % lost", seconds(last), "s", 2, false, ""})
		h.lossy(0)
		time.Sleep(2 * time.Second)

		phase("spreading")
		before, cpu := h.net.sent, cpuTime()
		const rest = 10 * time.Second // one rotation of links
		time.Sleep(rest)
		sent := h.net.sent.minus(before)
		perNode := func(bytes int, d time.Duration) float64 {
			return float64(bytes) / 1000 / float64(len(h.nodes)) / d.Seconds()
		}
		tab.add(figure{"traffic at rest, streams, out of a node", perNode(sent.wire(), rest), "kB/s", 0, false,
			fmt.Sprintf("IP packets incl. headers, TLS records and ACKs; payload alone %.2g kB/s; %.1f links", perNode(sent.streamBytes, rest), h.degree())},
			figure{"CPU of a node at rest", 100 * (cpuTime() - cpu).Seconds() / rest.Seconds() / float64(len(h.nodes)), "% of a core", 0, false, "the simulated network included"})
		restKB = perNode(sent.wire(), rest)

		phase("rest")
		h.sustain(tab, *figRate, *figSustain)
		phase("load")
	})
}

// restKB is the streams' part of the traffic at rest; 0: not measured.
var restKB float64

// spreads returns the worst quantiles of a few changes.
func (h *herd) spreads(n int) (p50, p99, last time.Duration) {
	for range n {
		d := h.spread(5 * time.Second)
		p50 = max(p50, quantile(d, len(h.nodes), 0.5))
		p99 = max(p99, quantile(d, len(h.nodes), 0.99))
		last = max(last, quantile(d, len(h.nodes), 1))
		time.Sleep(100 * time.Millisecond)
	}
	return p50, p99, last
}

// sustain writes endpoints all over the cluster at a rate and watches what has
// not arrived yet.
func (h *herd) sustain(tab *figureTable, rate int, d time.Duration) {
	before, cpu := h.net.sent, cpuTime()
	copies := h.count(func(m *metrics) prometheus.Counter { return m.copies })
	applied := h.count(func(m *metrics) prometheus.Counter { return m.applied })
	gap := time.Second / time.Duration(rate)
	began := time.Now()
	written := 0
	// Each change is a record of its own, so that what has not arrived yet is
	// what was not applied.
	lag := func() float64 {
		return float64(written) - (h.count(func(m *metrics) prometheus.Counter { return m.applied })-applied)/float64(len(h.nodes)-1)
	}
	var lags []float64
	for next := began; time.Since(began) < d; {
		for ; !next.After(time.Now()); next = next.Add(gap) {
			h.endpoint(h.nodes[h.rng.IntN(len(h.nodes))])
			written++
		}
		if k := int(time.Since(began) / (d / 30)); k > len(lags) {
			lags = append(lags, lag())
		}
		time.Sleep(gap)
	}
	took := time.Since(began)
	sent, used := h.net.sent.minus(before), cpuTime()-cpu
	ended := time.Now()
	for lag() > 0 && time.Since(ended) < 10*time.Second {
		time.Sleep(10 * time.Millisecond)
	}
	drained := time.Since(ended)
	k := len(lags) / 3
	early, mid, late := mean(lags[:k]), mean(lags[k:2*k]), mean(lags[2*k:])
	carried := float64(written) / took.Seconds()
	if late > 1.5*mid+5 || drained >= 10*time.Second {
		carried = 0 // it cannot keep up
	}
	n := float64(len(h.nodes))
	copies = h.count(func(m *metrics) prometheus.Counter { return m.copies }) - copies
	applied = h.count(func(m *metrics) prometheus.Counter { return m.applied }) - applied
	tab.add(figure{"sustained endpoint changes, cluster-wide", carried, "/s", float64(rate), true,
		fmt.Sprintf("%d nodes for %v of virtual time; of the changes a node had not heard of %.0f on average in the first third, %.0f in the second, %.0f in the last; all there %v after the end", len(h.nodes), d, early, mid, late, drained.Round(time.Millisecond))},
		figure{"… CPU of a node", 100 * used.Seconds() / took.Seconds() / n, "% of a core", 0, false, "signatures verified; the simulated network included"},
		figure{"… traffic out of a node", float64(sent.wire()) / 1000 / n / took.Seconds(), "kB/s", 0, false, ""},
		figure{"… times that a node is sent a change", (copies + applied) / applied, "", 0, false, ""})
}

// count sums a counter over all nodes.
func (h *herd) count(of func(*metrics) prometheus.Counter) (sum float64) {
	for _, n := range h.nodes {
		sum += testutil.ToFloat64(of(n.g.met))
	}
	return sum
}

func mean(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// figHeal splits a cluster with real membership for ten minutes.
func figHeal(t *testing.T, tab *figureTable) {
	synctest.Test(t, func(t *testing.T) {
		const n = 32
		h := newHerd(t, herdOptions{nodes: n, seed: 3, membership: true})
		defer h.close()
		h.meshed(30 * time.Second)
		time.Sleep(10 * time.Second)
		h.split(true)
		for range 60 {
			for range 5 {
				h.endpoint(h.nodes[h.rng.IntN(n)])
			}
			time.Sleep(10 * time.Second)
		}
		if h.equal() {
			t.Fatal("the split leaks")
		}
		h.split(false)
		began := time.Now()
		for !h.equal() && time.Since(began) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		tab.add(figure{"records equal after a 10-minute split", seconds(time.Since(began)), "s", 10, false,
			fmt.Sprintf("virtual time; %d nodes with memberlist, halves, 300 changes meanwhile", n)})
	})
}

// figMembership measures memberlist's own traffic at rest. A thousand of it do
// not fit one process: probes do not depend on the size, the exchange of
// member lists grows with it and is stretched, see memberlist's pushPullScale.
func figMembership(t *testing.T, tab *figureTable) {
	synctest.Test(t, func(t *testing.T) {
		const n, d = 40, 60 * time.Second // 60 s: the interval between exchanges of 33 to 64 members
		h := newHerd(t, herdOptions{nodes: n, seed: 4, membership: true, edit: func(o *Options) { o.net.uncompressed = false }})
		defer h.close()
		h.lossy(0)
		h.meshed(30 * time.Second)
		listed := func() bool {
			return !slices.ContainsFunc(h.nodes, func(x *herdNode) bool { return len(x.g.memberNames()) < n })
		}
		for end := time.Now().Add(time.Minute); !listed() && time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(20 * time.Second)
		before := h.net.members
		time.Sleep(d)
		sent := h.net.members.minus(before)
		probes := float64(sent.packetBytes+28*sent.packets) / n / d.Seconds()
		// Each of n nodes has begun one exchange: two lists of n members.
		entry := float64(sent.streamBytes) / n / (2 * n)
		exchange := func(size int) float64 { return 2 * entry * float64(size) * (1 + 78.0/1448) }
		interval := 30.0 * (1 + ceilLog2(float64(*figNodes)/32))
		total := (probes + exchange(*figNodes)/interval) / 1000
		tab.add(figure{"traffic at rest, memberlist, out of a node", total, "kB/s", 0, false,
			fmt.Sprintf("probes measured with %d members: %.2g kB/s; lists: %.0f bytes a member measured, computed for %d members every %.0f s", n, probes/1000, entry, *figNodes, interval)})
		if restKB > 0 {
			tab.add(figure{"traffic at rest, both", restKB + total, "kB/s", 4, false, "digests do not grow with endpoints: at rest only their hash travels"})
		}
	})
}

func ceilLog2(v float64) float64 {
	k := 0.0
	for p := 1.0; p < v; p *= 2 {
		k++
	}
	return k
}
