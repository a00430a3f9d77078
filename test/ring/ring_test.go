package ring

import (
	"fmt"
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// Two blocks of five workloads for two nodes.
const tight = `network pods 10.244.0.0/28 {
    block 29
    masquerade
}
`

// TestExhaustion: who asks for an address where there is none left hears who
// holds what.
func TestExhaustion(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: tight})
	for i := range 5 {
		s.Workload(1, fmt.Sprintf("w%d", i), "")
	}
	s.Netns("w5")
	s.Want(s.Fail("node1", "nodectl attach --netns w5 --name w5"), `^nodectl: network pods: no space left: node1 1 of 1 blocks, node2 1 of 1 blocks`)
	kill(t, s, "node2")
	until(s, dying, "node1", "nodectl peers", `^node2 +dead`)
	s.Want(s.Run("node1", "nodectl ipam"), `^network pods 10\.244\.0\.0/28 in blocks of /29`, `^10\.244\.0\.[08]/29 +node1 +alive +\d+ +50 % +1/1 +5/5`, `^10\.244\.0\.[08]/29 +node2 +dead +\d+ +50 % +1/1 +0/5`,
		`^services 10\.96\.0\.0/12`, `^node ports 30000-32767`)
	t.Log(s.Run("node1", "nodectl ipam"))
}

// TestForget: a node dies for good, the others take its space over; then it
// comes back with its old disk all the same, and gives way.
func TestForget(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3})
	w3 := s.Workload(3, "w3", "--label app=w")
	block := w3.Addr[:strings.LastIndexByte(w3.Addr, '.')]
	out := until(s, soon, "node1", "nodectl ipam explain "+w3.Addr, `endpoint +w3\.default on node3 \(alive\)`, `range .* owned by node3 \(alive\)`, `block .* opened by node3`, `route +10\.`, `conflicts +none`)
	t.Log(out)
	s.Want(s.Run("node1", "nodectl wait --converged"), `^100 % of nodes hold revision \d+ \(3 of 3\)`)
	t.Log(until(s, soon, "node1", "nodectl peers", `^node2 +alive .* ms +\d.\d s +0 +\d+ (Ki)?B`, `^node3 +alive .* ms`))
	s.Want(s.Fail("node1", "nodectl node forget node3"), `node3 is alive: only a node that is gone can be forgotten`)

	kill(t, s, "node3")
	until(s, dying, "node1", "nodectl peers", `^node3 +dead`)
	until(s, dying, "node2", "nodectl peers", `^node3 +dead`)
	out = s.Run("node1", "nodectl node forget node3 --quarantine 12s")
	s.Want(out, `^agreed +node1, node2: 2 of 3 nodes`, `pods 10\.`, `rests +for 1[0-2]s`)
	t.Log(out)
	s.Want(s.Run("node1", "nodectl ipam"), `node1 +alive +100000\d .*rests for`)
	s.Want(s.Run("node1", "nodectl ipam explain "+w3.Addr), `taken over from node3, which was forgotten`, `nobody can have it before`)
	s.Want(s.Run("node2", "nodectl peers"), `^node3 +forgotten`)
	s.Reject(s.Run("node2", "nodectl routes"), block)
	s.Reject(s.Run("node2", "nodectl endpoints"), `w3`)
	s.Netns("w1")
	s.Want(s.Fail("node1", "nodectl attach --netns w1 --name w1 --ip "+w3.Addr), `rests until`)
	s.Eventually("node1 gives out what was node3's", soon, func() error {
		_, err := s.Exec("node1", "nodectl attach --netns w1 --name w1 --ip "+w3.Addr)
		return err
	})

	must(t, s.Lab.Start(t.Context(), "node3"))
	until(s, dying, "node1", "nodectl peers", `^node3 +alive`)
	until(s, soon, "node3", "nodectl endpoints", `^w3\.default +`+w3.Addr+` +node3 .* no`)
	out = until(s, soon, "node3", "nodectl conflicts", `endpoint w3\.default \(`+w3.Addr+`\)`, `w1`, `nodectl detach`)
	t.Log(out)
	until(s, soon, "node1", "nodectl status", `^conflict +endpoint w3`)
	until(s, soon, "node1", "nodectl ipam explain "+w3.Addr, `endpoint +w1\.default on node1`, `endpoint +w3\.default on node3 .*not ready`)
	s.Run("node3", "nodectl detach w3")
	var again string
	s.Eventually("node3 gives out addresses again", soon, func() error {
		var err error
		again, err = s.Exec("node3", "nodectl attach --netns w3 --name w3")
		return err
	})
	if strings.HasPrefix(again, w3.Addr+"/") {
		t.Errorf("node3 gave out %s, which node1 had given out", again)
	}
	until(s, soon, "node1", "nodectl conflicts -o json", `^\[\]`)
	s.Run("node1", "nodectl wait --converged --timeout 20s")
	t.Log(s.Run("node1", "nodectl ipam"))
}

