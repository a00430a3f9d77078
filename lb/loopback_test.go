package lb

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestLoopbackPortInUse: a taken port is reported, does not stop the others,
// and is served once it is free.
func TestLoopbackPortInUse(t *testing.T) {
	defer goleak.VerifyNone(t)
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	echo, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()

	target := echo.LocalAddr().(*net.UDPAddr).AddrPort()
	at := taken.Addr().(*net.TCPAddr).AddrPort()
	udp := free.LocalAddr().(*net.UDPAddr).AddrPort()
	l := newLoopback(slog.New(slog.DiscardHandler), nil)
	defer l.close()
	l.set([]Publish{
		{HostAddr: at.Addr(), Proto: TCP, HostPort: at.Port(), Target: target},
		{HostAddr: udp.Addr(), Proto: UDP, HostPort: udp.Port(), Target: target},
	})
	if p := l.problems(); len(p) != 1 || !strings.Contains(p[0], at.String()) || !strings.Contains(p[0], "in use") {
		t.Errorf("problems: %q", p)
	}
	c, err := net.Dial("udp4", udp.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, msg := range []string{"one", "two"} {
		if _, err := c.Write([]byte(msg)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != msg {
			t.Errorf("answer %q %v, want %q", b[:n], err, msg)
		}
	}
	taken.Close()
	l.retry()
	if p := l.problems(); len(p) != 0 {
		t.Errorf("problems after the port is free: %q", p)
	}
	tc, err := net.Dial("tcp4", at.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		t.Errorf("not served: %v", err)
	case err == nil: // else reset, since nothing listens at the target
		tc.Close()
	}
	echo.Close()
}

// TestLoopbackHalfClose: the end of one direction is passed on while the
// other still carries the answer.
func TestLoopbackHalfClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	srv, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go func() {
		c, err := srv.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 100)
		total := 0
		for {
			n, err := c.Read(b)
			total += n
			if err != nil {
				break
			}
		}
		_, _ = c.Write([]byte{byte(total)})
	}()
	probe, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := probe.Addr().(*net.TCPAddr).AddrPort()
	probe.Close()
	l := newLoopback(slog.New(slog.DiscardHandler), nil)
	defer l.close()
	l.set([]Publish{{HostAddr: at.Addr(), Proto: TCP, HostPort: at.Port(), Target: netip.MustParseAddrPort(srv.Addr().String())}})
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	n, err := c.Read(b)
	if err != nil || n != 1 || b[0] != 5 {
		t.Errorf("answer %v %v, want 5 bytes counted", b[:n], err)
	}
}
