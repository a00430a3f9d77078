package faults

import (
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// TestWaysToNameANamespace: by name, by path, and by the ID of a process that
// lives in one without a name, as a container's does.
func TestWaysToNameANamespace(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 1})
	s.Run(scenario.Machine, "ip netns add named")
	s.Want(s.Run("node1", "nodectl attach --netns named --network pods --name named"), `^10\.244\.0\.2/24`)
	s.Run(scenario.Machine, "ip netns add other")
	s.Want(s.Run("node1", "nodectl attach --netns /run/netns/other --network pods --name path"), `^10\.244\.0\.3/24`)
	pid := strings.TrimSpace(s.Shell(scenario.Machine, "unshare --net sleep 300 >/dev/null 2>&1 & sleep 0.2; echo $!"))
	s.Want(s.Run("node1", "nodectl attach --netns "+pid+" --network pods --name process --ip 10.244.0.77"), `^10\.244\.0\.77/24`)
	s.Want(s.Run(scenario.Machine, "nsenter --net=/proc/"+pid+"/ns/net ping -c1 -W2 10.244.0.2"), ` 0% packet loss`)
	s.Want(s.Run(scenario.Machine, "ip netns exec named ping -c1 -W2 10.244.0.77"), ` 0% packet loss`)
	if out, err := s.Try("node1", "nodectl attach --netns 999999 --network pods --name nobody"); err == nil {
		t.Errorf("a process that is not there was attached: %s", out)
	}
	s.Run(scenario.Machine, "kill "+pid)
	for _, name := range []string{"named", "path", "process"} {
		s.Run("node1", "nodectl detach "+name)
	}
	s.Run(scenario.Machine, "ip netns del named")
	s.Run(scenario.Machine, "ip netns del other")
	s.Want(s.Run("node1", "nodectl doctor"), `kernel +ok`)
}
