package main

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
	"nodenet/node"
)

// now is when the goldens were looked at; ago dates things before it.
var now = time.Unix(1_700_000_000, 0).UTC()

func before(d time.Duration) int64 { return now.Add(-d).Unix() }

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; regenerate with -update, then read the diff):\n%s", file, diff)
	}
}

// testStatus is a node in the middle of a busy day: one peer dead, a service
// with a failing backend, one without any, a subsystem in trouble.
func testStatus() *api.Status {
	addr := netip.MustParseAddr
	return &api.Status{
		Version: "0.1.0", Node: "node1", NodeID: "abc", Started: before(134 * time.Second),
		Cluster: "prod", ClusterID: "c1", Synced: true, Revision: 812,
		Peers: []api.Peer{
			{Name: "node3", State: "dead", Since: before(95 * time.Minute), Address: addr("192.168.1.13"), Via: "vxlan", MTU: 1450, LastSync: 5_700_000},
			{Name: "node2", State: "alive", Address: addr("192.168.1.12"), Via: "vxlan", MTU: 1450, RTTMicro: 210, LastSync: 400},
			{Name: "node4", State: "unknown", LastSync: -1},
		},
		Networks: []api.NetworkStatus{
			{Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("10.244.1.0/24")},
				Used: 12, Owned: 1 << 15, Total: 506, Overlay: "vxlan", VNI: 1, Leases: 4, DHCP: true},
			{Name: "lab", Prefix: netip.MustParsePrefix("192.168.15.0/24"), Total: 253, Overlay: "none"},
		},
		Services: []api.Service{
			{Name: "db", Namespace: "default", VIP: addr("10.103.132.104"), Ports: []api.ServicePort{{Protocol: "tcp", Port: 3306}}, Ready: 2, Total: 2},
			{Name: "web", Namespace: "apps", VIP: addr("10.107.37.188"), Ready: 1, Total: 5,
				Ports: []api.ServicePort{{Protocol: "tcp", Port: 80, Target: 8080, NodePort: 30080}, {Protocol: "udp", Port: 53, TargetName: "dns"}},
				Backends: []api.ServiceBackend{
					{Addr: addr("10.244.0.2"), Name: "web-6", Ready: true},
					{Addr: addr("10.244.0.3"), Name: "web-7", Why: "failing: connect refused, 12 s"},
					{Addr: addr("10.244.0.4"), Why: "node node3 is dead"},
					{Addr: addr("10.244.0.5")}, {Addr: addr("10.244.0.6")},
				}},
			{Name: "api", Namespace: "apps", Ports: []api.ServicePort{{Protocol: "tcp", Port: 443}}, Select: map[string]string{"tier": "front", "app": "api"}},
			{Name: "peers", Namespace: "apps", Headless: true, Ready: 1, Total: 1},
			{Name: "mail", Namespace: "apps", External: "mail.example.com"},
		},
		Subsystems: []api.SubsystemStatus{
			{Name: "dns", OK: true, Desired: 812, Applied: 812, Detail: "10.96.0.10:53, 1.2k q/s, cache 83 %, forward 192.168.1.1 ok 3 ms"},
			{Name: "lb", Desired: 812, Applied: 809, Detail: "2 services, 4 backends", Error: "apply rules: operation not supported", Fix: "load the kernel module nf_tables"},
			{Name: "overlay", OK: true, Desired: 812, Applied: 811, Detail: "2 peers, 2 routes, no drift"},
			{Name: "dhcp", OK: true, Desired: 812, Applied: 812, Detail: "pods: 4 leases, 98 % free"},
		},
		Conflicts: []string{"service apps/web: node2 declares port 80, node1 port 81: node1's counts"},
	}
}

// dualStatus is a node whose networks and services have IPv6 in part.
func dualStatus() *api.Status {
	st := testStatus()
	st.Networks[0].Prefix6 = netip.MustParsePrefix("2001:db8:244::/112")
	st.Services[0].VIP6 = netip.MustParseAddr("2001:db8:96::7:8468")
	st.Services[1].VIP6 = netip.MustParseAddr("2001:db8:96::b:25bc")
	st.Services = append(st.Services, api.Service{Name: "six", Namespace: "apps", VIP6: netip.MustParseAddr("2001:db8:96::7"), Ports: []api.ServicePort{{Protocol: "tcp", Port: 80}}})
	st.Subsystems = nil
	return st
}

