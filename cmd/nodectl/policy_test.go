package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nodenet/api"
	"nodenet/config"
)

const policyBlocks = `policy db.shop {
    select app=db
    ingress {
        from namespace * labels role=probe
        from prefix 192.0.2.0/24 except 192.0.2.128/25
        port 3306/tcp
        port 8000-8100/udp
    }
    ingress {
        from node
    }
    deny egress
}
`

// Blocks become requests, and what is shown is the block again.
func TestPolicyAddShow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policies")
	if err := os.WriteFile(file, []byte(policyBlocks), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newFakeDaemon(t, map[string]any{"POST /v1/policies": api.Policy{Name: "db", Namespace: "shop", Selects: 2, Source: "command"}})
	code, out, stderr := d.call("policy", "add", "-f", file)
	if code != exitOK || !strings.Contains(out, "db.shop") {
		t.Fatalf("exit status %d: %s%s", code, out, stderr)
	}
	want := `POST /v1/policies {"namespace":"shop","name":"db","select":{"app":"db"},"ingress":[{"peers":[{"namespace":"*","labels":{"role":"probe"}},` +
		`{"prefix":"192.0.2.0/24","except":["192.0.2.128/25"]}],"ports":[{"protocol":"tcp","first":3306,"last":3306},{"protocol":"udp","first":8000,"last":8100}]},` +
		`{"peers":[{"node":true}]}],"denyEgress":true}`
	if diff := cmp.Diff([]string{want}, d.asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}

	blocks, err := config.ParsePolicies("p", strings.NewReader(policyBlocks), config.Env{})
	if err != nil {
		t.Fatal(err)
	}
	asked := apiPolicy(&blocks[0])
	if diff := cmp.Diff(blocks[0], configPolicy(&asked), cmpopts.EquateComparable(netip.Prefix{}), cmpopts.IgnoreFields(config.Policy{}, "Pos")); diff != "" {
		t.Errorf("there and back (-want +got):\n%s", diff)
	}
	d = newFakeDaemon(t, map[string]any{"GET /v1/policies": []api.Policy{asked}})
	if code, out, stderr := d.call("policy", "show", "db.shop"); code != exitOK || out != policyBlocks {
		t.Errorf("exit status %d: %s%s", code, out, stderr)
	}
	if code, _, stderr := d.call("policy", "show", "db"); code != exitError || !strings.Contains(stderr, "no policy db.default") {
		t.Errorf("exit status %d: %s", code, stderr)
	}
}

func TestPolicyWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policies")
	if err := os.WriteFile(file, []byte("policy a {\n    deny all\n}\nservice b {\n    port 80\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newFakeDaemon(t, nil)
	code, _, stderr := d.call("policy", "add", "-f", file)
	for _, want := range []string{"policies:2: policy a.default: deny all: unknown value", "policies:4: service b: not a policy"} {
		if code == exitOK || !strings.Contains(stderr, want) {
			t.Errorf("exit status %d, no %q in: %s", code, want, stderr)
		}
	}
	for _, args := range [][]string{{"policy", "add"}, {"policy", "test"}, {"policy", "test", "--from", "a", "--to", "b"}} {
		if code, _, stderr := d.call(args...); code != exitUsage {
			t.Errorf("%v: exit status %d: %s", args, code, stderr)
		}
	}
	if len(d.asked) > 0 {
		t.Errorf("asked: %v", d.asked)
	}
}

func TestPolicyTestOutput(t *testing.T) {
	a := netip.MustParseAddr
	to := netip.MustParseAddrPort("10.244.1.2:3306")
	answer := api.PolicyTest{From: "web.shop", To: "db.shop", Port: 3306, Protocol: "tcp", Results: []api.PolicyResult{
		{From: a("10.244.1.3"), To: to, Allowed: true,
			Egress:  api.PolicySide{Endpoint: "web.shop", Node: "node1", Allowed: true, By: "no policy for its egress"},
			Ingress: api.PolicySide{Endpoint: "db.shop", Node: "node1", Isolated: []string{"db.shop"}, Allowed: true, By: "policy db.shop, ingress 1"},
			Kernel:  []api.PolicyKernel{{Node: "node1", Allowed: true, Lookups: []string{"permit: polin { 10.244.1.2 : abcd:ef01 }"}}}},
		{From: a("192.0.2.1"), To: to, Networks: "networks pods and back are not peers",
			Egress:  api.PolicySide{Allowed: true, By: "no endpoint"},
			Ingress: api.PolicySide{Endpoint: "db.shop", Node: "node1", Isolated: []string{"db.shop", "more.shop"}},
			Kernel:  []api.PolicyKernel{{Node: "node1", Chain: "isolated"}, {Node: "node2", Differs: true, Allowed: true}, {Node: "node3", Error: "not alive"}}, Differs: true},
	}}
	d := newFakeDaemon(t, map[string]any{"GET /v1/policies/test": answer})
	code, out, stderr := d.call("policy", "test", "--from", "web.shop", "--to", "db.shop:3306", "-v")
	if code != exitError || stderr != "" {
		t.Errorf("exit status %d: %s", code, stderr)
	}
	golden(t, "policy-test", []byte(out))
	if diff := cmp.Diff([]string{"GET /v1/policies/test?from=web.shop&port=3306&protocol=tcp&to=db.shop"}, d.asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	answer.Results = answer.Results[:1]
	d = newFakeDaemon(t, map[string]any{"GET /v1/policies/test": answer})
	if code, _, _ := d.call("policy", "test", "--from", "web.shop", "--to", "db.shop:3306/udp"); code != exitOK {
		t.Errorf("exit status %d when all is allowed", code)
	}
}
