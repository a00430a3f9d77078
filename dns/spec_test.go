package dns

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"

	"nodenet/state"
)

// specServers are the configurations that TestStatements asks, by name.
func specServers() map[string]string {
	return map[string]string{
		"": `cluster.local in-addr.arpa ip6.arpa example.org {
    cluster cluster.local in-addr.arpa ip6.arpa
    hosts testdata/hosts example.org
}
. {
    cluster static.invalid
}`,
		"insecure":                 "cluster.local {\n cluster {\n pods insecure\n }\n}",
		"verified":                 "cluster.local {\n cluster {\n pods verified\n }\n}",
		"ttl 0":                    "cluster.local {\n cluster {\n ttl 0\n }\n}",
		"ttl 3600":                 "cluster.local {\n cluster {\n ttl 3600\n }\n}",
		"noendpoints":              "cluster.local 10.0.0.0/8 {\n cluster {\n noendpoints\n }\n}",
		"namespaces":               "cluster.local 10.0.0.0/8 {\n cluster {\n namespaces data\n }\n}",
		"two zones":                "cluster.local lab.example 10.0.0.0/8 {\n cluster\n}",
		"/12":                      "cluster.local 10.96.0.0/12 {\n cluster\n}\n. {\n whoami\n}",
		"/25":                      "cluster.local 10.244.1.0/25 2001:db8::/31 {\n cluster\n}\n. {\n whoami\n}",
		"fallthrough":              "cluster.local in-addr.arpa {\n cluster {\n fallthrough\n }\n whoami\n}",
		"fallthrough in-addr.arpa": "cluster.local in-addr.arpa {\n cluster {\n fallthrough in-addr.arpa\n }\n whoami\n}",
	}
}

