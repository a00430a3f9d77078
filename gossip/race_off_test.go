//go:build !race

package gossip

import "testing"

// raceEnabled: the race detector makes everything several times slower.
const raceEnabled = false

func oneThread(*testing.T) {}
