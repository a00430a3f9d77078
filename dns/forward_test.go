package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// fakeUpstream is a name server on loopback whose answers a test decides.
type fakeUpstream struct {
	addr netip.AddrPort
	udp  atomic.Int64 // queries, probes not counted
	tcp  atomic.Int64
}

// newUpstream starts a server; reply gets a prepared reply to fill in, and
// returns false to stay silent.
func newUpstream(t testing.TB, reply func(r *wire.Msg, tcp bool) bool) *fakeUpstream {
	t.Helper()
	port := freePort(t)
	u := &fakeUpstream{addr: netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))}
	h := wire.HandlerFunc(func(w wire.ResponseWriter, q *wire.Msg) {
		_, tcp := clientOf(w.RemoteAddr())
		if q.Question[0].Name != "." {
			if tcp {
				u.tcp.Add(1)
			} else {
				u.udp.Add(1)
			}
		}
		r := new(wire.Msg)
		r.SetReply(q)
		r.RecursionAvailable = true
		if reply(r, tcp) {
			_ = w.WriteMsg(r) // a client that has given up is no failure
		}
	})
	pc, err := net.ListenPacket("udp", u.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", u.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*wire.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started, done := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = srv.ShutdownContext(ctx)
			<-done
		})
	}
	return u
}

// says answers every question with one record.
func says(rdata string) func(*wire.Msg, bool) bool {
	return func(r *wire.Msg, _ bool) bool {
		r.Answer = []wire.RR{rr(r.Question[0].Name + " 300 IN " + rdata)}
		return true
	}
}

func fails(rcode int) func(*wire.Msg, bool) bool {
	return func(r *wire.Msg, _ bool) bool { r.Rcode = rcode; return true }
}

func silent(*wire.Msg, bool) bool { return false }

func rr(s string) wire.RR {
	r, err := wire.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

func forwarding(t testing.TB, options string, ups ...*fakeUpstream) *Server {
	t.Helper()
	var to []string
	for _, u := range ups {
		to = append(to, u.addr.String())
	}
	text := fmt.Sprintf(". {\n errors\n forward . %s {\n policy sequential\n%s\n }\n}\n", strings.Join(to, " "), options)
	return running(t, Options{Servers: servers(t, text)}, nil)
}

func TestForwardFailover(t *testing.T) {
	for name, bad := range map[string]func(*wire.Msg, bool) bool{
		"silent": silent, "SERVFAIL": fails(wire.RcodeServerFailure), "REFUSED": fails(wire.RcodeRefused),
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newUpstream(t, bad), newUpstream(t, says("A 192.0.2.7"))
			s := forwarding(t, "", first, second)
			r := ask(t, s, "example.org", "A")
			if answers(r) != "192.0.2.7" || !r.RecursionAvailable || r.Authoritative {
				t.Errorf("reply %v", r)
			}
			if second.udp.Load() != 1 {
				t.Errorf("second upstream got %d queries", second.udp.Load())
			}
		})
	}
	t.Run("all say SERVFAIL", func(t *testing.T) {
		s := forwarding(t, "", newUpstream(t, fails(wire.RcodeServerFailure)), newUpstream(t, fails(wire.RcodeServerFailure)))
		if got := answers(ask(t, s, "example.org", "A")); got != "SERVFAIL" {
			t.Errorf("reply %s", got)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		dead := &fakeUpstream{addr: netip.AddrPortFrom(addr("127.0.0.1"), uint16(freePort(t)))}
		s := forwarding(t, "", dead)
		m := new(wire.Msg)
		m.SetQuestion("example.org.", wire.TypeA)
		m.SetEdns0(1232, false)
		r := send(t, s, m)
		if r.Rcode != wire.RcodeServerFailure || len(r.IsEdns0().Option) == 0 {
			t.Errorf("reply %v", r)
		}
		waitFor(t, "Status to say so", func() bool { return strings.Contains(s.Status().Error, "no upstream answers") })
	})
	t.Run("no such name is an answer", func(t *testing.T) {
		second := newUpstream(t, says("A 192.0.2.7"))
		s := forwarding(t, "", newUpstream(t, fails(wire.RcodeNameError)), second)
		if got := answers(ask(t, s, "example.org", "A")); got != "NXDOMAIN" || second.udp.Load() != 0 {
			t.Errorf("reply %s, second upstream asked %d times", got, second.udp.Load())
		}
	})
}