// specView has VIPs in 10.96.0.0/12, endpoints in 10.244.0.0/16, and IPv6 in
// 2001:db8::/32.
func specView() *state.View {
	port := func(name, proto string, p uint16) state.ServicePort {
		return state.ServicePort{Name: name, Protocol: proto, Port: p}
	}
	backend := func(a, host string, ready bool, targets ...uint16) state.BackendOf {
		return state.BackendOf{Addr: addr(a), Hostname: host, Ready: ready, Targets: targets}
	}
	endpoint := func(ns, name string, serving bool, addrs ...string) *state.EndpointView {
		e := &state.EndpointView{Endpoint: new(state.Endpoint), Owner: "n1", Serving: serving}
		e.ID, e.Namespace, e.Name, e.Network = ns+"."+name, ns, name, "pods"
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, addr(a))
		}
		return e
	}
	aliased := endpoint("apps", "cache", true, "10.244.1.9", "2001:db8:1::9")
	aliased.Aliases = []string{"redis"}
	weighted := func(b state.BackendOf, w uint16) state.BackendOf { b.Weight = w; return b }
	draining := func(b state.BackendOf) state.BackendOf { b.Draining = true; return b }
	lease := endpoint("default", "Printer.lan", true, "10.244.2.77")
	lease.Lease = true
	statics := []state.Name{
		{Name: "shop.cluster.local", Type: "CNAME", Target: "web.apps.svc.cluster.local"},
		{Name: "away.cluster.local", Type: "CNAME", Target: "target.example.org"},
		{Name: "gone.cluster.local", Type: "CNAME", Target: "nothing.apps.svc.cluster.local"},
		{Name: "void.cluster.local", Type: "CNAME", Target: "nothing.example.org"},
		{Name: "ring.cluster.local", Type: "CNAME", Target: "gnir.cluster.local"},
		{Name: "gnir.cluster.local", Type: "CNAME", Target: "ring.cluster.local"},
		{Name: "food.web-server", Type: "A", Target: "192.0.2.10"},
		{Name: "food.web-server", Type: "AAAA", Target: "2001:db8::10"},
		{Name: "eat.web-server", Type: "CNAME", Target: "food.web-server"},
		{Name: "meal.web-server", Type: "CNAME", Target: "eat.web-server"},
		{Name: "web.apps.svc.cluster.local", Type: "A", Target: "192.0.2.1"},
		{Name: "c11.cluster.local", Type: "A", Target: "192.0.2.11"},
	}
	for i := range 11 {
		statics = append(statics, state.Name{
			Name: fmt.Sprintf("c%d.cluster.local", i), Type: "CNAME", Target: fmt.Sprintf("c%d.cluster.local", i+1),
		})
	}
	return state.NewView(state.View{
		Rev: 7, Self: "n1",
		Nodes: []state.NodeView{
			{ID: "n1", Node: state.Node{Name: "Node1", Advertise: addr("192.168.1.11")}, Serving: true},
			{ID: "n2", Node: state.Node{Name: "node2", Advertise: addr("2001:db8::12")}, Serving: true},
			{ID: "n3", Node: state.Node{Name: "node3", Advertise: addr("192.168.1.13")}},
		},
		Networks: []state.NetworkView{{Network: state.Network{
			Name: "pods", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Overlay: state.OverlayVXLAN,
		}}},
		Names: statics,
	}, []*state.EndpointView{
		aliased, lease, endpoint("apps", "sick", false, "10.244.1.66"), endpoint("apps", "", true, "10.244.1.30"),
	}, []*state.ServiceView{
		{
			Service:  state.Service{Namespace: "apps", Name: "web", Ports: []state.ServicePort{port("http", "tcp", 80), port("", "udp", 443)}},
			VIP:      addr("10.107.37.188"),
			Backends: []state.BackendOf{backend("10.244.1.9", "", true, 8080, 8443), backend("10.244.1.66", "", false, 8080, 8443)},
		},
		{Service: state.Service{Namespace: "apps", Name: "six", Ports: []state.ServicePort{port("dns", "udp", 53)}}, VIP6: addr("2001:db8:96::1")},
		{Service: state.Service{Namespace: "apps", Name: "waiting", Ports: []state.ServicePort{port("http", "tcp", 80)}}},
		{Service: state.Service{Namespace: "apps", Name: "out", External: "Target.Example.Org"}},
		{Service: state.Service{Namespace: "apps", Name: "in", External: "web.apps.svc.cluster.local."}},
		{
			Service: state.Service{Namespace: "data", Name: "db", Headless: true, Ports: []state.ServicePort{port("sql", "tcp", 3306), port("metrics", "tcp", 9104)}},
			Backends: []state.BackendOf{
				backend("10.244.1.20", "db-0", true, 3306, 9104), backend("10.244.1.21", "DB-1", true, 3307, 0),
				backend("10.244.1.22", "db-2", false, 3306, 9104), backend("10.244.1.23", "", true, 3306, 9104),
				backend("2001:db8:1::20", "db-0", true, 3306, 9104),
			},
		},
		{
			Service:  state.Service{Namespace: "data", Name: "asleep", Headless: true, Ports: []state.ServicePort{port("sql", "tcp", 3306)}},
			Backends: []state.BackendOf{backend("10.244.1.22", "db-2", false, 3306)},
		},
		{
			Service: state.Service{Namespace: "data", Name: "canary", Headless: true, Ports: []state.ServicePort{port("sql", "tcp", 3306)}},
			Backends: []state.BackendOf{
				weighted(backend("10.244.1.50", "c-0", true, 3306), 99), weighted(backend("10.244.1.51", "c-1", true, 3306), 1),
				weighted(draining(backend("10.244.1.52", "c-2", false, 3306)), 7),
			},
		},
		{
			Service: state.Service{Namespace: "data", Name: "going", Headless: true, Ports: []state.ServicePort{port("sql", "tcp", 3306)}},
			Backends: []state.BackendOf{
				draining(backend("10.244.1.60", "g-0", false, 3306)), draining(backend("10.244.1.61", "g-1", false, 3306)), backend("10.244.1.62", "g-2", false, 3306),
			},
		},
		{Service: state.Service{Namespace: "data", Name: "none", Headless: true}},
		{
			Service:  state.Service{Namespace: "data", Name: "mute", Headless: true, Ports: []state.ServicePort{port("", "tcp", 80)}},
			Backends: []state.BackendOf{backend("10.244.1.40", "m-0", true, 80), backend("10.244.1.41", "m-0", true, 80)},
		},
	})
}

