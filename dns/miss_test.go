package dns

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/dns/batch"
)

// serving starts a server that forwards all it is asked over its socket.
func serving(t testing.TB, directives string) (*Server, netip.AddrPort) {
	t.Helper()
	port := freePort(t)
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n%s\n}\n", port, directives))}, nil, addr("127.0.0.1"))
	return s, netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))
}

// chained is how many workers have run chains lately.
func chained(s *Server) int {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	return s.pool.n
}

// inFlight counts the queries of an upstream that wait for an answer.
func inFlight(u *upstream) (n int) {
	u.pool.mu.Lock()
	defer u.pool.mu.Unlock()
	for _, s := range u.pool.slots {
		if s != nil {
			n += len(s.open)
		}
	}
	return n
}

func forwardOf(s *Server) *forward {
	for _, p := range s.live.Load().blocks[0].plugins {
		if f, ok := p.Plugin.(*forward); ok {
			return f
		}
	}
	return nil
}

// exchangeUDP asks once over a socket of its own.
func exchangeUDP(t testing.TB, at netip.AddrPort, m *wire.Msg) *wire.Msg {
	t.Helper()
	c := wire.Client{Timeout: 8 * time.Second, UDPSize: wire.DefaultMsgSize}
	r, _, err := c.Exchange(m, at.String())
	if err != nil {
		t.Fatalf("ask %v: %v", m.Question, err)
	}
	return r
}

func asking(name string, change func(*wire.Msg)) *wire.Msg {
	m := new(wire.Msg)
	m.SetQuestion(name, wire.TypeA)
	if change != nil {
		change(m)
	}
	return m
}

// TestMissAgrees: what the receive loop forwards is answered as the chain
// answers it, and the cache has it afterwards.
func TestMissAgrees(t *testing.T) {
	up := newUpstream(t, func(r *wire.Msg, _ bool) bool {
		name := r.Question[0].Name
		r.AuthenticatedData = true
		r.SetEdns0(1232, true)
		switch strings.ToLower(name) {
		case "alias.example.":
			r.Compress = true
			r.Answer = []wire.RR{rr(name + " 9000 IN CNAME Target.example."), rr("target.example. 60 IN A 192.0.2.1")}
		case "none.example.":
			r.Rcode = wire.RcodeNameError
			r.Ns = []wire.RR{rr("example. 300 IN SOA ns.example. root.example. 1 2 3 4 60")}
		case "empty.example.":
			r.Ns = []wire.RR{rr("example. 300 IN SOA ns.example. root.example. 1 2 3 4 60")}
		default:
			r.Compress = true
			r.Answer = []wire.RR{rr(name + " 9000 IN A 192.0.2.7")}
			r.Ns = []wire.RR{rr("example. 300 IN NS ns.example.")}
			r.Extra = append([]wire.RR{rr("ns.example. 300 IN A 192.0.2.53")}, r.Extra...)
		}
		return true
	})
	text := "cache 3600\n loop\n forward . " + up.addr.String()
	packed, at := serving(t, text)
	viaChain, _ := serving(t, text)
	for _, name := range []string{"first.example.", "second.example."} {
		if got := answers(exchangeUDP(t, at, asking(name, nil))); got != "192.0.2.7" || chained(packed) != 0 {
			t.Errorf("answer %s, %d workers were needed for a plain question", got, chained(packed))
		}
	}
	// A second may pass between two answers.
	aged := strings.NewReplacer(" 299 ", " 300 ", " 298 ", " 300 ", " 59 ", " 60 ", " 58 ", " 60 ").Replace
	for _, name := range []string{"alias.example.", "none.example.", "empty.example.", "PLAIN.example."} {
		for mode, change := range map[string]func(*wire.Msg){
			"plain": nil,
			"edns":  func(m *wire.Msg) { m.SetEdns0(1232, false) },
			"do":    func(m *wire.Msg) { m.SetEdns0(4096, true) },
			"ad":    func(m *wire.Msg) { m.AuthenticatedData = true },
			"cd":    func(m *wire.Msg) { m.CheckingDisabled = true },
		} {
			want := render(send(t, viaChain, asking(name, change)))
			for _, turn := range []string{"miss", "hit"} {
				r := exchangeUDP(t, at, asking(name, change))
				if got := aged(render(r)); got != aged(want) || r.Question[0].Name != name {
					t.Errorf("%s %s %s: %v\n%s\nwant\n%s", name, mode, turn, r.Question, got, want)
				}
			}
		}
	}
	if n := forwardOf(packed).inflight.Load(); n != 0 {
		t.Errorf("%d queries in flight at the end", n)
	}
}

