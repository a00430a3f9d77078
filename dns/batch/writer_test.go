package batch

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// peerAt makes a peer of an address.
func peerAt(s string) *Peer {
	a := netip.MustParseAddrPort(s)
	p := &Peer{size: unix.SizeofSockaddrInet6}
	p.addr.Port = a.Port()
	if a.Addr().Is4() {
		b := a.Addr().As4()
		p.addr.Family, p.size = unix.AF_INET, unix.SizeofSockaddrInet4
		p.addr.Flowinfo = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		return p
	}
	p.addr.Family, p.addr.Addr = unix.AF_INET6, a.Addr().As16()
	return p
}

func TestTrains(t *testing.T) {
	const a, b, c = "192.0.2.1:5", "192.0.2.2:5", "192.0.2.1:6"
	const v6, w6 = "[2001:db8::1]:5", "[2001:db8::2]:5"
	for _, tt := range []struct {
		name  string
		queue string // of peer/size
		plain bool
		want  string
	}{
		{name: "one", queue: a + "/61", want: "61"},
		{name: "two of a resolver", queue: a + "/61 " + a + "/107", want: "107+61"},
		{name: "of one size", queue: a + "/61 " + a + "/61 " + a + "/61", want: "61+61+61"},
		{name: "of several sizes", queue: a + "/61 " + a + "/107 " + a + "/61 " + a + "/90", want: "107+90 61+61"},
		{name: "another address", queue: a + "/61 " + b + "/61", want: "61 61"},
		{name: "another port", queue: a + "/61 " + c + "/61", want: "61 61"},
		{name: "another in between", queue: a + "/61 " + b + "/50 " + a + "/61", want: "61 50 61"},
		{name: "IPv6", queue: v6 + "/61 " + v6 + "/40 " + w6 + "/40", want: "61+40 40"},
		{name: "IPv4 and IPv6", queue: v6 + "/61 " + a + "/40", want: "61 40"},
		{name: "connected", queue: "/61 /40 /40", want: "61+40 40"},
		{name: "nothing in it", queue: a + "/61 " + a + "/0 " + a + "/0", want: "61 0 0"},
		{name: "too much for one", queue: strings.Repeat(a+"/40000 ", 3), want: "40000 40000 40000"},
		{name: "not known to the kernel", queue: a + "/61 " + a + "/107", plain: true, want: "61 107"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, w := pair(t, "udp4", "127.0.0.1:0")
			w.size, w.bufs = 40000, make([]byte, 8*40000)
			peers := map[string]*Peer{}
			for _, q := range strings.Fields(tt.queue) {
				to, size, _ := strings.Cut(q, "/")
				var n int
				if _, err := fmt.Sscan(size, &n); err != nil {
					t.Fatal(err)
				}
				if to == "" {
					w.Send(n)
					continue
				}
				if peers[to] == nil {
					peers[to] = peerAt(to)
				}
				copied := *peers[to] // it is the content that counts
				w.To(&copied, n)
			}
			w.plan(0, !tt.plain)
			var got []string
			for i := range w.ready {
				h := &w.msgs[i].hdr
				var sizes []string
				first := w.index(h.Iov)
				for _, v := range w.iovs[first : first+int(h.Iovlen)] {
					sizes = append(sizes, fmt.Sprint(v.Len))
				}
				if (len(sizes) > 1) != (h.Control != nil) {
					t.Errorf("message %d of %d datagrams: control %v", i, len(sizes), h.Control)
				}
				if len(sizes) > 1 && uint64(w.sizes[i].size) != w.iovs[first].Len {
					t.Errorf("message %d: segments of %d", i, w.sizes[i].size)
				}
				got = append(got, strings.Join(sizes, "+"))
			}
			if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
				t.Errorf("messages (-want +got):\n%s", d)
			}
		})
	}
}

// TestTrainArrives: a client gets what was sent as trains as it was queued, but
// for the order; also when the kernel takes no train.
func TestTrainArrives(t *testing.T) {
	for _, at := range []struct {
		network, address string
		refuse           unix.Errno
		plain            bool // afterwards
	}{
		{network: "udp4", address: "127.0.0.1:0"},
		{network: "udp6", address: "[::1]:0"},
		{network: "udp4", address: "127.0.0.1:0", refuse: unix.EINVAL},
		{network: "udp4", address: "127.0.0.1:0", refuse: unix.EIO, plain: true},
	} {
		t.Run(fmt.Sprintf("%s refused with %d", at.network, at.refuse), func(t *testing.T) {
			c, r, w := pair(t, at.network, at.address)
			if w.plain != 0 {
				t.Skip("the kernel has no UDP_SEGMENT")
			}
			if send := w.send; at.refuse != 0 {
				w.send = func(fd uintptr) bool {
					if w.msgs[w.sent].hdr.Iovlen > 1 {
						w.errno = at.refuse
						return true
					}
					return send(fd)
				}
			}
			k, err := net.DialUDP("udp", nil, c.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			var want []string
			for i, size := range []int{20, 35, 20, 7, 35, 64, 1} {
				s := strings.Repeat(string(rune('a'+i)), size)
				want = append(want, s)
				if _, err := k.Write([]byte(s)); err != nil {
					t.Fatal(err)
				}
			}
			for seen := 0; seen < len(want); {
				n, err := r.Read()
				if err != nil {
					t.Fatal(err)
				}
				for i := range n {
					w.Reply(r, i, copy(w.Room(), r.Data(i)))
				}
				seen += n
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			var got []string
			k.SetReadDeadline(time.Now().Add(20 * time.Second))
			for range want {
				var b [100]byte
				n, err := k.Read(b[:])
				if err != nil {
					t.Fatalf("after %d datagrams: %v", len(got), err)
				}
				got = append(got, string(b[:n]))
			}
			slices.Sort(got)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("datagrams (-want +got):\n%s", d)
			}
			if (w.plain > 0) != at.plain {
				t.Errorf("flushes to come without trains: %d", w.plain)
			}
		})
	}
}