// TestStatements asks for every statement of the Kubernetes DNS specification
// 1.1.0 (numbers are its sections), and of our own about names, what must be
// there and what must not.
//
// Names are relative to cluster.local. An answer is written as in a zone file,
// with additional records after a line "+". NODATA and NXDOMAIN stand for an
// authoritative answer with the SOA of the zone, or of another one given. Every
// question is asked in mixed case too, and of the receive loop.
func TestStatements(t *testing.T) {
	const reverse6 = ".0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."
	for _, tt := range []struct{ server, statement, ask, want string }{
		{"", "2.2 the version of the schema", "dns-version TXT", `dns-version TXT "1.1.0"`},
		{"", "2.2 and nothing else there", "dns-version A", "NODATA"},

		{"", "2.3.1 A of a cluster IP; a static name does not replace it", "web.apps.svc A", "web.apps.svc A 10.107.37.188"},
		{"", "2.3.1 AAAA of a cluster IP", "six.apps.svc AAAA", "six.apps.svc AAAA 2001:db8:96::1"},
		{"", "2.3.1 no AAAA for IPv4", "web.apps.svc AAAA", "NODATA"},
		{"", "2.3.1 no A for IPv6", "six.apps.svc A", "NODATA"},
		{"", "2.3.1 another type", "web.apps.svc MX", "NODATA"},
		{"", "2.3.1 a service that has no address yet", "waiting.apps.svc A", "NODATA"},
		{"", "2.3.1 no such service", "nothing.apps.svc A", "NXDOMAIN"},
		{"", "2.3.1 not in another namespace", "web.data.svc A", "NXDOMAIN"},
		{"", "2.3.1 no such namespace", "web.nowhere.svc A", "NXDOMAIN"},
		{"", "2.3.1 not without svc", "web.apps A", "NXDOMAIN"},
		{"", "2.3.2 SRV of a named port", "_http._tcp.web.apps.svc SRV", "_http._tcp.web.apps.svc SRV 0 100 80 web.apps.svc\n+\nweb.apps.svc A 10.107.37.188"},
		{"", "2.3.2 SRV, IPv6", "_dns._udp.six.apps.svc SRV", "_dns._udp.six.apps.svc SRV 0 100 53 six.apps.svc\n+\nsix.apps.svc AAAA 2001:db8:96::1"},
		{"", "2.3.2 not of another protocol", "_http._udp.web.apps.svc SRV", "NXDOMAIN"},
		{"", "2.3.2 no such port", "_https._tcp.web.apps.svc SRV", "NXDOMAIN"},
		{"", "2.3.2 unnamed ports have no name", "_udp.web.apps.svc SRV", "NXDOMAIN"},
		{"", "2.3.2 the name of a port has SRV only", "_http._tcp.web.apps.svc A", "NODATA"},
		{"", "SRV of the bare name: every port", "web.apps.svc SRV", "web.apps.svc SRV 0 50 80 web.apps.svc\nweb.apps.svc SRV 0 50 443 web.apps.svc\n+\nweb.apps.svc A 10.107.37.188"},
		{"", "2.3.3 PTR of a cluster IP", "188.37.107.10.in-addr.arpa. PTR", "188.37.107.10.in-addr.arpa. PTR web.apps.svc"},
		{"", "2.3.3 PTR, IPv6", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR six.apps.svc"},
		{"", "2.3.3 no such address", "189.37.107.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."},
		{"", "2.3.3 no such address, IPv6", "2.0.0.0.0" + reverse6 + " PTR", "NXDOMAIN ip6.arpa."},
		{"", "2.3.3 another type", "188.37.107.10.in-addr.arpa. A", "NODATA in-addr.arpa."},

		{"", "2.4.1 A of ready endpoints", "db.data.svc A", "db.data.svc A 10.244.1.20\ndb.data.svc A 10.244.1.21\ndb.data.svc A 10.244.1.23"},
		{"", "2.4.1 AAAA of ready endpoints", "db.data.svc AAAA", "db.data.svc AAAA 2001:db8:1::20"},
		{"", "2.4.1 endpoint by its host name", "db-0.db.data.svc A", "db-0.db.data.svc A 10.244.1.20"},
		{"", "2.4.1 two families, one host name", "db-0.db.data.svc AAAA", "db-0.db.data.svc AAAA 2001:db8:1::20"},
		{"", "2.4.1 several addresses, one host name", "m-0.mute.data.svc A", "m-0.mute.data.svc A 10.244.1.40\nm-0.mute.data.svc A 10.244.1.41"},
		{"", "2.4.1 host names are lower-case", "db-1.db.data.svc A", "db-1.db.data.svc A 10.244.1.21"},
		{"", "2.4.1 an identifier where there is no host name", "10-244-1-23.db.data.svc A", "10-244-1-23.db.data.svc A 10.244.1.23"},
		{"", "2.4.1 not beside a host name", "10-244-1-20.db.data.svc A", "NXDOMAIN"},
		{"", "2.4.1 an endpoint that is not ready", "db-2.db.data.svc A", "NXDOMAIN"},
		{"", "2.4.1 none is ready", "asleep.data.svc A", "NXDOMAIN"},
		{"", "2.4.1 none at all", "none.data.svc A", "NXDOMAIN"},
		{"", "2.4.2 SRV: N endpoints by M ports", "_sql._tcp.db.data.svc SRV", "_sql._tcp.db.data.svc SRV 0 33 3306 db-0.db.data.svc\n_sql._tcp.db.data.svc SRV 0 33 3307 db-1.db.data.svc\n_sql._tcp.db.data.svc SRV 0 33 3306 10-244-1-23.db.data.svc\n+\ndb-0.db.data.svc A 10.244.1.20\ndb-0.db.data.svc AAAA 2001:db8:1::20\ndb-1.db.data.svc A 10.244.1.21\n10-244-1-23.db.data.svc A 10.244.1.23"},
		{"", "2.4.2 not of an endpoint without that port", "_metrics._tcp.db.data.svc SRV", "_metrics._tcp.db.data.svc SRV 0 50 9104 db-0.db.data.svc\n_metrics._tcp.db.data.svc SRV 0 50 9104 10-244-1-23.db.data.svc\n+\ndb-0.db.data.svc A 10.244.1.20\ndb-0.db.data.svc AAAA 2001:db8:1::20\n10-244-1-23.db.data.svc A 10.244.1.23"},
		{"", "2.4.2 of one endpoint", "_sql._tcp.db-1.db.data.svc SRV", "_sql._tcp.db-1.db.data.svc SRV 0 100 3307 db-1.db.data.svc\n+\ndb-1.db.data.svc A 10.244.1.21"},
		{"", "2.4.2 unnamed ports: of the bare name only", "mute.data.svc SRV", "mute.data.svc SRV 0 100 80 m-0.mute.data.svc\n+\nm-0.mute.data.svc A 10.244.1.40\nm-0.mute.data.svc A 10.244.1.41"},
		{"", "2.4.2 unnamed ports have no name", "_tcp.mute.data.svc SRV", "NXDOMAIN"},
		{"", "SRV by weight where backends differ in it; one that drains is not there", "_sql._tcp.canary.data.svc SRV", "_sql._tcp.canary.data.svc SRV 0 99 3306 c-0.canary.data.svc\n_sql._tcp.canary.data.svc SRV 0 1 3306 c-1.canary.data.svc\n+\nc-0.canary.data.svc A 10.244.1.50\nc-1.canary.data.svc A 10.244.1.51"},
		{"", "one that drains is not among the addresses", "canary.data.svc A", "canary.data.svc A 10.244.1.50\ncanary.data.svc A 10.244.1.51"},
		{"", "of a weighted one alone", "_sql._tcp.c-1.canary.data.svc SRV", "_sql._tcp.c-1.canary.data.svc SRV 0 100 3306 c-1.canary.data.svc\n+\nc-1.canary.data.svc A 10.244.1.51"},
		{"", "those that drain are the last resort", "going.data.svc A", "going.data.svc A 10.244.1.60\ngoing.data.svc A 10.244.1.61"},
		{"", "but not those that fail", "g-2.going.data.svc A", "NXDOMAIN"},
		{"", "2.4.2 none is ready", "_sql._tcp.asleep.data.svc SRV", "NXDOMAIN"},
		{"", "2.4.3 PTR of an endpoint: its host name", "20.1.244.10.in-addr.arpa. PTR", "20.1.244.10.in-addr.arpa. PTR db-0.db.data.svc"},
		{"", "2.4.3 PTR of an endpoint, IPv6", "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR", "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR db-0.db.data.svc"},
		{"", "2.4.3 PTR of an endpoint without host name", "23.1.244.10.in-addr.arpa. PTR", "23.1.244.10.in-addr.arpa. PTR 10-244-1-23.db.data.svc"},
		{"", "2.4.3 PTR of a backend of a service with a VIP", "9.1.244.10.in-addr.arpa. PTR", "9.1.244.10.in-addr.arpa. PTR 10-244-1-9.web.apps.svc"},
		{"", "2.4.3 not of one that is not ready", "22.1.244.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."},

		{"", "2.5 external name", "out.apps.svc CNAME", "out.apps.svc CNAME target.example.org."},
		{"", "2.5 followed, as stub resolvers do not", "out.apps.svc A", "out.apps.svc CNAME target.example.org.\ntarget.example.org. 3600 A 192.168.1.10"},
		{"", "2.5 to a service", "in.apps.svc A", "in.apps.svc CNAME web.apps.svc\nweb.apps.svc A 10.107.37.188"},
		{"", "2.5 to a service, another type", "in.apps.svc AAAA", "in.apps.svc CNAME web.apps.svc\nNODATA"},

		{"", "2.6 pods: off unless asked for", "10-244-1-9.apps.pod A", "NXDOMAIN"},
		{"insecure", "2.6 pods: insecure takes any address", "192-0-2-9.apps.pod A", "192-0-2-9.apps.pod A 192.0.2.9"},
		{"insecure", "2.6 pods: IPv6", "2001-db8--9.apps.pod AAAA", "2001-db8--9.apps.pod AAAA 2001:db8::9"},
		{"insecure", "2.6 pods: one family", "192-0-2-9.apps.pod AAAA", "NODATA"},
		{"insecure", "2.6 pods: namespaces that exist", "192-0-2-9.nowhere.pod A", "NXDOMAIN"},
		{"insecure", "2.6 pods: not an address", "192-0-2.apps.pod A", "NXDOMAIN"},
		{"insecure", "2.6 pods: not below an address", "a.192-0-2-9.apps.pod A", "NXDOMAIN"},
		{"verified", "2.6 pods: verified, given out", "10-244-1-30.apps.pod A", "10-244-1-30.apps.pod A 10.244.1.30"},
		{"verified", "2.6 pods: verified, not given out", "192-0-2-9.apps.pod A", "NXDOMAIN"},
		{"verified", "2.6 pods: verified, in another namespace", "10-244-1-30.default.pod A", "NXDOMAIN"},
		{"verified", "2.6 pods: verified, not ready", "10-244-1-66.apps.pod A", "NXDOMAIN"},

		{"", "a workload's name", "cache.apps.pod A", "cache.apps.pod A 10.244.1.9"},
		{"", "a workload's name, IPv6", "cache.apps.pod AAAA", "cache.apps.pod AAAA 2001:db8:1::9"},
		{"", "a workload's alias", "redis.apps.pod A", "redis.apps.pod A 10.244.1.9"},
		{"", "a workload's name in another namespace", "cache.data.pod A", "NXDOMAIN"},
		{"", "a workload that is not ready", "sick.apps.pod A", "NXDOMAIN"},
		{"", "the name of a DHCP client, up to its dot", "printer.default.pod A", "printer.default.pod A 10.244.2.77"},
		{"", "the way back to it", "77.2.244.10.in-addr.arpa. PTR", "77.2.244.10.in-addr.arpa. PTR printer.default.pod"},
		{"", "a node's name", "node1.node A", "node1.node A 192.168.1.11"},
		{"", "a node's name, IPv6", "node2.node AAAA", "node2.node AAAA 2001:db8::12"},
		{"", "a node's name, another type", "node2.node A", "NODATA"},
		{"", "a node that does not serve", "node3.node A", "NXDOMAIN"},

		{"", "static: A", "food.web-server. A", "food.web-server. A 192.0.2.10"},
		{"", "static: AAAA", "food.web-server. AAAA", "food.web-server. AAAA 2001:db8::10"},
		{"", "static: CNAME", "eat.web-server. CNAME", "eat.web-server. CNAME food.web-server."},
		{"", "static: a chain", "meal.web-server. A", "meal.web-server. CNAME eat.web-server.\neat.web-server. CNAME food.web-server.\nfood.web-server. A 192.0.2.10"},
		{"", "static: another type", "food.web-server. MX", "NODATA food.web-server."},
		{"", "static: in the zone, to a service", "shop A", "shop CNAME web.apps.svc\nweb.apps.svc A 10.107.37.188"},
		{"", "static: out of the zone", "away A", "away CNAME target.example.org.\ntarget.example.org. 3600 A 192.168.1.10"},
		{"", "static: to a service that is not there", "gone A", "NXDOMAIN\ngone CNAME nothing.apps.svc"},
		{"", "static: out of the zone, to nothing", "void A", "NXDOMAIN example.org. 30\nvoid CNAME nothing.example.org."},
		{"", "static: ten aliases", "c1 A", "c1 CNAME c2\nc2 CNAME c3\nc3 CNAME c4\nc4 CNAME c5\nc5 CNAME c6\nc6 CNAME c7\nc7 CNAME c8\nc8 CNAME c9\nc9 CNAME c10\nc10 CNAME c11\nc11 A 192.0.2.11"},
		{"", "static: eleven aliases", "c0 A", "SERVFAIL"},
		{"", "static: a ring", "ring A", "SERVFAIL"},
		{"", "static: one of a ring", "ring CNAME", "ring CNAME gnir"},

		{"", "exists without data: the apex", "@ A", "NODATA"},
		{"", "exists without data: svc", "svc A", "NODATA"},
		{"", "exists without data: pod", "pod A", "NODATA"},
		{"", "exists without data: node", "node A", "NODATA"},
		{"", "exists without data: a namespace", "apps.svc A", "NODATA"},
		{"", "exists without data: between names (RFC 8020)", "_tcp.web.apps.svc A", "NODATA"},
		{"", "exists without data: between reverse names", "244.10.in-addr.arpa. PTR", "NODATA in-addr.arpa."},
		{"", "exists not: below a name with data", "a.web.apps.svc A", "NXDOMAIN"},
		{"", "exists not: a namespace", "nowhere.svc A", "NXDOMAIN"},
		{"", "exists not: anything", "lost A", "NXDOMAIN"},
		{"", "SOA", "@ SOA", "@ SOA ns.dns hostmaster 7 7200 1800 86400 5"},
		{"", "SOA of a reverse zone", "in-addr.arpa. SOA", "in-addr.arpa. SOA ns.dns hostmaster 7 7200 1800 86400 5"},
		{"", "NS", "@ NS", "@ NS ns.dns"},
		{"", "nobody's name", "example.net. A", "REFUSED"},
		{"ttl 0", "TTL 0", "web.apps.svc A", "web.apps.svc 0 A 10.107.37.188"},
		{"ttl 0", "TTL 0 of a denial", "nothing.apps.svc A", "NXDOMAIN @ 0"},
		{"ttl 3600", "TTL 3600", "web.apps.svc A", "web.apps.svc 3600 A 10.107.37.188"},
		{"ttl 3600", "TTL 3600 of a denial", "web.apps.svc AAAA", "NODATA @ 3600"},

		{"noendpoints", "no endpoints: a service has its address", "web.apps.svc A", "web.apps.svc A 10.107.37.188"},
		{"noendpoints", "no endpoints: nothing headless", "db.data.svc A", "NXDOMAIN"},
		{"noendpoints", "no endpoints: nor by name", "db-0.db.data.svc A", "NXDOMAIN"},
		{"noendpoints", "no endpoints: nor backwards", "20.1.244.10.in-addr.arpa. PTR", "NXDOMAIN 10.in-addr.arpa."},
		{"namespaces", "namespaces: one that is shown", "db-0.db.data.svc A", "db-0.db.data.svc A 10.244.1.20"},
		{"namespaces", "namespaces: one that is not", "six.apps.svc AAAA", "NXDOMAIN"},
		{"namespaces", "namespaces: nor its name", "default.svc A", "NXDOMAIN"},
		{"namespaces", "namespaces: nor backwards", "188.37.107.10.in-addr.arpa. PTR", "NXDOMAIN 10.in-addr.arpa."},

		{"two zones", "every zone has all names", "web.apps.svc.lab.example. A", "web.apps.svc.lab.example. A 10.107.37.188"},
		{"two zones", "every zone has its own targets", "_http._tcp.web.apps.svc.lab.example. SRV", "_http._tcp.web.apps.svc.lab.example. SRV 0 100 80 web.apps.svc.lab.example.\n+\nweb.apps.svc.lab.example. A 10.107.37.188"},
		{"two zones", "every zone has its version", "dns-version.lab.example. TXT", `dns-version.lab.example. TXT "1.1.0"`},
		{"two zones", "every zone denies by itself", "nothing.lab.example. A", "NXDOMAIN lab.example."},
		{"two zones", "backwards is the first zone", "188.37.107.10.in-addr.arpa. PTR", "188.37.107.10.in-addr.arpa. PTR web.apps.svc"},

		{"/12", "a prefix between octets", "188.37.107.10.in-addr.arpa. PTR", "188.37.107.10.in-addr.arpa. PTR web.apps.svc"},
		{"/12", "inside of it", "1.0.111.10.in-addr.arpa. PTR", "NXDOMAIN 111.10.in-addr.arpa."},
		{"/12", "outside of it", "20.1.244.10.in-addr.arpa. PTR", "WHOAMI"},
		{"/12", "right behind it", "1.0.112.10.in-addr.arpa. PTR", "WHOAMI"},
		{"/25", "a prefix in the last octet", "20.1.244.10.in-addr.arpa. PTR", "20.1.244.10.in-addr.arpa. PTR db-0.db.data.svc"},
		{"/25", "an address inside of it", "127.1.244.10.in-addr.arpa. PTR", "NODATA 127.1.244.10.in-addr.arpa."},
		{"/25", "outside of it", "128.1.244.10.in-addr.arpa. PTR", "WHOAMI"},
		{"/25", "a prefix between nibbles", "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR", "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR db-0.db.data.svc"},
		{"/25", "its other half", "1.9.b.d.0.1.0.0.2.ip6.arpa. PTR", "NXDOMAIN 9.b.d.0.1.0.0.2.ip6.arpa."},
		{"/25", "right behind it", "1.a.b.d.0.1.0.0.2.ip6.arpa. PTR", "WHOAMI"},

		{"fallthrough", "fallthrough: what does not exist", "nothing.apps.svc A", "WHOAMI"},
		{"fallthrough", "fallthrough: not what has no such data", "web.apps.svc AAAA", "NODATA"},
		{"fallthrough", "fallthrough: not what is between names", "_tcp.web.apps.svc A", "NODATA"},
		{"fallthrough", "fallthrough: not where an alias led to nothing", "gone A", "NXDOMAIN\ngone CNAME nothing.apps.svc"},
		{"fallthrough in-addr.arpa", "fallthrough of a zone", "1.2.0.192.in-addr.arpa. PTR", "WHOAMI"},
		{"fallthrough in-addr.arpa", "fallthrough not of another", "nothing.apps.svc A", "NXDOMAIN"},
	} {
		t.Run(cmp.Or(tt.server, "cluster")+": "+tt.statement, func(t *testing.T) {
			s, err := New(Options{Servers: servers(t, specServers()[tt.server])})
			if err != nil {
				t.Fatal(err)
			}
			start(t, s, specView())
			name, qtype, _ := strings.Cut(tt.ask, " ")
			if name == "@" {
				name = "cluster.local."
			} else if !strings.HasSuffix(name, ".") {
				name += ".cluster.local."
			}
			want := specReply(t, tt.want, name, qtype)
			if diff := gocmp.Diff(want, render(ask(t, s, name, qtype))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.ask, diff)
			}
			m := new(wire.Msg)
			m.SetQuestion(name, wire.StringToType[qtype])
			if query, err := m.Pack(); err != nil {
				t.Error(err)
			} else {
				both(t, s, new(responder), query)
			}
			mixed := mixCase(name)
			r := ask(t, s, mixed, qtype)
			if got := r.Question[0].Name; got != mixed {
				t.Errorf("question %s came back as %s", mixed, got)
			}
			for _, rr := range r.Answer {
				if owner := rr.Header().Name; strings.EqualFold(owner, name) && owner != mixed {
					t.Errorf("asked for %s, got records of %s", mixed, owner)
				}
			}
			if diff := gocmp.Diff(lowered(want), lowered(render(r))); diff != "" {
				t.Errorf("%s in mixed case (-want +got):\n%s", tt.ask, diff)
			}
		})
	}
}

