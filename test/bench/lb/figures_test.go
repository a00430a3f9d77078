// Package lb measures what the load balancer promises: what a change costs,
// how fast connections are. `make bench-lb` runs it as root, in network
// namespaces of its own. Nothing is asserted: a goal that is missed says so.
package lb

import (
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	figures  = flag.Bool("figures", false, "measure the figures of services and print a table")
	figPairs = flag.Int("figures.pairs", 90, "pairs of measurements where two ways are compared")
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

type figureTable struct{ lines []figure }

func (t *figureTable) add(fs ...figure) { t.lines = append(t.lines, fs...) }

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
			goal, ratio, ok = strings.TrimSpace(fmt.Sprintf("%s %s %s", sign, num(f.goal), f.unit)), fmt.Sprintf("%.3g", f.value/f.goal), "reached"
			if !f.reached() {
				ok = "MISSED"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.name, strings.TrimSpace(num(f.value)+" "+f.unit), goal, ratio, ok, f.how)
	}
	return b.String()
}

func num(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// cpuTime is what this process has computed so far, the kernel on its behalf
// included.
func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// quantile returns the value below which a share of d lies. It sorts d.
func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

// ratio is a series of comparisons of two ways, one after the other.
type ratio []float64

// median returns the median with its 95 % interval, which assumes nothing of
// how the ratios are distributed: half of all pairs lie below the median, so
// that the ranks of the interval are those of a fair coin.
func (r ratio) median() (median, low, high float64) {
	s := slices.Sorted(slices.Values(r))
	n := float64(len(s))
	half := 0.98 * math.Sqrt(n)
	at := func(rank float64) float64 { return s[min(max(int(rank), 0), len(s)-1)] }
	return at(n / 2), at(math.Floor(n/2 - half)), at(math.Ceil(n/2 + half))
}

func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("run with -figures, or make bench-lb")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and nftables")
	}
	var tab figureTable
	began := time.Now()
	for _, part := range []struct {
		name string
		fn   func(*testing.T, *figureTable)
	}{
		{"updates", figUpdates}, {"others", figOthers}, {"traffic", figTraffic},
	} {
		t.Run(part.name, func(t *testing.T) {
			at := time.Now()
			part.fn(t, &tab)
			t.Logf("took %s", time.Since(at).Round(time.Second))
		})
		runtime.GC()
	}
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	load, _ := os.ReadFile("/proc/loadavg")
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Printf("\ncommit %s, %s, Linux %s, %d CPUs, load average at the end %s, %s\n\n", strings.TrimSpace(string(commit)), runtime.Version(),
		unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), strings.Join(strings.Fields(string(load))[:1], " "), time.Since(began).Round(time.Second))
	fmt.Println(tab.String())
}
