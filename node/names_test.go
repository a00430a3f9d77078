package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodenet/api"
)

// Every node serves what is added; what DNS rules out is refused with a reason.
func TestNames(t *testing.T) {
	n := newTestNode(t)
	add := func(name, typ, target string) error {
		_, err := n.addName(t.Context(), api.Name{Name: name, Type: typ, Target: target})
		return err
	}
	for _, tc := range []struct {
		what, name, typ, target, code string
	}{
		{"an address", "Food.web-server.", "A", "192.0.2.10", ""},
		{"a second one", "food.web-server", "A", "192.0.2.11", ""},
		{"the same again", "food.web-server", "A", "192.0.2.11", ""},
		{"an IPv6 address", "food.web-server", "AAAA", "2001:DB8::10", ""},
		{"an alias", "eat.web-server", "cname", "Food.web-server.", ""},
		{"an alias moved", "eat.web-server", "CNAME", "menu.web-server", ""},
		{"an alias beside addresses", "food.web-server", "CNAME", "menu.web-server", api.CodeExists},
		{"an address beside an alias", "eat.web-server", "A", "192.0.2.1", api.CodeExists},
		{"an alias of itself", "a", "CNAME", "A.", api.CodeInvalid},
		{"the wrong family", "a", "AAAA", "192.0.2.1", api.CodeInvalid},
		{"no address", "a", "A", "b", api.CodeInvalid},
		{"an unknown type", "a", "MX", "b", api.CodeInvalid},
		{"no name", "", "A", "192.0.2.1", api.CodeInvalid},
		{"a space in it", "a b", "A", "192.0.2.1", api.CodeInvalid},
		{"a service's SRV name", "_http._tcp.web", "CNAME", "web", ""},
	} {
		if err := add(tc.name, tc.typ, tc.target); code(err) != tc.code {
			t.Errorf("%s: %v, want code %q", tc.what, err, tc.code)
		}
	}
	list := func() (out []string) {
		names, err := n.nameList(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range names {
			out = append(out, x.Name+" "+x.Type+" "+x.Target)
		}
		return out
	}
	want := []string{
		"_http._tcp.web CNAME web", "eat.web-server CNAME menu.web-server",
		"food.web-server A 192.0.2.10", "food.web-server A 192.0.2.11", "food.web-server AAAA 2001:db8::10",
	}
	if d := cmp.Diff(want, list()); d != "" {
		t.Errorf("names (-want +got):\n%s", d)
	}
	if v := n.store.Snapshot().View(); len(v.Names) != len(want) {
		t.Errorf("the view has %d names, want %d", len(v.Names), len(want))
	}
	for _, tc := range []struct{ key, code string }{
		{"food.web-server A 192.0.2.11", ""}, {"food.web-server A 192.0.2.11", api.CodeNotFound},
		{"eat.web-server.", ""}, {"_http._tcp.web CNAME", ""}, {"nobody", api.CodeNotFound},
	} {
		if err := n.removeName(t.Context(), tc.key); code(err) != tc.code {
			t.Errorf("remove %q: %v, want code %q", tc.key, err, tc.code)
		}
	}
	if d := cmp.Diff([]string{"food.web-server A 192.0.2.10", "food.web-server AAAA 2001:db8::10"}, list()); d != "" {
		t.Errorf("names left (-want +got):\n%s", d)
	}
}
