package node

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFDStore: what is kept arrives at the service manager as an open socket,
// and what is dropped is named.
func TestFDStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()+1)) // somebody else's
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_FDNAMES", "dns-udp-127.0.0.1-53-0")
	s, err := openFDStore(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if f := s.Take("dns-udp-127.0.0.1-53-0"); f != nil {
		t.Error("took a descriptor that was meant for another process")
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if _, ok := os.LookupEnv(v); ok {
			t.Errorf("%s is still in the environment", v)
		}
	}
	sock, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	raw, err := sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Keep("dns-a", raw); err != nil {
		t.Fatal(err)
	}
	buf, oob := make([]byte, 1024), make([]byte, 1024)
	n, oobn, _, _, err := manager.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(buf[:n]); got != "FDSTORE=1\nFDPOLL=0\nFDNAME=dns-a" {
		t.Errorf("said %q", got)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	f := os.NewFile(uintptr(fds[0]), "kept")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil || c.LocalAddr().String() != sock.LocalAddr().String() {
		t.Errorf("the descriptor is %v, %v", c, err)
	} else {
		c.Close()
	}
	if err := s.Drop("dns-a"); err != nil {
		t.Fatal(err)
	}
	if n, _ = manager.Read(buf); string(buf[:n]) != "FDSTOREREMOVE=1\nFDNAME=dns-a" {
		t.Errorf("said %q", buf[:n])
	}
	// Each part gives up its own alone.
	for _, name := range []string{"dns-b", "lb-b"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		s.left[name] = r
	}
	if err := (fdPart{s, fdsOfLB}).DropRest(); err != nil {
		t.Fatal(err)
	}
	if n, _ = manager.Read(buf); string(buf[:n]) != "FDSTOREREMOVE=1\nFDNAME=lb-b" {
		t.Errorf("said %q", buf[:n])
	}
	if f := s.Take("dns-b"); f == nil {
		t.Error("what another part may still take is gone")
	} else {
		f.Close()
	}
	manager.Close()
	if err := s.Keep("dns-a", raw); err == nil || !strings.Contains(err.Error(), "hand to the service manager") {
		t.Errorf("without a service manager: %v", err)
	}
}

// TestFDStoreWithout: without a service manager there is no store.
func TestFDStoreWithout(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("LISTEN_PID", "")
	if s, err := openFDStore(slog.New(slog.DiscardHandler)); s != nil || err != nil {
		t.Errorf("store %v, %v", s, err)
	}
}
