package dns

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// conformant starts a server with a cluster, a zone file and its transfer, and
// returns its port.
func conformant(t *testing.T) int {
	t.Helper()
	zone, err := filepath.Abs("file/testdata/db.example")
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	text := fmt.Sprintf(".:%d {\n cluster\n}\nexample:%[1]d {\n file %s\n transfer {\n to 127.0.0.1\n }\n}\n", port, zone)
	running(t, Options{Servers: servers(t, text)}, testView(), addr("127.0.0.1"))
	return port
}

// clients are independent implementations of DNS, with how each takes a
// port, a name and a type.
func clients(port int) map[string]func(name, qtype string) []string {
	return map[string]func(name, qtype string) []string{
		"dig": func(name, qtype string) []string {
			return []string{"-r", "@127.0.0.1", "-p", fmt.Sprint(port), "+tries=1", "+time=2", name, qtype}
		},
		"kdig": func(name, qtype string) []string {
			return []string{"@127.0.0.1", "-p", fmt.Sprint(port), "+retry=0", "+time=2", name, qtype}
		},
		"drill": func(name, qtype string) []string { return []string{"-p", fmt.Sprint(port), name, "@127.0.0.1", qtype} },
		"host": func(name, qtype string) []string {
			return []string{"-p", fmt.Sprint(port), "-W", "2", "-t", qtype, name, "127.0.0.1"}
		},
		"nslookup": func(name, qtype string) []string {
			return []string{"-port=" + fmt.Sprint(port), "-type=" + qtype, name, "127.0.0.1"}
		},
	}
}

// TestClients: what other implementations read is what we said.
func TestClients(t *testing.T) {
	port := conformant(t)
	for client, args := range clients(port) {
		t.Run(client, func(t *testing.T) {
			path, err := exec.LookPath(client)
			if err != nil {
				t.Skipf("no %s", client)
			}
			for _, tt := range []struct{ name, qtype, want string }{
				{"web-service.apps.svc.cluster.local.", "A", "10.107.37.188"},
				{"six.default.svc.cluster.local.", "AAAA", "2001:db8:96::1"},
				{"_mysql._tcp.db.data.svc.cluster.local.", "SRV", "db-0."},
				{"188.37.107.10.in-addr.arpa.", "PTR", "web-service.apps.svc.cluster.local."},
				{"dns-version.cluster.local.", "TXT", "1.1.0"},
				{"alias1.example.", "A", "192.0.2.1"},
				{"a.dname.example.", "A", "192.0.2.7"},
				{"any.thing.example.", "TXT", "this is a wildcard"},
				{"nothing.host1.example.", "A", "NXDOMAIN"},
			} {
				out, err := exec.Command(path, args(tt.name, tt.qtype)...).CombinedOutput()
				if !strings.Contains(string(out), tt.want) {
					t.Errorf("%s %s: no %q (%v) in\n%s", tt.name, tt.qtype, tt.want, err, out)
				}
			}
		})
	}
}

// TestRFC8906 sends the probes of RFC 8906 section 8, with what must and must
// not be in dig's output; over TCP too.
func TestRFC8906(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("no dig")
	}
	port := conformant(t)
	const (
		bare = "+noedns +noad +norec "
		edns = "+nocookie +edns=0 +noad +norec "
	)
	for _, tt := range []struct{ name, args, want, not string }{
		{"known", bare + "example SOA", "status: NOERROR|flags: qr aa;|ANSWER: 1|\tSOA\t", "OPT"},
		{"unknown type", bare + "example TYPE1000", "status: NOERROR|flags: qr aa;|ANSWER: 0", "OPT"},
		{"CD", bare + "+cd example SOA", "status: NOERROR|ANSWER: 1|flags: qr aa", "OPT"},
		{"AD", "+noedns +norec +ad example SOA", "status: NOERROR|ANSWER: 1", "flags: qr aa ad;|OPT"},
		{"Z", bare + "+zflag example SOA", "status: NOERROR|ANSWER: 1", "MBZ: 0x|OPT"},
		{"RD", "+noedns +noad +rec example SOA", "status: NOERROR|flags: qr aa rd;|ANSWER: 1", "OPT"},
		{"unknown opcode", bare + "+opcode=15 +header-only", "status: NOTIMP|opcode: RESERVED15", "status: NOERROR"},
		{"TCP", bare + "+tcp example SOA", "status: NOERROR|flags: qr aa;|ANSWER: 1", "OPT"},
		{"EDNS", edns + "example SOA", "status: NOERROR|flags: qr aa;|ANSWER: 1|EDNS: version: 0", "BADVERS"},
		{"EDNS, unknown type", edns + "example TYPE1000", "status: NOERROR|ANSWER: 0|EDNS: version: 0", "BADVERS"},
		{"EDNS version 1", "+nocookie +edns=1 +noednsneg +noad +norec example SOA", "status: BADVERS|EDNS: version: 0|ANSWER: 0", "\tSOA\t"},
		{"unknown option", edns + "+ednsopt=100 example SOA", "status: NOERROR|ANSWER: 1|EDNS: version: 0", "OPT=100"},
		{"unknown flags", edns + "+ednsflags=0x40 example SOA", "status: NOERROR|ANSWER: 1|EDNS: version: 0", "MBZ"},
		{"version 1 and flags", "+nocookie +edns=1 +noednsneg +noad +norec +ednsflags=0x40 example SOA", "status: BADVERS|EDNS: version: 0", "MBZ|\tSOA\t"},
		{"version 1 and option", "+nocookie +edns=1 +noednsneg +noad +norec +ednsopt=100 example SOA", "status: BADVERS|EDNS: version: 0", "OPT=100|\tSOA\t"},
		{"truncated", edns + "+dnssec +bufsize=512 +ignore example NS", "EDNS: version: 0, flags: do;", "BADVERS"},
		{"DO over TCP", edns + "+dnssec +tcp example SOA", "status: NOERROR|EDNS: version: 0, flags: do;", "BADVERS"},
		{"cookie", "+edns=0 +noad +norec +cookie=0102030405060708 example SOA", "status: NOERROR|ANSWER: 1", "BADCOOKIE"},
		{"client subnet", edns + "+subnet=192.0.2.0/24 example SOA", "status: NOERROR|ANSWER: 1", "BADVERS"},
		{"NSID, expire", edns + "+nsid +expire example SOA", "status: NOERROR|ANSWER: 1", "BADVERS"},
		{"the same of the cluster's zone", edns + "cluster.local SOA", "status: NOERROR|flags: qr aa;|ANSWER: 1", "BADVERS"},
		{"transfer", "+noall +answer example AXFR", "hostmaster.example. 2026|a.b.c.deep.example.|a.target.example.", "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, over := range []string{"+notcp", "+tcp"} {
				if strings.Contains(tt.args, "AXFR") && over == "+notcp" {
					continue
				}
				args := append([]string{"-r", "@127.0.0.1", "-p", fmt.Sprint(port), "+tries=1", "+time=2", over}, strings.Fields(tt.args)...)
				out, err := exec.Command(dig, args...).CombinedOutput()
				if err != nil {
					t.Fatalf("%s: %v\n%s", over, err, out)
				}
				for want := range strings.SplitSeq(tt.want, "|") {
					if !strings.Contains(string(out), want) {
						t.Errorf("%s: no %q in\n%s", over, want, out)
					}
				}
				for not := range strings.SplitSeq(tt.not, "|") {
					if strings.Contains(string(out), not) {
						t.Errorf("%s: %q in\n%s", over, not, out)
					}
				}
			}
		})
	}
}
