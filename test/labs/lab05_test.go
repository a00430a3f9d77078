package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab05Modes(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/05-docker-modes.md", "Lab 5: none, host and bridge")
	s.Say(`
		` + "`docker run --network`" + ` knows three kinds of network: none, the host's, and a bridge. Here they are ` + "`nodectl attach --mode`" + `.
		All three give the workload a place in the cluster's tables, so that it is listed on every node.`)
	s.Up(lab.Options{Name: "lab5", Nodes: 2})

	s.Say("## none\n\nThe namespace keeps its loopback and gets nothing else.")
	s.Netns("lonely")
	lonely := s.Attach(1, "lonely", "--mode none")
	if lonely.Addr != "" {
		t.Fatalf("attach --mode none answers %q", lonely.Addr)
	}
	out := lonely.Run("ip -br link")
	s.Want(out, `^lo `)
	s.Reject(out, `eth0`)
	s.Want(lonely.Fail("ping -c 1 -W 1 192.168.1.11"), `(?i)unreachable`)

	s.Say("## host\n\nA process that uses the node's own network needs no namespace, but a name: on every node it leads to this node's address.")
	s.Run("node1", "nodectl attach --mode host --name metrics --port 9000")
	s.Serve("node1", "metrics", 9000)
	s.Want(s.Run("outside", curl+"http://192.168.1.11:9000/"), `^metrics saw 203\.0\.113\.10$`)
	until(s, "node2", "nodectl endpoints", `^metrics.*192\.168\.1\.11`)
	s.Want(s.Run("node2", "nodectl endpoints"), `^metrics.*192\.168\.1\.11`)

	s.Say("## bridge\n\nThe default: an address of its own, a route to everything, the node's address towards the outside.")
	bridge := s.Workload(1, "web", "--mode bridge --publish 8080:80")
	s.Want(bridge.Run("ip -br address show dev eth0"), bridge.Addr)
	s.Want(bridge.Run(curl+"http://203.0.113.10/"), `^outside saw 192\.168\.1\.11$`)
	other := s.Workload(2, "other", "")
	s.Want(other.Run("ping -q -c 1 -W 2 "+bridge.Addr), "1 received")
	s.Say("The names are the same on every node. This is the second workload, on the other node:")
	s.Want(other.Run("dig +short web.default.pod.cluster.local metrics.default.pod.cluster.local"), `^`+bridge.Addr+`$`, `^192\.168\.1\.11$`)
	s.Want(other.Run(curl+"http://metrics.default.pod.cluster.local:9000/"), `^metrics saw 192\.168\.1\.12$`)

	s.Say("## -p 8080:80\n\nThe workload above was published with `--publish 8080:80`; its server is reached at the node's port.")
	bridge.Serve(80)
	s.Want(s.Run("outside", curl+"http://192.168.1.11:8080/"), `^web saw 203\.0\.113\.10$`)

	s.Say("All of them, seen from the other node:")
	until(s, "node2", "nodectl endpoints", `^lonely`, `^metrics`, `^web`, `^other`)
	s.Want(s.Run("node2", "nodectl endpoints"), `^lonely\S* +- +node1`, `^metrics`, `^web`, `^other`)

	s.Say("Undo:")
	lonely.Detach()
	s.Run("node1", "nodectl detach metrics")
	bridge.Detach()
	other.Detach()
	s.Reject(s.Run("node1", "nodectl endpoints"), `lonely`, `metrics`, `web`)
}
