package batch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

func pair(t *testing.T, network, address string) (c *net.UDPConn, r *Reader, w *Writer) {
	t.Helper()
	pc, err := net.ListenPacket(network, address)
	if err != nil {
		t.Skipf("no %s here: %v", network, err)
	}
	t.Cleanup(func() { pc.Close() })
	c = pc.(*net.UDPConn)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return c, NewReader(raw, 8, 64), NewWriter(raw, 8, 64)
}

// TestReply: datagrams come back to where they came from, whole, in batches.
func TestReply(t *testing.T) {
	for _, at := range []struct{ network, address string }{{"udp4", "127.0.0.1:0"}, {"udp6", "[::1]:0"}} {
		t.Run(at.network, func(t *testing.T) {
			c, r, w := pair(t, at.network, at.address)
			var clients []*net.UDPConn
			for i := range 20 {
				k, err := net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
				if _, err := fmt.Fprintf(k, "from %d", i); err != nil {
					t.Fatal(err)
				}
				clients = append(clients, k)
			}
			for seen := 0; seen < len(clients); {
				n, err := r.Read()
				if err != nil || n == 0 || n > 8 {
					t.Fatalf("read %d: %v", n, err)
				}
				for i := range n {
					if got, want := r.Addr(i).Addr().String(), c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().String(); got != want {
						t.Errorf("from %s, want %s", got, want)
					}
					w.Reply(r, i, copy(w.Room(), "to "+string(r.Data(i))))
				}
				if err := w.Flush(); err != nil || w.Len() != 0 {
					t.Fatal(err)
				}
				seen += n
			}
			for i, k := range clients {
				k.SetReadDeadline(time.Now().Add(20 * time.Second))
				var b [64]byte
				n, err := k.Read(b[:])
				if got, want := string(b[:n]), fmt.Sprintf("to from %d", i); err != nil || got != want {
					t.Errorf("client %d got %q, %v", i, got, err)
				}
			}
			if n, err := r.Poll(); n != 0 || err != nil {
				t.Errorf("poll of an empty queue: %d, %v", n, err)
			}
		})
	}
}

// TestReadEnds: a deadline and a close end a Read, a long datagram is cut.
func TestReadEnds(t *testing.T) {
	c, r, _ := pair(t, "udp4", "127.0.0.1:0")
	k, err := net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := k.Write(make([]byte, 65)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(); n != 1 || err != nil || !r.Cut(0) || len(r.Data(0)) != 64 {
		t.Errorf("long datagram: %d, %v", n, err)
	}
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := r.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
	c.Close()
	if _, err := r.Read(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestFlushGoesOn: a datagram that cannot be sent does not keep others back.
func TestFlushGoesOn(t *testing.T) {
	c, r, w := pair(t, "udp4", "127.0.0.1:0")
	k, err := net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for range 2 {
		if _, err := k.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; n < 2; {
		m, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	w.Send(copy(w.Room(), "nowhere")) // the socket is not connected
	w.Reply(r, 0, copy(w.Room(), "back"))
	if err := w.Flush(); err == nil {
		t.Error("no error for a datagram without an address")
	}
	k.SetReadDeadline(time.Now().Add(20 * time.Second))
	var b [16]byte
	if n, err := k.Read(b[:]); err != nil || string(b[:n]) != "back" {
		t.Errorf("got %q, %v", b[:n], err)
	}
}
