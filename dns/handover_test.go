package dns

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// shelf is a Keeper in memory: what a service manager does, in one process.
type shelf struct {
	mu    sync.Mutex
	files map[string]*os.File
	taken map[string]bool // by the server that runs now
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{files: map[string]*os.File{}, taken: map[string]bool{}}
	t.Cleanup(func() {
		for _, f := range s.files {
			f.Close()
		}
	})
	return s
}

func dup(fd uintptr, name string) (*os.File, error) {
	n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), name), nil
}

func (s *shelf) Take(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[name]
	if f == nil || s.taken[name] {
		return nil
	}
	s.taken[name] = true
	c, err := dup(f.Fd(), name)
	if err != nil {
		return nil
	}
	return c
}

func (s *shelf) Keep(name string, c syscall.RawConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var f *os.File
	var derr error
	if err := c.Control(func(fd uintptr) { f, derr = dup(fd, name) }); err != nil {
		return err
	}
	if s.files[name] != nil {
		return fmt.Errorf("%s is kept already", name)
	}
	s.files[name], s.taken[name] = f, true
	return derr
}

func (s *shelf) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[name]
	if f == nil {
		return fmt.Errorf("%s is not kept", name)
	}
	delete(s.files, name)
	return f.Close()
}

func (s *shelf) DropRest() error {
	for _, name := range s.names() {
		if !s.taken[name] {
			if err := s.Drop(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *shelf) names() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.files {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// next is what happens between two processes.
func (s *shelf) next() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.taken)
}

// inodes tells which sockets the names stand for.
func (s *shelf) inodes(t *testing.T) map[string]uint64 {
	out := map[string]uint64{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		out[name] = st.Ino
	}
	return out
}

// once runs a server with a shelf until stop is called.
func once(t *testing.T, text string, k Keeper, addrs ...netip.Addr) (s *Server, stop func()) {
	t.Helper()
	s, err := New(Options{Servers: servers(t, text), Keeper: k})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.SetAddrs(addrs)
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// TestHandover: queries and connections that come while no server runs are
// answered by the next one, on the very same sockets; and none is answered
// before there is data.
func TestHandover(t *testing.T) {
	port := freePort(t)
	text := fmt.Sprintf(".:%d {\n cluster\n}\n", port)
	at := netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))
	k := newShelf(t)
	first, stop := once(t, text, k, at.Addr())
	first.Set(testView())
	waitFor(t, "the socket", func() bool { return len(first.Status().Listening) == 1 })
	before := k.inodes(t)
	stop()
	if got := k.inodes(t); len(got) < 2 || !maps.Equal(got, before) {
		t.Fatalf("kept after the end: %v, before: %v", got, before)
	}

	const clients, each = 20, 50 // 1000 queries wait; clients spread over the group
	var conns []net.Conn
	for i := range clients {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		for j := range each {
			m := new(wire.Msg)
			m.SetQuestion("web-service.apps.svc.cluster.local.", wire.TypeA)
			m.Id = uint16(i*each + j)
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(b); err != nil {
				t.Fatalf("query while no server runs: %v", err)
			}
		}
	}
	tcp, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatalf("connect while no server runs: %v", err)
	}
	defer tcp.Close()

	k.next()
	second, stop := once(t, text, k, at.Addr())
	for range 50 { // turns of its loop
		second.poke()
	}
	if n := second.Status().Queries; n != 0 {
		t.Errorf("%d queries answered before there was data", n)
	}
	second.Set(testView())
	seen := map[uint16]bool{}
	buf := make([]byte, 512)
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for range each {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("after %d answers: %v", len(seen), err)
			}
			r := new(wire.Msg)
			if err := r.Unpack(buf[:n]); err != nil || answers(r) != "10.107.37.188" {
				t.Fatalf("answer: %v, %v", r, err)
			}
			seen[r.Id] = true
		}
	}
	if len(seen) != clients*each {
		t.Errorf("%d of %d queries were answered", len(seen), clients*each)
	}
	m := new(wire.Msg)
	m.SetQuestion("web-service.apps.svc.cluster.local.", wire.TypeA)
	if r, _, err := new(wire.Client).ExchangeWithConn(m, &wire.Conn{Conn: tcp}); err != nil || answers(r) != "10.107.37.188" {
		t.Errorf("the connection that waited: %v, %v", r, err)
	}
	if got := k.inodes(t); !maps.Equal(got, before) {
		t.Errorf("sockets after the hand-over: %v, before: %v", got, before)
	}

	// What is not wanted any more is given up.
	second.SetAddrs([]netip.Addr{addr("127.0.0.2")})
	waitFor(t, "the other address", func() bool {
		l := second.Status().Listening
		return len(l) == 1 && l[0].Addr() == addr("127.0.0.2")
	})
	for _, name := range k.names() {
		if before[name] != 0 {
			t.Errorf("%s is still kept", name)
		}
	}
	stop()
}

