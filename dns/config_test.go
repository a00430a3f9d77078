package dns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/config"
)

// lab22 is the Corefile of every Kubernetes course, word for word.
const lab22 = `.:53 {
    errors
    health
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        upstream
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus :9153
    proxy . /etc/resolv.conf
    cache 30
    reload
}
`

// kubeadm is what kubeadm installs.
const kubeadm = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

// k3s is what k3s installs, its imports expanded as the Nodefile's parser does.
const k3s = `.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
    }
    hosts /etc/coredns/NodeHosts {
      ttl 60
      reload 15s
      fallthrough
    }
    prometheus :9153
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    forward . /etc/resolv.conf
    loop
    reload
    loadbalance
    import /etc/coredns/custom/*.override
}
import /etc/coredns/custom/*.server
`

// openshift is what OpenShift's DNS operator writes, with a forwarder over TLS.
const openshift = `# example
example.com:5353 {
    prometheus 127.0.0.1:9153
    forward . tls://192.0.2.1 tls://192.0.2.2:854 {
        tls_servername dns.example.com
        tls /etc/pki/example.com-ca/ca-bundle.crt
        policy random
    }
    errors
    log . {
        class error
    }
    bufsize 1232
    cache 900 {
        denial 9984 30
    }
}
.:5353 {
    bufsize 1232
    errors
    log . {
        class error
    }
    health {
        lameduck 20s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus 127.0.0.1:9153
    forward . /etc/resolv.conf {
        policy sequential
    }
    cache 900 {
        denial 9984 30
    }
    reload
}
hostname.bind:5353 {
    chaos
}
`

// nodelocal is what NodeLocalDNS makes of its template.
const nodelocal = `cluster.local:53 {
    errors
    cache {
            success 9984 30
            denial 9984 5
    }
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.103.0.10 {
            force_tcp
    }
    prometheus :9253
    health 169.254.20.10:8080
    }
in-addr.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.103.0.10 {
            force_tcp
    }
    prometheus :9253
    }
ip6.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . 10.103.0.10 {
            force_tcp
    }
    prometheus :9253
    }
.:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.20.10 10.96.0.10
    forward . /etc/resolv.conf
    prometheus :9253
    }
`

// TestOtherCorefiles: the Corefiles of other distributions start unchanged.
func TestOtherCorefiles(t *testing.T) {
	for name, text := range map[string]string{"kubeadm": kubeadm, "k3s": k3s, "openshift": openshift, "nodelocal": nodelocal} {
		t.Run(name, func(t *testing.T) {
			srv := servers(t, text)
			if n := Notices(srv); len(n) > 0 {
				t.Errorf("notices %q", n)
			}
			starts(t, srv)
		})
	}
}

