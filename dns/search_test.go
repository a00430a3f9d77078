package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	wire "github.com/miekg/dns"
	"pgregory.net/rapid"

	"nodenet/state"
)

// searchBlock has the rest of the world in hosts and a zone file.
const searchBlock = `. {
	errors
	cache 30
	hosts testdata/none {
		192.0.2.80 www.example.org
		2001:db8::80 six.example.org
		192.0.2.81 printer
		192.0.2.82 db.data
		192.0.2.83 node.cluster.local
		fallthrough
	}
	cluster cluster.local in-addr.arpa {
		pods insecure
		fallthrough in-addr.arpa
	}
	template IN ANY broken {
		rcode SERVFAIL
	}
	file testdata/root.zone .
}
`

// askFrom sends a question of a client through the chain, and through the
// packed path when that answers: both must say the same.
func askFrom(t testing.TB, s *Server, from, name, qtype string) *wire.Msg {
	t.Helper()
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(name), wire.StringToType[qtype])
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	a := netip.AddrPortFrom(addr(from), 40000)
	var out [defaultBufsize]byte
	r := &responder{now: time.Now(), turn: 1}
	r.clients, r.client = s.clients.Load(), a.Addr()
	n := r.respond(s.live.Load().main, q, out[:])
	want := s.answerPacket(context.Background(), s.live.Load().main, q, a, "udp")
	reply, fast := new(wire.Msg), new(wire.Msg)
	if err := reply.Unpack(want); err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		return reply
	}
	if err := fast.Unpack(out[:n]); err != nil {
		t.Fatal(err)
	}
	if got, want := render(ageless(fast)), render(ageless(reply)); got != want {
		t.Fatalf("%s %s from %s: packed path %s, chain %s", name, qtype, from, got, want)
	}
	return reply
}

// ageless is a message whose records do not show how old they are.
func ageless(m *wire.Msg) *wire.Msg {
	m = m.Copy()
	for _, rrs := range [][]wire.RR{m.Answer, m.Ns} {
		for _, rr := range rrs {
			rr.Header().Ttl = 0
		}
	}
	return m
}

// brief writes an answer as "name → name address"; or its code.
func brief(m *wire.Msg) string {
	var b strings.Builder
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *wire.CNAME:
			fmt.Fprintf(&b, "→ %s ", rr.Target)
		case *wire.A:
			fmt.Fprintf(&b, "%s ", rr.A)
		case *wire.AAAA:
			fmt.Fprintf(&b, "%s ", rr.AAAA)
		}
	}
	code := wire.RcodeToString[m.Rcode]
	if m.Rcode == wire.RcodeSuccess && !hasAddress(m) {
		code = "NODATA"
	}
	if code != "NOERROR" {
		b.WriteString(code)
	}
	return strings.TrimSpace(b.String())
}

// Clients of testView.
const (
	fromDefault = "10.244.1.5"
	fromApps    = "10.244.1.9"
	fromNowhere = "198.51.100.1"
)

