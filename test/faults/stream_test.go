package faults

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetns runs fn on a thread of its own in a network namespace. Sockets that
// fn opens stay there.
func inNetns(netns string, fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f, err := os.Open(netns)
		if err != nil {
			errc <- err
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("enter %s: %w", netns, err)
			return
		}
		errc <- fn()
	}()
	return <-errc
}

// stream is one TCP connection between two namespaces, over which numbers go
// to and fro, a thousand a second.
type stream struct {
	conn *net.TCPConn
	stop chan struct{}
	done chan struct{}

	mu   sync.Mutex
	n    uint64
	gap  time.Duration
	err  error
	last time.Time
}

// report is what a stream has seen.
type report struct {
	numbers     uint64
	longest     time.Duration // between two answers
	retransmits uint32        // segments that either side sent again
}

// startStream connects from one namespace to another, where it listens on a
// port; addr is the address by which the one reaches the other.
func startStream(t *testing.T, from, to, addr string, port uint16) *stream {
	t.Helper()
	var l *net.TCPListener
	must(t, inNetns(to, func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{Port: int(port)})
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	s := &stream{stop: make(chan struct{}), done: make(chan struct{})}
	must(t, inNetns(from, func() (err error) {
		s.conn, err = net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), port)))
		return err
	}))
	t.Cleanup(func() { s.conn.Close() })
	s.last = time.Now()
	go s.run()
	return s
}

func (s *stream) run() {
	defer close(s.done)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var out, in [8]byte
	for i := uint64(1); ; i++ {
		binary.BigEndian.PutUint64(out[:], i)
		s.conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := s.conn.Write(out[:])
		if err == nil {
			_, err = io.ReadFull(s.conn, in[:])
		}
		if err == nil && in != out {
			err = fmt.Errorf("number %d came back as %d", i, binary.BigEndian.Uint64(in[:]))
		}
		s.mu.Lock()
		now := time.Now()
		s.n, s.err = i, err
		s.gap, s.last = max(s.gap, now.Sub(s.last)), now
		s.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
	}
}

// finish ends the stream and says how it went. A packet that was lost shows
// up as one sent again.
func (s *stream) finish(t *testing.T) report {
	t.Helper()
	close(s.stop)
	<-s.done
	raw, err := s.conn.SyscallConn()
	must(t, err)
	var info *unix.TCPInfo
	must(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	must(t, err)
	must(t, s.conn.Close())
	if s.err != nil {
		t.Fatalf("the stream broke at number %d: %v", s.n, s.err)
	}
	return report{s.n, s.gap, info.Total_retrans}
}
