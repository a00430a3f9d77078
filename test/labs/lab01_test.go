package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab01TwoNamespaces(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/01-two-namespaces.md", "Lab 1: two namespaces")
	s.Say(`
		Two network namespaces on one node, red and blue, that can reach each other. By hand this is a veth pair, an
		address at each end and two links to set up; for more than two namespaces, a bridge. With nodenet it is one
		network and one command a namespace.`)
	s.Say("The network is the node's own (`overlay none`) and nothing of it is known to other nodes.")
	s.Up(lab.Options{Name: "lab1", Nodes: 1, Nodefile: `network lan 192.168.15.0/24 {
    overlay none
}
`})
	s.Say("Make the namespaces and attach them. The answer is the address that each one got.")
	s.Netns("red")
	s.Netns("blue")
	red := s.Attach(1, "red", "--network lan")
	blue := s.Attach(1, "blue", "--network lan")

	s.Say("They reach each other:")
	s.Want(red.Run("ping -c 2 -i 0.2 -W 2 "+blue.Addr), "2 received")
	s.Want(blue.Run("ping -c 1 -W 2 "+red.Addr), "1 received")

	s.Say("Each has found the other's Ethernet address by ARP, and it is the one of the other's interface:")
	redMAC := s.Match(red.Run("ip -br link show eth0"), `(([0-9a-f]{2}:){5}[0-9a-f]{2})`)
	blueMAC := s.Match(blue.Run("ip -br link show eth0"), `(([0-9a-f]{2}:){5}[0-9a-f]{2})`)
	s.Want(red.Run("ip neigh show "+blue.Addr), blueMAC)
	s.Want(blue.Run("ip neigh show "+red.Addr), redMAC)

	s.Say("The node itself has exchanged nothing with them and knows neither: frames go through its bridge, not through its IP stack.")
	out := s.Run("node1", "ip neigh show dev nn-lan")
	s.Reject(out, blueMAC, redMAC)

	s.Say("Undo:")
	red.Detach()
	blue.Detach()
}
