package overlay

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The functions of this file run in the namespace of an attachment, on the
// thread of inNetns.

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// setupInside gives the device its address and routes. tx-checksum offload is
// left alone: the bridge and VXLAN complete checksums where it matters.
func setupInside(s *AttachSpec) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	l, err := netlink.LinkByName(s.IfName)
	if err != nil {
		return fmt.Errorf("find %s: %w", s.IfName, err)
	}
	if s.Addr6.IsValid() {
		if err := inside6(s.IfName); err != nil {
			return err
		}
	}
	for _, p := range []netip.Prefix{s.Addr, s.Addr6} {
		if !p.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // ipam knows that nobody else has it
		}
		if err := netlink.AddrReplace(l, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, s.IfName, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", s.IfName, err)
	}
	for _, r := range insideRoutes(s) {
		n := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r), Scope: unix.RT_SCOPE_UNIVERSE}
		addr, gateway := s.towards(r)
		if gateway.IsValid() {
			n.Gw = gateway.AsSlice()
			if !addr.Masked().Contains(gateway) {
				n.Flags = unix.RTNH_F_ONLINK
			}
		} else if r.Addr().Is4() {
			n.Scope = unix.RT_SCOPE_LINK
		}
		if err := netlink.RouteReplace(n); err != nil {
			return fmt.Errorf("add route %s via %s: %w", r, gateway, err)
		}
	}
	return nil
}

// insideRoutes returns the routes that an attachment has besides its own prefix's.
func insideRoutes(s *AttachSpec) []netip.Prefix {
	if !s.Addr.IsValid() {
		return nil
	}
	routes := slices.Clone(s.ExtraRoutes)
	if s.DefaultRoute && s.Gateway.IsValid() {
		routes = append(routes, netip.PrefixFrom(zeroOf(s.Gateway), 0))
	}
	if s.DefaultRoute && s.Addr6.IsValid() && s.Gateway6.IsValid() {
		routes = append(routes, netip.PrefixFrom(zeroOf(s.Gateway6), 0))
	}
	return routes
}

// towards returns the address and the gateway for a route.
func (s *AttachSpec) towards(r netip.Prefix) (addr netip.Prefix, gateway netip.Addr) {
	if r.Addr().Is6() && s.Addr6.IsValid() {
		return s.Addr6, s.Gateway6
	}
	return s.Addr, s.Gateway
}

// inside6 prepares a device for an IPv6 address, before it is set up. IPv6 may
// be off in namespaces that runtimes make. Duplicate address detection of the
// link-local address would keep neighbours from finding each other for a
// second or two; nobody else has the MAC that it is made of. Who had another
// MAC for the address learns the new one by an advertisement (ndisc_notify).
func inside6(ifName string) error {
	for _, s := range []struct{ name, value string }{{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"ndisc_notify", "1"}} {
		path := "net/ipv6/conf/" + ifName + "/" + s.name
		if err := os.WriteFile(sysctlFile(path), []byte(s.value), 0); err != nil {
			return fmt.Errorf("set %s to %s for the IPv6 address of %s: %w", path, s.value, ifName, err)
		}
	}
	return nil
}

func zeroOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// CheckAttached compares the kernel with a spec and says all that differs.
func (o *Overlay) CheckAttached(_ context.Context, s AttachSpec) error {
	k, err := o.netlink()
	if err != nil {
		return err
	}
	s.defaults(o)
	var diffs []error
	differ := func(format string, a ...any) { diffs = append(diffs, fmt.Errorf(format, a...)) }
	if s.Mode == ModeBridge {
		peer := k.checkHost(&s, differ)
		err = inNetns(s.NetnsPath, func(netns.NsHandle) error { return checkInside(&s, peer, differ) })
	} else {
		err = inNetns(s.NetnsPath, func(netns.NsHandle) error {
			lo, err := netlink.LinkByName("lo")
			if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
				differ("lo is down in %s", s.NetnsPath)
			}
			return err
		})
	}
	if err = errors.Join(append(diffs, err)...); err != nil {
		return fmt.Errorf("check attachment %s: %w", s.ID, err)
	}
	return nil
}

