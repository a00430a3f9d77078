package labs

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodenet/lab"
	"nodenet/test/scenario"
)

// classicCorefile is what clusters had in their ConfigMap for years.
const classicCorefile = `.:53 {
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

func TestLab22ClassicCorefile(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/22-classic-corefile.md", "Lab 22: the classic Corefile, word for word")
	s.Say(`
		A Corefile from an old cluster, pasted as it is. Two of its words have gone from CoreDNS since: ` + "`proxy` is `forward`" + `
		today, ` + "`upstream`" + ` has no effect. nodenet says so, and loads it.`)
	s.Up(lab.Options{Name: "lab22", Nodes: 2, Nodefile: classicCorefile})
	out := s.Run("node1", "nodectl check Nodefile")
	s.Want(out, `upstream`, `proxy`)
	for _, n := range []string{"node1", "node2"} {
		s.Want(s.Run(n, "nodectl status"), `^dns\s+ok\s`)
	}

	s.Say("## kubernetes cluster.local")
	web := s.Workload(1, "web", "--namespace apps --label app=web")
	web.Serve(80)
	s.Run("node1", "nodectl service add web.apps --vip 10.107.37.188 --port http=80 --select app=web")
	test := s.Workload(2, "test", "")
	s.Eventually("node2 knows the service", scenarioTimeout, func() error {
		out, _ := test.Exec("dig +short web.apps.svc.cluster.local")
		return contains(out, "10.107.37.188")
	})
	s.Want(test.Run("dig +noall +answer web.apps.svc.cluster.local"), `^web\.apps\.svc\.cluster\.local\.\s+\d+\s+IN\s+A\s+10\.107\.37\.188$`)
	s.Want(test.Run("dig +short _http._tcp.web.apps.svc.cluster.local SRV"), `^\d+ \d+ 80 web\.apps\.svc\.cluster\.local\.$`)
	s.Want(test.Run("dig +noall +comments nothing.apps.svc.cluster.local"), `status: NXDOMAIN`, `flags: [a-z ]*\baa\b`)
	s.Want(test.Run(curl+"http://web.apps/"), `^web saw `+test.Addr+`$`)
	s.Say("`in-addr.arpa`: the service's address has its name.")
	s.Want(test.Run("dig +short -x 10.107.37.188"), `^web\.apps\.svc\.cluster\.local\.$`)
	s.Say("`fallthrough in-addr.arpa`: the addresses of others are asked of others, who may know them.")
	s.Want(test.Run("dig +short -x 203.0.113.10"), `^example\.com\.$`)
	s.Say("`pods insecure`: the name of any address is that address, whether there is a pod or not.")
	s.Want(test.Run("dig +short 10-244-77-7.apps.pod.cluster.local"), `^10\.244\.77\.7$`)

	s.Say("## proxy . /etc/resolv.conf, cache 30\n\nThe record lives 300 s; the cache keeps nothing for longer than 30 s.")
	s.Want(s.Run("outside", "dig +noall +answer @203.0.113.10 mail.example.com"), `^mail\.example\.com\.\s+300\s+IN\s+A\s+203\.0\.113\.10$`)
	first := ttl(t, s, test, "mail.example.com")
	if first > 30 {
		t.Errorf("TTL %d, want at most 30", first)
	}
	s.Say("From the cache it comes with what is left of its time, also while the nameserver cannot be reached:")
	s.Run("router", "ip link set eth1 down")
	s.Eventually("an answer from the cache has aged", 5*time.Second, func() error {
		out, _ := test.Exec("dig +noall +answer mail.example.com")
		if f := strings.Fields(out); len(f) == 5 && f[1] != strconv.Itoa(first) {
			return nil
		}
		return fmt.Errorf("%s", out)
	})
	if again := ttl(t, s, test, "mail.example.com"); again >= first {
		t.Errorf("TTL %d then %d: want it to fall", first, again)
	}

	s.Say("## errors\n\nWhat is not in the cache fails meanwhile, and the node's log says why:")
	s.Want(test.Run("dig +tries=1 +time=10 +noall +comments text.example.com TXT"), `status: SERVFAIL`)
	s.Eventually("node2's log has the failure", 5*time.Second, func() error {
		b, err := os.ReadFile(s.Lab.Node(2).Log())
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			if strings.Contains(l, "text.example.com") {
				return nil
			}
		}
		return fmt.Errorf("no line about text.example.com")
	})
	s.Want(s.Run(scenario.Machine, "grep text.example.com "+s.Lab.Node(2).Log()), `msg="dns query".* name=text\.example\.com\.`)
	s.Run("router", "ip link set eth1 up")
	s.Eventually("the nameserver is used again", 15*time.Second, func() error {
		out, _ := test.Exec("dig +tries=1 +time=2 +short text.example.com TXT")
		return contains(out, "the outside")
	})
	s.Want(test.Run("dig +short text.example.com TXT"), `^"the outside"$`)

	s.Say("## health and prometheus :9153\n\nBoth without an address, so at all of the node's:")
	s.Want(s.Run("outside", curl+"http://192.168.1.11:8080/health"), `^OK`)
	s.Want(s.Run("outside", "sh -c \""+curl+"http://192.168.1.12:9153/metrics | grep '^nodenet_dns_queries_total.* [1-9]'\""), `^nodenet_dns_queries_total\{.*\} \d+`)

	s.Say("## reload\n\nA name more in the Nodefile, and nothing else: half a minute later at most it is served.")
	s.Shell("node2", `sed -i '/cache 30/i hosts {\n  192.168.1.77 intranet.mycompany.com\n  fallthrough\n}' `+s.Lab.Dir()+"/node2/Nodefile")
	s.Eventually("the change is served", 45*time.Second, func() error {
		out, _ := test.Exec("dig +short intranet.mycompany.com")
		return contains(out, "192.168.1.77")
	})
	s.Want(test.Run("dig +short intranet.mycompany.com"), `^192\.168\.1\.77$`)
	s.Want(test.Run("dig +short web.apps.svc.cluster.local"), `^10\.107\.37\.188$`)

	s.Say("## Those of others\n\nWhat kubeadm and k3s install, and what NodeLocalDNS makes of its template, is valid too.")
	for _, f := range otherCorefiles() {
		s.File(f[0], f[1])
		s.Want(s.Run("node1", "nodectl check "+f[0]), `^`+regexp.QuoteMeta(f[0])+` is valid`)
	}
}

// otherCorefiles are those that kubeadm and k3s install and that NodeLocalDNS
// makes of its template.
func otherCorefiles() [][2]string {
	return [][2]string{
		{"kubeadm.Corefile", kubeadmCorefile}, {"k3s.Corefile", k3sCorefile}, {"nodelocaldns.Corefile", nodelocalCorefile},
	}
}

const kubeadmCorefile = `.:53 {
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

const k3sCorefile = `.:53 {
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

const nodelocalCorefile = `cluster.local:53 {
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

// ttl types a query for an A record and returns the time that it lives.
func ttl(t *testing.T, s *scenario.Scenario, w *scenario.Workload, name string) int {
	t.Helper()
	out := w.Run("dig +noall +answer " + name)
	n, err := strconv.Atoi(s.Match(out, `\.\s+(\d+)\s+IN\s+A\s+203\.0\.113\.10$`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
