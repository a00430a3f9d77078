package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// FuzzParse: no input makes Parse panic or hang, every fault has a place and
// a text, and whatever parses prints as itself. Imports never reach the disk.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.nodefile")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	for _, s := range []string{
		"", "\ufeff.", "{", "}", "{}", "\"", "a {} b", "a\n{\n}", ". { a { b { } } }", "(s) { import s }\nimport s",
		"import self", "import half\n}", "x \"\\\\\" {\n}", ". {\n\"a\\\"b\" \"#\" \"\"\n}", "service a {\nvip none\n}", "{$A}{%A%}",
		"node {\nname \x00unset\n}",
	} {
		f.Add(s)
	}
	env := testEnv()
	env.FS = mapFS{"self": "import self", "half": ". {\nerrors", "/abs": "log"}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("Nodefile", strings.NewReader(text), env)
		if err == nil {
			c.Notes()
			roundTrip(t, c)
			return
		}
		joined, ok := err.(interface{ Unwrap() []error })
		if !ok {
			return // larger than a file may be
		}
		for _, e := range joined.Unwrap() {
			if ce, ok := e.(*Error); !ok || ce.Text == "" || ce.Pos.File == "" {
				t.Errorf("fault without a place or a text: %v", e)
			}
		}
	})
}

// TestPrintParses: any valid Config prints as a Nodefile that parses back to it.
func TestPrintParses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := anyConfig(t)
		text := c.String()
		again, err := Parse("printed", strings.NewReader(text), Env{LookupEnv: noEnv, Hostname: "other", FS: noFS{}})
		if err != nil {
			t.Fatalf("parse: %v\n%s", err, text)
		}
		if d := cmp.Diff(c, again, same); d != "" {
			t.Fatalf("-want +got:\n%s\n%s", d, text)
		}
	})
}

// IP plan: network i has 10.i.0.0/16, services 172.20.0.0/16, hosts 192.0.2.0/24.
func anyConfig(t *rapid.T) *Config {
	c := Default(Env{LookupEnv: noEnv, Hostname: "node1", FS: noFS{}})
	c.Node.Zone = rapid.SampledFrom([]string{"", "rack-1"}).Draw(t, "zone")
	c.Node.Advertise = rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}).Draw(t, "advertise")
	c.Cluster.Join = rapid.SliceOf(rapid.SampledFrom([]string{"192.0.2.1", "host.example.org:7947", "[2001:db8::1]:1"})).Draw(t, "join")
	c.Services.Prefix = netip.MustParsePrefix("172.20.0.0/16")
	c.Services.DNS = netip.MustParseAddr("172.20.0.53")
	c.Networks = nil
	for i := range rapid.IntRange(1, 4).Draw(t, "networks") {
		c.Networks = append(c.Networks, anyNetwork(t, i))
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "services") {
		c.Service = append(c.Service, anyService(t, i))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "publishes") {
		c.Publishes = append(c.Publishes, Publish{
			HostAddr: rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("192.0.2.1")}).Draw(t, "host"),
			Protocol: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "proto"),
			HostPort: uint16(8000 + 10*i), Last: rapid.SampledFrom([]uint16{0, uint16(8001 + 10*i), uint16(8009 + 10*i)}).Draw(t, "last"),
			Target: netip.MustParseAddrPort("10.0.0.9:80"),
		})
	}
	c.Servers = nil
	for i := range rapid.IntRange(1, 3).Draw(t, "servers") {
		c.Servers = append(c.Servers, Server{
			Keys:       []string{fmt.Sprintf("zone%d.example.org:53", i), "."}[:rapid.IntRange(1, 2).Draw(t, "keys")],
			Directives: anyDirectives(t, 0),
		})
	}
	return c
}

