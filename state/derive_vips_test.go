package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
)

// The IP plan: services 10.96.0.0/16 and fd00:10:96::/64, which is larger.

func ipOf(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func TestUntwin(t *testing.T) {
	in, in6 := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/64")
	for a, want := range map[string]string{
		"fd00:10:96::14": "10.96.0.20", "fd00:10:96::ffff": "10.96.255.255", "fd00:10:96::": "10.96.0.0",
		"fd00:10:96::1:0": "", "fd00:10:96::1:0:0:1": "", "fd00:10:97::14": "", "10.96.0.20": "", "": "",
	} {
		if got := Untwin(in, in6, ipOf(a)); got != ipOf(want) {
			t.Errorf("%s: got %v, want %s", a, got, want)
		}
	}
	if got := Untwin(in, netip.Prefix{}, ipOf("fd00:10:96::14")); got.IsValid() {
		t.Errorf("without an IPv6 range: %v", got)
	}
}

func TestServiceAddresses(t *testing.T) {
	me := newClaimant(3)
	for name, tt := range map[string]struct {
		vip, vip6, families, allocated string
		in6                            string // "-": none
		want, want6                    string
		refused                        string
	}{
		"nothing yet":                 {},
		"allocated":                   {allocated: "10.96.0.7", want: "10.96.0.7", want6: "fd00:10:96::7"},
		"IPv4 given":                  {vip: "10.96.0.20", want: "10.96.0.20", want6: "fd00:10:96::14"},
		"IPv6 given":                  {vip6: "fd00:10:96::14", allocated: "10.96.0.7", want: "10.96.0.20", want6: "fd00:10:96::14"},
		"both given":                  {vip: "10.96.0.20", vip6: "fd00:10:96::99", want: "10.96.0.20", want6: "fd00:10:96::99"},
		"beyond the IPv4 range":       {vip6: "fd00:10:96::1:0:0:1", allocated: "10.96.0.7", want: "10.96.0.7", want6: "fd00:10:96::1:0:0:1"},
		"beyond, IPv6 only":           {vip6: "fd00:10:96::1:0:0:1", families: FamilyV6, want6: "fd00:10:96::1:0:0:1"},
		"IPv6 only, allocated":        {families: FamilyV6, allocated: "10.96.0.7", want6: "fd00:10:96::7"},
		"IPv6 only, given":            {families: FamilyV6, vip6: "fd00:10:96::14", want6: "fd00:10:96::14"},
		"IPv4 only":                   {families: FamilyV4, allocated: "10.96.0.7", want: "10.96.0.7"},
		"IPv4 only, given":            {families: FamilyV4, vip: "10.96.0.20", want: "10.96.0.20"},
		"outside":                     {vip: "10.96.0.20", vip6: "2001:db8::1", want: "10.96.0.20", refused: "VIP 2001:db8::1"},
		"no IPv6 here":                {in6: "-", vip: "10.96.0.20", want: "10.96.0.20"},
		"no IPv6 here, IPv6 only":     {in6: "-", families: FamilyV6, allocated: "10.96.0.7", refused: "IPv6 address of w.default"},
		"no IPv6 here, it is given":   {in6: "-", vip6: "fd00:10:96::14", allocated: "10.96.0.7", want: "10.96.0.7", refused: "IPv6 address of w.default"},
		"no IPv6 here, IPv4 only":     {in6: "-", families: FamilyV4, allocated: "10.96.0.7", want: "10.96.0.7"},
		"IPv4 only is not refused":    {families: FamilyV4, vip6: "2001:db8::1", allocated: "10.96.0.7", want: "10.96.0.7"},
		"a record that nobody writes": {vip: "fd00:10:96::14"},
	} {
		t.Run(name, func(t *testing.T) {
			self := Node{Name: "me", PublicKey: me.pub, VTEPMAC: me.id.VTEPMAC(), ServiceRange: netip.MustParsePrefix("10.96.0.0/16")}
			if tt.in6 == "" {
				self.ServiceRange6 = netip.MustParsePrefix("fd00:10:96::/64")
			}
			recs := []Record{
				me.rec(t, KindNode, "self", self),
				me.rec(t, KindService, "default/w", Service{Namespace: "default", Name: "w", VIP: ipOf(tt.vip), VIP6: ipOf(tt.vip6), Families: tt.families,
					Ports: []ServicePort{{Protocol: "tcp", Port: 80}}, Backends: []Backend{{Addr: ipOf("192.0.2.1")}, {Addr: ipOf("2001:db8::1")}}}),
			}
			if tt.allocated != "" {
				recs = append(recs, shared(t, Cluster, KindVIP, "default/w", 0, VIP{Addr: ipOf(tt.allocated)}))
			}
			v := viewOf(t, me.id, nil, recs...)
			s := v.Service("default/w")
			if s.VIP != ipOf(tt.want) || s.VIP6 != ipOf(tt.want6) {
				t.Errorf("got %v %v, want %s %s", s.VIP, s.VIP6, tt.want, tt.want6)
			}
			refused := ""
			for _, r := range v.Refusals {
				refused += r.What
			}
			if refused != tt.refused {
				t.Errorf("refused %q, want %q", refused, tt.refused)
			}
			var backends string
			for _, b := range s.Backends {
				backends += " " + b.Addr.String()
			}
			if want := map[string]string{"": " 192.0.2.1 2001:db8::1", FamilyV4: " 192.0.2.1", FamilyV6: " 2001:db8::1"}[tt.families]; backends != want {
				t.Errorf("backends%s, want%s", backends, want)
			}
		})
	}
}

func TestNeedsOffset(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/64")
	for _, tt := range []struct {
		s    Service
		want bool
	}{
		{Service{}, true}, {Service{Families: FamilyV6}, true}, {Service{Headless: true}, false}, {Service{External: "a.example"}, false},
		{Service{VIP: ipOf("10.96.0.1")}, false}, {Service{VIP6: ipOf("fd00:10:96::1")}, false},
		{Service{VIP6: ipOf("fd00:10:96::1:0:0:1")}, true}, {Service{VIP6: ipOf("fd00:10:96::1:0:0:1"), Families: FamilyV6}, false},
	} {
		if got := tt.s.NeedsOffset(v4, v6); got != tt.want {
			t.Errorf("%+v: %v", tt.s, got)
		}
	}
}

// TestAddressClaimedTwice: of two services that want one address of either
// version the first by name has it, the other keeps what it has besides, and
// gets it when the first is gone.
func TestAddressClaimedTwice(t *testing.T) {
	me := newClaimant(3)
	service := func(name, vip, vip6, families string) Service {
		return Service{Namespace: "default", Name: name, VIP: ipOf(vip), VIP6: ipOf(vip6), Families: families, Ports: []ServicePort{{Protocol: "tcp", Port: 80}}}
	}
	for name, tt := range map[string]struct {
		a, b      Service
		want      string // of b
		conflicts []string
	}{
		"both":              {service("a", "10.96.0.20", "", ""), service("b", "10.96.0.20", "", ""), "invalid IP invalid IP", []string{"VIP 10.96.0.20"}},
		"its twin":          {service("a", "10.96.0.20", "", ""), service("b", "10.96.0.21", "fd00:10:96::14", ""), "10.96.0.21 invalid IP", []string{"VIP fd00:10:96::14"}},
		"IPv6 alone":        {service("a", "", "fd00:10:96::14", FamilyV6), service("b", "", "fd00:10:96::14", FamilyV6), "invalid IP invalid IP", []string{"VIP fd00:10:96::14"}},
		"IPv4 alone":        {service("a", "10.96.0.20", "", FamilyV4), service("b", "10.96.0.20", "", ""), "invalid IP fd00:10:96::14", []string{"VIP 10.96.0.20"}},
		"one each":          {service("a", "10.96.0.20", "", FamilyV4), service("b", "", "fd00:10:96::14", FamilyV6), "invalid IP fd00:10:96::14", nil},
		"crossed, no clash": {service("a", "10.96.0.20", "fd00:10:96::15", ""), service("b", "10.96.0.21", "fd00:10:96::14", ""), "10.96.0.21 fd00:10:96::14", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := NewStore(Options{Self: me.id, Records: []Record{me.rec(t, KindNode, "self", Node{
				Name: "me", PublicKey: me.pub, VTEPMAC: me.id.VTEPMAC(),
				ServiceRange: netip.MustParsePrefix("10.96.0.0/16"), ServiceRange6: netip.MustParsePrefix("fd00:10:96::/64"),
			})}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			show := func() string {
				b := s.Snapshot().View().Service("default/b")
				return fmt.Sprint(b.VIP, " ", b.VIP6)
			}
			put(t, s, Put(Owner, KindService, "default/b", tt.b))
			alone := show()
			put(t, s, Put(Owner, KindService, "default/a", tt.a))
			if got := show(); got != tt.want {
				t.Errorf("b has %s, want %s", got, tt.want)
			}
			var conflicts []string
			for _, c := range s.Snapshot().View().Conflicts {
				conflicts = append(conflicts, c.What)
			}
			if fmt.Sprint(conflicts) != fmt.Sprint(tt.conflicts) {
				t.Errorf("conflicts %v, want %v", conflicts, tt.conflicts)
			}
			put(t, s, Del(Owner, KindService, "default/a"))
			if got := show(); got != alone {
				t.Errorf("b has %s without a, want %s", got, alone)
			}
			if n := len(s.Snapshot().View().Conflicts); n != 0 {
				t.Errorf("%d conflicts are left", n)
			}
		})
	}
}

// TestServiceRecordOfBefore: a service that asks for nothing new is the record
// that versions before IPv6 addresses by name wrote, byte for byte.
func TestServiceRecordOfBefore(t *testing.T) {
	type before struct {
		Namespace string         `cbor:"1,keyasint"`
		Name      string         `cbor:"2,keyasint"`
		VIP       netip.Addr     `cbor:"3,keyasint,omitempty"`
		Ports     []ServicePort  `cbor:"4,keyasint"`
		Sources   []netip.Prefix `cbor:"20,keyasint,omitempty"`
	}
	ports := []ServicePort{{Protocol: "tcp", Port: 80}}
	for _, vip := range []string{"", "10.96.0.20"} {
		old, err := Encode(before{"apps", "web", ipOf(vip), ports, nil})
		if err != nil {
			t.Fatal(err)
		}
		now, err := Encode(Service{Namespace: "apps", Name: "web", VIP: ipOf(vip), Ports: ports})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(old, now) {
			t.Errorf("vip %q: %x, was %x", vip, now, old)
		}
		b, err := Encode(Service{Namespace: "apps", Name: "web", VIP: ipOf(vip), VIP6: ipOf("fd00::1"), Families: FamilyV6, Ports: ports})
		if err != nil {
			t.Fatal(err)
		}
		var was before
		if err := Decode(b, &was); err != nil || was.VIP != ipOf(vip) {
			t.Errorf("read by a version before: %+v, %v", was, err)
		}
	}
}
