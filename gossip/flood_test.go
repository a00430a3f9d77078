package gossip

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/state"
)

func TestGateIsFair(t *testing.T) {
	peer, flood, joiner := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1")
	g := newGate(8, func(a netip.Addr) bool { return a == peer })
	open := func(a netip.Addr) (*pass, *closeConn) {
		c := &closeConn{}
		return g.admit(c, a), c
	}
	// Sources of a flood: each at its own address.
	var conns []*closeConn
	for i := range 4 {
		for range 2 {
			p, c := open(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
			if p == nil {
				t.Fatal("refused while there is room")
			}
			conns = append(conns, c)
		}
	}
	p, _ := open(joiner)
	if p == nil {
		t.Fatal("a new source is kept out by sources that have several")
	}
	if n := closed(conns); n != 1 || !conns[0].closed {
		t.Errorf("%d connections were given up for it, the oldest: %v", n, conns[0].closed)
	}
	if q, _ := open(netip.AddrFrom4([4]byte{198, 51, 100, 3})); q != nil {
		t.Error("a source that has its share got more")
	}
	for i := range perSource {
		q, _ := open(peer)
		if want := i < 8; (q != nil) != want {
			t.Errorf("connection %d of a known node: admitted %v, want %v", i+1, q != nil, want)
		}
	}
	p.done()
	p.done()
	if g.held() != 15 {
		t.Errorf("%d places are taken, want 15", g.held())
	}
	one := newGate(100, nil)
	for i := range 3 * perSource {
		// One source of IPv6 is a /64.
		a := netip.MustParseAddr("2001:db8::").As16()
		a[15] = byte(i)
		if got := one.admit(&closeConn{}, netip.AddrFrom16(a)); (got != nil) != (i < perSource) {
			t.Fatalf("connection %d of one /64: admitted %v", i+1, got != nil)
		}
	}
	// All equal, each alone at its source: who has stood long enough goes.
	old := newGate(2, nil)
	first, c := &pass{}, &closeConn{}
	if first = old.admit(c, flood); first == nil {
		t.Fatal("refused while there is room")
	}
	old.admit(&closeConn{}, peer)
	if old.admit(&closeConn{}, joiner) != nil {
		t.Error("a connection was given up before it could do anything")
	}
	first.since = first.since.Add(-minStay)
	if old.admit(&closeConn{}, joiner) == nil || !c.closed {
		t.Error("a connection that stands for long keeps a newcomer out")
	}
}

func closed(list []*closeConn) (n int) {
	for _, c := range list {
		if c.closed {
			n++
		}
	}
	return n
}

// halfOpen opens TCP connections to a port, from many addresses, and says
// nothing on them. They are plain descriptors: what they cost this side is the
// kernel's.
type halfOpen struct {
	t   *testing.T
	to  netip.AddrPort
	lab *lab
	fds []int
}

func (h *halfOpen) dial(i int) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		h.t.Fatalf("socket %d: %v", i, err)
	}
	// 50 sources of 200 connections each.
	unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, netA, h.lab.b, byte(200 + i%50)}})
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: h.to.Addr().As4(), Port: int(h.to.Port())}); err != nil && err != unix.EINPROGRESS {
		h.t.Fatalf("connect %d: %v", i, err)
	}
	return fd
}

func (h *halfOpen) open(n int) {
	for i := range n {
		h.fds = append(h.fds, h.dial(i))
		if i%64 == 63 {
			time.Sleep(time.Millisecond) // the listen queue's length
		}
	}
}

// renew opens anew, without end, what was closed.
func (h *halfOpen) renew(stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Microsecond):
		}
		k := i % len(h.fds)
		unix.Close(h.fds[k])
		h.fds[k] = h.dial(k)
	}
}

func (h *halfOpen) close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
}

type cost struct {
	heap       uint64
	goroutines int
}

func costNow() cost {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return cost{m.HeapInuse + m.StackInuse, runtime.NumGoroutine()}
}

