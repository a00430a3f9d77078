package lb

import (
	"net/netip"
	"strings"
	"testing"

	"nodenet/state"
)

// families is a view of services that have one IP version, whose backends
// have both.
func families() *state.View {
	four := svc("four", "10.96.0.30", "tcp", 80, 30130, "10.244.0.2:8080")
	six := svc("six", "10.96.0.31", "tcp", 80, 30131, "10.244.0.2:8080")
	named := svc("named", "10.96.0.32", "tcp", 80, 0, "10.244.0.2:8080")
	services := dual(four, six, named)
	four.Families, four.VIP6, four.Backends = state.FamilyV4, netip.Addr{}, four.Backends[:1]
	six.Families, six.VIP, six.Backends = state.FamilyV6, netip.Addr{}, six.Backends[1:]
	named.VIP6 = addr("fd00:10:96::77")
	return state.NewView(state.View{Rev: 1, Self: selfID, Publishes: []state.Publish{
		pub("2001:db8::11", "tcp", 8446, "10.244.0.3:8080"), // as versions before wrote it
		pub("192.0.2.11", "tcp", 8447, "10.244.0.3:8080"),
	}}, nil, services)
}

func TestServiceOfOneFamily(t *testing.T) {
	tab := Derive(families(), testLocal())
	if len(tab.Warnings) > 0 || tab.services != 3 {
		t.Errorf("%d services, warnings %v", tab.services, tab.Warnings)
	}
	var of4, of6 string
	for _, s := range append(tab.Services, tab.NodePorts...) {
		if name := strings.TrimPrefix(s.Name, "default/") + " "; versionOf(s.VIP) == V4 {
			of4 += name
		} else {
			of6 += name
		}
	}
	if of4 != "four named four " || of6 != "six named six " {
		t.Errorf("IPv4 %q, IPv6 %q", of4, of6)
	}
}

// TestFamilyTraffic: what a service does not have of one version is as if
// nobody had it.
func TestFamilyTraffic(t *testing.T) {
	tp := newTopology(t, families())
	for name, tt := range map[string]struct {
		from *space
		to   string
		want string
	}{
		"IPv6 only, from its backend":         {tp.w1, "[fd00:10:96::1f]:80", "w1 fd00:10:244::1"},
		"IPv6 only, from a sibling":           {tp.w2, "[fd00:10:96::1f]:80", "w1 fd00:10:244::3"},
		"IPv6 only, from the node":            {tp.node, "[fd00:10:96::1f]:80", "w1 2001:db8::11"},
		"IPv6 only, node port":                {tp.outer, "[2001:db8::11]:30131", "w1 2001:db8::1"},
		"IPv6 only, another port":             {tp.outer, "[fd00:10:96::1f]:81", "refused"},
		"IPv6 only, by IPv4":                  {tp.outer, "10.96.0.31:80", "timeout"},
		"IPv6 only, by IPv4, from a workload": {tp.w1, "10.96.0.31:80", "timeout"},
		"IPv6 only, node port by IPv4":        {tp.outer, "192.0.2.11:30131", "refused"},
		"IPv4 only":                           {tp.w2, "10.96.0.30:80", "w1 10.244.0.3"},
		"IPv4 only, by IPv6":                  {tp.outer, "[fd00:10:96::1e]:80", "timeout"},
		"IPv4 only, node port":                {tp.outer, "192.0.2.11:30130", "w1 192.0.2.1"},
		"IPv4 only, node port by IPv6":        {tp.outer, "[2001:db8::11]:30130", "refused"},
		"published, of before":                {tp.outer, "[2001:db8::11]:8446", "w2 2001:db8::1"},
		"published on IPv4":                   {tp.outer, "192.0.2.11:8447", "w2 192.0.2.1"},
		"named":                               {tp.outer, "[fd00:10:96::77]:80", "w1 2001:db8::1"},
		"named, by IPv4":                      {tp.outer, "10.96.0.32:80", "w1 192.0.2.1"},
		"named, the twin is nobody's":         {tp.outer, "[fd00:10:96::20]:80", "timeout"},
	} {
		t.Run(name, func(t *testing.T) { calls(t, tt.from, "tcp", tt.to, tt.want) })
	}
	var rs Ruleset
	var err error
	tp.node.do(func() { rs, err = tp.lb.Inspect() })
	if err != nil {
		t.Fatal(err)
	}
	for _, element := range []string{"10.96.0.31", ". 30131 : 10."} {
		if strings.Contains(rs.String(), element) {
			t.Errorf("the kernel has %s", element)
		}
	}
	if v := Trace(rs, Packet{In: "eth0", Src: addr("2001:db8::1"), Dst: addr("fd00:10:96::1f"), Proto: TCP, Dport: 80}); v.Target.String() != "[fd00:10:244::2]:8080" {
		t.Errorf("trace: %v", v)
	}
}
