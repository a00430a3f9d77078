package labs

import (
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab02Bridge(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/02-bridge.md", "Lab 2: a bridge with four workloads")
	s.Say(`
		A bridge connects any number of namespaces. It is a switch and, once it has an address, also the node's own
		interface in their network: from then on node and workloads reach each other. ` + "`gateway`" + ` says which
		address the bridge gets; without it, it is the first one of the network.`)
	s.Up(lab.Options{Name: "lab2", Nodes: 1, Nodefile: `network lan 192.168.15.0/24 {
    overlay none
    gateway 192.168.15.5
}
`})
	var all []*scenario.Workload
	for _, name := range []string{"red", "blue", "green", "yellow"} {
		s.Netns(name)
	}
	for _, name := range []string{"red", "blue", "green", "yellow"} {
		all = append(all, s.Attach(1, name, "--network lan"))
	}
	s.Say("The bridge has the address, and four ports:")
	s.Want(s.Run("node1", "ip -br address show dev nn-lan"), `192\.168\.15\.5/24`)
	links := s.Run("node1", "ip -br link show master nn-lan")
	if n := strings.Count(strings.TrimSpace(links), "\n") + 1; n != 4 {
		t.Fatalf("the bridge has %d ports, want 4:\n%s", n, links)
	}

	s.Say("From the node to each workload, and from each workload to the node:")
	received(s, s.Shell("node1", `for n in 1 2 3 4; do ping -q -c 1 -W 2 192.168.15.$n; done | grep received`), 4)
	received(s, s.Shell(scenario.Machine, `for w in red blue green yellow; do ip netns exec $w ping -q -c 1 -W 2 192.168.15.5; done | grep received`), 4)
	s.Say("Workloads reach each other too, each one all four:")
	received(s, s.Shell(scenario.Machine, `for w in red blue green yellow; do
  for n in 1 2 3 4; do ip netns exec $w ping -q -c 1 -W 2 192.168.15.$n; done
done | grep received`), 16)

	s.Say("Which Ethernet address sits behind which port? What the bridge knows of its own is `permanent`; the rest it " +
		"has learned from the frames that came in. Red's address, for one:")
	red := s.Match(all[0].Run("ip -br link show eth0"), `(([0-9a-f]{2}:){5}[0-9a-f]{2})`)
	fdb := s.Run("node1", "bridge fdb show br nn-lan")
	s.Want(fdb, `^`+red+` dev \S+ master nn-lan`)
	for _, w := range all {
		// The port's index is in the name of the interface inside: eth0@if7.
		inside, err := w.Exec("ip -o link show eth0")
		if err != nil {
			t.Fatal(err)
		}
		mac := s.Match(inside, `link/ether (\S+)`)
		index := s.Match(inside, `eth0@if(\d+)`)
		outside, err := s.Exec("node1", "ip -o link")
		if err != nil {
			t.Fatal(err)
		}
		port := s.Match(outside, `^`+index+`: ([^@:]+)`)
		portMAC := s.Match(outside, `^`+index+`: .*link/ether (\S+)`)
		s.Want(fdb, `^`+mac+` dev `+port+` master nn-lan`, `^`+portMAC+` dev `+port+` .*permanent`)
		s.Reject(fdb, `^`+mac+` dev `+port+` .*permanent`)
	}
	s.Say("Undo:")
	for _, w := range all {
		w.Detach()
	}
}
