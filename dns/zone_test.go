package dns

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"
	"pgregory.net/rapid"

	"nodenet/dns/plugin"
	"nodenet/state"
)

var update = flag.Bool("update", false, "write the golden answers")

// TestSpec asks the questions in testdata/*.txt and compares whole replies.
// A file is a server block, a line "---", then questions, each a line
// "? NAME TYPE" with the expected reply below it.
func TestSpec(t *testing.T) {
	for _, file := range []string{"cluster", "pods-disabled", "pods-verified", "noendpoints", "nodata"} {
		t.Run(file, func(t *testing.T) {
			path := "testdata/" + file + ".txt"
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			block, rest, ok := strings.Cut(string(text), "---\n")
			if !ok {
				t.Fatal("no --- line")
			}
			v := testView()
			if file == "nodata" {
				v = nil
			}
			s := running(t, Options{Servers: servers(t, block)}, v)
			var got strings.Builder
			for line := range strings.Lines(rest) {
				switch {
				case strings.HasPrefix(line, "?"):
					f := strings.Fields(line)
					got.WriteString("\n" + line + render(ask(t, s, f[1], f[2])))
				case strings.HasPrefix(line, "#"):
					got.WriteString("\n" + line)
				}
			}
			if *update {
				if err := os.WriteFile(path, []byte(block+"---\n"+got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(rest, got.String()); diff != "" {
				t.Errorf("replies (-want +got):\n%s", diff)
			}
		})
	}
}

func testZoneOptions() zoneOptions {
	return zoneOptions{forward: plugin.Zones{"cluster.local."}, reverse: plugin.Zones{"in-addr.arpa.", "ip6.arpa."}, ttl: 5, pods: podsVerified}
}

// TestZoneIsWellFormed checks what holds for every zone.
func TestZoneIsWellFormed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		z := buildZone(drawView(t), testZoneOptions())
		for n := range z.names.all() {
			name := n.name
			if !strings.HasSuffix(name, ".") {
				continue // see spaceKey
			}
			if z.names.get(name) != n {
				t.Fatalf("%s is not found", name)
			}
			if z.origins.Match(name) == "" { // a static name
				continue
			}
			origin := z.origins.Match(name)
			if origin == "" || name != wire.CanonicalName(name) {
				t.Fatalf("%s is outside the zone or not canonical", name)
			}
			if off, end := wire.NextLabel(name, 0); name != origin && !end && z.names.get(name[off:]) == nil {
				t.Fatalf("%s exists but its parent does not (RFC 8020)", name)
			}
			if n.set(wire.TypeCNAME) != nil && n.shown > 1 {
				t.Fatalf("%s has a CNAME and other data", name)
			}
			for _, s := range n.sets[:n.shown] {
				a, ok := z.Lookup(name, s.qtype)
				if !ok || a.Rcode != wire.RcodeSuccess || len(a.Answer) == 0 {
					t.Fatalf("%s %s exists but is not found", name, wire.TypeToString[s.qtype])
				}
				for _, rr := range a.Answer {
					if ptr, ok := rr.(*wire.PTR); ok && !pointsBack(z, ptr) {
						t.Fatalf("%v has no address record that points back", ptr)
					}
				}
			}
			// A name that exists denies a type, never itself.
			if a, _ := z.Lookup(name, wire.TypeNAPTR); a.Rcode != wire.RcodeSuccess && n.set(wire.TypeCNAME) == nil {
				t.Fatalf("%s NAPTR: %s", name, wire.RcodeToString[a.Rcode])
			}
			if a, ok := z.Lookup("no-such-label."+name, wire.TypeA); ok && (a.Rcode != wire.RcodeNameError || len(a.Ns) != 1) {
				t.Fatalf("below %s: %s with %d SOA", name, wire.RcodeToString[a.Rcode], len(a.Ns))
			}
		}
	})
}

func pointsBack(z *Zone, ptr *wire.PTR) bool {
	for _, qtype := range []uint16{wire.TypeA, wire.TypeAAAA} {
		a, _ := z.Lookup(ptr.Ptr, qtype)
		for _, rr := range a.Answer {
			var ip netip.Addr
			switch rr := rr.(type) {
			case *wire.A:
				ip, _ = netip.AddrFromSlice(rr.A)
			case *wire.AAAA:
				ip, _ = netip.AddrFromSlice(rr.AAAA)
			}
			if plugin.ReverseName(ip) == ptr.Hdr.Name {
				return true
			}
		}
	}
	return false
}

// drawView makes a random view of few, clashing names and addresses.
func drawView(t *rapid.T) *state.View {
	return drawViewOf(t, "web", "db", "WEB", "svc", "pod", "_tcp", "10-0-0-1", "a.b", "", "bad name", "node")
}