func TestCorefiles(t *testing.T) {
	tests := []struct {
		name, text string
		notices    []string
	}{
		{name: "lab 22", text: lab22, notices: []string{
			"Nodefile:6: kubernetes: upstream is ignored, names outside the zone are resolved by this server",
			"Nodefile:10: proxy: is read as forward",
		}},
		{name: "kubeadm", text: kubeadm},
		{name: "nothing to transfer", text: ". {\n errors\n transfer {\n to *\n }\n cluster\n forward . 192.0.2.1\n}\n", notices: []string{
			"Nodefile:3: transfer: has no effect without `file`, names of the cluster are not copied",
		}},
		{name: "hosts keeps everything", text: ". {\n errors\n hosts\n forward . 192.0.2.1\n}\n", notices: []string{
			"Nodefile:3: hosts: without `fallthrough` no unknown name reaches forward in line 4",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := servers(t, tt.text)
			if err := Validate(srv); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.notices, Notices(srv)); diff != "" {
				t.Errorf("notices (-want +got):\n%s", diff)
			}
			if z := ClusterZone(srv); z != "cluster.local" {
				t.Errorf("ClusterZone = %q", z)
			}
			s, err := New(Options{Servers: srv, ResolvConf: "testdata/none"})
			if err != nil {
				t.Fatal(err)
			}
			var order []string
			for _, p := range s.live.Load().blocks[0].plugins {
				order = append(order, p.Name)
			}
			if got := strings.Join(order, " "); !strings.HasPrefix(got, "errors") || !strings.HasSuffix(got, "forward") {
				t.Errorf("chain order %s", got)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	text := `.:53 {
    chache 30
    dnssec
    cluster cluster.local {
        pods sometimes
        ttl 4000
        kubeconfig /x
        podz insecure
    }
    forward . https://9.9.9.9 resolver.example {
        policy fastest
    }
    bind eth0:53
    cache 30 {
        serve_stale 1h sometimes
    }
    bufsize 9
    errors
    errors
}
tls://example.org {
    whoami
}
example.net example.net:1053 {
    whoami
}
example.net {
    health 8080
}
`
	want := `Nodefile:2: .:53: unknown directive "chache", did you mean cache?
Nodefile:3: .:53: dnssec: signing is not supported; forward to a server that does it
Nodefile:5: .:53: cluster: pods "sometimes" is not a mode, write disabled, insecure or verified
Nodefile:6: .:53: ttl: value "4000" is not a number from 0 to 3600
Nodefile:7: .:53: cluster: kubeconfig is not supported, there is no API server here: remove it
Nodefile:8: .:53: cluster: unknown option "podz", did you mean pods?
Nodefile:10: .:53: forward: https://9.9.9.9: upstreams over https are not supported, write an address or tls://ADDRESS
Nodefile:10: .:53: forward: "resolver.example" is not an address, an address with a port or an absolute path of a resolv.conf
Nodefile:11: .:53: forward: policy "fastest" is not known, write random, round_robin or sequential
Nodefile:13: .:53: bind: "eth0:53" is neither an address nor the name of an interface
Nodefile:15: .:53: cache: serve_stale "sometimes" is not known, write immediate or verify
Nodefile:17: .:53: bufsize: size "9" is not a number from 512 to 4096
Nodefile:19: .:53: errors: already given at line 18, keep one
Nodefile:21: tls://example.org: tls:// needs a certificate, write ` + "`tls CERT KEY`" + `
Nodefile:28: example.net: health: "8080" is not an address with a port, write it like :8080 or 127.0.0.1:8080
Nodefile:27: example.net: zone example.net. port 53 is already served by the block at line 24, remove one or give them different ` + "`bind`" + ` addresses`
	err := Validate(servers(t, text))
	if err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func TestClusterZone(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"no cluster directive", ". {\n whoami\n}", "cluster.local"},
		{"reverse first", ". {\n cluster in-addr.arpa Corp.Example.\n}", "corp.example"},
		{"zones of the block", "k8s.example {\n kubernetes\n}", "k8s.example"},
		{"root block", ". {\n cluster\n}", "cluster.local"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ClusterZone(servers(t, tt.text)); got != tt.want {
				t.Errorf("ClusterZone = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWorkloadConfig(t *testing.T) {
	ns, search, options := WorkloadConfig("cluster.local", "apps", addr("10.96.0.10"), []string{"corp.example.", "cluster.local", "."})
	got := strings.Join([]string{strings.Join(ns, " "), strings.Join(search, " "), strings.Join(options, " ")}, "|")
	want := "10.96.0.10|apps.svc.cluster.local svc.cluster.local cluster.local corp.example|ndots:5"
	if got != want {
		t.Errorf("WorkloadConfig = %s, want %s", got, want)
	}
	if ns, _, _ := WorkloadConfig("x", "", netip.Addr{}, nil); len(ns) != 0 {
		t.Errorf("nameservers without a resolver: %q", ns)
	}
}

// everything has directives with much syntax of their own.
const everything = `tls://. {
    root /srv
    tls cert key ca {
        client_auth request
    }
    view v {
        expr incidr(client_ip(), '10.0.0.0/8') && type() in ['A']
    }
    ratelimit 5 10 {
        except 10.0.0.0/8
    }
    acl a.example {
        drop type A net 10.0.0.0/8
    }
    rewrite continue {
        name regex (.*) {1}.x answer auto
        answer value a b
    }
    rewrite edns0 subnet set 24 56
    template IN A {
        match ^a(.*)$
        answer "{{ .Name }} A 1.2.3.4"
    }
    loadbalance weighted w {
        prefer 10.0.0.0/8
    }
    cache 5 {
        serve_stale 1h verify 1s 30s 30s
        prefetch 5 1m 20%
    }
    log . "{remote}{>rflags}"
    file db 10.0.0.0/7
    transfer {
        to * 192.0.2.1:5
    }
    forward . tls://192.0.2.1%a:5 {
        health_check 5s no_rec domain a
        failover NXDOMAIN
    }
}
`

func TestEverything(t *testing.T) {
	if err := Validate(servers(t, everything)); err != nil {
		t.Error(err)
	}
}

// FuzzValidate: no Nodefile makes the checks panic, and what they accept can
// be built.
func FuzzValidate(f *testing.F) {
	for _, text := range []string{lab22, kubeadm, k3s, openshift, everything, "10.0.0.0/9:53 ::fffe:0:0/95 {\n cluster fd00::/6\n cache 1 10.0.0.0/7\n}\n", "a b:1 {\n bind ::1\n hosts /x . {\n 1.2.3.4 a\n fallthrough\n }\n}"} {
		f.Add(text)
	}
	env := config.Env{Hostname: "node1", LookupEnv: func(string) (string, bool) { return "", false }}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Parse("Nodefile", strings.NewReader(text), env)
		if err != nil {
			return
		}
		blocks, _, err := parseServers(c.Servers)
		if err == nil {
			buildLive(blocks, []netip.Addr{addr("127.0.0.1")})
		}
		ClusterZone(c.Servers)
	})
}
