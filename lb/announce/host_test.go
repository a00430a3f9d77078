package announce

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodenet/state"
)

// In the kernel: node1 with eth0 192.0.2.1/24 and 2001:db8::1/64, MAC
// 02:…:01, and on the same cable a client with eth0 .9 and ::9, MAC 02:…:09.

// space is a network namespace without a name: it is gone with its last user.
type space struct {
	t  *testing.T
	ns netns.NsHandle
}

func newSpace(t *testing.T) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces, packet sockets and nftables")
	}
	s := &space{t: t}
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
	return s
}

// do runs f inside the namespace and waits for it.
func (s *space) do(f func() error) {
	s.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
}

// cable connects two namespaces.
func cable(t *testing.T) (node, client *space) {
	t.Helper()
	node, client = newSpace(t), newSpace(t)
	node.do(func() error {
		la := netlink.NewLinkAttrs()
		la.Name, la.HardwareAddr = "eth0", net.HardwareAddr(nodeMAC[:])
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(client.ns)), PeerHardwareAddr: net.HardwareAddr(askerMAC[:])})
	})
	node.up("192.0.2.1/24", "2001:db8::1/64")
	client.up("192.0.2.9/24", "2001:db8::9/64")
	return node, client
}

func (s *space) up(addrs ...string) {
	s.t.Helper()
	s.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = 0x02 // IFA_F_NODAD: usable at once
			if err := netlink.AddrAdd(eth0, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
		return netlink.LinkSetUp(eth0)
	})
}

// resolve makes the client's kernel ask for an address from scratch on one of
// its interfaces, and returns the answer; zero: none to three asks, a second
// apart.
func (s *space) resolve(dev string, a netip.Addr) (mac MAC) {
	s.t.Helper()
	s.do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		_ = netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: a.AsSlice()}) // may not be there
		d := net.Dialer{Control: bindTo(dev)}
		c, err := d.Dial("udp", netip.AddrPortFrom(a, 9).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			list, err := netlink.NeighList(link.Attrs().Index, family)
			if err != nil {
				return err
			}
			for _, n := range list {
				if ip, _ := netip.AddrFromSlice(n.IP); ip == a && len(n.HardwareAddr) == 6 && n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY) != 0 {
					mac = MAC(n.HardwareAddr)
					return nil
				}
			}
		}
		return nil
	})
	return mac
}

// start runs a speaker in the namespace.
func (s *space) start(v *state.View) (sp *Speaker, stop func()) {
	s.t.Helper()
	return s.startOn(Host{}, v)
}

func (s *space) startOn(h Host, v *state.View) (sp *Speaker, stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		// The sockets are opened by this goroutine, and by no other.
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- err
			close(ready)
			return
		}
		var err error
		sp, err = New(Options{System: h})
		close(ready)
		if err == nil {
			sp.Set(Elect(v), v.Rev)
			err = sp.Run(ctx)
		}
		done <- err
	}()
	<-ready
	return sp, func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	}
}

func waitFor(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func announced(sp *Speaker, n int) func() bool {
	return func() bool {
		have := 0
		for _, a := range sp.Status().Addrs {
			if a.State == held.String() {
				have++
			}
		}
		return have == n
	}
}

func TestHostLinks(t *testing.T) {
	node, client := cable(t)
	var links []Link
	look := func() {
		node.do(func() (err error) { links, err = Host{}.Links(); return err })
	}
	node.do(func() error { // what must not be among them
		la := netlink.NewLinkAttrs()
		la.Name = "nn-pods"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil {
			return err
		}
		l, err := netlink.LinkByName("nn-pods")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetAlias(l, "nodenet:pods"); err != nil {
			return err
		}
		a, _ := netlink.ParseAddr("10.244.1.1/24")
		return netlink.AddrAdd(l, a)
	})
	waitFor(t, "eth0 is up", 5*time.Second, func() bool { look(); return len(links) == 1 && links[0].Up && links[0].Local.IsValid() })
	want := []Link{{Index: links[0].Index, Name: "eth0", MAC: nodeMAC, Up: true, Local: links[0].Local,
		Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}}}
	if diff := cmp.Diff(want, links, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var changes <-chan struct{}
	node.do(func() (err error) { changes, err = Host{}.Watch(ctx); return err })
	client.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(eth0)
	})
	select {
	case <-changes:
	case <-time.After(20 * time.Second):
		t.Fatal("no notice of the lost carrier")
	}
	waitFor(t, "eth0 has lost its carrier", 5*time.Second, func() bool { look(); return !links[0].Up })
}

