package node

import (
	"net/netip"
	"strings"
	"testing"

	"nodenet/api"
	"nodenet/state"
)

// newDualNode is a test node whose services have an IPv6 range.
func newDualNode(t *testing.T) *Node {
	t.Helper()
	n := newTestNode(t)
	n.cfg.Services.Prefix6 = netip.MustParsePrefix("fd00:10:96::/108")
	if err := n.declare(t.Context(), n.cfg); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestServiceOfOneFamily(t *testing.T) {
	n := newDualNode(t)
	add := func(name string, change func(*api.ServiceSpec)) *api.Service {
		t.Helper()
		spec := web("")
		spec.Name = name
		change(&spec)
		s, err := n.addService(t.Context(), spec)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return s
	}
	both := add("both", func(s *api.ServiceSpec) { s.Families = []string{"ipv4", "ipv6"} })
	if !both.VIP.IsValid() || both.VIP6 != state.Twin(n.cfg.Services.Prefix, n.cfg.Services.Prefix6, both.VIP) || both.Families != nil {
		t.Errorf("both: %v %v %v", both.VIP, both.VIP6, both.Families)
	}
	six := add("six", func(s *api.ServiceSpec) { s.Families = []string{"ipv6"} })
	if six.VIP.IsValid() || six.VIP6 != both.VIP6.Next() || len(six.Families) != 1 {
		t.Errorf("six: %v %v %v, want the IPv6 address after %s alone", six.VIP, six.VIP6, six.Families, both.VIP6)
	}
	four := add("four", func(s *api.ServiceSpec) { s.Families = []string{"ipv4"} })
	if four.VIP != both.VIP.Next().Next() || four.VIP6.IsValid() {
		t.Errorf("four: %v %v, want an offset that nobody has", four.VIP, four.VIP6)
	}
	named := add("named", func(s *api.ServiceSpec) { s.VIP6 = netip.MustParseAddr("fd00:10:96::77") })
	if named.VIP != netip.MustParseAddr("10.96.0.119") {
		t.Errorf("named: %v %v", named.VIP, named.VIP6)
	}
	if err := n.assignVIPs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := state.Lookup[state.VIP](n.store.Snapshot(), state.ID{Class: state.Cluster, Kind: state.KindVIP, Key: "apps/named"}); ok {
		t.Error("an address was allocated for a service that names one")
	}
	if _, err := n.changeBackend(t.Context(), api.BackendChange{Service: "six.apps", Backend: "192.0.2.1"}); code(err) != api.CodeInvalid {
		t.Errorf("an IPv4 backend of an IPv6 service: %v", err)
	}
	if s, err := n.changeBackend(t.Context(), api.BackendChange{Service: "six.apps", Backend: "2001:db8::1"}); err != nil || len(s.Backends) != 1 {
		t.Errorf("an IPv6 backend: %+v, %v", s, err)
	}

	six6 := six.VIP6
	for name, tt := range map[string]struct {
		change func(*api.ServiceSpec)
		code   string
		text   string
	}{
		"taken":         {func(s *api.ServiceSpec) { s.VIP6 = netip.MustParseAddr("fd00:10:96::77") }, api.CodeExists, "belongs to service named.apps"},
		"taken as twin": {func(s *api.ServiceSpec) { s.VIP = netip.MustParseAddr("10.96.0.119") }, api.CodeExists, "belongs to service named.apps"},
		"allocated":     {func(s *api.ServiceSpec) { s.VIP6, s.Families = six6, []string{"ipv6"} }, api.CodeExists, "allocated to service apps/six"},
		"outside":       {func(s *api.ServiceSpec) { s.VIP6 = netip.MustParseAddr("2001:db8::1") }, api.CodeInvalid, "not a host address of services fd00:10:96::/108"},
		"resolver":      {func(s *api.ServiceSpec) { s.VIP6 = netip.MustParseAddr("fd00:10:96::a") }, api.CodeInvalid, "the resolver"},
		"IPv4 in vip6":  {func(s *api.ServiceSpec) { s.VIP6 = netip.MustParseAddr("10.96.0.50") }, api.CodeInvalid, "not one IPv4 and one IPv6"},
		"IPv6 in vip":   {func(s *api.ServiceSpec) { s.VIP = netip.MustParseAddr("fd00:10:96::50") }, api.CodeInvalid, "not one IPv4 and one IPv6"},
		"other family":  {func(s *api.ServiceSpec) { s.VIP, s.Families = netip.MustParseAddr("10.96.0.50"), []string{"ipv6"} }, api.CodeInvalid, "the service has ipv6 alone"},
		"no family":     {func(s *api.ServiceSpec) { s.Families = []string{"ipx"} }, api.CodeInvalid, "ipx: unknown value"},
	} {
		t.Run(name, func(t *testing.T) {
			s := web("")
			tt.change(&s)
			if _, err := n.addService(t.Context(), s); code(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want code %s and %q", err, tt.code, tt.text)
			}
		})
	}
	t.Run("no IPv6 range", func(t *testing.T) {
		n := newTestNode(t)
		s := web("")
		s.Families = []string{"ipv6"}
		if _, err := n.addService(t.Context(), s); code(err) != api.CodeInvalid || !strings.Contains(err.Error(), "no IPv6 range") {
			t.Errorf("got %v", err)
		}
		labels := map[string]string{"nodenet.io/service": "web", "nodenet.io/service-port": "80", "nodenet.io/service-families": "ipv6"}
		if err := n.checkLabels("apps", labels); err == nil || !strings.Contains(err.Error(), "no IPv6 range") {
			t.Errorf("by labels: %v", err)
		}
	})
}

// TestAddressOfAServiceStandsForItsBackends: an address of a service stands for its
// backends of that version.
func TestAddressOfAServiceStandsForItsBackends(t *testing.T) {
	n := newDualNode(t)
	spec := web("10.96.0.20")
	spec.Backends = []string{"192.0.2.1:8080", "[2001:db8::1]:8080"}
	if _, err := n.addService(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for word, want := range map[string]string{"10.96.0.20": "192.0.2.1:8080", "fd00:10:96::14": "[2001:db8::1]:8080"} {
		got, err := policyEnd(n.store.Snapshot().View(), word, 80, "tcp")
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v, want %s", word, got, err, want)
		}
	}
}
