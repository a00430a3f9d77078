package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// dhclientScript does what dhclient-script(8) does, with ip and in this
// namespace only; RESOLV is the namespace's own file.
const dhclientScript = `#!/bin/sh
case "$reason" in
BOUND|RENEW|REBIND|REBOOT)
	bits=0
	for n in $(echo $new_subnet_mask | tr . ' '); do
		while [ $n -gt 0 ]; do bits=$((bits + n % 2)); n=$((n / 2)); done
	done
	ip address replace $new_ip_address/$bits dev $interface
	for r in $new_routers; do ip route replace default via $r; break; done
	{
		for n in $new_domain_name_servers; do echo nameserver $n; done
		echo search ${new_domain_search:-$new_domain_name}
	} >RESOLV
	;;
RELEASE|EXPIRE|STOP|FAIL) ip address flush dev $interface ;;
PREINIT) ip link set $interface up ;;
esac
exit 0
`

// udhcpcScript is the same for udhcpc.
const udhcpcScript = `#!/bin/sh
case "$1" in
bound|renew)
	ip address replace $ip/$mask dev $interface
	for r in $router; do ip route replace default via $r; break; done
	{
		for n in $dns; do echo nameserver $n; done
		echo search ${search:-$domain}
	} >RESOLV
	;;
deconfig) ip address flush dev $interface; ip link set $interface up ;;
esac
exit 0
`

// dhcpClient is a running client and what makes it give its lease back.
type dhcpClient struct {
	name, addr string
	w          *scenario.Workload
	release    func()
}

