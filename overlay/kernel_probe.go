package overlay

import (
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Feature is something that the kernel must be able to do.
type Feature struct {
	Name string
	Err  error // nil: it can
	Fix  string
}

// ProbeKernel tries each kind of link that the overlay makes, in a network
// namespace that nobody else sees and that is gone afterwards.
func ProbeKernel() []Feature {
	res := make(chan []Feature, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends in its own namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			res <- []Feature{{Name: "network namespaces", Err: fmt.Errorf("make one: %w", err), Fix: "run as root; the kernel needs CONFIG_NET_NS"}}
			return
		}
		res <- probeLinks()
	}()
	return <-res
}

func probeLinks() []Feature {
	named := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	links := []struct {
		module string
		link   netlink.Link
	}{
		{"bridge", &netlink.Bridge{LinkAttrs: named("probe0")}},
		{"veth", &netlink.Veth{LinkAttrs: named("probe1"), PeerName: "probe2"}},
		{"vxlan", &netlink.Vxlan{LinkAttrs: named("probe3"), VxlanId: 1, Port: 4789, SrcAddr: net.IPv4(127, 0, 0, 1)}},
	}
	out := []Feature{{Name: "network namespaces"}}
	for _, l := range links {
		f := Feature{Name: l.module}
		if err := netlink.LinkAdd(l.link); err != nil {
			f.Err, f.Fix = fmt.Errorf("make a %s link: %w", l.module, err), "modprobe "+l.module
		}
		out = append(out, f)
	}
	return out
}
