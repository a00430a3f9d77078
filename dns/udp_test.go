package dns

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// TestUDPShards: an address has a socket a core, all of them answer, on the
// packed path and through the chain, and nobody else can bind the address.
func TestUDPShards(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	port := freePort(t)
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n whoami\n}\n", port))}, testView(), addr("127.0.0.1"))
	at := netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))
	if n := len(s.sockets[at].udp.conns); n != 4 {
		t.Errorf("%d sockets, want 4", n)
	}
	if pc, err := freebindListen(at); err == nil {
		pc.Close()
		t.Error("another socket without SO_REUSEPORT was bound to the address")
	}
	for range 40 { // each from another port: they spread over the sockets
		for name, want := range map[string]int{"web-service.apps.svc.cluster.local": wire.RcodeSuccess, "no.svc.cluster.local": wire.RcodeNameError, "elsewhere.example": wire.RcodeSuccess} {
			if r, err := over("udp", at, name, wire.TypeA); err != nil || r.Rcode != want {
				t.Fatalf("%s: %v, %v", name, r, err)
			}
		}
	}
	if st := s.Status(); st.Queries != 120 {
		t.Errorf("%d queries counted, want 120", st.Queries)
	}
}

func freebindListen(at netip.AddrPort) (net.PacketConn, error) {
	return net.ListenPacket("udp", at.String())
}

// TestUDPDrains: what is in the queue when a socket is told to close is
// answered still.
func TestUDPDrains(t *testing.T) {
	port := freePort(t)
	s := running(t, Options{Servers: servers(t, fmt.Sprintf(".:%d {\n cluster\n}\n", port))}, testView(), addr("127.0.0.1"), addr("127.0.0.2"))
	at := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	c, err := net.DialUDP("udp", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := new(wire.Msg)
	m.SetQuestion("web-service.apps.svc.cluster.local.", wire.TypeA)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	const questions = 100
	for range questions {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	s.SetAddrs([]netip.Addr{addr("127.0.0.2")})
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 512)
	for i := range questions {
		if _, err := c.Read(buf); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
}

// TestWorkersAreBounded: what is too much is refused, and place is found again.
func TestWorkersAreBounded(t *testing.T) {
	w := newWorkers(2)
	release, ran := make(chan struct{}), sync.WaitGroup{}
	job := func() {
		defer ran.Done()
		<-release
	}
	for range 2 {
		if ran.Add(1); !w.do(job) {
			t.Fatal("no worker")
		}
	}
	if w.do(job) {
		t.Fatal("a third worker of two")
	}
	close(release)
	ran.Wait()
	waitFor(t, "a worker", func() bool {
		ran.Add(1)
		if w.do(job) {
			return true
		}
		ran.Done()
		return false
	})
	w.stop()
	ran.Wait()
}

// TestShed: a client whose question is not taken hears so.
func TestShed(t *testing.T) {
	m := new(wire.Msg)
	m.SetQuestion("Example.org.", wire.TypeA)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var out [defaultBufsize]byte
	n := new(responder).shed(b, out[:])
	var r wire.Msg
	if err := r.Unpack(out[:n]); err != nil || r.Id != m.Id || r.Rcode != wire.RcodeServerFailure || !r.Response || r.Question[0] != m.Question[0] {
		t.Errorf("%v, %v", &r, err)
	}
}
