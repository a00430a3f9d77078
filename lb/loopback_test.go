package lb

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"nodenet/state"
	"strings"
	"syscall"
	"testing"
	"time"

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
	l := newLoopback(slog.New(slog.DiscardHandler), nil, nil)
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
	l := newLoopback(slog.New(slog.DiscardHandler), nil, nil)
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

// echoServer answers what it gets, in 64 KiB pieces, and passes the end on.
func echoServer(t *testing.T) netip.AddrPort {
	t.Helper()
	srv, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	go func() {
		for {
			c, err := srv.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	return srv.Addr().(*net.TCPAddr).AddrPort()
}

// freePort is one that nothing listens on now.
func freePort(t *testing.T, network string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestLoopbackBigTransfer sends 64 MiB there and back at the same time, ends
// one direction and reads the other to its end.
func TestLoopbackBigTransfer(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) }) // after those of the server
	target, at := echoServer(t), freePort(t, "tcp")
	l := newLoopback(slog.New(slog.DiscardHandler), nil, nil)
	defer l.close()
	l.set([]Publish{{HostAddr: at.Addr(), Proto: TCP, HostPort: at.Port(), Target: target}})
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 64 << 20
	sent := make(chan error, 1)
	sum := sha256.New()
	go func() {
		r := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum)
		_, err := io.Copy(c, r)
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	got := sha256.New()
	n, err := io.Copy(got, c)
	if err != nil || n != size {
		t.Fatalf("%d bytes came back, %v; want %d", n, err, size)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Error("what came back is not what was sent")
	}
}

// TestLoopbackIsBounded: of very many connections to one port those over the
// bound are reset at once, the others work, and there is room again later.
func TestLoopbackIsBounded(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) }) // after those of the server
	target, at := echoServer(t), freePort(t, "tcp")
	l := newLoopback(slog.New(slog.DiscardHandler), nil, nil)
	defer l.close()
	l.set([]Publish{{HostAddr: at.Addr(), Proto: TCP, HostPort: at.Port(), Target: target}})
	echo := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	var open []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := echo(c); err != nil {
			t.Fatalf("connection %d: %v", len(open), err)
		}
		open = append(open, c)
	}
	over, err := net.Dial("tcp4", at.String())
	if err == nil {
		err = echo(over)
		over.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("one connection too many: %v, want a reset", err)
	}
	if err := echo(open[0]); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	open[1].Close()
	eventually(t, "there is room again", func() bool {
		c, err := net.Dial("tcp4", at.String())
		if err != nil {
			return false
		}
		defer c.Close()
		return echo(c) == nil
	})
}

// TestLoopbackUDP: each client has its own flow, a datagram of the largest
// size passes, and a target that refuses for a while is reached again.
func TestLoopbackUDP(t *testing.T) {
	defer goleak.VerifyNone(t)
	target, at := freePort(t, "udp"), freePort(t, "udp")
	l := newLoopback(slog.New(slog.DiscardHandler), nil, nil)
	defer l.close()
	l.set([]Publish{{HostAddr: at.Addr(), Proto: UDP, HostPort: at.Port(), Target: target}})
	var clients []net.Conn
	for range 3 {
		c, err := net.Dial("udp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	_, _ = clients[0].Write([]byte("nobody is there")) // refused, which ends the flow
	srv, err := net.ListenPacket("udp4", target.String())
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	seen := make(map[string]bool) // the server's own
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := srv.ReadFrom(b)
			if err != nil {
				return
			}
			seen[from.String()] = true
			_, _ = srv.WriteTo(append([]byte(fmt.Sprintf("%d:", len(seen))), b[:n]...)[:min(n+2, 65507)], from)
		}
	}()
	buf := make([]byte, 65535)
	for i, c := range clients {
		eventually(t, "an answer", func() bool {
			_, _ = c.Write([]byte("x"))
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := c.Read(buf)
			return err == nil && string(buf[:n]) == fmt.Sprintf("%d:x", i+1)
		})
	}
	big := bytes.Repeat([]byte("y"), 65000)
	if _, err := clients[1].Write(big); err != nil {
		t.Fatal(err)
	}
	_ = clients[1].SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		n, err := clients[1].Read(buf)
		if err != nil {
			t.Fatalf("a large datagram: %v", err)
		}
		if n == len(big)+2 {
			break
		}
	}
}

// TestPublishedRange: each port of a range goes to its own.
func TestPublishedRange(t *testing.T) {
	v := state.NewView(state.View{Self: selfID, Publishes: []state.Publish{
		{Protocol: "tcp", HostPort: 8000, Last: 8010, Target: addr("10.244.0.2"), Port: 9000},
		{Protocol: "udp", HostAddr: addr("192.0.2.11"), HostPort: 5000, Last: 5001, Target: addr("10.244.0.3"), Port: 53},
	}}, nil, nil)
	tab := Derive(v, testLocal())
	if len(tab.Publishes) != 24 || len(tab.Loopback) != 22 || len(tab.Warnings) != 0 {
		t.Fatalf("%d published, %d on loopback, warnings %q; want 24, 22 (those of every address in both IP versions), none", len(tab.Publishes), len(tab.Loopback), tab.Warnings)
	}
	rs := tab.Ruleset()
	for _, c := range []struct {
		proto     uint8
		port, got uint16
	}{{TCP, 8000, 9000}, {TCP, 8010, 9010}, {TCP, 8011, 0}, {TCP, 7999, 0}, {UDP, 5001, 54}} {
		got := Trace(rs, Packet{In: "eth0", Src: addr("192.0.2.1"), Dst: addr("192.0.2.11"), Proto: c.proto, Sport: 40000, Dport: c.port})
		if got.DNAT != (c.got != 0) || got.DNAT && got.Target.Port() != c.got {
			t.Errorf("port %d/%s: %v, want %d", c.port, protoName(c.proto), got, c.got)
		}
	}
}
