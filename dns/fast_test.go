package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// packedBlock is a block whose chain is that of the default Nodefile without
// rotation and upstream.
const packedBlock = `. {
	errors
	cache 30
	hosts testdata/none {
		192.0.2.9 host.cluster.local
		fallthrough
	}
	cluster cluster.local in-addr.arpa ip6.arpa {
		pods verified
		fallthrough in-addr.arpa ip6.arpa
	}
	whoami
}
`

// beside are questions of a batch, the third of which is left to others.
var beside = []string{
	"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03Web\x04apps\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01",
	"too short", "",
	"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01",
	"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07cluster\x05local\x00\x00\x01\x00\x01",
}

// both asks the packed path and the chain. ok: the packed path answered.
func both(t testing.TB, s *Server, r *responder, query []byte) (ok bool) {
	t.Helper()
	tab := s.live.Load().main
	asked := string(query)
	var out [defaultBufsize]byte
	r.now, r.clients, r.client = time.Now(), s.clients.Load(), client.Addr()
	turn := r.turn
	n := r.respond(tab, query, out[:])
	if string(query) != asked {
		t.Fatalf("the query was changed: %x to %x", asked, query)
	}
	// The same among others, which the loop has looked at before.
	var ahead [defaultBufsize]byte
	r.turn = turn
	r.warm(tab, len(beside), func(i int) []byte {
		if i == len(beside)/2 {
			return query
		}
		return []byte(beside[i])
	})
	r.recall(len(beside) / 2)
	if m := r.respond(tab, query, ahead[:]); string(ahead[:m]) != string(out[:n]) {
		t.Fatalf("query %x\nalone   %x\nin a batch %x", query, out[:n], ahead[:m])
	}
	r.warm(nil, 0, nil)
	if n == 0 {
		return false
	}
	want := s.answerPacket(context.Background(), tab, query, client, "udp")
	if string(want) != string(out[:n]) {
		var a, b wire.Msg
		t.Fatalf("query %x\npacked %x %v\n%v\nchain  %x %v\n%v", query, out[:n], a.Unpack(out[:n]), &a, want, b.Unpack(want), &b)
	}
	return true
}

// zoneNames are all names of a server's zones and some that are not there.
func zoneNames(s *Server) (out []string) {
	for _, b := range s.live.Load().blocks {
		for _, p := range b.plugins {
			if c, ok := p.Plugin.(*cluster); ok {
				for n := range c.zone.Load().names.all() {
					if strings.HasSuffix(n.name, ".") {
						out = append(out, n.name, "no-such."+n.name)
					}
				}
			}
		}
	}
	return append(out, ".", "org.", "example.org.", "host.cluster.local.", "x.dns.cluster.local.", "dns.cluster.local.",
		"a.hostmaster.cluster.local.", "xdns.cluster.local.", "10-244-1-9.apps.pod.cluster.local.", "10-244-1-77.apps.pod.cluster.local.",
		`a\.b.cluster.local.`, `\000.cluster.local.`, strings.Repeat("a.", 110)+"cluster.local.", strings.Repeat("a", 63)+".cluster.local.",
		"1.2.3.4.in-addr.arpa.", "cluster.local.apps.svc.cluster.local.")
}