// TestMissHandsOver: what is not plain goes on in the chain, which does not
// ask the same upstream again.
func TestMissHandsOver(t *testing.T) {
	good := newUpstream(t, says("A 192.0.2.7"))
	for name, c := range map[string]struct {
		reply func(r *wire.Msg, tcp bool) bool
		want  string
		udp   int64
	}{
		"SERVFAIL": {fails(wire.RcodeServerFailure), "192.0.2.7", 1},
		"REFUSED":  {fails(wire.RcodeRefused), "192.0.2.7", 1},
		"NOTIMP":   {fails(wire.RcodeNotImplemented), "NOTIMP", 1},
		"truncated": {func(r *wire.Msg, tcp bool) bool {
			r.Truncated = !tcp
			return !tcp || says("A 192.0.2.9")(r, tcp)
		}, "192.0.2.9", 1},
		"OPT first": {func(r *wire.Msg, tcp bool) bool {
			r.SetEdns0(1232, false)
			r.Extra = append(r.Extra, rr("x.example. 60 IN A 192.0.2.2"))
			return says("A 192.0.2.9")(r, tcp)
		}, "192.0.2.9", 1},
	} {
		t.Run(name, func(t *testing.T) {
			first := newUpstream(t, c.reply)
			_, at := serving(t, fmt.Sprintf("forward . %s %s {\n policy sequential\n}", first.addr, good.addr))
			if got := answers(exchangeUDP(t, at, asking("a.example.", nil))); got != c.want || first.udp.Load() != c.udp {
				t.Errorf("answer %s after %d queries, want %s", got, first.udp.Load(), c.want)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		first := newUpstream(t, silent)
		s, at := serving(t, fmt.Sprintf("forward . %s %s {\n policy sequential\n read_timeout 100ms\n}", first.addr, good.addr))
		if got := answers(exchangeUDP(t, at, asking("a.example.", nil))); got != "192.0.2.7" {
			t.Errorf("answer %s", got)
		}
		if n := inFlight((*forwardOf(s).upstreams.Load())[0]); n > 1 { // a probe may be
			t.Errorf("%d queries wait at the silent upstream", n)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		_, at := serving(t, fmt.Sprintf("forward . 127.0.0.1:%d", freePort(t)))
		if got := answers(exchangeUDP(t, at, asking("a.example.", nil))); got != "SERVFAIL" {
			t.Errorf("answer %s", got)
		}
	})
	t.Run("too long for the client", func(t *testing.T) {
		up := newUpstream(t, func(r *wire.Msg, _ bool) bool {
			for i := range 60 {
				r.Answer = append(r.Answer, rr(fmt.Sprintf("%s 300 IN A 192.0.2.%d", r.Question[0].Name, i)))
			}
			r.Compress = true
			return true
		})
		_, at := serving(t, "forward . "+up.addr.String())
		r := exchangeUDP(t, at, asking("a.example.", nil))
		r.Compress = true // as it came
		if !r.Truncated || r.Len() > wire.MinMsgSize || up.udp.Load() != 1 {
			t.Errorf("answer of %d bytes, truncated %v, after %d queries", r.Len(), r.Truncated, up.udp.Load())
		}
	})
}

// TestMissLong: an answer that is longer than usual, as a block may allow,
// comes whole after the detour through the chain.
func TestMissLong(t *testing.T) {
	up := newUpstream(t, func(r *wire.Msg, _ bool) bool {
		for i := range 100 {
			r.Answer = append(r.Answer, rr(fmt.Sprintf("%s 300 IN A 192.0.2.%d", r.Question[0].Name, i)))
		}
		r.Compress = true
		return true
	})
	_, at := serving(t, "bufsize 4096\n forward . "+up.addr.String())
	r := exchangeUDP(t, at, asking("a.example.", func(m *wire.Msg) { m.SetEdns0(4096, false) }))
	if len(r.Answer) != 100 || r.Truncated {
		t.Errorf("%d records, truncated %v", len(r.Answer), r.Truncated)
	}
}

// TestMissForged: neither another ID nor another question nor another sender
// is believed, at a socket that many queries share.
func TestMissForged(t *testing.T) {
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			q := new(wire.Msg)
			if q.Unpack(buf[:n]) != nil || q.Question[0].Name == "." {
				continue
			}
			lie := func(change func(*wire.Msg)) []byte { return reply(q, "203.0.113.6", change) }
			_, _ = other.WriteToUDPAddrPort(lie(nil), from) // all is right but the sender
			for range 20 {
				_, _ = pc.WriteToUDPAddrPort(lie(func(r *wire.Msg) { r.Id += uint16(1 + rand.IntN(65535)) }), from)
			}
			_, _ = pc.WriteToUDPAddrPort(lie(func(r *wire.Msg) { r.Question[0].Name = "b.example." }), from)
			_, _ = pc.WriteToUDPAddrPort(lie(func(r *wire.Msg) { r.Question[0].Qtype = wire.TypeAAAA }), from)
			_, _ = pc.WriteToUDPAddrPort(lie(func(r *wire.Msg) { r.Question = nil }), from)
			good := reply(q, "192.0.2.1", nil)
			_, _ = pc.WriteToUDPAddrPort(good[:len(good)-20], from)
			_, _ = pc.WriteToUDPAddrPort(good, from)
			_, _ = pc.WriteToUDPAddrPort(lie(nil), from) // too late
		}
	}()
	defer func() { pc.Close(); <-done }()
	_, at := serving(t, "forward . "+pc.LocalAddr().String())
	for i := range 50 {
		if got := answers(exchangeUDP(t, at, asking(fmt.Sprintf("n%d.example.", i), nil))); got != "192.0.2.1" {
			t.Fatalf("answer %s", got)
		}
	}
}

// TestMissJoins: equal questions in flight are asked once, those with other
// flags apart, and each client gets its own ID and letter case.
func TestMissJoins(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(release) }) }
	defer open()
	up := newUpstream(t, func(r *wire.Msg, tcp bool) bool {
		if r.Question[0].Name != "." {
			<-release
		}
		return says("A 192.0.2.7")(r, tcp)
	})
	s, at := serving(t, "cache\n forward . "+up.addr.String())
	var clients sync.WaitGroup
	for i := range 40 {
		clients.Go(func() {
			name := "same.example."
			if i%2 == 1 {
				name = "sAmE.Example."
			}
			m := asking(name, func(m *wire.Msg) { m.CheckingDisabled = i%4 == 3 })
			if r := exchangeUDP(t, at, m); answers(r) != "192.0.2.7" || r.Question[0].Name != name || r.Answer[0].Header().Name != name {
				t.Errorf("answer %v", r)
			}
		})
	}
	f := forwardOf(s)
	waitFor(t, "all to wait", func() bool { return f.inflight.Load() == 40 })
	if n := up.udp.Load(); n > 2 {
		t.Errorf("%d queries for two questions", n)
	}
	open()
	clients.Wait()
	waitFor(t, "nothing to be in flight", func() bool { return f.inflight.Load() == 0 })
}

