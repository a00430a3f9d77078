package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	wire "github.com/miekg/dns"
	"pgregory.net/rapid"

	"nodenet/dns/plugin"
	"nodenet/state"
)

const plain = `. {
    cluster
    nsid node1
    chaos v1 somebody
}
`

// TestProtocol covers the probes of RFC 8906 section 8 and what clients
// rely on in the header.
func TestProtocol(t *testing.T) {
	s := running(t, Options{Servers: servers(t, plain)}, testView())
	question := func(name, qtype string) *wire.Msg {
		m := new(wire.Msg)
		m.SetQuestion(name, wire.StringToType[qtype])
		m.RecursionDesired = false
		return m
	}
	edns := func(m *wire.Msg, version uint8, opts ...wire.EDNS0) *wire.Msg {
		m.SetEdns0(4096, false)
		m.IsEdns0().SetVersion(version)
		m.IsEdns0().Option = opts
		return m
	}
	with := func(m *wire.Msg, f func(*wire.Msg)) *wire.Msg { f(m); return m }
	soa := func() *wire.Msg { return question("cluster.local.", "SOA") }
	tests := []struct {
		name  string
		m     *wire.Msg
		rcode int
		check func(r *wire.Msg) bool
	}{
		{"plain", soa(), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return r.Authoritative && len(r.Answer) == 1 && r.IsEdns0() == nil && !r.RecursionDesired && !r.RecursionAvailable
		}},
		{"unknown type", with(soa(), func(m *wire.Msg) { m.Question[0].Qtype = 1000 }), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return r.Authoritative && len(r.Answer) == 0 && len(r.Ns) == 1
		}},
		{"AD and Z in the query", with(soa(), func(m *wire.Msg) { m.AuthenticatedData, m.Zero = true, true }), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return !r.AuthenticatedData && !r.Zero
		}},
		{"CD and RD are echoed", with(soa(), func(m *wire.Msg) { m.CheckingDisabled, m.RecursionDesired = true, true }), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return r.CheckingDisabled && r.RecursionDesired
		}},
		{"edns", edns(soa(), 0), wire.RcodeSuccess, func(r *wire.Msg) bool {
			o := r.IsEdns0()
			return o != nil && o.Version() == 0 && o.UDPSize() == 1232 && !o.Do() && len(o.Option) == 0
		}},
		{"edns version 1", edns(soa(), 1), wire.RcodeBadVers, func(r *wire.Msg) bool {
			o := r.IsEdns0()
			return o != nil && o.Version() == 0 && len(r.Answer)+len(r.Ns) == 0
		}},
		{"unknown option", edns(soa(), 0, &wire.EDNS0_LOCAL{Code: 100, Data: []byte{1}}), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return len(r.IsEdns0().Option) == 0
		}},
		{"version 1 and unknown option", edns(soa(), 1, &wire.EDNS0_LOCAL{Code: 100}), wire.RcodeBadVers, func(r *wire.Msg) bool {
			return len(r.IsEdns0().Option) == 0
		}},
		{"DO is echoed", with(edns(soa(), 0), func(m *wire.Msg) { m.IsEdns0().SetDo() }), wire.RcodeSuccess, func(r *wire.Msg) bool { return r.IsEdns0().Do() }},
		{"edns flags that must be zero", with(edns(soa(), 0), func(m *wire.Msg) { m.IsEdns0().SetZ(0x3FFF) }), wire.RcodeSuccess, func(r *wire.Msg) bool { return r.IsEdns0().Z() == 0 }},
		{"two OPT", with(edns(soa(), 0), func(m *wire.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), wire.RcodeFormatError, nil},
		{"nsid", edns(soa(), 0, &wire.EDNS0_NSID{Code: wire.EDNS0NSID}), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return len(r.IsEdns0().Option) == 1 && r.IsEdns0().Option[0].String() == fmt.Sprintf("%x", "node1")
		}},
		{"opcode 15", with(soa(), func(m *wire.Msg) { m.Opcode = 15 }), wire.RcodeNotImplemented, func(r *wire.Msg) bool { return r.Opcode == 15 }},
		{"notify", with(soa(), func(m *wire.Msg) { m.Opcode = wire.OpcodeNotify }), wire.RcodeNotImplemented, nil},
		{"no question", new(wire.Msg), wire.RcodeFormatError, nil},
		{"transfer", question("cluster.local.", "AXFR"), wire.RcodeRefused, nil},
		{"any", question("cluster.local.", "ANY"), wire.RcodeSuccess, func(r *wire.Msg) bool { return len(r.Answer) == 1 && r.Answer[0].Header().Rrtype == wire.TypeHINFO }},
		{"chaos", with(question("version.bind.", "TXT"), func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return r.Answer[0].(*wire.TXT).Txt[0] == "v1"
		}},
		{"class HS", with(soa(), func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassHESIOD }), wire.RcodeRefused, nil},
		{"nobody answers", edns(question("example.org.", "A"), 0), wire.RcodeRefused, func(r *wire.Msg) bool {
			e, ok := r.IsEdns0().Option[0].(*wire.EDNS0_EDE)
			return ok && e.InfoCode == wire.ExtendedErrorCodeNotAuthoritative
		}},
		{"question's letters", question("CLUSTER.local.", "SOA"), wire.RcodeSuccess, func(r *wire.Msg) bool {
			return r.Question[0].Name == "CLUSTER.local." && r.Answer[0].Header().Name == "CLUSTER.local."
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.m.Id = 4711
			r := send(t, s, tt.m)
			if r.Id != 4711 || !r.Response || r.Rcode != tt.rcode {
				t.Errorf("id %d, response %v, rcode %s, want %s", r.Id, r.Response, wire.RcodeToString[r.Rcode], wire.RcodeToString[tt.rcode])
			} else if tt.check != nil && !tt.check(r) {
				t.Errorf("unexpected reply:\n%v", r)
			}
		})
	}
	t.Run("a response is not answered", func(t *testing.T) {
		m := soa()
		m.Response = true
		if r, err := s.Query(context.Background(), m, client, false); err == nil {
			t.Errorf("reply %v", r)
		}
	})
}