func TestClock(t *testing.T) {
	for ago, want := range map[time.Duration]string{10 * time.Minute: "22:03:20", 26 * time.Hour: "2023-11-13 20:13:20"} {
		if got := clock(now, before(ago)); got != want {
			t.Errorf("%s ago: %s, want %s", ago, got, want)
		}
	}
}

func TestStatusScreen(t *testing.T) {
	for name, st := range map[string]*api.Status{
		"status":      testStatus(),
		"status-dual": dualStatus(),
		"status-alone": {Node: "n", Started: before(26 * time.Hour), Cluster: "nodenet", Stale: true, StaleSince: before(26 * time.Hour), Revision: 3,
			Subsystems: []api.SubsystemStatus{{Name: "dns", OK: true, Desired: 3, Applied: 3, Detail: "10.96.0.10:53"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := writeStatus(&b, st, now); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.Bytes())
		})
	}
}

func TestTables(t *testing.T) {
	addr := netip.MustParseAddr
	st := testStatus()
	for name, table := range map[string]func(io.Writer){
		"endpoints": func(w io.Writer) {
			endpointTable(w, []api.Endpoint{
				{ID: "apps.web1", Name: "web1", Namespace: "apps", Addrs: []netip.Addr{addr("10.244.0.2")}, Node: "node1", Network: "pods", Kind: "attach", Ready: true, Serving: true, Labels: map[string]string{"app": "web", "a": "b"}},
				{ID: "0f3a", Namespace: "default", Addrs: []netip.Addr{addr("10.244.1.2"), addr("fd00::2")}, Node: "node2", Network: "pods", Kind: "cni", Ready: true},
				{ID: "x", Name: "vm", Namespace: "default", Node: "node2", Network: "pods", Kind: "dhcp"},
			})
		},
		"routes": func(w io.Writer) {
			routeTable(w, []api.Route{
				{Network: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/24"), Node: "node1", Via: "local", Device: "nn-pods", State: "alive", InKernel: true},
				{Network: "pods", Prefix: netip.MustParsePrefix("10.244.1.0/24"), Node: "node2", Via: "vxlan", NextHop: addr("192.168.1.12"), Device: "nv-pods", MAC: "02:00:00:00:00:02", State: "dead", Reason: "overlay vxlan"},
			})
		},
		"leases": func(w io.Writer) {
			leaseTable(w, []api.Lease{
				{Network: "pods", Addr: addr("10.244.0.9"), MAC: "52:54:00:00:00:01", Hostname: "vm1", Server: "node1", Expires: now.Add(50 * time.Minute).Unix()},
				{Network: "pods", Addr: addr("10.244.0.10"), MAC: "52:54:00:00:00:02", Server: "node2", Expires: before(time.Second)},
			}, now)
		},
		"service": func(w io.Writer) {
			s := st.Services[1]
			s.Source, s.Select = "command", map[string]string{"app": "web"}
			s.Backends[0].Ports, s.Backends[1].Ports = []uint16{8080, 53}, []uint16{8080, 0}
			s.Backends[0].Node = "node1"
			serviceDetail(w, &s, now)
		},
		"service-ipv6": func(w io.Writer) {
			serviceDetail(w, &api.Service{Name: "six", Namespace: "apps", VIP6: addr("2001:db8:96::7"), Source: "command", Ports: []api.ServicePort{{Protocol: "tcp", Port: 80}},
				ServiceSettings: api.ServiceSettings{Families: []string{"ipv6"}}}, now)
		},
		"service-all": func(w io.Writer) {
			conns := func(n int) *int { return &n }
			from := []string{"node1", "node2"}
			serviceDetail(w, &api.Service{
				Name: "shop", Namespace: "apps", VIP: addr("10.107.37.189"), Source: "nodefile", Ready: 2, Total: 6,
				Ports: []api.ServicePort{{Name: "rtp", Protocol: "udp", Port: 6000, Last: 6010, Target: 7000}, {Protocol: "tcp", Port: 80}},
				ServiceSettings: api.ServiceSettings{
					Check: "http", Probe: &api.Probe{Path: "/healthz", Host: "shop.example", Port: 81, IntervalMillis: 5000, Fall: 3}, SlowStartMillis: 30000,
					Balance: "maglev", AffinitySeconds: 600, Inside: "prefer-node", Outside: "local", Addresses: []netip.Addr{addr("198.51.100.7")}, Announce: true,
					Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32")}, HealthPort: 20080,
				},
				Backends: []api.ServiceBackend{
					{Addr: addr("10.244.0.2"), Name: "shop-1", Node: "node1", Zone: "rack-1", Ports: []uint16{7000, 80}, Ready: true, Weight: 99, Health: "ok", Since: before(3 * time.Minute), Conns: conns(12), ConnsFrom: from},
					{Addr: addr("10.244.0.3"), Name: "shop-2", Node: "node1", Zone: "rack-1", Ports: []uint16{7000, 80}, Ready: true, Weight: 1, Share: 25, Health: "ok", Since: before(7 * time.Second), Conns: conns(0), ConnsFrom: from},
					{Addr: addr("10.244.1.2"), Name: "shop-3", Node: "node2", Ports: []uint16{7000, 80}, Why: "draining", Weight: 1, Draining: true, Until: before(-4 * time.Minute), Health: "ok", Since: before(time.Hour), Conns: conns(3), ConnsFrom: from},
					{Addr: addr("10.244.1.3"), Name: "shop-4", Node: "node2", Ports: []uint16{7000, 80}, Why: "drained", Weight: 1, Draining: true, Failed: true, Until: before(time.Minute)},
					{Addr: addr("10.244.2.2"), Name: "shop-5", Node: "node3", Ports: []uint16{7000, 0}, Why: "GET http://10.244.2.2:81/healthz: timeout", Weight: 1, Health: "failing", Since: before(12 * time.Second), By: "node1"},
					{Addr: addr("192.0.2.7"), Port: 8080, Ports: []uint16{8080, 8080}, Why: "connect to 192.0.2.7:81: connection refused", Weight: 2, Failed: true, Health: "failing", Since: before(12 * time.Second), By: "node2"},
				},
			}, now)
		},
		"publish": func(w io.Writer) {
			publishTable(w, []api.Publish{
				{Key: "*:8443/tcp", Target: addr("10.244.0.2"), Port: 443, Source: "nodefile"},
				{Key: "192.0.2.1:53/udp", Target: addr("10.244.0.3"), Port: 53, Endpoint: "apps.dns", Source: "command"},
			})
		},
		"firewall": func(w io.Writer) {
			firewallTable(w, []api.Firewall{
				{Name: "docker", Found: true, On: true, Rules: []string{`ip filter DOCKER-USER iifname "nn-*" accept comment "nodenet"`, `ip filter DOCKER-USER oifname "nn-*" accept comment "nodenet"`}},
				{Name: "ufw"},
				{Name: "firewalld", Found: true, Error: "firewall firewalld: table inet firewalld can be changed by its owner only"},
			})
		},
		"hostdns": func(w io.Writer) {
			hostDNSPlan(w, &node.HostDNSPlan{
				Kind: "file",
				Changes: []node.FileChange{{
					Path:   "/etc/resolv.conf",
					Before: "nameserver 192.0.2.53\nsearch example.com\n",
					After:  "# ours\nnameserver 10.96.0.10\nnameserver 192.0.2.53\nsearch example.com\n",
				}, {Path: "/etc/systemd/resolved.conf.d/nodenet.conf", Before: "[Resolve]\n", Remove: true}},
				Then: "resolvconf -u", Notes: []string{"a DHCP client may take this away"},
			}, true)
		},
		"doctor": func(w io.Writer) {
			doctorTable(w, []api.Check{
				{Name: "forwarding", Status: "ok", Detail: "on"},
				{Name: "docker", Status: "fail", Detail: "chain FORWARD drops", Fix: "nodectl firewall integrate docker"},
			})
		},
		"dns-trace": func(w io.Writer) {
			dnsTraceTable(w, &api.DNSTrace{Name: "web", Type: "A", From: addr("10.244.1.5"), Server: "10.96.0.10", Tries: []api.DNSTry{
				{Name: "web.apps.svc.cluster.local.", Search: "apps.svc.cluster.local.", Rcode: "NXDOMAIN", Micros: 83, Steps: []api.DNSStep{
					{Block: ".:53", Plugin: "errors", Name: "web.apps.svc.cluster.local.", Type: "A", Decision: "passed on", Rcode: "NXDOMAIN", Micros: 80},
					{Block: ".:53", Plugin: "cluster", Name: "web.apps.svc.cluster.local.", Type: "A", Decision: "answered", Rcode: "NXDOMAIN", Micros: 41},
					{Block: ".:53", Plugin: "cluster", Name: "web.apps.svc.cluster.local.", Type: "A", Decision: "looked up", Rcode: "NXDOMAIN", Origin: "zone cluster.local., revision 12"},
				}},
				{Name: "web.svc.cluster.local.", Search: "svc.cluster.local.", Rcode: "NOERROR", Micros: 4200, Answer: []string{"web.svc.cluster.local.\t5\tIN\tA\t10.96.1.1"}, Steps: []api.DNSStep{
					{Block: ".:53", Plugin: "cluster", Name: "web.svc.cluster.local.", Type: "A", Decision: "looked up", Rcode: "NOERROR", Origin: "zone cluster.local., revision 12",
						Records: []api.DNSSource{{Kind: "service", Key: "apps/web", Node: "node2", Version: "17.4", Written: before(95 * time.Minute)}, {Kind: "zone", Key: "cluster.local."}}},
					{Block: ".:53", Plugin: "cache", Depth: 1, Name: "www.example.com.", Type: "A", Decision: "hit", AgeMillis: 3800, TTLMillis: 26200},
					{Block: ".:53", Plugin: "cache", Depth: 1, Name: "old.example.com.", Type: "A", Decision: "stale", AgeMillis: 600000, TTLMillis: -570000},
					{Block: ".:53", Plugin: "forward", Name: "web.svc.cluster.local.", Type: "A", Decision: "no answer", Upstream: "192.0.2.53:53", Error: "timeout", Micros: 2_000_000},
				}},
			}}, false, now)
		},
		"dns-top": func(w io.Writer) {
			dnsTopTable(w, &api.DNSTop{Millis: 1000, Queries: 12034, QPS: 12034, Rcodes: []api.DNSCount{{What: "NOERROR", Count: 12000}, {What: "NXDOMAIN", Count: 34}},
				Sources: []api.DNSCount{{What: "cluster", Count: 11000}, {What: "cache", Count: 1034}}, CacheHitPercent: 87.25,
				Latency: api.DNSLatency{Count: 40, P50: 61, P90: 180, P99: 2272, Max: 3550}, Sampled: 760, Every: 16,
				Names:   []api.DNSCount{{What: "web.apps.svc.cluster.local.", Count: 9000}, {What: "db.data.svc.cluster.local.", Count: 1200, Error: 16}},
				Clients: []api.DNSCount{{What: "10.244.1.5", Count: 12034}}})
		},
		"dns-top-idle": func(w io.Writer) { dnsTopTable(w, &api.DNSTop{Millis: 200, CacheHitPercent: -1, Every: 1}) },
		"dns": func(w io.Writer) {
			dnsAnswer(w, &api.DNSAnswer{Rcode: "NOERROR", Flags: []string{"qr", "aa"}, Server: "10.96.0.10", Micros: 41,
				Answer: []string{"web.apps.svc.cluster.local.\t5\tIN\tA\t10.107.37.188"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := columns(&b, table); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.Bytes())
		})
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                       "0s",
		59 * time.Second:        "59s",
		134 * time.Second:       "2m14s",
		95 * time.Minute:        "1h35m",
		49*time.Hour + 1:        "2d1h",
		-time.Minute:            "0s",
		100*24*time.Hour + 1:    "100d0h",
		time.Hour:               "1h0m",
		time.Minute:             "1m0s",
		time.Hour - time.Second: "59m59s",
		24*time.Hour - 1:        "1d0h", // whole seconds: 23:59:59.999999999 was rounded by Unix
	} {
		if got := age(now, before(d)); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
	if got := age(now, 0); got != "?" {
		t.Errorf("unknown start: %s", got)
	}
}
