package overlay

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errClosed is returned after Close.
var errClosed = errors.New("overlay is closed")

// nsThread is an operating system thread that stays in one network namespace.
// Sockets and /proc/sys/net belong to the namespace of the thread that opens
// them, so that everything about a namespace runs here.
type nsThread struct {
	work chan func()
	done chan struct{}
	once sync.Once
}

// newNSThread starts a thread in the namespace ns, which it leaves open. When
// that is where new threads are anyhow, no privilege is needed.
func newNSThread(ns netns.NsHandle) (*nsThread, error) {
	t := &nsThread{work: make(chan func()), done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Never unlocked: a thread that changed its namespace ends with its goroutine.
		runtime.LockOSThread()
		if err := enterNetns(ns); err != nil {
			started <- err
			return
		}
		started <- nil
		for {
			select {
			case f := <-t.work:
				f()
			case <-t.done:
				return
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

// enterNetns moves the locked thread of the caller into ns.
func enterNetns(ns netns.NsHandle) error {
	cur, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the network namespace of the thread: %w", err)
	}
	defer cur.Close()
	if cur.Equal(ns) {
		return nil
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// do runs f on the thread and returns its error.
func (t *nsThread) do(f func() error) error {
	res := make(chan error, 1)
	select {
	case t.work <- func() { res <- f() }:
		return <-res
	case <-t.done:
		return errClosed
	}
}

func (t *nsThread) close() { t.once.Do(func() { close(t.done) }) }

// inNetns runs f on a thread of its own in the namespace at path.
func inNetns(path string, f func(ns netns.NsHandle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(ns), &st); err == nil && st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("open network namespace %s: not a namespace: %w", path, os.ErrInvalid)
	}
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // see newNSThread
		if err := enterNetns(ns); err != nil {
			res <- err
			return
		}
		res <- f(ns)
	}()
	return <-res
}
