package faults

import (
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// docker is what dockerd types at its start, made short.
const docker = `
iptables-nft -P FORWARD DROP
iptables-nft -N DOCKER-USER
iptables-nft -A DOCKER-USER -j RETURN
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables-nft -t nat -N DOCKER
iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER`

// TestFirewall: Docker's rules on one node cut its workloads off, which the
// status says; `firewall integrate` lets them pass, over a reload of the rules
// and a restart of the daemon; cleanup leaves Docker's rules as they were.
func TestFirewall(t *testing.T) {
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		t.Skip("needs iptables (iptables-nft)")
	}
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	a, b := s.Workload(1, "a", ""), s.Workload(2, "b", "")
	b.Serve(80)
	pass := func() error {
		out, err := a.Exec("curl -sS -m 1 http://" + b.Addr + "/")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	dropped := func() error {
		if pass() == nil {
			return fmt.Errorf("the packets pass")
		}
		return nil
	}
	s.Eventually("it works without Docker", soon, pass)
	s.Shell("node1", docker)
	s.Eventually("Docker's rules drop the packets", soon, dropped)
	s.Eventually("the status says so", soon, func() error {
		out, _ := s.Exec("node1", "nodectl status")
		return contains(out, "nodectl firewall integrate docker")
	})
	foreign := func() string {
		return s.Shell("node1", "nft -a -s list table ip filter; nft -a -s list table ip nat")
	}
	before := foreign()
	s.Want(s.Run("node1", "nodectl firewall integrate docker --dry-run"), `^insert rule ip filter DOCKER-USER oifname "nv-\*" accept comment "nodenet"`)
	if now := foreign(); now != before {
		t.Errorf("the dry run changed rules:\n%s", now)
	}
	s.Run("node1", "nodectl firewall integrate docker")
	s.Eventually("it works beside Docker", soon, pass)
	s.Want(s.Run("node1", "nodectl firewall status"), `docker +yes +yes +ip filter DOCKER-USER iifname`, `ufw +no +no`)
	s.Want(s.Run("node1", "nodectl doctor"), `firewall docker +ok +integrated, 4 rules`)

	// Somebody empties the chain: once beside the daemon, once while it is dead.
	s.Shell("node1", "iptables-nft -F DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN")
	s.Eventually("it works after a flush of the chain", soon, pass)
	kill(t, s, "node1", unix.SIGKILL)
	s.Shell("node1", "iptables-nft -F DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN")
	s.Eventually("nobody looks after the rules", soon, dropped)
	start(t, s, "node1")
	s.Eventually("it works after a restart", soon, pass)

	s.Run("node1", "nodectl firewall remove docker")
	before = foreign()
	s.Eventually("it is dropped again", soon, dropped)
	s.Run("node1", "nodectl firewall integrate docker")
	s.Run("node1", "nodectl detach a")
	kill(t, s, "node1", unix.SIGTERM)
	s.Want(s.Run("node1", cleanup(s, 1)), `nftables rule ip filter DOCKER-USER iifname "nn-\*" accept comment "nodenet"`)
	if now := foreign(); now != before {
		t.Errorf("Docker's rules before:\n%s\nafter cleanup:\n%s", before, now)
	}
	start(t, s, "node1")
}
