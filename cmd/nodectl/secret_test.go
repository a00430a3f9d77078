package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
)

const (
	oldPrint = "1f2a1ec3000000000000000000000000"
	newPrint = "b4fd4853000000000000000000000000"
)

func TestSecretRequests(t *testing.T) {
	done := api.Rotation{Step: "done", From: newPrint, Done: true, Nodes: []api.NodeSecrets{
		{Name: "node1", State: "alive", Answered: true, Primary: newPrint}, {Name: "node2", State: "dead"},
	}}
	for _, tt := range []struct {
		name   string
		args   []string
		answer api.Rotation
		code   int
		want   string // request; "": none
		out    []string
	}{
		{"rotate", []string{"secret", "rotate"}, done, exitOK, "POST /v1/secret/rotate {}",
			[]string{"rotated: all nodes that answered hold secret " + newPrint, "node2 was not reached"}},
		{"force, at most half a second", []string{"secret", "rotate", "--force", "--timeout", "500ms"}, done, exitOK,
			`POST /v1/secret/rotate {"force":true,"timeoutSeconds":1}`, nil},
		{"abort", []string{"secret", "rotate", "--abort", "-o", "json"}, done, exitOK, `POST /v1/secret/rotate {"abort":true}`, []string{`"step": "done"`}},
		{"not in time", []string{"secret", "rotate"}, api.Rotation{Step: "add", Nodes: []api.NodeSecrets{}, Error: "not finished in time"}, exitError,
			"POST /v1/secret/rotate {}", []string{"nodectl: not finished in time"}},
		{"the daemon dies", []string{"secret", "rotate"}, api.Rotation{Step: "add", Nodes: []api.NodeSecrets{}}, exitError,
			"POST /v1/secret/rotate {}", []string{"run it again here or on another node"}},
		{"a bad timeout", []string{"secret", "rotate", "--timeout", "2h"}, done, exitUsage, "", []string{"--timeout 2h0m0s"}},
		{"status", []string{"secret", "status"}, api.Rotation{Step: "use", To: newPrint, Waiting: []string{"node2 does not answer (seen dead)"}, Nodes: []api.NodeSecrets{
			{Name: "node1", State: "alive", Answered: true, Primary: newPrint, Previous: oldPrint, Note: "file"},
			{Name: "node2", State: "dead", Error: "node cannot be reached"},
		}}, exitOK, "GET /v1/secret", []string{
			"a rotation to b4fd4853 is under way, step use: 'nodectl secret rotate' goes on with it", "waiting: node2 does not answer (seen dead)",
			"NODE   STATE  USES      NEXT  PREVIOUS  NOTE", "node1  alive  b4fd4853  -     1f2a1ec3  file", "node2  dead   -         -     -         node cannot be reached",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFakeDaemon(t, map[string]any{"POST /v1/secret/rotate": tt.answer, "GET /v1/secret": tt.answer})
			code, stdout, stderr := d.call(tt.args...)
			if code != tt.code {
				t.Errorf("status %d, want %d: %s", code, tt.code, stderr)
			}
			if got := strings.Join(d.asked, "\n"); got != tt.want {
				t.Errorf("asked %q, want %q", got, tt.want)
			}
			for _, w := range tt.out {
				if !strings.Contains(stdout+stderr, w) {
					t.Errorf("no %q in\n%s%s", w, stdout, stderr)
				}
			}
		})
	}
}

// What is shown of a rotation: each change once.
func TestRotationProgress(t *testing.T) {
	node := func(name, primary, next, previous string) api.NodeSecrets {
		return api.NodeSecrets{Name: name, Answered: true, Primary: primary, Next: next, Previous: previous}
	}
	away := api.NodeSecrets{Name: "node2", State: "dead"}
	old, both, used, only := node("node2", oldPrint, "", ""), node("node2", oldPrint, newPrint, ""), node("node2", newPrint, "", oldPrint), node("node2", newPrint, "", "")
	readonly := only
	readonly.Note = "the secret file is not up to date"
	var b bytes.Buffer
	p := &rotatePrinter{w: &b, said: map[string]string{}}
	for _, r := range []api.Rotation{
		{Step: "none", From: oldPrint, Nodes: []api.NodeSecrets{away}},
		{Step: "add", To: newPrint, Nodes: []api.NodeSecrets{away}, Waiting: []string{"node2 does not answer (seen dead)"}},
		{Step: "add", To: newPrint, Nodes: []api.NodeSecrets{away}, Waiting: []string{"node2 does not answer (seen dead)"}},
		{Step: "add", To: newPrint, Nodes: []api.NodeSecrets{old}},
		{Step: "use", To: newPrint, Nodes: []api.NodeSecrets{both}},
		{Step: "retire", To: newPrint, Nodes: []api.NodeSecrets{used}, Skipped: []string{"node3"}},
		{Step: "done", From: newPrint, Nodes: []api.NodeSecrets{readonly}},
	} {
		p.show(r)
	}
	want := `step 1 of 3, add: every node gets the new secret
  node2 does not answer
  waiting: node2 does not answer (seen dead)
  node2 does not hold b4fd4853 yet
step 2 of 3, use: every node switches to it
  node2 holds b4fd4853, still uses 1f2a1ec3
step 3 of 3, retire: the old secret is removed
  node2 uses b4fd4853, still accepts 1f2a1ec3
  WARNING: going on without node3: copy the secret file there afterwards, or run 'nodectl join TOKEN'
done
  node2 uses b4fd4853, the old one is removed
  WARNING: node2: the secret file is not up to date
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