func TestHostAnswers(t *testing.T) {
	node, client := cable(t)
	v := viewOf(1, nodes(1), svc("web", ext4, ext6))
	sp, stop := node.start(v)
	waitFor(t, "both addresses are announced", 5*time.Second, announced(sp, 2))
	for _, a := range []netip.Addr{ext4, ext6} {
		if got := client.resolve("eth0", a); got != nodeMAC {
			t.Errorf("%s is at %s, want %s", a, got, nodeMAC)
		}
	}
	if got := client.resolve("eth0", addrN(201)); got != (MAC{}) {
		t.Errorf("192.0.2.201, which nobody has, is at %s", got)
	}
	// The daemon is gone, and the kernel still answers.
	stop()
	for _, a := range []netip.Addr{ext4, ext6} {
		if got := client.resolve("eth0", a); got != nodeMAC {
			t.Errorf("without the daemon %s is at %s, want %s", a, got, nodeMAC)
		}
	}
	// It is back and not elected any more: nobody answers.
	list := nodes(1)
	list[0].LANs = nil
	sp, stop = node.start(viewOf(1, list, svc("web", ext4, ext6)))
	defer stop()
	waitFor(t, "the plan is applied", 5*time.Second, func() bool { return sp.Status().Applied > 0 })
	for _, a := range []netip.Addr{ext4, ext6} {
		waitFor(t, "nobody answers", 10*time.Second, func() bool { return client.resolve("eth0", a) == MAC{} })
	}
	if text := node.nft("list", "ruleset"); strings.Contains(text, "netdev") {
		t.Errorf("rules are left:\n%s", text)
	}
}

// nft runs the command line tool as an independent witness.
func (s *space) nft(args ...string) (text string) {
	s.t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		s.t.Skip("needs the nft command")
	}
	s.do(func() error {
		out, err := exec.Command(path, args...).CombinedOutput()
		if text = string(out); err != nil {
			return fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	})
	return text
}

func TestHostHearsRival(t *testing.T) {
	node, client := cable(t)
	client.up("192.0.2.200/24") // a stranger with our address
	sp, stop := node.start(viewOf(1, nodes(1), svc("web", ext4)))
	defer stop()
	waitFor(t, "the stranger is found", 5*time.Second, func() bool {
		st := sp.Status()
		return len(st.Addrs) == 1 && st.Addrs[0].Stranger == askerMAC && st.Addrs[0].State == contested.String()
	})
	if text := node.nft("list", "ruleset"); strings.Contains(text, "192.0.2.200") {
		t.Errorf("the kernel answers for another's address:\n%s", text)
	}
}

