package lb

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// shelf is a Keeper in memory: a service manager, as one process after the
// other sees it.
type shelf struct {
	t *testing.T

	mu    sync.Mutex
	files map[string]*os.File
	given map[string]bool // to the process that runs
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{t: t, files: map[string]*os.File{}, given: map[string]bool{}}
	t.Cleanup(func() {
		for _, f := range s.files {
			f.Close()
		}
	})
	return s
}

func (s *shelf) dup(fd uintptr, name string) *os.File {
	n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		s.t.Error(err)
	}
	return os.NewFile(uintptr(n), name)
}

// lend lends a file's descriptor. (*os.File).Fd would make it blocking.
func lend(f *os.File, do func(fd uintptr)) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(do)
}

func (s *shelf) Take(name string) (f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[name] == nil || s.given[name] {
		return nil
	}
	s.given[name] = true
	if err := lend(s.files[name], func(fd uintptr) { f = s.dup(fd, name) }); err != nil {
		s.t.Error(err)
	}
	return f
}

func (s *shelf) Keep(name string, c syscall.RawConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[name] != nil {
		s.t.Errorf("%s is kept already", name)
	}
	s.given[name] = true
	return c.Control(func(fd uintptr) { s.files[name] = s.dup(fd, name) })
}

func (s *shelf) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[name] == nil {
		return fmt.Errorf("%s is not kept", name)
	}
	err := s.files[name].Close()
	delete(s.files, name)
	return err
}

func (s *shelf) DropRest() error {
	for name := range s.inodes() {
		if !s.given[name] {
			if err := s.Drop(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// next is what happens between two processes.
func (s *shelf) next() { clear(s.given) }

// inodes tells which file each name stands for.
func (s *shelf) inodes() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]uint64{}
	for name, f := range s.files {
		var st unix.Stat_t
		if err := lend(f, func(fd uintptr) {
			if err := unix.Fstat(int(fd), &st); err != nil {
				s.t.Error(err)
			}
		}); err != nil {
			s.t.Error(err)
		}
		out[name] = st.Ino
	}
	return out
}

func (s *shelf) names() []string { return slices.Sorted(maps.Keys(s.inodes())) }

// begin is a new process that publishes ports.
func (s *shelf) begin(dial LoopbackIO, want ...Publish) *loopback {
	s.next()
	l := newLoopback(slog.New(slog.DiscardHandler), dial, s)
	s.t.Cleanup(l.close)
	l.set(want)
	if p := l.problems(); len(p) > 0 {
		s.t.Fatalf("another process has the port that was free: %q", p)
	}
	return l
}

func published(proto uint8, at, target netip.AddrPort) Publish {
	return Publish{HostAddr: at.Addr(), Proto: proto, HostPort: at.Port(), Target: target}
}

// ask sends a line through a connection to the echo and wants it back.
func ask(t *testing.T, c net.Conn, what string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte(what)); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	b := make([]byte, len(what))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != what {
		t.Errorf("%s: got %q, %v", what, b, err)
	}
}

func dial(t *testing.T, network string, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// udpEcho sends back what it gets.
func udpEcho(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = pc.WriteTo(b[:n], from)
			}
		}
	}()
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestHandoverPorts: who comes while no process runs is served by the next
// one, by the very same sockets; what is not published any more is given up.
func TestHandoverPorts(t *testing.T) {
	k := newShelf(t)
	echo, other, datagrams := echoServer(t), echoServer(t), udpEcho(t)
	tcp, udp := freePort(t, "tcp"), freePort(t, "udp")
	want := []Publish{published(TCP, tcp, echo), published(UDP, udp, datagrams)}
	first := k.begin(nil, want...)
	before := k.inodes()
	if len(before) != 2 {
		t.Fatalf("kept: %v", before)
	}
	client := dial(t, "udp4", udp)
	ask(t, client, "before")
	first.close()

	waits := dial(t, "tcp4", tcp)
	if _, err := client.Write([]byte("meanwhile")); err != nil {
		t.Fatal(err)
	}
	second := k.begin(nil, want...)
	ask(t, waits, "waited")
	_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 100)
	if n, err := client.Read(b); err != nil || string(b[:n]) != "meanwhile" {
		t.Errorf("the datagram that waited: %q, %v", b[:n], err)
	}
	ask(t, client, "after")
	if d := cmp.Diff(before, k.inodes()); d != "" {
		t.Errorf("kept (-before +after):\n%s", d)
	}

	// Another target, by the same socket; what ran to the old one ends.
	want[0].Target = other
	second.set(want)
	if d := cmp.Diff(before, k.inodes()); d != "" {
		t.Errorf("kept after the target moved (-before +after):\n%s", d)
	}
	ask(t, dial(t, "tcp4", tcp), "moved")
	if _, err := waits.Read(b); err == nil {
		t.Error("a connection to the former target lives")
	}

	second.set(want[1:])
	if d := cmp.Diff([]string{socketName(Target{udp.Addr(), UDP, udp.Port()})}, k.names()); d != "" {
		t.Errorf("kept (-want +got):\n%s", d)
	}
	if c, err := net.Dial("tcp4", tcp.String()); err == nil {
		c.Close()
		t.Error("a port that is not published any more is open")
	}
	second.close()

	// One that the next process does not want is given up, but not at once.
	third := k.begin(nil)
	third.tend(time.Now())
	if n := len(k.names()); n != 1 {
		t.Errorf("%d sockets kept at once, want 1: it may be wanted soon", n)
	}
	third.tend(time.Now().Add(handoverGrace))
	if names := k.names(); len(names) != 0 {
		t.Errorf("still kept: %v", names)
	}
}