func TestSearch(t *testing.T) {
	s := running(t, Options{Servers: servers(t, searchBlock)}, testView())
	tests := []struct{ name, from, question, a, aaaa string }{
		{"in its namespace", fromApps, "web-service.apps.svc.cluster.local", "10.107.37.188", "NODATA"},
		{"in another one", fromDefault, "web-service.apps.default.svc.cluster.local", "→ web-service.apps.svc.cluster.local. 10.107.37.188", "→ web-service.apps.svc.cluster.local. NODATA"},
		{"with svc", fromDefault, "web-service.apps.svc.default.svc.cluster.local", "→ web-service.apps.svc.cluster.local. 10.107.37.188", "→ web-service.apps.svc.cluster.local. NODATA"},
		{"the whole name", fromDefault, "web-service.apps.svc.cluster.local.default.svc.cluster.local", "→ web-service.apps.svc.cluster.local. 10.107.37.188", "→ web-service.apps.svc.cluster.local. NODATA"},
		{"outside", fromApps, "www.example.org.apps.svc.cluster.local", "→ www.example.org. 192.0.2.80", "→ www.example.org. NODATA"},
		{"outside, the other family", fromApps, "six.example.org.apps.svc.cluster.local", "→ six.example.org. NODATA", "→ six.example.org. 2001:db8::80"},
		{"a service that is not there", fromApps, "printer.apps.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"an endpoint that is not there", fromApps, "printer.web-service.apps.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"nowhere", fromApps, "no.example.org.apps.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"nobody can tell", fromApps, "x.broken.apps.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"without data anywhere", fromDefault, "waiting.apps.default.svc.cluster.local", "→ waiting.apps.svc.cluster.local. NODATA", "→ waiting.apps.svc.cluster.local. NODATA"},
		{"an alias", fromDefault, "inside.apps.default.svc.cluster.local", "→ inside.apps.svc.cluster.local. → web-service.apps.svc.cluster.local. 10.107.37.188", "→ inside.apps.svc.cluster.local. → web-service.apps.svc.cluster.local. NODATA"},
		{"a dangling alias is no name", fromDefault, "lost.apps.default.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"without an address yet", fromApps, "waiting.apps.svc.cluster.local", "NODATA", "NODATA"},
		{"another suffix", fromApps, "www.example.org.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"the last suffix", fromApps, "www.example.org.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"another's namespace", fromApps, "www.example.org.default.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},
		{"the suffix itself", fromApps, "apps.svc.cluster.local", "NODATA", "NODATA"},
		{"no client of ours", fromNowhere, "www.example.org.apps.svc.cluster.local", "NXDOMAIN", "NXDOMAIN"},

		{"bare", fromApps, "web-service", "→ web-service.apps.svc.cluster.local. 10.107.37.188", "→ web-service.apps.svc.cluster.local. NODATA"},
		{"bare, no client of ours", fromNowhere, "web-service", "NXDOMAIN", "NXDOMAIN"},
		{"bare, in hosts", fromApps, "node", "→ node.cluster.local. 192.0.2.83", "→ node.cluster.local. NODATA"},
		{"bare, outside", fromApps, "printer", "192.0.2.81", "NODATA"},
		{"bare, the other family", fromDefault, "six", "→ six.default.svc.cluster.local. NODATA", "→ six.default.svc.cluster.local. 2001:db8:96::1"},
		{"bare, a namespace", fromApps, "data", "NXDOMAIN", "NXDOMAIN"},
		{"longer", fromDefault, "web-service.apps", "→ web-service.apps.svc.cluster.local. 10.107.37.188", "→ web-service.apps.svc.cluster.local. NODATA"},
		{"longer, as it is comes first", fromDefault, "db.data", "192.0.2.82", "NODATA"},
		{"longer, nowhere", fromDefault, "a.b.c", "NXDOMAIN", "NXDOMAIN"},
		{"a failure is not completed", fromDefault, "x.broken", "SERVFAIL", "SERVFAIL"},
		{"the root", fromApps, ".", "NODATA", "NODATA"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // the second time with what caches have learnt
				got := []string{brief(askFrom(t, s, tt.from, tt.question, "A")), brief(askFrom(t, s, tt.from, tt.question, "AAAA"))}
				if diff := cmp.Diff([]string{tt.a, tt.aaaa}, got); diff != "" {
					t.Errorf("%s from %s (-want +got):\n%s", tt.question, tt.from, diff)
				}
			}
		})
	}
	if r := askFrom(t, s, fromApps, "www.example.org.apps.svc.cluster.local", "MX"); r.Rcode != wire.RcodeNameError {
		t.Errorf("another type: %s", render(r))
	}
}

// TestSearchRecords: the alias is ours and as short-lived as the cluster's
// names, whatever it leads to.
func TestSearchRecords(t *testing.T) {
	s := running(t, Options{Servers: servers(t, searchBlock)}, testView())
	got := render(askFrom(t, s, fromApps, "www.example.org.apps.svc.cluster.local", "A"))
	want := "NOERROR aa\nwww.example.org. 3600 IN A 192.0.2.80\nwww.example.org.apps.svc.cluster.local. 5 IN CNAME www.example.org.\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// TestSearchKept: an answer is given again in the receive loop, to clients of
// its namespace alone and only while the cluster is the same. What the node
// knows from elsewhere is looked up each time.
func TestSearchKept(t *testing.T) {
	up := answering(t)
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(". {\n cache 30\n hosts testdata/none {\n 192.0.2.7 held.example.org\n fallthrough\n}\n cluster cluster.local\n forward . %s\n}\n", up))}, testView())
	tab := s.live.Load().main
	packed := func(from, name string) string {
		m := new(wire.Msg)
		m.SetQuestion(name, wire.TypeA)
		q, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		r := &responder{now: time.Now(), turn: 1}
		r.clients, r.client = s.clients.Load(), addr(from)
		var out [defaultBufsize]byte
		n := r.respond(tab, q, out[:])
		if n == 0 {
			s.answerPacket(t.Context(), tab, q, netip.AddrPortFrom(addr(from), 40000), "udp")
			return "chain"
		}
		if err := m.Unpack(out[:n]); err != nil {
			t.Fatal(err)
		}
		return brief(m)
	}
	const outside, gone, held, inside = "two.example.org.apps.svc.cluster.local.", "missing.example.org.apps.svc.cluster.local.", "held.example.org.apps.svc.cluster.local.", "db.data.apps.svc.cluster.local."
	for _, name := range []string{outside, gone, held, inside} {
		if got := packed(fromApps, name); got != "chain" {
			t.Errorf("%s: %s before anybody has asked", name, got)
		}
	}
	for name, want := range map[string]string{
		outside: "→ two.example.org. ", gone: "NXDOMAIN", held: "chain", inside: "→ db.data.svc.cluster.local. ",
	} {
		if got := packed(fromApps, name); !strings.HasPrefix(got, want) {
			t.Errorf("%s again: %s, want %s", name, got, want)
		}
		for _, from := range []string{fromDefault, fromNowhere} {
			if got := packed(from, name); got != "NXDOMAIN" {
				t.Errorf("%s from %s: %s", name, from, got)
			}
		}
	}
	v := testView()
	v.Rev = 8
	s.Set(v)
	waitFor(t, "the next view", func() bool { return s.Status().Applied == 8 })
	for _, name := range []string{outside, gone, held, inside} {
		if got := packed(fromApps, name); got != "chain" {
			t.Errorf("%s: %s although the cluster has changed", name, got)
		}
	}
}