// lowered returns the lines of a reply in lower case, in their order then.
func lowered(reply string) []string {
	lines := strings.Split(strings.ToLower(reply), "\n")
	slices.Sort(lines)
	return lines
}

// specReply makes what render writes from the short form of TestStatements.
func specReply(t *testing.T, text, qname, qtype string) string {
	t.Helper()
	zone := func(s string) (out []string) {
		p := wire.NewZoneParser(strings.NewReader(s+"\n"), "cluster.local.", "")
		p.SetDefaultTTL(5)
		for rr, ok := p.Next(); ok; rr, ok = p.Next() {
			out = append(out, strings.Join(strings.Fields(rr.String()), " ")+"\n")
		}
		if err := p.Err(); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		return out
	}
	answer, additional, _ := strings.Cut(text, "\n+\n")
	head, authority := "NOERROR aa\n", ""
	var lines []string
	for line := range strings.SplitSeq(answer, "\n") {
		f := strings.Fields(line)
		switch f[0] {
		case "SERVFAIL", "REFUSED":
			head = f[0] + "\n"
		case "WHOAMI":
			return "NOERROR aa\n" + whoamiOf(qname, qtype)
		case "NODATA", "NXDOMAIN":
			if f[0] == "NXDOMAIN" {
				head = "NXDOMAIN aa\n"
			}
			origin, ttl := "@", "5"
			if len(f) > 1 {
				origin = f[1]
			}
			if len(f) > 2 {
				ttl = f[2]
			}
			owner, serial := "", "7"
			switch {
			case origin == "example.org.": // of hosts
				owner, serial = "."+origin, "1"
			case !strings.HasSuffix(origin, ".arpa.") && origin != "@":
				owner = "." + origin
			}
			authority = "authority " + zone(fmt.Sprintf("%s %s IN SOA ns.dns%s hostmaster%s %s 7200 1800 86400 %s", origin, ttl, owner, owner, serial, ttl))[0]
		default:
			lines = append(lines, zone(line)...)
		}
	}
	slices.Sort(lines)
	out := head + strings.Join(lines, "") + authority
	if additional != "" {
		lines = nil
		for _, line := range zone(additional) {
			lines = append(lines, "additional "+line)
		}
		slices.Sort(lines)
		out += strings.Join(lines, "")
	}
	return out
}

// whoamiOf is what whoami tells the client of ask.
func whoamiOf(name, qtype string) string {
	section := "additional "
	if qtype == "A" {
		section = ""
	}
	return fmt.Sprintf("%s%s 0 IN A %s\nadditional _udp.%[2]s 0 IN SRV 0 0 %[4]d .\n", section, name, client.Addr(), client.Port())
}