// questions makes messages of every shape about a name.
func questions(t testing.TB, name string, each func(m []byte)) {
	for _, qtype := range []uint16{wire.TypeA, wire.TypeAAAA, wire.TypeSRV, wire.TypePTR, wire.TypeTXT, wire.TypeNS, wire.TypeSOA, wire.TypeCNAME, wire.TypeMX, wire.TypeHTTPS, wire.TypeANY, wire.TypeAXFR, 1000} {
		for i := range 32 {
			m := new(wire.Msg)
			m.SetQuestion(name, qtype)
			m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = i&1 != 0, i&2 != 0, i&4 != 0
			switch i >> 3 {
			case 1:
				m.SetEdns0([]uint16{0, 512, 600, 1232, 4096}[rand.IntN(5)], i&1 != 0)
			case 2:
				m.SetEdns0(1232, true)
				o := m.IsEdns0()
				switch rand.IntN(4) {
				case 0:
					o.SetVersion(1)
				case 1:
					o.Option = append(o.Option, &wire.EDNS0_NSID{Code: wire.EDNS0NSID})
				case 2:
					o.Option = append(o.Option, &wire.EDNS0_COOKIE{Code: wire.EDNS0COOKIE, Cookie: "0123456789abcdef"})
				case 3:
					o.SetZ(0x7FFF)
				}
			case 3:
				m.Question[0].Name = mixCase(name)
				m.Zero, m.Authoritative, m.Truncated = i&1 != 0, i&2 != 0, i&4 != 0
			}
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			each(b)
		}
	}
}

func mixCase(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] >= 'a' && b[i] <= 'z' && rand.IntN(2) == 0 {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

// TestPackedAgrees: whatever the packed path answers, the chain answers byte
// for byte, and plain questions for cluster names never need the chain.
func TestPackedAgrees(t *testing.T) {
	s := running(t, Options{Servers: servers(t, packedBlock)}, testView())
	r := &responder{turn: 1}
	asked, packed := 0, 0
	for _, name := range zoneNames(s) {
		questions(t, name, func(m []byte) {
			asked++
			if both(t, s, r, m) {
				packed++
			}
		})
	}
	t.Logf("%d of %d questions were answered on the packed path", packed, asked)
	for _, tt := range []struct {
		name string
		want bool
	}{
		{"web-service.apps.svc.cluster.local.", true},
		{"_http._tcp.web-service.apps.svc.cluster.local.", true},
		{"db.data.svc.cluster.local.", true},
		{"inside.apps.svc.cluster.local.", true},
		{"outside.apps.svc.cluster.local.", false}, // leads out of the zone
		{"no-such.apps.svc.cluster.local.", true},
		{"WEB-service.Apps.svc.cluster.LOCAL.", true},
		{"cluster.local.", true},
		{"eat.web-server.", true},
		{"shop.cluster.local.", true},
		{"host.cluster.local.", false}, // of hosts
		{"9.1.244.10.in-addr.arpa.", true},
		{"9.9.9.9.in-addr.arpa.", false}, // falls through
		{"10-244-1-9.apps.pod.cluster.local.", false},
	} {
		for _, qtype := range []uint16{wire.TypeA, wire.TypeAAAA, wire.TypeSRV, wire.TypePTR} {
			m := new(wire.Msg)
			m.SetQuestion(tt.name, qtype)
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if got := both(t, s, r, b); got != tt.want {
				t.Errorf("%s %s packed: %v, want %v", tt.name, wire.TypeToString[qtype], got, tt.want)
			}
		}
	}
}

// TestPackedSizes: the limit of a client's buffer is kept, and beyond it the
// chain truncates.
func TestPackedSizes(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ". {\n cluster\n}\n")}, bigView(60))
	r := &responder{turn: 1}
	packed := map[bool]int{}
	for size := range uint16(1300) {
		for _, qtype := range []uint16{wire.TypeA, wire.TypeSRV} {
			m := new(wire.Msg)
			m.SetQuestion("big.a.svc.cluster.local.", qtype)
			if size > 0 {
				m.SetEdns0(size, false)
			}
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			packed[both(t, s, r, b)]++
		}
	}
	if packed[true] == 0 || packed[false] == 0 {
		t.Errorf("packed and not: %v, want both", packed)
	}
}

