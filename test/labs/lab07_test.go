package labs

import (
	"fmt"
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab07ThreeNodesRoutes(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/07-three-nodes-routes.md", "Lab 7: three nodes, one pod CIDR each, plain routes")
	s.Say(`
		The picture that every introduction to pod networking begins with: three nodes on one LAN, 192.168.1.11 to .13,
		and behind them 10.244.1.0/24, 10.244.2.0/24 and 10.244.3.0/24. Each node needs a route to the other two, and
		pods reach pods without any address translation. On one LAN nothing needs to be encapsulated:
		` + "`overlay routes`" + `.`)
	s.Say("Each node pins its block. The lab sets `NODENET_INDEX` to 1, 2, 3; on real nodes the file names the block or a variable of one's own.")
	s.Up(lab.Options{Name: "lab7", Nodes: 3, Overlay: "routes", Nodefile: `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    overlay routes
    masquerade
}
`})
	s.Say("The routing table of each node holds the other two. `proto 78` marks what nodenet has made:")
	for i := 1; i <= 3; i++ {
		node := fmt.Sprintf("node%d", i)
		until(s, node, "ip route list proto 78", fmt.Sprintf(`^10\.244\.%d\.0/24`, i%3+1), fmt.Sprintf(`^10\.244\.%d\.0/24`, (i+1)%3+1))
		out := s.Run(node, "ip route")
		for j := 1; j <= 3; j++ {
			route := fmt.Sprintf(`^10\.244\.%d\.0/24 via 192\.168\.1\.%d dev eth0 proto 78`, j, 10+j)
			if i == j {
				s.Want(out, fmt.Sprintf(`^10\.244\.%d\.0/24 dev nn-pods`, j))
				s.Reject(out, route)
			} else {
				s.Want(out, route)
			}
		}
		links, err := s.Exec(node, "ip -br link show type vxlan")
		if err != nil || strings.TrimSpace(links) != "" {
			t.Fatalf("%s has VXLAN links with overlay routes: %v\n%s", node, err, links)
		}
	}
	s.Run("node1", "nodectl routes")

	s.Say("Two pods a node:")
	var pods []*scenario.Workload
	for i := 1; i <= 3; i++ {
		for _, c := range []string{"a", "b"} {
			w := s.Workload(i, fmt.Sprintf("pod%d%s", i, c), "")
			s.Want(w.Addr, fmt.Sprintf(`^10\.244\.%d\.\d+$`, i))
			pods = append(pods, w)
		}
	}
	var addrs, names []string
	for _, p := range pods {
		addrs, names = append(addrs, p.Addr), append(names, p.Name)
	}
	s.Say("Every pod pings every pod:")
	out := s.Shell(scenario.Machine, fmt.Sprintf(`for from in %s; do
  printf "$from reaches"
  for to in %s; do
    ip netns exec $from ping -q -c 1 -W 2 $to >/dev/null && printf " $to"
  done
  echo
done`, strings.Join(names, " "), strings.Join(addrs, " ")))
	for _, from := range names {
		s.Want(out, "^"+from+" reaches "+strings.Join(addrs, " ")+"$")
	}

	s.Say("No NAT on the way: the server is asked from the pod's own address, from the same node and from others.")
	server := pods[0]
	server.Serve(80)
	for _, p := range pods[1:] {
		s.Want(p.Run(curl+"http://"+server.Addr+"/"), `^pod1a saw `+p.Addr+`$`)
	}
	s.Say("Towards the world outside there is one, because of `masquerade`:")
	s.Want(pods[2].Run(curl+"http://203.0.113.10/"), `^outside saw 192\.168\.1\.12$`)

	s.Say("On the LAN the packets are what the pods sent, nothing around them:")
	dump := s.Start("node2", "tcpdump -n -l -c 2 -i eth0 icmp")
	s.Eventually("tcpdump listens", scenarioTimeout, func() error { return contains(dump.Output(), "listening on") })
	s.Want(pods[0].Run("ping -q -c 1 -W 2 "+pods[2].Addr), "1 received")
	s.Eventually("tcpdump has seen both packets", scenarioTimeout, func() error { return contains(dump.Output(), "2 packets captured") })
	s.Want(s.Show(dump), pods[0].Addr+` > `+pods[2].Addr+`: ICMP echo request`, pods[2].Addr+` > `+pods[0].Addr+`: ICMP echo reply`)
}
