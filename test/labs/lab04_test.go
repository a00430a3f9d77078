package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab04PortForwarding(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/04-port-forwarding.md", "Lab 4: port 8080 of the node leads to port 80 of a workload")
	s.Say(`
		A web server in a workload is to be reached from outside, at a port of the node. ` + "`docker run -p 8080:80`" + ` does
		this, or one rule of iptables — which then fails from the node itself, from 127.0.0.1 and from the next workload.
		All of these work here.`)
	s.Up(lab.Options{Name: "lab4", Nodes: 1, Nodefile: `network lan 192.168.15.0/24 {
    overlay none
    masquerade
}
`})
	s.Say("A second machine in the LAN, the web server, and another workload beside it:")
	nas := s.Host("nas", "192.168.1.3")
	web := s.Workload(1, "web", "--network lan --ip 192.168.15.2 --publish 8080:80")
	web.Serve(80)
	sibling := s.Workload(1, "sibling", "--network lan")
	s.Want(s.Run("node1", "nodectl publish ls"), `8080`, `192\.168\.15\.2`)

	s.Say("From another machine of the LAN. The server sees who asks: nothing is masqueraded on the way in.")
	s.Want(nas.Run(curl+"http://192.168.1.11:8080/"), `^web saw 192\.168\.1\.3$`)
	s.Say("From behind the router:")
	s.Want(s.Run("outside", curl+"http://192.168.1.11:8080/"), `^web saw 203\.0\.113\.10$`)
	s.Say("From the node itself, at its address and at 127.0.0.1:")
	s.Want(s.Run("node1", curl+"http://192.168.1.11:8080/"), `^web saw `)
	s.Want(s.Run("node1", curl+"http://127.0.0.1:8080/"), `^web saw `)
	s.Say("From the workload beside it, and from the web server itself by the node's address (hairpin):")
	s.Want(sibling.Run(curl+"http://192.168.1.11:8080/"), `^web saw `)
	s.Want(web.Run(curl+"http://192.168.1.11:8080/"), `^web saw `)

	s.Say(`
		Port 8080 of *other* machines is none of the node's business, also where the packets pass through it. The
		machine behind the router has a server at 8080 too, and a workload gets that one:`)
	s.Serve("outside", "other", 8080)
	s.Want(sibling.Run(curl+"http://203.0.113.10:8080/"), `^other saw 192\.168\.1\.11$`)
	s.Say("The same for a machine that uses the node as its router:")
	nas.Run("ip route add 203.0.113.0/24 via 192.168.1.11")
	s.Want(nas.Run(curl+"http://203.0.113.10:8080/"), `^other saw 192\.168\.1\.3$`)

	s.Say(`
		A publication may name the address. The node gets a second one here; what is published at the first is not
		to be had at the second, nor at 127.0.0.1.`)
	s.Run("node1", "ip address add 192.168.1.50/24 dev eth0")
	s.Want(nas.Run(curl+"http://192.168.1.50:8080/"), `^web saw `)
	s.Run("node1", "nodectl publish add 192.168.1.11:8081 192.168.15.2:80")
	s.Want(nas.Run(curl+"http://192.168.1.11:8081/"), `^web saw 192\.168\.1\.3$`)
	s.Want(s.Run("node1", curl+"http://192.168.1.11:8081/"), `^web saw `)
	s.Want(nas.Fail(curl+"http://192.168.1.50:8081/"), `(?i)refused|timed out|connect`)
	s.Want(s.Fail("node1", curl+"http://127.0.0.1:8081/"), `(?i)refused|timed out|connect`)

	s.Say("Undo. The ports are free again:")
	s.Run("node1", "nodectl publish rm 192.168.1.11:8081")
	web.Detach()
	s.Want(nas.Fail(curl+"http://192.168.1.11:8080/"), `(?i)refused|connect`)
	s.Want(nas.Fail(curl+"http://192.168.1.11:8081/"), `(?i)refused|connect`)
}
