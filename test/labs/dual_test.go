package labs

import (
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestDualStack: with an IPv6 range beside each IPv4 one, workloads, services,
// node ports and published ports have both, and a client on a third node
// reaches them over IPv6 by name.
func TestDualStack(t *testing.T) {
	for _, overlay := range []string{"vxlan", "auto"} {
		t.Run(overlay, func(t *testing.T) { dualStack(t, overlay) })
	}
}

func dualStack(t *testing.T, overlay string) {
	s := scenario.New(t)
	s.Up(lab.Options{Name: "dual", Nodes: 3, Nodefile: `network pods 10.244.0.0/16 fd00:10:244::/112 {
    overlay ` + overlay + `
    masquerade
}
services 10.96.0.0/12 fd00:10:96::/108 {
    dns 10.96.0.10
}
service web.default {
    vip 10.96.0.20
    port 80:8080 nodeport 30080
    select app=web
}
service six.default {
    vip fd00:10:96::66
    port 80:8080 nodeport 30081
    select app=web
    families ipv6
}
service empty.default {
    vip 10.96.0.21
    port 80
}
`})
	web := s.Workload(1, "web", "--label app=web --publish 8081:8080 --publish [fd00:10:244::1]:8082:8080")
	web.Serve(8080)
	web6 := s.Match(web.Run("ip -6 -br address show dev eth0 scope global"), `(fd00:10:244::[0-9a-f:]+)/120`)
	near := s.Workload(1, "near", "")
	far := s.Workload(3, "far", "")

	s.Want(s.Run("node1", "nodectl endpoints"), `^web.*`+web6)
	until(s, "node3", "nodectl endpoints", `^web.*`+web6)
	until(s, "node3", "nodectl service show web", `fd00:10:96::14`)
	s.Want(s.Run("node3", "nodectl service ls"), `(?m)^web\.default +10\.96\.0\.20 +fd00:10:96::14 `)
	s.Want(s.Run("node3", "nodectl status"), `(?m)^pods .*\n +fd00:10:244::/112$`)

	// Names, both ways.
	s.Want(far.Run("dig +short AAAA web.default.svc.cluster.local"), `^fd00:10:96::14$`)
	s.Want(far.Run("dig +short A web.default.svc.cluster.local"), `^10\.96\.0\.20$`)
	s.Want(far.Run("dig +short -x fd00:10:96::14"), `^web\.default\.svc\.cluster\.local\.$`)
	s.Want(far.Run("dig +short AAAA web.default.pod.cluster.local"), `^`+web6+`$`)
	s.Want(far.Run("dig +short -x "+web6), `^web\.`)
	s.Want(far.Run("dig +short AAAA web.default.svc.cluster.local @fd00:10:96::a"), `^fd00:10:96::14$`)

	// The workload itself, from its bridge and from another node.
	s.Want(near.Run("ping -6 -q -c 1 -W 2 "+web6), "1 received")
	s.Want(far.Run("ping -6 -q -c 1 -W 2 "+web6), "1 received")
	s.Want(far.Run("ping -6 -q -c 1 -W 2 fd00:10:96::14"), "1 received")
	far6 := s.Match(far.Run("ip -6 -br address show dev eth0 scope global"), `(fd00:10:244::[0-9a-f:]+)/120`)
	s.Want(far.Run(curl+"http://["+web6+"]:8080/"), `^web saw `+far6+`$`)

	// The service, by name: from another node, from the bridge, from itself,
	// from the nodes themselves.
	const url = "http://web.default.svc.cluster.local/"
	s.Want(far.Run(curl+"-6 "+url), `^web saw `+far6+`$`)
	s.Want(far.Run(curl+"-4 "+url), `^web saw `+far.Addr+`$`)
	s.Want(near.Run(curl+"-6 "+url), `^web saw fd00:10:244::`)
	s.Want(web.Run(curl+"-6 "+url), `^web saw fd00:10:244::`)
	for _, node := range []string{"node1", "node3"} {
		s.Want(s.Run(node, curl+"http://[fd00:10:96::14]/"), `^web saw fd00:10:244::`)
	}
	s.Want(far.Fail(curl+"http://[fd00:10:96::15]/"), `(?i)refused|connect to server`)

	// A service with IPv6 alone: declared, and made by command.
	s.Want(far.Run("dig +short AAAA six.default.svc.cluster.local"), `^fd00:10:96::66$`)
	s.Want(far.Run("dig +short A six.default.svc.cluster.local"), `^$`)
	s.Want(far.Run(curl+"http://six.default.svc.cluster.local/"), `^web saw `+far6+`$`)
	s.Want(far.Run(curl+"http://[fd00:10:244::1]:30081/"), `^web saw `)
	s.Want(far.Fail(curl+"http://10.244.0.1:30081/"), `(?i)refused|connect to server`)
	s.Want(s.Run("node3", "nodectl service add made --port 80:8080 --select app=web --families ipv6"), `(?m)^made\.default +- +fd00:10:96::\S+ +80→8080/tcp +1/1`)
	until(s, "node1", "dig +short AAAA made.default.svc.cluster.local @10.96.0.10", `^fd00:10:96::`)
	s.Want(near.Run(curl+"http://made.default.svc.cluster.local/"), `^web saw fd00:10:244::`)
	s.Want(s.Fail("node1", "nodectl service add other --port 80 --vip fd00:10:96::66"), `belongs to service six\.default`)

	// Ports of the node: its bridge has an IPv6 address, and loopback.
	s.Want(far.Run(curl+"http://[fd00:10:244::1]:30080/"), `^web saw `)
	s.Want(near.Run(curl+"http://[fd00:10:244::1]:8081/"), `^web saw `)
	s.Want(s.Run("node1", curl+"http://[::1]:8081/"), `^web saw `)

	// A port on an IPv6 address leads to the workload's IPv6 address.
	s.Want(s.Run("node1", "nodectl publish ls"), `fd00:10:244::1:8082/tcp +\[?`+web6)
	s.Want(far.Run(curl+"http://[fd00:10:244::1]:8082/"), `^web saw `+far6+`$`)
	s.Run("node1", "nodectl publish add [fd00:10:244::1]:8083 "+web.Addr+":8080")
	s.Want(far.Run(curl+"http://[fd00:10:244::1]:8083/"), `^web saw `+far6+`$`)
	s.Want(s.Fail("node1", "nodectl publish add [fd00:10:244::1]:8084 192.0.2.1:8080"), `different IP versions`)

	// An IPv6 address may be asked for.
	wanted := s.Workload(3, "wanted", "--ip "+strings.TrimSuffix(far6, s.Match(far6, `([0-9a-f]{2})$`))+"77")
	s.Want(wanted.Run("ip -6 -br address show dev eth0 scope global"), `77/120`)
	s.Want(wanted.Addr, `\.119$`)
	wanted.Detach()

	// What a person sees.
	s.Want(s.Run("node3", "nodectl lb trace --from "+far6+" [fd00:10:96::14]:80/tcp"), `goes to \[`+web6+`\]:8080`)
	s.Want(s.Run("node3", "nodectl routes"), `fd00:10:244::\S+ +node1 +alive +vxlan +fe80::\S+ +nv-pods +\S+ +yes`)
	s.Want(s.Run("node3", "nodectl status"), `(?m)^overlay +ok`, `(?m)^lb +ok`)

	// Gone with the workload.
	web.Detach()
	until(s, "node3", "dig +short AAAA web.default.pod.cluster.local @10.96.0.10", `^$`)
	near.Detach()
	far.Detach()
}
