package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Modes of an attachment.
const (
	ModeBridge = "bridge" // a veth pair on the network's bridge; the zero value means this
	ModeNone   = "none"   // only the loopback device is set up
)

// DefaultIfName is the name of the device inside, when the spec has none.
const DefaultIfName = "eth0"

const (
	// attachWait bounds how long an attachment waits for its bridge, and for
	// its port to forward, when the caller's context has no nearer end.
	attachWait = 5 * time.Second
)

// AttachSpec says how a network namespace is attached to a network.
type AttachSpec struct {
	ID        string // unique on the node; HostIf and MAC are derived from it
	Network   string
	Bridge    string // device; empty: the plan's for Network
	NetnsPath string
	IfName    string       // inside; empty: DefaultIfName
	Addr      netip.Prefix // with the prefix length for the interface; zero: none
	Gateway   netip.Addr   // zero: none
	Addr6     netip.Prefix // IPv6 beside Addr; zero: none
	Gateway6  netip.Addr
	MAC       string // inside; empty: derived from ID, never from the address
	MTU       int    // bytes; 0: the bridge's
	HostIf    string // empty: HostIfName(ID)
	Mode      string
	// DefaultRoute asks for a default route via Gateway. Without an address
	// there are no routes: whoever brings the address (DHCP) brings them too.
	DefaultRoute bool
	ExtraRoutes  []netip.Prefix // via Gateway, or on the link without one
}

// AttachResult is what an attachment came to. All is empty for ModeNone.
type AttachResult struct {
	HostIf    string
	HostMAC   string
	MAC       string
	BridgeMAC string
	MTU       int
}

// DetachSpec names an attachment. HostIf is enough; without it the name is
// derived from ID. The namespace may be gone.
type DetachSpec struct {
	ID     string
	HostIf string
}

// HostIfName returns the name of the host side that belongs to an attachment ID.
func HostIfName(id string) string { return deviceName("ve", hash12(id)) }

// hostMAC is the MAC of the host side of an attachment.
func hostMAC(id string) string { return derivedMAC("host port", id) }

func (s *AttachSpec) defaults(o *Overlay) {
	s.IfName = cmp.Or(s.IfName, DefaultIfName)
	s.Mode = cmp.Or(s.Mode, ModeBridge)
	s.HostIf = cmp.Or(s.HostIf, HostIfName(s.ID))
	s.MAC = cmp.Or(s.MAC, derivedMAC("port", s.ID))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.plan == nil {
		return
	}
	for _, n := range o.plan.Networks {
		if n.Name == s.Network {
			s.Bridge = cmp.Or(s.Bridge, n.Bridge)
		}
	}
}

// errNotNetlink is returned where a Kernel of Options cannot do attachments.
var errNotNetlink = errors.New("attachments need the real kernel")

func (o *Overlay) netlink() (*netlinkKernel, error) {
	k, ok := o.kernel.(*netlinkKernel)
	if !ok {
		return nil, errNotNetlink
	}
	return k, nil
}

// Attach connects a network namespace to a network's bridge and returns when
// the port forwards. It waits for the bridge to be there and up, since a plan
// that was just Set may not be applied yet. On an error nothing is left behind.
func (o *Overlay) Attach(ctx context.Context, s AttachSpec) (AttachResult, error) {
	res, err := o.attach(ctx, s)
	if err != nil {
		return AttachResult{}, fmt.Errorf("attach %s to network %s: %w", s.ID, s.Network, err)
	}
	return res, nil
}

func (o *Overlay) attach(ctx context.Context, s AttachSpec) (AttachResult, error) {
	k, err := o.netlink()
	if err != nil {
		return AttachResult{}, err
	}
	s.defaults(o)
	if err := k.refuseOwn(s.NetnsPath); err != nil {
		return AttachResult{}, err
	}
	if s.Mode == ModeNone {
		return AttachResult{}, inNetns(s.NetnsPath, func(netns.NsHandle) error { return loopbackUp() })
	}
	if s.Mode != ModeBridge {
		return AttachResult{}, fmt.Errorf("mode %q is not known to this version: use bridge or none", s.Mode)
	}
	if s.Bridge == "" {
		return AttachResult{}, fmt.Errorf("the network is not known on this node")
	}
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	if err := o.waitBridge(ctx, k, &s); err != nil {
		return AttachResult{}, err
	}
	// Only the host's side is kept apart from the reconciler's passes.
	o.opMu.Lock()
	br, err := k.plug(&s)
	o.opMu.Unlock()
	if err != nil {
		return AttachResult{}, err
	}
	res, err := k.finish(ctx, &s, br)
	if err != nil {
		if derr := k.DelLink(s.HostIf); derr != nil {
			err = errors.Join(err, fmt.Errorf("roll back: delete %s: %w", s.HostIf, derr))
		}
		return AttachResult{}, err
	}
	return res, nil
}

