package lb

import (
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"os"
)

// space is a network namespace without a name: it is gone with its last user.
type space struct {
	t    *testing.T
	name string
	ns   netns.NsHandle
}

func newSpace(t *testing.T, name string) *space {
	t.Helper()
	s := &space{t: t, name: name}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		s.ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	s.do(func() { s.must(netlink.LinkSetUp(s.link("lo"))) })
	return s
}

// enter binds the calling goroutine's thread to the namespace, for good.
func (s *space) enter() error {
	runtime.LockOSThread()
	return netns.Set(s.ns)
}

// do runs f inside the namespace and waits for it.
func (s *space) do(f func()) {
	s.t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)
		if err := s.enter(); err != nil {
			done <- err
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		s.t.Fatalf("enter network namespace: %v", err)
	}
}

func (s *space) must(err error) {
	if err != nil {
		s.t.Errorf("%s: %v", s.name, err)
		runtime.Goexit()
	}
}

func (s *space) link(name string) netlink.Link {
	l, err := netlink.LinkByName(name)
	s.must(err)
	return l
}

// wire joins two namespaces by a cable with an address at each end.
func wire(a *space, nameA, addrA string, b *space, nameB, addrB string) {
	a.do(func() {
		a.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.ns)}))
	})
	for _, e := range []struct {
		s          *space
		name, addr string
	}{{a, nameA, addrA}, {b, nameB, addrB}} {
		e.s.do(func() {
			l := e.s.link(e.name)
			x, err := netlink.ParseAddr(e.addr)
			e.s.must(err)
			e.s.must(netlink.AddrAdd(l, x))
			e.s.must(netlink.LinkSetUp(l))
		})
	}
}

func (s *space) route(dst, via string) {
	s.do(func() {
		_, n, err := net.ParseCIDR(dst)
		s.must(err)
		s.must(netlink.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(via)}))
	})
}

func (s *space) sysctl(name, value string) {
	s.do(func() { s.must(os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644)) })
}