// TestHandoverFreed: a port that comes back while the Keeper still holds its
// old socket is served within moments.
func TestHandoverFreed(t *testing.T) {
	k := newShelf(t)
	udp := freePort(t, "udp")
	want := published(UDP, udp, udpEcho(t))
	l := k.begin(nil, want)
	old := k.dupOf(socketName(Target{udp.Addr(), UDP, udp.Port()})) // as if Drop were slow
	l.set(nil)
	l.set([]Publish{want})
	if p := l.problems(); len(p) != 1 {
		t.Fatalf("problems: %q, want that the port is in use", p)
	}
	old.Close()
	l.tend(time.Now())
	if p := l.problems(); len(p) != 0 {
		t.Errorf("problems: %q", p)
	}
	ask(t, dial(t, "udp4", udp), "again")
}

func (s *shelf) dupOf(name string) (f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := lend(s.files[name], func(fd uintptr) { f = s.dup(fd, name) }); err != nil {
		s.t.Error(err)
	}
	return f
}

// torrent sends numbers through an echo and checks what comes back.
type torrent struct {
	c    net.Conn
	sent chan error
	done chan error
}

// newTorrent sends size bytes, the end, and reads, if slowly, all of it.
func newTorrent(c net.Conn, size int, slow time.Duration) *torrent {
	w := &torrent{c: c, sent: make(chan error, 1), done: make(chan error, 1)}
	go func() {
		b := make([]byte, 0, 8<<10)
		for i := uint64(0); i < uint64(size/8); i++ {
			if b = binary.BigEndian.AppendUint64(b, i); len(b) == cap(b) {
				if _, err := c.Write(b); err != nil {
					w.sent <- err
					return
				}
				b = b[:0]
			}
		}
		_, err := c.Write(b)
		w.sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	go func() {
		b := make([]byte, 4<<10)
		for i := uint64(0); ; {
			n, err := io.ReadFull(c, b)
			for p := b[:n-n%8]; len(p) > 0; p, i = p[8:], i+1 {
				if got := binary.BigEndian.Uint64(p); got != i {
					w.done <- fmt.Errorf("number %d instead of %d", got, i)
					return
				}
			}
			if err != nil {
				if i == uint64(size/8) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
					err = nil
				} else {
					err = fmt.Errorf("after %d of %d numbers: %w", i, size/8, err)
				}
				w.done <- err
				return
			}
			if rand.IntN(64) == 0 {
				time.Sleep(slow)
			}
		}
	}()
	return w
}