// TestPackedPlan: directives that the packed path knows are followed, and
// everything else keeps it from answering.
func TestPackedPlan(t *testing.T) {
	for _, tt := range []struct {
		block string
		want  bool
	}{
		{". {\n errors\n cluster\n}\n", true},
		{". {\n loadbalance\n cache\n cluster\n}\n", true},
		{". {\n chaos\n cluster\n}\n", true},
		{". {\n log\n cluster\n}\n", false},
		{". {\n log example.org\n cluster\n}\n", true},
		{". {\n hosts testdata/none {\n fallthrough\n}\n cluster\n}\n", true},
		{". {\n hosts testdata/none {\n fallthrough example.org\n}\n cluster\n}\n", false},
		{". {\n nsid a\n bufsize 600\n cluster\n}\n", true},
		{". {\n whoami\n}\n", false},
		{". {\n acl {\n allow net 10.0.0.0/8\n}\n cluster\n}\n", false},
		{". {\n acl example.org {\n block\n}\n cluster\n}\n", true},
		{". {\n rewrite name a.example b.example\n cluster\n}\n", false},
		{". {\n dns64\n cancel\n cluster\n}\n", true},
		{". {\n header {\n response set ra\n}\n cluster\n}\n", false},
		{". {\n loadbalance {\n prefer 10.0.0.0/8\n}\n cluster\n}\n", false},
		{". {\n debug\n cluster\n}\n", false},
		{". {\n view v {\n expr type() == 'MX'\n}\n whoami\n}\n. {\n cluster\n}\n", false},
		{". {\n template IN A example.org {\n rcode REFUSED\n}\n file testdata/none example.net\n cluster\n}\n", true},
	} {
		s := running(t, Options{Servers: servers(t, tt.block)}, testView())
		m := new(wire.Msg)
		m.SetQuestion("web-service.apps.svc.cluster.local.", wire.TypeA)
		m.SetEdns0(4096, true)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := both(t, s, &responder{turn: 1}, b); got != tt.want {
			t.Errorf("%s packed: %v, want %v", strings.Join(strings.Fields(tt.block), " "), got, tt.want)
		}
	}
}

