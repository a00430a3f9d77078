package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"nodenet/config"
	"nodenet/lb"
)

// fakeHost is a host of files below /proc, sockets and other firewalls.
type fakeHost struct {
	fakeSockets
	files map[string]string
	drops []lb.InputDrop
	rules map[string]string
	v6    bool // the node has IPv6
	err   error
}

func (h *fakeHost) Read(path string) string { return h.files[path] }

func (h *fakeHost) RuleFiles() map[string]string { return h.rules }

func (h *fakeHost) InputDrops([]lb.Port) ([]lb.InputDrop, error) { return h.drops, h.err }

// healthy is a host with nothing to complain of, and changes to it.
func healthy(changes ...string) *fakeHost {
	h := &fakeHost{files: map[string]string{
		"sys/net/ipv4/ip_forward":                       "1",
		"sys/net/bridge/bridge-nf-call-iptables":        "1",
		"sys/net/ipv4/conf/all/rp_filter":               "0",
		"sys/net/ipv4/conf/default/rp_filter":           "2",
		"sys/net/netfilter/nf_conntrack_count":          "100",
		"sys/net/netfilter/nf_conntrack_max":            "1000",
		"sys/net/netfilter/nf_conntrack_tcp_loose":      "1",
		"sys/net/netfilter/nf_conntrack_tcp_be_liberal": "0",
		"sys/net/ipv4/ip_local_port_range":              "32768\t60999",
		"net/stat/nf_conntrack":                         "entries found drop early_drop\n0a 00 00 00\n0a 00 00 00",
		"net/netstat":                                   "TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 7 0\nIpExt: InNoRoutes\nIpExt: 3",
	}}
	for i := 0; i+1 < len(changes); i += 2 {
		h.files[changes[i]] = changes[i+1]
	}
	return h
}

