package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestPartition: node3 is cut from node1 and node2 for a minute. Both sides go
// on, and when the cut has healed they are one cluster within ten seconds,
// without anybody's help.
func TestPartition(t *testing.T) {
	const length = time.Minute
	s := scenario.Up(t, lab.Options{Nodes: 3})
	before := map[int]*scenario.Workload{}
	for i := 1; i <= 3; i++ {
		before[i] = s.Workload(i, fmt.Sprintf("w%d", i), "--label app=w --port http=80")
		before[i].Serve(80)
	}
	s.Run("node1", "nodectl service add w --vip 10.96.1.1 --port 80 --select app=w")
	for i := 1; i <= 3; i++ {
		s.Eventually("the service is there", soon, func() error { return backends(t, s, i, "w", 3) })
	}

	must(t, s.Lab.Cut("node3", "node1", false))
	must(t, s.Lab.Cut("node3", "node2", false))
	heal := time.After(length)
	s.Eventually("both sides have noticed", 45*time.Second, func() error {
		for i, n := range map[int]int{1: 2, 2: 2, 3: 1} {
			if err := backends(t, s, i, "w", n); err != nil {
				return err
			}
		}
		return nil
	})
	s.Want(before[1].Run("nodectl lab get -n 20 http://10.96.1.1/"), `20 w1|w2`)
	s.Want(before[3].Run("nodectl lab get -n 20 http://w/"), `20 w3`)
	// Work on both sides, with more than one address each.
	for i := 1; i <= 3; i++ {
		for j := range 4 {
			w := s.Workload(i, fmt.Sprintf("p%d-%d", i, j), "--label app=p --port http=80")
			if j == 0 {
				w.Serve(80)
			}
		}
	}
	s.Run("node1", "nodectl service add left --port 80 --select app=p --node-port auto")
	s.Run("node3", "nodectl service add right --port 80 --select app=p --node-port auto")
	// One name, changed on both sides: the later change wins.
	s.Run("node1", "nodectl service add both --vip 10.96.2.2 --port 80 --backend 10.244.9.1")
	s.Run("node3", "nodectl service add both --vip 10.96.2.2 --port 81 --backend 10.244.9.2")
	before[2].Detach()
	s.Eventually("both sides use what they have", soon, func() error {
		for i, n := range map[int]int{1: 8, 2: 8} {
			if err := backends(t, s, i, "left", n); err != nil {
				return err
			}
		}
		return backends(t, s, 3, "right", 4)
	})
	if got := lookup(s, "node3", "p3-1.default.pod.cluster.local"); got == "" {
		t.Error("node3 does not answer for what was attached during the partition")
	}
	if got := lookup(s, "node3", "p1-1.default.pod.cluster.local"); got != "" {
		t.Errorf("node3 answers %q for what it cannot know: is it cut off at all?", got)
	}
	<-heal

	begin := time.Now()
	must(t, s.Lab.Heal("", ""))
	all := agree(t, s, 3, 10*time.Second)
	t.Logf("equal records %s after the cut has healed", time.Since(begin).Round(100*time.Millisecond))
	s.Eventually("each side's service is on the other", max(0, 10*time.Second-time.Since(begin)), func() error {
		for i := 1; i <= 3; i++ {
			for service, n := range map[string]int{"w": 2, "left": 12, "right": 12} {
				if err := backends(t, s, i, service, n); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if strings.Contains(all, `"w2"`) {
		t.Error("what was detached during the partition is back")
	}
	noDuplicates(t, s, 1)
	noDuplicates(t, s, 3)
	services, err := client(t, s, 1).Services(t.Context())
	must(t, err)
	seen := map[string]string{}
	for _, svc := range services {
		for _, key := range []string{svc.VIP.String(), fmt.Sprint("node port ", svc.Ports[0].NodePort)} {
			if key != "node port 0" && seen[key] != "" {
				t.Errorf("%s and %s both have %s", seen[key], svc.Name, key)
			}
			seen[key] = svc.Name
		}
		if svc.Name == "both" && svc.Ports[0].Port != 81 {
			t.Errorf("service both has port %d, want that of the later change", svc.Ports[0].Port)
		}
	}
	converged(t, s)
	s.Want(before[1].Run(curl+"http://p3-0.default.pod.cluster.local/"), "^p3-0 saw")
	s.Want(before[3].Run(curl+"http://p1-0.default.pod.cluster.local/"), "^p1-0 saw")
}
