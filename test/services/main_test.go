// Package services holds the tests of what operators and checks do to the
// backends of services: each runs a lab of real daemons and looks at what
// clients get.
package services

import (
	"testing"

	"nodenet/test/scenario"
)

func TestMain(m *testing.M) { scenario.Main(m) }