// checkHost compares the host side and returns the index of the other end.
func (k *netlinkKernel) checkHost(s *AttachSpec, differ func(string, ...any)) (peer int) {
	l, err := k.h.LinkByName(s.HostIf)
	if err != nil {
		differ("host side %s: %w", s.HostIf, err)
		return 0
	}
	a, o := l.Attrs(), linkOf(l)
	var ports map[int]portState
	if err := k.thread.do(func() (err error) { ports, err = bridgePorts(); return err }); err != nil {
		differ("list bridge ports: %w", err)
	}
	switch br, err := k.h.LinkByName(s.Bridge); {
	case err != nil:
		differ("bridge %s: %w", s.Bridge, err)
	case a.MasterIndex != br.Attrs().Index:
		differ("%s is not on bridge %s", s.HostIf, s.Bridge)
	case !ports[a.Index].hairpin:
		differ("%s has hairpin mode off", s.HostIf)
	}
	if !o.Ours || o.Network != s.Network {
		differ("%s has the alias %q, not %q", s.HostIf, a.Alias, AliasPrefix+s.Network)
	}
	if !o.Up {
		differ("%s is down", s.HostIf)
	}
	s.MTU = cmp.Or(s.MTU, a.MTU) // both ends were made with one
	return a.ParentIndex
}

// checkInside compares the inside.
func checkInside(s *AttachSpec, peer int, differ func(string, ...any)) error {
	l, err := netlink.LinkByName(s.IfName)
	if isNoLink(err) {
		differ("there is no %s in %s", s.IfName, s.NetnsPath)
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", s.IfName, err)
	}
	a := l.Attrs()
	if peer != 0 && a.Index != peer {
		differ("%s is not the other end of %s", s.IfName, s.HostIf)
	}
	if a.HardwareAddr.String() != s.MAC {
		differ("%s has the MAC %s, not %s", s.IfName, a.HardwareAddr, s.MAC)
	}
	if s.MTU != 0 && a.MTU != s.MTU {
		differ("%s has the MTU %d, not %d", s.IfName, a.MTU, s.MTU)
	}
	if a.Flags&net.FlagUp == 0 {
		differ("%s is down", s.IfName)
	}
	for _, want := range []netip.Prefix{s.Addr, s.Addr6} {
		if !want.IsValid() {
			continue
		}
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, familyOf(want.Addr())) })
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", s.IfName, err)
		}
		if !slices.ContainsFunc(addrs, func(x netlink.Addr) bool { p, _ := prefixOf(x.IPNet); return p == want }) {
			differ("%s has not got the address %s", s.IfName, want)
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", s.IfName, err)
	}
	for _, want := range insideRoutes(s) {
		_, gateway := s.towards(want)
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			p := netip.PrefixFrom(zeroOf(want.Addr()), 0)
			if r.Dst != nil {
				p, _ = prefixOf(r.Dst)
			}
			return p == want.Masked() && addrOf(r.Gw) == gateway
		}) {
			differ("there is no route %s via %s in %s", want, gateway, s.NetnsPath)
		}
	}
	return nil
}

// announce broadcasts an ARP announcement (RFC 5227, section 2.3) twice, so
// that whoever had another MAC for the address learns the new one.
func announce(ifName string, addr netip.Addr) error {
	l, err := netlink.LinkByName(ifName)
	if err != nil {
		return err
	}
	src := l.Attrs().HardwareAddr
	frame := arpAnnouncement(src, addr)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: l.Attrs().Index, Halen: 6,
		Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	for range 2 {
		if err := unix.Sendto(fd, frame, 0, to); err != nil {
			return fmt.Errorf("send on %s: %w", ifName, err)
		}
	}
	return nil
}

// htons puts a number into network byte order, as sockaddr_ll wants it.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