// TestForgottenWhileCutOff: the majority forgets a node that runs on beyond a
// cut. When the cut has healed, it gives way without a restart.
func TestForgottenWhileCutOff(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3})
	w3 := s.Workload(3, "w3", "--label app=w")
	s.Run("node3", "nodectl wait --converged")
	must(t, s.Lab.Cut("node3", "node1", false))
	must(t, s.Lab.Cut("node3", "node2", false))
	until(s, dying, "node1", "nodectl peers", `^node3 +dead`)
	until(s, dying, "node2", "nodectl peers", `^node3 +dead`)
	s.Run("node1", "nodectl node forget node3")
	s.Netns("cut")
	s.Run("node3", "nodectl attach --netns cut --name cut") // it goes on, and cannot know

	must(t, s.Lab.Heal("", ""))
	until(s, dying, "node1", "nodectl peers", `^node3 +alive`)
	until(s, soon, "node1", "nodectl endpoints", `^w3\.default +`+w3.Addr+` +node3 .* no`, `^cut\.default .* node3 .* no`)
	until(s, soon, "node3", "nodectl ipam explain "+w3.Addr, `owned by node1 \(alive\), taken over from node3`, `none is open there`, `not ready: its address .* belongs to node1 now`)
	s.Run("node3", "nodectl detach cut")
	var again string
	s.Eventually("node3 gives out addresses again", soon, func() error {
		var err error
		again, err = s.Exec("node3", "nodectl attach --netns cut --name cut")
		return err
	})
	addr, _, _ := strings.Cut(again, "/")
	until(s, soon, "node1", "nodectl ipam explain "+addr, `owned by node3`, `endpoint +cut\.default on node3 \(alive\)`, `conflicts +none`)
	s.Run("node3", "nodectl wait --converged --timeout 20s")
}

// TestForcedTwice: both sides of a partition forget the same dead node by
// force. When they meet, its space is contested, and everybody says so.
func TestForcedTwice(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 3})
	s.Run("node1", "nodectl wait --converged")
	kill(t, s, "node2")
	must(t, s.Lab.Cut("node1", "node3", false))
	for _, n := range []string{"node1", "node3"} {
		until(s, dying, n, "nodectl peers", `^node2 +dead`)
	}
	for _, n := range []string{"node1", "node3"} {
		s.Want(s.Fail(n, "nodectl node forget node2"), `1 of 3 nodes agree`, `--force`)
		s.Want(s.Run(n, "nodectl node forget node2 --force"), `WARNING: forgetting node2 without asking`, `WARNING: forget node2: 1 of 3 nodes agree`, `^taken over`)
	}
	must(t, s.Lab.Heal("", ""))
	for _, n := range []string{"node1", "node3"} {
		until(s, dying, n, "nodectl status", `^conflict +range .* of pods: claimed by more than one node`)
		until(s, soon, n, "nodectl conflicts", `^range .* of pods`, `counts: +node[13]`, `not: +node[13]`)
		until(s, soon, n, "nodectl ipam", `CONTESTED: claimed by node[13] too`)
	}
	t.Log(s.Run("node1", "nodectl conflicts"))
}

// TestSnapshot: a node's state is saved, goes on, and is restored as of then.
func TestSnapshot(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2})
	s.Workload(2, "early", "")
	t.Log(s.Run("node2", "nodectl snapshot save state.snapshot"))
	s.Workload(2, "late", "")
	s.Run("node2", "nodectl wait --converged")
	dir := s.Lab.Dir() + "/node2"
	s.Want(s.Fail("node2", "nodectl snapshot restore state.snapshot"), `daemon of node2 is running`)
	kill(t, s, "node2")
	args := "--config " + dir + "/Nodefile --state " + dir + "/state"
	out := s.Run("node2", "nodectl snapshot restore state.snapshot "+args)
	s.Want(out, `no addresses are given out before another node`, `former tables are kept`)
	t.Log(out)
	must(t, s.Lab.Start(t.Context(), "node2"))
	until(s, dying, "node2", "nodectl endpoints", `^early\.default`, `^late\.default`)
	until(s, dying, "node1", "nodectl endpoints", `^early\.default`, `^late\.default`)
	s.Workload(2, "after", "")
	s.Run("node2", "nodectl wait --converged")
}
