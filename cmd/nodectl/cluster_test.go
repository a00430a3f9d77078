package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
	"nodenet/node"
)

// testRings is a cluster in which node3 was forgotten a moment ago and a part
// of the node ports is claimed twice.
func testRings() []api.Ring {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	part := func(text, owner, state string, gen, units uint64, share float64) api.RingPart {
		return api.RingPart{Text: text, Owner: owner, OwnerID: owner + "id", State: state, Generation: gen, Units: units, Share: share}
	}
	a, b, c := part("10.244.0.0/17", "node1", "alive", 1, 128, 0.5), part("10.244.128.0/18", "node2", "dead", 2, 64, 0.25), part("10.244.192.0/18", "node1", "alive", 1000002, 64, 0.25)
	a.Blocks, a.Used, a.Total = []netip.Prefix{prefix("10.244.0.0/24"), prefix("10.244.1.0/24")}, 12, 506
	b.Blocks, b.Used, b.Total = []netip.Prefix{prefix("10.244.128.0/24")}, 3, 253
	c.Quarantine = now.Add(9*time.Minute + 30*time.Second).Unix()
	v1, v2, v3 := part("10.96.0.0-10.96.0.9", "node1", "alive", 1, 10, 0.1), part("10.96.0.10", "node2", "dead", 2, 1, 0.01), part("10.96.0.11", "node1", "alive", 3, 1, 0.01)
	v1.Used, v1.Total, v3.Total = 2, 9, 1
	p := part("30000-32767", "node1", "alive", 4, 2768, 1)
	p.Contested = []string{"node2"}
	p.From, p.To = addr("0.0.117.48"), addr("0.0.127.255")
	return []api.Ring{
		{Name: "pods", Prefix: prefix("10.244.0.0/16"), Block: 24, Parts: []api.RingPart{a, b, c}, Foreign: []string{"otherring"}},
		{Name: "new", Prefix: prefix("10.200.0.0/16"), Block: 24, Missing: true, Parts: []api.RingPart{}},
		{Name: "services", Prefix: prefix("10.96.0.0/12"), Parts: []api.RingPart{v1, v2, v3}},
		{Name: "nodeports", Prefix: prefix("0.0.0.0/16"), Ports: "30000-32767", Parts: []api.RingPart{p}},
	}
}

func testExplanation() *api.Explanation {
	part := testRings()[0].Parts[0]
	return &api.Explanation{
		Addr: netip.MustParseAddr("10.244.1.7"), Summary: "network pods: endpoint web.apps on node1", Network: "pods", Part: &part,
		Range: netip.MustParsePrefix("10.244.0.0/17"), Donor: "node2", Since: before(time.Hour), Version: "generation 2, clock 1.0 by node2id",
		Block: &api.BlockInfo{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Node: "node1", Since: before(time.Minute), Version: "epoch 7 seq 3"},
		Holders: []api.Holder{
			{What: "endpoint", Name: "web.apps", Node: "node1", State: "alive", Since: before(50 * time.Second), Version: "epoch 7 seq 4", Detail: "cni"},
			{What: "reservation", Name: "web"},
		},
		Route:     "10.244.1.0/24 via local dev nn-pods",
		Conflicts: []string{"endpoint web.apps (10.244.1.7): its address is also that of apps/api (node1 is used, not node2)"},
	}
}

