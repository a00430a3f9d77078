package announce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Host is the calling process's network namespace.
type Host struct {
	Sockets Sockets // nil: memberships of groups end with the process
}

// Sockets holds sockets beyond the life of the process. Names are those of this
// package, such as announce-groups-2.
type Sockets interface {
	// Take returns what the process before this one left under a name, once;
	// the caller closes it. Nil: there is none. It stays kept.
	Take(name string) *os.File
	// Keep holds a descriptor under a name from now on.
	Keep(name string, c syscall.RawConn) error
	// Drop ends that; a name that is not kept is no error.
	Drop(name string) error
}

// ours begins the alias of links that nodenet made.
const ours = "nodenet:"

// Links lists the Ethernet interfaces that have an address and that nodenet
// did not make, sorted by name.
func (Host) Links() ([]Link, error) {
	byIndex := map[int]*Link{}
	err := dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, func(b []byte, attrs []syscall.NetlinkRouteAttr) {
		if len(b) < unix.SizeofIfInfomsg {
			return
		}
		kind := native16(b[2:])
		flags := native32(b[8:])
		l := &Link{Index: int(int32(native32(b[4:]))), Up: flags&unix.IFF_UP != 0 && flags&unix.IFF_RUNNING != 0}
		skip := kind != unix.ARPHRD_ETHER || flags&(unix.IFF_LOOPBACK|unix.IFF_NOARP) != 0
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFLA_IFNAME:
				l.Name = text(a.Value)
			case unix.IFLA_IFALIAS:
				skip = skip || strings.HasPrefix(text(a.Value), ours)
			case unix.IFLA_ADDRESS:
				if len(a.Value) == 6 {
					l.MAC = MAC(a.Value)
				}
			}
		}
		if !skip && l.MAC.usable() {
			byIndex[l.Index] = l
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	err = dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, func(b []byte, attrs []syscall.NetlinkRouteAttr) {
		if len(b) < unix.SizeofIfAddrmsg {
			return
		}
		l := byIndex[int(native32(b[4:]))]
		if l == nil || b[2]&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			return
		}
		var addr netip.Addr
		for _, a := range attrs {
			// IFA_ADDRESS is the peer's on point-to-point links; IFA_LOCAL is ours.
			if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !addr.IsValid() {
				addr, _ = netip.AddrFromSlice(a.Value)
			}
		}
		switch {
		case !addr.IsValid():
		case addr.IsLinkLocalUnicast():
			if addr.Is6() && !l.Local.IsValid() {
				l.Local = addr
			}
		default:
			if p := netip.PrefixFrom(addr, int(b[1])); p.IsValid() && !p.IsSingleIP() {
				l.Addrs = append(l.Addrs, p)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []Link
	for _, l := range byIndex {
		if len(l.Addrs) > 0 {
			slices.SortFunc(l.Addrs, comparePrefixes)
			out = append(out, *l)
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func sameLinks(a, b []Link) bool {
	return slices.EqualFunc(a, b, func(x, y Link) bool {
		return x.Index == y.Index && x.Name == y.Name && x.MAC == y.MAC && x.Up == y.Up && x.Local == y.Local && slices.Equal(x.Addrs, y.Addrs)
	})
}

// dump asks the kernel for all objects of a kind.
func dump(ask int, want uint16, each func(body []byte, attrs []syscall.NetlinkRouteAttr)) error {
	raw, err := syscall.NetlinkRIB(ask, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	msgs, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		return err
	}
	for i := range msgs {
		if msgs[i].Header.Type != want {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&msgs[i])
		if err != nil {
			return err
		}
		each(msgs[i].Data, attrs)
	}
	return nil
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// Watch follows the kernel's notices about links and addresses. What they say
// is not read: they are a reason to look.
func (Host) Watch(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route socket: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ask for notices about links: %w", err)
	}
	f := os.NewFile(uintptr(fd), "links")
	ch := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		defer f.Close()
		buf := make([]byte, 1<<16)
		for {
			// ENOBUFS: notices were lost, which is a reason to look as well.
			if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, nil
}
