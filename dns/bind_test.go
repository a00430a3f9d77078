package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestBindInterface listens on the addresses of the loopback interface that
// are not excluded.
func TestBindInterface(t *testing.T) {
	all, err := interfaceAddrs("lo")
	if err != nil || !slices.Contains(all, addr("127.0.0.1")) {
		t.Skipf("no usable loopback interface: %v, %v", all, err)
	}
	var except string
	for _, a := range all {
		if a != addr("127.0.0.1") {
			except += " " + a.String()
		}
	}
	if except == "" {
		except = " 192.0.2.1"
	}
	port := freePort(t)
	text := fmt.Sprintf(".:%d {\n bind lo {\n except%s\n }\n bind nnt-none\n whoami\n}\n", port, except)
	s := running(t, Options{Servers: servers(t, text)}, nil)
	want := []netip.AddrPort{netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))}
	waitFor(t, "the socket", func() bool { return slices.Equal(s.Status().Listening, want) })
	waitFor(t, "the interface that is not there", func() bool {
		return strings.Contains(s.Status().Error, "find interface nnt-none")
	})
}

func TestBindAddresses(t *testing.T) {
	standard := []netip.Addr{addr("192.0.2.1")}
	v4, v6 := place{addr: addr("192.0.2.2")}, place{addr: addr("2001:db8::1")}
	for _, tt := range []struct {
		name string
		b    binding
		want []netip.Addr
	}{
		{"none", nil, standard},
		{"two directives", binding{{at: []place{v4}}, {at: []place{v6, v4}}}, []netip.Addr{v4.addr, v6.addr}},
		{"except counts for its own directive", binding{{at: []place{v4, v6}, except: []place{v6}}, {at: []place{v6}, except: []place{v4}}}, []netip.Addr{v4.addr, v6.addr}},
		{"an interface that is not there", binding{{at: []place{{name: "nnt-none"}}}}, nil},
	} {
		if got := tt.b.addrs(standard); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