// TestPackedRotation: with loadbalance every address comes first at times, and
// the set stays whole.
func TestPackedRotation(t *testing.T) {
	s := running(t, Options{Servers: servers(t, ". {\n loadbalance\n cluster\n}\n")}, bigView(5))
	r := &responder{turn: rand.Uint64() | 1}
	first := map[string]int{}
	for range 500 {
		m := new(wire.Msg)
		m.SetQuestion("big.a.svc.cluster.local.", wire.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var out [defaultBufsize]byte
		n := r.respond(s.live.Load().main, b, out[:])
		var reply wire.Msg
		if err := reply.Unpack(out[:n]); err != nil || len(reply.Answer) != 5 {
			t.Fatalf("%v, %v", err, &reply)
		}
		first[reply.Answer[0].(*wire.A).A.String()]++
	}
	if len(first) != 5 {
		t.Errorf("first addresses: %v, want all five", first)
	}
}

// TestHotCache: what the cache has given is given again from the receive
// loop, with TTLs that never exceed the cache's, and not for long.
func TestHotCache(t *testing.T) {
	for _, rotate := range []string{"", " loadbalance\n"} {
		up := answering(t)
		s := running(t, Options{Servers: servers(t, fmt.Sprintf(". {\n%s cache 30\n forward . %s\n}\n", rotate, up))}, nil)
		tab := s.live.Load().main
		r := &responder{turn: 1}
		for _, name := range []string{"two.example.org.", "missing.example.org.", "alias.example.org."} {
			m := new(wire.Msg)
			m.SetQuestion(name, wire.TypeA)
			m.SetEdns0(1232, false)
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			var out [defaultBufsize]byte
			r.now = time.Now()
			for i := range 3 { // miss, hit, packed
				if n := r.respond(tab, b, out[:]); (n > 0) != (i == 2) {
					t.Fatalf("%s, question %d: packed answer of %d bytes", name, i, n)
				}
				s.answerPacket(context.Background(), tab, b, client, "udp")
			}
			for _, late := range []time.Duration{0, 1500 * time.Millisecond, 4 * time.Second} {
				r.now = time.Now().Add(late)
				n := r.respond(tab, mixQuestion(b), out[:])
				var got, want wire.Msg
				if err := got.Unpack(out[:n]); err != nil {
					t.Fatal(err)
				}
				if err := want.Unpack(s.answerPacket(context.Background(), tab, b, client, "udp")); err != nil {
					t.Fatal(err)
				}
				got.Id, want.Id = 0, 0
				for _, m := range []*wire.Msg{&got, &want} {
					for _, rr := range append(append([]wire.RR{}, m.Answer...), m.Ns...) {
						if ttl := time.Duration(rr.Header().Ttl) * time.Second; m == &got && (ttl > 30*time.Second-late || ttl < 24*time.Second-late) {
							t.Errorf("after %s: %v", late, rr)
						}
						rr.Header().Ttl = 0
						rr.Header().Name = strings.ToLower(rr.Header().Name)
					}
					m.Question = nil
				}
				if g, w := strings.ToLower(render(&got)), strings.ToLower(render(&want)); g != w {
					t.Errorf("%s: %s\nwant %s", name, g, w)
				}
			}
			r.now = time.Now().Add(hotTime + time.Second)
			if n := r.respond(tab, b, out[:]); n != 0 {
				t.Errorf("%s is answered from the packed copy after %s", name, hotTime)
			}
		}
		if st := s.Status(); st.CacheHit <= 0 {
			t.Errorf("cache hits: %v", st.CacheHit)
		}
	}
}

// mixQuestion returns a query with another case of the name.
func mixQuestion(b []byte) []byte {
	out := append([]byte(nil), b...)
	for i := headerLen; out[i] != 0; i += int(out[i]) + 1 {
		for j := i + 1; j <= i+int(out[i]); j++ {
			if out[j] >= 'a' && out[j] <= 'z' && rand.IntN(2) == 0 {
				out[j] -= 'a' - 'A'
			}
		}
	}
	return out
}

// answering is an upstream with two addresses, an alias of them, and NXDOMAIN.
func answering(t *testing.T) string {
	t.Helper()
	rr := func(s string) wire.RR {
		r, err := wire.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	port := freePort(t)
	srv := &wire.Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Net: "udp", Handler: wire.HandlerFunc(func(w wire.ResponseWriter, req *wire.Msg) {
		m := new(wire.Msg)
		m.SetReply(req)
		two := []wire.RR{rr("two.example.org. 300 A 192.0.2.1"), rr("two.example.org. 300 A 192.0.2.2")}
		switch req.Question[0].Name {
		case "two.example.org.":
			m.Answer = two
		case "alias.example.org.":
			m.Answer = append([]wire.RR{rr("alias.example.org. 300 CNAME two.example.org.")}, two...)
		default:
			m.Rcode = wire.RcodeNameError
			m.Ns = []wire.RR{rr("example.org. 300 SOA ns.example.org. a.example.org. 1 2 3 4 300")}
		}
		if err := w.WriteMsg(m); err != nil {
			t.Error(err)
		}
	})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go srv.ListenAndServe()
	<-started
	t.Cleanup(func() { srv.Shutdown() })
	return srv.Addr
}

// FuzzPacked: any packet gets from the packed path what the chain says, or
// nothing.
func FuzzPacked(f *testing.F) {
	s := running(f, Options{Servers: servers(f, packedBlock)}, testView())
	for _, name := range zoneNames(s) {
		questions(f, name, func(m []byte) {
			if rand.IntN(1000) == 0 {
				f.Add(m)
			}
		})
	}
	r := &responder{turn: 1}
	f.Fuzz(func(t *testing.T, query []byte) {
		if len(query) > wire.DefaultMsgSize {
			return
		}
		r.warm(s.live.Load().main, warmFrom, func(int) []byte { return query })
		both(t, s, r, query)
		if len(query) >= headerLen { // steer it to where something is to be seen
			query[2] &= 0x07
			binary.BigEndian.PutUint32(query[4:], 1<<16)
			query[8], query[9], query[10] = 0, 0, 0
			query[11] &= 1
			both(t, s, r, query)
		}
	})
}
