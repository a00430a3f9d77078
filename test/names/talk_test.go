package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/test/scenario"
)

// inNetns runs fn in a network namespace.
func inNetns(t *testing.T, netns string, fn func() error) {
	t.Helper()
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f, err := os.Open(netns)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = fn()
		}
		errc <- err
	}()
	must(t, <-errc)
}

// echoes answers with what it gets, at an address of a namespace.
func echoes(t *testing.T, netns, addr string) {
	t.Helper()
	var l net.Listener
	inNetns(t, netns, func() (err error) { l, err = net.Listen("tcp4", addr); return err })
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // how it ends, the client sees
			}()
		}
	}()
}

// talk is a TCP connection to an echo over which numbers go to and fro, in
// bursts of 64 KiB, several MB a second.
type talk struct {
	s    *scenario.Scenario
	conn *net.TCPConn
	stop chan struct{}
	done sync.WaitGroup

	mu        sync.Mutex
	sent, got uint64
	err       error
}

func newTalk(t *testing.T, s *scenario.Scenario, netns, addr string) *talk {
	t.Helper()
	w := &talk{s: s, stop: make(chan struct{})}
	inNetns(t, netns, func() error {
		c, err := net.DialTimeout("tcp4", addr, soon)
		if err == nil {
			w.conn = c.(*net.TCPConn)
		}
		return err
	})
	t.Cleanup(func() { w.conn.Close() })
	w.done.Go(func() { w.note(w.write()) })
	w.done.Go(func() { w.note(w.read()) })
	return w
}

func (w *talk) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

func (w *talk) write() error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := uint64(0); ; {
		var b []byte
		for len(b) < 64<<10 {
			b = binary.BigEndian.AppendUint64(b, i)
			i++
		}
		if _, err := w.conn.Write(b); err != nil {
			return err
		}
		w.mu.Lock()
		w.sent = i
		w.mu.Unlock()
		select {
		case <-w.stop:
			return w.conn.CloseWrite()
		case <-tick.C:
		}
	}
}

func (w *talk) read() error {
	b := make([]byte, 32<<10)
	for i := uint64(0); ; {
		n, err := io.ReadFull(w.conn, b)
		for p := b[:n-n%8]; len(p) > 0; p, i = p[8:], i+1 {
			if got := binary.BigEndian.Uint64(p); got != i {
				return fmt.Errorf("number %d instead of %d", got, i)
			}
		}
		w.mu.Lock()
		w.got = i
		w.mu.Unlock()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (w *talk) seen() (sent, got uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent, w.got, w.err
}

// goesOn waits until what was sent by now has come back.
func (w *talk) goesOn(what string) {
	w.s.T().Helper()
	sent, _, _ := w.seen()
	w.s.Eventually(what+": the connection by loopback goes on", soon, func() error {
		_, got, err := w.seen()
		if err == nil && got < sent {
			err = fmt.Errorf("%d of %d numbers came back", got, sent)
		}
		return err
	})
}

// ends waits until it has ended by itself.
func (w *talk) ends(what string) {
	w.s.T().Helper()
	w.s.Eventually(what+": the connection by loopback ends", soon, func() error {
		if _, _, err := w.seen(); err == nil {
			return errors.New("it goes on")
		}
		return nil
	})
}

// finish ends it in order: all must have come back.
func (w *talk) finish(what string) {
	w.s.T().Helper()
	close(w.stop)
	w.done.Wait()
	sent, got, err := w.seen()
	if err != nil || got != sent {
		w.s.T().Errorf("%s: of %d numbers by loopback %d came back, %v", what, sent, got, err)
	}
}