func TestPanicIsServfail(t *testing.T) {
	s := running(t, Options{Servers: servers(t, plain)}, testView())
	b := s.live.Load().blocks[0]
	panicking := &block{server: b.server, keys: b.keys, zones: b.zones, chain: func(context.Context, *plugin.Query) (*wire.Msg, error) { panic("oops") }}
	m := new(wire.Msg)
	m.SetQuestion("cluster.local.", wire.TypeSOA)
	r := new(wire.Msg)
	packed := s.answer(context.Background(), &table{zones: map[string][]*block{".": {panicking}}}, m, client, false)
	if err := r.Unpack(packed); err != nil || r.Rcode != wire.RcodeServerFailure {
		t.Errorf("reply %v, %v", r, err)
	}
}

// bigView has a headless service of n backends.
func bigView(n int) *state.View {
	s := &state.ServiceView{Service: state.Service{Namespace: "a", Name: "big", Headless: true, Ports: []state.ServicePort{{Name: "p", Protocol: "tcp", Port: 1}}}}
	for i := range n {
		s.Backends = append(s.Backends, state.BackendOf{
			Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Targets: []uint16{1}, Ready: true,
			Hostname: fmt.Sprintf("backend-%d", i),
		})
	}
	return state.NewView(state.View{Rev: 1}, nil, []*state.ServiceView{s})
}

