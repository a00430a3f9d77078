package gossip

import (
	"math"
	"time"
)

// Flap damping, after RFC 2439: each death of a node adds to its penalty, which
// halves every half-life. A node whose penalty exceeds the cut-off is held: it
// is alive, its routes and names stay, but services prefer backends on other
// nodes until the penalty has decayed to the reuse mark. With these figures the
// third death within about a minute holds a node for some 50 s after it, each
// further one for longer, up to 2 minutes.
const (
	flapDeath    = 1000
	flapCutOff   = 2500
	flapReuse    = 750
	flapCeiling  = 12000 // flapReuse · 2⁴: four half-lives
	flapHalfLife = 30 * time.Second
)

// flap is what one node's deaths have added up to.
type flap struct {
	penalty float64
	at      time.Time // of penalty
	held    bool
	counted bool // its last death was
}

func (f *flap) now(now time.Time) float64 {
	return f.penalty * math.Exp2(-float64(now.Sub(f.at))/float64(flapHalfLife))
}

func (f *flap) add(n float64, now time.Time) {
	f.penalty, f.at = min(max(f.now(now)+n, 0), flapCeiling), now
	f.held = f.held && f.penalty > flapReuse || f.penalty > flapCutOff
}

// hold returns how much longer the node is held; 0: it is not.
func (f *flap) hold(now time.Time) time.Duration {
	if !f.held {
		return 0
	}
	p := f.now(now)
	if p <= flapReuse {
		f.held = false
		return 0
	}
	return time.Duration(math.Log2(p/flapReuse)*float64(flapHalfLife)) + time.Millisecond
}