func TestClusterScreens(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"ipam":     func(w io.Writer) error { return writeRings(w, testRings(), false, now) },
		"ipam-all": func(w io.Writer) error { return writeRings(w, testRings(), true, now) },
		"explain":  func(w io.Writer) error { return writeExplanation(w, testExplanation(), now) },
		"explain-free": func(w io.Writer) error {
			return writeExplanation(w, &api.Explanation{Addr: netip.MustParseAddr("10.244.9.9"), Network: "pods", Part: &testRings()[0].Parts[2], TakenFrom: "node3",
				Summary: "network pods: nobody can have it before then", Free: "nobody can have it before then"}, now)
		},
		"lb-trace": func(w io.Writer) error {
			return writeTrace(w, &api.LBTrace{
				From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddrPort("10.96.0.24:80"), Protocol: "tcp", Device: "eth0",
				Chains: []string{"raw_pre", "pre", "dispatch", "vip", "lb-2"}, Action: "accept", Target: netip.MustParseAddrPort("10.244.1.2:8080"), Translated: true, Masquerade: true,
				Lookups: []string{"vip: svc { 10.96.0.24 . tcp . 80 : 0:2 }", "vip: bkt { 0:2 : goto lb-2 }", "lb-2: eps { 10.96.0.24 . tcp . 80 . 1 : 10.244.1.2 . 8080 }"},
			})
		},
		"lb-trace-refused": func(w io.Writer) error {
			return writeTrace(w, &api.LBTrace{
				From: netip.MustParseAddr("10.244.0.1"), To: netip.MustParseAddrPort("10.96.0.24:81"), Protocol: "tcp",
				Chains: []string{"out", "dispatch", "vip", "guard_out", "guard", "undelivered"}, Action: "reset",
				Lookups: []string{"vip: svc { 10.96.0.24 . tcp . 81 } no", "undelivered: vips { 10.96.0.24 } yes"},
			})
		},
		"peers": func(w io.Writer) error {
			return columns(w, func(w io.Writer) {
				peersTable(w, []api.PeerDetail{
					{Name: "node2", State: "alive", Since: before(2 * time.Hour), Address: netip.MustParseAddr("192.168.1.12"), Connected: true, RTTMicro: 210, LastSync: 400, BytesIn: 9000, BytesOut: 700 << 10, Version: "0.1.0"},
					{Name: "node3", State: "dead", Since: before(95 * time.Second), Address: netip.MustParseAddr("192.168.1.13"), LastSync: 95_000, Lag: -1, LastError: "connection refused"},
					{Name: "node4", State: "forgotten", LastSync: -1, Lag: -1},
					{Name: "node5", State: "alive", Since: before(time.Second), Lag: 17, LastSync: -1, BytesOut: 12 << 20},
				}, now)
			})
		},
		"conflicts": func(w io.Writer) error {
			return columns(w, func(w io.Writer) {
				conflictList(w, []api.Conflict{
					{What: "range 10.244.0.0-10.244.127.255 of pods", Winner: "node1", Loser: "node2", Detail: "claimed by more than one node: detach the loser's workloads in it"},
					{What: "service apps/web", Winner: "Nodefile of node1", Loser: "command", Detail: "declared differently", WinnerValue: json.RawMessage(`{"a":1}`), LoserValue: json.RawMessage(`{"a":2}`)},
				})
			})
		},
		"forgotten": func(w io.Writer) error {
			return columns(w, func(w io.Writer) {
				forgottenText(w, &api.Forgotten{Node: "node3", ID: "n3", Agreed: []string{"node1", "node2"}, Known: 3,
					Ranges: []string{"pods 10.244.192.0/18", "services 10.104.0.0/14"}, Quarantine: now.Add(10 * time.Minute).Unix()}, now)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := write(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.Bytes())
		})
	}
}

