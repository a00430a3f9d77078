package lb

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Keeper holds sockets beyond the life of the process, for the next one to
// take. Names are those of this package, such as lb-tcp-127.0.0.1-8080. It is
// called by one goroutine at a time.
type Keeper interface {
	// Take returns what the process before this one left under a name, once;
	// the caller closes it. Nil: there is none. It stays kept.
	Take(name string) *os.File
	// Keep holds a descriptor under a name from now on.
	Keep(name string, c syscall.RawConn) error
	// Drop ends that. Without it a socket that was closed here stays open.
	Drop(name string) error
	// DropRest drops what the process before left and nobody took.
	DropRest() error
}

const (
	// handoverGrace is how long what was handed over waits to be wanted.
	handoverGrace = 10 * time.Second
	// freedWithin is how long a Keeper may hold a port that was given up.
	freedWithin = 5 * time.Second
	maxKept     = 1024 // ports; the unit's FileDescriptorStoreMax counts on it
	maxHanded   = 256  // connections, of two sockets each; likewise
	maxHandFile = 64 << 20
)

// connsName is where a process that ends writes down what its connections are.
const connsName = "lb-conns"

// handed is that file. It comes as a descriptor like the sockets.
type handed struct {
	Version int // 1
	Conns   []handedConn
}

// handedConn is one connection: its sockets are kept by the names that its ID
// gives. The end of a stream is not in it, since it can be read again.
type handedConn struct {
	ID int
	// The published port, and the target. A socket that its peer has closed
	// may have something to read still, and does not know addresses any more.
	At, To   netip.AddrPort
	New      bool   // there is no connection to the target yet
	Up, Down []byte // read, and not written yet
}

func (c handedConn) client() string { return fmt.Sprintf("lb-conn-%d-client", c.ID) }
func (c handedConn) target() string { return fmt.Sprintf("lb-conn-%d-target", c.ID) }

// kept is what the Keeper has of the loopback listener. Without a Keeper its
// methods do nothing.
//
//	port      its socket is kept from when it opens, so that clients that
//	          connect while no process runs wait; also after kill -9
//	connection  both sockets are kept from when the process ends, in order; a
//	          process that is killed takes its connections along. To keep
//	          each when it is accepted would cost two messages to the service
//	          manager for each, and what is between them would be lost.
type kept struct {
	log *slog.Logger
	k   Keeper

	mu      sync.Mutex
	count   int       // ports
	began   time.Time // zero: nothing was taken yet
	gaveUp  bool
	arrived map[Target][]*relay // wait for their port
	left    []*relay            // to be handed over
	broken  bool                // a socket could not be kept
}

func newKept(log *slog.Logger, k Keeper) *kept {
	return &kept{log: log, k: k, arrived: make(map[Target][]*relay)}
}

// begin takes the connections that the process before left.
func (s *kept) begin(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.k == nil || !s.began.IsZero() {
		return
	}
	s.began = now
	f := s.k.Take(connsName)
	if f == nil {
		return
	}
	defer f.Close()
	s.drop(connsName)
	var list handed
	err := json.NewDecoder(io.NewSectionReader(f, 0, maxHandFile)).Decode(&list)
	if err == nil && list.Version != 1 {
		err = fmt.Errorf("version %d, this one knows 1", list.Version)
	}
	if err != nil {
		s.log.Warn("connections of the process before on loopback end", "err", err)
		return // their sockets go with DropRest
	}
	n := 0
	for _, c := range list.Conns {
		r := s.takeConn(c)
		if r == nil {
			continue
		}
		k := Target{c.At.Addr(), TCP, c.At.Port()}
		s.arrived[k] = append(s.arrived[k], r)
		n++
	}
	s.log.Info("connections on loopback taken over", "count", n, "left", len(list.Conns))
}

// takeConn returns a connection; nil: it is not whole.
func (s *kept) takeConn(c handedConn) *relay {
	r := &relay{at: c.At, to: c.To, client: s.takeStream(c.client()), up: half{rest: c.Up}, down: half{rest: c.Down}}
	if !c.New {
		r.target = s.takeStream(c.target())
	}
	if r.client != nil && (c.New || r.target != nil) {
		return r
	}
	for _, d := range []duplex{r.client, r.target} {
		if d != nil {
			d.Close()
		}
	}
	return nil
}

// takeStream takes a socket, which from now on lives and ends with this process.
func (s *kept) takeStream(name string) duplex {
	f := s.k.Take(name)
	if f == nil {
		return nil
	}
	defer f.Close()
	s.drop(name)
	c, err := net.FileConn(f)
	if err != nil {
		s.log.Debug("connection not taken over", "name", name, "err", err)
		return nil
	}
	d, ok := c.(duplex)
	if !ok {
		c.Close()
		return nil
	}
	return d
}

