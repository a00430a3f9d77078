package announce

import (
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shelf is a service manager, for sockets of one process after the other.
type shelf struct {
	mu    sync.Mutex
	files map[string]*os.File
	given map[string]bool
}

func (s *shelf) dup(f *os.File, name string) (*os.File, error) {
	n, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(n), name), err
}

func (s *shelf) Take(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[name] == nil || s.given[name] {
		return nil
	}
	s.given[name] = true
	f, err := s.dup(s.files[name], name)
	if err != nil {
		return nil
	}
	return f
}

func (s *shelf) Keep(name string, c syscall.RawConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	cerr := c.Control(func(fd uintptr) {
		var n int
		n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		s.files[name], s.given[name] = os.NewFile(uintptr(n), name), true
	})
	return errors.Join(err, cerr)
}

func (s *shelf) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[name]; f != nil {
		f.Close()
	}
	delete(s.files, name)
	return nil
}

// inodes tells the sockets.
func (s *shelf) inodes() (out []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err == nil {
			out = append(out, st.Ino)
		}
	}
	return out
}

// TestHostStaysMember: the interface hears asks for an IPv6 address from one
// process to the next, and no longer than it is held.
func TestHostStaysMember(t *testing.T) {
	node, _ := cable(t)
	k := &shelf{files: map[string]*os.File{}, given: map[string]bool{}}
	group := strings.ReplaceAll(solicitedNode(ext6).StringExpanded(), ":", "")
	member := func() (yes bool) {
		node.do(func() error {
			b, err := os.ReadFile("/proc/thread-self/net/igmp6")
			yes = strings.Contains(string(b), group)
			return err
		})
		return yes
	}
	v := viewOf(1, nodes(1), svc("web", ext6))
	var before uint64
	for i := range 3 {
		clear(k.given)
		sp, stop := node.startOn(Host{Sockets: k}, v)
		waitFor(t, "the address is announced", 10*time.Second, announced(sp, 1))
		kept := k.inodes()
		if !member() || len(kept) != 1 {
			t.Fatalf("process %d: member %t, %d sockets kept", i, member(), len(kept))
		}
		if kept[0] == before {
			t.Errorf("process %d keeps the socket of the one before, whose groups are not known", i)
		}
		before = kept[0]
		stop()
		if !member() {
			t.Fatalf("process %d took the membership along", i)
		}
	}
	clear(k.given)
	sp, stop := node.startOn(Host{Sockets: k}, v)
	defer stop()
	waitFor(t, "the address is announced", 10*time.Second, announced(sp, 1))
	list := nodes(1)
	list[0].LANs = nil
	gone := viewOf(1, list, svc("web", ext6))
	sp.Set(Elect(gone), gone.Rev+1)
	waitFor(t, "it is no member", 5*time.Second, func() bool { return !member() && len(k.inodes()) == 0 })
}