// TestMissMaxConcurrent: those who wait for the same question count too.
func TestMissMaxConcurrent(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, func(r *wire.Msg, tcp bool) bool {
		if r.Question[0].Name != "." {
			<-release
		}
		return says("A 192.0.2.7")(r, tcp)
	})
	s, at := serving(t, "forward . "+up.addr.String()+" {\n max_concurrent 2\n}")
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			if got := answers(exchangeUDP(t, at, asking("same.example.", nil))); got != "192.0.2.7" {
				t.Errorf("answer %s", got)
			}
		})
	}
	waitFor(t, "both to wait", func() bool { return forwardOf(s).inflight.Load() == 2 })
	if got := answers(exchangeUDP(t, at, asking("same.example.", nil))); got != "REFUSED" {
		t.Errorf("third: %s", got)
	}
	close(release)
	clients.Wait()
}

// TestMissRestart: an upstream whose port was closed for a while is used again
// over new sockets.
func TestMissRestart(t *testing.T) {
	at := netip.AddrPortFrom(addr("127.0.0.1"), uint16(freePort(t)))
	serve := func() (stop func()) {
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 4096)
			for {
				n, from, err := pc.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				q := new(wire.Msg)
				if q.Unpack(buf[:n]) == nil {
					_, _ = pc.WriteToUDPAddrPort(reply(q, "192.0.2.1", nil), from)
				}
			}
		}()
		return func() { pc.Close(); <-done }
	}
	stop := serve()
	_, srv := serving(t, "forward . "+at.String()+" {\n health_check 10ms\n}")
	ask := func(i int) string { return answers(exchangeUDP(t, srv, asking(fmt.Sprintf("n%d.example.", i), nil))) }
	for i := range 50 {
		if got := ask(i); got != "192.0.2.1" {
			t.Fatalf("answer %s", got)
		}
	}
	stop()
	for i := range 20 {
		if got := ask(100 + i); got != "SERVFAIL" {
			t.Errorf("answer %s of an upstream that is gone", got)
		}
	}
	stop = serve()
	defer stop()
	i := 200
	waitFor(t, "an answer", func() bool { i++; return ask(i) == "192.0.2.1" })
	for range 50 {
		if i++; ask(i) != "192.0.2.1" {
			t.Errorf("no answer after the restart")
		}
	}
}