// TestDHCP: clients that know nothing of nodenet get address, gateway,
// resolver and name, and keep them while the daemon is down.
func TestDHCP(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
    dhcp {
        lease 10m
    }
}
`})
	web := s.Workload(2, "web", "")
	web.Serve(80)
	clients := []*dhcpClient{dhclient(t, s, "vm1"), udhcpc(t, s, "vm2")}
	for _, c := range clients {
		s.Eventually(c.name+" has an address", soon, func() error {
			out, err := c.w.Exec("ip -o -4 address show dev eth0")
			if err != nil {
				return err
			}
			if f := strings.Fields(out); len(f) > 3 {
				c.addr, _, _ = strings.Cut(f[3], "/")
				return nil
			}
			return fmt.Errorf("none yet")
		})
		s.Want(c.addr, `^10\.244\.1\.\d+$`)
		s.Want(c.w.Run("ip route"), `^default via 10\.244\.1\.1 dev eth0`, `^10\.244\.1\.0/24 dev eth0`)
		s.Want(c.w.Run("cat /etc/resolv.conf"), `^nameserver (10\.96\.0\.10|10\.244\.1\.1)$`, `^search .*cluster\.local`)
		s.Want(c.w.Run(curl+"http://web.default.pod.cluster.local/"), `^web saw `+c.addr+`$`)
		for _, node := range []string{"node1", "node2"} {
			s.Eventually("its name is known on "+node, soon, func() error {
				return contains(lookup(s, node, c.name+".default.pod.cluster.local"), c.addr)
			})
			s.Want(s.Run(node, "nodectl lease ls"), c.addr+`\s.*`+c.name)
			s.Want(s.Run(node, "nodectl endpoints"), `^`+c.name+`\.default\s+`+c.addr+`\s+node1\s+pods\s+dhcp\s+yes`)
		}
		s.Want(web.Run("ping -q -c 1 -W 2 "+c.name+".default.pod.cluster.local"), "1 received")
	}
	if clients[0].addr == clients[1].addr {
		t.Errorf("both have %s", clients[0].addr)
	}
	before := leases(t, s, 2)

	kill(t, s, "node1", unix.SIGKILL)
	for _, c := range clients {
		s.Want(web.Run("ping -q -c 1 -W 2 "+c.addr), "1 received")
	}
	start(t, s, "node1")
	for i := 1; i <= 2; i++ {
		s.Eventually("the leases are there again", soon, func() error {
			if now := leases(t, s, i); now != before {
				return fmt.Errorf("node%d:\n%swant\n%s", i, now, before)
			}
			return nil
		})
	}
	// A new client must not get what the old ones hold.
	third := dhclient(t, s, "vm3")
	s.Eventually("vm3 has an address", soon, func() error {
		out, _ := third.w.Exec("ip -o -4 address show dev eth0")
		if f := strings.Fields(out); len(f) > 3 {
			third.addr, _, _ = strings.Cut(f[3], "/")
			return nil
		}
		return fmt.Errorf("none yet")
	})
	noDuplicates(t, s, 1)
	if third.addr == clients[0].addr || third.addr == clients[1].addr {
		t.Errorf("vm3 got %s, which another one holds", third.addr)
	}

	for _, c := range append(clients, third) {
		c.release()
		for i := 1; i <= 2; i++ {
			s.Eventually("the lease of "+c.name+" is gone", soon, func() error {
				if l := leases(t, s, i); strings.Contains(l, c.addr+" ") {
					return fmt.Errorf("node%d:\n%s", i, l)
				}
				if got := lookup(s, nodeName(i), c.name+".default.pod.cluster.local"); got != "" {
					return fmt.Errorf("node%d answers %s", i, got)
				}
				return nil
			})
		}
	}
}

// leases is what a node says about leases, without times.
func leases(t *testing.T, s *scenario.Scenario, i int) string {
	c := s.Lab.Node(i).Client()
	defer c.Close()
	list, err := c.Leases(t.Context())
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, l := range list {
		fmt.Fprintf(&b, "%s %s %s %d\n", l.Addr, l.MAC, l.Hostname, l.Granted)
	}
	return b.String()
}

// machine attaches a namespace that is to ask for its address.
func machine(t *testing.T, s *scenario.Scenario, name string) *scenario.Workload {
	t.Helper()
	s.Netns(name)
	// What `ip netns exec` shows as /etc/resolv.conf; the scripts fill it.
	must(t, os.MkdirAll("/etc/netns/"+name, 0o755))
	must(t, os.WriteFile("/etc/netns/"+name+"/resolv.conf", nil, 0o644))
	w := s.Attach(1, name, "--mode dhcp --resolv-conf none")
	if out, _ := w.Exec("ip -o -4 address show dev eth0"); strings.TrimSpace(out) != "" {
		t.Fatalf("attached with an address: %s", out)
	}
	return w
}

// script writes a client's script, executable.
func script(t *testing.T, s *scenario.Scenario, name, text string) string {
	t.Helper()
	path := filepath.Join(s.Dir(), name+".sh")
	must(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, "RESOLV", "/etc/netns/"+name+"/resolv.conf")), 0o755))
	return path
}

func dhclient(t *testing.T, s *scenario.Scenario, name string) *dhcpClient {
	t.Helper()
	w := machine(t, s, name)
	conf := filepath.Join(s.Dir(), name+".conf")
	must(t, os.WriteFile(conf, []byte(fmt.Sprintf("send host-name %q;\nrequest subnet-mask, routers, domain-name, domain-name-servers, domain-search, interface-mtu, host-name;\n", name)), 0o644))
	files := fmt.Sprintf("-4 -cf %s -lf %s/%s.leases -pf %s/%s.pid -sf %s", conf, s.Dir(), name, s.Dir(), name, script(t, s, name, dhclientScript))
	p := s.Background(scenario.Machine, "ip netns exec "+name+" dhclient -d "+files+" eth0")
	return &dhcpClient{name: name, w: w, release: func() {
		w.Run("dhclient -r " + files + " eth0")
		p.Stop()
	}}
}

func udhcpc(t *testing.T, s *scenario.Scenario, name string) *dhcpClient {
	t.Helper()
	w := machine(t, s, name)
	p := s.Background(scenario.Machine, fmt.Sprintf("ip netns exec %s udhcpc -f -R -i eth0 -s %s -p %s/%s.pid -x hostname:%s -O search", name, script(t, s, name, udhcpcScript), s.Dir(), name, name))
	return &dhcpClient{name: name, w: w, release: func() { p.Stop() }}
}