func drawViewOf(t *rapid.T, names ...string) *state.View {
	name := rapid.SampledFrom(names)
	ip := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "six") {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: rapid.Byte().Draw(t, "byte") % 8})
		}
		return netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "byte") % 8})
	})
	v := state.View{Rev: rapid.Uint64().Draw(t, "rev"), Self: "n1"}
	var services []*state.ServiceView
	var endpoints []*state.EndpointView
	for range rapid.IntRange(0, 6).Draw(t, "services") {
		s := new(state.ServiceView)
		s.Namespace, s.Name = name.Draw(t, "ns"), name.Draw(t, "name")
		s.Headless = rapid.Bool().Draw(t, "headless")
		if rapid.IntRange(0, 4).Draw(t, "external") == 0 {
			s.External = name.Draw(t, "target") + ".example"
		}
		if rapid.Bool().Draw(t, "vip") {
			s.VIP = ip.Draw(t, "vip address")
		}
		for range rapid.IntRange(0, 2).Draw(t, "ports") {
			s.Ports = append(s.Ports, state.ServicePort{Name: name.Draw(t, "port"), Protocol: "tcp", Port: 80})
		}
		for range rapid.IntRange(0, 3).Draw(t, "backends") {
			b := state.BackendOf{Addr: ip.Draw(t, "backend"), Hostname: name.Draw(t, "host"), Ready: rapid.Bool().Draw(t, "ready")}
			b.Weight, b.Draining = uint16(rapid.IntRange(0, 2).Draw(t, "weight")), !b.Ready && rapid.Bool().Draw(t, "draining")
			for range s.Ports {
				b.Targets = append(b.Targets, rapid.Uint16().Draw(t, "target port"))
			}
			s.Backends = append(s.Backends, b)
		}
		slices.SortStableFunc(s.Backends, func(a, b state.BackendOf) int { return a.Addr.Compare(b.Addr) })
		services = append(services, s)
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "endpoints") {
		e := &state.EndpointView{Endpoint: &state.Endpoint{ID: fmt.Sprint("e", i)}}
		e.Namespace, e.Name = name.Draw(t, "ns"), name.Draw(t, "name")
		e.Addrs, e.Serving = []netip.Addr{ip.Draw(t, "address")}, rapid.Bool().Draw(t, "serving")
		endpoints = append(endpoints, e)
	}
	for range rapid.IntRange(0, 3).Draw(t, "names") {
		v.Names = append(v.Names, state.Name{
			Name:   name.Draw(t, "static") + rapid.SampledFrom([]string{"", ".cluster.local", ".web.svc.cluster.local"}).Draw(t, "zone"),
			Type:   rapid.SampledFrom([]string{"A", "CNAME"}).Draw(t, "type"),
			Target: rapid.SampledFrom([]string{"10.0.0.1", "web.web.svc.cluster.local"}).Draw(t, "data"),
		})
	}
	return state.NewView(v, endpoints, services)
}

func TestDashed(t *testing.T) {
	for _, s := range []string{"10.244.1.5", "2001:db8::1", "::1", "fd00::", "2001:db8:1:2:3:4:5:6", "1:2:3:4::"} {
		a := addr(s)
		d := dashed(a)
		if strings.HasPrefix(d, "-") || strings.HasSuffix(d, "-") {
			t.Errorf("dashed(%s) = %q is no host name", a, d)
		}
		if back, ok := parseDashed(d); !ok || back != a {
			t.Errorf("parseDashed(%q) = %v, %v, want %s", d, back, ok, a)
		}
	}
	for _, s := range []string{"web", "10-244-1", "10-244-1-256", "1-2-3-4-5", "fe80--1%eth0"} {
		if a, ok := parseDashed(s); ok {
			t.Errorf("parseDashed(%q) = %v, want none", s, a)
		}
	}
}

func TestReverseZones(t *testing.T) {
	tests := []struct{ prefix, want string }{
		{"10.0.0.0/8", "10.in-addr.arpa."},
		{"10.96.0.0/15", "96.10.in-addr.arpa. 97.10.in-addr.arpa."},
		{"0.0.0.0/0", "in-addr.arpa."},
		{"192.0.2.1/32", "1.2.0.192.in-addr.arpa."},
		{"2001:db8::/32", "8.b.d.0.1.0.0.2.ip6.arpa."},
		{"2001:db8::/31", "8.b.d.0.1.0.0.2.ip6.arpa. 9.b.d.0.1.0.0.2.ip6.arpa."},
	}
	for _, tt := range tests {
		zs, err := plugin.ParseZone(tt.prefix)
		if got := strings.Join(zs, " "); err != nil || got != tt.want {
			t.Errorf("plugin.ParseZone(%s) = %s, %v, want %s", tt.prefix, got, err, tt.want)
		}
	}
}

func TestInZone(t *testing.T) {
	names := []string{".", "org.", "example.org.", "an-example.org.", "a.example.org.", `a\.example.org.`, `a\\.example.org.`, `a\\\.example.org.`, `\046example.org.`}
	for _, zone := range []string{".", "org.", "example.org.", "a.example.org."} {
		for _, name := range names {
			if got, want := plugin.InZone(zone, name), wire.IsSubDomain(zone, name); got != want {
				t.Errorf("plugin.InZone(%s, %s) = %v, want %v", zone, name, got, want)
			}
		}
	}
}