// TestMissLosses: of many questions none stays without an answer, while the
// upstream loses some and sockets are renewed all the time.
func TestMissLosses(t *testing.T) {
	total := 100_000
	if testing.Short() {
		total = 5000
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	enlarge(pc)
	var ports sync.Map
	var lost atomic.Int64
	done := make(chan struct{})
	go func() { // its answers are made of bytes, so that it keeps up
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			ports.Store(from.Port(), true)
			if end := plainEnd(buf[:n], headerLen); end > headerLen+1 {
				if rand.IntN(50) == 0 {
					lost.Add(1)
					continue
				}
				copy(buf[2:], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0})
				b := append(buf[:end+4], "\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xc0\x00\x02\x01"...)
				_, _ = pc.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	defer func() { pc.Close(); <-done }()
	s, at := serving(t, "cache {\n success 100\n}\n ratelimit off\n forward . "+pc.LocalAddr().String())
	u := (*forwardOf(s).upstreams.Load())[0]
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	enlarge(c)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const window = 256
	in := batch.NewReader(raw, window, 512)
	packet := func(i int) []byte {
		b, err := asking(fmt.Sprintf("n%d.example.", i), nil).Pack()
		if err != nil {
			t.Fatal(err)
		}
		binary.BigEndian.PutUint16(b, uint16(i))
		return b
	}
	waiting := make(map[int]time.Time)
	sent, bad := 0, 0
	for sent < total || len(waiting) > 0 {
		for ; sent < total && len(waiting) < window; sent++ {
			waiting[sent] = time.Now()
			if _, err := c.Write(packet(sent)); err != nil {
				t.Fatal(err)
			}
			if sent%2000 == 1999 { // new sockets, as after some time
				u.pool.mu.Lock()
				for _, s := range u.pool.slots {
					if s != nil {
						s.asked = socketQueries
					}
				}
				u.pool.mu.Unlock()
			}
		}
		// The way between client and server loses nothing; longer than this
		// no query may take.
		if err := c.SetReadDeadline(time.Now().Add(forwardTimeout + 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := in.Read()
		if err != nil {
			t.Fatalf("%d of %d questions have no answer: %v", len(waiting), sent, err)
		}
		for k := range n {
			id := binary.BigEndian.Uint16(in.Data(k))
			for i := range waiting {
				if uint16(i) == id {
					delete(waiting, i)
				}
			}
			if in.Data(k)[3]&0xF != 0 {
				bad++
			}
		}
	}
	different := 0
	ports.Range(func(any, any) bool { different++; return true })
	t.Logf("%d queries lost, %d failures, %d ports", lost.Load(), bad, different)
	if lost.Load() == 0 || bad > 0 {
		t.Errorf("%d queries were lost, %d questions failed", lost.Load(), bad)
	}
	if different <= poolSockets {
		t.Errorf("%d ports: sockets were not renewed", different)
	}
}
