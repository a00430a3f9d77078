package labs

import (
	"fmt"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab24NodePort(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/24-node-port.md", "Lab 24: one port of every node")
	s.Say(`
		Clients outside of the cluster know the nodes' addresses and nothing else. A node port is the same port on every
		node, whichever of them has the pod.`)
	s.Up(lab.Options{Name: "lab24", Nodes: 3, Nodefile: pinned})
	web := s.Workload(2, "web", "--label app=web")
	web.Serve(8080)
	s.Run("node1", "nodectl service add web-service --port 80:8080 --select app=web --node-port 30080")
	s.Eventually("all nodes have the service", scenarioTimeout, func() error { return backends(s, 3, "web-service", 1) })
	s.Want(s.Run("node3", "nodectl service ls"), `web-service.*30080`)

	s.Say("From a host behind the router. The pod is on node2; there it sees the client, elsewhere the node that passed it on.")
	s.Want(s.Run("outside", curl+"http://192.168.1.12:30080/"), `^web saw 203\.0\.113\.10$`)
	s.Want(s.Run("outside", curl+"http://192.168.1.11:30080/"), `^web saw `)
	s.Want(s.Run("outside", curl+"http://192.168.1.13:30080/"), `^web saw `)
	s.Say("From a host on the LAN:")
	pc := s.Host("pc", "192.168.1.50")
	for i := 1; i <= 3; i++ {
		s.Want(pc.Run(fmt.Sprintf("%shttp://192.168.1.%d:30080/", curl, 10+i)), `^web saw `)
	}
	s.Say("From the nodes themselves, by their own address and by another's:")
	for i := 1; i <= 3; i++ {
		s.Want(s.Run(fmt.Sprintf("node%d", i), fmt.Sprintf("%shttp://192.168.1.%d:30080/", curl, 10+i)), `^web saw `)
	}
	s.Want(s.Run("node1", curl+"http://192.168.1.13:30080/"), `^web saw `)
	s.Say("And from a pod:")
	pod := s.Workload(3, "pod", "")
	s.Want(pod.Run(curl+"http://192.168.1.11:30080/"), `^web saw `)
	s.Want(pod.Run(curl+"http://192.168.1.13:30080/"), `^web saw `)

	s.Say("Ports outside of 30000-32767 belong to the host. They are refused, by command and in the Nodefile:")
	for _, port := range []string{"80", "29999", "32768"} {
		s.Want(s.Fail("node1", "nodectl service add other --port 80 --select app=web --node-port "+port), `30000-32767`)
	}
	s.Reject(s.Run("node1", "nodectl service ls"), `other`)
	s.File("out-of-range", `service other {
    port 80 nodeport 80
    select app=web
}
`)
	s.Want(s.Fail(scenario.Machine, "nodectl check out-of-range"), `^out-of-range:2: service other\.default: nodeport 80: outside of nodeports 30000-32767`)
	s.Say("So is one that another service has:")
	s.Want(s.Fail("node3", "nodectl service add other --port 80 --select app=web --node-port 30080"), `30080.*web-service|web-service.*30080`)

	s.Say("Without the service there is no port:")
	s.Run("node3", "nodectl service rm web-service")
	s.Eventually("all nodes have dropped it", scenarioTimeout, func() error { return backends(s, 3, "web-service", -1) })
	for i := 1; i <= 3; i++ {
		s.Want(s.Fail("outside", fmt.Sprintf("%shttp://192.168.1.%d:30080/", curl, 10+i)), `(?i)refused|connect to`)
	}
}
