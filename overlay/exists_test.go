package overlay

import (
	"testing"

	"github.com/vishvananda/netlink"

	"nodenet/state"
)

// Somebody who takes our alias off a port must not make its address look free.
func TestPortWithoutAliasExists(t *testing.T) {
	c := newCluster(t, state.OverlayNone, 1)
	c.start()
	n := c.nodes[0]
	w := newNS(t, "w")
	res, err := n.ov.Attach(t.Context(), spec("ctr1", w, "10.244.1.2/24"))
	if err != nil {
		t.Fatal(err)
	}
	n.do(func() error {
		l, err := netlink.LinkByName(res.HostIf)
		if err != nil {
			return err
		}
		return netlink.LinkSetAlias(l, "somebody's")
	})
	if !n.ov.Exists(res.HostIf) {
		t.Error("a port that is there is said to be gone")
	}
	if err := n.ov.Detach(t.Context(), DetachSpec{ID: "ctr1"}); err != nil {
		t.Fatal(err)
	}
	if n.ov.Exists(res.HostIf) {
		t.Error("a port that is gone is said to be there")
	}
}