// refuseOwn makes sure that a path is not the node's own network namespace.
func (k *netlinkKernel) refuseOwn(path string) error {
	return k.thread.do(func() error {
		own, err := netns.Get()
		if err != nil {
			return fmt.Errorf("open the node's network namespace: %w", err)
		}
		defer own.Close()
		other, err := netns.GetFromPath(path)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer other.Close()
		if own.Equal(other) {
			return fmt.Errorf("network namespace %s is the node's own", path)
		}
		return nil
	})
}

// waitBridge returns when the bridge is up and carries the gateway address, if
// the plan has it there.
func (o *Overlay) waitBridge(ctx context.Context, k *netlinkKernel, s *AttachSpec) error {
	for {
		o.mu.Lock()
		changed, status := o.changed, o.status
		gateway := false
		if o.plan != nil {
			for _, b := range o.plan.Bridges {
				for _, a := range b.Addrs {
					gateway = gateway || b.Name == s.Bridge && a.Addr() == s.Gateway
				}
			}
		}
		o.mu.Unlock()
		why := ""
		l, err := k.h.LinkByName(s.Bridge)
		switch {
		case isNoLink(err):
			why = "does not exist"
		case err != nil:
			return fmt.Errorf("find bridge %s: %w", s.Bridge, err)
		case l.Type() != KindBridge:
			return fmt.Errorf("%s is a %s, not a bridge: %w", s.Bridge, l.Type(), ErrForeign)
		case l.Attrs().RawFlags&unix.IFF_UP == 0:
			why = "is down"
		case gateway && !hasAddr(k.h, l, s.Gateway):
			why = "has not got the gateway address " + s.Gateway.String()
		default:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := fmt.Errorf("bridge %s %s: %w", s.Bridge, why, ctx.Err())
			if status.Error != "" {
				err = fmt.Errorf("%w; the overlay says: %s", err, status.Error)
			}
			return err
		}
	}
}

func hasAddr(h *netlink.Handle, l netlink.Link, want netip.Addr) bool {
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, familyOf(want)) })
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if addrOf(a.IP) == want {
			return true
		}
	}
	return false
}

// plug makes the veth pair, both ends named and addressed and in their
// namespaces by one request, and puts the host side on the bridge.
func (k *netlinkKernel) plug(s *AttachSpec) (br netlink.Link, err error) {
	if err := k.clearStale(s.HostIf, s.ID); err != nil {
		return nil, err
	}
	ns, err := netns.GetFromPath(s.NetnsPath)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", s.NetnsPath, err)
	}
	defer ns.Close()
	err = inNetns(s.NetnsPath, func(netns.NsHandle) error {
		_, err := netlink.LinkByName(s.IfName)
		switch {
		case err == nil:
			return fmt.Errorf("%s exists already in %s", s.IfName, s.NetnsPath)
		case isNoLink(err):
			return nil
		}
		return fmt.Errorf("look for %s in %s: %w", s.IfName, s.NetnsPath, err)
	})
	if err != nil {
		return nil, err
	}
	br, err = k.h.LinkByName(s.Bridge)
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", s.Bridge, err)
	}
	s.MTU = cmp.Or(s.MTU, br.Attrs().MTU)
	attrs, err := newAttrs(s.HostIf, hostMAC(s.ID), s.MTU)
	if err != nil {
		return nil, err
	}
	inner, err := mac(s.MAC)
	if err != nil {
		return nil, err
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace, veth.PeerMTU = s.IfName, inner, netlink.NsFd(ns), uint32(s.MTU)
	if err := k.h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("create veth %s with %s in %s: %w", s.HostIf, s.IfName, s.NetnsPath, err)
	}
	err = k.setAlias(s.HostIf, s.Network)
	if err == nil {
		var host netlink.Link
		if host, err = k.h.LinkByName(s.HostIf); err == nil {
			err = setPort(k.h, host, br)
		}
	}
	if err != nil {
		return nil, errors.Join(err, k.DelLink(s.HostIf))
	}
	return br, nil
}