// TestHandoverUnwanted: sockets that the next configuration does not have are
// given up when it had time to want them.
func TestHandoverUnwanted(t *testing.T) {
	p1, p2 := freePort(t), freePort(t)
	k := newShelf(t)
	first, stop := once(t, fmt.Sprintf(".:%d .:%d {\n cluster\n}\n", p1, p2), k, addr("127.0.0.1"))
	first.Set(testView())
	waitFor(t, "the sockets", func() bool { return len(first.Status().Listening) == 2 })
	all := len(k.names())
	stop()
	k.next()
	second, stop := once(t, fmt.Sprintf(".:%d {\n cluster\n}\n", p1), k, addr("127.0.0.1"))
	defer stop()
	second.Set(testView())
	waitFor(t, "the socket", func() bool { return len(second.Status().Listening) == 1 })
	if n := len(k.names()); n != all {
		t.Errorf("%d sockets kept at once, want %d: others may be wanted soon", n, all)
	}
	now := time.Now()
	stop()
	second.dropRest(now)
	if n := len(k.names()); n != all {
		t.Errorf("%d sockets kept before the time, want %d", n, all)
	}
	second.dropRest(now.Add(handoverGrace))
	if n := len(k.names()); n != all/2 {
		t.Errorf("%d sockets kept, want %d: %v", n, all/2, k.names())
	}
}

// TestHandoverNoGood: a socket under the wrong name is not used.
func TestHandoverNoGood(t *testing.T) {
	port := freePort(t)
	at := netip.AddrPortFrom(addr("127.0.0.1"), uint16(port))
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	raw, err := other.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	k := newShelf(t)
	for _, name := range []string{socketName("udp", at, 0), socketName("tcp", at, 0)} {
		if err := k.Keep(name, raw); err != nil {
			t.Fatal(err)
		}
	}
	k.next()
	s, _ := once(t, fmt.Sprintf(".:%d {\n cluster\n}\n", port), k, at.Addr())
	s.Set(testView())
	waitFor(t, "the socket", func() bool { return len(s.Status().Listening) == 1 })
	if r, err := over("udp", at, "web-service.apps.svc.cluster.local", wire.TypeA); err != nil || answers(r) != "10.107.37.188" {
		t.Errorf("answer: %v, %v", r, err)
	}
}

func TestSocketName(t *testing.T) {
	for _, tt := range []struct {
		network, addr string
		i             int
		want          string
	}{
		{"udp", "10.96.0.10:53", 0, "dns-udp-10.96.0.10-53-0"},
		{"tcp", "[2001:db8::10]:53", 0, "dns-tcp-2001_db8__10-53-0"},
		{"udp", "[fe80::1%eth0]:5353", 3, "dns-udp-fe80__1%eth0-5353-3"},
	} {
		if got := socketName(tt.network, netip.MustParseAddrPort(tt.addr), tt.i); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.network, tt.addr, got, tt.want)
		}
	}
}
