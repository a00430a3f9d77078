package lab

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"nodenet/api"
)

// NodeState is what a node says about itself, or why it says nothing.
type NodeState struct {
	Node    *Node       `json:"node"`
	Running bool        `json:"running"`
	Status  *api.Status `json:"status,omitempty"`
	Err     error       `json:"-"`
}

// States asks all nodes at once. The result is in the nodes' order.
func (l *Lab) States(ctx context.Context) ([]NodeState, error) {
	nodes, err := l.Nodes()
	if err != nil {
		return nil, err
	}
	out := make([]NodeState, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		out[i] = NodeState{Node: n, Running: n.Proc.Alive()}
		if !out[i].Running {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			c := n.Client()
			defer c.Close()
			st, err := c.Status(ctx)
			if err != nil {
				out[i].Err = err
				return
			}
			out[i].Status = &st
		})
	}
	wg.Wait()
	return out, nil
}

// Problems says what keeps the nodes from being one healthy cluster: each
// that was started must run, answer, be synced, see all others alive, have a
// pod CIDR on each network, and its subsystems in order and up to date. Nodes stopped with Kill are to be seen as not
// alive. No problems: converged.
func Problems(states []NodeState) []string {
	var out []string
	for _, s := range states {
		say := func(format string, a ...any) {
			out = append(out, s.Node.Name+": "+fmt.Sprintf(format, a...))
		}
		switch {
		case s.Node.Proc == (Proc{}):
			continue
		case !s.Running:
			say("the daemon has ended")
			continue
		case s.Err != nil:
			say("%v", s.Err)
			continue
		}
		peers := map[string]string{}
		for _, p := range s.Status.Peers {
			peers[p.Name] = p.State
		}
		if !s.Status.Synced {
			say("not synced yet")
		}
		for _, other := range states {
			if other.Node.Name == s.Node.Name {
				continue
			}
			up := other.Node.Proc != (Proc{})
			switch state, known := peers[other.Node.Name]; {
			case up && !known:
				say("does not know %s", other.Node.Name)
			case up && state != "alive":
				say("sees %s as %s", other.Node.Name, state)
			case !up && state == "alive":
				say("still sees %s as alive", other.Node.Name)
			}
		}
		for _, n := range s.Status.Networks {
			if n.Overlay != "none" && len(n.Blocks) == 0 {
				say("network %s has no pod CIDR yet", n.Name)
			}
		}
		for _, sub := range s.Status.Subsystems {
			if sub.OK {
				if sub.Applied < sub.Desired {
					say("%s has applied revision %d of %d", sub.Name, sub.Applied, sub.Desired)
				}
				continue
			}
			text := sub.Name + ": " + sub.Detail
			if sub.Error != "" {
				text += ": " + sub.Error
			}
			if sub.Fix != "" {
				text += " (" + sub.Fix + ")"
			}
			say("%s", text)
		}
	}
	return out
}

// WaitConverged returns nil once there are no Problems. When ctx ends before,
// the error lists them, with the end of the logs of the nodes concerned. A
// daemon that has ended by itself is an error at once.
func (l *Lab) WaitConverged(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		states, err := l.States(ctx)
		if err != nil {
			return err
		}
		problems := Problems(states)
		if len(problems) == 0 {
			return nil
		}
		for _, s := range states {
			if s.Node.Proc != (Proc{}) && !s.Running {
				return fmt.Errorf("the cluster cannot converge:\n%s", diagnosis(states, problems))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster has not converged: %w\n%s", ctx.Err(), diagnosis(states, problems))
		case <-tick.C:
		}
	}
}

// diagnosis lists problems, and the logs of the nodes that have them.
func diagnosis(states []NodeState, problems []string) string {
	var b strings.Builder
	concerned := map[string]bool{}
	for _, p := range problems {
		fmt.Fprintf(&b, "  %s\n", p)
		name, _, _ := strings.Cut(p, ":")
		concerned[name] = true
	}
	for _, s := range states {
		if !concerned[s.Node.Name] {
			continue
		}
		if log := tail(s.Node.Log(), 12); log != "" {
			fmt.Fprintf(&b, "log of %s:\n  %s\n", s.Node.Name, strings.ReplaceAll(log, "\n", "\n  "))
		}
	}
	return strings.TrimRight(b.String(), "\n")
}
