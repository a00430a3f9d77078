package main

import (
	"net/netip"
	"testing"

	"nodenet/api"
)

func TestAnnouncementText(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.200")
	const mac = "02:00:00:00:00:01"
	for _, tt := range []struct {
		name string
		a    api.Announcement
		want string
	}{
		{"elsewhere", api.Announcement{Addr: addr, Node: "node2"}, "192.0.2.200 announced by node2"},
		{"here", api.Announcement{Addr: addr, Node: "node1", Here: true, State: "announced", Device: "eth0", MAC: mac},
			"192.0.2.200 announced by node1 (this node), 02:00:00:00:00:01 at eth0"},
		{"claimed by another, too", api.Announcement{Addr: addr, Node: "node1", Here: true, State: "announced", Device: "eth0", MAC: mac, Problem: "also claimed by 02:00:00:00:00:07, which is no node"},
			"192.0.2.200 announced by node1 (this node), 02:00:00:00:00:01 at eth0: also claimed by 02:00:00:00:00:07, which is no node"},
		{"nobody", api.Announcement{Addr: addr, Problem: "no node on its LAN is alive"}, "192.0.2.200 announced by nobody: no node on its LAN is alive"},
		{"in use", api.Announcement{Addr: addr, Node: "node1", Here: true, State: "in use by a stranger", Problem: "in use by 02:00:00:00:00:07, which is no node"},
			"192.0.2.200 not taken by node1 (this node): in use by 02:00:00:00:00:07, which is no node"},
		{"yielded", api.Announcement{Addr: addr, Node: "node1", Here: true, State: "yielded", To: "node2"}, "192.0.2.200 yielded to node2 by node1 (this node)"},
		{"waiting", api.Announcement{Addr: addr, Node: "node1", Here: true, State: "waiting", Problem: "eth0 is down or has no carrier"},
			"192.0.2.200 waiting at node1 (this node): eth0 is down or has no carrier"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := announcementText(&tt.a); got != tt.want {
				t.Errorf("text %q, want %q", got, tt.want)
			}
		})
	}
}