// TestTruncation: replies never exceed what the client takes; TC says that
// answers are missing and nothing else.
func TestTruncation(t *testing.T) {
	const most = 120
	s := running(t, Options{Servers: servers(t, plain)}, bigView(most))
	rapid.Check(t, func(t *rapid.T) {
		m := new(wire.Msg)
		qtype := rapid.SampledFrom([]uint16{wire.TypeA, wire.TypeSRV, wire.TypeAAAA}).Draw(t, "type")
		m.SetQuestion(rapid.SampledFrom([]string{"big.a.svc.cluster.local.", "backend-7.big.a.svc.cluster.local."}).Draw(t, "name"), qtype)
		size, tcp := 512, rapid.Bool().Draw(t, "tcp")
		if rapid.Bool().Draw(t, "edns") {
			n := rapid.Uint16Range(0, 8000).Draw(t, "size")
			m.SetEdns0(n, false)
			size = min(max(512, int(n)), 1232)
		}
		if tcp {
			size = wire.MaxMsgSize
		}
		packed := s.answer(context.Background(), s.live.Load().main, m, client, tcp)
		r := new(wire.Msg)
		if err := r.Unpack(packed); err != nil {
			t.Fatal(err)
		}
		if len(packed) > size {
			t.Fatalf("%d bytes for a client that takes %d", len(packed), size)
		}
		full := new(wire.Msg)
		if err := full.Unpack(s.answer(context.Background(), s.live.Load().main, m, client, true)); err != nil {
			t.Fatal(err)
		}
		if missing := len(r.Answer) < len(full.Answer); missing != r.Truncated {
			t.Fatalf("%d of %d answers, truncated %v", len(r.Answer), len(full.Answer), r.Truncated)
		}
		if r.Truncated && len(r.Answer) == 0 {
			t.Fatalf("nothing left of %d answers in %d bytes", len(full.Answer), size)
		}
		if len(full.Ns) != len(r.Ns) {
			t.Fatalf("the SOA of a negative answer is missing")
		}
		if (m.IsEdns0() != nil) != (r.IsEdns0() != nil) {
			t.Fatal("OPT in only one of query and reply")
		}
	})
}

// TestBlockChoice: the longest zone wins, for each port by itself.
func TestBlockChoice(t *testing.T) {
	text := `. {
    hosts testdata/none {
        192.0.2.1 a.example b.sub.example other
    }
}
sub.example {
    hosts testdata/none {
        192.0.2.2 b.sub.example
    }
}
sub.example:1053 {
    hosts testdata/none {
        192.0.2.3 b.sub.example
    }
}
`
	s := running(t, Options{Servers: servers(t, text)}, nil)
	for name, want := range map[string]string{
		"a.example": "192.0.2.1", "b.sub.example": "192.0.2.2", "other": "192.0.2.1",
		"x.sub.example": "NXDOMAIN", "subs.example": "NXDOMAIN",
	} {
		if got := answers(ask(t, s, name, "A")); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	text := `. {
    hosts testdata/hosts {
        192.168.1.20 extra.example
        ttl 60
        fallthrough later.example
    }
    whoami
}
`
	s := running(t, Options{Servers: servers(t, text)}, nil)
	tests := []struct{ name, qtype, want string }{
		{"web", "A", "192.168.1.10"},
		{"web", "AAAA", "2001:db8::10"},
		{"WEB.example.org", "A", "192.168.1.10"},
		{"db", "AAAA", "NOERROR"},
		{"extra.example", "A", "192.168.1.20"},
		{"scoped", "AAAA", "fe80::1"},
		{"nobody", "A", "NXDOMAIN"},
		{"x.later.example", "A", client.Addr().String()},
		{"10.1.168.192.in-addr.arpa", "PTR", "target.example.org. web. web.example.org."},
		{"99.1.168.192.in-addr.arpa", "A", client.Addr().String()},
	}
	for _, tt := range tests {
		if got := answers(ask(t, s, tt.name, tt.qtype)); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.name, tt.qtype, got, tt.want)
		}
	}
	r := ask(t, s, "db", "AAAA")
	if len(r.Ns) != 1 || !strings.HasPrefix(r.Ns[0].String(), "db.\t30\tIN\tSOA") {
		t.Errorf("NODATA without a SOA of its own: %v", r.Ns)
	}
}

func TestLoadbalance(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ". {\n cluster\n loadbalance\n}\n")}, bigView(3))
	first := make(map[string]bool)
	for range 200 {
		r := ask(t, s, "big.a.svc.cluster.local", "A")
		if len(r.Answer) != 3 {
			t.Fatalf("%d answers", len(r.Answer))
		}
		first[r.Answer[0].(*wire.A).A.String()] = true
	}
	if len(first) != 3 {
		t.Errorf("first addresses %v, want all three", first)
	}
}

