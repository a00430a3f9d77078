package labs

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// muslLookup is what a program on musl does to connect.
const muslLookup = `#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv)
{
	struct addrinfo *a, hint = { .ai_socktype = SOCK_STREAM };
	int err = getaddrinfo(argv[1], "80", &hint, &a);
	if (err)
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(err));
	return err != 0;
}
`

// TestSearchPath counts what resolvers ask the node, and the node its
// upstream, with the search path walked on the server and without: two
// workloads of one namespace differ in a label alone.
func TestSearchPath(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 1, Nodefile: `network pods 10.244.0.0/16 {
    masquerade
}
`})
	on := s.Workload(1, "completed", "--namespace apps")
	off := s.Workload(1, "plain", "--namespace apps --label nodenet.io/dns-search=off")
	web := s.Workload(1, "web", "--namespace apps --label app=web")
	other := s.Workload(1, "other", "--namespace shop --label app=other")
	web.Serve(80)
	other.Serve(80)
	s.Run("node1", "nodectl service add web.apps --port 80 --select app=web")
	s.Run("node1", "nodectl service add cart.shop --port 80 --select app=other")
	until(s, "node1", "dig +short @10.96.0.10 cart.shop.svc.cluster.local", `^10\.`)
	until(s, "node1", "dig +short @10.96.0.10 web.apps.svc.cluster.local", `^10\.`)

	clients := map[string]string{"curl (glibc)": curl + "-o /dev/null http://%s/", "getent hosts (glibc)": "getent ahosts %s"}
	order := []string{"curl (glibc)", "getent hosts (glibc)"}
	if cc, err := exec.LookPath("musl-gcc"); err == nil {
		s.File("lookup.c", muslLookup)
		bin := filepath.Join(s.Dir(), "lookup")
		if out, err := exec.Command(cc, "-static", "-o", bin, filepath.Join(s.Dir(), "lookup.c")).CombinedOutput(); err != nil {
			t.Fatalf("musl-gcc: %v\n%s", err, out)
		}
		clients["getaddrinfo (musl)"] = bin + " %s"
		order = append(order, "getaddrinfo (musl)")
	} else {
		t.Log("no musl-gcc: musl is left out")
	}

	counter := regexp.MustCompile(`(?m)^nodenet_dns_queries_total\{.*type="(?:A|AAAA)"\} (\d+)$`)
	forwarded := regexp.MustCompile(`(?m)^nodenet_dns_forward_queries_total\{.*\} (\d+)$`)
	sum := func(re *regexp.Regexp) (n int) {
		for _, m := range re.FindAllStringSubmatch(mustExec(s, "node1", "curl -sS -m 3 http://127.0.0.1:9153/metrics"), -1) {
			v, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
		return n
	}
	var table strings.Builder
	table.WriteString("| client | name | questions, plain server | with search |\n|---|---|---|---|\n")
	for _, name := range order {
		for _, row := range []struct {
			host  string
			least int // of a plain server
		}{{"web", 2}, {"cart.shop", 4}, {"web.apps.svc.cluster.local", 8}, {"www.example.com", 8}} {
			cmd := fmt.Sprintf(clients[name], row.host)
			ask := func(w *scenario.Workload) int {
				t.Helper()
				before := sum(counter)
				if out, err := w.Exec(cmd); err != nil {
					t.Fatalf("%s on %s: %v\n%s", cmd, w.Name, err, out)
				}
				return sum(counter) - before
			}
			plain, completed := ask(off), ask(on)
			fmt.Fprintf(&table, "| %s | `%s` | %d | %d |\n", name, row.host, plain, completed)
			if completed != 2 { // A and AAAA
				t.Errorf("%s on %s: %d questions, want one for each family", cmd, on.Name, completed)
			}
			if plain < row.least {
				t.Errorf("%s on %s: %d questions, want at least %d: is it completed after all?", cmd, off.Name, plain, row.least)
			}
		}
	}
	t.Logf("questions to the node:\n%s", table.String())

	// A client that walks to the end for nothing: only the name itself is
	// anybody else's business, once for each family.
	before, asked := sum(forwarded), sum(counter)
	if out, err := on.Exec("getent ahosts nothing.example.com"); err == nil {
		t.Errorf("nothing.example.com is found: %s", out)
	}
	if n := sum(forwarded) - before; n > 2 {
		t.Errorf("%d questions forwarded for a name that does not exist, of %d", n, sum(counter)-asked)
	}
	out := mustExec(s, "completed", "dig +noall +answer +search web")
	s.Want(out, `^web\.apps\.svc\.cluster\.local\.\s+5\s+IN\s+A\s`)
	out = mustExec(s, "completed", "dig +noall +answer web")
	s.Want(out, `^web\.\s+5\s+IN\s+CNAME\s+web\.apps\.svc\.cluster\.local\.$`, `^web\.apps\.svc\.cluster\.local\.\s+5\s+IN\s+A\s`)
}

func mustExec(s *scenario.Scenario, where, cmdline string) string {
	s.T().Helper()
	if where == "completed" {
		where, cmdline = scenario.Machine, "ip netns exec completed "+cmdline
	}
	out, err := s.Exec(where, cmdline)
	if err != nil {
		s.T().Fatalf("%s: %s: %v\n%s", where, cmdline, err, out)
	}
	return out
}
