package overlay

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Errors of the kernel with a known fix.
var (
	errNoPermission = unix.EPERM
	errReadOnly     = unix.EROFS
)

// netlinkKernel is the Kernel of the network namespace that its maker's thread
// was in.
type netlinkKernel struct {
	thread *nsThread
	h      *netlink.Handle
}

func newNetlinkKernel() (*netlinkKernel, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the current network namespace: %w", err)
	}
	defer ns.Close()
	t, err := newNSThread(ns)
	if err != nil {
		return nil, err
	}
	k := &netlinkKernel{thread: t}
	err = t.do(func() (err error) {
		k.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return k, nil
}

// Close releases sockets and thread. Watch ends with its context.
func (k *netlinkKernel) Close() {
	k.h.Close()
	k.thread.close()
}

func mac(s string) (net.HardwareAddr, error) {
	m, err := net.ParseMAC(s)
	if err != nil {
		return nil, fmt.Errorf("parse MAC %q: %w", s, err)
	}
	return m, nil
}

func newAttrs(name, hw string, mtu int) (netlink.LinkAttrs, error) {
	m, err := mac(hw)
	if err != nil {
		return netlink.LinkAttrs{}, err
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.HardwareAddr, a.MTU = name, m, mtu
	return a, nil
}

func (k *netlinkKernel) AddBridge(b Bridge) error {
	a, err := newAttrs(b.Name, b.MAC, b.MTU)
	if err != nil {
		return err
	}
	// A bridge follows the MTU of its ports, down to 1500 when the last one
	// goes, until it was changed once: the value of the create request does
	// not count as a change.
	a.MTU = 0
	off := false
	br := &netlink.Bridge{LinkAttrs: a, MulticastSnooping: &off}
	if err := k.h.LinkAdd(br); err != nil {
		return err
	}
	if err := k.h.LinkSetMTU(br, b.MTU); err != nil {
		return err
	}
	// STP is off in a new bridge, so that ports forward at once.
	return k.setAlias(b.Name, b.Network)
}

func (k *netlinkKernel) AddVXLAN(v VXLAN) error {
	a, err := newAttrs(v.Name, v.MAC, v.MTU)
	if err != nil {
		return err
	}
	err = k.h.LinkAdd(&netlink.Vxlan{LinkAttrs: a, VxlanId: int(v.VNI), SrcAddr: v.Local.AsSlice(), Port: int(v.Port),
		Learning: false, UDPCSum: v.Local.Is6()})
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("VNI %d or UDP port %d is taken by another VXLAN device: %w", v.VNI, v.Port, err)
	}
	if err != nil {
		return err
	}
	return k.setAlias(v.Name, v.Network)
}

// setAlias marks a link as ours. The kernel ignores IFLA_IFALIAS in a create
// request, so it takes a second one; see differ.adopt.
func (k *netlinkKernel) setAlias(name, network string) error {
	l, err := k.h.LinkByName(name)
	if err != nil {
		return err
	}
	return k.h.LinkSetAlias(l, AliasPrefix+network)
}

func (k *netlinkKernel) DelLink(name string) error {
	l, err := k.h.LinkByName(name)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := k.h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

func isNoLink(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

func (k *netlinkKernel) SetLink(name string, c LinkChange) error {
	l, err := k.h.LinkByName(name)
	if err != nil {
		return err
	}
	if c.AliasForNet != "" {
		if err := k.h.LinkSetAlias(l, AliasPrefix+c.AliasForNet); err != nil {
			return err
		}
	}
	if c.MAC != "" {
		m, err := mac(c.MAC)
		if err != nil {
			return err
		}
		if err := k.h.LinkSetHardwareAddr(l, m); err != nil {
			return err
		}
	}
	if c.MTU != 0 {
		if err := k.h.LinkSetMTU(l, c.MTU); err != nil {
			return err
		}
	}
	if c.NoSnooping {
		if err := k.h.BridgeSetMcastSnoop(l, false); err != nil {
			return err
		}
	}
	if c.Up {
		return k.h.LinkSetUp(l)
	}
	return nil
}

func (k *netlinkKernel) SetPort(name, bridge string) error {
	l, err := k.h.LinkByName(name)
	if isNoLink(err) {
		return nil // the attachment has gone meanwhile
	}
	if err != nil {
		return err
	}
	br, err := k.h.LinkByName(bridge)
	if err != nil {
		return err
	}
	return setPort(k.h, l, br)
}

func setPort(h *netlink.Handle, l, br netlink.Link) error {
	if err := h.LinkSetMasterByIndex(l, br.Attrs().Index); err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", l.Attrs().Name, br.Attrs().Name, err)
	}
	if err := h.LinkSetHairpin(l, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", l.Attrs().Name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), true
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func (k *netlinkKernel) AddAddr(dev string, p netip.Prefix) error {
	l, err := k.h.LinkByName(dev)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
		if p.IsSingleIP() { // the resolver's: deprecated, so never a source (RFC 6724 section 5, rule 3)
			a.ValidLft, a.PreferedLft = math.MaxUint32, 0
		}
	}
	return k.h.AddrReplace(l, a)
}

func (k *netlinkKernel) DelAddr(dev string, p netip.Prefix) error {
	return k.delAddr(dev, &netlink.Addr{IPNet: ipNet(p)})
}

func (k *netlinkKernel) delAddr(dev string, a *netlink.Addr) error {
	l, err := k.h.LinkByName(dev)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := k.h.AddrDel(l, a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	return nil
}

func localAddr(a LocalAddr) *netlink.Addr {
	n := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a.Addr, a.Addr.BitLen())), Scope: unix.RT_SCOPE_HOST}
	if a.Addr.Is4() {
		n.Label = LoLabel // IPv6 has no labels
	} else {
		n.Flags = unix.IFA_F_NODAD
	}
	return n
}

func (k *netlinkKernel) AddLocalAddr(a LocalAddr) error {
	lo, err := k.h.LinkByName("lo")
	if err != nil {
		return err
	}
	return k.h.AddrReplace(lo, localAddr(a))
}

func (k *netlinkKernel) DelLocalAddr(a LocalAddr) error { return k.delAddr("lo", localAddr(a)) }

func (k *netlinkKernel) neigh(n Neighbor) (*netlink.Neigh, error) {
	l, err := k.h.LinkByName(n.Dev)
	if err != nil {
		return nil, err
	}
	m, err := mac(n.MAC)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: familyOf(n.Addr), State: netlink.NUD_PERMANENT,
		IP: n.Addr.AsSlice(), HardwareAddr: m}, nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (k *netlinkKernel) SetNeighbor(n Neighbor) error {
	e, err := k.neigh(n)
	if err != nil {
		return err
	}
	return k.h.NeighSet(e)
}

func (k *netlinkKernel) DelNeighbor(n Neighbor) error { return k.delNeigh(k.neigh(n)) }

func (k *netlinkKernel) fdb(f FDBEntry) (*netlink.Neigh, error) {
	l, err := k.h.LinkByName(f.Dev)
	if err != nil {
		return nil, err
	}
	m, err := mac(f.MAC)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
		Flags: netlink.NTF_SELF, IP: f.Dst.AsSlice(), HardwareAddr: m}, nil
}

