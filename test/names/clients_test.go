package names

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// getaddrinfo prints the addresses that the C library finds for each name.
const getaddrinfo = `#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/socket.h>
#include <netdb.h>

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list, *a;
		char host[256];
		int err = getaddrinfo(argv[i], "80", &hints, &list);
		if (err) {
			printf("%s: %s\n", argv[i], gai_strerror(err));
			continue;
		}
		for (a = list; a; a = a->ai_next)
			if (!getnameinfo(a->ai_addr, a->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST))
				printf("%s: %s\n", argv[i], host);
		freeaddrinfo(list);
	}
}
`

// TestClients: what workloads have asks with the resolv.conf that they get:
// the resolvers of glibc and musl, with search lists, and other programs.
func TestClients(t *testing.T) {
	s := scenario.Up(t, lab.Options{Nodes: 2, Nodefile: pinned})
	w := s.Workload(1, "w", "--namespace apps")
	b := s.Workload(2, "b", "--namespace apps --label app=b --port http=80")
	s.Run("node2", "nodectl service add web.apps --vip 10.96.1.1 --port http=80 --select app=b")
	s.Run("node2", "nodectl service add peers.apps --vip none --port http=80 --select app=b")
	s.Run("node1", "nodectl dns wait web.apps.svc.cluster.local")
	s.Run("node1", "nodectl dns wait peers.apps.svc.cluster.local")
	if out := w.Run("cat /etc/resolv.conf"); !strings.Contains(out, "search apps.svc.cluster.local") || !strings.Contains(out, "nameserver 10.96.0.10") {
		t.Fatalf("resolv.conf: %s", out)
	}
	names := []string{"web", "web.apps", "web.apps.svc.cluster.local", "peers", "b.apps.pod.cluster.local", "node2.node.cluster.local", "www.example.com", "none"}
	want := map[string]string{
		"web": "10.96.1.1", "web.apps": "10.96.1.1", "web.apps.svc.cluster.local": "10.96.1.1", "peers": b.Addr,
		"b.apps.pod.cluster.local": b.Addr, "node2.node.cluster.local": "192.168.1.12", "www.example.com": "203.0.113.10",
	}
	for libc, compiler := range map[string]string{"glibc": "gcc", "musl": "musl-gcc"} {
		t.Run(libc, func(t *testing.T) {
			cc, err := exec.LookPath(compiler)
			if err != nil {
				t.Skipf("no %s: run .ci/deps", compiler)
			}
			source, program := filepath.Join(t.TempDir(), "find.c"), filepath.Join(t.TempDir(), "find")
			must(t, os.WriteFile(source, []byte(getaddrinfo), 0o644))
			args := []string{"-o", program, source}
			if libc == "musl" {
				args = append([]string{"-static"}, args...) // no loader of musl's is needed
			}
			if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", cc, err, out)
			}
			out, err := w.Exec(program + " " + strings.Join(names, " "))
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			for name, addr := range want {
				if !slices.Contains(lines, name+": "+addr) {
					t.Errorf("%s: not %s in\n%s", name, addr, out)
				}
			}
			if i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "none: ") }); i < 0 || strings.Contains(lines[i], "none: 1") {
				t.Errorf("none: %s", out)
			}
		})
	}
	const fqdn = "web.apps.svc.cluster.local"
	for _, tt := range []struct{ client, cmdline, want string }{
		{"getent", "getent ahostsv4 web", "10.96.1.1"},
		{"getent", "getent hosts " + b.Addr, "b.web.apps.svc.cluster.local"},
		{"dig", "dig +short +search web", "10.96.1.1"},
		{"dig", "dig +short +tcp @10.96.0.10 _http._tcp." + fqdn + " SRV", "0 100 80 " + fqdn + "."},
		{"kdig", "kdig +short @10.96.0.10 " + fqdn, "10.96.1.1"},
		{"drill", "drill " + fqdn + " @10.96.0.10", "10.96.1.1"},
		{"host", "host web", fqdn + " has address 10.96.1.1"},
		{"nslookup", "nslookup " + fqdn, "Address: 10.96.1.1"},
		{"dig", "dig +short @10.96.0.10 -x " + b.Addr, fmt.Sprintf("%s.peers.apps.svc.cluster.local.", "b")},
	} {
		t.Run(tt.client, func(t *testing.T) {
			if _, err := exec.LookPath(tt.client); err != nil {
				t.Skipf("no %s: run .ci/deps", tt.client)
			}
			if out, err := w.Exec(tt.cmdline); err != nil || !strings.Contains(out, tt.want) {
				t.Errorf("%s: no %q: %v\n%s", tt.cmdline, tt.want, err, out)
			}
		})
	}
}
