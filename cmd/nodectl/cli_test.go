package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
)

// fakeDaemon answers the control API with fixed values and notes the bodies
// of what was asked.
type fakeDaemon struct {
	socket string
	asked  []string // "METHOD URI body"
}

func newFakeDaemon(t *testing.T, answers map[string]any) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{socket: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		body.ReadFrom(r.Body)
		d.asked = append(d.asked, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+body.String()))
		v, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusConflict)
			v = api.Error{Message: "no", Code: api.CodeReadOnly}
		}
		json.NewEncoder(w).Encode(v)
	}))
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return d
}

// call runs one command line against the daemon.
func (d *fakeDaemon) call(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	c := &cli{in: strings.NewReader("from stdin\n"), out: &out, err: &err}
	code = c.execute(context.Background(), append([]string{"--socket", d.socket}, args...))
	return code, out.String(), err.String()
}

// TestAttachDual: the IPv6 address is on a line of its own, so that the first
// is what it is elsewhere; the JSON has the gateways.
func TestAttachDual(t *testing.T) {
	a := api.Attachment{ID: "apps.web", Addr: netip.MustParsePrefix("10.244.0.2/24"), Gateway: netip.MustParseAddr("10.244.0.1"),
		Addr6: netip.MustParsePrefix("2001:db8:244::2/120"), Gateway6: netip.MustParseAddr("2001:db8:244::1")}
	d := newFakeDaemon(t, map[string]any{"POST /v1/attach": a})
	if code, out, stderr := d.call("attach", "--mode", "host", "--name", "web"); code != 0 || out != "10.244.0.2/24\n2001:db8:244::2/120\n" {
		t.Errorf("exit %d, %q, %s", code, out, stderr)
	}
	_, out, _ := d.call("attach", "--mode", "host", "--name", "web", "-o", "json")
	for _, want := range []string{`"addr6": "2001:db8:244::2/120"`, `"gateway6": "2001:db8:244::1"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}

func TestRequests(t *testing.T) {
	netns := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	answers := map[string]any{
		"POST /v1/attach":      api.Attachment{ID: "apps.web", Addr: netip.MustParsePrefix("10.244.0.2/24")},
		"POST /v1/detach":      api.Empty{},
		"POST /v1/services":    api.Service{Name: "web", Namespace: "apps", VIP: netip.MustParseAddr("10.96.0.11")},
		"DELETE /v1/services":  api.Empty{},
		"POST /v1/backends":    api.Service{Name: "web", Namespace: "apps"},
		"POST /v1/admin":       api.Service{Name: "web", Namespace: "apps"},
		"POST /v1/publishes":   api.Publish{Key: "*:8443/tcp"},
		"DELETE /v1/publishes": api.Empty{},
		"POST /v1/firewall":    api.FirewallChange{Operations: []string{`insert rule ip filter DOCKER-USER iifname "nn-*" accept comment "nodenet"`}},
		"POST /v1/names":       api.Name{Key: "eat.web-server CNAME", Name: "eat.web-server", Type: "CNAME", Target: "food.web-server"},
		"DELETE /v1/names":     api.Empty{},
		"POST /v1/token":       api.Token{Token: "secret-token", Expires: 1},
		"POST /v1/leave":       api.Empty{},
		"POST /v1/dns/query":   api.DNSAnswer{Rcode: "NOERROR"},
		"GET /v1/endpoints": []api.Endpoint{
			{Name: "client", Namespace: "apps", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.7")}},
		},
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string
		out  string // of standard output; "": not checked
	}{
		{
			name: "attach",
			args: []string{"attach", "--netns", netns, "--name", "web", "--namespace", "apps", "--label", "app=web",
				"--port", "http=80", "--port", "53/udp", "--ip", "10.244.0.2", "--publish", "8080:80", "--publish", "192.0.2.1:5353:53/udp", "--publish", "3868:3868/SCTP"},
			want: []string{`POST /v1/attach {"network":"pods","netns":"` + netns + `","ifName":"eth0","name":"web","namespace":"apps","labels":{"app":"web"},` +
				`"ports":[{"name":"http","protocol":"tcp","port":80},{"protocol":"udp","port":53}],"ip":"10.244.0.2","mode":"bridge",` +
				`"publish":[{"protocol":"tcp","hostPort":8080,"target":"","port":80},{"hostAddr":"192.0.2.1","protocol":"udp","hostPort":5353,"target":"","port":53},{"protocol":"sctp","hostPort":3868,"target":"","port":3868}]}`},
			out: "10.244.0.2/24\n",
		}, {
			name: "attach a process of the host",
			args: []string{"attach", "--mode", "host", "--name", "sshd"},
			want: []string{`POST /v1/attach {"network":"pods","ifName":"eth0","name":"sshd","namespace":"default","mode":"host"}`},
		},
		{name: "detach by name", args: []string{"detach", "web.apps"}, want: []string{`POST /v1/detach {"name":"web","namespace":"apps"}`}},
		{name: "detach by id", args: []string{"detach", "--id", "x"}, want: []string{`POST /v1/detach {"id":"x"}`}},
		{
			name: "service with a selector",
			args: []string{"service", "add", "web.apps", "--port", "http=80:8080", "--port", "53:dns/udp", "--select", "app=web", "--node-port", "30080,auto", "--check", "tcp"},
			want: []string{`POST /v1/services {"name":"web","namespace":"apps","ports":[{"name":"http","protocol":"tcp","port":80,"target":8080,"nodePort":30080},` +
				`{"protocol":"udp","port":53,"targetName":"dns"}],"select":{"app":"web"},"nodePorts":true,"check":"tcp"}`},
		},
		{name: "headless service", args: []string{"service", "add", "web", "--vip", "none"}, want: []string{`POST /v1/services {"name":"web","namespace":"default","headless":true,"ports":null}`}},
		{name: "service with a backend", args: []string{"service", "add", "web", "--vip", "10.96.0.9", "--port", "80", "--backend", "10.1.1.1:8080"},
			want: []string{`POST /v1/services {"name":"web","namespace":"default","vip":"10.96.0.9","ports":[{"protocol":"tcp","port":80}],"backends":["10.1.1.1:8080"]}`}},
		{
			name: "service with all there is",
			args: []string{"service", "add", "shop", "--port", "rtp=6000-6010:7000/UDP", "--port", "80", "--node-port", "auto", "--backend", "10.1.1.1=7",
				"--balance", "maglev", "--affinity", "3h", "--inside", "prefer-node", "--outside", "local", "--address", "198.51.100.7,2001:db8:51::7", "--announce",
				"--source", "203.0.113.0/24,192.0.2.1,2001:db8::1", "--node-port-address", "192.0.2.0/24,2001:db8::/64", "--health-port", "20080", "--slow-start", "30s",
				"--check", "http /healthz", "--check-port", "81", "--check-host", "shop.example", "--check-interval", "5s", "--check-timeout", "1500ms", "--check-rise", "2", "--check-fall", "3"},
			want: []string{`POST /v1/services {"name":"shop","namespace":"default","ports":[{"name":"rtp","protocol":"udp","port":6000,"last":6010,"target":7000},{"protocol":"tcp","port":80}],` +
				`"backends":["10.1.1.1=7"],"nodePorts":true,"check":"http","probe":{"port":81,"path":"/healthz","host":"shop.example","intervalMillis":5000,"timeoutMillis":1500,"rise":2,"fall":3},` +
				`"slowStartMillis":30000,"balance":"maglev","affinitySeconds":10800,"inside":"prefer-node","outside":"local","addresses":["198.51.100.7","2001:db8:51::7"],"announce":true,` +
				`"sources":["203.0.113.0/24","192.0.2.1/32","2001:db8::1/128"],"nodePortAddresses":["192.0.2.0/24","2001:db8::/64"],"healthPort":20080}`},
		},
		{name: "exec check", args: []string{"service", "add", "web", "--port", "80", "--check", "exec /etc/nodenet/checks/web --fast"},
			want: []string{`POST /v1/services {"name":"web","namespace":"default","ports":[{"protocol":"tcp","port":80}],"check":"exec","probe":{"command":["/etc/nodenet/checks/web","--fast"]}}`}},
		{name: "backend add", args: []string{"service", "backend", "add", "web.apps", "192.0.2.7:80", "--weight", "3"}, want: []string{`POST /v1/backends {"service":"web.apps","backend":"192.0.2.7:80","weight":3}`}},
		{name: "backend rm", args: []string{"service", "backend", "rm", "web", "192.0.2.7"}, want: []string{`POST /v1/backends {"service":"web.default","backend":"192.0.2.7","remove":true}`}},
		{name: "weight", args: []string{"service", "weight", "web", "web-1", "99"}, want: []string{`POST /v1/admin {"service":"web.default","backend":"web-1","weight":99}`}},
		{name: "declared weight", args: []string{"service", "weight", "web", "web-1", "default"}, want: []string{`POST /v1/admin {"service":"web.default","backend":"web-1","weight":0}`}},
		{name: "drain", args: []string{"service", "drain", "web", "web-1", "--deadline", "5m", "--detach"}, want: []string{`POST /v1/admin {"service":"web.default","backend":"web-1","drain":true,"deadlineSeconds":300}`}},
		{name: "undo a drain", args: []string{"service", "drain", "web", "web-1", "--undo"}, want: []string{`POST /v1/admin {"service":"web.default","backend":"web-1","drain":false}`}},
		{name: "service rm", args: []string{"service", "rm", "web"}, want: []string{"DELETE /v1/services?name=web.default"}},
		{name: "publish add", args: []string{"publish", "add", "8443", "10.244.0.2:443"}, want: []string{`POST /v1/publishes {"protocol":"tcp","hostPort":8443,"target":"10.244.0.2","port":443}`}, out: "*:8443/tcp\n"},
		{name: "name add", args: []string{"name", "add", "eat.web-server", "cname", "food.web-server"}, want: []string{`POST /v1/names {"name":"eat.web-server","type":"CNAME","target":"food.web-server"}`}, out: "NAME            TYPE   TARGET\neat.web-server  CNAME  food.web-server\n"},
		{name: "name add an address", args: []string{"name", "add", "food.web-server", "2001:db8::10"}, want: []string{`POST /v1/names {"name":"food.web-server","type":"AAAA","target":"2001:db8::10"}`}},
		{name: "name rm all", args: []string{"name", "rm", "food.web-server"}, want: []string{"DELETE /v1/names?key=food.web-server"}},
		{name: "name rm one", args: []string{"name", "rm", "Food.web-server.", "a", "192.0.2.1"}, want: []string{"DELETE /v1/names?key=food.web-server+A+192.0.2.1"}},
		{name: "publish add SCTP", args: []string{"publish", "add", "3868/sctp", "10.244.0.2:3868"}, want: []string{`POST /v1/publishes {"protocol":"sctp","hostPort":3868,"target":"10.244.0.2","port":3868}`}, out: "*:8443/tcp\n"},
		{name: "publish rm SCTP", args: []string{"publish", "rm", "3868/sctp"}, want: []string{"DELETE /v1/publishes?key=%2A%3A3868%2Fsctp"}},
		{name: "publish add a range", args: []string{"publish", "add", "192.0.2.1:8000-8010/udp", "10.244.0.2:9000-9010"}, want: []string{`POST /v1/publishes {"hostAddr":"192.0.2.1","protocol":"udp","hostPort":8000,"last":8010,"target":"10.244.0.2","port":9000}`}, out: "*:8443/tcp\n"},
		{name: "firewall integrate", args: []string{"firewall", "integrate", "docker", "ufw", "--dry-run"}, want: []string{`POST /v1/firewall {"names":["docker","ufw"],"dryRun":true}`}, out: "insert rule ip filter DOCKER-USER iifname \"nn-*\" accept comment \"nodenet\"\n"},
		{name: "firewall remove", args: []string{"firewall", "remove"}, want: []string{`POST /v1/firewall {"names":[],"remove":true}`}, out: "insert rule ip filter DOCKER-USER iifname \"nn-*\" accept comment \"nodenet\"\n"},
		{name: "publish rm a range", args: []string{"publish", "rm", "8000-8010"}, want: []string{"DELETE /v1/publishes?key=%2A%3A8000-8010%2Ftcp"}},
		{name: "publish rm by port", args: []string{"publish", "rm", "8443"}, want: []string{"DELETE /v1/publishes?key=%2A%3A8443%2Ftcp"}},
		{name: "publish rm by key", args: []string{"publish", "rm", "192.0.2.1:53/udp"}, want: []string{"DELETE /v1/publishes?key=192.0.2.1%3A53%2Fudp"}},
		{name: "token", args: []string{"token", "--ttl", "10m"}, want: []string{`POST /v1/token {"ttlSeconds":600}`}, out: "secret-token\n"},
		{name: "leave", args: []string{"leave", "--yes"}, want: []string{"POST /v1/leave {}"}},
		{name: "query", args: []string{"dns", "query", "web", "aaaa", "--from", "192.0.2.7"}, want: []string{`POST /v1/dns/query {"name":"web","type":"AAAA","from":"192.0.2.7"}`}},
		{name: "query as a workload", args: []string{"dns", "query", "web", "--from", "client.apps"}, want: []string{"GET /v1/endpoints", `POST /v1/dns/query {"name":"web","from":"10.244.1.7"}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFakeDaemon(t, answers)
			code, out, stderr := d.call(tt.args...)
			if code != exitOK {
				t.Fatalf("exit status %d: %s", code, stderr)
			}
			if diff := cmp.Diff(tt.want, d.asked); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			if tt.out != "" && out != tt.out {
				t.Errorf("standard output %q, want %q", out, tt.out)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	d := newFakeDaemon(t, nil)
	code, out, stderr := d.call("service", "rm", "web")
	if code != exitError || out != "" || stderr != "nodectl: no\n" {
		t.Errorf("exit status %d, output %q, diagnostics %q", code, out, stderr)
	}
}

func TestJSON(t *testing.T) {
	d := newFakeDaemon(t, map[string]any{"GET /v1/status": testStatus(), "GET /v1/endpoints": []api.Endpoint{}})
	code, out, stderr := d.call("status", "-o", "json")
	if code != exitOK {
		t.Fatal(stderr)
	}
	var got api.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if got.Node != "node1" || len(got.Peers) != 3 {
		t.Errorf("status came back as %+v", got)
	}
	// An empty table is an empty list, not null: scripts iterate over it.
	if _, out, _ := d.call("endpoints", "-o", "json"); out != "[]\n" {
		t.Errorf("no endpoints: %q", out)
	}
}

func TestDoctorExit(t *testing.T) {
	for status, want := range map[string]int{"ok": exitOK, "warn": exitOK, "skip": exitOK, "fail": exitError} {
		d := newFakeDaemon(t, map[string]any{"GET /v1/doctor": []api.Check{{Name: "x", Status: status}}})
		if code, _, _ := d.call("doctor"); code != want {
			t.Errorf("a check that says %s: exit status %d, want %d", status, code, want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web", "resolv.conf")
	a := &api.Attachment{ID: "apps.web", ResolvConf: "nameserver 10.96.0.10\n"}
	for range 2 { // ours is replaced
		if err := saveResolvConf(path, a, "apps", "web"); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "# nodenet attachment id=apps.web name=web.apps\nnameserver 10.96.0.10\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	foreign := filepath.Join(dir, "other", "resolv.conf")
	os.MkdirAll(filepath.Dir(foreign), 0o755)
	os.WriteFile(foreign, []byte("nameserver 192.0.2.1\n"), 0o644)
	if err := saveResolvConf(foreign, a, "apps", "web"); err == nil {
		t.Error("overwrote somebody else's file")
	}

	removeResolvConf(dir, "", "apps", "we") // another one
	if _, err := os.Stat(path); err != nil {
		t.Error("removed by a name that only begins alike")
	}
	removeResolvConf(dir, "", "apps", "web")
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error("removed somebody else's file")
	}
}

func TestFindNetns(t *testing.T) {
	path, name, err := findNetns("/proc/self/ns/net")
	if err != nil || path != "/proc/self/ns/net" || name != "" {
		t.Errorf("path: %s %s %v", path, name, err)
	}
	if path, _, err := findNetns("1"); err != nil || path != "/proc/1/ns/net" {
		t.Errorf("process ID: %s %v", path, err)
	}
	if _, _, err := findNetns("/no/such/file"); err == nil {
		t.Error("found what is not there")
	}
}
