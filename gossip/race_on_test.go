//go:build race

package gossip

import (
	"runtime"
	"sync"
	"testing"
)

// raceEnabled: the race detector makes everything several times slower.
const raceEnabled = true

// oneThread keeps tests with virtual time on one processor. With two, the
// runtime of Go 1.26 crashes now and then under the race detector: goroutines of a
// bubble that look at a timer's channel share one of the detector's contexts
// without a lock (runtime.timer.unlockAndRun).
func oneThread(t *testing.T) {
	bubbles.Lock()
	defer bubbles.Unlock()
	if bubbles.n++; bubbles.n == 1 {
		bubbles.procs = runtime.GOMAXPROCS(1)
	}
	t.Cleanup(func() {
		bubbles.Lock()
		defer bubbles.Unlock()
		if bubbles.n--; bubbles.n == 0 {
			runtime.GOMAXPROCS(bubbles.procs)
		}
	})
}

var bubbles struct {
	sync.Mutex
	n, procs int // how many tests, and the processors of before
}