func anyNetwork(t *rapid.T, i int) Network {
	n := Network{
		Name: fmt.Sprintf("net%d", i), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16),
		Overlay: rapid.SampledFrom([]string{OverlayVXLAN, OverlayRoutes, OverlayAuto, OverlayNone}).Draw(t, "overlay"),
		MTU:     rapid.SampledFrom([]int{0, 1400}).Draw(t, "mtu"), Internal: rapid.Bool().Draw(t, "internal"),
		Bridge: fmt.Sprintf("br%d", i), LeaseTime: DefaultLeaseTime, Namespace: DefaultNamespace,
		NoGateway: rapid.Bool().Draw(t, "nogateway"), NoSearch: rapid.Bool().Draw(t, "nosearch"),
	}
	n.Masquerade = !n.Internal
	if n.UsesVXLAN() {
		n.VNI, n.Port = uint32(100+i), DefaultVXLANPort
	}
	if n.Overlay != OverlayNone {
		n.Block = rapid.IntRange(16, 30).Draw(t, "block")
		if rapid.Bool().Draw(t, "pinned") {
			n.Pin = netip.PrefixFrom(n.Prefix.Addr(), n.Block)
		}
	}
	for j := range rapid.IntRange(0, 3).Draw(t, "excluded") {
		n.Exclude = append(n.Exclude, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(j)}), rapid.IntRange(24, 32).Draw(t, "bits")))
	}
	if n.DHCP = rapid.Bool().Draw(t, "dhcp"); n.DHCP {
		n.LeaseTime = time.Duration(rapid.SampledFrom([]int{1, 60, 90, 3600, 5400, 86400, 3601}).Draw(t, "seconds")) * time.Second
	}
	return n
}

func anyService(t *rapid.T, i int) Service {
	s := Service{Namespace: rapid.SampledFrom([]string{"default", "apps"}).Draw(t, "ns"), Name: fmt.Sprintf("svc%d", i)}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		s.External = "db.example.org"
		return s
	case 1:
		s.Headless = true
	case 2:
		s.VIP = netip.AddrFrom4([4]byte{172, 20, 1, byte(i)})
	}
	for j := range rapid.IntRange(1, 3).Draw(t, "ports") {
		s.Ports = append(s.Ports, anyPort(t, s, i, j))
	}
	s.NodePorts = !s.Headless && rapid.Bool().Draw(t, "allocate")
	s.Select = rapid.MapOf(rapid.SampledFrom([]string{"app", "tier", "x\"y"}), word().Filter(func(s string) bool { return s != "" })).Draw(t, "select")
	for j := range rapid.IntRange(0, 2).Draw(t, "backends") {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(j + 1)}), uint16(rapid.IntRange(0, 65535).Draw(t, "port")))
		s.Backends = append(s.Backends, Backend{a, rapid.SampledFrom([]int{0, 1, 7, 256}).Draw(t, "weight")})
	}
	s.SlowStart = rapid.SampledFrom([]time.Duration{0, time.Second, 90 * time.Second, 1500 * time.Millisecond}).Draw(t, "slow_start")
	s.Probe = anyProbe(t)
	if !s.Headless {
		anyEntrance(t, &s, i)
	}
	return s
}

func anyPort(t *rapid.T, s Service, i, j int) ServicePort {
	p := ServicePort{Port: uint16(80 + 20*j), Protocol: rapid.SampledFrom([]string{"tcp", "udp", "sctp"}).Draw(t, "proto")}
	p.Name = []string{"", fmt.Sprintf("port-%d", j)}[rapid.IntRange(0, 1).Draw(t, "named")]
	if rapid.Bool().Draw(t, "range") {
		p.Last = p.Port + uint16(rapid.IntRange(1, 19).Draw(t, "ports more"))
	}
	switch rapid.IntRange(0, 2).Draw(t, "target") {
	case 0:
		p.Target = 8080
	case 1:
		if p.Last == 0 {
			p.TargetName = "http"
		}
	}
	if p.Last == 0 && !s.Headless && rapid.Bool().Draw(t, "nodeport") {
		p.NodePort = uint16(30000 + 10*i + j)
	}
	return p
}