func TestProgressLine(t *testing.T) {
	for want, p := range map[string]api.Progress{
		"66 % of nodes hold revision 812 (2 of 3; waiting for node3 (lacks 4))":                             {Revision: 812, Nodes: 3, Holding: 2, Waiting: []string{"node3 (lacks 4)"}},
		"100 % of nodes hold revision 9 (2 of 2; node3 not alive: not waited for)":                          {Revision: 9, Nodes: 2, Holding: 2, Dead: []string{"node3"}, Done: true},
		"20 % of nodes hold revision 1 (1 of 5; waiting for a, b, c and 1 more)":                            {Revision: 1, Nodes: 5, Holding: 1, Waiting: []string{"a", "b", "c", "d"}},
		"97 % of nodes hold revision 812 (97 of 100; waiting for n7 (lacks 1), n8 (lacks 2), n9 (lacks 3))": {Revision: 812, Nodes: 100, Holding: 97, Waiting: []string{"n7 (lacks 1)", "n8 (lacks 2)", "n9 (lacks 3)"}},
	} {
		if got := progressLine(&p, true); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestClusterRequests(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.snapshot")
	d := newFakeDaemon(t, map[string]any{
		"GET /v1/ipam": testRings(), "GET /v1/ipam/explain": testExplanation(), "POST /v1/node/forget": api.Forgotten{Node: "node3", Warnings: []string{"look"}},
		"GET /v1/peers": []api.PeerDetail{}, "GET /v1/conflicts": []api.Conflict{}, "POST /v1/snapshot": api.Snapshot{Data: []byte("data"), Records: 3, Revision: 7},
		"GET /v1/wait": api.Progress{Done: true, Revision: 7, Nodes: 1, Holding: 1},
	})
	for _, tt := range []struct {
		args      []string
		ask, diag string
	}{
		{[]string{"ipam", "-o", "json"}, "GET /v1/ipam", ""},
		{[]string{"ipam", "explain", "10.244.1.7"}, "GET /v1/ipam/explain?addr=10.244.1.7", ""},
		{[]string{"node", "forget", "node3"}, `POST /v1/node/forget {"node":"node3"}`, "WARNING: look"},
		{[]string{"node", "forget", "node3", "--force", "--quarantine", "1h"}, `POST /v1/node/forget {"node":"node3","force":true,"quarantineSeconds":3600}`, "WARNING: forgetting node3 without"},
		{[]string{"peers"}, "GET /v1/peers", ""},
		{[]string{"conflicts"}, "GET /v1/conflicts", "no conflicts"},
		{[]string{"conflicts", "-o", "json"}, "GET /v1/conflicts", ""},
		{[]string{"snapshot", "save", file}, "POST /v1/snapshot {}", ""},
		{[]string{"wait", "--converged"}, "GET /v1/wait?converged=true&revision=0&timeout=30s", "100 % of nodes hold revision 7 (1 of 1)"},
		{[]string{"wait", "--revision", "5", "--timeout", "1s"}, "GET /v1/wait?converged=false&revision=5&timeout=1s", "applied revision 0"},
	} {
		d.asked = nil
		code, _, diag := d.call(tt.args...)
		if code != exitOK || !strings.Contains(diag, tt.diag) {
			t.Errorf("%v: exit status %d, %q", tt.args, code, diag)
		}
		if diff := cmp.Diff([]string{tt.ask}, d.asked); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.args, diff)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil || string(b) != "data" {
		t.Errorf("saved %q, %v", b, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file may hold secrets: %v, %v", st.Mode(), err)
	}
	if code, _, diag := d.call("snapshot", "save", file); code != exitError || !strings.Contains(diag, "exists") {
		t.Errorf("overwrote a snapshot: %d, %s", code, diag)
	}
	for _, args := range [][]string{{"wait"}, {"wait", "--converged", "--timeout", "0s"}, {"ipam", "explain", "web"}, {"node", "forget"}, {"node", "forget", "x", "--quarantine", "1ms"}} {
		if code, _, diag := d.call(args...); code != exitUsage {
			t.Errorf("%v: exit status %d: %s", args, code, diag)
		}
	}
}

func TestWaitFails(t *testing.T) {
	d := newFakeDaemon(t, map[string]any{"GET /v1/wait": api.Progress{Error: "not within 1s: 2 of 3 nodes hold revision 7; waiting for node3"}})
	if code, _, diag := d.call("wait", "--converged", "--timeout", "1s"); code != exitError || !strings.Contains(diag, "nodectl: not within 1s") {
		t.Errorf("exit status %d: %s", code, diag)
	}
}

func TestRestoreVerb(t *testing.T) {
	var out, diag bytes.Buffer
	var got node.RestoreOptions
	c := &cli{in: strings.NewReader(""), out: &out, err: &diag, engine: engine{Restore: func(o node.RestoreOptions) (*node.RestoreResult, error) {
		got = o
		return &node.RestoreResult{Cluster: "prod", Explain: []string{"36 records"}}, nil
	}}}
	code := c.execute(t.Context(), []string{"--socket", filepath.Join(t.TempDir(), "none"), "snapshot", "restore", "f", "--state", "/s", "--alone"})
	want := node.RestoreOptions{File: "f", StateDir: "/s", Alone: true}
	if code != exitOK || got != want || out.String() != "restored cluster prod\n- 36 records\n" {
		t.Errorf("exit status %d, %+v, %q, %q", code, got, out.String(), diag.String())
	}
}
