// Package names holds the end-to-end tests of the name server: independent
// clients in workloads ask a real daemon, and its sockets outlive it.
package names

import (
	"testing"
	"time"

	"nodenet/test/scenario"
)

func TestMain(m *testing.M) { scenario.Main(m) }

// soon is for what a healthy machine does within a second or two.
const soon = 20 * time.Second

// The IP plan: node i is 192.168.1.(10+i) and has pinned 10.244.i.0/24.
const pinned = `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
}
services 10.96.0.0/12
`

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
