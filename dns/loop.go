package dns

import (
	"context"

	looping "nodenet/dns/loop"
)

// loop is what a forward finds in its block when `loop` is given.
type loop = looping.Loop

// testLoop sends the probe of one upstream in the background. When the
// question comes back here, the upstream loops, is disabled and reported. The
// server goes on.
func (f *forward) testLoop(ctx context.Context, u *upstream) {
	if f.loop == nil {
		return
	}
	f.probes.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		m, back, end := f.loop.Probe(f.from)
		defer end()
		_, err := u.exchange(ctx, m, f.forceTCP)
		if err != nil && !back() && u.looping.Load() {
			return // no answer proves nothing
		}
		if loops := back(); u.looping.Swap(loops) != loops {
			f.poke()
		}
	})
}
