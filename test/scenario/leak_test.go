package scenario

import (
	"strings"
	"testing"
)

// What a scenario leaves behind is named, and so is what it took away.
func TestWorldDiff(t *testing.T) {
	before := &world{netns: []string{"/run/netns/a"}, links: []string{"lo", "eth0"}}
	if err := before.diff(&world{netns: []string{"/run/netns/a"}, links: []string{"eth0", "lo"}}); err != nil {
		t.Errorf("nothing has changed but the order: %v", err)
	}
	now := &world{
		netns: []string{"/run/netns/a", "/run/netns/b"}, links: []string{"lo"},
		nft: []string{"table inet nodenet {"}, procs: []string{"7 nodectl run"},
	}
	err := before.diff(now)
	if err == nil {
		t.Fatal("no difference found")
	}
	for _, want := range []string{
		"network namespace left: /run/netns/b", "link gone: eth0", "nft line left: table inet nodenet {", "process left: 7 nodectl run",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}
