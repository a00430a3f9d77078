//go:build race

package scenario

// raceEnabled: the daemons are built as the test is.
const raceEnabled = true
