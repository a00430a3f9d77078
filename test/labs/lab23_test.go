package labs

import (
	"fmt"
	"strconv"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// pinned is a network with 10.244.1.0/24 on node1, 10.244.2.0/24 on node2, …
const pinned = `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
}
services 10.96.0.0/12 {
    nodeports 30000-32767
}
`

func TestLab23ClusterIP(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/23-cluster-ip.md", "Lab 23: an address for a service")
	s.Say(`
		A database pod, 10.244.1.2, and an address that stays when the pod does not: 10.103.132.104, port 3306. Nobody has
		that address; each node's kernel rewrites what goes there. kube-proxy makes a chain of iptables rules for it.`)
	s.Up(lab.Options{Name: "lab23", Nodes: 3, Nodefile: pinned})
	db := s.Workload(1, "db", "--ip 10.244.1.2 --label app=db --port mysql=3306")
	db.Serve(3306)
	s.Run("node1", "nodectl service add db-service --vip 10.103.132.104 --port mysql=3306 --select app=db")
	pods := []*scenario.Workload{db, s.Workload(1, "pod1", ""), s.Workload(2, "pod2", ""), s.Workload(3, "pod3", "")}
	s.Eventually("all nodes have the service", scenarioTimeout, func() error { return backends(s, 3, "db-service", 1) })
	s.Want(s.Run("node2", "nodectl service ls"), `db-service.*10\.103\.132\.104.*3306`)

	const url = "http://10.103.132.104:3306/"
	s.Say("From every node:")
	for _, node := range []string{"node1", "node2", "node3"} {
		s.Want(s.Run(node, curl+url), `^db saw `)
	}
	s.Say("From a pod on every node, whose address the server sees:")
	for _, p := range pods[1:] {
		s.Want(p.Run(curl+url), `^db saw `+p.Addr+`$`)
	}
	s.Say("From the pod itself. It would take answers from its own address for strays, so here, and only here, the node's address stands in:")
	s.Want(db.Run(curl+url), `^db saw 10\.244\.1\.1$`)
	s.Say("By name:")
	s.Want(pods[2].Run(curl+"http://db-service:3306/"), `^db saw `+pods[2].Addr+`$`)
	s.Say("Other ports of the address are refused at once:")
	s.Want(pods[2].Fail(curl+"http://10.103.132.104:3307/"), `(?i)refused|connect to`)

	s.Say("## Two backends\n\nA second database on another node:")
	db2 := s.Workload(2, "db2", "--label app=db --port mysql=3306")
	db2.Serve(3306)
	s.Eventually("all nodes have both backends", scenarioTimeout, func() error { return backends(s, 3, "db-service", 2) })
	s.Run("node3", "nodectl service show db-service")
	s.Say("Each gets about half, from pods and from nodes:")
	const n = 400
	for _, out := range []string{
		pods[3].Run(fmt.Sprintf("nodectl lab get -n %d %s", n, url)),
		s.Run("node3", fmt.Sprintf("nodectl lab get -n %d %s", n, url)),
	} {
		for _, name := range []string{"db", "db2"} {
			// 400 throws of a coin: 5 standard deviations are 50.
			got, err := strconv.Atoi(s.Match(out, `^\s*(\d+) `+name+`$`))
			if err != nil || got < n/2-50 || got > n/2+50 {
				t.Errorf("%s got %d of %d, want about half", name, got, n)
			}
		}
	}
	s.Say("One goes, and with it its half:")
	db.Detach()
	s.Eventually("all nodes have one backend", scenarioTimeout, func() error { return backends(s, 3, "db-service", 1) })
	s.Want(pods[3].Run("nodectl lab get -n 20 "+url), `^\s*20 db2$`)

	s.Say("## Ranges\n\nThe service range and the pods' must be apart. If they are not, it is an error before anything starts:")
	s.File("overlap", `network pods 10.244.0.0/16
services 10.244.128.0/17
`)
	s.Want(s.Fail(scenario.Machine, "nodectl check overlap"), `^overlap:2: services: 10\.244\.128\.0/17 overlaps network pods 10\.244\.0\.0/16 \(overlap:1\)`)
}

// backends is an answer for Scenario.Eventually: do nodes 1 to n each see so
// many ready backends?
func backends(s *scenario.Scenario, nodes int, service string, ready int) error {
	for i := 1; i <= nodes; i++ {
		c := s.Lab.Node(i).Client()
		list, err := c.Services(s.T().Context())
		c.Close()
		if err != nil {
			return err
		}
		found := -1
		for _, svc := range list {
			if svc.Name == service {
				found = svc.Ready
			}
		}
		if found != ready {
			return fmt.Errorf("node%d sees %d ready backends of %s, want %d", i, found, service, ready)
		}
	}
	return nil
}
