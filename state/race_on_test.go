//go:build race

package state

// raceEnabled: the race detector multiplies memory and time.
const raceEnabled = true