// waiting returns the connections that wait for a port. Those that went to
// another target are closed.
func (s *kept) waiting(k Target, target netip.AddrPort) []*relay {
	s.mu.Lock()
	list := s.arrived[k]
	delete(s.arrived, k)
	s.mu.Unlock()
	return slices.DeleteFunc(list, func(r *relay) bool {
		if r.target == nil || r.to == target {
			r.to = target
			return false
		}
		r.Close()
		return true
	})
}

// take returns the socket of a port that was handed over; the zero portSocket: there is none.
func (s *kept) take(k Target) (portSocket, error) {
	if s.k == nil {
		return portSocket{}, nil
	}
	name := socketName(k)
	f := s.k.Take(name)
	if f == nil {
		return portSocket{}, nil
	}
	p, err := spare{f, name}.socket(k)
	if err != nil {
		s.log.Warn("socket of a published port that was handed over is no good", "name", name, "err", err)
		s.drop(name)
		return portSocket{}, nil
	}
	s.mu.Lock()
	s.count++
	s.mu.Unlock()
	return p, nil
}

// add keeps the socket of a port and returns the name that it has then.
func (s *kept) add(k Target, p portSocket) (name string) {
	if s.k == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count >= maxKept {
		return ""
	}
	c, err := p.raw()
	if err == nil {
		err = s.k.Keep(socketName(k), c)
	}
	if err != nil {
		if !s.broken {
			s.log.Warn("published ports are closed on loopback while the daemon restarts: see what the service manager says about the unit", "err", err)
		}
		s.broken = true
		return ""
	}
	s.broken = false
	s.count++
	return socketName(k)
}

// drop gives up what is kept under a name; empty: nothing is.
func (s *kept) drop(name string) {
	if name == "" {
		return
	}
	if err := s.k.Drop(name); err != nil {
		s.log.Warn("socket of a published port stays with the service manager", "name", name, "err", err)
	}
}

// release is drop for the socket of a port.
func (s *kept) release(name string) {
	if name == "" {
		return
	}
	s.mu.Lock()
	s.count--
	s.mu.Unlock()
	s.drop(name)
}

// giveUp gives up, once and not too soon, what was handed over and is not
// wanted, and reports whether it did.
func (s *kept) giveUp(now time.Time) bool {
	s.mu.Lock()
	if s.k == nil || s.gaveUp || s.began.IsZero() || now.Sub(s.began) < handoverGrace {
		s.mu.Unlock()
		return false
	}
	s.gaveUp = true
	arrived := s.arrived
	s.arrived = make(map[Target][]*relay)
	s.mu.Unlock()
	for _, list := range arrived {
		for _, r := range list {
			r.Close()
		}
	}
	if err := s.k.DropRest(); err != nil {
		s.log.Warn("sockets that are not wanted stay with the service manager", "err", err)
	}
	return true
}

// leave notes a connection that is halted.
func (s *kept) leave(r *relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, r)
}

// handOver leaves the halted connections to the next process, and those that
// still waited for their port. It closes all here.
func (s *kept) handOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Concat(append(slices.Collect(maps.Values(s.arrived)), s.left)...)
	s.arrived, s.left = make(map[Target][]*relay), nil
	defer func() {
		for _, r := range list {
			r.Close()
		}
	}()
	if len(list) == 0 || s.k == nil {
		return
	}
	n := min(len(list), maxHanded)
	if err := s.store(list[:n]); err != nil {
		s.log.Warn("connections on loopback end", "err", err)
		return
	}
	s.log.Info("connections on loopback left to the next process", "count", n, "of", len(list))
}

// store keeps connections. The file comes first: what it names and is not
// there ends, and a socket that it does not name is not used.
func (s *kept) store(list []*relay) error {
	file := handed{Version: 1}
	for i, r := range list {
		file.Conns = append(file.Conns, handedConn{ID: i, At: r.at, To: r.to, New: r.target == nil, Up: r.up.rest, Down: r.down.rest})
	}
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate(connsName, unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), connsName)
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := s.keepFD(connsName, f); err != nil {
		return err
	}
	for i, r := range list {
		err := s.keepFD(file.Conns[i].client(), r.client)
		if err == nil && r.target != nil {
			err = s.keepFD(file.Conns[i].target(), r.target)
		}
		if err != nil {
			return fmt.Errorf("of %d connections %d are kept: %w", len(list), i, err)
		}
	}
	return nil
}

func (s *kept) keepFD(name string, c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return s.k.Keep(name, raw)
}
