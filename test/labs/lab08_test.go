package labs

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"nodenet/api"
	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab08Shares(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/08-shared-range.md", "Lab 8: one big range that the peers split among themselves")
	s.AddressesVary() // who joins first gets more
	s.Say(`
		Weave's picture: 10.32.0.0/12, three peers, and nobody has said who gets what. The first node has the whole
		range; each that joins gets half of what the best-off peer can spare, so that the shares begin at places such as
		10.32.0.0, 10.40.0.0 and 10.44.0.0. Within its share a node opens pod CIDRs of /24 as it needs them, and only
		those become routes. Who has used up the share asks a peer for more. Between the nodes packets are
		encapsulated in VXLAN.`)
	s.Say("The second network is a tiny one, to be used up quickly.")
	nodefile := `network weave 10.32.0.0/12 {
    masquerade
}
network tiny 172.20.0.0/26 {
    block 29
}
`
	s.Up(lab.Options{Name: "lab8", Nodes: 3, Nodefile: nodefile})
	s.Say("How much is that? Of a /12 nobody uses the first and the last address, which leaves 2²⁰ − 2 = 1 048 574 addresses:")
	s.Want(s.Run("node1", "nodectl check Nodefile"), `10\.32\.0\.0/12 has 1048574 addresses`, `4096 nodes`)

	s.Say("The peers with their state, the encapsulation and the MTU that is left of the LAN's 1500 bytes after 50 for VXLAN. `OWNS` is the node's share, and `POD CIDRS` what it has opened of it:")
	for i := 1; i <= 3; i++ {
		node := fmt.Sprintf("node%d", i)
		until(s, node, "nodectl status", `^weave .*10\.\d+\.\d+\.0/24`, `^overlay +ok +2 peers, 4 routes`)
		out := s.Run(node, "nodectl status")
		for j := 1; j <= 3; j++ {
			row := fmt.Sprintf(`^node%d +alive +192\.168\.1\.%d +vxlan +1450 `, j, 10+j)
			if i == j {
				s.Reject(out, row)
			} else {
				s.Want(out, row)
			}
		}
		s.Want(out, `^weave +10\.32\.0\.0/12 +\d+ % +10\.\d+\.\d+\.0/24 `)
	}

	// Every share begins elsewhere, none overlaps, and together they are everything.
	blocks, total := map[netip.Prefix]string{}, uint64(0)
	for i := 1; i <= 3; i++ {
		n := network(s, i, "weave")
		total += n.Owned
		if n.Owned == 0 || len(n.Blocks) == 0 {
			t.Fatalf("node%d owns nothing of weave: %+v", i, n)
		}
		for _, b := range n.Blocks {
			if other, taken := blocks[b]; taken || !netip.MustParsePrefix("10.32.0.0/12").Contains(b.Addr()) {
				t.Fatalf("block %s of node%d is taken by %q or out of range", b, i, other)
			}
			blocks[b] = fmt.Sprintf("node%d", i)
		}
	}
	if got := total - 2; got != 1048574 {
		t.Fatalf("the shares have %d addresses, want 1048574", got)
	}

	s.Say("A pod on each node; they reach each other through the tunnel:")
	var pods []*scenario.Workload
	for i := 1; i <= 3; i++ {
		pods = append(pods, s.Workload(i, fmt.Sprintf("pod%d", i), "--network weave"))
	}
	dump := s.Start("node2", "tcpdump -n -l -c 2 -i eth0 udp port 4789")
	s.Eventually("tcpdump listens", scenarioTimeout, func() error { return contains(dump.Output(), "listening on") })
	for _, p := range pods[1:] {
		s.Want(pods[0].Run("ping -q -c 1 -W 2 "+p.Addr), "1 received")
	}
	s.Eventually("tcpdump has seen two packets", scenarioTimeout, func() error { return contains(dump.Output(), "2 packets captured") })
	s.Want(s.Show(dump), `192\.168\.1\.11\.\d+ > 192\.168\.1\.12\.4789: VXLAN.*vni 1`)
	s.Want(pods[2].Run("ping -q -c 1 -W 2 "+pods[1].Addr), "1 received")
	s.Want(pods[0].Run("ip link show dev eth0"), "mtu 1450")

	s.Say(`
		## More than the share

		The tiny network has eight blocks with five addresses each. No node has got more than four of them, so node3 has
		room for twenty workloads at most. It attaches twenty-four. When its own blocks are used up it asks the others, who
		give some of theirs; no address is given twice.`)
	const many = 24
	owned := network(s, 3, "tiny").Owned
	if owned > 4*8 {
		t.Fatalf("node3 owns %d addresses of tiny: too many for this lab", owned)
	}
	out := s.Shell(scenario.Machine, fmt.Sprintf(`for i in $(seq %d); do
  ip netns add t$i
  nodectl lab exec node3 -- nodectl attach --netns t$i --network tiny
done`, many))
	given := strings.Fields(out)
	if distinct := slices.Compact(slices.Sorted(slices.Values(given))); len(given) != many || len(distinct) != many {
		t.Fatalf("%d answers, %d addresses, want %d of both:\n%s", len(given), len(distinct), many, out)
	}
	s.Want(s.Run("node3", "nodectl status"), `^tiny +172\.20\.0\.0/26 .* 24/`)
	if after := network(s, 3, "tiny").Owned; after <= owned {
		t.Fatalf("node3 owned %d addresses before and %d after", owned, after)
	}
	s.Say("The blocks that it has got are routes on the others by now, and its newest workload is reached from node1:")
	first := s.Workload(1, "first", "--network tiny")
	// 24 workloads need five blocks. The last is opened, and known, before it is needed.
	five := strings.TrimSuffix(strings.Repeat(`tiny +172\.20\.0\.\d+/29 +node3 +alive +vxlan +192\.168\.1\.13 .* yes .*\n(.*\n)*?`, 5), `\n(.*\n)*?`)
	until(s, "node1", "nodectl routes", five)
	s.Run("node1", "nodectl routes")
	last, _, _ := strings.Cut(given[many-1], "/")
	s.Want(first.Run("ping -q -c 1 -W 2 "+last), "1 received")

	s.Say("On and on, until there is nothing left. The refusal says who has what.")
	out = s.Shell(scenario.Machine, fmt.Sprintf(`i=%d
while ip netns add t$i && nodectl lab exec node3 -- nodectl attach --netns t$i --network tiny; do
  i=$((i+1))
done`, many+1))
	s.Want(out, `network tiny: no space left: node1 \d+ of \d+ blocks, node2 \d+ of \d+ blocks, node3 \d+ of \d+ blocks`)
	s.Say("An address that is given back can be had again.")
	s.Run("node3", "nodectl detach t1")
	s.Attach(3, "t1", "--network tiny")

	s.Say("Undo:")
	s.Shell(scenario.Machine, `for w in $(ip netns list | grep -o '^t[0-9]*'); do
  nodectl lab exec node3 -- nodectl detach $w
  ip netns del $w
done`)
	s.Want(s.Run("node3", "nodectl status"), `^tiny +172\.20\.0\.0/26 .* 0/`)
}

// network is what a node says about one of its networks.
func network(s *scenario.Scenario, node int, name string) api.NetworkStatus {
	s.T().Helper()
	out, err := s.Exec(fmt.Sprintf("node%d", node), "nodectl status -o json")
	if err != nil {
		s.T().Fatal(err)
	}
	var st api.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		s.T().Fatalf("%v:\n%s", err, out)
	}
	for _, n := range st.Networks {
		if n.Name == name {
			return n
		}
	}
	s.T().Fatalf("node%d has no network %s:\n%s", node, name, out)
	panic("unreachable")
}