func (k *netlinkKernel) SetFDB(f FDBEntry) error {
	e, err := k.fdb(f)
	if err != nil {
		return err
	}
	return k.h.NeighSet(e)
}

func (k *netlinkKernel) DelFDB(f FDBEntry) error { return k.delNeigh(k.fdb(f)) }

func (k *netlinkKernel) delNeigh(e *netlink.Neigh, err error) error {
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := k.h.NeighDel(e); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (k *netlinkKernel) route(r Route) (*netlink.Route, error) {
	n := &netlink.Route{Dst: ipNet(r.Prefix), Protocol: Protocol, Priority: int(r.Metric), Table: unix.RT_TABLE_MAIN}
	if r.Type == Unreachable {
		n.Type = unix.RTN_UNREACHABLE
		return n, nil
	}
	l, err := k.h.LinkByName(r.Dev)
	if err != nil {
		return nil, err
	}
	n.LinkIndex = l.Attrs().Index
	switch {
	case !r.Via.IsValid():
		if r.Prefix.Addr().Is4() {
			n.Scope = unix.RT_SCOPE_LINK
		}
	case r.Via.Is4() == r.Prefix.Addr().Is4():
		n.Gw = r.Via.AsSlice()
	default: // RFC 8950: an IPv4 prefix behind an IPv6 next hop
		n.Via = &netlink.Via{AddrFamily: familyOf(r.Via), Addr: r.Via.AsSlice()}
	}
	if r.OnLink {
		n.Flags = unix.RTNH_F_ONLINK
	}
	if r.Src.IsValid() {
		n.Src = r.Src.AsSlice()
	}
	return n, nil
}

func (k *netlinkKernel) SetRoute(r Route) error {
	n, err := k.route(r)
	if err != nil {
		return err
	}
	return k.h.RouteReplace(n)
}

func (k *netlinkKernel) DelRoute(r Route) error {
	n, err := k.route(r)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := k.h.RouteDel(n); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func sysctlFile(path string) string {
	return filepath.Join("/proc/sys", filepath.Clean("/"+path))
}

func (k *netlinkKernel) SetSysctl(s Sysctl) error {
	return k.thread.do(func() error {
		err := os.WriteFile(sysctlFile(s.Path), []byte(s.Value), 0)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.Path, "net/ipv6/") {
			return nil // IPv6 is switched off
		}
		return err
	})
}