func TestSearchOff(t *testing.T) {
	const block = ". {\n %s\n cluster\n hosts testdata/none {\n 192.0.2.80 www.example.org\n fallthrough\n }\n}\n"
	const question = "www.example.org.apps.svc.cluster.local"
	view := func(change func(v *state.View, e *state.EndpointView)) *state.View {
		old := testView()
		v := state.View{Rev: old.Rev, Self: old.Self, Nodes: old.Nodes, Networks: slices.Clone(old.Networks)}
		var es []*state.EndpointView
		for e := range old.Endpoints() {
			if e.Addrs[0] == addr(fromApps) {
				c, p := *e, *e.Endpoint
				c.Endpoint = &p
				e = &c
				change(&v, e)
			}
			es = append(es, e)
		}
		return state.NewView(v, es, slices.Collect(old.Services()))
	}
	const on = "→ www.example.org. 192.0.2.80"
	tests := []struct {
		name, directive, want string
		change                func(v *state.View, e *state.EndpointView)
	}{
		{"by default", "", on, nil},
		{"directive", "search off", "NXDOMAIN", nil},
		{"directive on", "search", on, nil},
		{"with a zone", "search cluster.local", on, nil},
		{"another zone", "search example.net", "NXDOMAIN", nil},
		{"autopath instead", "autopath @cluster", on, nil},
		{"network", "", "NXDOMAIN", func(v *state.View, _ *state.EndpointView) { v.Networks[1].NoSearch = true }},
		{"endpoint", "", "NXDOMAIN", func(_ *state.View, e *state.EndpointView) { e.Labels = map[string]string{searchLabel: "off"} }},
		{"other label", "", on, func(_ *state.View, e *state.EndpointView) { e.Labels = map[string]string{searchLabel: "on"} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change == nil {
				tt.change = func(*state.View, *state.EndpointView) {}
			}
			s := running(t, Options{Servers: servers(t, fmt.Sprintf(block, tt.directive))}, view(tt.change))
			if got := brief(askFrom(t, s, fromApps, question, "A")); got != tt.want {
				t.Errorf("%s: %s, want %s", question, got, tt.want)
			}
		})
	}
	for directive, want := range map[string]string{
		"search 10.0.0.0/8": "is not the zone of a search path",
		"search a b":        "wrong number of arguments",
	} {
		if err := Validate(servers(t, fmt.Sprintf(block, directive))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", directive, err, want)
		}
	}
	if err := Validate(servers(t, ". {\n search\n whoami\n}\n")); err == nil {
		t.Error("search without a zone is accepted")
	}
}

