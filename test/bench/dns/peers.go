package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// peer is how another name server is given the cluster's names. Each gets one
// thread, no rate limit and no log.
type peer struct {
	name  string
	write func(dir string, port, up int) error // its files
	argv  func(dir string, port int) []string
}

func peers() []peer {
	return []peer{
		{"nsd", writeNSD, func(dir string, _ int) []string { return []string{"nsd", "-d", "-c", dir + "/nsd.conf"} }},
		{"knot", writeKnot, func(dir string, _ int) []string { return []string{"knotd", "-c", dir + "/knot.conf"} }},
		{"unbound", writeUnbound, func(dir string, _ int) []string { return []string{"unbound", "-d", "-c", dir + "/unbound.conf"} }},
		{"dnsmasq", writeDnsmasq, func(dir string, port int) []string {
			return []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
				fmt.Sprint("--port=", port), "--listen-address=127.0.0.1", "--bind-interfaces", "--local=/cluster.local/", "--local-ttl=5",
				"--pid-file=", "--addn-hosts=" + dir + "/hosts"}
		}},
	}
}

// launch starts a peer, or returns nil when it is not installed.
func (p peer) launch(base string, port, up int) (*server, error) {
	dir := filepath.Join(base, p.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	argv := p.argv(dir, port)
	exe, err := exec.LookPath(argv[0])
	if err != nil {
		if exe, err = exec.LookPath("/usr/sbin/" + argv[0]); err != nil {
			return nil, nil
		}
	}
	argv[0] = exe
	if err := p.write(dir, port, up); err != nil {
		return nil, err
	}
	return start(p.name, dir, port, serverCore, argv...)
}

// zoneFiles writes the zones of names and of addresses.
func zoneFiles(dir string) error {
	var names, addrs strings.Builder
	for _, b := range []*strings.Builder{&names, &addrs} {
		fmt.Fprintf(b, "$TTL %d\n@ IN SOA ns.dns.%s hostmaster.%s 1 7200 1800 86400 5\n@ IN NS ns.dns.%s\n", ttl, zone, zone, zone)
	}
	fmt.Fprintf(&names, "ns.dns.%s IN A 127.0.0.1\n", zone)
	for _, r := range clusterRecords() {
		b := &names
		if r.rrType == "PTR" {
			b = &addrs
		}
		fmt.Fprintf(b, "%s IN %s %s\n", r.owner, r.rrType, r.data)
	}
	if err := os.WriteFile(dir+"/names.zone", []byte(names.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(dir+"/addrs.zone", []byte(addrs.String()), 0o644)
}

func conf(file, format string, args ...any) error {
	return os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o644)
}

func writeNSD(dir string, port, _ int) error {
	if err := zoneFiles(dir); err != nil {
		return err
	}
	return conf(dir+"/nsd.conf", `server:
  ip-address: 127.0.0.1@%d
  username: ""
  chroot: ""
  zonesdir: "%s"
  zonelistfile: "%s/zone.list"
  pidfile: ""
  xfrdfile: ""
  xfrdir: "%s"
  server-count: 1
  tcp-count: 10
  hide-version: yes
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: "cluster.local"
  zonefile: "names.zone"
zone:
  name: "96.10.in-addr.arpa"
  zonefile: "addrs.zone"
`, port, dir, dir, dir)
}

func writeKnot(dir string, port, _ int) error {
	if err := zoneFiles(dir); err != nil {
		return err
	}
	return conf(dir+"/knot.conf", `server:
  rundir: "%s"
  listen: 127.0.0.1@%d
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "%s"
log:
  - target: stderr
    any: error
template:
  - id: default
    storage: "%s"
    zonefile-load: whole
    zonefile-sync: -1
    journal-content: none
zone:
  - domain: cluster.local
    file: names.zone
  - domain: 96.10.in-addr.arpa
    file: addrs.zone
`, dir, port, dir, dir)
}

func writeUnbound(dir string, port, up int) error {
	var local strings.Builder
	for _, r := range clusterRecords() {
		fmt.Fprintf(&local, "  local-data: \"%s %d IN %s %s\"\n", r.owner, ttl, r.rrType, r.data)
	}
	return conf(dir+"/unbound.conf", `server:
  interface: 127.0.0.1
  port: %d
  num-threads: 1
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "%s"
  pidfile: ""
  use-syslog: no
  verbosity: 0
  module-config: "iterator"
  do-ip6: no
  do-not-query-localhost: no
  access-control: 127.0.0.0/8 allow
  outgoing-range: 8192
  num-queries-per-thread: 4096
  msg-cache-size: 64m
  rrset-cache-size: 128m
  local-zone: "cluster.local." static
  local-data: "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
  local-zone: "96.10.in-addr.arpa." static
%sforward-zone:
  name: "."
  forward-addr: 127.0.0.1@%d
remote-control:
  control-enable: no
`, port, dir, local.String(), up)
}

// writeDnsmasq: it searches its SRV records one after the other, so it gets
// none: those questions are answered with no data, which flatters it.
func writeDnsmasq(dir string, _, _ int) error {
	var hosts strings.Builder
	for i := range numServices {
		fmt.Fprintf(&hosts, "%s %s\n", serviceVIP(i), strings.TrimSuffix(serviceName(i), "."))
	}
	return os.WriteFile(dir+"/hosts", []byte(hosts.String()), 0o644)
}
