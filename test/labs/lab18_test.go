package labs

import (
	"testing"
	"time"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab18HostsFile(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/18-hosts-file.md", "Lab 18: names from a hosts file, for the whole LAN")
	s.Say(`
		Three machines, ` + "`web`, `db` and `nfs`" + `, and everybody's own copy of /etc/hosts: that ends when the fourth arrives.
		Instead one node serves its file to the LAN. Names that are not in the file are asked of the node's own
		nameserver. The server is to be 192.168.1.100, an address of its own beside that of the node, so that it can
		move to another machine; without ` + "`bind`" + ` the node would answer at its LAN address, 192.168.1.11.`)
	s.Up(lab.Options{Name: "lab18", Nodes: 1, Nodefile: `.:53 {
    bind 192.168.1.100
    errors
    hosts /etc/hosts {
        reload 1s
        fallthrough
    }
    forward . /etc/resolv.conf
}
`})
	s.Run("node1", "ip address add 192.168.1.100/24 dev eth0")
	s.Shell("node1", `cat >>/etc/hosts <<END
192.168.1.10 web
192.168.1.11 db
192.168.1.12 nfs
END
cat /etc/hosts`)

	s.Say("Another host of the LAN, which knows nothing but its nameserver:")
	pc := host(s, "pc", "192.168.1.50", "nameserver 192.168.1.100")
	s.Eventually("the file has been read", 5*time.Second, func() error {
		out, _ := pc.Exec("dig +short web")
		return contains(out, "192.168.1.10")
	})
	for name, addr := range map[string]string{"web": "192.168.1.10", "db": "192.168.1.11", "nfs": "192.168.1.12"} {
		out, err := pc.Exec("dig +short " + name)
		if err != nil || contains(out, addr) != nil {
			t.Errorf("dig %s: %v\n%s", name, err, out)
		}
	}
	s.Want(pc.Run("getent hosts web"), `^192\.168\.1\.10\s+web$`)
	s.Want(pc.Run("dig +noall +answer +comments db"), `status: NOERROR`, `^db\.\s+\d+\s+IN\s+A\s+192\.168\.1\.11$`)
	s.Want(pc.Run("host nfs"), `^nfs has address 192\.168\.1\.12$`)
	s.Want(pc.Run("nslookup web"), `Server:\s+192\.168\.1\.100`, `Address: 192\.168\.1\.10$`)
	s.Say("Backwards, from the same file:")
	s.Want(pc.Run("dig +short -x 192.168.1.10"), `^web\.$`)

	s.Say("Names that the file does not have are forwarded. What the world does not have either, does not exist:")
	s.Want(pc.Run("dig +short www.example.com"), `^example\.com\.$`, `^203\.0\.113\.10$`)
	s.Want(pc.Run(curl+"http://www.example.com/"), `^outside saw 192\.168\.1\.50$`)
	s.Want(pc.Run("dig +noall +comments printer"), `status: NXDOMAIN`)

	s.Say("A name more is one line more. Nobody is restarted:")
	s.Shell("node1", "echo 192.168.1.13 printer >>/etc/hosts")
	s.Eventually("the new name is served", 5*time.Second, func() error {
		out, _ := pc.Exec("dig +short printer")
		return contains(out, "192.168.1.13")
	})
	s.Want(pc.Run("getent hosts printer"), `^192\.168\.1\.13\s+printer$`)
}

// host plugs a machine with this resolver configuration into the LAN.
func host(s *scenario.Scenario, name, addr, resolvConf string) *scenario.Workload {
	s.T().Helper()
	h := s.Host(name, addr)
	resolv(s, name, resolvConf)
	return h
}

// resolv types what gives a namespace a resolver configuration.
func resolv(s *scenario.Scenario, name, content string) {
	s.T().Helper()
	s.Shell(scenario.Machine, "mkdir -p /etc/netns/"+name+"\ncat >/etc/netns/"+name+"/resolv.conf <<END\n"+content+"\nEND")
}