// TestHandoverConnections: streams at full speed, slow readers, one that does
// not read at all and one that has ended its own side go through many
// processes, one after the other, and lose no byte.
func TestHandoverConnections(t *testing.T) {
	k := newShelf(t)
	at := freePort(t, "tcp")
	want := published(TCP, at, echoServer(t))
	l := k.begin(nil, want)
	var runs []*torrent
	for i := range 4 {
		runs = append(runs, newTorrent(dial(t, "tcp4", at), 4<<20, time.Duration(i)*time.Millisecond))
	}
	// Nobody reads what comes back: buffers fill up, and a process has read
	// what it cannot write.
	stuck := dial(t, "tcp4", at)
	const big = 12 << 20
	go func() {
		_, _ = io.Copy(stuck, io.LimitReader(rand.NewChaCha8([32]byte{7}), big))
		_ = stuck.(*net.TCPConn).CloseWrite()
	}()
	idle := dial(t, "tcp4", at)
	ask(t, idle, "hello")

	rest := 0
	for i := range 5 {
		eventually(t, "it copies", func() bool { return l.copies() })
		time.Sleep(20 * time.Millisecond) // in the middle of it
		l.close()
		if k.inodes()[connsName] == 0 {
			t.Fatalf("process %d left no connections: %v", i, k.names())
		}
		file := k.dupOf(connsName)
		var list handed
		err := json.NewDecoder(io.NewSectionReader(file, 0, maxHandFile)).Decode(&list)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Conns {
			if len(c.Up)+len(c.Down) > 0 {
				rest++
			}
		}
		l = k.begin(nil, want)
		ask(t, idle, fmt.Sprintf("hello %d", i))
	}
	if rest == 0 {
		t.Error("no process had something read and not written: the test tests too little")
	}
	for i, r := range runs {
		if err := errors.Join(<-r.sent, <-r.done); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
	got := make([]byte, big)
	if _, err := io.ReadFull(stuck, got); err != nil {
		t.Fatalf("what nobody read for a while: %v", err)
	}
	all := make([]byte, big)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(all)
	if !bytes.Equal(got, all) {
		t.Error("what came back is not what was sent")
	}
	if n, err := stuck.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
	ask(t, idle, "bye")
	idle.Close()
	eventually(t, "ports alone are kept", func() bool { return len(k.names()) == 1 })
	eventually(t, "no connection is left", func() bool { return !l.copies() })
}

// copies reports whether any connection runs.
func (l *loopback) copies() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.open {
		f.mu.Lock()
		n := len(f.conns)
		f.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// TestHandoverHalfClosed: the client has ended its side before the process
// ends, and the answer comes through the next one.
func TestHandoverHalfClosed(t *testing.T) {
	k := newShelf(t)
	srv, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	at := freePort(t, "tcp")
	want := published(TCP, at, srv.Addr().(*net.TCPAddr).AddrPort())
	l := k.begin(nil, want)
	c := dial(t, "tcp4", at).(*net.TCPConn)
	if _, err := c.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	far, err := srv.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if b, err := io.ReadAll(far); err != nil || string(b) != "question" {
		t.Fatalf("the target got %q, %v", b, err)
	}
	l.close()
	k.begin(nil, want)
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	far.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
		t.Errorf("the client got %q, %v", b, err)
	}
}

// hung is a network whose targets do not answer.
type hung struct{ processIO }

func (hung) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestHandoverUndialed: a client whose target did not answer yet is connected
// by the next process.
func TestHandoverUndialed(t *testing.T) {
	k := newShelf(t)
	at := freePort(t, "tcp")
	want := published(TCP, at, echoServer(t))
	l := k.begin(hung{}, want)
	c := dial(t, "tcp4", at)
	if _, err := c.Write([]byte("early ")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is accepted", func() bool { return l.copies() })
	l.close()
	k.begin(nil, want)
	if _, err := c.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, len("early late"))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "early late" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestHandoverEnds: connections that the next process has no use for, or
// cannot make sense of, end; and what is kept of them goes.
func TestHandoverEnds(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, k *shelf, at netip.AddrPort){
		"the port has another target": func(t *testing.T, k *shelf, at netip.AddrPort) {
			k.begin(nil, published(TCP, at, echoServer(t)))
		},
		"the port is not published any more": func(t *testing.T, k *shelf, _ netip.AddrPort) {
			l := k.begin(nil)
			l.tend(time.Now().Add(handoverGrace))
		},
		"half of it is lost": func(t *testing.T, k *shelf, at netip.AddrPort) {
			if err := k.Drop("lb-conn-0-target"); err != nil {
				t.Fatal(err)
			}
			k.begin(nil, published(TCP, at, echoServer(t)))
		},
		"the file is of a later version": func(t *testing.T, k *shelf, at netip.AddrPort) {
			f := k.dupOf(connsName)
			defer f.Close()
			if _, err := f.WriteAt([]byte(`{"Version":2`), 0); err != nil {
				t.Fatal(err)
			}
			l := k.begin(nil, published(TCP, at, echoServer(t)))
			l.tend(time.Now().Add(handoverGrace))
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newShelf(t)
			at := freePort(t, "tcp")
			l := k.begin(nil, published(TCP, at, echoServer(t)))
			c := dial(t, "tcp4", at)
			ask(t, c, "hello")
			l.close()
			next(t, k, at)
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection goes on: %v", err)
			}
			for _, name := range k.names() {
				if strings.HasPrefix(name, "lb-conn") {
					t.Errorf("%s is still kept", name)
				}
			}
		})
	}
}

