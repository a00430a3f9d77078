package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab20Records(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/20-records.md", "Lab 20: A, AAAA and CNAME")
	s.Say(`
		The three kinds of records that one meets first. An A record is an IPv4 address, AAAA one of IPv6, and a CNAME
		says that a name is another one's: ` + "`eat.web-server` and `hungry.web-server` are `food.web-server`" + `.`)
	s.Up(lab.Options{Name: "lab20", Nodes: 1, Nodefile: `network pods 10.244.0.0/16 {
    masquerade
}
. {
    errors
    cluster cluster.local in-addr.arpa
    hosts {
        192.168.1.1 web-server
        2001:0db8:85a3::8a2e:370:7334 web-server
        fallthrough
    }
    forward . /etc/resolv.conf
}
`})
	pc := host(s, "pc", "192.168.1.50", "nameserver 192.168.1.11")
	s.Say("## A and AAAA")
	s.Want(pc.Run("dig +noall +answer web-server A"), `^web-server\.\s+\d+\s+IN\s+A\s+192\.168\.1\.1$`)
	s.Want(pc.Run("dig +noall +answer web-server AAAA"), `^web-server\.\s+\d+\s+IN\s+AAAA\s+2001:db8:85a3::8a2e:370:7334$`)
	s.Want(pc.Run("nslookup web-server"), `Address: 192\.168\.1\.1$`, `Address: 2001:db8:85a3::8a2e:370:7334$`)
	s.Want(pc.Run("host web-server"), `^web-server has address 192\.168\.1\.1$`, `^web-server has IPv6 address 2001:db8:85a3::8a2e:370:7334$`)
	s.Want(pc.Run("getent ahosts web-server"), `^192\.168\.1\.1\s+STREAM`, `^2001:db8:85a3::8a2e:370:7334\s+STREAM`)

	s.Say(`
		## CNAME

		Names that are nobody's workload and nobody's service are added with a command, on any node and for all of them:`)
	s.Run("node1", "nodectl name add food.web-server 192.168.1.1")
	s.Run("node1", "nodectl name add eat.web-server CNAME food.web-server")
	s.Run("node1", "nodectl name add hungry.web-server CNAME food.web-server")
	s.Want(s.Run("node1", "nodectl name ls"), `^eat\.web-server\s+CNAME\s+food\.web-server$`, `^food\.web-server\s+A\s+192\.168\.1\.1$`)
	for _, alias := range []string{"eat", "hungry"} {
		s.Want(pc.Run("dig +noall +answer "+alias+".web-server"),
			`^`+alias+`\.web-server\.\s+\d+\s+IN\s+CNAME\s+food\.web-server\.$`, `^food\.web-server\.\s+\d+\s+IN\s+A\s+192\.168\.1\.1$`)
	}
	s.Want(pc.Run("nslookup eat.web-server"), `^eat\.web-server\s+canonical name = food\.web-server\.$`, `Address: 192\.168\.1\.1$`)
	s.Want(pc.Run("host hungry.web-server"), `^hungry\.web-server is an alias for food\.web-server\.$`, `^food\.web-server has address 192\.168\.1\.1$`)
	s.Run("node1", "nodectl name rm hungry.web-server")
	s.Want(pc.Run("dig +noall +comments hungry.web-server"), `status: NXDOMAIN`)

	s.Say(`
		## Aliases of services

		In a cluster, most names are services: ` + "`food.web-server` is also the service `food` in the namespace `web-server`" + `. A service with
		` + "`--external`" + ` has no address of its own; in DNS it is an alias, here of another service.`)
	food := s.Workload(1, "food", "--namespace web-server --label app=food")
	food.Serve(80)
	s.Run("node1", "nodectl service add food.web-server --port 80 --select app=food")
	s.Run("node1", "nodectl service add eat.web-server --external food.web-server.svc.cluster.local")
	s.Run("node1", "nodectl service add hungry.web-server --external food.web-server.svc.cluster.local")
	out := s.Run("node1", "nodectl service ls")
	s.Want(out, `eat`, `hungry`)
	vip := s.Match(out, `food\.?\S*\s+(10\.\d+\.\d+\.\d+)`)

	s.Say("A workload completes the short names itself. Each tool shows the alias and what it leads to:")
	guest := s.Workload(1, "guest", "")
	for _, alias := range []string{"eat", "hungry"} {
		s.Want(guest.Run("dig +search +noall +answer "+alias+".web-server"),
			`^`+alias+`\.web-server\.svc\.cluster\.local\.\s+\d+\s+IN\s+CNAME\s+food\.web-server\.svc\.cluster\.local\.$`,
			`^food\.web-server\.svc\.cluster\.local\.\s+\d+\s+IN\s+A\s+`+vip+`$`)
	}
	s.Want(guest.Run("host eat.web-server"),
		`^eat\.web-server\.svc\.cluster\.local is an alias for food\.web-server\.svc\.cluster\.local\.$`,
		`^food\.web-server\.svc\.cluster\.local has address `+vip+`$`)
	s.Want(guest.Run("nslookup hungry.web-server"),
		`^hungry\.web-server\.svc\.cluster\.local\s+canonical name = food\.web-server\.svc\.cluster\.local\.$`, `Address: `+vip+`$`)
	s.Want(guest.Run("getent hosts eat.web-server"), `^`+vip+`\s+food\.web-server\.svc\.cluster\.local`)
	s.Want(guest.Run(curl+"http://hungry.web-server/"), `^food saw `+guest.Addr+`$`)

	s.Say("An alias may lead out of the cluster, and over a CNAME of the world's own:")
	s.Run("node1", "nodectl service add shop --external www.example.com")
	s.Want(guest.Run("dig +search +noall +answer shop"),
		`^shop\.default\.svc\.cluster\.local\.\s+\d+\s+IN\s+CNAME\s+www\.example\.com\.$`,
		`^www\.example\.com\.\s+\d+\s+IN\s+CNAME\s+example\.com\.$`, `^example\.com\.\s+\d+\s+IN\s+A\s+203\.0\.113\.10$`)
	s.Want(guest.Run("host -t AAAA shop"), `^example\.com has IPv6 address 2001:db8::10$`)
	s.Want(guest.Run("dig +search +short shop CNAME"), `^www\.example\.com\.$`)
}
