package gossip

import (
	"flag"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The simulator runs the real gossip, state and ipam code of a few nodes in
// one process: memberlist, streams, replication, the allocator and its
// donations over Gossip.Call. Only sockets, disks and clocks are replaced: by a
// simNet, a simLog and testing/synctest's virtual time, and in most seeds TLS by a plainConn.
//
// A seed fixes the faults, their times, the network's latencies and losses and
// each node's workload. It does not fix how the Go scheduler interleaves
// goroutines at one instant, nor crypto/rand and the jitter that gossip and
// memberlist draw themselves: a failure that hangs on those may need its seed
// several times, as in
//
//	go test ./gossip/ -run '^TestSim$' -sim.seed=17 -count=20
var (
	simSeed    = flag.Uint64("sim.seed", 0, "run this one simulation")
	simSeeds   = flag.Int("sim.seeds", 0, "run this many simulations (0: as many as fit a CI run)")
	simFirst   = flag.Uint64("sim.first", 1, "the first seed of -sim.seeds")
	simRounds  = flag.Int("sim.rounds", simDefaultRounds, "faults of one simulation")
	simTLS     = flag.Bool("sim.tls", false, "TLS in all simulations, not only in one of eight")
	simVerbose = flag.Bool("sim.log", false, "print the nodes' logs of a simulation that fails")
)

const (
	simDefaultSeeds  = 30
	simRaceSeeds     = 10 // with the race detector; `make test` runs many without
	simDefaultRounds = 2
	// simTLSPart: one seed of so many runs with real TLS, the others over plainConn.
	simTLSPart = 8
)

func TestSim(t *testing.T) {
	oneThread(t)
	var seeds []uint64
	count := *simSeeds
	if count == 0 {
		count = simDefaultSeeds
		if raceEnabled {
			count = simRaceSeeds
		}
		if testing.Short() {
			count = 4
		}
	}
	for i := range count {
		seeds = append(seeds, *simFirst+uint64(i))
	}
	if *simSeed != 0 {
		seeds = []uint64{*simSeed}
	}
	// Many small worlds that soon are garbage: less collecting, more running.
	gc := debug.SetGCPercent(1200)
	var mu sync.Mutex
	total, slowest := map[string]int{}, time.Duration(0)
	var virtual time.Duration
	t.Cleanup(func() {
		debug.SetGCPercent(gc)
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(total)) {
			parts = append(parts, fmt.Sprintf("%s %d", k, total[k]))
		}
		t.Logf("%d seeds, %s of virtual time, slowest heal %s: %s", len(seeds), virtual.Round(time.Second), slowest, strings.Join(parts, ", "))
	})
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				size := []int{3, 2, 3, 4, 5, 3, 4, 5, 3, 7}[seed%10]
				s := newSim(t, seed, size)
				s.plain = !*simTLS && seed%simTLSPart != 0
				defer s.report()
				defer s.close()
				for _, n := range s.nodes {
					n.start()
				}
				s.settle()
				if !s.failed() {
					s.episodes(*simRounds)
				}
				mu.Lock()
				defer mu.Unlock()
				for k, v := range s.counts {
					total[k] += v
				}
				slowest, virtual = max(slowest, s.healing), virtual+time.Since(s.began)
			})
		})
	}
}
