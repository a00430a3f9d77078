package services

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asking is one HTTP connection by which a client asks ten times a second.
type asking struct {
	by    string // who answers
	conn  net.Conn
	done  chan error
	ended time.Time // after wait
}

// keepAsking connects from a namespace. The connection ends with the test at
// the latest.
func keepAsking(t *testing.T, netns, addr string) *asking {
	t.Helper()
	a := &asking{done: make(chan error, 1)}
	begun := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f, err := os.Open(netns)
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			a.conn, err = net.DialTimeout("tcp4", addr, soon)
		}
		begun <- err
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.conn.Close() })
	r := bufio.NewReader(a.conn)
	var err error
	if a.by, err = a.ask(r); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			time.Sleep(100 * time.Millisecond)
			by, err := a.ask(r)
			if err == nil && by != a.by {
				err = fmt.Errorf("%s answers for %s", by, a.by)
			}
			if err != nil {
				a.ended = time.Now()
				a.done <- err
				return
			}
		}
	}()
	return a
}

// ask makes one request and says who answered.
func (a *asking) ask(r *bufio.Reader) (by string, err error) {
	_ = a.conn.SetDeadline(time.Now().Add(soon))
	if _, err := io.WriteString(a.conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	by, _, _ = strings.Cut(string(b), " ")
	return by, err
}

// wait waits for the end and says why.
func (a *asking) wait() error {
	select {
	case err := <-a.done:
		return err
	case <-time.After(soon):
		a.ended = time.Now()
		return fmt.Errorf("it goes on %s later", soon)
	}
}
