package overlay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// testNS is a network namespace of a test, with a thread inside. Its path is
// this process's fd, so that nothing is left behind in the file system.
type testNS struct {
	t      *testing.T
	name   string
	thread *nsThread
	path   string
}

var nsCount atomic.Int64

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

// newNS makes a namespace whose lo is up.
func newNS(t *testing.T, name string) *testNS {
	t.Helper()
	needRoot(t)
	n := &testNS{t: t, name: fmt.Sprintf("nnt-overlay-%d-%d-%s", os.Getpid(), nsCount.Add(1), name)}
	type made struct {
		ns  netns.NsHandle
		err error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the new namespace
		ns, err := netns.New()
		c <- made{ns, err}
	}()
	m := <-c
	if m.err != nil {
		t.Fatalf("make namespace %s: %v", n.name, m.err)
	}
	n.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(m.ns))
	thread, err := newNSThread(m.ns)
	if err != nil {
		t.Fatal(err)
	}
	n.thread = thread
	t.Cleanup(func() {
		thread.close()
		m.ns.Close()
	})
	n.do(loopbackUp)
	return n
}

// do runs f inside and fails the test on an error.
func (n *testNS) do(f func() error) {
	n.t.Helper()
	if err := n.thread.do(f); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
}

func (n *testNS) ns() netns.NsHandle {
	h, err := netns.GetFromPath(n.path)
	if err != nil {
		n.t.Fatal(err)
	}
	return h
}

// wire joins two namespaces with a veth pair.
func wire(a *testNS, aIf string, b *testNS, bIf string) {
	a.t.Helper()
	a.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aIf
		v := netlink.NewVeth(attrs)
		h := b.ns()
		defer h.Close()
		v.PeerName, v.PeerNamespace = bIf, netlink.NsFd(h)
		return netlink.LinkAdd(v)
	})
}

func up(name string, addrs ...string) func() error {
	return func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a))}); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
}

// lan makes a namespace with a bridge and wires each node's eth0 to it.
func lan(t *testing.T, nodes map[string]*testNS) {
	t.Helper()
	sw := newNS(t, "lan")
	sw.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lan"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return up("lan")()
	})
	i := 0
	for addr, n := range nodes {
		i++
		port := fmt.Sprintf("port%d", i)
		wire(sw, port, n, "eth0")
		sw.do(func() error {
			l, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			br, err := netlink.LinkByName("lan")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(l, br); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		})
		n.do(up("eth0", addr+"/24"))
	}
}

// echo starts a UDP echo server inside at addr, with the local address of each
// packet as the source of its answer.
func (n *testNS) echo(addr string) {
	n.t.Helper()
	n.do(func() error {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 2048)
			for {
				k, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				// The answer says who asked, as seen here.
				c.WriteTo(append([]byte(from.(*net.UDPAddr).IP.String()+"|"), b[:k]...), from)
			}
		}()
		return nil
	})
}

// ask sends datagrams from inside to a UDP echo server until one is answered
// or the time is over, and returns as whom the server saw us.
func (n *testNS) ask(to string, size int, limit time.Duration) (seen string, err error) {
	return n.askFrom("", to, size, limit)
}

// askFrom is ask with a given source address.
func (n *testNS) askFrom(from, to string, size int, limit time.Duration) (seen string, err error) {
	err = n.thread.do(func() error {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}).Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		msg := make([]byte, size)
		buf := make([]byte, 65536)
		deadline := time.Now().Add(limit)
		for {
			if _, err = c.Write(msg); err == nil {
				c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				var k int
				if k, err = c.Read(buf); err == nil {
					for i, ch := range buf[:k] {
						if ch == '|' {
							seen = string(buf[:i])
							return nil
						}
					}
				}
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("no answer from %s: %w", to, err)
			}
		}
	})
	return seen, err
}

// testNode is a node of a test: its namespace, its overlay and what runs it.
type testNode struct {
	*testNS
	ov   *Overlay
	ops  *transcript
	stop func()
}

// start runs an overlay in the node's namespace.
func (n *testNode) start(stateDir string) {
	n.t.Helper()
	n.ops = &transcript{}
	n.do(func() (err error) {
		n.ov, err = New(Options{Logger: n.ops.logger(), StateDir: stateDir})
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	ov := n.ov
	go func() {
		defer close(done)
		if err := ov.Run(ctx); err != nil {
			n.t.Errorf("run: %v", err)
		}
	}()
	stopped := false
	n.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			<-done
			ov.Close()
		}
	}
	n.t.Cleanup(n.stop)
}

// set hands in a plan and waits until it is applied.
func (n *testNode) set(p Plan) {
	n.t.Helper()
	n.ov.Set(p)
	n.wait("the plan to be applied", func() bool { s := n.ov.Status(); return s.Applied == p.Rev && s.Error == "" })
}

// wait waits for a condition that a pass of the overlay brings about.
func (n *testNode) wait(what string, ok func() bool) {
	n.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		n.ov.mu.Lock()
		changed := n.ov.changed
		n.ov.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			n.t.Fatalf("%s: waited in vain for %s; status %+v", n.name, what, n.ov.Status())
		}
	}
}

// snapshot dumps what Cleanup must leave as it was: links, addresses, routes of
// all tables, neighbours and the sysctls that plans touch.
func (n *testNS) snapshot() (out []string) {
	n.t.Helper()
	n.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			out = append(out, fmt.Sprintf("link %s %s %s mtu %d up %v alias %q", a.Name, l.Type(), a.HardwareAddr, a.MTU,
				a.Flags&net.FlagUp != 0, a.Alias))
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() { // they come when duplicate detection is done
				out = append(out, fmt.Sprintf("addr %v link %d", a, a.LinkIndex))
			}
		}
		routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			out = append(out, "route "+r.String())
		}
		neighs, err := netlink.NeighList(0, 0)
		if err != nil {
			return err
		}
		for _, e := range neighs {
			if e.State&netlink.NUD_PERMANENT != 0 {
				out = append(out, fmt.Sprintf("neigh %s %s", e.IP, e.HardwareAddr))
			}
		}
		for _, glob := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/*/*", "/proc/sys/net/ipv6/conf/*/disable_ipv6"} {
			files, err := filepath.Glob(glob)
			if err != nil {
				return err
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				out = append(out, fmt.Sprintf("sysctl %s=%s", f, b))
			}
		}
		return nil
	})
	return out
}
