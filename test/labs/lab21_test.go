package labs

import (
	"strings"
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab21ClusterDNS(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/21-cluster-dns.md", "Lab 21: cluster DNS")
	s.Say(`
		What a pod can call a service: by its name alone within the namespace, by name and namespace from anywhere. The
		server knows whole names only; the rest is the workload's /etc/resolv.conf, which nodenet writes.`)
	s.Up(lab.Options{Name: "lab21", Nodes: 2, Nodefile: `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
}
`})
	test := s.Workload(1, "test", "--ip 10.244.1.5")
	web := s.Workload(2, "web", "--namespace apps --label app=web --ip 10.244.2.5")
	s.Want(test.Addr+" "+web.Addr, `^10\.244\.1\.5 10\.244\.2\.5$`)
	web.Serve(80)
	s.Run("node1", "nodectl service add web-service.apps --vip 10.107.37.188 --port 80 --select app=web")
	s.Eventually("both nodes know the service", scenarioTimeout, func() error {
		for _, w := range []*scenario.Workload{test, web} {
			out, _ := w.Exec("dig +short web-service.apps.svc.cluster.local")
			if err := contains(out, "10.107.37.188"); err != nil {
				return err
			}
		}
		return nil
	})

	s.Say("## The workload's resolver")
	for _, w := range []struct {
		*scenario.Workload
		namespace string
	}{{test, "default"}, {web, "apps"}} {
		var got string
		for l := range strings.Lines(w.Run("cat /etc/resolv.conf")) {
			if !strings.HasPrefix(l, "#") {
				got += l
			}
		}
		want := "nameserver 10.96.0.10\nsearch " + w.namespace + ".svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
		if got != want {
			t.Errorf("resolv.conf of %s:\n%swant\n%s", w.Name, got, want)
		}
	}

	const answer = `^web-service\.apps\.svc\.cluster\.local has address 10\.107\.37\.188$`
	s.Say("## From the namespace `default`\n\nThe bare name is none of this namespace:")
	s.Want(test.Fail("host web-service"), `NXDOMAIN`)
	s.Say("With the namespace it is, and with as much of the rest as one likes:")
	for _, name := range []string{"web-service.apps", "web-service.apps.svc", "web-service.apps.svc.cluster.local"} {
		s.Want(test.Run("host "+name), answer)
		s.Want(test.Run(curl+"http://"+name+"/"), `^web saw 10\.244\.1\.5$`)
	}
	s.Want(test.Run("getent hosts web-service.apps"), `^10\.107\.37\.188\s+web-service\.apps\.svc\.cluster\.local`)
	s.Want(test.Run("nslookup web-service.apps"), `Server:\s+10\.96\.0\.10`, `Name:\s+web-service\.apps\.svc\.cluster\.local`, `Address: 10\.107\.37\.188$`)

	s.Say("## From the namespace `apps`")
	s.Want(web.Run("host web-service"), answer)
	s.Want(web.Run("host web-service.apps"), answer)
	s.Want(web.Run(curl+"http://web-service/"), `^web saw `)

	s.Say("## Pods\n\nA pod has a name made of its address, whichever node asks:")
	for _, w := range []*scenario.Workload{test, web} {
		s.Want(w.Run("host 10-244-2-5.apps.pod.cluster.local"), `^10-244-2-5\.apps\.pod\.cluster\.local has address 10\.244\.2\.5$`)
		s.Want(w.Run("host 10-244-1-5.default.pod.cluster.local"), ` has address 10\.244\.1\.5$`)
		s.Want(w.Run("host 10-244-2-5.apps.pod"), `^10-244-2-5\.apps\.pod\.cluster\.local has address 10\.244\.2\.5$`)
	}
	s.Say("There is no short form of it:")
	for _, w := range []*scenario.Workload{test, web} {
		s.Want(w.Fail("host 10-244-2-5"), `NXDOMAIN`)
	}
	s.Say("A pod with a name has that name too:")
	s.Want(test.Run("host web.apps.pod.cluster.local"), ` has address 10\.244\.2\.5$`)
}
