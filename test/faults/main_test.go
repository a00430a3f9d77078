// Package faults holds the tests of what goes wrong: daemons that crash,
// cables that are pulled, disks that fill up, people who flush rules. Each
// runs a lab of real daemons and asserts what its users notice, which is
// nothing where nothing needs to be noticed.
package faults

import (
	"testing"

	"nodenet/test/scenario"
)

func TestMain(m *testing.M) { scenario.Main(m) }