// TestSearchIsTheWalk: the answer to the first question of a path is what the
// client would have found by walking it, in random clusters.
func TestSearchIsTheWalk(t *testing.T) {
	labels := []string{"a", "b", "c"}
	rapid.Check(t, func(rt *rapid.T) {
		pick := func(what string) string { return rapid.SampledFrom(labels).Draw(rt, what) }
		var services []*state.ServiceView
		for range rapid.IntRange(0, 6).Draw(rt, "services") {
			sv := &state.ServiceView{Service: state.Service{Namespace: pick("ns"), Name: pick("name")}}
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0:
				sv.VIP = addr("10.96.0.7")
			case 1:
				sv.VIP = addr("2001:db8::7")
			case 2: // no address yet
			case 3:
				sv.External = pick("to") + "." + pick("to ns") + ".svc.cluster.local"
			case 4:
				sv.Headless = true
				sv.Backends = []state.BackendOf{{Addr: addr("10.244.0.9"), Ready: rapid.Bool().Draw(rt, "ready"), Hostname: pick("host")}}
			}
			services = append(services, sv)
		}
		var names []state.Name
		for range rapid.IntRange(0, 3).Draw(rt, "names") {
			name := pick("static")
			for range rapid.IntRange(0, 3).Draw(rt, "labels") {
				name += "." + pick("static")
			}
			if rapid.Bool().Draw(rt, "in the zone") {
				name += ".cluster.local"
			}
			names = append(names, state.Name{Name: name, Type: "A", Target: "192.0.2.1"})
		}
		ns := pick("client")
		e := &state.EndpointView{Endpoint: &state.Endpoint{ID: "e", Namespace: ns, Network: "pods", Addrs: []netip.Addr{addr(fromApps)}}, Owner: "n1", Serving: true}
		v := state.NewView(state.View{Rev: 1, Self: "n1", Names: names}, []*state.EndpointView{e}, services)

		block := ". {\n%s\n hosts testdata/none {\n 192.0.2.8 a.b\n 2001:db8::8 c\n fallthrough\n }\n cluster cluster.local\n file testdata/root.zone .\n}\n"
		with := offline(t, fmt.Sprintf(block, ""), v)
		plain := offline(t, fmt.Sprintf(block, "search off"), v)
		_, search, _ := WorkloadConfig("cluster.local", ns, netip.Addr{}, nil)
		name := pick("asked")
		for range rapid.IntRange(0, 4).Draw(rt, "asked labels") {
			name += "." + rapid.SampledFrom(append([]string{"svc", "cluster", "local"}, labels...)).Draw(rt, "asked")
		}
		// What a client that walks finds: the first name with an address of
		// either family (getaddrinfo(3) asks for both).
		// A step that fails, as an external name that leads to itself does, it
		// leaves out; the answer to the first question says nothing then.
		walked, broken := [2]string{}, false
		fails := func(m *wire.Msg) bool {
			return m.Rcode != wire.RcodeSuccess && m.Rcode != wire.RcodeNameError
		}
		for _, suffix := range append(search, "") {
			full := strings.TrimSuffix(name+"."+suffix, ".")
			r4, r6 := askFrom(t, plain, fromApps, full, "A"), askFrom(t, plain, fromApps, full, "AAAA")
			broken = broken || fails(r4) || fails(r6)
			if hasAddress(r4) || hasAddress(r6) {
				walked = [2]string{addressesOf(r4), addressesOf(r6)}
				break
			}
		}
		// Names of services and of what is below them are not completed.
		first, last := name+"."+search[0], name[strings.LastIndexByte(name, '.')+1:]
		above := askFrom(t, plain, fromApps, last+"."+search[0], "A")
		service := above.Rcode != wire.RcodeNameError || len(above.Answer) > 0
		r4, r6 := askFrom(t, with, fromApps, first, "A"), askFrom(t, with, fromApps, first, "AAAA")
		want := walked
		if broken {
			want = [2]string{}
		}
		if got := [2]string{addressesOf(r4), addressesOf(r6)}; got != want && last != name && !service {
			rt.Fatalf("%s: %v, walking finds %v\n%s\n%s", first, got, walked, render(r4), render(r6))
		}
		if r4.Rcode != r6.Rcode {
			rt.Fatalf("%s: A %s, AAAA %s", first, render(r4), render(r6))
		}
		if len(strings.Split(name, ".")) > 2 && (last == ns || strings.HasSuffix(name, "."+ns+".svc")) {
			return // one of its questions is the first one of the name without these labels
		}
		// And when a client goes on walking, whatever it hears, it finds the same.
		again := [2]string{}
		for _, suffix := range append(search, "") {
			full := strings.TrimSuffix(name+"."+suffix, ".")
			r4, r6 := askFrom(t, with, fromApps, full, "A"), askFrom(t, with, fromApps, full, "AAAA")
			if hasAddress(r4) || hasAddress(r6) {
				again = [2]string{addressesOf(r4), addressesOf(r6)}
				break
			}
		}
		if again != walked {
			rt.Fatalf("%s: walking with search finds %v, without %v", name, again, walked)
		}
	})
}

func addressesOf(m *wire.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *wire.A:
			out = append(out, rr.A.String())
		case *wire.AAAA:
			out = append(out, rr.AAAA.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// offline is a server without sockets whose data is v.
func offline(t testing.TB, text string, v *state.View) *Server {
	t.Helper()
	s, err := New(Options{Servers: servers(t, text)})
	if err != nil {
		t.Fatal(err)
	}
	s.Set(v)
	s.derive()
	return s
}