// anyEntrance fills what says who gets to a service and to which backend.
func anyEntrance(t *rapid.T, s *Service, i int) {
	policies := []string{"", "local", "prefer-node", "prefer-zone"}
	s.Balance = rapid.SampledFrom([]string{"", "source", "maglev"}).Draw(t, "balance")
	s.Affinity = rapid.SampledFrom([]time.Duration{0, time.Second, 3 * time.Hour, 86399 * time.Second}).Draw(t, "affinity")
	s.Inside = rapid.SampledFrom(policies).Draw(t, "inside")
	s.HealthPort = rapid.SampledFrom([]uint16{0, uint16(20000 + i)}).Draw(t, "health port")
	for j := range rapid.IntRange(0, 2).Draw(t, "addresses") {
		s.Addresses = append(s.Addresses, netip.AddrFrom4([4]byte{198, 51, 100, byte(10*i + j)}))
	}
	s.Announce = len(s.Addresses) > 0 && rapid.Bool().Draw(t, "announce")
	prefixes := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("0.0.0.0/0")}
	ported := s.NodePorts
	for _, p := range s.Ports {
		ported = ported || p.NodePort != 0
	}
	if ported {
		s.NodeAddrs = rapid.SliceOfN(rapid.SampledFrom(prefixes), 0, 2).Draw(t, "node addresses")
	}
	if ported || len(s.Addresses) > 0 {
		s.Outside = rapid.SampledFrom(policies).Draw(t, "outside")
		s.Sources = rapid.SliceOfN(rapid.SampledFrom(prefixes), 0, 2).Draw(t, "sources")
	}
}

func anyProbe(t *rapid.T) *Probe {
	if rapid.Bool().Draw(t, "unchecked") {
		return nil
	}
	pr := &Probe{Type: rapid.SampledFrom(probeTypes).Draw(t, "check"), Port: 8080}
	switch pr.Type {
	case "http", "https":
		pr.Path = rapid.SampledFrom([]string{"", "/", "/healthz?deep=1"}).Draw(t, "path")
		pr.Host = rapid.SampledFrom([]string{"", "www.example.org", "192.0.2.1"}).Draw(t, "host")
	case "dns":
		pr.Host = rapid.SampledFrom([]string{"", "www.example.org"}).Draw(t, "host")
	case "exec":
		pr.Port = 0
		pr.Command = append([]string{"/usr/bin/check"}, rapid.SliceOfN(word(), 0, 2).Draw(t, "args")...)
	}
	pr.Interval = rapid.SampledFrom([]time.Duration{0, 1500 * time.Millisecond, time.Minute}).Draw(t, "interval")
	pr.Timeout = rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond, time.Second}).Draw(t, "timeout")
	pr.Rise = rapid.SampledFrom([]int{0, 1, 100}).Draw(t, "rise")
	pr.Fall = rapid.SampledFrom([]int{0, 1, 100}).Draw(t, "fall")
	return pr
}

// word is any string that a Nodefile can hold in the middle of a line.
func word() *rapid.Generator[string] {
	return rapid.OneOf(rapid.String(), rapid.StringMatching(`[a"\\# \n{}$]{0,6}`)).Filter(func(s string) bool {
		_, ok := quote(s)
		return ok && !strings.Contains(s, "\x00") && s != "{" && s != "}" && s != "{}" && reference(s, "{$", "}") < 0 && reference(s, "{%", "%}") < 0
	})
}

func anyDirectives(t *rapid.T, depth int) []Directive {
	var ds []Directive
	for range rapid.IntRange(0, 3).Draw(t, "directives") {
		d := Directive{
			Name: word().Filter(func(s string) bool { return s != "import" }).Draw(t, "name"),
			Args: rapid.SliceOfN(word(), 0, 3).Draw(t, "args"),
		}
		if depth < 3 {
			d.Block = anyDirectives(t, depth+1)
		}
		ds = append(ds, d)
	}
	return ds
}
