package lb

import (
	"testing"
	"time"
)

// traffic6 is traffic over IPv6.
func traffic6(t *testing.T, tp *topology) {
	const vip, one, empty, both, far = "[fd00:10:96::14]:80", "[fd00:10:96::15]:80", "[fd00:10:96::16]:80", "[fd00:10:96::17]:80", "[fd00:10:96::18]:80"
	const udp, gw, w1, w2 = "[fd00:10:96::19]:53", "fd00:10:244::1", "fd00:10:244::2", "fd00:10:244::3"
	const node, outer = "2001:db8::11", "2001:db8::1"
	tests := map[string]struct {
		from    *space
		network string
		to      string
		want    []string
	}{
		"workload to itself and its sibling":   {tp.w1, "tcp", vip, []string{"w1 " + gw, "w2 " + w1}},
		"sibling on the same bridge":           {tp.w2, "tcp", one, []string{"w1 " + w2}},
		"workload to itself":                   {tp.w1, "tcp", one, []string{"w1 " + gw}},
		"workload to both nodes":               {tp.w2, "tcp", both, []string{"w1 " + w2, "far " + w2}},
		"workload to the other node":           {tp.w1, "tcp", far, []string{"far " + w1}},
		"sibling by UDP":                       {tp.w2, "udp", udp, []string{"w1 " + w2}},
		"itself by UDP":                        {tp.w1, "udp", udp, []string{"w1 " + gw}},
		"node to VIP":                          {tp.node, "tcp", vip, []string{"w1 " + node, "w2 " + node}},
		"node to the other node":               {tp.node, "tcp", far, []string{"far " + node}},
		"node by UDP":                          {tp.node, "udp", udp, []string{"w1 " + node}},
		"outside to VIP":                       {tp.outer, "tcp", vip, []string{"w1 " + outer, "w2 " + outer}},
		"outside to both nodes":                {tp.outer, "tcp", both, []string{"w1 " + outer, "far " + node}},
		"outside by UDP":                       {tp.outer, "udp", udp, []string{"w1 " + outer}},
		"sibling directly":                     {tp.w2, "tcp", "[fd00:10:244::2]:8080", []string{"w1 " + w2}},
		"node port from outside":               {tp.outer, "tcp", "[2001:db8::11]:30080", []string{"w1 " + outer, "w2 " + outer}},
		"node port from outside to both":       {tp.outer, "tcp", "[2001:db8::11]:30090", []string{"w1 " + outer, "far " + node}},
		"node port from the node":              {tp.node, "tcp", "[2001:db8::11]:30080", []string{"w1 " + node, "w2 " + node}},
		"node port from a workload":            {tp.w1, "tcp", "[2001:db8::11]:30080", []string{"w1 " + gw, "w2 " + w1}},
		"node port on the bridge's address":    {tp.w2, "tcp", "[fd00:10:244::1]:30080", []string{"w1 " + w2, "w2 " + gw}},
		"node port on the resolver":            {tp.w1, "tcp", "[fd00:10:96::a]:30080", []string{"refused"}},
		"node port without backends":           {tp.outer, "tcp", "[2001:db8::11]:30081", []string{"refused"}},
		"published port from outside":          {tp.outer, "tcp", "[2001:db8::11]:8080", []string{"w1 " + outer}},
		"published UDP port from outside":      {tp.outer, "udp", "[2001:db8::11]:5300", []string{"w1 " + outer}},
		"published port from the node":         {tp.node, "tcp", "[2001:db8::11]:8080", []string{"w1 " + node}},
		"published port from itself":           {tp.w1, "tcp", "[2001:db8::11]:8080", []string{"w1 " + gw}},
		"published port from its sibling":      {tp.w2, "tcp", "[2001:db8::11]:8080", []string{"w1 " + w2}},
		"published UDP port from its sibling":  {tp.w2, "udp", "[2001:db8::11]:5300", []string{"w1 " + w2}},
		"published port on loopback":           {tp.node, "tcp", "[::1]:8080", []string{"w1 10.244.0.1"}},
		"published UDP port on loopback":       {tp.node, "udp", "[::1]:5300", []string{"w1 10.244.0.1"}},
		"published on loopback only":           {tp.node, "tcp", "[::1]:9000", []string{"w2 " + gw}},
		"published on loopback, from outside":  {tp.outer, "tcp", "[2001:db8::11]:9000", []string{"refused"}},
		"published on a named address":         {tp.outer, "tcp", "[2001:db8::11]:8443", []string{"w2 " + outer}},
		"published on another address":         {tp.outer, "tcp", "[2001:db8::13]:8443", []string{"refused"}},
		"no backends from outside":             {tp.outer, "tcp", empty, []string{"refused"}},
		"no backends from a workload":          {tp.w1, "tcp", empty, []string{"refused"}},
		"no backends from the node":            {tp.node, "tcp", empty, []string{"refused"}},
		"unknown port from outside":            {tp.outer, "tcp", "[fd00:10:96::14]:81", []string{"refused"}},
		"unknown port from the node":           {tp.node, "udp", "[fd00:10:96::14]:81", []string{"denied"}},
		"other port of the resolver":           {tp.w1, "tcp", "[fd00:10:96::a]:22", []string{"refused"}},
		"other port of the resolver, the node": {tp.node, "tcp", "[fd00:10:96::a]:22", []string{"refused"}},
		"masquerade to the outside":            {tp.w1, "tcp", "[2001:db8::1]:7000", []string{"internet " + node}},
		"masquerade UDP to the outside":        {tp.w2, "udp", "[2001:db8::1]:7001", []string{"internet " + node}},
		"no masquerade inside the cluster":     {tp.w1, "tcp", "[fd00:10:244::102]:8080", []string{"far " + w1}},
	}
	// First of all: the kernel limits ICMPv6 errors to a client, and what it
	// tells of redirects counts among them (ndisc_send_redirect).
	t.Run("v6 unknown UDP port", func(t *testing.T) {
		calls(t, tp.w1, "udp", "[fd00:10:96::14]:81", "refused")
		calls(t, tp.outer, "udp", "[fd00:10:96::14]:81", "refused")
	})
	for name, tt := range tests {
		t.Run("v6 "+name, func(t *testing.T) {
			calls(t, tt.from, tt.network, tt.to, tt.want...)
		})
	}
	t.Run("v6 refusals are never late", func(t *testing.T) {
		for range 40 {
			start := time.Now()
			if got := tp.outer.call("tcp", empty); got != "refused" || time.Since(start) > 900*time.Millisecond {
				t.Fatalf("%s after %v", got, time.Since(start))
			}
		}
	})
	t.Run("v6 unallocated address is dropped", func(t *testing.T) {
		for _, s := range []*space{tp.outer, tp.w1} {
			if got := s.call("udp", "[fd00:10:96::909]:80"); got != "timeout" {
				t.Errorf("got %s, want no answer", got)
			}
		}
		if tp.outer.ping(addr("fd00:10:96::909")) {
			t.Error("it answers echo requests")
		}
	})
	t.Run("v6 ping", func(t *testing.T) {
		for _, s := range []*space{tp.w1, tp.outer, tp.node} {
			for _, a := range []string{"fd00:10:96::14", "fd00:10:96::16", "fd00:10:96::a"} {
				if !s.ping(addr(a)) {
					t.Errorf("%s does not answer", a)
				}
			}
		}
	})
	t.Run("v6 resolver without conntrack", func(t *testing.T) {
		const at = "[fd00:10:96::a]:53"
		tp.node.serve("dns", at, at)
		calls(t, tp.w1, "udp", at, "dns "+w1)
		calls(t, tp.w1, "tcp", at, "dns "+w1)
		calls(t, tp.outer, "udp", at, "dns "+outer)
		calls(t, tp.node, "udp", at, "dns fd00:10:96::a")
		calls(t, tp.node, "tcp", at, "dns fd00:10:96::a")
	})
	t.Run("v6 transit is untouched", func(t *testing.T) {
		tp.outer.serve("transit", "[2001:db8::1]:8080", "[2001:db8::1]:30080")
		calls(t, tp.w1, "tcp", "[2001:db8::1]:8080", "transit "+node)
		calls(t, tp.w1, "udp", "[2001:db8::1]:30080", "transit "+node)
	})
	t.Run("v6 neighbours are found", func(t *testing.T) {
		// Everybody asks anew, through whatever the guards do.
		for _, s := range []*space{tp.node, tp.w1, tp.w2, tp.outer} {
			s.forgetNeighbours()
		}
		calls(t, tp.w2, "tcp", "[fd00:10:244::2]:8080", "w1 "+w2)
		calls(t, tp.outer, "tcp", one, "w1 "+outer)
		calls(t, tp.w1, "tcp", far, "far "+w1)
	})
}
