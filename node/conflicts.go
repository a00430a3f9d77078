package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/ipam"
	"nodenet/state"
)

// conflicts is everything that records disagree on, address space first.
func (n *Node) conflicts(sn *state.Snapshot, v *state.View) []state.Conflict {
	out := n.ringConflicts(sn, v)
	for _, s := range ipam.Strays(sn, n.ringID()) {
		c := state.Conflict{Winner: nodeName(v, s.Owner), Loser: nodeName(v, s.Node)}
		if s.Block.IsValid() {
			c.What = fmt.Sprintf("block %s of %s", s.Block, s.Network)
			c.Detail = fmt.Sprintf("open on %s in a range that is not its any more: it closes it when it is reached; if it does not, restart the daemon there", c.Loser)
		} else {
			name := s.Endpoint.Name + "." + s.Endpoint.Namespace
			if s.Endpoint.Name == "" {
				name = s.Endpoint.ID
			}
			c.What = fmt.Sprintf("endpoint %s (%s)", name, s.Addr)
			c.Detail = fmt.Sprintf("its address is in a range that is not its node's any more, and it is drained: on %s run `nodectl detach --id %s` and attach it again", c.Loser, s.Endpoint.ID)
			if s.Also != "" {
				c.Detail = "its address is also that of " + s.Also + "; " + c.Detail
			}
		}
		out = append(out, c)
	}
	gone := sn.Gone()
	for rec, f := range state.All[state.Forgotten](sn) {
		if f.Forced && gone.Node(state.NodeID(rec.ID.Key)) {
			out = append(out, state.Conflict{
				What: "node " + f.Name, Winner: nodeName(v, f.By), Loser: f.Name,
				Detail: fmt.Sprintf("forgotten by force at %s: if it still runs somewhere, stop it there", time.Unix(f.At, 0).Format(time.DateTime)),
			})
		}
	}
	for _, c := range v.Conflicts {
		if !slices.ContainsFunc(out, func(o state.Conflict) bool { return o.What == c.What && o.Loser == c.Loser }) {
			out = append(out, c)
		}
	}
	return append(out, waiting(v, time.Now())...)
}

// claimWait is for how long a claim that nothing here confirms is nobody's
// business: what confirms it is on its way.
const claimWait = time.Minute

// waiting shows claims that count although nothing here confirms them, once
// they are too old for that to be a matter of what arrives first.
func waiting(v *state.View, now time.Time) []state.Conflict {
	var out []state.Conflict
	for _, r := range v.Refusals {
		if r.Waiting && now.Sub(time.Unix(r.Time, 0)).Abs() > claimWait {
			out = append(out, state.Conflict{What: r.What, Winner: nodeName(v, r.Owner), Loser: nodeName(v, r.Holder), Detail: r.Why})
		}
	}
	return out
}

func (n *Node) conflictList(context.Context) ([]api.Conflict, error) {
	sn := n.store.Snapshot()
	v := sn.View()
	out := []api.Conflict{}
	for _, c := range n.conflicts(sn, v) {
		a := api.Conflict{What: c.What, Winner: c.Winner, Loser: c.Loser, Detail: c.Detail}
		if key, ok := strings.CutPrefix(c.What, "service "); ok {
			a.WinnerValue, a.LoserValue = serviceValues(sn, v, key, c)
		}
		out = append(out, a)
	}
	return append(out, losses(sn, v, time.Now())...), nil
}

// losses shows what was overwritten by somebody who had not seen it.
func losses(sn *state.Snapshot, v *state.View, now time.Time) []api.Conflict {
	var out []api.Conflict
	for _, l := range sn.Losses(now) {
		out = append(out, api.Conflict{
			What: l.ID.String(), Winner: written(v, &l.Winner), Loser: written(v, &l.Loser),
			Detail:      "written at the same time by nodes that did not hear each other, the later one counts: run the command again that should count",
			WinnerValue: valueOf(&l.Winner), LoserValue: valueOf(&l.Loser),
		})
	}
	return out
}

// written says who wrote a version, and when.
func written(v *state.View, r *state.Record) string {
	what := ""
	if r.Deleted {
		what = ", deleted"
	}
	return fmt.Sprintf("%s at %s%s", nodeName(v, r.Version.Node), r.Version.HLC.Time().Format(time.DateTime), what)
}

func valueOf(r *state.Record) json.RawMessage {
	b, err := json.Marshal(r.Val())
	if err != nil || r.Deleted {
		return nil
	}
	return b
}

// serviceValues finds what was declared differently.
func serviceValues(sn *state.Snapshot, v *state.View, key string, c state.Conflict) (winner, loser json.RawMessage) {
	for rec, s := range state.All[state.Service](sn) {
		if s.Key() != key {
			continue
		}
		who := "command"
		if rec.ID.Owner != "" {
			who = "Nodefile of " + nodeName(v, rec.ID.Owner)
		}
		b, err := json.Marshal(s)
		if err != nil {
			continue
		}
		switch who {
		case c.Winner:
			winner = b
		case c.Loser:
			loser = b
		}
	}
	return winner, loser
}