// TestHandoverIsBounded: of more connections than are kept the others end.
func TestHandoverIsBounded(t *testing.T) {
	k := newShelf(t)
	at := freePort(t, "tcp")
	want := published(TCP, at, echoServer(t))
	l := k.begin(nil, want)
	var conns []net.Conn
	for range maxHanded + 3 {
		conns = append(conns, dial(t, "tcp4", at))
		ask(t, conns[len(conns)-1], "hello")
	}
	l.close()
	if n := len(k.names()); n != 1+1+2*maxHanded {
		t.Errorf("%d descriptors are kept", n)
	}
	k.begin(nil, want)
	lives := 0
	for _, c := range conns {
		_, err := c.Write([]byte("?"))
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err == nil {
			lives++
		}
	}
	if lives != maxHanded {
		t.Errorf("%d connections live, want %d", lives, maxHanded)
	}
}

// TestRelayHalts: over socket pairs: whenever it is halted, what was read is
// written or is the rest, and going on from there loses nothing.
func TestRelayHalts(t *testing.T) {
	pair := func() (a, b duplex) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var out [2]duplex
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "pair")
			c, err := net.FileConn(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			out[i] = c.(duplex)
		}
		return out[0], out[1]
	}
	client, near := pair()
	far, target := pair()
	const size = 3 << 20
	all := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(all)
	go func() {
		_, _ = client.Write(all)
		_ = client.CloseWrite()
	}()
	arrived := make(chan []byte, 1)
	go func() {
		var got []byte
		b := make([]byte, 10_000)
		for {
			n, err := target.Read(b)
			got = append(got, b[:n]...)
			if err != nil {
				arrived <- got
				_ = target.CloseWrite()
				return
			}
			time.Sleep(100 * time.Microsecond) // slower than the client
		}
	}()
	r := &relay{client: near, target: far}
	halts, rests := 0, 0
	for {
		go func() {
			time.Sleep(2 * time.Millisecond)
			r.halt()
		}()
		r.run()
		if !r.lives() {
			break
		}
		halts++
		if len(r.up.rest) > 0 {
			rests++
		}
		_ = near.SetDeadline(time.Time{})
		_ = far.SetDeadline(time.Time{})
		r = &relay{client: near, target: far, up: half{rest: r.up.rest}, down: half{rest: r.down.rest}}
	}
	if got := <-arrived; !bytes.Equal(got, all) {
		t.Errorf("%d bytes arrived, want %d, the same", len(got), size)
	}
	if r.up.err != nil || r.down.err != nil {
		t.Errorf("it ended by %v, %v", r.up.err, r.down.err)
	}
	if halts < 10 || rests == 0 {
		t.Errorf("halted %d times, %d times with a rest: too few to tell", halts, rests)
	}
}