// clearStale removes a host side that an attachment of the same ID left
// behind when the daemon died in the middle of it, perhaps before it got its
// alias.
func (k *netlinkKernel) clearStale(hostIf, id string) error {
	l, err := k.h.LinkByName(hostIf)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", hostIf, err)
	}
	if o := linkOf(l); o.Kind != KindVeth || !o.Ours && o.MAC != hostMAC(id) {
		return fmt.Errorf("link %s (%s) is in the way: %w", hostIf, o.Kind, ErrForeign)
	}
	if err := k.DelLink(hostIf); err != nil {
		return fmt.Errorf("remove stale %s: %w", hostIf, err)
	}
	return nil
}

// finish sets up the inside, waits for the port and announces the address.
func (k *netlinkKernel) finish(ctx context.Context, s *AttachSpec, br netlink.Link) (AttachResult, error) {
	if err := inNetns(s.NetnsPath, func(netns.NsHandle) error { return setupInside(s) }); err != nil {
		return AttachResult{}, err
	}
	if err := k.waitForwarding(ctx, s.HostIf); err != nil {
		return AttachResult{}, err
	}
	if s.Addr.IsValid() && s.Addr.Addr().Is4() {
		if err := inNetns(s.NetnsPath, func(netns.NsHandle) error { return announce(s.IfName, s.Addr.Addr()) }); err != nil {
			return AttachResult{}, fmt.Errorf("announce %s: %w", s.Addr.Addr(), err)
		}
	}
	host, err := k.h.LinkByName(s.HostIf)
	if err != nil {
		return AttachResult{}, fmt.Errorf("find %s: %w", s.HostIf, err)
	}
	return AttachResult{HostIf: s.HostIf, HostMAC: host.Attrs().HardwareAddr.String(), MAC: s.MAC,
		BridgeMAC: br.Attrs().HardwareAddr.String(), MTU: host.Attrs().MTU}, nil
}

// waitForwarding returns when the bridge forwards for the port. It asks again
// at each link event, and rarely besides, in case one was lost.
func (k *netlinkKernel) waitForwarding(ctx context.Context, hostIf string) error {
	l, err := k.h.LinkByName(hostIf)
	if err != nil {
		return fmt.Errorf("find %s: %w", hostIf, err)
	}
	index := l.Attrs().Index
	events, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	err = k.thread.do(func() error {
		return netlink.LinkSubscribeWithOptions(events, done, netlink.LinkSubscribeOptions{})
	})
	if err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	defer func() {
		close(done)
		drainAll(events)
	}()
	slow := time.NewTicker(250 * time.Millisecond)
	defer slow.Stop()
	for {
		var state portState
		err := k.thread.do(func() error {
			ports, err := bridgePorts()
			state = ports[index]
			return err
		})
		if err != nil {
			return fmt.Errorf("list bridge ports: %w", err)
		}
		if state.state == brStateForwarding {
			return nil
		}
		for again := false; !again; {
			select {
			case u, ok := <-events:
				if !ok {
					events = nil
				}
				again = ok && int(u.Index) == index
			case <-slow.C:
				again = true
			case <-ctx.Done():
				return fmt.Errorf("port %s does not forward (state %d): %w", hostIf, state.state, ctx.Err())
			}
		}
	}
}

// Detach removes the host side of an attachment, and with it the inside. What
// is gone already is no error; a link that is not ours is not touched.
func (o *Overlay) Detach(_ context.Context, s DetachSpec) error {
	k, err := o.netlink()
	if err != nil {
		return err
	}
	if s.HostIf == "" {
		if s.ID == "" {
			return errors.New("detach: neither ID nor host interface given")
		}
		s.HostIf = HostIfName(s.ID)
	}
	o.opMu.Lock()
	defer o.opMu.Unlock()
	if err := k.clearStale(s.HostIf, s.ID); err != nil {
		return fmt.Errorf("detach %s: %w", s.ID, err)
	}
	return nil
}

// Exists reports whether the host side of an attachment is in the kernel,
// with or without our alias. When the kernel cannot be asked, it says yes: an
// address in use must not be given away because of that.
func (o *Overlay) Exists(hostIf string) bool {
	k, err := o.netlink()
	if err != nil {
		return false
	}
	_, err = k.h.LinkByName(hostIf)
	return !isNoLink(err)
}

// Ports returns the network of each host side that exists, by device name.
func (o *Overlay) Ports() (map[string]string, error) {
	k, err := o.netlink()
	if err != nil {
		return nil, err
	}
	links, err := dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ports := map[string]string{}
	for _, l := range links {
		if o := linkOf(l); o.Ours && o.Kind == KindVeth {
			ports[o.Name] = o.Network
		}
	}
	return ports, nil
}
