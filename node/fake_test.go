package node

import (
	"testing"

	"nodenet/dhcp"
	"nodenet/overlay"
)

// newIdleOverlay is an overlay that is never run.
func newIdleOverlay(t *testing.T) *overlay.Overlay {
	t.Helper()
	o, err := overlay.New(overlay.Options{})
	if err != nil {
		t.Skipf("no netlink here: %v", err)
	}
	t.Cleanup(o.Close)
	return o
}

func newIdleBook(n *Node) *dhcp.Book { return dhcp.NewBook(n.store, n.pickLease) }