// sendRaw sends an Ethernet frame as it is.
func (s *space) sendRaw(dev, frame string) {
	s.t.Helper()
	s.do(func() error {
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte(frame), 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
}

var counter = regexp.MustCompile(`counter packets (\d+)`)

// counted is how many asks the rule of a listing has answered.
func counted(text string) string {
	if m := counter.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return "no counter"
}

func TestResponder(t *testing.T) {
	node, client := cable(t)
	var r *Responder
	node.do(func() (err error) { r, err = OpenResponder(); return err })
	defer r.Close()
	var links []Link
	waitFor(t, "eth0 is up", 5*time.Second, func() bool {
		node.do(func() (err error) { links, err = Host{}.Links(); return err })
		return len(links) == 1 && links[0].Up
	})
	keep := func(addrs ...netip.Addr) {
		t.Helper()
		if err := r.Keep([]Station{{Link: links[0], Addrs: addrs}}); err != nil {
			t.Fatal(err)
		}
	}
	wantKept := func(want ...netip.Addr) {
		t.Helper()
		got, err := r.Kept()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" {
			t.Errorf("kept (-want +got):\n%s", diff)
		}
	}
	wantKept()
	keep(ext4)
	wantKept(ext4)
	if got := client.resolve("eth0", ext4); got != nodeMAC {
		t.Errorf("%s is at %s, want %s", ext4, got, nodeMAC)
	}
	keep(ext4, addrN(201)) // renewed, and one more
	if got := client.resolve("eth0", addrN(201)); got != nodeMAC {
		t.Errorf("192.0.2.201 is at %s, want %s", got, nodeMAC)
	}
	// Another VLAN on the same interface is another LAN.
	ask := arp(1, askerMAC, asker4, MAC{}, ext4, broadcast).Payload
	before := node.nft("list", "table", "netdev", "nodenet")
	client.sendRaw("eth0", "\xff\xff\xff\xff\xff\xff"+string(askerMAC[:])+"\x81\x00\x00\x07\x08\x06"+string(ask))
	if after := node.nft("list", "table", "netdev", "nodenet"); counted(after) != counted(before) {
		t.Errorf("an ask in VLAN 7 was answered:\n%s", after)
	}
	client.sendRaw("eth0", "\xff\xff\xff\xff\xff\xff"+string(askerMAC[:])+"\x08\x06"+string(ask))
	waitFor(t, "the same without a VLAN is answered", 5*time.Second, func() bool {
		return counted(node.nft("list", "table", "netdev", "nodenet")) != counted(before)
	})
	keep(ext4)
	text := node.nft("list", "table", "netdev", "nodenet")
	if !strings.Contains(text, "192.0.2.200 timeout") || strings.Contains(text, "192.0.2.201") {
		t.Errorf("the nft command lists\n%s", text)
	}
	keep(ext4, ext6)
	wantKept(ext4, ext6)
	if got := client.resolve("eth0", ext6); got != nodeMAC {
		t.Errorf("%s is at %s, want %s", ext6, got, nodeMAC)
	}
	if got := client.resolve("eth0", ext6.Next()); got != (MAC{}) {
		t.Errorf("%s, which nobody has, is at %s", ext6.Next(), got)
	}
	keep(ext4)
	wantKept(ext4)
	// Flushed by somebody: the next time puts it back.
	node.nft("flush", "ruleset")
	keep(ext4)
	wantKept(ext4)
	// Not renewed: it ends by itself, and being renewed too late is no error.
	r.time = 500 * time.Millisecond
	keep(ext4, ext6)
	waitFor(t, "the kernel stops to answer", 5*time.Second, func() bool { list, err := r.Kept(); return err == nil && len(list) == 0 })
	if got := client.resolve("eth0", ext6); got != (MAC{}) {
		t.Errorf("%s is at %s after the time", ext6, got)
	}
	r.time = keepTime
	keep(ext4)
	wantKept(ext4)
	if err := r.Keep(nil); err != nil {
		t.Fatal(err)
	}
	if text := node.nft("list", "ruleset"); text != "" {
		t.Errorf("with nothing to answer for there are rules:\n%s", text)
	}
	node.do(func() error {
		for _, want := range []int{1, 0} {
			if want == 1 {
				keep(ext4)
			}
			gone, err := Cleanup(context.Background())
			if err != nil || len(gone) != want {
				return fmt.Errorf("cleanup: %q, %v: want %d tables", gone, err, want)
			}
		}
		return nil
	})
}
