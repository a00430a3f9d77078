package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab19SearchDomain(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/19-search-domain.md", "Lab 19: search domains")
	s.Say(`
		Within a company one says ` + "`web`, not `web.mycompany.com`" + `. The resolver of each host completes the name, from the
		` + "`search`" + ` line of its /etc/resolv.conf; the server only ever hears whole names. Note that ` + "`web`" + ` is there twice.`)
	s.Up(lab.Options{Name: "lab19", Nodes: 1, Nodefile: `mycompany.com {
    errors
    hosts {
        192.168.1.10 web.mycompany.com
        192.168.1.11 mail.mycompany.com
        192.168.1.20 web.prod.mycompany.com
        192.168.1.21 hr.prod.mycompany.com
        no_reverse
    }
}
. {
    errors
    forward . /etc/resolv.conf
}
`})
	s.Say("Without a search line only the whole name is known:")
	pc := host(s, "pc", "192.168.1.50", "nameserver 192.168.1.11")
	s.Want(pc.Run("getent hosts web.mycompany.com"), `^192\.168\.1\.10\s+web\.mycompany\.com$`)
	pc.Fail("getent hosts web")

	s.Say("With one:")
	resolv(s, "pc", "nameserver 192.168.1.11\nsearch mycompany.com")
	s.Want(pc.Run("getent hosts web"), `^192\.168\.1\.10\s+web\.mycompany\.com$`)
	s.Want(pc.Run("host web"), `^web\.mycompany\.com has address 192\.168\.1\.10$`)
	s.Want(pc.Run("nslookup web"), `Name:\s+web\.mycompany\.com`, `Address: 192\.168\.1\.10$`)
	s.Want(pc.Run("dig +search +noall +answer web"), `^web\.mycompany\.com\.\s+\d+\s+IN\s+A\s+192\.168\.1\.10$`)
	s.Want(pc.Run("getent hosts web.mycompany.com"), `^192\.168\.1\.10\s`)
	s.Say("A name in `prod` needs its second part:")
	pc.Fail("getent hosts hr")
	s.Want(pc.Run("getent hosts hr.prod"), `^192\.168\.1\.21\s+hr\.prod\.mycompany\.com$`)

	s.Say("With both. `web` is the first in order that exists, `hr` the only one:")
	resolv(s, "pc", "nameserver 192.168.1.11\nsearch mycompany.com prod.mycompany.com")
	s.Want(pc.Run("getent hosts web"), `^192\.168\.1\.10\s+web\.mycompany\.com$`)
	s.Want(pc.Run("getent hosts hr"), `^192\.168\.1\.21\s+hr\.prod\.mycompany\.com$`)
	s.Want(pc.Run("host hr"), `^hr\.prod\.mycompany\.com has address 192\.168\.1\.21$`)
	s.Want(pc.Run("getent hosts web.mycompany.com"), `^192\.168\.1\.10\s`)

	s.Say("The other way round, `web` is another:")
	resolv(s, "pc", "nameserver 192.168.1.11\nsearch prod.mycompany.com mycompany.com")
	s.Want(pc.Run("getent hosts web"), `^192\.168\.1\.20\s+web\.prod\.mycompany\.com$`)
	s.Want(pc.Run("getent hosts mail"), `^192\.168\.1\.11\s+mail\.mycompany\.com$`)
	s.Want(pc.Run("getent hosts web.mycompany.com"), `^192\.168\.1\.10\s`)

	s.Say("`dig` does not complete names unless it is told to: it shows what the server is asked.")
	s.Want(pc.Run("dig +noall +comments web"), `status: NXDOMAIN`)
}