// TestForwardHealth: an upstream that goes silent is left out, and used again
// when it is back.
func TestForwardHealth(t *testing.T) {
	var mute atomic.Bool
	first := newUpstream(t, func(r *wire.Msg, tcp bool) bool { return !mute.Load() && says("A 192.0.2.1")(r, tcp) })
	second := newUpstream(t, says("A 192.0.2.2"))
	s := forwarding(t, "health_check 20ms", first, second)
	healthy := func(i int) func() bool {
		return func() bool { u := s.Status().Upstreams[i]; return u.Healthy && u.RTT > 0 }
	}
	waitFor(t, "the first probes", func() bool { return healthy(0)() && healthy(1)() })
	if d := s.Status().Detail; !strings.Contains(d, "forward "+first.addr.String()+" ok ") {
		t.Errorf("Detail %q", d)
	}
	mute.Store(true)
	for range 2 {
		if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.2" {
			t.Fatalf("answer %s while the first upstream is silent", got)
		}
	}
	waitFor(t, "the first upstream to be out", func() bool { return !healthy(0)() })
	before := first.udp.Load()
	if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.2" || first.udp.Load() != before {
		t.Errorf("answer %s, and the dead upstream was asked %d times", got, first.udp.Load()-before)
	}
	mute.Store(false)
	waitFor(t, "the first upstream to be back", healthy(0))
	if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.1" {
		t.Errorf("answer %s after the first upstream came back", got)
	}
}

func TestForwardTCP(t *testing.T) {
	truncating := func(r *wire.Msg, tcp bool) bool {
		r.Truncated = !tcp
		return !tcp || says("A 192.0.2.7")(r, tcp)
	}
	t.Run("truncated", func(t *testing.T) {
		u := newUpstream(t, truncating)
		s := forwarding(t, "", u)
		for i := range int64(3) {
			r := ask(t, s, "example.org", "A")
			if answers(r) != "192.0.2.7" || r.Truncated || u.udp.Load() != i+1 || u.tcp.Load() != i+1 {
				t.Errorf("reply %v after %d+%d queries", r, u.udp.Load(), u.tcp.Load())
			}
		}
	})
	t.Run("force_tcp", func(t *testing.T) {
		u := newUpstream(t, says("A 192.0.2.7"))
		s := forwarding(t, "force_tcp", u)
		if got := answers(ask(t, s, "example.org", "A")); got != "192.0.2.7" || u.udp.Load() != 0 || u.tcp.Load() != 1 {
			t.Errorf("answer %s, %d over udp", got, u.udp.Load())
		}
	})
}