func FuzzQuery(f *testing.F) {
	s := running(f, Options{Servers: servers(f, ".:53 {\n errors\n log\n loadbalance\n cache\n cluster {\n pods insecure\n }\n loop\n whoami\n}\n")}, testView())
	for _, q := range []string{"web-service.apps.svc.cluster.local. A", "db.data.svc.cluster.local. SRV", "188.37.107.10.in-addr.arpa. PTR", ". NS", "a\\.b.cluster.local. TXT"} {
		name, qtype, _ := strings.Cut(q, " ")
		m := new(wire.Msg)
		m.SetQuestion(name, wire.StringToType[qtype])
		m.SetEdns0(1232, true)
		raw, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		m := new(wire.Msg)
		if m.Unpack(raw) != nil {
			return
		}
		packed := s.answer(context.Background(), s.live.Load().main, m, client, tcp)
		if packed == nil {
			if !m.Response {
				t.Fatalf("no reply to\n%v", m)
			}
			return
		}
		if !tcp && len(packed) > 1232 {
			t.Fatalf("reply of %d bytes", len(packed))
		}
		r := new(wire.Msg)
		if err := r.Unpack(packed); err != nil {
			t.Fatalf("reply does not parse: %v", err)
		}
		if r.Id != m.Id || !r.Response || s.metrics.panics.Load() > 0 {
			t.Fatalf("bad reply\n%v", r)
		}
	})
}

// stub resolves like libc: names with fewer dots than ndots go through the
// search list first.
func stub(t testing.TB, s *Server, name string, search []string) string {
	var list []string
	if !strings.HasSuffix(name, ".") {
		for _, d := range search {
			list = append(list, name+"."+d)
		}
	}
	for _, n := range append(list, name) {
		if r := ask(t, s, n, "A"); len(r.Answer) > 0 {
			r.Answer = slices.DeleteFunc(r.Answer, func(rr wire.RR) bool { return rr.Header().Rrtype == wire.TypeCNAME })
			return answers(r)
		}
	}
	return "none"
}

// TestWorkloadSearch is lab 21: what a workload finds by which name.
func TestWorkloadSearch(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ". {\n cluster {\n pods insecure\n }\n}\n")}, testView())
	tests := []struct{ namespace, name, want string }{
		{"default", "web-service", "none"},
		{"default", "web-service.apps", "10.107.37.188"},
		{"default", "web-service.apps.svc", "10.107.37.188"},
		{"default", "web-service.apps.svc.cluster.local", "10.107.37.188"},
		{"default", "web-service.apps.svc.cluster.local.", "10.107.37.188"},
		{"apps", "web-service", "10.107.37.188"},
		{"default", "10-244-2-5.apps.pod", "10.244.2.5"},
		{"default", "10-244-2-5.apps.pod.cluster.local", "10.244.2.5"},
		{"apps", "10-244-2-5", "none"},
	}
	for _, tt := range tests {
		_, search, _ := WorkloadConfig("cluster.local", tt.namespace, addr("10.96.0.10"), nil)
		if got := stub(t, s, tt.name, search); got != tt.want {
			t.Errorf("%s from %s: %s, want %s", tt.name, tt.namespace, got, tt.want)
		}
	}
}

// TestSwap: while data, addresses and queries come at the same time, every
// answer is that of some revision.
func TestSwap(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ". {\n cache\n cluster\n loadbalance\n}\n")}, testView())
	done := make(chan struct{})
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got := answers(ask(t, s, "web-service.apps.svc.cluster.local", "A")); got != "10.107.37.188" && got != "10.107.37.189" {
					t.Errorf("answer %s", got)
					return
				}
			}
		})
	}
	for i := range 50 {
		v := testView()
		v.Rev = uint64(100 + i)
		if i%2 == 1 {
			v.Service("apps/web-service").VIP = addr("10.107.37.189")
		}
		s.Set(v)
		s.SetAddrs(nil)
		waitFor(t, "the revision", func() bool { return s.Status().Applied == v.Rev })
	}
	close(done)
	clients.Wait()
}
