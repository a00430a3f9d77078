package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/test/scenario"
)

// manager plays the service manager for one node's daemon, as far as the
// daemon sees it: readiness and a store of descriptors over NOTIFY_SOCKET
// (sd_notify(3)), LISTEN_FDS for the next process (sd_listen_fds(3)).
type manager struct {
	t    *testing.T
	s    *scenario.Scenario
	node int
	path string
	conn *net.UnixConn

	mu    sync.Mutex
	store []stored
	ready chan struct{}
	cmd   *exec.Cmd
}

// stored is one descriptor.
type stored struct {
	name string
	file *os.File
}

// manage takes a node's daemon over from the lab, and gives it back at the end.
func manage(t *testing.T, s *scenario.Scenario, node int) *manager {
	t.Helper()
	m := &manager{t: t, s: s, node: node, path: filepath.Join(t.TempDir(), "notify")}
	var err error
	m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	must(t, err)
	var listening sync.WaitGroup
	listening.Go(m.listen)
	must(t, s.Lab.Kill(t.Context(), m.name(), unix.SIGTERM))
	t.Cleanup(func() {
		m.end(unix.SIGTERM)
		m.conn.Close()
		listening.Wait()
		for _, f := range m.store {
			f.file.Close()
		}
		must(t, s.Lab.Start(context.Background(), m.name()))
	})
	m.start()
	return m
}

func (m *manager) name() string { return fmt.Sprintf("node%d", m.node) }

// listen reads what the daemon says until the socket is closed.
func (m *manager) listen() {
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			m.t.Errorf("notify socket: %v", err)
			return
		}
		m.hear(string(buf[:n]), oob[:oobn])
	}
}

func (m *manager) hear(text string, oob []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	said := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		said[k] = v
	}
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		more, e := unix.ParseUnixRights(&msgs[i])
		fds, err = append(fds, more...), errors.Join(err, e)
	}
	if err != nil {
		m.t.Errorf("descriptors with %q: %v", text, err)
	}
	name := said["FDNAME"]
	if strings.Contains(name, ":") {
		m.t.Errorf("FDNAME %s: a service manager takes no colon", name)
	}
	switch {
	case said["FDSTORE"] == "1":
		if len(fds) != 1 || said["FDPOLL"] != "0" {
			m.t.Errorf("FDSTORE of %s: %d descriptors, FDPOLL=%s", name, len(fds), said["FDPOLL"])
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			m.store = append(m.store, stored{name, os.NewFile(uintptr(fd), name)})
		}
	case said["FDSTOREREMOVE"] == "1":
		m.store = slices.DeleteFunc(m.store, func(s stored) bool {
			if s.name == name {
				s.file.Close()
			}
			return s.name == name
		})
	}
	if said["READY"] == "1" {
		close(m.ready)
	}
}

// start starts the daemon with what is stored. It does not wait.
func (m *manager) start() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.s.Lab.Node(m.node)
	var names []string
	var files []*os.File
	// Newest first: the order is not the daemon's to rely on.
	for _, s := range slices.Backward(m.store) {
		names, files = append(names, s.name), append(files, s.file)
	}
	env := fmt.Sprintf("NOTIFY_SOCKET=%s LISTEN_FDS=%d LISTEN_FDNAMES=%s LISTEN_PID=$$", m.path, len(files), strings.Join(names, ":"))
	v, err := m.s.Lab.View(m.name())
	must(m.t, err)
	cmd := exec.Command("sh", "-c", fmt.Sprintf("%s exec nodectl run --config %s/Nodefile --state %s/state --socket %s", env, n.Dir, n.Dir, n.Socket))
	log, err := os.OpenFile(n.Log(), os.O_APPEND|os.O_WRONLY, 0)
	must(m.t, err)
	defer log.Close()
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = files, log, log
	m.ready = make(chan struct{})
	must(m.t, v.Start(cmd))
	m.cmd = cmd
}

// end ends the daemon and waits until it has.
func (m *manager) end(sig unix.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Error(err)
	}
	_ = m.cmd.Wait() // how it ended was our doing
}

// waitReady waits for READY=1.
func (m *manager) waitReady() {
	m.t.Helper()
	m.mu.Lock()
	ready := m.ready
	m.mu.Unlock()
	select {
	case <-ready:
	case <-time.After(soon):
		b, _ := os.ReadFile(m.s.Lab.Node(m.node).Log())
		m.t.Fatalf("%s is not ready after %s:\n%s", m.name(), soon, b)
	}
}

// sockets are the inodes of what is stored, by name.
func (m *manager) sockets() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]uint64{}
	for _, s := range m.store {
		var st unix.Stat_t
		must(m.t, unix.Fstat(int(s.file.Fd()), &st))
		out[s.name] = st.Ino
	}
	return out
}
