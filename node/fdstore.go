package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fdStore keeps sockets with the service manager (FDSTORE in sd_notify(3)),
// which hands them to the next process that it starts for the unit
// (sd_listen_fds(3)).
//
//	open socket ──► FDSTORE=1, FDNAME=…, the descriptor ──► service manager
//	next process ◄── LISTEN_FDS, LISTEN_FDNAMES, descriptors from 3 on
//
// What it took stays in the store until it is dropped. The service manager
// takes as many as FileDescriptorStoreMax of the unit says, and forgets them
// when the unit is stopped; a restart is no stop.
type fdStore struct {
	log  *slog.Logger
	conn *net.UnixConn

	mu   sync.Mutex
	left map[string]*os.File // handed over, and not taken yet
}

// Names of descriptors begin with whose they are.
const (
	fdsOfDNS      = "dns-"
	fdsOfLB       = "lb-"
	fdsOfAnnounce = "announce-"
)

func isOurs(name string) bool {
	return slices.ContainsFunc([]string{fdsOfDNS, fdsOfLB, fdsOfAnnounce}, func(p string) bool { return strings.HasPrefix(name, p) })
}

// fdPart is the store as one part sees it. It implements dns.Keeper,
// lb.Keeper and announce.Sockets.
type fdPart struct {
	*fdStore
	prefix string
}

// storeWait bounds how long a busy service manager holds the caller up.
const storeWait = 2 * time.Second

// openFDStore takes over what the environment says, which it removes there:
// children must not believe that it is theirs. It returns nil when no service
// manager started this process.
func openFDStore(log *slog.Logger) (*fdStore, error) {
	left := inherited(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(v); err != nil {
			return nil, fmt.Errorf("remove %s from the environment: %w", v, err)
		}
	}
	conn, err := dialNotify()
	if conn == nil {
		for _, f := range left {
			f.Close()
		}
		return nil, err
	}
	if len(left) > 0 {
		log.Info("sockets handed over by the service manager", "count", len(left))
	}
	return &fdStore{log: log, conn: conn, left: left}, nil
}

// inherited finds the descriptors that are meant for this process.
func inherited(pid, count, names string) map[string]*os.File {
	out := make(map[string]*os.File)
	if pid != strconv.Itoa(os.Getpid()) {
		return out
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 1<<16 {
		return out
	}
	const first = 3 // SD_LISTEN_FDS_START
	list := strings.Split(names, ":")
	for i := range n {
		unix.CloseOnExec(first + i)
		if i >= len(list) || !isOurs(list[i]) {
			continue
		}
		f := os.NewFile(uintptr(first+i), list[i])
		if f == nil {
			continue
		}
		if out[list[i]] != nil {
			f.Close() // names are unique: an older one under the same name
			continue
		}
		out[list[i]] = f
	}
	return out
}

// dialNotify connects to the service manager's socket; nil: there is none.
func dialNotify() (*net.UnixConn, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:] // abstract socket
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notify the service manager: %w", err)
	}
	return c, nil
}

// Take returns what the process before left under a name, once.
func (s *fdStore) Take(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.left[name]
	delete(s.left, name)
	return f
}

// Keep hands a descriptor to the service manager. FDPOLL=0: an error that waits
// in the socket, such as an ICMP message, must not end the keeping, nor must
// the end of a connection.
func (s *fdStore) Keep(name string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(int(fd)))
	})
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("hand to the service manager: %w", err)
	}
	return nil
}

// Drop has the service manager close its descriptor.
func (s *fdStore) Drop(name string) error {
	if f := s.Take(name); f != nil {
		f.Close()
	}
	if err := s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil); err != nil {
		return fmt.Errorf("drop socket %s: %w", name, err)
	}
	return nil
}

// DropRest drops those of the part that nobody took.
func (s fdPart) DropRest() error {
	s.mu.Lock()
	var names []string
	for name := range s.left {
		if strings.HasPrefix(name, s.prefix) {
			names = append(names, name)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, name := range names {
		errs = append(errs, s.Drop(name))
	}
	return errors.Join(errs...)
}

// send sends one message with descriptors. net.UnixConn has nothing for that on
// a connected datagram socket.
func (s *fdStore) send(text string, rights []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(storeWait)); err != nil {
		return err
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), []byte(text), rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return !errors.Is(serr, unix.EAGAIN)
	})
	return errors.Join(err, os.NewSyscallError("sendmsg", serr))
}

// close leaves what is kept with the service manager.
func (s *fdStore) close() {
	if s == nil {
		return
	}
	s.conn.Close()
	for _, f := range s.left {
		f.Close()
	}
}
