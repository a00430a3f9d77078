package dns

import (
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// answerSeeds are answers of several kinds.
func answerSeeds(t testing.TB) (out [][]byte) {
	q := asking("a.example.", func(m *wire.Msg) { m.SetEdns0(1232, true); m.Id = 1 })
	for _, change := range []func(*wire.Msg){
		func(r *wire.Msg) { r.Compress = true },
		func(r *wire.Msg) { r.Compress = true; r.Answer = append(r.Answer, rr("a.example. 30 IN A 192.0.2.2")) },
		func(r *wire.Msg) {
			r.Compress, r.Rcode, r.Answer = true, wire.RcodeNameError, nil
			r.Ns = []wire.RR{rr("example. 300 IN SOA ns.example. root.example. 1 2 3 4 60")}
		},
		func(r *wire.Msg) {
			r.Compress = true
			r.Answer = []wire.RR{rr("a.example. 0 IN CNAME b.example."), rr("b.example. 9 IN MX 1 c.example.")}
		},
		func(r *wire.Msg) {
			r.Compress = true
			r.Answer = []wire.RR{rr("a.example. 9 IN TXT text"), rr("a.example. 9 IN SRV 1 2 3 c.example.")}
		},
		func(r *wire.Msg) { r.Rcode, r.Answer = wire.RcodeBadVers, nil },
		func(r *wire.Msg) { r.Extra = append(r.Extra, rr("x. 9 IN AAAA 2001:db8::1")) },
		func(*wire.Msg) {}, // the owner is not compressed
		func(r *wire.Msg) { r.Question = nil; r.Rcode = wire.RcodeRefused },
	} {
		out = append(out, reply(q, "192.0.2.1", change))
	}
	return out
}

// checkAnswer compares what is read from a packed answer with what unpacking
// it says.
func checkAnswer(t *testing.T, query, msg []byte) {
	if !matchesQuery(query, msg) {
		return
	}
	info := parseAnswer(msg)
	if !info.regular {
		return
	}
	m := new(wire.Msg)
	if m.Unpack(msg) != nil {
		return // data of a type that parseAnswer does not know
	}
	extra, opts := m.Extra, 0
	if opt := m.IsEdns0(); opt != nil {
		extra, opts = m.Extra[:len(m.Extra)-1], 1
		if m.Extra[len(extra)] != wire.RR(opt) {
			t.Fatalf("OPT is not the last record of %v", m)
		}
	}
	if int(info.counts[0]) != len(m.Answer) || int(info.counts[1]) != len(m.Ns) || int(info.counts[2]) != len(extra) || int(info.rcode) != m.Rcode {
		t.Fatalf("%d OPT, counts %v, rcode %d of %v", opts, info.counts, info.rcode, m)
	}
	m.Extra = extra
	kind, ttl := classify(m)
	if k, l := kindOf(int(info.rcode), info.records && info.counts[0] > 0, info.ttl, info.soa, info.minimum); k != kind || l != ttl {
		t.Fatalf("kind %d for %s, want %d for %s: %v", k, l, kind, ttl, m)
	}
	p := &packed{qtype: m.Question[0].Qtype}
	p.take(msg, &info)
	if p.body == nil {
		t.Fatalf("no body of %v", m)
	}
	capTTLs(p, 5)
	if m.Question[0].Name != "a.example." {
		return
	}
	again, err := p.message("a.example.")
	if err != nil {
		t.Fatalf("unpack what was kept of %v: %v", m, err)
	}
	if len(again.Answer) != len(m.Answer) || len(again.Ns) != len(m.Ns) || len(again.Extra) != len(m.Extra) {
		t.Fatalf("kept %v of %v", again, m)
	}
	for _, rr := range again.Answer {
		if rr.Header().Ttl > 5 {
			t.Fatalf("TTL of %v", rr)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	query, err := asking("A.example.", func(m *wire.Msg) { m.Id = 1 }).Pack()
	if err != nil {
		t.Fatal(err)
	}
	want := []bool{true, true, true, true, true, false, false, false, false}
	for i, msg := range answerSeeds(t) {
		if !matchesQuery(query, msg) {
			t.Errorf("answer %d does not match", i)
		}
		if got := parseAnswer(msg).regular; got != want[i] {
			t.Errorf("answer %d: regular %v", i, got)
		}
		checkAnswer(t, query, msg)
		for n := range msg { // cut off
			if matchesQuery(query, msg[:n]) && parseAnswer(msg[:n]).regular {
				t.Errorf("%d of %d bytes of answer %d are regular", n, len(msg), i)
			}
		}
	}
	for name, pointer := range map[string]string{"to itself": "\xc0\x0c", "forward": "\xc0\x20", "to the header": "\xc0\x02", "cut off": "\xc0", "endless label": "\x3fx"} {
		if n := nameEnd(append(make([]byte, headerLen), pointer...), headerLen); n >= 0 {
			t.Errorf("pointer %s: the name ends at %d", name, n)
		}
	}
}

// FuzzAnswer: no datagram makes the reader of packed answers panic or differ
// from miekg/dns.
func FuzzAnswer(f *testing.F) {
	query, err := asking("a.example.", func(m *wire.Msg) { m.Id = 1 }).Pack()
	if err != nil {
		f.Fatal(err)
	}
	for _, msg := range answerSeeds(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		checkAnswer(t, query, msg)
		if len(msg) >= headerLen { // whatever the header says
			copy(msg, query[:2])
			msg[2] = 0x80 | msg[2]&0x07
			checkAnswer(t, query, msg)
		}
		var c cookies
		c.put(append([]byte(nil), query...), 0)
		c.check(msg)
	})
}

// TestPoolIdle: sockets without queries go away.
func TestPoolIdle(t *testing.T) {
	up := newUpstream(t, says("A 192.0.2.7"))
	s, at := serving(t, "forward . "+up.addr.String())
	exchangeUDP(t, at, asking("a.example.", nil))
	u := (*forwardOf(s).upstreams.Load())[0]
	if u.sweep(time.Now().Add(socketIdle+time.Second)) && inFlight(u) == 0 {
		t.Error("sockets are left")
	}
	if got := answers(exchangeUDP(t, at, asking("b.example.", nil))); got != "192.0.2.7" {
		t.Errorf("answer %s", got)
	}
}
