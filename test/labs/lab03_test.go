package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

const curl = "curl -sS -m 3 "

func TestLab03Outside(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/03-outside.md", "Lab 3: from a workload to the LAN and beyond")
	s.Say(`
		A workload with a private address wants to reach a machine of the LAN, and one behind the router. Three things are
		needed: a default route in the workload, forwarding on the node, and masquerading, because nobody outside has
		a route back to 192.168.15.0/24. By hand that is ` + "`ip route add`, `sysctl` and `iptables -t nat … -j MASQUERADE`" + `;
		here it is the word ` + "`masquerade`" + `.`)
	s.Up(lab.Options{Name: "lab3", Nodes: 1, Nodefile: `network lan 192.168.15.0/24 {
    overlay none
    masquerade
}
network plain 192.168.16.0/24 {
    overlay none
}
`})
	s.Say("One more machine for the LAN, which nodenet knows nothing about:")
	nas := s.Host("nas", "192.168.1.3")
	nas.Serve(80)
	s.Say("The workload:")
	blue := s.Workload(1, "blue", "--network lan")

	s.Say("It has a default route by way of the bridge, and the node forwards:")
	s.Want(blue.Run("ip route"), `^default via 192\.168\.15\.1 dev eth0`)
	s.Want(s.Run("node1", "sysctl net.ipv4.ip_forward"), `= 1$`)

	s.Say("The web server of the LAN's machine answers with its name and the address that it was asked from. That is the " +
		"node's, 192.168.1.11, not the workload's " + blue.Addr + ":")
	s.Want(blue.Run(curl+"http://192.168.1.3/"), `^nas saw 192\.168\.1\.11$`)
	s.Say("So does the one behind the router, and what arrives there is the node's too:")
	s.Want(blue.Run(curl+"http://203.0.113.10/"), `^outside saw 192\.168\.1\.11$`)
	dump := s.Start("outside", "tcpdump -n -l -c 2 -i eth0 icmp")
	s.Eventually("tcpdump listens", scenarioTimeout, func() error { return contains(dump.Output(), "listening on") })
	s.Want(blue.Run("ping -q -c 1 -W 2 203.0.113.10"), "1 received")
	s.Eventually("tcpdump has seen both packets", scenarioTimeout, func() error { return contains(dump.Output(), "2 packets captured") })
	s.Want(s.Show(dump), `192\.168\.1\.11 > 203\.0\.113\.10: ICMP echo request`, `203\.0\.113\.10 > 192\.168\.1\.11: ICMP echo reply`)
	s.Reject(dump.Output(), `192\.168\.15\.`)

	s.Say("Between workload and node nothing is translated: the node sees the workload's own address.")
	s.Serve("node1", "node1", 8000)
	s.Want(blue.Run(curl+"http://192.168.1.11:8000/"), `^node1 saw `+blue.Addr+`$`)

	s.Say("The second network lacks the word. Its packets leave with an address to which the outside has no way back, and nobody answers.")
	green := s.Workload(1, "green", "--network plain")
	s.Want(green.Run("ping -q -c 1 -W 2 192.168.1.11"), "1 received")
	s.Want(green.Fail("ping -q -c 1 -W 1 192.168.1.3"), "0 received")
	s.Want(green.Fail("ping -q -c 1 -W 1 203.0.113.10"), "0 received")
}
