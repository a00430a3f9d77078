//go:build !race

package gossip

// raceEnabled: the race detector makes everything several times slower.
const raceEnabled = false
