package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nodenet/api"
)

// fakeDaemon records what it is asked and answers with one attachment.
type fakeDaemon struct {
	socket    string
	attached  []api.AttachRequest
	allocated []api.AttachRequest
	detached  []api.DetachRequest
	checked   []api.DetachRequest
	status    api.Status
	endpoints []api.Endpoint
	err       error
	dual      bool // the network has an IPv6 prefix
}

func (d *fakeDaemon) attachment(r api.AttachRequest) api.Attachment {
	at := api.Attachment{
		ID: r.ID, Network: r.Network, Addr: netip.MustParsePrefix("10.22.0.5/16"), Gateway: netip.MustParseAddr("10.22.0.1"),
		DNS: api.DNSConfig{Nameservers: []string{"10.96.0.10"}, Search: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
	}
	if d.dual {
		at.Addr6, at.Gateway6 = netip.MustParsePrefix("2001:db8:22::5/112"), netip.MustParseAddr("2001:db8:22::1")
	}
	if r.Mode != "ipam" {
		at.MAC, at.IfName, at.HostIf, at.HostMAC = "0a:58:0a:16:00:05", r.IfName, "nn0a160005", "0a:58:00:00:00:01"
		at.Bridge, at.BridgeMAC, at.MTU = "cni0", "0a:58:0a:16:00:01", 1450
	}
	return at
}

func (d *fakeDaemon) Attach(_ context.Context, r api.AttachRequest) (api.Attachment, error) {
	d.attached = append(d.attached, r)
	return d.attachment(r), d.err
}

func (d *fakeDaemon) Allocate(_ context.Context, r api.AttachRequest) (api.Attachment, error) {
	d.allocated = append(d.allocated, r)
	return d.attachment(r), d.err
}

func (d *fakeDaemon) Detach(_ context.Context, r api.DetachRequest) error {
	d.detached = append(d.detached, r)
	return d.err
}

func (d *fakeDaemon) Check(_ context.Context, r api.DetachRequest) (api.Attachment, error) {
	d.checked = append(d.checked, r)
	return d.attachment(api.AttachRequest{ID: r.ID, IfName: r.IfName}), d.err
}

func (d *fakeDaemon) Status(context.Context) (api.Status, error)        { return d.status, d.err }
func (d *fakeDaemon) Endpoints(context.Context) ([]api.Endpoint, error) { return d.endpoints, d.err }

var _ Daemon = (*api.Client)(nil)
var _ observer = (*api.Client)(nil)

// call runs the plugin as a runtime does.
type call struct {
	argv0 string // default nodenet
	verb  string
	env   map[string]string
	conf  string
}

func (c call) run(t testing.TB, d *fakeDaemon) (stdout string, exit int) {
	t.Helper()
	vars := map[string]string{"CNI_COMMAND": c.verb, "CNI_CONTAINERID": "0123456789abcdef", "CNI_NETNS": "/var/run/netns/test-pod",
		"CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
	for k, v := range c.env {
		vars[k] = v
	}
	argv0 := c.argv0
	if argv0 == "" {
		argv0 = "/opt/cni/bin/nodenet"
	}
	var out, log bytes.Buffer
	exit = Run(argv0, func(k string) string { return vars[k] }, strings.NewReader(c.conf), &out, &log,
		func(socket string) Daemon { d.socket = socket; return d }, "1.2.3")
	return out.String(), exit
}

// conf makes a configuration with a version.
func conf(version, rest string) string {
	return `{"cniVersion": "` + version + `", "name": "mynet", ` + rest + `}`
}

const (
	nodenetConf = `"type": "nodenet", "network": "pods"`
	// The bridge configuration of the CNI exercises.
	bridgeConf = `"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
		"ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}`
)

// TestGolden compares results, in every version, with files. To make them
// anew: UPDATE_GOLDEN=1 go test ./cni, then read the difference.
func TestGolden(t *testing.T) {
	prev := `"prevResult": {"interfaces": [{"name": "up0", "vendor": "kept"}], "ips": [{"address": "192.0.2.9/24", "interface": 0}], "dns": {}}`
	tests := []struct {
		name string
		call call
	}{
		{"dual-chained-1.1.0", call{verb: cmdAdd, conf: conf("1.1.0", nodenetConf+", "+prev)}},
		{"chained-1.1.0", call{verb: cmdAdd, conf: conf("1.1.0", nodenetConf+", "+prev)}},
		{"dns-1.0.0", call{verb: cmdAdd, conf: conf("1.0.0", bridgeConf+`, "dns": {"nameservers": ["192.0.2.53"], "domain": "lan"}`)}},
		{"noroute-1.0.0", call{verb: cmdAdd, conf: conf("1.0.0", `"type": "bridge", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"}`)}},
	}
	for _, v := range versions {
		tests = append(tests,
			struct {
				name string
				call call
			}{"nodenet-" + v, call{verb: cmdAdd, conf: conf(v, nodenetConf)}},
			struct {
				name string
				call call
			}{"dual-" + v, call{verb: cmdAdd, conf: conf(v, nodenetConf)}},
			struct {
				name string
				call call
			}{"bridge-" + v, call{argv0: "bridge", verb: cmdAdd, conf: conf(v, bridgeConf)}},
			struct {
				name string
				call call
			}{"host-local-" + v, call{argv0: "/opt/cni/bin/host-local", verb: cmdAdd, conf: conf(v, bridgeConf)}},
			struct {
				name string
				call call
			}{"error-" + v, call{verb: cmdAdd, conf: conf(v, `"type": "nodenet", "vlan": 7`)}},
			struct {
				name string
				call call
			}{"version-" + v, call{verb: cmdVersion, conf: `{"cniVersion": "` + v + `"}`}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, exit := tt.call.run(t, &fakeDaemon{dual: strings.HasPrefix(tt.name, "dual-")})
			if wantErr := strings.HasPrefix(tt.name, "error-"); (exit != 0) != wantErr {
				t.Errorf("exit %d", exit)
			}
			file := filepath.Join("testdata", tt.name+".json")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestRequests: what configuration and environment mean to the daemon.
func TestRequests(t *testing.T) {
	base := func(change func(*api.AttachRequest)) api.AttachRequest {
		r := api.AttachRequest{ID: "0123456789abcdef/eth0", Network: "pods", Netns: "/var/run/netns/test-pod", IfName: "eth0", Name: "0123456789ab",
			Kind: "cni", Labels: map[string]string{confLabel: "mynet"}}
		change(&r)
		return r
	}
	bridge := func(change func(*api.NetworkDef)) api.AttachRequest {
		return base(func(r *api.AttachRequest) {
			r.Network = "mynet"
			r.Define = &api.NetworkDef{Prefix: netip.MustParsePrefix("10.22.0.0/16"), Bridge: "cni0", Gateway: netip.MustParseAddr("10.22.0.1"), Masquerade: true}
			change(r.Define)
		})
	}
	ipam := func(s string) string {
		return `"type": "bridge", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", ` + s + `}`
	}
	addr := netip.MustParseAddr
	tests := []struct {
		name string
		call call
		want api.AttachRequest
	}{
		{"nodenet", call{conf: nodenetConf}, base(func(*api.AttachRequest) {})},
		{"network defaults to pods", call{conf: `"type": "nodenet"`}, base(func(*api.AttachRequest) {})},
		{"labels and namespace", call{conf: `"type": "nodenet", "namespace": "apps", "labels": {"app": "db"}`}, base(func(r *api.AttachRequest) {
			r.Namespace = "apps"
			r.Labels["app"] = "db"
		})},
		{"Kubernetes names", call{conf: nodenetConf, env: map[string]string{"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=apps;K8S_POD_NAME=web-0;K8S_POD_UID=x"}},
			base(func(r *api.AttachRequest) { r.Name, r.Namespace = "web-0", "apps" })},
		{"Podman says the name twice", call{conf: `"type": "nodenet", "namespace": "lab"`, env: map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=my_box;K8S_POD_NAME=my_box"}},
			base(func(r *api.AttachRequest) { r.Name, r.Namespace = "my-box", "lab" })},
		{"Nomad names", call{conf: nodenetConf, env: map[string]string{"CNI_ARGS": "NOMAD_NAMESPACE=prod;NOMAD_JOB_ID=shop;NOMAD_GROUP_NAME=Web;NOMAD_ALLOC_ID=7f3c8e21-5a7e-1f0e"}},
			base(func(r *api.AttachRequest) {
				r.Name, r.Namespace = "web-7f3c8e21", "prod"
				r.Labels["nomad.job"], r.Labels["nomad.group"] = "shop", "Web"
			})},
		{"nerdctl names", call{conf: nodenetConf, env: map[string]string{"CNI_ARGS": "NERDCTL_CNI_DHCP_HOSTNAME=box;IgnoreUnknown=1"}},
			base(func(r *api.AttachRequest) { r.Name = "box" })},
		{"address and MAC by capability", call{conf: nodenetConf + `, "runtimeConfig": {"ips": ["10.244.0.9/24"], "mac": "0A-58-0A-00-00-09"}`},
			base(func(r *api.AttachRequest) { r.IP, r.MAC = addr("10.244.0.9"), "0a:58:0a:00:00:09" })},
		{"address by args", call{conf: nodenetConf + `, "args": {"cni": {"ips": ["10.244.0.9"], "labels": [{"key": "app", "value": "db"}]}}`},
			base(func(r *api.AttachRequest) { r.IP = addr("10.244.0.9"); r.Labels["app"] = "db" })},
		{"address and MAC by CNI_ARGS", call{conf: nodenetConf, env: map[string]string{"CNI_ARGS": "IP=10.244.0.9;MAC=0a:58:0a:00:00:09"}},
			base(func(r *api.AttachRequest) { r.IP, r.MAC = addr("10.244.0.9"), "0a:58:0a:00:00:09" })},
		{"capability before CNI_ARGS", call{conf: nodenetConf + `, "runtimeConfig": {"ips": ["10.244.0.9"]}`, env: map[string]string{"CNI_ARGS": "IP=10.244.0.8"}},
			base(func(r *api.AttachRequest) { r.IP = addr("10.244.0.9") })},
		{"ports", call{conf: nodenetConf + `, "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
			{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::"}, {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
			{"hostPort": 3868, "containerPort": 3868, "protocol": "sctp"},
			{"hostPort": 0, "containerPort": 9}]}`}, base(func(r *api.AttachRequest) {
			r.Publish = []api.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80, Source: "cni"},
				{HostAddr: addr("192.0.2.1"), Protocol: "udp", HostPort: 53, Port: 53, Source: "cni"},
				{Protocol: "sctp", HostPort: 3868, Port: 3868, Source: "cni"}}
		})},
		{"aliases", call{conf: nodenetConf + `, "runtimeConfig": {"aliases": ["db", "Primary_DB", "db"]}`}, base(func(r *api.AttachRequest) { r.Aliases = []string{"db", "primary-db"} })},
		{"aliases as Podman sends them", call{conf: nodenetConf + `, "runtimeConfig": {"aliases": {"mynet": ["db"], "other": ["no"]}}`},
			base(func(r *api.AttachRequest) { r.Aliases = []string{"db"} })},
		{"vendor keys and zero bandwidth pass", call{conf: nodenetConf + `, "example.org/note": 1, "runtimeConfig": {"bandwidth": {"ingressRate": 0}}`}, base(func(*api.AttachRequest) {})},

		{"bridge", call{conf: bridgeConf}, bridge(func(*api.NetworkDef) {})},
		{"bridge: old keys said to be off", call{conf: bridgeConf + `, "vlan": 0, "promiscMode": false, "hairpinMode": true`}, bridge(func(*api.NetworkDef) {})},
		{"bridge: ranges", call{conf: ipam(`"ranges": [[{"subnet": "10.22.5.0/16", "rangeStart": "10.22.1.1", "rangeEnd": "10.22.1.9", "gateway": "10.22.9.9"}]], "routes": [{"dst": "0.0.0.0/0", "gw": "10.22.9.9"}]`)},
			bridge(func(d *api.NetworkDef) {
				d.RangeStart, d.RangeEnd, d.Gateway = addr("10.22.1.1"), addr("10.22.1.9"), addr("10.22.9.9")
			})},
		{"bridge: range by capability", call{conf: ipam(`"routes": [{"dst": "0.0.0.0/0"}]`) + `, "runtimeConfig": {"ipRanges": [[{"subnet": "10.22.0.0/16"}]]}`}, bridge(func(*api.NetworkDef) {})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &fakeDaemon{}
			tt.call.verb, tt.call.conf = cmdAdd, conf("1.0.0", tt.call.conf)
			if out, exit := tt.call.run(t, d); exit != 0 {
				t.Fatal(out)
			}
			if diff := cmp.Diff([]api.AttachRequest{tt.want}, d.attached, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if d.socket != DefaultSocket {
				t.Errorf("socket %s", d.socket)
			}
		})
	}
}

// TestRoutes: the container has a default route exactly when the
// configuration says so.
func TestRoutes(t *testing.T) {
	for rest, want := range map[string]bool{
		`"isGateway": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"}`:                                   false,
		`"isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"}`:                            true,
		`"ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0", "gw": "10.22.0.1"}]}`: true,
	} {
		d := &fakeDaemon{}
		if out, exit := (call{verb: cmdAdd, conf: conf("1.0.0", `"type": "bridge", `+rest)}).run(t, d); exit != 0 {
			t.Fatal(out)
		}
		if got := !d.attached[0].NoDefaultRoute; got != want {
			t.Errorf("%s: default route %v, want %v", rest, got, want)
		}
		if noGW := !strings.Contains(rest, "Gateway"); d.attached[0].Define.NoGateway != noGW {
			t.Errorf("%s: NoGateway %v, want %v", rest, d.attached[0].Define.NoGateway, noGW)
		}
	}
}

func TestErrors(t *testing.T) {
	ipam := func(s string) string { return `"type": "bridge", "ipam": {"type": "host-local", ` + s + `}` }
	env := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	tests := []struct {
		name string
		call call
		raw  string // instead of a configuration of version 1.1.0
		code int
		msg  string // part of the message or its details
	}{
		{name: "not JSON", raw: "nonsense", code: codeDecode},
		{name: "empty", raw: " ", code: codeDecode},
		{name: "wrong type of a key", raw: `{"cniVersion": "1.0.0", "name": 7}`, code: codeDecode},
		{name: "unknown version", raw: `{"cniVersion": "2.0.0", "name": "n", "type": "nodenet"}`, code: codeVersion, msg: "supported: 0.1.0"},
		{name: "no name", raw: `{"cniVersion": "1.0.0", "type": "nodenet"}`, code: codeConfig, msg: "no name"},
		{name: "bad name", raw: `{"cniVersion": "1.0.0", "name": "../x", "type": "nodenet"}`, code: codeConfig},
		{name: "no type", call: call{conf: `"bridge": "cni0"`}, code: codeConfig, msg: "no type"},
		{name: "foreign type", call: call{conf: `"type": "macvlan"`}, code: codeConfig, msg: "macvlan"},
		{name: "misspelled key", call: call{conf: `"type": "nodenet", "netwrok": "pods"`}, code: codeUnsupported, msg: "netwrok"},
		{name: "nodenet with ipam", call: call{conf: nodenetConf + `, "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}`}, code: codeUnsupported, msg: "ipam"},
		{name: "VLAN", call: call{conf: bridgeConf + `, "vlan": 100`}, code: codeUnsupported, msg: "vlan"},
		{name: "bandwidth", call: call{conf: nodenetConf + `, "runtimeConfig": {"bandwidth": {"ingressRate": 1000}}`}, code: codeUnsupported, msg: "bandwidth"},

		{name: "unknown verb", call: call{verb: "UPDATE", conf: nodenetConf}, code: codeEnvironment, msg: "UPDATE"},
		{name: "nothing set", call: call{conf: nodenetConf, env: env("CNI_CONTAINERID", "", "CNI_NETNS", "", "CNI_IFNAME", "")}, code: codeEnvironment, msg: "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"},
		{name: "container ID", call: call{conf: nodenetConf, env: env("CNI_CONTAINERID", "a/b")}, code: codeEnvironment, msg: "CNI_CONTAINERID"},
		{name: "interface name too long", call: call{conf: nodenetConf, env: env("CNI_IFNAME", "sixteen-bytes-xx")}, code: codeEnvironment, msg: "15"},
		{name: "interface name", call: call{conf: nodenetConf, env: env("CNI_IFNAME", "a/b")}, code: codeEnvironment, msg: "CNI_IFNAME"},
		{name: "CNI_ARGS", call: call{conf: nodenetConf, env: env("CNI_ARGS", "IP")}, code: codeEnvironment, msg: "KEY=VALUE"},
		{name: "own namespace", call: call{conf: nodenetConf, env: env("CNI_NETNS", "/proc/self/ns/net")}, code: codeSameNetns},

		{name: "address", call: call{conf: nodenetConf, env: env("CNI_ARGS", "IP=10.0.0.300")}, code: codeConfig, msg: "10.0.0.300"},
		{name: "two addresses", call: call{conf: nodenetConf + `, "runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}`}, code: codeUnsupported, msg: "2 addresses"},
		{name: "IPv6 address", call: call{conf: nodenetConf + `, "runtimeConfig": {"ips": ["2001:db8::1"]}`}, code: codeUnsupported, msg: "IPv4"},
		{name: "multicast MAC", call: call{conf: nodenetConf + `, "runtimeConfig": {"mac": "01:00:5e:00:00:01"}`}, code: codeConfig, msg: "01:00:5e"},
		{name: "port", call: call{conf: nodenetConf + `, "runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 80}]}`}, code: codeConfig, msg: "portMappings[0]"},
		{name: "protocol", call: call{conf: nodenetConf + `, "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "dccp"}]}`}, code: codeUnsupported, msg: "dccp"},

		{name: "bridge without ipam", call: call{conf: `"type": "bridge"`}, code: codeUnsupported, msg: "ipam"},
		{name: "bridge with dhcp", call: call{conf: `"type": "bridge", "ipam": {"type": "dhcp"}`}, code: codeUnsupported, msg: "dhcp"},
		{name: "bridge name", call: call{conf: `"bridge": "a-very-long-bridge-name", ` + ipam(`"subnet": "10.1.0.0/16"`)}, code: codeConfig, msg: "bridge"},
		{name: "no subnet", call: call{conf: ipam(`"routes": []`)}, code: codeConfig, msg: "no subnet"},
		{name: "subnet", call: call{conf: ipam(`"subnet": "10.1.0.0"`)}, code: codeConfig, msg: "10.1.0.0"},
		{name: "subnet too small", call: call{conf: ipam(`"subnet": "10.1.0.0/31"`)}, code: codeConfig, msg: "/30"},
		{name: "IPv6 subnet", call: call{conf: ipam(`"subnet": "2001:db8::/64"`)}, code: codeUnsupported, msg: "IPv6 comes with"},
		{name: "dual stack", call: call{conf: ipam(`"ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "2001:db8::/64"}]]`)}, code: codeUnsupported, msg: "2 range sets: one, of IPv4"},
		{name: "dual stack, how", call: call{conf: ipam(`"ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "2001:db8::/64"}]]`)}, code: codeUnsupported, msg: "IPv6 comes with"},
		{name: "two ranges", call: call{conf: ipam(`"ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "10.2.0.0/16"}]]`)}, code: codeUnsupported, msg: "2 range sets: one address"},
		{name: "gateway elsewhere", call: call{conf: ipam(`"subnet": "10.1.0.0/16", "gateway": "10.2.0.1"`)}, code: codeConfig, msg: "10.2.0.1"},
		{name: "range backwards", call: call{conf: ipam(`"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.2"`)}, code: codeConfig, msg: "below"},
		{name: "route", call: call{conf: ipam(`"subnet": "10.1.0.0/16", "routes": [{"dst": "192.0.2.0/24"}]`)}, code: codeUnsupported, msg: "192.0.2.0/24"},
		{name: "host-local without ipam", call: call{argv0: "host-local", conf: `"type": "bridge"`}, code: codeConfig, msg: "ipam"},

		{name: "CHECK before 0.4.0", call: call{verb: cmdCheck}, raw: `{"cniVersion": "0.3.1", "name": "n", "type": "nodenet"}`, code: codeVersion},
		{name: "GC before 1.1.0", call: call{verb: cmdGC}, raw: `{"cniVersion": "1.0.0", "name": "n", "type": "nodenet"}`, code: codeVersion},
		{name: "STATUS before 1.1.0", call: call{verb: cmdStatus}, raw: `{"cniVersion": "1.0.0", "name": "n", "type": "nodenet"}`, code: codeVersion},
		{name: "CHECK without a result", call: call{verb: cmdCheck, conf: nodenetConf}, code: codeConfig, msg: "prevResult"},
		{name: "CHECK of another address", call: call{verb: cmdCheck, conf: nodenetConf + `, "prevResult": {"ips": [{"address": "10.22.0.6/16"}]}`}, code: codeDiffers, msg: "10.22.0.5/16"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &fakeDaemon{}
			c := tt.call
			if c.verb == "" {
				c.verb = cmdAdd
			}
			if c.conf = conf(latest, c.conf); tt.raw != "" {
				c.conf = tt.raw
			}
			wantError(t, c, d, tt.code, tt.msg)
			if len(d.attached)+len(d.allocated)+len(d.detached) > 0 {
				t.Error("the daemon was asked to change something")
			}
		})
	}
}

// wantError runs a call that has to fail with a code.
func wantError(t *testing.T, c call, d *fakeDaemon, code int, msg string) {
	t.Helper()
	out, exit := c.run(t, d)
	var got errorResult
	if err := json.Unmarshal([]byte(out), &got); err != nil || exit == 0 {
		t.Fatalf("exit %d, output %q, want an error", exit, out)
	}
	if got.Code != code || got.CNIVersion == "" || got.Msg == "" || !strings.Contains(got.Msg+" "+got.Details, msg) {
		t.Errorf("%+v, want code %d and %q", got, code, msg)
	}
}

// TestDaemonErrors: each answer of the daemon has its CNI code.
func TestDaemonErrors(t *testing.T) {
	add := call{verb: cmdAdd, conf: conf("1.0.0", nodenetConf)}
	for name, tt := range map[string]struct {
		err  error
		code int
		msg  string
	}{
		"not running": {&api.UnreachableError{Socket: "/run/x.sock", Err: os.ErrNotExist}, codeRetry, "not running"},
		"cut off":     {errors.New("unexpected EOF"), codeRetry, "nodectl status"},
		"timeout":     {context.DeadlineExceeded, codeRetry, "in time"},
		"not ready":   {&api.Error{Message: "not synced", Code: api.CodeNotReady}, codeRetry, "not synced"},
		"exhausted":   {&api.Error{Message: "full", Code: api.CodeExhausted}, codeExhausted, "full"},
		"exists":      {&api.Error{Message: "eth0 exists", Code: api.CodeExists}, codeExists, "eth0"},
		"invalid":     {&api.Error{Message: "ip", Code: api.CodeInvalid}, codeConfig, ""},
		"no network":  {&api.Error{Message: "no network pods", Code: api.CodeNotFound}, codeConfig, "pods"},
		"other":       {&api.Error{Message: "boom"}, codeInternal, "boom"},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, add, &fakeDaemon{err: tt.err}, tt.code, tt.msg) })
	}
	prev := `, "prevResult": {"ips": [{"address": "10.22.0.5/16"}]}`
	check := call{verb: cmdCheck, conf: conf("1.0.0", nodenetConf+prev)}
	wantError(t, check, &fakeDaemon{err: &api.Error{Message: "no", Code: api.CodeNotFound}}, codeUnknown, "")
	wantError(t, check, &fakeDaemon{err: &api.Error{Message: "no route", Code: api.CodeDiffers}}, codeDiffers, "no route")
	d := &fakeDaemon{}
	if out, exit := check.run(t, d); exit != 0 || out != "" || len(d.checked) != 1 {
		t.Errorf("CHECK: exit %d, %q, %d questions", exit, out, len(d.checked))
	}
}

// TestCheckDual: what ADD told is what CHECK accepts, and the result of a
// plugin that told of IPv4 alone too.
func TestCheckDual(t *testing.T) {
	check := func(prev string) call {
		return call{verb: cmdCheck, conf: conf("1.1.0", nodenetConf+`, "prevResult": `+prev)}
	}
	added, exit := call{verb: cmdAdd, conf: conf("1.1.0", nodenetConf)}.run(t, &fakeDaemon{dual: true})
	if exit != 0 {
		t.Fatal(added)
	}
	for name, prev := range map[string]string{"what ADD told": added, "IPv4 alone": `{"ips": [{"address": "10.22.0.5/16"}]}`} {
		if out, exit := check(prev).run(t, &fakeDaemon{dual: true}); exit != 0 || out != "" {
			t.Errorf("%s: exit %d, %s", name, exit, out)
		}
	}
	wantError(t, check(`{"ips": [{"address": "10.22.0.5/16"}, {"address": "2001:db8:22::6/112"}]}`), &fakeDaemon{dual: true}, codeDiffers, "2001:db8:22::5/112")
	wantError(t, check(`{"ips": [{"address": "2001:db8:22::5/112"}]}`), &fakeDaemon{dual: true}, codeDiffers, "10.22.0.5/16")
}

// TestDualWithoutRoute: the address, and no route by its gateway.
func TestDualWithoutRoute(t *testing.T) {
	r := request{AttachRequest: api.AttachRequest{Mode: "bridge", NoDefaultRoute: true}}
	at := (&fakeDaemon{dual: true}).attachment(r.AttachRequest)
	for _, v := range []string{"0.2.0", "1.1.0"} {
		out, err := makeResult(v, &r, &at, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		if s := string(b); strings.Contains(s, "routes") || !strings.Contains(s, "2001:db8:22::5/112") {
			t.Errorf("%s: %s", v, s)
		}
	}
}

// TestDel: it succeeds whatever is left, and needs nothing but the names.
func TestDel(t *testing.T) {
	for name, c := range map[string]call{
		"normal":            {conf: conf("1.0.0", nodenetConf)},
		"no namespace":      {conf: conf("1.0.0", nodenetConf), env: map[string]string{"CNI_NETNS": ""}},
		"configuration bad": {conf: conf("1.0.0", nodenetConf+`, "vlan": 5`)},
	} {
		c.verb = cmdDel
		d := &fakeDaemon{}
		if out, exit := c.run(t, d); exit != 0 || out != "" {
			t.Errorf("%s: exit %d, %q", name, exit, out)
		}
		if len(d.detached) != 1 || d.detached[0].ID != "0123456789abcdef/eth0" || d.detached[0].Network != "pods" {
			t.Errorf("%s: %+v", name, d.detached)
		}
	}
	c := call{verb: cmdDel, conf: conf("1.0.0", bridgeConf)}
	gone := &fakeDaemon{err: &api.Error{Message: "no attachment", Code: api.CodeNotFound}}
	if out, exit := c.run(t, gone); exit != 0 {
		t.Errorf("not there: %q", out)
	}
	if gone.detached[0].Network != "mynet" {
		t.Errorf("%+v", gone.detached)
	}
	wantError(t, c, &fakeDaemon{err: errors.New("connection refused")}, codeRetry, "refused")
}

func TestGC(t *testing.T) {
	ep := func(id, node, kind, conf string) api.Endpoint {
		return api.Endpoint{ID: id, Node: node, Kind: kind, Network: "pods", Labels: map[string]string{confLabel: conf}}
	}
	d := &fakeDaemon{status: api.Status{Node: "node1"}, endpoints: []api.Endpoint{
		ep("keep/eth0", "node1", "cni", "mynet"), ep("keep/eth1", "node1", "cni", "mynet"), ep("stale/eth0", "node1", "cni", "mynet"),
		ep("remote/eth0", "node2", "cni", "mynet"), ep("other/eth0", "node1", "cni", "othernet"), ep("default.web", "node1", "attach", "mynet"),
	}}
	c := call{verb: cmdGC, conf: conf(latest, nodenetConf+`, "cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]`)}
	if out, exit := c.run(t, d); exit != 0 || out != "" {
		t.Fatalf("exit %d, %q", exit, out)
	}
	var got []string
	for _, r := range d.detached {
		got = append(got, r.ID)
	}
	if diff := cmp.Diff([]string{"keep/eth1", "stale/eth0"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestGCUnasked: a request without the list collects nothing, one with an
// empty list everything.
func TestGCUnasked(t *testing.T) {
	d := &fakeDaemon{status: api.Status{Node: "node1"}, endpoints: []api.Endpoint{
		{ID: "a/eth0", Node: "node1", Kind: "cni", Labels: map[string]string{confLabel: "mynet"}}}}
	if out, exit := (call{verb: cmdGC, conf: conf(latest, nodenetConf)}).run(t, d); exit != 0 || len(d.detached) != 0 {
		t.Errorf("exit %d, %q, detached %+v", exit, out, d.detached)
	}
	if out, exit := (call{verb: cmdGC, conf: conf(latest, nodenetConf+`, "cni.dev/attachments": []`)}).run(t, d); exit != 0 || len(d.detached) != 1 {
		t.Errorf("exit %d, %q, detached %+v", exit, out, d.detached)
	}
}

// TestREADME: the configurations in README.md are accepted.
func TestREADME(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, block := range strings.Split(string(b), "```") {
		block = strings.TrimSpace(block)
		if i%2 == 0 || !strings.HasPrefix(block, "{") {
			continue
		}
		n++
		d := &fakeDaemon{}
		rest := strings.ReplaceAll(block[1:len(block)-1], "/etc/resolv.conf", os.DevNull)
		if out, exit := (call{verb: cmdAdd, conf: conf("1.0.0", rest)}).run(t, d); exit != 0 {
			t.Errorf("block %d: %s", n, out)
		}
	}
	if n != 2 {
		t.Errorf("%d configurations in README.md, want 2", n)
	}
}

func TestStatus(t *testing.T) {
	c := call{verb: cmdStatus, conf: conf(latest, nodenetConf)}
	up := api.Status{Node: "node1", Networks: []api.NetworkStatus{{Name: "pods"}}}
	if out, exit := c.run(t, &fakeDaemon{status: up}); exit != 0 || out != "" {
		t.Errorf("exit %d, %q", exit, out)
	}
	wantError(t, c, &fakeDaemon{}, codeUnavailable, "network")
	wantError(t, c, &fakeDaemon{err: errors.New("connection refused")}, codeUnavailable, "refused")
	if out, exit := (call{verb: cmdStatus, conf: conf(latest, bridgeConf)}).run(t, &fakeDaemon{}); exit != 0 {
		t.Errorf("bridge: %q", out)
	}
}

// TestSocket: the configuration may name the daemon.
func TestSocket(t *testing.T) {
	d := &fakeDaemon{}
	c := call{verb: cmdDel, conf: conf("1.0.0", nodenetConf+`, "socket": "/run/lab/node1.sock"`)}
	if _, exit := c.run(t, d); exit != 0 || d.socket != "/run/lab/node1.sock" {
		t.Errorf("exit %d, socket %s", exit, d.socket)
	}
}

func TestInvocation(t *testing.T) {
	none := func(string) string { return "" }
	for argv0, want := range map[string]bool{"/opt/cni/bin/nodenet": true, "bridge": true, "./host-local": true, "nodectl": false, "/usr/bin/nodectl": false} {
		if got := IsInvocation(argv0, none); got != want {
			t.Errorf("%s: %v, want %v", argv0, got, want)
		}
	}
	if !IsInvocation("nodectl", func(k string) string { return map[string]string{"CNI_COMMAND": "ADD"}[k] }) {
		t.Error("CNI_COMMAND was not seen")
	}
	// Nomad's question: no environment, no input.
	var out bytes.Buffer
	exit := Main(none, nil, &out, &out, nil, "v1.2.3")
	if want := "CNI nodenet plugin v1.2.3\n"; exit != 0 || !strings.HasPrefix(out.String(), want) {
		t.Errorf("exit %d, %q, want %q first", exit, out.String(), want)
	}
}

// FuzzConf: whatever a file holds, the plugin answers with one JSON value and
// asks the daemon for nothing that is not well formed.
func FuzzConf(f *testing.F) {
	for _, rest := range []string{nodenetConf, bridgeConf, nodenetConf + `, "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 2}], "ips": ["10.0.0.1"],
		"mac": "02:00:00:00:00:01", "aliases": {"mynet": ["a"]}, "bandwidth": {"ingressRate": 1}}`, nodenetConf + `, "prevResult": {"ips": [{"address": "10.0.0.1/24"}]}`} {
		f.Add([]byte(conf("1.0.0", rest)), "IP=10.0.0.1;K8S_POD_NAME=a", true)
		f.Add([]byte(conf("0.2.0", rest)), "", false)
	}
	f.Fuzz(func(t *testing.T, b []byte, args string, ipamOnly bool) {
		argv0 := "nodenet"
		if ipamOnly {
			argv0 = "host-local"
		}
		d := &fakeDaemon{}
		out, exit := call{argv0: argv0, verb: cmdAdd, env: map[string]string{"CNI_ARGS": args}, conf: string(b)}.run(t, d)
		if !json.Valid([]byte(out)) {
			t.Fatalf("not JSON: %q", out)
		}
		asked := append(d.attached, d.allocated...)
		if exit == 0 != (len(asked) == 1 && len(d.detached) == 0) {
			t.Fatalf("exit %d after %d requests", exit, len(asked))
		}
		for _, r := range asked {
			if def := r.Define; def != nil && (!def.Prefix.Addr().Is4() || !def.Prefix.Contains(def.Gateway)) {
				t.Fatalf("network %+v", *def)
			}
			if r.Name == "" || r.Name != label(r.Name) || r.Network == "" {
				t.Fatalf("request %+v", r)
			}
		}
	})
}