// maxGrown bounds what a flood may cost, in bytes. The race detector more than
// doubles what is measured without it.
const maxGrown = 48 << 20

// Ten thousand connections that say nothing, on each port, cost bounded
// memory, and who belongs to the cluster gets in meanwhile: a known node that
// was restarted, and one that nobody knows yet.
func TestTenThousandHalfOpen(t *testing.T) {
	const n = 10_000
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	want := unix.Rlimit{Cur: n + 2000, Max: max(lim.Max, n+2000)}
	if lim.Cur < want.Cur {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
			t.Skipf("needs %d descriptors, and the limit of %d cannot be raised: %v", want.Cur, lim.Cur, err)
		}
		defer unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	}
	for name, port := range map[string]uint16{"sync port": DefaultSyncPort, "membership port": DefaultGossipPort} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			ns := l.cluster(2)
			a, b := ns[0], ns[1]
			l.equal(a, b)
			l.allAlive(a, b)
			before := costNow()
			h := &halfOpen{t: t, to: netip.AddrPortFrom(a.addr, port), lab: l}
			defer h.close()
			h.open(n)
			// Those that were let go of take a moment to end.
			eventually(t, "the connections beyond the limits are gone", func() bool {
				return runtime.NumGoroutine()-before.goroutines <= 4*earlyConns
			})
			during := costNow()
			stop, done := make(chan struct{}), make(chan struct{})
			go func() { defer close(done); h.renew(stop) }()
			defer func() { close(stop); <-done }()

			b.stop()
			b.start(nil)
			eventually(t, "a known node that was restarted is back", func() bool { return a.link(b.id.ID) != nil && a.live(b).State == state.Alive })
			c := l.node("node3", nodeOpts{cluster: &Cluster{}, secret: a.opts.Secret, join: []string{a.sync()}})
			select {
			case <-c.Synced():
			case <-time.After(timeout):
				t.Fatal("a new node does not get in")
			}
			b.announce(false)
			c.announce(false)
			l.equal(a, b, c)
			l.allAlive(a, b, c)
			t.Logf("heap and stacks %.1f MiB before, %.1f MiB with %d half-open connections; %d goroutines before, %d with",
				float64(before.heap)/(1<<20), float64(during.heap)/(1<<20), n, before.goroutines, during.goroutines)
			if grown := int64(during.heap) - int64(before.heap); grown > maxGrown {
				t.Errorf("%d connections cost %d bytes, want at most 48 MiB", n, grown)
			}
			// A stranger's connection on the sync port has three goroutines.
			if grown := during.goroutines - before.goroutines; grown > 4*earlyConns {
				t.Errorf("%d connections cost %d goroutines, want at most %d", n, grown, 4*earlyConns)
			}
		})
	}
}

// Garbage on all ports, whole frames and datagrams of it: nothing grows, and
// the cluster does not notice.
func TestGarbageOnEveryPort(t *testing.T) {
	l := newLab(t)
	ns := l.cluster(2)
	a, b := ns[0], ns[1]
	l.equal(a, b)
	l.allAlive(a, b)
	before := costNow()
	rng := newGarbage()
	for i := range 2000 {
		throw(t, "udp", netip.AddrPortFrom(a.addr, DefaultGossipPort), rng.some(1400))
		if i%20 == 0 {
			throw(t, "tcp", netip.AddrPortFrom(a.addr, DefaultGossipPort), rng.some(64<<10))
			throw(t, "tcp", netip.AddrPortFrom(a.addr, DefaultSyncPort), rng.some(64<<10))
		}
	}
	a.write(name("after-the-storm"))
	l.equal(a, b)
	l.allAlive(a, b)
	eventually(t, "no connection is left", func() bool { return a.early.held() == 0 })
	after := costNow()
	t.Logf("heap and stacks %.1f MiB before, %.1f MiB after", float64(before.heap)/(1<<20), float64(after.heap)/(1<<20))
	if grown := int64(after.heap) - int64(before.heap); grown > maxGrown {
		t.Errorf("garbage cost %d bytes for good", grown)
	}
}