// TestLinter: each fault is told once, with a fix, and nothing else is.
func TestLinter(t *testing.T) {
	s := site{nodePorts: config.PortRange{First: 30000, Last: 32767}, dns: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("192.0.2.1")}}
	with := func(h *fakeHost, f func(*fakeHost)) *fakeHost { f(h); return h }
	only6 := func(h *fakeHost) {
		h.drops = []lb.InputDrop{{Family: "ip6", Table: "filter", Chain: "INPUT", Ports: []lb.Port{{Proto: "udp", Number: 4789}}}}
	}
	saved := func(text string) func(*fakeHost) {
		return func(h *fakeHost) { h.rules = map[string]string{"/etc/nftables.conf": text} }
	}
	for name, c := range map[string]struct {
		host        *fakeHost
		check       string // empty: all are well
		status      string
		detail, fix string // parts of them
	}{
		"all is well":             {host: healthy()},
		"no br_netfilter":         {host: healthy("sys/net/bridge/bridge-nf-call-iptables", "")},
		"no forwarding":           {healthy("sys/net/ipv4/ip_forward", "0"), "ip forwarding", bad, "= 0", "/etc/sysctl.d"},
		"strict, nothing dropped": {host: healthy("sys/net/ipv4/conf/all/rp_filter", "1")},
		"strict": {healthy("sys/net/ipv4/conf/all/rp_filter", "1", "net/netstat", "TcpExt: A IPReversePathFilter B\nTcpExt: 7 12 9"),
			"rp_filter", warn, "12 packets dropped", "net.ipv4.conf.all.rp_filter=2"},
		"loose, martians":       {host: healthy("net/netstat", "TcpExt: A IPReversePathFilter B\nTcpExt: 7 12 9")},
		"conntrack nearly full": {healthy("sys/net/netfilter/nf_conntrack_count", "801"), "conntrack", warn, "801 of 1000", "nf_conntrack_max=2000"},
		"conntrack full":        {healthy("sys/net/netfilter/nf_conntrack_count", "1000"), "conntrack", bad, "new connections are dropped", "nf_conntrack_max=2000"},
		"conntrack was full": {healthy("net/stat/nf_conntrack", "entries found drop early_drop\n0a 00 10 00\n0a 00 00 02"),
			"conntrack", warn, "18 packets dropped", "nf_conntrack_max=2000"},
		"not loose": {healthy("sys/net/netfilter/nf_conntrack_tcp_loose", "0"), "conntrack loose", warn, "not picked up", "nf_conntrack_tcp_loose=1"},
		"client ports": {healthy("sys/net/ipv4/ip_local_port_range", "1024 65535"), "node ports", warn, "overlap the host's own client ports 1024-65535",
			"ip_local_reserved_ports=30000-32767"},
		"client ports, reserved": {host: healthy("sys/net/ipv4/ip_local_port_range", "1024 65535", "sys/net/ipv4/ip_local_reserved_ports", "8080,30000-32767")},
		"client ports, others reserved": {healthy("sys/net/ipv4/ip_local_port_range", "32000 65535", "sys/net/ipv4/ip_local_reserved_ports", "8080"),
			"node ports", warn, "overlap", "ip_local_reserved_ports=8080,30000-32767"},
		"input": {with(healthy(), func(h *fakeHost) {
			h.drops = []lb.InputDrop{{Family: "ip", Table: "filter", Chain: "INPUT", Ports: []lb.Port{{Proto: "udp", Number: 4789}}}}
		}), "input rules", warn, "chain ip filter INPUT drops what it does not know and names none of 4789/udp", "accept 4789/udp"},
		"input of IPv6":             {with(with(healthy(), only6), func(h *fakeHost) { h.v6 = true }), "input rules", warn, "names none of 4789/udp (only IPv6 is hit)", "accept 4789/udp"},
		"input of IPv6, without it": {host: with(healthy(), only6)},
		"saved rules": {with(healthy(), saved("flush ruleset\ntable inet host {\n}\ntable inet nodenet-hold { # progname nodectl\n")), "saved rules", warn,
			"/etc/nftables.conf has table inet nodenet-hold in it", "nft list tables | grep -v ' nodenet'"},
		"saved rules of the balancer": {with(healthy(), saved("table inet nodenet {\n")), "saved rules", warn, "table inet nodenet in it", "nft list"},
		"saved rules of others":       {host: with(healthy(), saved("# table inet nodenet\ntable inet nodenetwork {\n}\ndelete table inet nodenet\n"))},
		"input cannot be read":        {with(healthy(), func(h *fakeHost) { h.err = errors.New("not permitted") }), "input rules", skip, "not permitted", ""},
		"a resolver on all addresses": {with(healthy(), func(h *fakeHost) { h.list = []string{"udp 0.0.0.0:53 dnsmasq (pid 4)"} }),
			"other resolvers", bad, "dnsmasq (pid 4) at 0.0.0.0:53/udp is in the way", "bind-interfaces"},
		"a resolver on ours": {with(healthy(), func(h *fakeHost) { h.list = []string{"tcp 192.0.2.1:53 named (pid 4)"} }),
			"other resolvers", bad, "named (pid 4)", "bind"},
		"resolved":   {host: with(healthy(), func(h *fakeHost) { h.list = []string{"udp 127.0.0.53:53 systemd-resolve (pid 4)"} })},
		"our server": {host: with(healthy(), func(h *fakeHost) { h.list = []string{"udp 192.0.2.1:53 nodectl"} })},
	} {
		t.Run(name, func(t *testing.T) {
			seen := false
			s := s
			if c.host.v6 {
				s.dns = append(slices.Clip(s.dns), netip.MustParseAddr("fd00:10:96::a"))
			}
			for _, k := range append(checkHost(c.host), checkSite(c.host, s)...) {
				switch {
				case k.Name == c.check:
					seen = true
					if k.Status != c.status || !strings.Contains(k.Detail, c.detail) || !strings.Contains(k.Fix, c.fix) || (k.Fix == "") != (c.fix == "") {
						t.Errorf("got %+v, want %s, %q, fix %q", k, c.status, c.detail, c.fix)
					}
				case k.Status != okay || k.Fix != "" || k.Detail == "":
					t.Errorf("%+v, want it to be well", k)
				}
			}
			if seen != (c.check != "") {
				t.Errorf("check %q is missing", c.check)
			}
		})
	}
}

func TestFirewallChecks(t *testing.T) {
	got := firewallChecks([]lb.FirewallState{
		{Name: "docker", Found: true, On: true, Rules: []string{"a", "b"}},
		{Name: "ufw", Found: true},
		{Name: "firewalld", Found: true, On: true, Error: "firewall firewalld: its owner only: run `firewall-cmd x`"},
	}, true)
	var text []string
	for _, c := range got {
		text = append(text, c.Name+" "+c.Status+" "+c.Fix)
	}
	want := []string{"firewall docker ok ", "firewall ufw ok ", "firewall firewalld warn run `firewall-cmd x`", "iptables-legacy warn see that"}
	for i, w := range want {
		if i >= len(text) || !strings.HasPrefix(text[i], w) {
			t.Fatalf("got %q, want %q", text, want)
		}
	}
	if got := firewallChecks([]lb.FirewallState{{Name: "docker"}}, false); len(got) != 0 {
		t.Errorf("a host without firewalls: %+v", got)
	}
}
