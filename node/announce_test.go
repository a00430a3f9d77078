package node

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
	"nodenet/lb/announce"
	"nodenet/state"
)

func TestLANsOf(t *testing.T) {
	link := func(index int, up bool, addrs ...string) announce.Link {
		l := announce.Link{Index: index, Name: fmt.Sprintf("if%d", index), MAC: announce.MAC{2, 0, 0, 0, 0, byte(index)}, Up: up}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
		}
		return l
	}
	text := func(list []state.LAN) (out []string) {
		for _, x := range list {
			out = append(out, fmt.Sprintf("%s %x", x.Addr, x.MAC))
		}
		return out
	}
	links := []announce.Link{link(7, true, "172.17.0.1/16"), link(3, false, "198.51.100.1/24"), link(2, true, "192.0.2.1/24", "2001:db8::1/64")}
	want := []string{"192.0.2.1/24 020000000002", "2001:db8::1/64 020000000002", "172.17.0.1/16 020000000007"}
	if diff := cmp.Diff(want, text(lansOf(links))); diff != "" {
		t.Errorf("LANs (-want +got):\n%s", diff)
	}
	for i := range 100 {
		links = append(links, link(100+i, true, fmt.Sprintf("10.0.%d.1/24", i)))
	}
	if got := text(lansOf(links)); len(got) != maxLANs || got[0] != want[0] {
		t.Errorf("of a host with 103 links it says %d, the first %s", len(got), got[0])
	}
}

func TestAnnouncementsOf(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.201")
	all := map[netip.Addr]api.Announcement{a: {Addr: a, Node: "node1"}, b: {Addr: b, Node: "node2"}}
	s := &state.ServiceView{Service: state.Service{Addresses: []netip.Addr{b}, Announce: true}}
	if diff := cmp.Diff([]api.Announcement{all[b]}, announcementsOf(s, all), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("announcements (-want +got):\n%s", diff)
	}
	s.Announce = false
	if got := announcementsOf(s, all); got != nil {
		t.Errorf("of a service that announces nothing: %+v", got)
	}
}
