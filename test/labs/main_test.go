// Package labs holds the exercises from which people learn container
// networking, each done with nodenet in a lab of real daemons. A test asserts
// what must be seen, and is at the same time the page under docs/labs.
package labs

import (
	"testing"

	"nodenet/test/scenario"
)

func TestMain(m *testing.M) { scenario.Main(m) }