func TestForwardRules(t *testing.T) {
	u := newUpstream(t, says("A 192.0.2.7"))
	text := fmt.Sprintf(". {\n forward corp.example %s {\n except lab.corp.example\n }\n}\n", u.addr)
	s := running(t, Options{Servers: servers(t, text)}, nil)
	for name, want := range map[string]string{"a.corp.example": "192.0.2.7", "b.lab.corp.example": "REFUSED", "example": "REFUSED"} {
		if got := answers(ask(t, s, name, "A")); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestMaxConcurrent: more than max_concurrent queries are refused at once.
func TestMaxConcurrent(t *testing.T) {
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	u := newUpstream(t, func(r *wire.Msg, tcp bool) bool {
		if r.Question[0].Name != "." {
			arrived <- struct{}{}
			<-release
		}
		return says("A 192.0.2.7")(r, tcp)
	})
	s := forwarding(t, "max_concurrent 1", u)
	first := make(chan string)
	go func() { first <- answers(ask(t, s, "a.example", "A")) }()
	<-arrived
	if got := answers(ask(t, s, "b.example", "A")); got != "REFUSED" {
		t.Errorf("second query: %s", got)
	}
	close(release)
	if got := <-first; got != "192.0.2.7" {
		t.Errorf("first query: %s", got)
	}
}

// TestForwardResolvConf: the file is read again when it changes; the stub of
// systemd-resolved and own addresses are left out.
func TestForwardResolvConf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("search example\nnameserver 127.0.0.53\nnameserver 192.0.2.53 # far\nnameserver nonsense\nnameserver 2001:db8::53\n")
	s := running(t, Options{Servers: servers(t, ". {\n forward . /etc/resolv.conf\n}\n"), ResolvConf: file}, nil)
	f := s.live.Load().blocks[0].plugins[0].Plugin.(*forward)
	list := func() string {
		var out []string
		for _, u := range *f.upstreams.Load() {
			if u.addr != netip.AddrPortFrom(addr("127.0.0.53"), 53) {
				out = append(out, u.addr.String())
			} else {
				t.Error("the stub is an upstream")
			}
		}
		return strings.Join(out, " ")
	}
	// What is behind a stub on the test machine itself comes last.
	if got := list(); !strings.HasPrefix(got, "192.0.2.53:53 [2001:db8::53]:53") {
		t.Errorf("upstreams %s", got)
	}
	write("nameserver 192.0.2.54\n")
	f.refresh()
	if got := list(); got != "192.0.2.54:53" {
		t.Errorf("upstreams %s", got)
	}
	write("")
	f.refresh()
	m := new(wire.Msg)
	m.SetQuestion("example.org.", wire.TypeA)
	m.SetEdns0(1232, false)
	r := send(t, s, m)
	if e, ok := r.IsEdns0().Option[0].(*wire.EDNS0_EDE); r.Rcode != wire.RcodeServerFailure || !ok || e.InfoCode != wire.ExtendedErrorCodeNoReachableAuthority {
		t.Errorf("reply without upstreams: %v", r)
	}
}

// TestForwardToSelf: an address of this server is no upstream.
func TestForwardToSelf(t *testing.T) {
	port := freePort(t)
	text := fmt.Sprintf(".:%d {\n forward . 127.0.0.1:%d\n}\n", port, port)
	s := running(t, Options{Servers: servers(t, text)}, nil, addr("127.0.0.1"))
	if got := answers(ask(t, s, "example.org", "A")); got != "SERVFAIL" {
		t.Errorf("answer %s", got)
	}
}

// TestLoop: an upstream that forwards to us is found, disabled and reported;
// the other one goes on.
func TestLoop(t *testing.T) {
	port := freePort(t)
	self := fmt.Sprintf("127.0.0.1:%d", port)
	mirror := newUpstream(t, func(r *wire.Msg, _ bool) bool {
		q := new(wire.Msg)
		q.SetQuestion(r.Question[0].Name, r.Question[0].Qtype)
		c := wire.Client{Timeout: time.Second}
		back, _, err := c.Exchange(q, self)
		if err != nil {
			return false
		}
		r.Rcode, r.Answer = back.Rcode, back.Answer
		return true
	})
	good := newUpstream(t, says("A 192.0.2.7"))
	text := fmt.Sprintf(".:%d {\n loop\n forward . %s %s {\n policy sequential\n }\n}\n", port, mirror.addr, good.addr)
	srv := running(t, Options{Servers: servers(t, text)}, nil, addr("127.0.0.1"))
	f := srv.live.Load().blocks[0].plugins[1].Plugin.(*forward)
	waitFor(t, "the loop to be found", func() bool {
		// Until the socket is open the probe may get no answer.
		if u := (*f.upstreams.Load())[0]; !u.looping.Load() {
			f.testLoop(context.Background(), u)
			f.probes.Wait()
		}
		return srv.Status().Upstreams[0].Looping
	})
	waitFor(t, "Status to say so", func() bool {
		st := srv.Status()
		return !st.OK && strings.Contains(st.Error, "sends queries back to this node") && strings.Contains(st.Detail, "loops")
	})
	if got := answers(ask(t, srv, "example.org", "A")); got != "192.0.2.7" {
		t.Errorf("answer %s", got)
	}
}
